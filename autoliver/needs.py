"""How much memory a case will need at each stage, from the headers of its files alone.

The factors are peaks measured with CT and float images of 120x320x320 voxels, rounded up, in
units of the float32 image before (in) and after (out) resampling: reading and checking 3.7 in,
preprocessing 5.2 in without, 5.7 in and 14 in with resampling to 0.44 and 2.6 times the voxels.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from autoliver.datasets.cases import Case
from autoliver.errors import DatasetError
from autoliver.io.files import read_header
from autoliver.io.header import Header
from autoliver.io.orientation import reorientation_to
from autoliver.memory import GB
from autoliver.parallel import Limits, Need
from autoliver.planning.plan import Configuration, Plan
from autoliver.preprocessing.case import network_spacing, resampled_shape
from autoliver.preprocessing.prepare import PrepareTask

_log = logging.getLogger(__name__)

_READ = 4.0
_PREPARE_IN = 4.0
_PREPARE_OUT = 4.0
_SCORE = 2.0  # of one label map, were it float32; measured 1.5
_CLEAN = 9.0  # as _SCORE; measured 8.6, with a component in every thousandth voxel
_FLOAT32 = 4


def read_need(case: Case) -> Need:
    """Of a stage that reads a case and looks at it: verify, fingerprint."""
    return Need(name=case.name, gb=_READ * _image_gb(_headers(case.images)))


def prepare_need(task: PrepareTask) -> Need:
    """Of preprocessing a case."""
    before, after = _sizes_gb(task.case.images, task.plan, task.configuration)
    return Need(name=task.case.name, gb=_PREPARE_IN * before + _PREPARE_OUT * after)


def score_need(item: Path | tuple[str, tuple[Path, Path]]) -> Need:
    """Of scoring a prediction (a name, prediction and reference), or of reading one label map."""
    name, paths = (item.name, (item,)) if isinstance(item, Path) else item
    return Need(name=name, gb=_SCORE * max(_image_gb(_headers([path])) for path in paths))


def clean_need(item: tuple[str, tuple[Path, Path]]) -> Need:
    """Of trying cleaning rules on a prediction (a name, prediction and reference)."""
    name, paths = item
    return Need(name=name, gb=_CLEAN * max(_image_gb(_headers([path])) for path in paths))


def overlap_need(
    name: str, images: Sequence[Path], plan: Plan, configuration: Configuration
) -> Need:
    """Of predicting a case while the next is read and the last one exported, all of this size."""
    before, after = _sizes_gb(images, plan, configuration)
    channel = after / len(plan.channel_names)
    # On the device and its copy in memory, and that of the case before.
    logits = 3 * channel * plan.labels.out_channels
    return Need(name=name, gb=_PREPARE_IN * before + (_PREPARE_OUT + 1) * after + logits)


def overlap_fits(needs: Sequence[Need], limits: Limits) -> bool:
    """Whether cases can be read ahead and exported behind the one in work; says so where not."""
    largest, budget = max(needs, key=lambda need: need.gb), limits.budget_gb
    if largest.gb <= budget:
        return True
    _log.warning(
        "predict: one case at a time, without reading ahead: %s would need about %.1f GB, "
        "%.1f GB may be used (--memory-gb).",
        *(largest.name, largest.gb, budget),
    )
    return False


def _sizes_gb(
    images: Sequence[str | Path], plan: Plan, configuration: Configuration
) -> tuple[float, float]:
    """Size of the image in GB, before and after resampling; what cropping takes is not known."""
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
    """Those that can be read: the stage itself reports the others."""
    headers = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except DatasetError:
            continue
    return headers
