"""Staged series: each is written once as an image file in the workspace, and removed when used."""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from autoliver.artifacts import digest, has_ended, machine_key
from autoliver.errors import ArtifactError, AutoliverError, DatasetError, MachineError, Taken
from autoliver.io.dicom.read import read_series
from autoliver.io.dicom.series import Series, SeriesFile, save_series
from autoliver.io.files import write_image
from autoliver.io.header import split_ending
from autoliver.locks import one_at_a_time
from autoliver.needs import series_need
from autoliver.parallel import Limits, case_bar, over_budget
from autoliver.system import entries, in_words
from autoliver.workspace import STAGED, Workspace

_log = logging.getLogger(__name__)

# The ending of staged images, and that of the label maps of DICOM series.
_ENDING = ".mha"
LABELS = ".nii.gz"
# An empty file that says which process uses the staged image beside it.
_USE = re.compile(r"\.use-(?P<machine>[0-9a-f]{8})-(?P<process>[0-9a-f]+)")


@contextlib.contextmanager
def staged(
    workspace: Workspace,
    cases: Mapping[str, Series],
    output: Path,
    on_problem: Callable[[str, AutoliverError], object],
    limits: Limits,
) -> Iterator[dict[str, Path]]:
    """Writes the image of each series to the workspace, for the time of the block.

    Images stay if the block is interrupted or the machine refuses something, and are used by the
    next command with the same output as long as the source files are the same. Those that another
    process uses stay as well, until that has ended.

    Args:
        workspace: The workspace.
        cases: Case -> its series.
        output: Where the cases are predicted to; each output has staged images of its own.
        on_problem: Takes a case that cannot be read, or needs far more memory than may be used,
            and why.
        limits: The memory that may be used.

    Yields:
        Case -> its image file.
    """
    images: dict[str, Path] = {}
    over = over_budget([series_need(*each) for each in cases.items()], limits, "read the series")
    for name, error in over.items():
        on_problem(name, error)
    fitting = {name: series for name, series in cases.items() if name not in over}
    used: list[Path] = []
    try:
        for name, series in case_bar("read DICOM", len(fitting))(fitting.items()):
            places = [(str(each.file.absolute()), each.frame) for each in series.slices]
            key = digest([str(output.resolve()), name, places])
            image = workspace.root / STAGED / key / f"{name}{_ENDING}"
            used.append(image.parent)
            try:
                _use(image.parent)
                _stage(image, series)
            except DatasetError as error:
                on_problem(name, error)
            else:
                images[name] = image
        try:
            yield images
        except (MachineError, Taken):  # they are used by the next command
            raise
        except AutoliverError:
            _discard_all(images)
            raise
        _discard_all(images)
    finally:
        for folder in used:
            with contextlib.suppress(OSError):
                _mark(folder).unlink(missing_ok=True)
                folder.rmdir()  # if nothing was written to it
                folder.parent.rmdir()


def sidecar(image: Path) -> Path:
    """Returns the JSON file beside a staged image, which `load_series` reads."""
    return image.with_name(f"{image.name.removesuffix(_ENDING)}.json")


def discard(image: Path) -> None:
    """Removes a staged image with its JSON file, and the folder of such images if it is empty.

    An image that another process uses stays.
    """
    folder = image.parent
    with in_words(image, verb="written"), one_at_a_time(_workspace(folder)):
        _mark(folder).unlink(missing_ok=True)
        if not is_used(folder):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are there
            folder.parent.rmdir()


def is_used(folder: Path) -> bool:
    """Whether a living process uses the staged image in a folder, as far as can be told here."""
    for mark in entries(folder, ".use-*"):
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            found = _USE.fullmatch(mark.name)
            if found is not None and not has_ended(mark, found["machine"], found["process"]):
                return True
    return False


def _use(folder: Path) -> None:
    """Marks a folder as used by this process."""
    root = _workspace(folder)
    with in_words(folder, verb="written"):
        root.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(root):  # so that none who discards it is between looking and removing
            folder.mkdir(parents=True, exist_ok=True)
            _mark(folder).touch()


def _mark(folder: Path) -> Path:
    return folder / f".use-{machine_key()}-{os.getpid():x}"


def _workspace(folder: Path) -> Path:
    return folder.parent.parent


def _discard_all(images: Mapping[str, Path]) -> None:
    for image in images.values():
        discard(image)


def _stage(image: Path, series: Series) -> None:
    """Writes the image of a series, unless it is there and the source files are the same."""
    made_from = {"source files": digest(_states(series))}
    note = sidecar(image)
    if _is_current(image, made_from):
        return
    volume = read_series(series)
    for said in volume.notes[len(series.notes) :]:
        _log.warning("%s: %s", split_ending(image.name)[0], said)
    if _is_current(image, made_from):  # by another process meanwhile
        return
    note.unlink(missing_ok=True)  # it is of other source files
    write_image(image, volume.array, volume.geometry, compressed=False)
    save_series(note, dataclasses.replace(series, notes=volume.notes), made_from)


def _is_current(image: Path, made_from: dict[str, str]) -> bool:
    with contextlib.suppress(ArtifactError):
        return image.exists() and SeriesFile.load(sidecar(image)).made_from == made_from
    return False


def _states(series: Series) -> list[object]:
    """What says whether source files have changed: names, sizes and times."""
    found: list[object] = []
    for file in dict.fromkeys(each.file for each in series.slices):
        with in_words(file, verb="read"):
            state = file.stat()
        found.append([str(file.absolute()), state.st_size, state.st_mtime_ns])
    return [*found, [each.frame for each in series.slices], list(series.geometry.spacing_mm)]
