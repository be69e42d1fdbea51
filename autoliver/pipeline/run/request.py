"""Requests to `train`, as values that can be sent to another process."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from autoliver.artifacts import Artifact, Record
from autoliver.commands import command
from autoliver.datasets.folds import Fold
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.planning.names import ConfigurationName, Preset
from autoliver.workspace import RunFolder

# Called with messages that the user should read before the training starts.
Notify = Callable[[str], None]


class TrainRequest(Record, frozen=True, kw_only=True):
    """A request to `train`.

    Attributes:
        configuration: The configuration to train.
        folds: The folds to train; empty for all folds of the cross-validation.
        changes: The training options that were given. Other options keep the values that the run
            was started with, or take their defaults in a new run.
        tag: Distinguishes runs of one configuration; None for no tag.
        fresh: Whether to start over if the run was started before.
        extend: Number of epochs to add to finished folds; None to add none.
        preset: The preset to plan with if the dataset has no plan yet; None for the default one.
        pretrained: The model whose weights the training starts from and whose plan it follows; None
            for random weights.
        encoder_weights: With "imagenet" as `pretrained`, a file of weights or the name of an
            installed package with one; None for what is installed.
        like: The source whose plan is followed without its weights; None to follow no plan.
        own_plan: Whether to keep the dataset's own plan with `pretrained` and adapt the weights.
        twin: Whether to take only the plan of `pretrained`: this is the training from scratch to
            compare with.
        accept_changes: Whether to leave out cases that were added since the dataset was planned.
        machine: The devices, processes and memory that may be used.
    """

    configuration: ConfigurationName
    folds: tuple[Fold, ...] = ()
    changes: dict[str, Any] = msgspec.field(default_factory=dict)
    tag: str | None = None
    fresh: bool = False
    extend: int | None = None
    preset: Preset | None = None
    pretrained: str | None = None
    encoder_weights: str | None = None
    like: str | None = None
    own_plan: bool = False
    twin: bool = False
    accept_changes: bool = False
    machine: Machine = WHOLE_MACHINE

    def for_fold(self, fold: Fold, machine: Machine) -> "TrainRequest":
        """Returns the request for one fold of a run whose options are already written."""
        return self.replace(folds=(fold,), changes={}, fresh=False, extend=None, machine=machine)


def train_command(
    run: RunFolder,
    request: TrainRequest,
    folds: Sequence[object],
    *,
    options: Sequence[str] = (),
) -> str:
    """Returns the command that trains folds of the run of a request.

    Args:
        run: The run.
        request: The request.
        folds: The folds; empty for all of the cross-validation.
        options: Further options with their values.
    """
    given = {
        "--fold": ",".join(map(str, folds)),
        "--tag": request.tag,
        "--pretrained": request.pretrained,
        "--encoder-weights": request.encoder_weights,
        "--like": request.like,
    }
    words = [word for option, value in given.items() if value for word in (option, value)]
    words += ["--own-plan"] if request.own_plan else []
    dataset, workspace = run.path.parents[1].name, run.path.parents[2]
    return command(
        *("train", dataset, request.configuration),
        options=[*words, *options],
        workspace=workspace,
    )


class QueuedRequest(Artifact, frozen=True, kw_only=True):
    """The request to a process of the queue: train one fold of a run that was started.

    Attributes:
        workspace: Absolute path of the workspace.
        dataset: Absolute path of the dataset.
        request: Names the fold, its device and its share of the machine.
        at_once: Number of folds that are trained at the same time and share the CPU cores.
    """

    KIND: ClassVar[str] = "queued request"

    workspace: str
    dataset: str
    request: TrainRequest
    at_once: int
