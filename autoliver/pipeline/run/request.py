"""What `train` is asked for."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autoliver.datasets.folds import Fold
from autoliver.parallel import NO_LIMITS, Limits
from autoliver.planning.plan import ConfigurationName

if TYPE_CHECKING:
    from autoliver.training.patches.cache import CacheChoice

_log = logging.getLogger(__name__)

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What `train` was asked for.

    Attributes:
        configuration: Which configuration.
        folds: Which folds; empty: all of the cross-validation.
        changes: Training options that were given (the others are as begun, or default).
        tag: Distinguishes runs of one configuration.
        fresh: Start over where something was begun.
        extend: Epochs to add to finished folds.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        gpus: GPUs that take folds as they become free; several folds only.
        jobs: Without them: how many folds are trained at a time, in as many processes.
        cache: Where cases lie while they are trained on: "auto", "gpu", "ram", "disk".
        tensorboard: Whether each epoch is written for TensorBoard, too.
        pretrained: The model whose weights it begins with, and whose plan it follows; None: drawn
            weights.
        like: What its plan follows, without weights.
        own_plan: Keep the dataset's own plan with `pretrained`; weights are made to fit.
        twin: Take the plan of `pretrained` alone: the training from scratch to compare with.
        tell: Called with what a person should know before the training begins.
        limits: For planning, preprocessing, the cache and prediction.
    """

    configuration: ConfigurationName
    folds: tuple[Fold, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    tag: str | None = None
    fresh: bool = False
    extend: int | None = None
    device: str = "auto"
    gpus: tuple[int, ...] = ()
    jobs: int | None = None
    cache: "CacheChoice" = "auto"
    tensorboard: bool = False
    pretrained: str | None = None
    like: str | None = None
    own_plan: bool = False
    twin: bool = False
    tell: Tell = _log.info
    limits: Limits = NO_LIMITS
