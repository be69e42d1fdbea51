"""What a workspace holds that nothing uses any more, and removing it."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoliver.artifacts import PARTIAL, brief, is_left, read_json, remove_folder
from autoliver.datasets.cases import Dataset
from autoliver.errors import ArtifactError, AutoliverError
from autoliver.locks import check_free
from autoliver.models.files import FoldFolder
from autoliver.pipeline.dicom.staging import is_used
from autoliver.pipeline.translation.synthesizer import (
    SynthesisFolder,
    Synthesizer,
)
from autoliver.planning.plan import Plan
from autoliver.preprocessing.store import StoreInfo, store_key
from autoliver.system import entries
from autoliver.workspace import (
    MODELS,
    SHARDS,
    STAGED,
    SYNTHESIS,
    DatasetFolder,
    RunFolder,
    Workspace,
)

# What was written within this time may belong to a command that is still running.
_RECENT_S = 3600.0
# Shards may wait for days until there is room on a cluster.
_GIVEN_UP_S = 7 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """A file or folder of the workspace that nothing uses.

    Attributes:
        path: Its path.
        kind: "store": preprocessed cases; "first stage": label maps for a cascade; "DICOM": a
            series as an image file; "shards": results of cases of which no whole was made;
            "partial": what an interrupted command has not finished writing.
        why: Why nothing uses it.
        size: Its size on disk in bytes.
    """

    path: Path
    kind: Literal["store", "first stage", "DICOM", "shards", "partial"]
    why: str
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaned:
    """The result of looking for leftovers.

    Attributes:
        leftovers: What was found, the largest first.
        kept: What was not looked at, and why, in sentences.
        removed: Whether the leftovers were removed.
    """

    leftovers: tuple[Leftover, ...]
    kept: tuple[str, ...]
    removed: bool

    __repr__ = brief

    @property
    def size(self) -> int:
        """The size of all leftovers in bytes."""
        return sum(each.size for each in self.leftovers)


def clean(workspace: Workspace, name: str | None, *, yes: bool = False) -> Cleaned:
    """Finds what nothing in a workspace uses, and removes it if that is wanted.

    Runs, models and datasets are never touched. What is removed is made again when it is needed.

    Args:
        workspace: The workspace.
        name: Path or name of a planned dataset; None for the whole workspace.
        yes: Whether to remove what was found.

    Raises:
        DatasetError: No such dataset was planned.
        AutoliverError: The system refuses to remove a file.
    """
    if name is None:
        folders = list(workspace.datasets)
        places = [workspace.root / part for part in (MODELS, STAGED, SYNTHESIS, SHARDS)]
    else:
        folders, places = [workspace.planned(name)], []
    folders = [folder for folder in folders if _is_ours(folder)]
    places += [folder.path for folder in folders]
    kept: list[str] = []
    found = [each for folder in folders for each in _of_dataset(folder, kept)]
    if name is None:
        found += [*_staged(workspace, kept), *_shards(workspace, kept), *_learnt(workspace)]
    gone = [each.path for each in found]
    found += [each for each in _partials(places, kept) if not _is_inside(each.path, gone)]
    if yes:
        for each in found:
            _remove(each.path)
    found.sort(key=lambda each: (-each.size, each.path))
    return Cleaned(leftovers=tuple(found), kept=tuple(kept), removed=yes)


def _is_ours(folder: DatasetFolder) -> bool:
    """Whether a folder was made by this package, and is not a user's dataset beside it."""
    try:
        Dataset.load(folder.dataset)
    except ArtifactError:
        return False
    return True


def _of_dataset(folder: DatasetFolder, kept: list[str]) -> Iterator[Leftover]:
    runs = [RunFolder(path) for path in entries(folder.path / "runs") if path.is_dir()]
    if any(map(_is_trained_now, runs)):
        kept.append(f"{folder.name}: a fold that is not finished was trained within the last hour.")
        return
    yield from _stores(folder, kept)
    for run in runs:
        yield from _maps(run)


def _stores(folder: DatasetFolder, kept: list[str]) -> Iterator[Leftover]:
    """Stores of settings that none of the dataset's plans has."""
    try:
        plans = [Plan.load(path) for path in entries(folder.path, "plan*.json")]
    except AutoliverError as error:
        kept.append(f"{folder.name}: its stores stay, since a plan is unreadable: {error.problem}")
        return
    try:
        translated = _translated(folder.path.parent)
    except AutoliverError as error:
        kept.append(f"{folder.name}: its stores stay: {error.problem}")
        return
    used = {store_key(plan, name) for plan in plans for name in plan.configurations}
    used |= _replayed(folder.path.parent) | translated
    for path in _folders(folder.path / "store"):
        if path.name in used:
            continue
        try:
            StoreInfo.load(path / "store.json")
        except AutoliverError:
            continue  # not made by this package
        yield Leftover(
            path=path, kind="store", why="no plan has its settings any more", size=_size(path)
        )


