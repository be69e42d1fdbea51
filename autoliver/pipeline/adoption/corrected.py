"""Is a corrected label map one of its image, and what did the correction change?"""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record, file_sha256
from autoliver.datasets.cases import Case, Labels
from autoliver.errors import DatasetError, MachineError
from autoliver.inference.record import voxel_hash
from autoliver.io.detached import can_be_copied, data_files
from autoliver.io.files import read_header, read_label
from autoliver.io.grids import compare_grids
from autoliver.io.header import label_ending, split_ending
from autoliver.io.orientation import axis_codes, reorientation
from autoliver.io.text_headers import segment_values
from autoliver.io.volume import Volume
from autoliver.needs import read_need
from autoliver.parallel import Need
from autoliver.planning.ranges import CaseRange
from autoliver.planning.verify import check_case
from autoliver.values import first_few

_SHOWN = 3
_SAVE_AGAIN = (
    "In the editor load the image first and the label map as its segmentation, and save it without "
    "cropping or resampling."
)
# What helps with a file that was changed meanwhile.
WHEN_WHOLE = "Wait until it is written as a whole, then run the same command again."
_ONE_FILE = "Save the image as one file, e.g. .nii.gz or .mha, and predict and correct that."


class CorrectedCase(Record, frozen=True, kw_only=True):
    """A case that is about to be adopted.

    Attributes:
        case: Its image, and the corrected label map as its label.
        labels: The labels that the label map may hold.
        channels: The number of channels of its image.
        predicted: The `voxel_hash` of what was predicted; empty if that is not known.
    """

    case: Case
    labels: Labels
    channels: int
    predicted: str = ""

    @property
    def mask(self) -> Path:
        """The corrected label map."""
        return Path(str(self.case.label))


class Problem(Record, frozen=True, kw_only=True):
    """A reason not to adopt a case, and what to do about it."""

    problem: str
    hint: str


class Examined(Record, frozen=True, kw_only=True):
    """What was found in a case.

    Attributes:
        problems: Why it cannot be adopted; empty if it can.
        hashes: Path -> SHA-256 of each of its files.
        rewrite: Why the label map is to be written anew on the image's grid, in words; empty if it
            can be copied.
        changed: Whether the label map differs from what was predicted; None if that is not known.
        empty: Whether the label map holds nothing but background.
        ranges: Grid and intensities of the image; None if it cannot be used.
    """

    problems: tuple[Problem, ...]
    hashes: dict[str, str] = msgspec.field(default_factory=dict)
    rewrite: str = ""
    changed: bool | None = None
    empty: bool = False
    ranges: CaseRange | None = None


def corrected_need(task: CorrectedCase) -> Need:
    """Estimates the memory that `examine` takes for a case."""
    return read_need(task.case)


def examine(task: CorrectedCase) -> Examined:
    """Checks the image and the corrected label map of a case; nothing is written."""
    before = _states(task)
    check = check_case(task.case.replace(label=None), labels=task.labels, channels=task.channels)
    found = [
        Problem(problem=f.problem, hint=f.hint) for f in check.findings if f.severity == "error"
    ]
    found += [
        Problem(
            problem=f"{image}: its header names the files of its voxels in a way that cannot be "
            "copied (a path, a pattern, or a file that is not there).",
            hint=_ONE_FILE,
        )
        for image in task.case.images
        if not can_be_copied(Path(image))
    ]
    try:
        label = read_label(task.mask)
        found += [*_unknown_values(task, label.array), *_renumbered(task)]
        label, rewrite = on_image_grid(label, task.mask, Path(task.case.images[0]))
        hashes = {str(path): file_sha256(path) for path in _files(task)}
    except (DatasetError, MachineError) as error:
        found.append(Problem(problem=error.problem, hint=error.hint))
        return Examined(problems=tuple(dict.fromkeys(found)))
    for path, state in _states(task).items():
        if before.get(path) != state:  # what was checked need not be what was hashed
            found.append(Problem(problem=changed_meanwhile(path), hint=WHEN_WHOLE))
    values = np.setdiff1d(label.array, [0, task.labels.ignore or 0])
    same = voxel_hash(label.array[0]) == task.predicted
    return Examined(
        problems=tuple(found),
        hashes=hashes,
        rewrite=rewrite,
        changed=not same if task.predicted else None,
        empty=values.size == 0,
        ranges=check.ranges,
    )


def _states(task: CorrectedCase) -> dict[Path, tuple[int, int]]:
    """Size and time of each file of a case, as far as they are there."""
    try:
        found = {path: path.stat() for path in _files(task) if path.exists()}
    except (DatasetError, OSError):  # the checks say so
        return {}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def changed_meanwhile(path: Path) -> str:
    """What is said of a file that was changed while it was checked or copied."""
    return f"{path}: it was changed while it was read."


def on_image_grid(label: Volume, mask: Path, image: Path) -> tuple[Volume, str]:
    """Brings a label map to the grid of its image; nothing is interpolated.

    Args:
        label: The label map.
        mask: Its file.
        image: The image, or its first channel.

    Returns:
        The label map (1, z, y, x) with the image's geometry, and in words why its file cannot be
        copied as it is; empty if it can.

    Raises:
        DatasetError: The image cannot be read, or the label map lies on other voxels.
    """
    grid = read_header(image).geometry
    turn = reorientation(axis_codes(label.geometry), axis_codes(grid))
    turned = turn.geometry(label.geometry)
    for difference in compare_grids(grid, turned):
        if not difference.rounding:
            one, two = difference.values()
            raise DatasetError(
                f"{mask}: its grid is not that of {image.name}: {difference.what} {two}, expected "
                f"{one}. It was shifted, cropped or resampled.",
                hint=_SAVE_AGAIN,
            )
    array: npt.NDArray[np.generic] = np.ascontiguousarray(turn.array(label.array))
    wanted, ending = label_ending(split_ending(image.name)[1]), split_ending(mask.name)[1].lower()
    why = ""
    if turned != label.geometry:
        why = f"axes {axis_codes(label.geometry)} brought to the image's {axis_codes(grid)}"
    elif compare_grids(grid, turned):
        why = "rounding in its header"
    elif ending != wanted:
        why = f"{ending} saved as {wanted}"
    return Volume(array=array, geometry=grid), why


def _files(task: CorrectedCase) -> list[Path]:
    images = [file for image in task.case.images for file in data_files(Path(image))]
    return [*images, task.mask]


def _unknown_values(task: CorrectedCase, array: npt.NDArray[np.generic]) -> Iterator[Problem]:
    values, counts = np.unique(array, return_counts=True)
    odd = [
        f"{value} ({count} voxels)"
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        if value not in task.labels.allowed
    ]
    if odd:
        names = ", ".join(
            f"{'/'.join(map(str, group))} {name}" for name, group in task.labels.values.items()
        )
        yield Problem(
            problem=f"{task.mask}: holds {first_few(odd, _SHOWN)}; the labels are {names}.",
            hint="Give these voxels one of the labels' values in the editor, or name a dataset "
            "that has the label with --like DATASET.",
        )


def _renumbered(task: CorrectedCase) -> Iterator[Problem]:
    """Segments of 3D Slicer that have a label's name, but not its value."""
    values = {_plain(name): group for name, group in task.labels.foreground.items()}
    for name, value in segment_values(task.mask).items():
        group = values.get(_plain(name), (value,))
        if value not in group:
            yield Problem(
                problem=f"{task.mask}: the segment '{name}' has the value {value}, expected "
                f"{' or '.join(map(str, group))}.",
                hint="The editor has numbered the segments anew: give them the values of the "
                "labels, or export them in the order of the labels.",
            )


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()
