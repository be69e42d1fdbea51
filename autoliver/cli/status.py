"""The command `status`."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoliver.cli.options import DEFAULT_WORKSPACE, AsJson, Verbose, WorkspaceDir
from autoliver.cli.output import emit, number, say, start, table
from autoliver.errors import WrongValue
from autoliver.values import shortened

if TYPE_CHECKING:
    from pathlib import Path

    from autoliver.locks import Holder
    from autoliver.pipeline.status import FoldStatus, TranslationStatus, WorkspaceStatus

_LEAST_SECONDS = 0.1
_WIDTH = 80  # where the terminal's is not known
_LEAST_NAME = 12
_HEADER = ("run", "fold", "state", "epoch", "Dice", "best", "s/epoch", "left")
# Goes to the first place of the terminal and clears what is behind; and all of it, at the start.
_HOME, _CLEAR = "\x1b[H\x1b[J", "\x1b[2J"


def status(
    dataset: Annotated[
        str | None,
        typer.Argument(metavar="DATASET", help="Folder or name. [default: the whole workspace]"),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch",
            metavar="[SECONDS]",
            help="Look again every 5 seconds, or as given, until nothing runs any more; where "
            "stdout is no terminal, print a line for what has changed. [default: look once]",
        ),
    ] = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show runs and translations: epoch, Dice, time left, who trains.

    Nothing is locked or written, so it may be used at any time. Dice is that of patches of held-out
    cases, of the last and of the best epoch; finished folds show that of whole held-out cases too.
    """
    from autoliver.pipeline.status import read_status
    from autoliver.workspace import Workspace

    if watch is not None and not watch >= _LEAST_SECONDS:
        raise WrongValue(
            f"--watch {watch:g}: expected a number of seconds, at least {_LEAST_SECONDS:g}.",
            hint="Give --watch 5, or --watch alone.",
        )
    start(verbose=verbose)
    place = Workspace(workspace)
    if watch is None:
        found = read_status(place, dataset)
        emit(_result(found), _show(found, workspace), as_json=as_json)
        return
    shown: dict[str, str] = {}
    try:
        while True:
            found = read_status(place, dataset)
            if as_json:
                emit(_result(found), "", as_json=True)
            elif sys.stdout.isatty():
                first = _CLEAR if not shown else ""
                shown[""] = first
                typer.echo(first + _HOME, nl=False)
                emit({}, _fitting(_show(found, workspace)), as_json=False)
            else:
                for line in _changes(found, shown):
                    emit({}, line, as_json=False)
            if not found.at_work:
                return
            time.sleep(watch)
    except KeyboardInterrupt:
        say("\nNot watching any more; what runs goes on.")


def _result(found: "WorkspaceStatus") -> dict[str, Any]:
    return {
        "folds": [
            {**dataclasses.asdict(each), "holder": _who(each.holder)} for each in found.folds
        ],
        "translations": [
            {
                **dataclasses.asdict(each),
                "holder": _who(each.holder),
                "folder": str(each.folder),
            }
            for each in found.translations
        ],
        "other": [
            {**dataclasses.asdict(each), "holder": _who(each.holder)} for each in found.other
        ],
        "damaged": list(found.damaged),
        "at_work": found.at_work,
        "next": found.next,
    }


def _who(holder: "Holder | None") -> dict[str, object] | None:
    if holder is None:
        return None
    return {"host": holder.host, "process": holder.process, "since": holder.since}


def _show(found: "WorkspaceStatus", workspace: "Path") -> str:
    parts = []
    for dataset in dict.fromkeys(fold.dataset for fold in found.folds):
        folds = [fold for fold in found.folds if fold.dataset == dataset]
        parts.append(f"{dataset}\n{_table(folds)}")
        notes = [note for fold in folds if (note := _note(fold))]
        parts += ["\n".join(notes)] if notes else []
    if found.translations:
        parts.append(f"Translations\n{_translations(found.translations)}")
        notes = [_translation_note(each) for each in found.translations]
        parts.append("\n".join(notes))
    parts += [f"{work.dataset}: {work.what} by {work.holder}." for work in found.other]
    if not found.folds and not found.translations:
        parts.append(f"There are no runs in {workspace.absolute()}.\nNext: {found.next}")
    parts += [f"Damaged: {each}" for each in found.damaged]
    return "\n\n".join(parts)


def _table(folds: "list[FoldStatus]") -> str:
    rows = [[fold.run, fold.fold, *_cells(fold)] for fold in folds]
    widths = [max(len(row[i]) for row in [_HEADER, *rows]) for i in range(1, len(_HEADER))]
    room = max(_LEAST_NAME, _columns() - sum(widths) - 2 * len(widths))
    return table(_HEADER, [[shortened(row[0], room, middle=True), *row[1:]] for row in rows])