def _maps(run: RunFolder) -> Iterator[Leftover]:
    """Label maps of first stages that were trained again since."""
    found = _folders(run.path / "previous")
    if not found:
        return
    used = _made_from(run).get("first stage")
    for path in found:
        if used is not None and path.name != used:
            yield Leftover(
                path=path,
                kind="first stage",
                why=f"{run.path.name} uses a newer first stage",
                size=_size(path),
            )


def _staged(workspace: Workspace, kept: list[str]) -> Iterator[Leftover]:
    """Images of DICOM series that an interrupted prediction has left."""
    folders = _folders(workspace.root / STAGED)
    old = [path for path in folders if not _is_young(path) and not is_used(path)]
    for path in old:
        why = "its prediction was interrupted"
        yield Leftover(path=path, kind="DICOM", why=why, size=_size(path))
    if young := len(folders) - len(old):
        kept.append(f"DICOM series of the last hour, or that are being predicted: {young}.")


def _shards(workspace: Workspace, kept: list[str]) -> Iterator[Leftover]:
    """Results of shards that were given up: nothing was added to them for a week."""
    folders = _folders(workspace.root / SHARDS)
    old = [path for path in folders if not _is_young(path, _GIVEN_UP_S)]
    for path in old:
        why = "its shards were given up a week ago"
        yield Leftover(path=path, kind="shards", why=why, size=_size(path))
    if young := len(folders) - len(old):
        kept.append(f"Results of shards of the last week, of which no whole was made: {young}.")


def _learnt(workspace: Workspace) -> Iterator[Leftover]:
    """Preprocessed images without labels of translations that are finished."""
    for folder in _translations(workspace.root):
        try:
            info = Synthesizer.load(folder.info)
        except AutoliverError:
            continue
        if info.finished and folder.target.is_dir():
            why = f"the translation {info.name} is finished"
            yield Leftover(path=folder.target, kind="store", why=why, size=_size(folder.target))


def _replayed(workspace: Path) -> set[str]:
    """Keys of the stores that trainings of any dataset replay."""
    runs = [RunFolder(path) for path in workspace.glob("*/runs/*") if path.is_dir()]
    return {str(_made_from(run).get("replayed store")) for run in runs}


def _translated(workspace: Path) -> set[str]:
    """Keys of the stores that translations learn from; finished ones need them no more.

    Raises:
        AutoliverError: What a translation learns from is not known: it is damaged, or it is being
            learnt and has not said so yet.
    """
    plans = []
    for folder in _translations(workspace):
        info = Synthesizer.load(folder.info) if folder.info.exists() else None
        if info is None or info.finished:  # it may be about to be learnt, or learnt again
            check_free(folder.lock, f"the translation {folder.path.name} is being learnt")
        else:
            plans.append(info.plan)
    return {store_key(plan, name) for plan in plans for name in plan.configurations}


def _translations(workspace: Path) -> list[SynthesisFolder]:
    """The folders of the translations of a workspace, also of those that have just begun."""
    return [SynthesisFolder(path=path) for path in _folders(workspace / SYNTHESIS)]


def _made_from(run: RunFolder) -> dict[str, object]:
    """What a run was started with; empty if that cannot be read."""
    try:
        options = read_json(run.options)
    except AutoliverError:
        return {}
    made_from = options.get("made_from") if isinstance(options, dict) else None
    return made_from if isinstance(made_from, dict) else {}


def _partials(places: list[Path], kept: list[str]) -> Iterator[Leftover]:
    """What interrupted commands have left half written."""
    young = 0
    for place in places:
        for at, folders, files in os.walk(place):
            partial = [name for name in (*folders, *files) if PARTIAL.fullmatch(name)]
            folders[:] = [name for name in folders if name not in partial]
            for name in sorted(partial):
                path = Path(at, name)
                if _is_young(path) and not is_left(path):
                    young += 1
                    continue
                why = "its writing was interrupted"
                yield Leftover(path=path, kind="partial", why=why, size=_size(path))
    if young:
        kept.append(f"Unfinished files of the last hour, which may still be written: {young}.")


def _is_trained_now(run: RunFolder) -> bool:
    folds = [path for path in run.begun if not FoldFolder(path).model.exists()]
    return any(map(_is_young, folds))


def _is_young(path: Path, seconds: float = _RECENT_S) -> bool:
    """Whether something in a path was written within this time."""
    return time.time() - _latest(path) < seconds


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder that are whole.

    Links are not followed, since they may lead to what is others'.
    """
    if not parent.is_dir() or parent.is_symlink():
        return []
    return sorted(
        path
        for path in parent.iterdir()
        if path.is_dir() and not path.is_symlink() and not PARTIAL.fullmatch(path.name)
    )


def _every(path: Path) -> Iterator[os.stat_result]:
    for each in (path, *path.rglob("*")) if path.is_dir() and not path.is_symlink() else (path,):
        try:
            yield each.lstat()
        except FileNotFoundError:  # gone in the meantime
            continue


def _size(path: Path) -> int:
    return sum(stat.st_size for stat in _every(path))


def _latest(path: Path) -> float:
    return max((stat.st_mtime for stat in _every(path)), default=0.0)


def _is_inside(path: Path, folders: list[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)
