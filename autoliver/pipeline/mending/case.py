"""Repairs the files of one case and draws what changed; the originals stay as they are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.datasets.cases import Case, Labels
from autoliver.errors import DatasetError
from autoliver.evaluation.picture import Panel, Row, draw_outlines
from autoliver.io.files import read_header, read_label, read_stored, write_image, write_label
from autoliver.io.grids import compare_grids
from autoliver.io.header import label_name
from autoliver.io.regrid import nearest_on
from autoliver.io.volume import Geometry
from autoliver.pipeline.fitting import fitting_turn, in_words, spread
from autoliver.pipeline.mending.record import Fix
from autoliver.pipeline.mending.values import Values, with_values
from autoliver.planning.findings import Repair
from autoliver.planning.verify import check_case
from autoliver.values import counted

Array = npt.NDArray[Any]

# Share of a label map's volume that has to lie on the image, if its header holds.
_INSIDE = 0.95
# Two headers differ little if places of voxels do by at most so many voxels of the image.
_SAME_SPACING = 1e-3
# A label map is only moved where intensities fit that clearly better than its voxels as they are.
_CLEARLY = 0.9
_LITTLE_VOXELS = 1.0
_TURNS = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))


class MendTask(Record, frozen=True, kw_only=True):
    """A case to repair.

    Attributes:
        case: The case.
        repairs: What there is to repair.
        output: Folder of the new dataset.
        labels: Labels of the dataset.
        channels: Number of channels of the dataset.
        values: What values in label files mean.
    """

    case: Case
    repairs: tuple[Repair, ...]
    output: Path
    labels: Labels
    channels: int
    values: Values = ()


class Mended(Record, frozen=True, kw_only=True):
    """A case after its repair.

    Attributes:
        images: Paths of its images: those of the originals, or relative to the new dataset.
        label: Path of its label map, likewise.
        fixes: What was repaired.
        failed: Why it cannot be repaired; empty if it was.
        hint: What to do about that.
    """

    images: tuple[str, ...] = ()
    label: str | None = None
    fixes: tuple[Fix, ...] = ()
    failed: str = ""
    hint: str = ""


@dataclass
class _Label:
    """A label map before and after."""

    before: Array | None  # on the grid of the image, by its header
    after: Array
    geometry: Geometry


def mend_case(task: MendTask) -> Mended:
    """Repairs a case; the reason why it cannot be repaired is returned, not raised."""
    try:
        mended = _mended(task)
    except DatasetError as error:
        return Mended(failed=error.problem.removesuffix("."), hint=error.hint)
    case = task.case.replace(
        images=tuple(str(task.output / path) for path in mended.images),
        label=None if mended.label is None else str(task.output / mended.label),
    )
    left = check_case(case, labels=task.labels, channels=task.channels).findings
    errors = [finding for finding in left if finding.severity == "error"]
    if errors:
        problem = errors[0].problem.replace(f"{task.output}/", "").removesuffix(".")
        return Mended(failed=f"still wrong after the repair: {problem}", hint=errors[0].hint)
    return mended


def _mended(task: MendTask) -> Mended:
    case, picture = task.case, f"pictures/{task.case.name}.png"
    fixes: list[Fix] = []
    images: list[str] = []
    first = read_header(case.images[0]).geometry
    shown: tuple[Array, Array] | None = None
    for number, source in enumerate(case.images):
        stored = read_stored(source)
        array, done = _finite(stored) if "finite" in task.repairs else (stored, "")
        grid = read_header(source).geometry
        if "grid" in task.repairs and number and _differ(first, grid):
            _check_little(first, grid, Path(source))
            done, grid = f"{done}, header of the first channel".removeprefix(", "), first
        path = f"imagesTr/{case.name}_{number:04d}.nii.gz" if done else source
        if done:
            write_image(task.output / path, array, grid)
            fixes.append(_fix(case, path, source, done, picture))
        if shown is None or done:
            shown = stored[0], array[0]
        images.append(path)
    if shown is None:
        raise TypeError(f"{case.name}: a case without an image")
    label_path, label = case.label, None
    if case.label is not None:
        label, done = _labelled(task, first, shown[1])
        if done:
            label_path = f"labelsTr/{label_name(case.name, case.images[0])}"
            write_label(task.output / label_path, label.after, label.geometry)
            fixes.append(_fix(case, label_path, case.label, done, picture))
    _draw(task, first, shown, label, [fix.done for fix in fixes])
    return Mended(images=tuple(images), label=label_path, fixes=tuple(fixes))


def _fix(case: Case, path: str, source: str, done: str, picture: str) -> Fix:
    return Fix(case=case.name, file=path, source=source, done=done, picture=picture)


def _finite(stored: Array) -> tuple[Array, str]:
    """Replaces what is no number in float32 by the lowest number of its channel."""
    with np.errstate(over="ignore", under="ignore"):
        array = stored.astype(np.float32)
    bad = ~np.isfinite(array)
    if not bad.any():
        return stored, ""
    lows = []
    for channel, wrong in zip(array, bad, strict=True):
        if wrong.all():
            raise DatasetError(
                "an image holds no number at all",
                hint="Export the image again, or take the case out of the dataset.",
            )
        lows.append(channel[~wrong].min())
        channel[wrong] = lows[-1]
    lowest = " and ".join(f"{low:g}" for low in dict.fromkeys(lows))
    return array, f"{counted(int(bad.sum()), 'voxel')} without a number set to {lowest}"


def _labelled(task: MendTask, grid: Geometry, image: Array) -> tuple[_Label, str]:
    """The label map of a case with the values of labels and on the grid of the image."""
    path = Path(str(task.case.label))
    geometry = read_header(path).geometry
    said = []
    if "values" in task.repairs:
        stored = read_stored(path)[0]
        array: Array = stored
        if not np.isin(np.unique(stored), list(task.labels.allowed)).all():
            array, done = with_values(stored, task.values, task.labels.allowed)
            said.append(done)
    else:
        array = read_label(path).array[0]
    before = array if geometry.shape_zyx == grid.shape_zyx else None
    after = array
    if "grid" in task.repairs and _differ(grid, geometry):
        before, after, done = _regridded(array, geometry, grid, image)
        said.append(done)
        geometry = grid
    return _Label(before, after, geometry), ", ".join(said)


def _regridded(
    array: Array, geometry: Geometry, grid: Geometry, image: Array
) -> tuple[Array, Array, str]:
    """A label map on the grid of its image: by its header, as it should be, and how that was found.

    Raises:
        DatasetError: The label map is not on the image, or does not fit it.
    """
    placed = nearest_on(array, geometry, grid)
    on_image = nearest_on(np.ones(grid.shape_zyx, np.uint8), grid, geometry)
    inside = float(on_image[array > 0].mean()) if array.any() else 1.0
    if geometry.shape_zyx != grid.shape_zyx:
        if inside < _INSIDE:
            raise DatasetError(
                f"label map has another size than the image, and only {inside:.0%} of its volume "
                "lie on it",
                hint="Export both on one grid, or take the case out of the dataset.",
            )
        return placed, placed, f"resampled onto the image ({inside:.0%} of the volume)"
    little = _offset_voxels(grid, geometry) <= _LITTLE_VOXELS
    # With as many voxels of another size, the header has lost their size.
    moved = np.allclose(geometry.spacing_mm, grid.spacing_mm, rtol=_SAME_SPACING)
    by_header = moved and inside >= _INSIDE and not little and array.any() and placed.any()
    if by_header and spread(image, placed) < _CLEARLY * spread(image, array):
        return placed, placed, "resampled onto the image, which it fits so"
    turned = not np.allclose(geometry.direction, grid.direction, atol=_SAME_SPACING)
    turn = fitting_turn(image, array, _TURNS) if moved or turned else None
    if turn:
        raise DatasetError(
            f"label map says another place than the image, and fits it only with {in_words(turn)} "
            "reversed",
            hint="Export the label map again on the grid of the image.",
        )
    return placed, array, "header of the image, voxels as they were"


def _differ(one: Geometry, other: Geometry) -> bool:
    return any(not each.rounding for each in compare_grids(one, other))


def _offset_voxels(grid: Geometry, other: Geometry) -> float:
    """Largest distance between corners of two grids of one size, in voxels of the first."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape_zyx])).reshape(3, -1)
    places = []
    for one in (grid, other):
        steps = np.array(one.direction).reshape(3, 3) * np.array(one.spacing_mm)[::-1]
        places.append(steps @ corners[::-1] + np.array(one.origin_xyz)[:, None])
    return float(np.linalg.norm(places[0] - places[1], axis=0).max() / min(grid.spacing_mm))


