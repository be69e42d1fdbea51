"""Computes the fingerprint of a dataset: grids, cropped sizes and foreground intensities.

The fingerprint is that of nnU-Net (Isensee et al. 2021, Nature Methods 18, 203-211). The
intensities are those of the 10^8 foreground voxels that its version 2.8.1 draws, so that both
normalise CT to the same values.
"""

import functools
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Case, Dataset, Labels, is_mixed, unknown_values
from autoliver.errors import DatasetError
from autoliver.io.files import read_image, read_label
from autoliver.io.orientation import axis_codes
from autoliver.parallel import CaseMapper
from autoliver.planning.intensities import Intensities, collect, pooled_statistics
from autoliver.planning.nonzero import BoolArray, content_box, foreground_mask
from autoliver.planning.outliers import without_impossible
from autoliver.planning.plan import CaseFingerprint, Fingerprint
from autoliver.values import counted

# Numbers of distinct intensities that are kept, per case and in all cases together. Each takes 4
# bytes and another 8 for its count. CT and most MR files hold integers or scaled integers, so that
# a case has at most 65536 distinct intensities and all are kept.
_KEPT_PER_CASE = 1 << 22
_KEPT_IN_ALL = 1 << 24
_LEAST_KEPT = 1 << 16
# As in nnU-Net: the number of foreground voxels drawn from all cases together, and the seed for
# each case.
_DRAWS = 100_000_000
_SEED = 1234

