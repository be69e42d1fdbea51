"""Dataset -> fingerprint: grids, cropped sizes and foreground intensities of the labelled cases.

After nnU-Net (Isensee et al. 2021, Nature Methods 18, 203-211); the numbers are those of 2.8.1.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoliver.dataset import Case, Dataset
from autoliver.errors import DatasetError
from autoliver.io.itk import read_image, read_label
from autoliver.planning.nonzero import BoolArray, bounding_box, nonzero_mask
from autoliver.planning.plan import CaseFingerprint, Fingerprint, IntensityStats

# nnU-Net's number: enough for stable percentiles, few enough to hold in memory.
FOREGROUND_VOXELS = 100_000_000
# The seed of every case's draw: nnU-Net's, so that the statistics are the same numbers.
_SEED = 1234
_DRAW_AT_ONCE = 4_000_000

Float32Array = npt.NDArray[np.float32]
Progress = Callable[[Iterable["CaseSummary"]], Iterable["CaseSummary"]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseSummary:
    """What one case contributes to the fingerprint.

    Attributes:
        grid: Its spacing and sizes.
        relative_size_after_crop: Share of its voxels that cropping keeps.
        foreground: Per channel, intensities drawn from the foreground; empty where the case has
            none.
    """

    grid: CaseFingerprint
    relative_size_after_crop: float
    foreground: tuple[Float32Array, ...]


def make_fingerprint(
    dataset: Dataset,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
    foreground_voxels: int = FOREGROUND_VOXELS,
) -> Fingerprint:
    """Reads every labelled case and condenses the dataset to what the planner needs.

    Args:
        dataset: At least one of its cases has a label.
        executor: Where cases are read; here, one after the other, when None.
        progress: Wraps the iterable of finished cases, as tqdm does.
        foreground_voxels: Intensities drawn per channel, shared equally between the cases.

    Raises:
        DatasetError: No case has a label, no label has foreground, or a case cannot be used.
    """
    cases = dataset.labelled
    if not cases:
        raise DatasetError(
            f"{dataset.folder}: none of {len(dataset.cases)} cases has a label; at least one must.",
            hint="Put the label maps into labelsTr, named as their images without the channel.",
        )
    work = functools.partial(_read_case, foreground_voxels=foreground_voxels // len(cases))
    results = map(work, cases) if executor is None else executor.map(work, cases)
    summaries = list(results if progress is None else progress(results))
    return summarise(summaries, made_from={"dataset": dataset.digest()})


def fingerprint_case(
    image: Float32Array,
    label: npt.NDArray[np.generic],
    *,
    spacing_mm: tuple[float, float, float],
    name: str,
    foreground_voxels: int,
) -> CaseSummary:
    """Sizes of one case before and after cropping, and a sample of its foreground.

    Args:
        image: (c, z, y, x).
        label: (1, z, y, x); every value above zero is foreground.
        spacing_mm: (z, y, x).
        name: The case's.
        foreground_voxels: How many intensities to draw per channel, with replacement, so that
            every case weighs the same.

    Raises:
        DatasetError: Image and label differ in size, or an intensity is not a finite number.
    """
    _check_case(image, label, name=name)
    box = bounding_box(nonzero_mask(image))
    foreground: BoolArray = label[0][box] > 0
    random = np.random.RandomState(_SEED)
    samples = tuple(_draw(channel[box][foreground], foreground_voxels, random) for channel in image)
    shape, cropped = _zyx(image.shape[1:]), _zyx(foreground.shape)
    return CaseSummary(
        grid=CaseFingerprint(
            name=name, spacing_mm=spacing_mm, shape=shape, shape_after_crop=cropped
        ),
        relative_size_after_crop=foreground.size / label[0].size,
        foreground=samples,
    )


def summarise(
    cases: Sequence[CaseSummary], *, made_from: dict[str, str] | None = None
) -> Fingerprint:
    """The fingerprint of a dataset from its cases.

    Args:
        cases: At least one, in the order of their names.
        made_from: Name -> digest of what the cases were read from.

    Raises:
        DatasetError: No case has any foreground.
    """
    channels = zip(*(case.foreground for case in cases), strict=True)
    intensities = tuple(_statistics(np.concatenate(samples)) for samples in channels)
    relative = np.median([case.relative_size_after_crop for case in cases])
    return Fingerprint(
        cases=tuple(case.grid for case in cases),
        median_relative_size_after_cropping=float(relative),
        intensities=intensities,
        made_from=made_from or {},
    )


def _read_case(case: Case, *, foreground_voxels: int) -> CaseSummary:
    if case.label is None:
        raise ValueError(f"{case.name} has no label")
    image = read_image([Path(path) for path in case.images])
    label = read_label(Path(case.label))
    return fingerprint_case(
        image.array.astype(np.float32, copy=False),
        label.array,
        spacing_mm=image.geometry.spacing_mm,
        name=case.name,
        foreground_voxels=foreground_voxels,
    )


def _draw(values: Float32Array, count: int, random: np.random.RandomState) -> Float32Array:
    """Values drawn with replacement; none from none."""
    if not values.size:
        return values
    drawn = np.empty(count, dtype=np.float32)
    # In parts, since the positions take twice the memory of what they draw; same draws.
    for start in range(0, count, _DRAW_AT_ONCE):
        part = drawn[start : start + _DRAW_AT_ONCE]
        part[:] = values[random.randint(0, values.size, size=part.size)]
    return drawn


def _check_case(image: Float32Array, label: npt.NDArray[np.generic], *, name: str) -> None:
    if image.shape[1:] != label.shape[1:]:
        raise DatasetError(
            f"{name}: image and label differ in size: image {image.shape[1:]}, "
            f"label {label.shape[1:]}.",
            hint="Export the label on the image's grid, or take the case out of the dataset.",
        )
    # Minimum and maximum carry NaN and infinity through without a mask of the image's size.
    for index, channel in enumerate(image):
        if not np.isfinite([channel.min(), channel.max()]).all():
            raise DatasetError(
                f"{name}: channel {index} holds values that are not finite numbers (NaN or "
                "infinity).",
                hint="Repair the dataset with: autoliver verify DATASET --fix",
            )


def _statistics(values: Float32Array) -> IntensityStats:
    """Statistics of one channel; reorders the values."""
    if not values.size:
        raise DatasetError(
            "No case has a foreground voxel inside the non-zero part of its image.",
            hint="Check the label values against dataset.json: autoliver verify DATASET",
        )
    # The mean first: single precision sums depend on the order, which percentile changes.
    mean, std = float(np.mean(values)), float(np.std(values))
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5), overwrite_input=True)
    return IntensityStats(
        mean=mean,
        median=float(median),
        std=std,
        min=float(np.min(values)),
        max=float(np.max(values)),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
    )


def _zyx(shape: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = shape
    return z, y, x
