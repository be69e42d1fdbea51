"""What runs and translations are doing, read from their files; nothing is locked or written."""

import contextlib
import re
import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from autoliver.artifacts import brief, json_line, read_json
from autoliver.commands import command
from autoliver.errors import AutoliverError
from autoliver.locks import Holder, holder_of
from autoliver.models.files import FoldFolder, fold_of
from autoliver.pipeline.translation.synthesizer import SynthesisFolder, Synthesizer
from autoliver.system import entries, in_words, read_whole
from autoliver.training.progress import failure_of
from autoliver.transfer.table import IMAGENET
from autoliver.values import counted
from autoliver.workspace import SYNTHESIS, DatasetFolder, RunFolder, Workspace

if TYPE_CHECKING:
    from autoliver.training.options import TrainingOptions

State = Literal["queued", "training", "validating", "interrupted", "failed", "finished"]

# States in which a process works on the fold, or will.
_AT_WORK = ("queued", "training", "validating")
# The rate is the mean of so many epochs: the last ones, since other work on the machine changes.
_RECENT_EPOCHS = 5
# A process on another machine counts as stopped after this time without a sign of life, or after
# so many epochs.
_SILENT_S = 3600.0
_SILENT_EPOCHS = 5.0
_LOG_END = 1 << 16  # bytes at the end of train.log that are read
_TIME = "%Y-%m-%d %H:%M:%S"


class _Epoch(msgspec.Struct):
    """What is read of a line of progress.jsonl, whatever version has written it."""

    epoch: int
    seconds: float = 0.0
    losses: dict[str, float] = {}
    train_dice: float | None = None
    validation_dice: tuple[float | None, ...] | None = None

    @property
    def dice(self) -> float | None:
        """Of held-out patches, or of training patches without these; None: no label occurs."""
        if self.validation_dice is None:
            return self.train_dice
        known = [dice for dice in self.validation_dice if dice is not None]
        return statistics.fmean(known) if known else None


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldStatus:
    """A fold of a run.

    Attributes:
        dataset: The dataset's name.
        run: The run's name.
        fold: "0" to "4", or "all".
        state: "queued": a process will train it after others; "training"; "validating": its
            held-out cases are predicted; "interrupted": nobody works on it; "failed"; "finished".
        epoch: Number of finished epochs.
        epochs: Number of epochs at the end; None if the options of the run cannot be read.
        dice: Dice of the last epoch on patches of held-out cases, or of training cases where none
            are held out; None without one.
        best: The highest Dice of an epoch.
        seconds_per_epoch: Mean of the last epochs; None before the first.
        seconds_left: Estimate of what is left of its epochs; None unless it is being trained.
        held_out_dice: For a finished fold, the mean Dice of its whole held-out cases.
        holder: The process that works on it; None for none.
        since: When that began, or when the fold was last written to; local time.
        problem: Why it failed, or what else is to be known; empty for nothing.
        command: The command that goes on with it; empty if it is being trained or finished.
    """

    dataset: str
    run: str
    fold: str
    state: State
    epoch: int
    epochs: int | None
    dice: float | None
    best: float | None
    seconds_per_epoch: float | None
    seconds_left: float | None
    held_out_dice: float | None
    holder: Holder | None
    since: str
    problem: str
    command: str

    @property
    def at_work(self) -> bool:
        """Whether a process works on it, or will."""
        return self.state in _AT_WORK


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherWork:
    """Other work on a dataset that only one process may do at a time.

    Attributes:
        dataset: The dataset's name.
        what: What is done.
        holder: The process that does it.
    """

    dataset: str
    what: str
    holder: Holder


@dataclass(frozen=True, kw_only=True, slots=True)
class TranslationStatus:
    """A translation of `synthesize fit`.

    Attributes:
        name: Its name.
        model: How it is learnt.
        source: Name of the dataset with labels.
        target: Name of the dataset whose images are imitated.
        state: "training"; "interrupted": nobody works on it; "failed"; "finished".
        epoch: Number of finished epochs.
        epochs: Number of epochs at the end.
        losses: Name of a loss -> its mean over the last epoch; empty before the first.
        seconds_per_epoch: Mean of the last epochs; None before the first.
        seconds_left: Estimate of what is left of its epochs; None unless it is being learnt.
        holder: The process that learns it; None for none.
        since: When that began, or when its files were last written to; local time.
        problem: Why it failed; empty for nothing.
        command: The command that goes on with it; empty if it is being learnt or finished.
        folder: Its folder.
    """

    name: str
    model: str
    source: str
    target: str
    state: State
    epoch: int
    epochs: int
    losses: dict[str, float]
    seconds_per_epoch: float | None
    seconds_left: float | None
    holder: Holder | None
    since: str
    problem: str
    command: str
    folder: Path

    @property
    def at_work(self) -> bool:
        """Whether a process works on it."""
        return self.state in _AT_WORK


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkspaceStatus:
    """All runs and translations of a workspace, or of one of its datasets.

    Attributes:
        folds: The folds, by dataset and run.
        translations: The translations; of one dataset those from it or to it.
        other: Other work that is being done.
        damaged: Files that could not be read, in sentences.
        next: What to do where there is no run yet: a command; empty if there are runs.
    """

    folds: tuple[FoldStatus, ...]
    translations: tuple[TranslationStatus, ...]
    other: tuple[OtherWork, ...]
    damaged: tuple[str, ...]
    next: str

    __repr__ = brief

    @property
    def at_work(self) -> bool:
        """Whether any process works on what it shows."""
        states = {each.state for each in self.folds} | {each.state for each in self.translations}
        return bool(self.other) or bool(states & set(_AT_WORK))