def _check_little(first: Geometry, grid: Geometry, source: Path) -> None:
    """Refuses a channel that is not on the grid of the first but for a little of its header."""
    if first.shape_zyx != grid.shape_zyx or _offset_voxels(first, grid) > _LITTLE_VOXELS:
        raise DatasetError(
            f"{source.name} lies elsewhere than the first channel, by more than a voxel or in "
            "another size",
            hint="Resample the channels to one grid before using them together.",
        )


def _draw(
    task: MendTask,
    grid: Geometry,
    shown: tuple[Array, Array],
    label: _Label | None,
    done: list[str],
) -> None:
    """Draws the slice that changed most, before and after."""
    nothing = np.zeros(grid.shape_zyx, np.uint16)
    after = nothing if label is None else label.after
    before = nothing if label is None or label.before is None else label.before
    old, new = (_grey(image) for image in shown)
    with np.errstate(invalid="ignore"):
        changed = np.count_nonzero((before != after) | (shown[0] != shown[1]), axis=(1, 2))
    areas = np.count_nonzero(after, axis=(1, 2))
    z = int(np.argmax(changed if changed.any() else areas))
    panels = tuple(
        Panel(
            image=image[z],
            reference=one[z],
            prediction=two[z],
            spacing_mm=grid.spacing_mm[1:],
            caption=f"{when}, slice {z + 1} of {len(nothing)}",
        )
        for when, image, one, two in (
            ("before", old, before, nothing),
            ("after", new, before, after),
        )
    )
    draw_outlines(
        task.output / f"pictures/{task.case.name}.png",
        [Row(title="\n".join(done), panels=panels)],
        outlined=tuple((value,) for value in task.labels.foreground_values),
        title=task.case.name,
        names=("before", "after"),
    )


def _grey(image: Array) -> npt.NDArray[np.float32]:
    """An image to be shown, in which what is no number is as dark as the rest may be."""
    with np.errstate(over="ignore", under="ignore"):
        grey = image.astype(np.float32)
    good = np.isfinite(grey)
    return np.where(good, grey, grey[good].min() if good.any() else 0.0)
