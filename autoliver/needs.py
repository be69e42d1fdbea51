"""Estimates the memory that each stage needs for a case, from the headers of its files alone.

The factors are measured peaks with CT images of 96 x 768 x 768 voxels (int16, with a label map),
rounded up; `benchmarks/memory.py` measures whole commands. Their unit is the size of the float32
image before resampling ("in") or after it ("out"). Measured were 1.2 in for reading NIfTI and
checking it; and for preprocessing 2.2 in without resampling, and 2.5, 3.1, 7.3 in when resampling
to 0.125, 0.36, 2.7 times the voxels.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from autoliver.datasets.cases import Case
from autoliver.errors import DatasetError, MachineError
from autoliver.io.dicom.series import Series
from autoliver.io.files import read_header
from autoliver.io.header import Header, file_type
from autoliver.io.orientation import reorientation_to
from autoliver.memory import GB
from autoliver.parallel import Limits, Need
from autoliver.planning.plan import CaseFingerprint, Configuration, Plan
from autoliver.preprocessing.case import network_spacing, resampled_shape
from autoliver.preprocessing.prepare import PrepareTask

_log = logging.getLogger(__name__)

_READ = 1.35
_READ_WHOLE = 2.35  # of files other than NIfTI, which libraries hold beside the image
_SERIES = 3.0  # measured 1.5 with one file a slice; a multi-frame file is held as a whole
_PREPARE_SAME = 2.6  # without resampling, in sizes of the image
# The deviation of all voxels takes a copy of them.
_PREPARE_ZSCORE = 3.5
_PREPARE_IN = 2.35
_PREPARE_OUT = 2.35
# In units of one label map if it were float32; measured 0.6 with a liver. Surfaces come on top.
_SCORE = 1.25
# Same unit, for maps of a byte for each voxel: those that are held, and what one takes to read.
_SHOWN_MAP, _SHOWN_READ = 0.25, 0.5
_CLEAN = 9.0  # same unit; measured 8.6 with a component in every thousandth voxel
# A label map of a byte for each voxel while it is written: it, two copies, and what is read again.
_LABEL_MAP = 1.0
_FLOAT32 = 4
_NIFTI = (".nii.gz", ".nii")


class Held(NamedTuple):
    """What a prediction holds in main memory of a whole scan besides images and label maps.

    Attributes:
        logits: Arrays of all classes on the network's grid, for each member.
        passing: As well, of one member at a time.
        rows: Further rows of a class each, on the network's grid.
        maps: Arrays of all classes on the grid of the image.
        values: Arrays of one value per voxel on the grid of the image.
        slab: Whether the sums of one slab of windows are there, where logits are not.
    """

    logits: int = 0
    passing: int = 0
    rows: int = 0
    maps: int = 0
    values: int = 0
    slab: bool = True


class Stage(NamedTuple):
    """A plan and its configuration: a member, the first stage of a cascade, or a finder."""

    plan: Plan
    configuration: Configuration


def read_need(case: Case) -> Need:
    """Estimates the memory for a stage that only reads and examines a case: verify, fingerprint."""
    gb = sum(
        (_READ if file_type(Path(path)) in _NIFTI else _READ_WHOLE) * _image_gb(_headers([path]))
        for path in case.images
    )
    return Need(name=case.name, gb=gb)


def series_need(name: str, series: Series) -> Need:
    """Estimates the memory for making an image of a DICOM series."""
    return Need(name=name, gb=_SERIES * math.prod(series.geometry.shape_zyx) * _FLOAT32 / GB)


def prepare_need(task: PrepareTask) -> Need:
    """Estimates the memory for preprocessing a case."""
    grids = _grids(task.case.images, task.plan, task.configuration)
    gb = _prepared_gb(grids.before_gb, grids.after_gb, task.configuration)
    return Need(name=task.case.name, gb=gb)


def grid_need(case: CaseFingerprint, plan: Plan, configuration: Configuration) -> Need:
    """Estimates the memory for preprocessing a case whose grid is all that is known of it."""
    channels = len(plan.channel_names) * _FLOAT32 / GB
    before = math.prod(case.shape) * channels
    after = math.prod(network_shape(case, plan, configuration)) * channels
    return Need(name=case.name, gb=_prepared_gb(before, after, configuration))


def network_shape(
    case: CaseFingerprint, plan: Plan, configuration: Configuration
) -> tuple[int, int, int]:
    """Returns the size of a preprocessed case in voxels, transposed."""
    shape = tuple(case.shape_after_crop[axis] for axis in plan.transpose_forward)
    z, y, x = (case.spacing_mm[axis] for axis in plan.transpose_forward)
    return resampled_shape(shape, (z, y, x), network_spacing(configuration, (z, y, x)))


def score_need(item: Path | tuple[str, tuple[Path, Path]]) -> Need:
    """Estimates the memory for scoring a prediction, or for reading one label map.

    Args:
        item: The case name with the files of the prediction and the reference; or a label map.
    """
    name, paths = (item.name, (item,)) if isinstance(item, Path) else item
    return Need(name=name, gb=_SCORE * max(_image_gb(_headers([path])) for path in paths))


def show_need(name: str, image: Path | Series, maps: Sequence[Path]) -> Need:
    """Estimates the memory for drawing slices of a case: first its label maps, then its image.

    Args:
        name: The case's name.
        image: The file of one channel, or the series.
        maps: Its label maps.
    """
    if isinstance(image, Series):
        read = series_need(name, image).gb
    else:
        whole = file_type(image) not in _NIFTI
        read = (_READ_WHOLE if whole else _READ) * _image_gb(_headers([image]))
    sizes = [_image_gb(_headers([path])) for path in maps]
    labels = _SHOWN_MAP * sum(sizes) + _SHOWN_READ * max(sizes, default=0.0)
    return Need(name=name, gb=max(read, labels))


def clean_need(item: tuple[str, tuple[Path, Path]]) -> Need:
    """Estimates the memory for trying cleaning rules on a prediction.

    Args:
        item: The case name with the files of the prediction and the reference.
    """
    name, paths = item
    return Need(name=name, gb=_CLEAN * max(_image_gb(_headers([path])) for path in paths))


def overlap_need(name: str, images: Sequence[Path], stages: Sequence[Stage], held: Held) -> Need:
    """Estimates the memory for predicting a case while the next is read and the last one exported.

    All three cases are assumed to have the size of this one.

    Args:
        name: Name of the case.
        images: Its image files.
        stages: All that is run on it; at least one.
        held: What is held of the outputs of the networks.
    """
    found = _predicted(images, stages, held)
    return Need(name=name, gb=found.prepare + found.compute + found.results)


def single_need(name: str, images: Sequence[Path], stages: Sequence[Stage], held: Held) -> Need:
    """Of predicting a case by itself, with nothing read ahead or exported behind it."""
    found = _predicted(images, stages, held)
    return Need(name=name, gb=max(found.prepare, found.compute + found.results))


class _Predicted(NamedTuple):
    """What the parts of a prediction take, in GB: reading, computing, and what is found."""

    prepare: float
    compute: float
    results: float


def _predicted(images: Sequence[Path], stages: Sequence[Stage], held: Held) -> _Predicted:
    """Of a case in all stages: it is preprocessed for each of them before the first computes."""
    prepare = prepared = results = adding = before = 0.0
    for plan, configuration in stages:
        grids = _grids(images, plan, configuration)
        before, after, channels = grids.before_gb, grids.after_gb, len(plan.channel_names)
        # An image that further stages need is kept as it is.
        kept = before if len(stages) > 1 else 0.0
        prepare = max(prepare, kept + prepared + _prepared_gb(before, after, configuration))
        prepared += after
        classes, row = plan.labels.out_channels, after / channels
        results += (held.logits * classes + held.rows) * row
        # The weights of sums of the whole; or the sums of a slab with theirs.
        whole = (1 + held.passing * classes) * row
        adding = max(adding, whole if held.logits else held.slab * grids.slab_gb(classes))
    cascade = any(configuration.previous_stage for _, configuration in stages)
    plan = stages[0].plan
    found = (held.maps * plan.labels.out_channels + held.values + _LABEL_MAP) * before
    return _Predicted(
        prepare=prepare,
        compute=prepared + adding + before * cascade,
        results=results + found / len(plan.channel_names),
    )


def _prepared_gb(before: float, after: float, configuration: Configuration) -> float:
    """Of preprocessing an image, by its sizes before and after resampling."""
    normalized = _PREPARE_ZSCORE * before if "zscore" in configuration.normalization else 0.0
    if before == after:
        return max(normalized, _PREPARE_SAME * before)
    return max(normalized, _PREPARE_IN * before + _PREPARE_OUT * after)


def overlap_fits(needs: Sequence[Need], limits: Limits) -> bool:
    """Whether memory suffices to read and export other cases during a prediction; logs if not."""
    largest, budget = max(needs, key=lambda need: need.gb), limits.budget_gb
    if largest.gb <= budget:
        return True
    _log.warning(
        "predict: cases are predicted one at a time, without reading ahead: %s would need about "
        "%.1f GB, and %.1f GB may be used (--memory-gb).",
        *(largest.name, largest.gb, budget),
    )
    return False


class _Grids(NamedTuple):
    """The sizes of a case before and after resampling; cropping is ignored.

    Attributes:
        before_gb: Size of the image.
        after_gb: Size of the resampled image.
        shape: (z, y, x) of the network's grid.
        patch_shape: Of the network; 2 or 3 values.
    """

    before_gb: float
    after_gb: float
    shape: tuple[int, int, int]
    patch_shape: tuple[int, ...]

    def slab_gb(self, classes: int) -> float:
        """Of the sums of one slab of windows, and of their weights."""
        from autoliver.inference.sums import slab_rows, sums_bytes

        patch = (1, 1, 1, *self.patch_shape)[-3:]
        z, y, x = (max(size, least) for size, least in zip(self.shape, patch, strict=True))
        return sums_bytes(classes, (z, y, x), slab_rows(patch[0], (z, y, x))) / GB


def _grids(images: Sequence[str | Path], plan: Plan, configuration: Configuration) -> _Grids:
    headers = _headers(images)
    if not headers:
        return _Grids(0.0, 0.0, (1, 1, 1), (1, 1, 1))
    geometry = headers[0].geometry
    geometry = reorientation_to(geometry, plan.axis_codes).geometry(geometry)
    shape = [geometry.shape_zyx[axis] for axis in plan.transpose_forward]
    z, y, x = (geometry.spacing_mm[axis] for axis in plan.transpose_forward)
    target = network_spacing(configuration, (z, y, x))
    resampled = resampled_shape(tuple(shape), (z, y, x), target)
    before = _image_gb(headers)
    after = before * math.prod(resampled) / math.prod(shape)
    return _Grids(before, after, resampled, configuration.patch_shape)


def _image_gb(headers: Sequence[Header]) -> float:
    voxels = sum(header.channels * math.prod(header.geometry.shape_zyx) for header in headers)
    return voxels * _FLOAT32 / GB


def _headers(paths: Sequence[str | Path]) -> list[Header]:
    """Reads the headers of the files; skips unreadable ones, which the stage itself reports."""
    headers = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except (DatasetError, MachineError):
            continue
    return headers