def read_status(workspace: Workspace, name: str | None = None) -> WorkspaceStatus:
    """Reads what the runs of a workspace are doing.

    Args:
        workspace: The workspace.
        name: Path or name of a planned dataset; None for all.

    Raises:
        DatasetError: No such dataset was planned.
    """
    folders = list(workspace.datasets) if name is None else [workspace.planned(name)]
    damaged: list[str] = []
    folds = [fold for folder in folders for fold in _folds(folder, damaged)]
    translations = _translations(workspace, None if name is None else folders[0].name, damaged)
    return WorkspaceStatus(
        folds=tuple(folds),
        translations=tuple(translations),
        other=tuple(work for folder in folders for work in _other(folder)),
        damaged=tuple(damaged),
        next="" if folds or translations else _first_command(workspace, folders),
    )


def _first_command(workspace: Workspace, folders: Sequence[DatasetFolder]) -> str:
    if not folders:
        return command("plan", "PATH/TO/DATASET", workspace=workspace.root)
    return command("train", folders[0].name, "3d_fullres", workspace=workspace.root)


def _other(folder: DatasetFolder) -> Iterator[OtherWork]:
    holder = holder_of(folder.comparing)
    if holder is not None and holder.is_alive():
        yield OtherWork(dataset=folder.name, what="its runs are being compared", holder=holder)


def _translations(
    workspace: Workspace, dataset: str | None, damaged: list[str]
) -> list[TranslationStatus]:
    """The translations of a workspace; of one dataset those from it or to it."""
    found = []
    for path in _listed(workspace.root / SYNTHESIS, damaged):
        folder = SynthesisFolder(path=path)
        if not folder.info.exists():
            continue
        try:
            info = Synthesizer.load(folder.info)
        except AutoliverError as error:
            damaged.append(error.problem)
            continue
        if dataset in (None, info.source, info.target):
            found.append(_translation(workspace, folder, info, damaged))
    return found


def _translation(
    workspace: Workspace, folder: SynthesisFolder, info: Synthesizer, damaged: list[str]
) -> TranslationStatus:
    epochs = _epochs(folder.progress, damaged)
    times = [_time_of(each) for each in (folder.info, folder.progress, folder.resume, folder.log)]
    rate, written = _rate(epochs), max(times)
    holder = _living(folder.lock, written, rate)
    problem, helping = ("", ()) if info.finished else _failure(folder.log)
    state: State = "failed" if problem else "interrupted"
    if holder is not None or info.finished:
        state = "training" if holder is not None else "finished"
    total = info.options.epochs if info.options.learns else 0
    left = None
    if state == "training" and rate is not None:
        left = _seconds_left(total - len(epochs), rate, written)
    return TranslationStatus(
        name=info.name,
        model=info.options.model,
        source=info.source,
        target=info.target,
        state=state,
        epoch=len(epochs),
        epochs=total,
        losses=epochs[-1].losses if epochs else {},
        seconds_per_epoch=rate,
        seconds_left=left,
        holder=holder,
        since=holder.since if holder else time.strftime(_TIME, time.localtime(written)),
        problem="" if state == "training" else problem,
        command=info.again(workspace, instead=helping)
        if state in ("interrupted", "failed")
        else "",
        folder=folder.path,
    )


def _folds(folder: DatasetFolder, damaged: list[str]) -> Iterator[FoldStatus]:
    for path in _listed(folder.path / "runs", damaged):
        if path.is_dir():
            yield from run_status(RunFolder(path), damaged)


def run_status(run: RunFolder, damaged: list[str]) -> Iterator[FoldStatus]:
    """Reads what the folds of a run are doing, those included that are about to begin.

    Args:
        run: The run.
        damaged: Takes what cannot be read, in sentences.
    """
    look = _Look(run=run, damaged=damaged)
    folds = {fold_of(each) for each in _listed(run.path, damaged, "fold_*")}
    for fold in sorted(folds | look.queued.keys()):
        yield look.at(fold)


