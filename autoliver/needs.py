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
    """What a prediction holds of a whole scan besides label maps, in class-by-voxel arrays.

    Attributes:
        logits: On the network's grid.
        maps: On the grid of the image.
    """

    logits: int = 0
    maps: int = 0


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
    sizes = _sizes_gb(task.case.images, task.plan, task.configuration)
    return Need(name=task.case.name, gb=_prepared_gb(*sizes, task.configuration))


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


def overlap_need(
    name: str, images: Sequence[Path], plan: Plan, configuration: Configuration, held: Held
) -> Need:
    """Estimates the memory for predicting a case while the next is read and the last one exported.

    All three cases are assumed to have the size of this one.

    Args:
        name: Name of the case.
        images: Its image files.
        plan: The plan of the model.
        configuration: The configuration of the model.
        held: What is held of the outputs of the networks.
    """
    before, after = _sizes_gb(images, plan, configuration)
    # Of this case, and of the previous one.
    found = 2 * _held_gb(before, after, plan, held)
    return Need(name=name, gb=_prepared_gb(before, after, configuration) + after + found)


def single_need(
    name: str, images: Sequence[Path], plan: Plan, configuration: Configuration, held: Held
) -> Need:
    """Of predicting a case by itself, with nothing read ahead or exported behind it."""
    before, after = _sizes_gb(images, plan, configuration)
    found = after + _held_gb(before, after, plan, held)
    return Need(name=name, gb=max(_prepared_gb(before, after, configuration), found))


def _prepared_gb(before: float, after: float, configuration: Configuration) -> float:
    """Of preprocessing an image, by its sizes before and after resampling."""
    normalized = _PREPARE_ZSCORE * before if "zscore" in configuration.normalization else 0.0
    if before == after:
        return max(normalized, _PREPARE_SAME * before)
    return max(normalized, _PREPARE_IN * before + _PREPARE_OUT * after)


def _held_gb(before: float, after: float, plan: Plan, held: Held) -> float:
    """Of what is held of a case's outputs."""
    channels, rows = len(plan.channel_names), plan.labels.out_channels
    logits = held.logits * rows + bool(held.logits)  # with the weights of their sums
    return (logits * after + (held.maps * rows + _LABEL_MAP) * before) / channels


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


def _sizes_gb(
    images: Sequence[str | Path], plan: Plan, configuration: Configuration
) -> tuple[float, float]:
    """Returns the size of the image in GB, before and after resampling; cropping is ignored."""
    headers = _headers(images)
    if not headers:
        return 0.0, 0.0
    geometry = headers[0].geometry
    geometry = reorientation_to(geometry, plan.axis_codes).geometry(geometry)
    shape = [geometry.shape_zyx[axis] for axis in plan.transpose_forward]
    z, y, x = (geometry.spacing_mm[axis] for axis in plan.transpose_forward)
    target = network_spacing(configuration, (z, y, x))
    resampled = resampled_shape(tuple(shape), (z, y, x), target)
    before = _image_gb(headers)
    return before, before * math.prod(resampled) / math.prod(shape)


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