Float32Array = npt.NDArray[np.float32]
Progress = Callable[[Iterable["CaseSummary"]], Iterable["CaseSummary"]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseSummary:
    """The contribution of one case to the fingerprint.

    Attributes:
        grid: The case's spacing and sizes.
        relative_size_after_crop: Share of its voxels that cropping keeps, from 0 to 1.
        foreground: Per channel, the intensities drawn from the foreground; None if there is none.
    """

    grid: CaseFingerprint
    relative_size_after_crop: float
    foreground: tuple[Intensities | None, ...]


def make_fingerprint(
    dataset: Dataset,
    *,
    executor: CaseMapper | None = None,
    progress: Progress | None = None,
    draws: int = _DRAWS,
) -> Fingerprint:
    """Reads every labelled case and summarises the dataset for the planner.

    Args:
        dataset: The dataset; at least one case must have a label.
        executor: Maps over the cases; None to read them one after the other.
        progress: Wraps the iterable of finished cases, as tqdm does; None for no progress bar.
        draws: Number of foreground voxels to draw per channel, from all cases together.

    Raises:
        DatasetError: No case has a label, no label has foreground, or a case cannot be used.
    """
    cases = dataset.labelled
    if not cases:
        raise DatasetError(
            f"{dataset.folder}: none of {counted(len(dataset.cases), 'case')} has a label; at "
            "least one must.",
            hint="Put the label maps into labelsTr, named like their images without the channel.",
        )
    summaries = read_cases(dataset, cases, executor=executor, progress=progress, draws=draws)
    # The intensities serve to normalise CT.
    ct = {case.name for case in cases if case.modality == "CT"} if is_mixed(dataset) else None
    return summarise(summaries, made_from={"dataset": dataset.digest()}, intensities_of=ct)


def read_cases(
    dataset: Dataset,
    cases: Sequence[Case],
    *,
    executor: CaseMapper | None = None,
    progress: Progress | None = None,
    draws: int = _DRAWS,
) -> list[CaseSummary]:
    """Reads some labelled cases of a dataset, and summarises each for its fingerprint.

    Args:
        dataset: The dataset.
        cases: The cases.
        executor: As for `make_fingerprint`.
        progress: As for `make_fingerprint`.
        draws: As for `make_fingerprint`: that is from all labelled cases of the dataset together.

    Raises:
        DatasetError: A case cannot be used.
    """
    number = len(dataset.labelled)
    work = functools.partial(
        _read_case,
        draws=draws // number,
        most_values=min(_KEPT_PER_CASE, max(_LEAST_KEPT, _KEPT_IN_ALL // number)),
        labels=dataset.labels,
    )
    results = map(work, cases) if executor is None else executor.map(work, cases)
    return list(results if progress is None else progress(results))


def fingerprint_case(
    image: Float32Array,
    label: npt.NDArray[np.generic],
    *,
    spacing_mm: tuple[float, float, float],
    name: str,
    draws: int,
    most_values: int = _KEPT_PER_CASE,
) -> CaseSummary:
    """Summarises one case: its sizes before and after cropping, and its foreground intensities.

    Args:
        image: The image (c, z, y, x).
        label: The label map (1, z, y, x); every value above zero is foreground, so
            voxels to be ignored must be set to zero before.
        spacing_mm: The spacing (z, y, x).
        name: The case's name.
        draws: Number of voxels to draw per channel, with replacement.
        most_values: Largest number of distinct intensities to keep per channel.

    Raises:
        DatasetError: Image and label differ in size, or an intensity is not a finite number.
    """
    seen = _look(image, label, spacing_mm=spacing_mm, name=name)
    return _summary(seen, draws=draws, most_values=most_values)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """A case's sizes, and of each channel the intensities of all foreground voxels."""

    grid: CaseFingerprint
    relative_size: float
    foreground: tuple[Float32Array, ...]


def _look(
    image: Float32Array,
    label: npt.NDArray[np.generic],
    *,
    spacing_mm: tuple[float, float, float],
    name: str,
) -> _Seen:
    _check_case(image, label, name=name)
    box = content_box(image)
    inside = label[0][box]
    foreground: BoolArray = inside if inside.dtype == np.bool_ else inside > 0
    shape, cropped = _zyx(image.shape[1:]), _zyx(foreground.shape)
    return _Seen(
        grid=CaseFingerprint(
            name=name, spacing_mm=spacing_mm, shape=shape, shape_after_crop=cropped
        ),
        relative_size=foreground.size / label[0].size,
        foreground=tuple(channel[box][foreground] for channel in image),
    )


def _summary(seen: _Seen, *, draws: int, most_values: int) -> CaseSummary:
    # The legacy generator, as in nnU-Net; all channels draw from one sequence, one after the other.
    rng = np.random.RandomState(_SEED)
    return CaseSummary(
        grid=seen.grid,
        relative_size_after_crop=seen.relative_size,
        foreground=tuple(
            collect(voxels, draws=draws, rng=rng, most_values=most_values)
            for voxels in seen.foreground
        ),
    )


def summarise(
    cases: Sequence[CaseSummary],
    *,
    made_from: dict[str, str] | None = None,
    intensities_of: Container[str] | None = None,
) -> Fingerprint:
    """Combines the summaries of all cases to the fingerprint of the dataset.

    Args:
        cases: The summaries of at least one case, sorted by name.
        made_from: Name -> digest of what the cases were read from; None for nothing.
        intensities_of: Names of the cases whose intensities count; None for all of them.

    Raises:
        DatasetError: None of these cases has any foreground.
    """
    of = [c for c in cases if intensities_of is None or c.grid.name in intensities_of]
    channels = zip(*(case.foreground for case in of), strict=True)
    found = [[one for one in channel if one is not None] for channel in channels]
    if not all(found):
        which = "case" if intensities_of is None else "CT case"
        raise DatasetError(
            f"No {which} has a foreground voxel inside the non-zero part of its image.",
            hint="Check the label values against dataset.json: autoliver verify DATASET",
        )
    intensities = tuple(pooled_statistics(channel) for channel in found)
    relative = np.median([case.relative_size_after_crop for case in cases])
    return Fingerprint(
        cases=tuple(case.grid for case in cases),
        median_relative_size_after_cropping=float(relative),
        intensities=intensities,
        made_from=made_from or {},
    )


def _read_case(case: Case, *, draws: int, most_values: int, labels: Labels) -> CaseSummary:
    if case.label is None:
        raise ValueError(f"{case.name} has no label")
    # The label map is read first and the image left last, so that little is held beside it.
    foreground, values = _foreground(case, Path(case.label), labels)
    image = read_image([Path(path) for path in case.images])
    codes = axis_codes(image.geometry)
    seen = _look(
        without_impossible(image.array.astype(np.float32, copy=False), name=case.name),
        foreground,
        spacing_mm=image.geometry.spacing_mm,
        name=case.name,
    )
    del image, foreground
    summary = _summary(seen, draws=draws, most_values=most_values)
    return replace(summary, grid=summary.grid.replace(axis_codes=codes, label_values=values))


def _foreground(case: Case, path: Path, labels: Labels) -> tuple[BoolArray, tuple[int, ...]]:
    """Returns where a case has foreground (1, z, y, x), and the values of its label map."""
    label = read_label(path).array
    values = {value for plane in label[0] for value in np.unique(plane).tolist()}
    # nnU-Net counts voxels to be ignored as foreground.
    foreground = foreground_mask(label, labels.ignore)
    if unknown := unknown_values(case.facts, labels):
        for mask, plane in zip(foreground[0], label[0], strict=True):
            mask &= ~np.isin(plane, unknown)
    return foreground, tuple(sorted(values))


def _check_case(image: Float32Array, label: npt.NDArray[np.generic], *, name: str) -> None:
    if image.shape[1:] != label.shape[1:]:
        raise DatasetError(
            f"{name}: image and label differ in size: image {image.shape[1:]}, "
            f"label {label.shape[1:]}.",
            hint="Export the label on the image's grid, or take the case out of the dataset.",
        )
    # Minimum and maximum reveal NaN and infinity without a mask of the image's size.
    for index, channel in enumerate(image):
        if not np.isfinite([channel.min(), channel.max()]).all():
            raise DatasetError(
                f"{name}: channel {index} holds values that are not finite numbers (NaN or "
                "infinity).",
                hint="Write the image again with a finite number in each voxel, or take the case "
                "out of the dataset. All cases with such values: autoliver verify DATASET",
            )


def _zyx(shape: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = shape
    return z, y, x