def _listed(folder: Path, damaged: list[str], pattern: str = "*") -> list[Path]:
    try:
        return entries(folder, pattern)
    except AutoliverError as error:
        damaged.append(error.problem)
        return []


def train_again(
    run: RunFolder, weights: object, fold: str, *, more: Sequence[str] = (), tagged: bool = True
) -> str:
    """Returns the command that goes on with a fold of a run.

    Args:
        run: The run.
        weights: What it was started from (`TrainingOptions.pretrained`); None for random weights.
        fold: The fold.
        more: Further options with their values, which come last.
        tagged: Whether the run's own tag is named.
    """
    source, options = run.source, ["--fold", fold]
    options += ["--tag", run.tag] if run.tag and tagged else []
    if isinstance(weights, str):
        options += ["--pretrained", weights]
        options += [] if source or weights == IMAGENET else ["--own-plan"]
    elif source:
        options += ["--like", source]
    dataset, workspace = run.path.parents[1].name, run.path.parents[2]
    again = command("train", dataset, run.configuration, options=options, workspace=workspace)
    return " ".join([again, *map(shlex.quote, more)])


# Fields that no command gives.
_NOT_REPEATED = frozenset({"made_from", "extensions", "fold_seeds"})


def repeated(options: "TrainingOptions", *, without: Sequence[str] = ()) -> list[str]:
    """Returns options that are not the defaults as words of `train`.

    Args:
        options: The options of a run.
        without: Fields that are left out.
    """
    from autoliver.training.options import flag

    words, defaults = list[str](), type(options)()
    for name in defaults.__struct_fields__:
        value = getattr(options, name)
        if name in _NOT_REPEATED or name in without or value == getattr(defaults, name):
            continue
        text = flag(name, value)
        if text.startswith("--"):
            words += text.split(" ", 1)
    return words


@dataclass(kw_only=True)
class _Look:
    """A look at a run.

    Attributes:
        run: The run.
        damaged: Takes what cannot be read.
        options: Its options, as JSON; empty if they cannot be read.
        queued: Fold -> the living process that has it on its list.
    """

    run: RunFolder
    damaged: list[str]
    options: dict[str, Any] = field(init=False)
    queued: dict[str, Holder] = field(init=False)

    def __post_init__(self) -> None:
        self.options = self._json(self.run.options)
        users = map(holder_of, _listed(self.run.path, self.damaged, self.run.user("*").name))
        alive = [user for user in users if user is not None and user.is_alive()]
        self.queued = {fold: user for user in alive for fold in user.parts}

    def at(self, fold: str) -> FoldStatus:
        """Returns the status of a fold."""
        files = FoldFolder(self.run.fold(fold))
        epochs, written = _epochs(files.progress, self.damaged), _latest(files)
        rate = _rate(epochs)
        trained = self._is_trained(files)
        scored = files.scores.exists() or (trained and not _holds_out(epochs))
        holder = _living(self.run.lock(fold), written, rate)
        problem, helping = ("", ()) if trained and scored else _failure(files.log)
        state: State = "interrupted"
        if holder is not None:
            state = "validating" if trained else "training"
        elif trained and scored:
            state = "finished"
        elif fold in self.queued and not (problem and written > _began(self.queued[fold])):
            holder, state, problem = self.queued[fold], "queued", ""
        elif problem:
            state = "failed"
        dice = [epoch.dice for epoch in epochs if epoch.dice is not None]
        return FoldStatus(
            dataset=self.run.path.parents[1].name,
            run=self.run.path.name,
            fold=fold,
            state=state,
            epoch=len(epochs),
            epochs=self._number_of_epochs(),
            dice=epochs[-1].dice if epochs else None,
            best=max(dice, default=None),
            seconds_per_epoch=rate,
            seconds_left=self._left(epochs, rate, written) if state == "training" else None,
            held_out_dice=self._held_out_dice(files) if state == "finished" else None,
            holder=holder,
            since=holder.since if holder else time.strftime(_TIME, time.localtime(written)),
            problem="" if state in ("training", "validating") else problem,
            command=self._command(fold, helping) if state in ("interrupted", "failed") else "",
        )

    def _is_trained(self, files: FoldFolder) -> bool:
        """Whether a fold has a model, with all extensions of its run."""
        if not files.model.exists():
            return False
        extended = self._json(files.model).get("extended", 0)
        return not isinstance(extended, int) or extended >= len(self._extensions())

    def _extensions(self) -> list[int]:
        found = self.options.get("extensions", [])
        return [n for n in found if isinstance(n, int)] if isinstance(found, list) else []

    def _number_of_epochs(self) -> int | None:
        epochs = self.options.get("epochs")
        return epochs + sum(self._extensions()) if isinstance(epochs, int) else None

    def _left(self, epochs: Sequence[_Epoch], rate: float | None, written: float) -> float | None:
        """Seconds until the last epoch is done, by the clock or by the number of epochs."""
        total, hours = self._number_of_epochs(), self.options.get("hours")
        if rate is None or total is None:
            return None
        begun = min(max(0.0, time.time() - written), rate)
        left = _seconds_left(total - len(epochs), rate, written)
        if isinstance(hours, int | float) and not self._extensions():
            spent = sum(epoch.seconds for epoch in epochs) + begun
            left = min(left, max(0.0, hours * 3600.0 - spent))
        return left

    def _held_out_dice(self, files: FoldFolder) -> float | None:
        """The mean Dice of scores.json; read as it stands, since its type takes scipy to load."""
        mean = self._json(files.scores).get("mean")
        dice = mean.get("dice") if isinstance(mean, dict) else None
        return dice if isinstance(dice, float) else None

    def _command(self, fold: str, helping: Sequence[str]) -> str:
        """The command that goes on with a fold, or that starts it over with what helps."""
        again = partial(train_again, self.run, self.options.get("pretrained"), fold)
        if not helping:
            return again()
        from autoliver.training.options import TrainingOptions

        words = list[str]()
        with contextlib.suppress(AutoliverError):  # told elsewhere
            own = TrainingOptions.load(self.run.options)
            changed = ["lr"] if "--lr" in helping else []
            words = repeated(own, without=["pretrained", *changed])
        # Other folds keep the options of the run, so that this one may not have others.
        alone = all(each == self.run.fold(fold) for each in self.run.begun)
        if not alone:
            helping = [*("--tag", "NAME"), *(word for word in helping if word != "--fresh")]
        return again(more=[*words, *helping], tagged=alone)

    def _json(self, path: Path) -> dict[str, Any]:
        """A JSON object of a file; empty if there is none, and if it is damaged, which is told."""
        try:
            found = read_json(path) if path.exists() else {}
        except AutoliverError as error:
            self.damaged.append(error.problem)
            return {}
        return found if isinstance(found, dict) else {}


