"""Trains with transferred weights and, with the same budget, a twin from scratch to compare."""

import logging
from dataclasses import dataclass

from autoliver.errors import OptionError
from autoliver.pipeline.run.job import FoldResult
from autoliver.pipeline.run.outcome import with_source_scores
from autoliver.pipeline.run.request import Notify, TrainRequest
from autoliver.pipeline.run.train import train
from autoliver.training.distributed import launched
from autoliver.training.options import TrainingOptions
from autoliver.workspace import RunFolder, Workspace

_log = logging.getLogger(__name__)

_TAG = "scratch"
# Options that a training from scratch has no use for, or for which it needs its own default.
_OF_TRANSFER = (
    *("pretrained", "freeze", "unfreeze", "encoder_factor", "layer_decay"),
    *("heads", "lr", "inflate", "replay", "replay_share", "keep_source"),
)
# Fields that `train` sets itself.
_KEPT_APART = ("made_from", "extensions")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The results of both trainings.

    Attributes:
        transferred: Folds that started from the source's weights.
        scratch: Folds that started from random weights.
    """

    transferred: list[FoldResult]
    scratch: list[FoldResult]


def train_both(
    workspace: Workspace, name: str | None, request: TrainRequest, *, notify: Notify = _log.info
) -> Compared:
    """Trains as requested, and then a twin from random weights.

    The twin has the same plan, options and number of steps. Its run has the tag "scratch"
    (TAG-scratch if a tag was given), and its learning rate is the one that the schedule has for
    random weights.

    Raises:
        OptionError: No weights are transferred, the training is to be extended, or it has no
            epochs.
        AutoliverError: As for `train`.
    """
    if request.pretrained is None:
        raise OptionError(
            "--compare-scratch trains a twin of a training with --pretrained, which is missing.",
            hint="Give --pretrained SOURCE as well.",
        )
    if request.extend is not None:
        raise OptionError(
            "--extend and --compare-scratch: only one run can be extended at a time.",
            hint="Extend each run by itself; the twin with --pretrained SOURCE --twin.",
        )
    if request.changes.get("epochs") == 0:
        raise OptionError(
            "--epochs 0 and --compare-scratch: random weights that are not trained are no useful "
            "comparison.",
            hint="Give a number of epochs, or leave --compare-scratch out.",
        )
    transferred = train(workspace, name, request, notify=notify)
    if request.changes.get("lr") is not None:
        notify("The twin learns at its schedule's own rate: --lr is for pretrained weights.")
    begun = RunFolder(transferred[0].folder.parent)
    options = TrainingOptions.load(begun.options, mend=begun.mend)
    fields = (f for f in TrainingOptions.__struct_fields__ if f not in _KEPT_APART)
    changes = {f: getattr(options, f) for f in fields if f not in _OF_TRANSFER}
    tag = f"{request.tag}-{_TAG}" if request.tag else _TAG
    scratch = train(
        workspace, name, request.replace(twin=True, tag=tag, changes=changes), notify=notify
    )
    if launched().leads:
        quiet = request.replace(twin=True)
        scratch = with_source_scores(workspace, scratch, quiet, of=transferred)
    return Compared(transferred=transferred, scratch=scratch)
