"""Held-out cases that a training builds on something which has seen them: their scores mislead."""

from collections.abc import Collection, Mapping

from autoliver.datasets.contents import seen_cases
from autoliver.datasets.folds import Fold, Split
from autoliver.pipeline.data import Planned
from autoliver.pipeline.run.replay import Replay
from autoliver.pipeline.run.request import Notify
from autoliver.pipeline.run.source import Source
from autoliver.pipeline.translation.synthesizer import SYNTHESIZER_FILE
from autoliver.transfer.table import Transfer
from autoliver.values import counted, first_few

_SHOWN = 3  # names in one message
_LEARN_AGAIN = " Learn it with --held-out for each of them."


def note_seen_by_source(
    source: Source,
    transfer: Transfer,
    planned: Planned,
    splits: Mapping[Fold, Split],
    notify: Notify,
) -> None:
    """Notifies the user of held-out cases that the weights of a source have seen.

    Cases are compared by the content of their images, with all that the source's own sources have
    seen. Of a source that does not know it, only its own cases are compared, by name.
    """
    known = seen_cases(planned.dataset, transfer.seen)
    info = source.info
    if not transfer.seen and info is not None and info.plan.dataset == planned.dataset.name:
        known = set(info.cases)
    what = f"{source.fold}, or what it started from, was trained on"
    _note(what, known, splits, notify)


def note_seen_by_translation(
    replay: Replay, planned: Planned, splits: Mapping[Fold, Split], notify: Notify
) -> None:
    """Notifies the user of held-out cases that the translation has seen which made its images.

    If that is not known, the user is told so.
    """
    if replay.seen is None:
        held_out = {case for split in splits.values() for case in split.validation}
        if held_out:
            notify(
                f"Note: {replay.dataset.short_name} has synthetic cases but no {SYNTHESIZER_FILE}: "
                "it is not known whether what made them has seen cases that are held out. If so, "
                "their scores will be too good."
            )
        return
    what = f"the translation that made {replay.dataset.short_name} has seen"
    _note(what, seen_cases(planned.dataset, replay.seen), splits, notify, remedy=_LEARN_AGAIN)


def _note(
    what: str,
    known: Collection[str],
    splits: Mapping[Fold, Split],
    notify: Notify,
    *,
    remedy: str = "",
) -> None:
    for fold, split in splits.items():
        seen = sorted(set(known) & set(split.validation))
        if seen:
            notify(
                f"Note: fold {fold}: {what} {len(seen)} of the "
                f"{counted(len(split.validation), 'case')} held out ({first_few(seen, _SHOWN)}): "
                f"their scores will be too good.{remedy}"
            )
