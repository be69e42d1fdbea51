"""Finds the files of trained models in a results folder of nnU-Net v2, or in its exported zip."""

import contextlib
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from autoliver.errors import ModelError
from autoliver.system import entries, is_damage, raise_refusal

PLANS_FILE = "plans.json"
DATASET_FILE = "dataset.json"
FINAL_FILE = "checkpoint_final.pth"
_BEST_FILE = "checkpoint_best.pth"
_UNFINISHED_FILE = "checkpoint_latest.pth"

_FOLD = re.compile(r"fold_(\d+|all)")
_WANTED = (PLANS_FILE, DATASET_FILE, FINAL_FILE, _BEST_FILE, _UNFINISHED_FILE)
# Levels from the parent of results/ down to results/DatasetXXX_Name/Trainer__Plans__Configuration.
_DEEPEST = 3
_COPY = "Copy the file again from its source."
_MOST_JSON_BYTES = 64 * 2**20
_EXPECTED = (
    "Give the folder DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION that nnUNetv2_train wrote, or "
    "the zip of nnUNetv2_export_model_to_zip."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NnunetRun:
    """A folder into which nnU-Net trained one configuration.

    Attributes:
        path: The folder.
        folds: Fold ("0" to "4", or "all") -> path of its checkpoint.
    """

    path: Path
    folds: dict[str, Path]


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
    if not zipfile.is_zipfile(path) or path.suffix == ".pth":
        raise ModelError(f"{path}: neither a folder nor a zip.", hint=_EXPECTED)
    with tempfile.TemporaryDirectory(prefix="autoliver-import-") as scratch:
        _unpack(path, Path(scratch))
        yield _runs(Path(scratch), path, folds)


def checkpoint_run(path: Path) -> NnunetRun:
    """Returns the run of a single checkpoint, RUN/fold_0/checkpoint_final.pth.

    Raises:
        ModelError: The checkpoint is not in the folder where nnU-Net writes it, with plans.json and
            dataset.json above.
    """
    path = path.resolve()
    fold = _FOLD.fullmatch(path.parent.name)
    missing = [n for n in (PLANS_FILE, DATASET_FILE) if not (path.parents[1] / n).is_file()]
    if fold is None or missing:
        raise ModelError(
            f"{path}: a checkpoint alone does not say what its network expects: "
            + (
                "it is not in a folder fold_N."
                if fold is None
                else f"{missing[0]} is not in {path.parents[1]}."
            ),
            hint="Leave it where nnUNetv2_train wrote it, in TRAINER__PLANS__CONFIGURATION/fold_N, "
            "with plans.json and dataset.json beside the folds.",
        )
    return NnunetRun(path=path.parents[1], folds={fold[1]: path})


def _runs(root: Path, named: Path, folds: Sequence[str] | None) -> list[NnunetRun]:
    folders = sorted(_configuration_folders(root, _DEEPEST))
    if not folders:
        old = (
            "a model of nnU-Net v1"
            if (root / "plans.pkl").exists()
            else "not a model of nnU-Net v2"
        )
        raise ModelError(f"{named}: {old}: it has no folder like 'fold_0'.", hint=_EXPECTED)
    datasets = sorted({folder.parent.name for folder in folders})
    if len(datasets) > 1:
        raise ModelError(
            f"{named}: models of several datasets: {', '.join(datasets)}.",
            hint="Give the folder of one of them.",
        )
    return [_run(folder, folds) for folder in folders]


def _configuration_folders(folder: Path, deepest: int) -> Iterator[Path]:
    inside = [path for path in folder.iterdir() if path.is_dir()]
    if any(_FOLD.fullmatch(path.name) for path in inside):
        yield folder
    elif deepest > 0:
        for path in inside:
            yield from _configuration_folders(path, deepest - 1)


def _run(folder: Path, folds: Sequence[str] | None) -> NnunetRun:
    for name in (PLANS_FILE, DATASET_FILE):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder.name}: half-written: {name} is missing.",
                hint=f"Copy {name} from where the model was trained.",
            )
    there = {
        match[1]: path
        for path in entries(folder)
        if path.is_dir() and (match := _FOLD.fullmatch(path.name))
    }
    if missing := [name for name in folds or () if name not in there]:
        raise ModelError(
            f"{folder.name}: there is no fold {missing[0]}.", hint=f"Folds: {', '.join(there)}."
        )
    checkpoints = {name: _checkpoint(there[name]) for name in folds or there}
    if None in checkpoints.values():
        name = next(name for name, path in checkpoints.items() if path is None)
        found = [path.name for path in entries(there[name], "checkpoint_*.pth")]
        finished = [name for name, path in checkpoints.items() if path is not None]
        raise ModelError(
            f"{folder.name}/fold_{name}: half-written: expected {FINAL_FILE}, found "
            f"{' and '.join(found) or 'no checkpoint'}.",
            hint="Finish its training with nnUNetv2_train ... --c"
            + (f", or take only the finished folds: {','.join(finished)}." if finished else "."),
        )
    return NnunetRun(
        path=folder, folds={name: path for name, path in checkpoints.items() if path is not None}
    )


def _checkpoint(fold: Path) -> Path | None:
    """Returns the final checkpoint, else the best one if the training is no longer in progress."""
    if (fold / FINAL_FILE).is_file():
        return fold / FINAL_FILE
    if (fold / _BEST_FILE).is_file() and not (fold / _UNFINISHED_FILE).exists():
        return fold / _BEST_FILE
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
        if member.filename.endswith(".json") and member.file_size > _MOST_JSON_BYTES:
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