def _cells(fold: "FoldStatus") -> tuple[str, ...]:
    rate, left = _pace(fold)
    if fold.held_out_dice is not None:
        left = f"Dice {fold.held_out_dice:.3f}"
    return (
        fold.state,
        f"{fold.epoch}/{'?' if fold.epochs is None else fold.epochs}",
        number(fold.dice),
        number(fold.best),
        rate,
        left,
    )


def _note(fold: "FoldStatus") -> str:
    """What a row has no room for: who works on a fold, or why nobody does and what to do."""
    name = f"{fold.run} fold {fold.fold}"
    if fold.at_work:
        return f"{name}: {fold.state} by {fold.holder}"
    if fold.state == "failed":
        return f"{name} failed: {fold.problem} Again with: {fold.command}"
    if fold.state == "interrupted":
        return f"{name} was interrupted, last written {fold.since}; goes on with: {fold.command}"
    return ""


def _translations(found: "Sequence[TranslationStatus]") -> str:
    rows = [
        [each.name, each.model, each.source, each.target, *_translation_cells(each)]
        for each in found
    ]
    header = ("name", "model", "from", "to", "state", "epoch", "s/epoch", "left")
    fixed = (1, 4, 5, 6, 7)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in fixed]
    room = max(3 * _LEAST_NAME, _columns() - sum(widths) - 2 * (len(header) - 1))
    names = [max(len(row[i]) for row in [header, *rows]) for i in (0, 2, 3)]
    room = max(names) if sum(names) <= room else room // 3
    return table(
        header,
        [
            [cell if i in fixed else shortened(cell, room, middle=True) for i, cell in enumerate(r)]
            for r in rows
        ],
    )


def _translation_cells(each: "TranslationStatus") -> tuple[str, ...]:
    return each.state, f"{each.epoch}/{each.epochs}", *_pace(each)


def _translation_note(each: "TranslationStatus") -> str:
    """What a row has no room for: losses, folder, who works on it, or why nobody does."""
    text = f"{each.name}: {each.folder}"
    if each.losses:
        text += "; " + ", ".join(f"{name} {value:.3g}" for name, value in each.losses.items())
    if each.at_work:
        return f"{text}; learnt by {each.holder}"
    if each.state == "failed":
        return f"{text}; failed: {each.problem} Again with: {each.command}"
    if each.state == "interrupted":
        text += f"; interrupted, last written {each.since}; goes on with: {each.command}"
    return text


def _pace(each: "FoldStatus | TranslationStatus") -> tuple[str, str]:
    """Seconds for an epoch, and what is left."""
    from autoliver.training.bar import duration

    rate, left = each.seconds_per_epoch, each.seconds_left
    return (
        "-" if rate is None else f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}",
        "-" if left is None else duration(left),
    )


def _changes(found: "WorkspaceStatus", shown: dict[str, str]) -> Iterator[str]:
    """A line for each fold that is not as it was shown before."""
    for fold in found.folds:
        name = f"{fold.dataset} {fold.run} fold {fold.fold}"
        state, epoch, dice, best, rate, left = _cells(fold)
        what = f"{name}: {state}, epoch {epoch}, Dice {dice}, best {best}"
        if shown.get(name) == what:
            continue
        shown[name] = what
        more = f", {rate} s/epoch, {left} left" if left != "-" and fold.at_work else ""
        note = "" if fold.at_work else _note(fold).removeprefix(f"{name} ")
        yield f"{time.strftime('%H:%M:%S')} {what}{more}" + (f"; {note}" if note else "")
    for each in found.translations:
        state, epoch, rate, left = _translation_cells(each)
        losses = "".join(f", {name} {value:.3g}" for name, value in each.losses.items())
        what = f"{each.name}: {state}, epoch {epoch}{losses}"
        if shown.get(each.name) != what:
            shown[each.name] = what
            more = f", {rate} s/epoch, {left} left" if left != "-" else ""
            yield f"{time.strftime('%H:%M:%S')} {what}{more}"
    told = [f"{work.dataset}: {work.what} by {work.holder}." for work in found.other]
    for line in [*told, *found.damaged]:
        if line not in shown:
            shown[line] = line
            yield f"{time.strftime('%H:%M:%S')} {line}"
    if not found.folds and not found.translations and not found.other:
        yield f"There are no runs. Next: {found.next}"


def _columns() -> int:
    return shutil.get_terminal_size((_WIDTH, 24)).columns if sys.stdout.isatty() else _WIDTH


def _fitting(text: str) -> str:
    """The first lines, as many as the terminal shows at once."""
    from autoliver.cli.output import wrapped

    size = shutil.get_terminal_size((_WIDTH, 24))
    lines = wrapped(text, size.columns).split("\n")
    return "\n".join(lines[: size.lines - 1])
