"""What a model has seen in training, and whether a case is like it."""

import logging
from collections.abc import Iterator, Sequence

from autoliver.io.volume import Geometry, has_no_thickness, is_flat
from autoliver.planning.modality import AIR_HU
from autoliver.planning.ranges import CLEARLY_NEGATIVE, ChannelRange, SeenChannel, SeenImages

# A case is far away where it lies outside of what was seen by more than this factor.
_FAR_SPACING = 5.0
_FAR_EXTENT = 4.0
_FAR_SCALE = 20.0
# Of the range that was seen, how far beyond it intensities are still alike.
_SLACK = 0.1
_FAR_STORED = 2.0
# Noise around zero may be stronger in a new scan than in those of the training, by this factor and
# this share of the brightest voxels.
_NOISE_FACTOR = 1.5
_NOISE_SHARE = 0.05

_log = logging.getLogger(__name__)


def as_trained(image: ChannelRange, seen: SeenChannel, *, ct: bool) -> bool:
    """Whether a channel may be one of the training's by its values; all of the training's are.

    Args:
        image: The channel.
        seen: The same channel in the training.
        ct: Whether values have a scale; those of MR differ from scan to scan, so that only noise
            below zero tells.
    """
    width = seen.percentile_99_5[1] - seen.percentile_00_5[0]
    if _within(image.percentile_00_5, seen.percentile_00_5, _SLACK * width) and _within(
        image.percentile_99_5, seen.percentile_99_5, _SLACK * width
    ):
        return True
    if ct and image.min >= 0 and seen.percentile_00_5[1] >= CLEARLY_NEGATIVE:
        # CT stored with an offset or as bytes has no other sign than its scale.
        low, high = seen.percentile_99_5
        return low / _FAR_STORED <= image.percentile_99_5 <= high * _FAR_STORED
    if ct or seen.negative_ratio == 0 or image.min <= min(AIR_HU, seen.min):
        return False
    return image.negative_ratio <= _NOISE_FACTOR * seen.negative_ratio + _NOISE_SHARE


def warn_if_far(
    seen: SeenImages,
    channels: Sequence[ChannelRange],
    *,
    geometry: Geometry,
    name: str,
    model: str,
    ct: Sequence[bool],
) -> None:
    """Warns where a case is far from all that a model has seen; it is predicted all the same.

    Args:
        seen: Of the model's training.
        channels: Of the case.
        geometry: The grid of the case.
        name: The case.
        model: The model, for the message.
        ct: Channel by channel, whether values have a scale.
    """
    extent = [n * mm for n, mm in zip(geometry.shape_zyx, geometry.spacing_mm, strict=True)]
    # 2D files have no length along z; what stands for it says no more than y and x.
    flat = is_flat(geometry) and has_no_thickness(seen.spacing_mm[0])
    found = [
        *_far_lengths("spacing", geometry.spacing_mm, seen.spacing_mm, _FAR_SPACING, flat=flat),
        *_far_lengths("size", extent, seen.extent_mm, _FAR_EXTENT, flat=flat),
    ]
    for index, (image, known) in enumerate(zip(channels, seen.channels, strict=True)):
        of = f" of channel {index}" if len(channels) > 1 else ""
        found += [f"values{of} {text}" for text in _far_values(image, known, ct=ct[index])]
    if found:
        _log.warning(
            "%s: far from what %s was trained on: %s. Predicted all the same; look at the result.",
            *(name, model, "; ".join(found)),
        )


def _far_lengths(
    what: str,
    values: Sequence[float],
    seen: Sequence[Sequence[float]],
    factor: float,
    *,
    flat: bool,
) -> Iterator[str]:
    lengths = list(zip("zyx", values, *seen, strict=True))
    for axis, value, low, high in lengths[flat:]:
        if not low / factor <= value <= high * factor:
            yield f"{what} along {axis} {value:.3g} mm, there {_from(low, high)} mm"


def _far_values(image: ChannelRange, seen: SeenChannel, *, ct: bool) -> Iterator[str]:
    low, high = seen.percentile_00_5[0], seen.percentile_99_5[1]
    width = high - low
    if ct:
        far = not (
            _within(image.percentile_00_5, seen.percentile_00_5, width / 2)
            and _within(image.percentile_99_5, seen.percentile_99_5, width)
        )
    else:
        least, most = seen.span
        far = not least / _FAR_SCALE <= image.span <= most * _FAR_SCALE
    if far or image.constant:
        yield (
            f"{_from(image.percentile_00_5, image.percentile_99_5)}, there {_from(low, high)} "
            "(0.5 to 99.5 percent)"
        )


def _within(value: float, ends: tuple[float, float], slack: float) -> bool:
    return ends[0] - slack <= value <= ends[1] + slack


def _from(low: float, high: float) -> str:
    one, other = f"{low:.4g}", f"{high:.4g}"
    return one if one == other else f"{one} to {other}"
