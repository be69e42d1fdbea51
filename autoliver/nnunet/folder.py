"""Finds the files of trained models in a results folder of nnU-Net, or in its exported zip."""

import contextlib
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from autoliver.errors import ModelError
from autoliver.system import entries, is_damage, raise_refusal

PLANS_FILE = "plans.json"
DATASET_FILE = "dataset.json"
FINAL_FILE = "checkpoint_final.pth"
CLEANING_FILE = "postprocessing.json"
CHECKPOINT_ENDINGS = (".pth", ".model")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """How a version of nnU-Net names the files of a run.

    Attributes:
        version: 1 or 2.
        plans: The file with the plans.
        needed: The files beside the folds.
        final: The checkpoint of a finished fold.
        best: The best checkpoint, which counts if there is no `unfinished`.
        unfinished: The last checkpoint of a training in progress.
        again: How to finish a training.
    """

    version: Literal[1, 2]
    plans: str
    needed: tuple[str, ...]
    final: str
    best: str
    unfinished: str
    again: str

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The names of checkpoints, the preferred one first."""
        return (self.final, self.best, self.unfinished)


V1 = _Layout(
    version=1,
    plans="plans.pkl",
    needed=("plans.pkl",),
    final="model_final_checkpoint.model",
    best="model_best.model",
    unfinished="model_latest.model",
    again="nnUNet_train ... -c",
)
V2 = _Layout(
    version=2,
    plans=PLANS_FILE,
    needed=(PLANS_FILE, DATASET_FILE),
    final=FINAL_FILE,
    best="checkpoint_best.pth",
    unfinished="checkpoint_latest.pth",
    again="nnUNetv2_train ... --c",
)

_FOLD = re.compile(r"fold_(\d+|all)")
_WANTED = {
    *(V2.plans, DATASET_FILE, *V2.checkpoints, V1.plans, CLEANING_FILE),
    *(name + ending for name in V1.checkpoints for ending in ("", ".pkl")),
}
# Levels from the parent of results/ down to results/DatasetXXX_Name/Trainer__Plans__Configuration,
# or to nnUNet/3d_fullres/TaskXXX_Name/Trainer__Plans of nnU-Net v1.
_DEEPEST = 4
_COPY = "Copy the file again from its source."
_MOST_BYTES = {".json": 64 * 2**20, ".pkl": 64 * 2**20}
_EXPECTED = (
    "Give the folder DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION that nnUNetv2_train wrote, the "
    "zip of nnUNetv2_export_model_to_zip, or for nnU-Net v1 the folder "
    "3d_fullres/TaskXXX_Name/TRAINER__PLANS or the zip of nnUNet_export_model_to_zip."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NnunetRun:
    """A folder into which nnU-Net trained one configuration.

    Attributes:
        path: The folder.
        folds: Fold ("0" to "4", or "all") -> path of its checkpoint.
        version: The version of nnU-Net, 1 or 2.
    """

    path: Path
    folds: dict[str, Path]
    version: Literal[1, 2] = 2


@contextlib.contextmanager
def open_runs(path: Path, *, folds: Sequence[str] | None = None) -> Iterator[list[NnunetRun]]:
    """Opens a folder or a zip and yields its trained configurations, sorted by name.

    Args:
        path: A configuration's folder, a folder above it, or a zip; a zip is unpacked to a
            temporary folder, which is deleted when the block ends.
        folds: The folds to take; None: all folds that exist.

    Raises:
        ModelError: There is no configuration, one is incomplete, a fold is missing, or the zip is
            damaged or has entries with unsafe paths.
    """
    if path.is_dir():
        yield _runs(path, path, folds)
        return
    if not path.exists():
        raise ModelError(f"{path}: there is no such file or folder.", hint=_EXPECTED)
    if not zipfile.is_zipfile(path) or path.suffix in CHECKPOINT_ENDINGS:
        raise ModelError(f"{path}: neither a folder nor a zip.", hint=_EXPECTED)
    with tempfile.TemporaryDirectory(prefix="autoliver-import-") as scratch:
        _unpack(path, Path(scratch))
        yield _runs(Path(scratch), path, folds)


def checkpoint_run(path: Path) -> NnunetRun:
    """Returns the run of a single checkpoint, RUN/fold_0/checkpoint_final.pth.

    Raises:
        ModelError: The checkpoint is not in the folder where nnU-Net writes it, with the plans
            (and dataset.json) above.
    """
    path = path.resolve()
    layout = V1 if path.suffix == ".model" else V2
    fold = _fold_of(path.parent)
    missing = [n for n in layout.needed if not (path.parents[1] / n).is_file()]
    if fold is None or missing:
        raise ModelError(
            f"{path}: a checkpoint alone does not say what its network expects: "
            + (
                "it is not in a folder fold_N."
                if fold is None
                else f"{missing[0]} is not in {path.parents[1]}."
            ),
            hint="Leave it where nnU-Net wrote it, in a folder fold_N, with "
            f"{' and '.join(layout.needed)} beside the folds.",
        )
    return NnunetRun(path=path.parents[1], folds={fold: path}, version=layout.version)


def _runs(root: Path, named: Path, folds: Sequence[str] | None) -> list[NnunetRun]:
    folders = sorted(_configuration_folders(root, _DEEPEST))
    if not folders:
        _refuse_ensemble(root, named)
        raise ModelError(
            f"{named}: not a model of nnU-Net: it has no folder like 'fold_0'.", hint=_EXPECTED
        )
    datasets = sorted({folder.parent.name for folder in folders})
    if len(datasets) > 1:
        raise ModelError(
            f"{named}: models of several datasets: {', '.join(datasets)}.",
            hint="Give the folder of one of them.",
        )
    return [_run(folder, folds) for folder in folders]


def _refuse_ensemble(root: Path, named: Path) -> None:
    """Refuses what nnU-Net v1 found out about a pair of models, which holds no weights."""
    # Among results they lie in nnUNet/ensembles/TaskXXX_Name/ensemble_A--B.
    inside = [path for levels in range(4) for path in root.glob("*/" * levels + "ensemble_*")]
    for place in [named, *sorted(inside)]:
        first, _, second = place.name.removeprefix("ensemble_").partition("--")
        if place.name.startswith("ensemble_") and second:
            raise ModelError(
                f"{named}: an ensemble of {first} and {second}, which holds no weights of its own.",
                hint="Import the two models and predict with both: "
                "autoliver predict -m A -m B -i IMAGES -o OUT",
            )


def _configuration_folders(folder: Path, deepest: int) -> Iterator[Path]:
    inside = [path for path in folder.iterdir() if path.is_dir()]
    if any(_fold_of(path) is not None for path in inside):
        yield folder
    elif deepest > 0:
        for path in inside:
            yield from _configuration_folders(path, deepest - 1)


def _fold_of(folder: Path) -> str | None:
    """The fold that a folder holds; None for other folders. nnU-Net v1 has `all` for `fold_all`."""
    if match := _FOLD.fullmatch(folder.name):
        return match[1]
    holds_v1 = folder.name == "all" and any((folder / name).exists() for name in V1.checkpoints)
    return "all" if holds_v1 else None


def _run(folder: Path, folds: Sequence[str] | None) -> NnunetRun:
    there = {
        fold: path
        for path in entries(folder)
        if path.is_dir() and (fold := _fold_of(path)) is not None
    }
    layout = _layout(folder, there.values())
    for name in layout.needed:
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder.name}: half-written: {name} is missing.",
                hint=f"Copy {name} from where the model was trained.",
            )
    if missing := [name for name in folds or () if name not in there]:
        raise ModelError(
            f"{folder.name}: there is no fold {missing[0]}.", hint=f"Folds: {', '.join(there)}."
        )
    checkpoints = {name: _checkpoint(there[name], layout) for name in folds or there}
    if None in checkpoints.values():
        name = next(name for name, path in checkpoints.items() if path is None)
        found = [path.name for path in entries(there[name]) if path.name in layout.checkpoints]
        finished = [name for name, path in checkpoints.items() if path is not None]
        raise ModelError(
            f"{folder.name}/{there[name].name}: half-written: expected {layout.final}, found "
            f"{' and '.join(found) or 'no checkpoint'}.",
            hint=f"Finish its training with {layout.again}"
            + (f", or take only the finished folds: {','.join(finished)}." if finished else "."),
        )
    return NnunetRun(
        path=folder,
        folds={name: path for name, path in checkpoints.items() if path is not None},
        version=layout.version,
    )


def _layout(folder: Path, folds: Iterable[Path]) -> _Layout:
    """Whose files are there: those of nnU-Net v1 or, where nothing shows it, of v2."""
    if (folder / V2.plans).is_file():
        return V2
    weights = any((fold / name).exists() for fold in folds for name in V1.checkpoints)
    return V1 if weights or (folder / V1.plans).is_file() else V2


def _checkpoint(fold: Path, layout: _Layout) -> Path | None:
    """Returns the final checkpoint, else the best one if the training is no longer in progress."""
    if (fold / layout.final).is_file():
        return fold / layout.final
    if (fold / layout.best).is_file() and not (fold / layout.unfinished).exists():
        return fold / layout.best
    return None


def _unpack(path: Path, scratch: Path) -> None:
    """Unpacks the needed files of a zip under their names, after the names were checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = _wanted(path, archive.infolist(), free=shutil.disk_usage(scratch).free)
            for member in wanted:
                target = scratch / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                # Reads no more than the stated size, whatever the entry contains.
                with archive.open(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        # RuntimeError: encrypted.
        raise_refusal(path, error)
        raise ModelError(f"{path}: cannot be unpacked: {error}.", hint=_COPY) from None
    except OSError as error:
        if not is_damage(error):
            raise
        raise ModelError(f"{path}: damaged: {error}.", hint=_COPY) from None


def _wanted(path: Path, members: Sequence[zipfile.ZipInfo], *, free: int) -> list[zipfile.ZipInfo]:
    """Checks that every entry of a zip is safe, and returns the entries that are needed."""
    for member in members:
        _check_member(path, member)
    wanted = [m for m in members if not m.is_dir() and PurePosixPath(m.filename).name in _WANTED]
    for member in wanted:
        most = _MOST_BYTES.get(PurePosixPath(member.filename).suffix, member.file_size)
        if member.file_size > most:
            raise ModelError(
                f"{path}: {member.filename} would be {member.file_size / 1e6:.0f} MB; nnU-Net "
                "writes some kB. Nothing was unpacked.",
                hint="Ask whoever made the file for a new export.",
            )
    size = sum(member.file_size for member in wanted)
    if size > free:
        raise ModelError(
            f"{path}: needs {size / 1e9:.1f} GB to be unpacked; {tempfile.gettempdir()} has "
            f"{free / 1e9:.1f} GB.",
            hint="Free some space, or unpack the zip yourself and give the folder.",
        )
    return wanted


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename
    parts = re.split(r"[/\\]", name)
    link = stat.S_ISLNK(member.external_attr >> 16)
    if link or ".." in parts or parts[0] == "" or ":" in parts[0]:
        what = "a link" if link else "a path outside the zip"
        raise ModelError(
            f"{path}: {what}: {name!r}. No export of nnU-Net holds one; nothing was unpacked.",
            hint="Ask whoever made the file for a new export, and do not unpack this one anywhere.",
        )
