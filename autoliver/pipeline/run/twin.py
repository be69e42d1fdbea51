"""A training with transferred weights beside its twin from scratch, under the same budget."""

import logging
from dataclasses import dataclass

from autoliver.errors import OptionError
from autoliver.pipeline.run.job import FoldResult
from autoliver.pipeline.run.request import Notify, TrainRequest
from autoliver.pipeline.run.train import train
from autoliver.training.options import TrainingOptions
from autoliver.workspace import RunFolder, Workspace

_log = logging.getLogger(__name__)

_TAG = "scratch"
# What a training from scratch has no use for, or has at another value by its own schedule.
_OF_TRANSFER = ("pretrained", "freeze", "unfreeze", "encoder_factor", "heads", "lr")
# What `train` sets anew.
_KEPT_APART = ("made_from", "extensions")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Folds that began with a source's weights, and those that began with drawn ones."""

    transferred: list[FoldResult]
    scratch: list[FoldResult]


def train_both(
    workspace: Workspace, name: str | None, request: TrainRequest, *, notify: Notify = _log.info
) -> Compared:
    """Trains as asked and then its twin: the same plan, options and steps, drawn weights.

    The twin's run has the tag "scratch" (TAG-scratch where one was given), and learns at the rate
    that its schedule has for drawn weights.

    Raises:
        OptionError: Nothing is transferred, or the training is to be extended.
        AutoliverError: As `train`.
    """
    if request.pretrained is None:
        raise OptionError(
            "--compare-scratch trains the twin of a training with --pretrained.",
            hint="Give --pretrained SOURCE as well.",
        )
    if request.extend is not None:
        raise OptionError(
            "--extend and --compare-scratch: one training is extended at a time.",
            hint="Extend each run by itself; the twin's with --pretrained SOURCE --twin.",
        )
    if request.changes.get("epochs") == 0:
        raise OptionError(
            "--epochs 0 and --compare-scratch: weights drawn at random and never trained are no "
            "training to compare with.",
            hint="Give a number of epochs, or leave --compare-scratch out.",
        )
    transferred = train(workspace, name, request, notify=notify)
    if request.changes.get("lr") is not None:
        notify("The twin learns at its schedule's own rate: --lr is for pretrained weights.")
    options = TrainingOptions.load(RunFolder(transferred[0].folder.parent).options)
    fields = (f for f in TrainingOptions.__struct_fields__ if f not in _KEPT_APART)
    changes = {f: getattr(options, f) for f in fields if f not in _OF_TRANSFER}
    tag = f"{request.tag}-{_TAG}" if request.tag else _TAG
    scratch = train(
        workspace, name, request.replace(twin=True, tag=tag, changes=changes), notify=notify
    )
    return Compared(transferred=transferred, scratch=scratch)