def _epochs(path: Path, damaged: list[str]) -> list[_Epoch]:
    """Reads the lines of progress.jsonl; an unfinished last line is one that is being written.

    Args:
        path: The file.
        damaged: Takes what cannot be read, in sentences.
    """
    try:
        with in_words(path, verb="read"):
            lines = read_whole(path).splitlines(keepends=True) if path.exists() else []
    except AutoliverError as error:
        damaged.append(error.problem)
        return []
    found, wrong = [], 0
    for line in lines:
        epoch = json_line(line, _Epoch)
        if epoch is not None:
            found.append(epoch)
        else:
            wrong += line.endswith(b"\n")
    if wrong:
        damaged.append(f"{path}: {counted(wrong, 'line')} cannot be read.")
    return found


def _living(lock: Path, written: float, rate: float | None) -> Holder | None:
    """The process that holds a lock, unless it has ended.

    Args:
        lock: The lock's file.
        written: When its work was last written to.
        rate: Seconds per epoch; None if they are not known.
    """
    holder = holder_of(lock)
    alive = None if holder is None else holder.is_alive()
    if holder is not None and alive is None:  # on another machine
        silent = max(_SILENT_S, _SILENT_EPOCHS * (rate or 0.0))
        alive = time.time() - max(written, _began(holder)) < silent
    return holder if alive else None


def _rate(epochs: Sequence[_Epoch]) -> float | None:
    """Seconds per epoch of the last ones."""
    recent = [epoch.seconds for epoch in epochs[-_RECENT_EPOCHS:]]
    return statistics.fmean(recent) if recent else None


def _seconds_left(epochs: int, rate: float, written: float) -> float:
    """Seconds for so many further epochs, of which the first one has begun when it was written."""
    return max(0.0, epochs * rate - min(max(0.0, time.time() - written), rate))


def _began(holder: Holder) -> float:
    """When a process began its work, in seconds like time.time; 0 if that is not told."""
    try:
        return time.mktime(time.strptime(holder.since, _TIME))
    except (ValueError, OverflowError):
        return 0.0


def _holds_out(epochs: Sequence[_Epoch]) -> bool:
    """Whether a fold has held-out cases, which are then scored at its end."""
    return bool(epochs) and epochs[-1].validation_dice is not None


def _latest(files: FoldFolder) -> float:
    """When a fold was last written to; 0 if it was not."""
    paths = (files.progress, files.resume, files.log, files.model, files.validation)
    return max(map(_time_of, paths))


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _failure(log: Path) -> tuple[str, tuple[str, ...]]:
    """Why a training failed, and the options that help, if that is the last that its log says."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LOG_END))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "", ()
    told = [line for line in lines if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line)]
    return failure_of(told[-1].split(" ", 2)[2]) if told else ("", ())
