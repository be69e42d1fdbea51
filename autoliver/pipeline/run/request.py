"""What `train` is asked for, as a value that can be sent to another process."""

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from autoliver.artifacts import Artifact, Record
from autoliver.datasets.folds import Fold
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.planning.names import ConfigurationName

# Called with a sentence that a person should read before the training begins.
Notify = Callable[[str], None]


class TrainRequest(Record, frozen=True, kw_only=True):
    """What `train` is asked for.

    Attributes:
        configuration: The configuration to train.
        folds: The folds to train; empty for all of the cross-validation.
        changes: The training options that were given; the others stay as the run was begun with,
            or take their defaults.
        tag: Tells several runs of one configuration apart.
        fresh: Start over where something was begun.
        extend: Epochs to add to finished folds.
        pretrained: The model whose weights the training begins with and whose plan it follows;
            None for weights drawn at random.
        like: The source whose plan is followed without its weights.
        own_plan: With `pretrained`, keep the dataset's own plan and make the weights fit.
        twin: Take only the plan of `pretrained`: this is the training from scratch to compare with.
        machine: The devices, processes and memory that may be used.
    """

    configuration: ConfigurationName
    folds: tuple[Fold, ...] = ()
    changes: dict[str, Any] = msgspec.field(default_factory=dict)
    tag: str | None = None
    fresh: bool = False
    extend: int | None = None
    pretrained: str | None = None
    like: str | None = None
    own_plan: bool = False
    twin: bool = False
    machine: Machine = WHOLE_MACHINE

    def for_fold(self, fold: Fold, machine: Machine) -> "TrainRequest":
        """The request for one fold of a run whose options are written already."""
        return self.replace(folds=(fold,), changes={}, fresh=False, extend=None, machine=machine)


class QueuedRequest(Artifact, frozen=True, kw_only=True):
    """What a process of the queue is to do: one fold of a run that was begun.

    Attributes:
        workspace: Absolute path of the workspace.
        dataset: Absolute path of the dataset.
        request: Names the fold, its device and its share of the machine.
        at_once: How many folds are trained at the same time, which share the cores.
    """

    KIND: ClassVar[str] = "queued request"

    workspace: str
    dataset: str
    request: TrainRequest
    at_once: int
