"""What a scan shows without any label: the body, its slices, how bright it is and how steady."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record

Image = npt.NDArray[np.number]
Mask = npt.NDArray[np.bool_]
# First slice, and the one behind the last.
Slices = tuple[int, int]

_BINS = 256
# A slice shows enough of the body if it shows this share of the median over slices that show any.
_LEAST_SHARE = 0.5
# Distances at which slices of real scans are compared, in mm.
DISTANCES_MM = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0)
# Grey values are kept as so many quantiles.
_QUANTILES = 100


class RealImages(Record, frozen=True, kw_only=True):
    """What the real images of a domain look like, where they show the body.

    Attributes:
        jumps: For each of `DISTANCES_MM`, the mean difference of slices that far apart, in standard
            deviations of the body; the mean of the scans.
        grey: The quantiles of the brightness, from -1 to 1, at the middles of equal steps; each
            scan counts alike.
    """

    jumps: tuple[float, ...]
    grey: tuple[float, ...]

    def jump_at(self, distance_mm: float) -> float:
        """The mean difference of slices this far apart, in standard deviations of the body."""
        return float(np.interp(distance_mm, DISTANCES_MM, self.jumps))


def body_mask(image: Image) -> Mask:
    """Finds the body: the largest object that is brighter than air, with its holes filled.

    Args:
        image: (z, y, x), of any unit in which the body is brighter than air.

    Returns:
        (z, y, x); nothing of a constant image.
    """
    from scipy.ndimage import binary_fill_holes, label

    low, high = (float(value) for value in np.percentile(image, (0.5, 99.5)))
    if not low < high:
        low, high = float(image.min()), float(image.max())
    if not low < high:
        return np.zeros(image.shape, np.bool_)
    parts, number = label(image > darkest_of_body(image, low, high))
    if number > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        parts = parts == sizes.argmax()
    return np.stack([binary_fill_holes(each) for each in parts > 0])


def darkest_of_body(image: Image, low: float, high: float) -> float:
    """The threshold between air and body with the least cross-entropy.

    Unlike Otsu's it is low enough for dark parts of the body, such as suppressed fat.
    Li and Tam, Pattern Recognition Letters 1998.

    Args:
        image: Any shape.
        low: The least value that is looked at; values beyond count as the nearest.
        high: The greatest.
    """
    counts, edges = np.histogram(np.clip(image, low, high), bins=_BINS, range=(low, high))
    values = np.arange(_BINS) + 0.5  # of the bins: as far above the darkest as they are
    below, darker = np.cumsum(counts), np.cumsum(counts * values)
    above, brighter = below[-1] - below, darker[-1] - darker
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -darker * np.log(darker / below) - brighter * np.log(brighter / above)
    entropy[(below == 0) | (above == 0)] = np.inf
    return float(edges[1 + int(entropy.argmin())])


def slices_with_body(body: Mask, *, most: int | None = None) -> Slices | None:
    """Finds the slices that show enough of the body.

    Args:
        body: (z, y, x), from `body_mask`.
        most: The greatest number of slices, those in the middle; None: all.

    Returns:
        The slices; None if none shows the body.
    """
    sizes = body.sum(axis=(1, 2))
    if not sizes.any():
        return None
    enough = np.flatnonzero(sizes >= _LEAST_SHARE * np.median(sizes[sizes > 0]))
    first, end = int(enough[0]), int(enough[-1]) + 1
    over = max(0, end - first - most) if most is not None else 0
    return first + over // 2, end - (over - over // 2)


def jump(image: Image, body: Mask, *, apart: int = 1) -> float | None:
    """The mean difference of slices, in standard deviations of the body.

    It is taken where both slices show the body, so that the outline of the body is no matter.

    Args:
        image: (z, y, x).
        body: (z, y, x).
        apart: How many slices they are apart.

    Returns:
        The mean; None if no two such slices show the body at one place, or the body is constant.
    """
    both = body[apart:] & body[:-apart]
    if not both.any():
        return None
    values = image.astype(np.float32)
    deviation = float(values[body].std())
    steps = np.abs(values[apart:] - values[:-apart])[both]
    return float(steps.mean()) / deviation if deviation > 0 else None


def jumps_by_distance(image: Image, body: Mask, spacing_mm: float) -> list[float] | None:
    """`jump` at each of `DISTANCES_MM`, interpolated between the distances that the scan has.

    Args:
        image: (z, y, x).
        body: (z, y, x).
        spacing_mm: Distance of neighbouring slices.

    Returns:
        One value for each distance: nearer than neighbouring slices that of neighbouring slices;
        None for a scan without any.
    """
    most = min(len(image), 2 + int(DISTANCES_MM[-1] / spacing_mm))
    found = [(n * spacing_mm, jump(image, body, apart=n)) for n in range(1, most)]
    known = [(mm, value) for mm, value in found if value is not None]
    if not known:
        return None
    distances, values = zip(*known, strict=True)
    return [float(value) for value in np.interp(DISTANCES_MM, distances, values)]


def real_images(scans: Iterable[tuple[Image, Mask, float]]) -> RealImages:
    """Describes real images.

    Args:
        scans: Of each scan its values (z, y, x) from -1 to 1, the body and the distance of
            neighbouring slices in mm.
    """
    jumps, grey = [], []
    for image, body, spacing_mm in scans:
        found = jumps_by_distance(image, body, spacing_mm)
        jumps += [found] if found is not None else []
        values = image[body] if body.any() else image.ravel()
        grey.append(_quantiles(values, 10 * _QUANTILES))
    mean = np.mean(jumps, axis=0) if jumps else np.zeros(len(DISTANCES_MM))
    pooled = _quantiles(np.concatenate(grey), _QUANTILES)
    return RealImages(jumps=tuple(mean.tolist()), grey=tuple(pooled.tolist()))


def grey_distance(values: npt.NDArray[np.number], grey: Sequence[float]) -> float:
    """How far brightness lies from that of real images: the 1-D Wasserstein distance.

    In one dimension it is the mean difference of quantiles (Vallender, Theory of Probability and
    Its Applications 1974).

    Args:
        values: The brightness of the voxels of the body, from -1 to 1.
        grey: The quantiles of real images, as in `RealImages`.

    Returns:
        The distance in standard deviations of the real images.
    """
    real = np.asarray(grey)
    apart = np.abs(_quantiles(values, len(real)) - real).mean()
    return float(apart / max(float(real.std()), 1e-6))


def _quantiles(values: npt.NDArray[np.number], number: int) -> npt.NDArray[np.float64]:
    """Quantiles at the middles of equal steps from 0 to 1."""
    middles = (np.arange(number) + 0.5) / number
    found: npt.NDArray[np.float64] = np.quantile(values.astype(np.float64), middles)
    return found
