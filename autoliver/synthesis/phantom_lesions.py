"""Draws liver lesions of three classes into a CT scan: cysts, hemangiomas and metastases.

A cyst is dark and homogeneous with a sharp border. A hemangioma has a bright, nodular, interrupted
rim. A metastasis has a dark core, a grey rim and a blurred border. The scan's own noise is kept, so
that it does not tell the classes apart.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from autoliver.artifacts import Record
from autoliver.datasets.cases import Labels
from autoliver.errors import OptionError
from autoliver.synthesis.phantom_anatomy import rotation_matrix
from autoliver.synthesis.phantom_solids import Blob, Bools, Codes, Floats, Vector

LesionClass = Literal["cyst", "hemangioma", "metastasis"]

LESION_LABELS = Labels(
    values={
        "background": (0,),
        "liver": (1,),
        "cyst": (2,),
        "hemangioma": (3,),
        "metastasis": (4,),
    }
)
# Class -> its value in the label map.
LESION_VALUES: dict[LesionClass, int] = {"cyst": 2, "hemangioma": 3, "metastasis": 4}

# Sub-voxels are at most this long, so that thick slices average what lies in them.
_FINE_MM = 1.0
# The scanner's blur within a slice and between slices, as a fraction of the spacing.
_BLUR_VOXELS = 0.5
# Structures of the liver larger than this are replaced in a lesion; what is finer counts as noise.
_NOISE_MM = 4.0
# The noise is cut at this many local standard deviations: what is beyond is an edge of a vessel.
_NOISE_CUT = 3.0
_SD_OF_MAD = 1.4826
# Coverage below this is no part of a lesion; the image is not altered there.
_TRACE = 0.01
_TRIES = 40
_MARGIN_MM = 3.0

Box = tuple[slice, slice, slice]


class LesionOptions(Record, frozen=True, kw_only=True):
    """What lesions are drawn.

    Attributes:
        count: Smallest and largest number of lesions of a scan; fewer if there is no room for them.
        diameter_mm: Smallest and largest diameter of a sphere of the same volume; small lesions are
            common (the logarithm is drawn uniformly).
    """

    count: tuple[int, int] = (0, 4)
    diameter_mm: tuple[float, float] = (5.0, 40.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesion:
    """One lesion, without a place or a grid; lengths in mm, grey values relative to the liver's.

    Grey values are fractions of the way from the liver (0) to water, 10 HU (-1); `nodule_hu` is the
    exception.

    Attributes:
        kind: The class.
        shape: The surface around the origin.
        border_mm: Width of the border's transition.
        core: Grey value of the core.
        rim: Grey value of the rim.
        rim_mm: Thickness of the rim; 0: there is none.
        nodules: (k, 4) centre (x, y, z) and radius of the nodules.
        nodule_hu: Brightness of the nodules above the liver.
    """

    kind: LesionClass
    shape: Blob
    border_mm: float
    core: float
    rim: float
    rim_mm: float
    nodules: Vector
    nodule_hu: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionPhantom:
    """A scan with lesions.

    Attributes:
        image: (z, y, x) float32, HU; equal to the scan's but for the lesions and their borders.
        label: (z, y, x) uint8, values of `LESION_LABELS`.
        touched: (z, y, x), where the image was altered; within the liver.
    """

    image: Floats
    label: Codes
    touched: Bools


def sample_lesion(rng: np.random.Generator, kind: LesionClass, diameter_mm: float) -> Lesion:
    """Draws a lesion.

    Args:
        rng: Random generator.
        kind: The class.
        diameter_mm: The diameter of a sphere with the lesion's volume.

    Returns:
        The lesion.
    """
    shape = _sample_shape(rng, diameter_mm)
    radius_mm = diameter_mm / 2
    count = int(rng.integers(6, 12))
    directions = rng.normal(size=(count, 3))
    nodules = np.column_stack(
        [
            np.array([shape.point(direction, 0.85) for direction in directions]),
            radius_mm * rng.uniform(0.28, 0.5, count),
        ]
    )
    match kind:
        case "cyst":
            # Homogeneous: 0 to 25 HU in a liver of 100 HU.
            core, border_mm, rim, rim_mm = -rng.uniform(0.75, 1.1), 0.5, 0.0, 0.0
        case "hemangioma":
            core, border_mm, rim, rim_mm = -rng.uniform(0.3, 0.85), 1.0, 0.0, 0.0
        case "metastasis":
            core, rim_mm = -rng.uniform(0.5, 1.05), radius_mm * rng.uniform(0.3, 0.5)
            border_mm = min(rng.uniform(1.5, 4.0), 0.7 * radius_mm)
            rim = core * rng.uniform(0.3, 0.6)
    return Lesion(
        kind=kind,
        shape=shape,
        border_mm=border_mm,
        core=core,
        rim=rim,
        rim_mm=rim_mm,
        nodules=nodules if kind == "hemangioma" else np.zeros((0, 4)),
        nodule_hu=float(rng.uniform(25, 80)),
    )


def draw_lesions(
    rng: np.random.Generator,
    image: npt.NDArray[Any],
    liver: Bools,
    spacing_mm: tuple[float, float, float],
    options: LesionOptions | None = None,
) -> LesionPhantom:
    """Draws lesions into the liver of a CT scan.

    Lesions lie wholly inside the liver and do not touch one another (26 neighbours). Each is one
    connected component whose diameter is within the bounds.

    Args:
        rng: Random generator.
        image: (z, y, x), HU.
        liver: (z, y, x), where the liver is.
        spacing_mm: (z, y, x).
        options: What is drawn; None: the defaults.

    Returns:
        The altered image and the label map.

    Raises:
        OptionError: The options are impossible.
        ValueError: Image and liver differ in shape.
    """
    options = options or LesionOptions()
    _check(options)
    if image.shape != liver.shape:
        raise ValueError(f"image {image.shape} and liver {liver.shape} differ in shape")
    result = LesionPhantom(
        image=image.astype(np.float32),
        label=liver.astype(np.uint8),
        touched=np.zeros(liver.shape, bool),
    )
    if not liver.any():
        return result
    # Nothing outside the liver's box is needed. What is drawn in the parts is drawn in the whole.
    tight = ndimage.find_objects(liver.astype(np.uint8))[0]
    box = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in tight)
    part = LesionPhantom(
        image=result.image[box], label=result.label[box], touched=result.touched[box]
    )
    limits = float(image.min()), float(image.max())
    tissue = _tissue(part.image, liver[box], spacing_mm, limits)
    for _ in range(int(rng.integers(*options.count, endpoint=True))):
        _place(rng, part, tissue, options)
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tissue:
    """What a liver is like, arrays (z, y, x): depth below its surface, grey values, noise in HU.

    `limits` are the lowest and highest grey values of the whole scan.
    """

    spacing_mm: tuple[float, float, float]
    liver: Bools
    depth_mm: Floats
    smooth: Floats
    noise: Floats
    limits: tuple[float, float]


def _tissue(
    image: Floats,
    liver: Bools,
    spacing_mm: tuple[float, float, float],
    limits: tuple[float, float],
) -> _Tissue:
    """Separates the liver's grey values from its noise."""
    sigma = [_NOISE_MM / mm for mm in spacing_mm]
    smooth = _smooth(image, liver, sigma)
    noise = np.where(liver, image - smooth, 0)
    # Edges of vessels raise a mean of squares, so the local deviation starts from a robust one.
    most = _NOISE_CUT * _SD_OF_MAD * float(np.median(np.abs(noise[liver])))
    clipped = np.clip(noise, -most, most)
    local = np.sqrt(_smooth(clipped**2, liver, [4 * s for s in sigma]))
    return _Tissue(
        spacing_mm=spacing_mm,
        liver=liver,
        depth_mm=ndimage.distance_transform_edt(np.pad(liver, 1), sampling=spacing_mm)[
            1:-1, 1:-1, 1:-1
        ].astype(np.float32),
        # A lesion's grey values are relative to the liver around it, vessels averaged.
        smooth=_smooth(image, liver, [3 * s for s in sigma]),
        noise=np.clip(noise, -_NOISE_CUT * local, _NOISE_CUT * local),
        limits=limits,
    )


def _smooth(image: Floats, mask: Bools, sigma: list[float]) -> Floats:
    """Returns the Gaussian mean of the mask's voxels; 0 outside the mask."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="constant")
    mean: Floats = ndimage.gaussian_filter(
        np.where(mask, image, 0).astype(np.float32), sigma, mode="constant"
    )
    return np.where(mask, mean / np.maximum(weight, 1e-6), 0).astype(np.float32)


def _place(
    rng: np.random.Generator, result: LesionPhantom, tissue: _Tissue, options: LesionOptions
) -> None:
    """Draws one lesion where there is room for it; smaller where there is none."""
    low, high = options.diameter_mm
    kind: LesionClass = (*LESION_VALUES,)[int(rng.integers(len(LESION_VALUES)))]
    diameter_mm = math.exp(rng.uniform(math.log(low), math.log(high)))
    for attempt in range(_TRIES):
        if attempt % 8 == 7:
            diameter_mm = max(low, 0.75 * diameter_mm)
        room = np.argwhere(tissue.depth_mm > diameter_mm / 2)
        if not len(room):
            continue
        lesion = sample_lesion(rng, kind, diameter_mm)
        shift = rng.uniform(-0.5, 0.5, 3)
        centre = room[int(rng.integers(len(room)))] + shift
        box, covered, altered, core = _render(lesion, centre, tissue)
        if _fits(result, tissue, box, covered, altered, options):
            noisy = core + tissue.noise[box]
            mixed = result.image[box] * (1 - altered) + altered * np.clip(noisy, *tissue.limits)
            seen = altered > 0
            result.image[box][seen] = mixed[seen]
            result.touched[box][seen] = True
            result.label[box][covered] = LESION_VALUES[kind]
            return


def _fits(
    result: LesionPhantom,
    tissue: _Tissue,
    box: Box,
    covered: Bools,
    altered: Floats,
    options: LesionOptions,
) -> bool:
    """Whether a lesion lies in the free liver, in one piece, within the bounds of diameters."""
    seen = altered > 0
    near = ndimage.binary_dilation(seen, np.ones((3, 3, 3)))
    volume = float(covered.sum()) * math.prod(tissue.spacing_mm)
    diameter_mm = (6 * volume / math.pi) ** (1 / 3)
    return (
        options.diameter_mm[0] <= diameter_mm <= options.diameter_mm[1]
        and bool(tissue.liver[box][seen].all())
        and not _reaches_a_face(seen)
        and not bool(result.touched[box][near].any())
        and ndimage.label(covered, np.ones((3, 3, 3)))[1] == 1
    )


def _reaches_a_face(seen: Bools) -> bool:
    """Whether a lesion is cut off at the end of the array, beyond which no liver is known."""
    return any(bool(np.take(seen, (0, -1), axis).any()) for axis in range(3))


def _render(lesion: Lesion, centre: Vector, tissue: _Tissue) -> tuple[Box, Bools, Floats, Floats]:
    """Puts a lesion on the grid: its box, label, opacity (0 to 1) and grey values in HU."""
    spacing, shape = np.array(tissue.spacing_mm), np.array(tissue.liver.shape)
    half = lesion.shape.bounds_mm()[1][::-1] + lesion.border_mm + _MARGIN_MM
    start = np.maximum(np.floor(centre - half / spacing).astype(int) - 1, 0)
    stop = np.minimum(np.ceil(centre + half / spacing).astype(int) + 2, shape)
    box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
    parts = np.maximum(np.ceil(spacing / _FINE_MM).astype(int), 2)
    axes = [
        ((np.arange((b - a) * n) + 0.5) / n - 0.5 + a - c) * mm
        for a, b, n, c, mm in zip(start, stop, parts, centre, spacing, strict=True)
    ]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))[::-1].reshape(3, -1)
    depth = depth_mm(lesion.shape, points)
    fine = tuple(len(axis) for axis in axes)
    opacity = np.clip(0.5 + depth / lesion.border_mm, 0, 1)
    grey, bright = _profile(lesion, points, depth)
    # The label is of the lesion itself: small ones would vanish from a blurred one.
    inside = _averaged((depth > 0).reshape(fine).astype(np.float64), parts)
    seen, grey, bright = (
        _averaged(ndimage.gaussian_filter(field.reshape(fine), _BLUR_VOXELS * parts), parts)
        for field in (opacity, opacity * grey, opacity * bright)
    )
    altered = np.where(seen > _TRACE, seen, 0).astype(np.float32)
    smooth = tissue.smooth[box]
    weight = np.maximum(seen, _TRACE)
    core = smooth + (smooth - 10) * grey / weight + lesion.nodule_hu * bright / weight
    return box, inside >= 0.5, altered, core.astype(np.float32)


def depth_mm(shape: Blob, points: Vector) -> Vector:
    """Returns the (n,) depths of (3, n) points below a surface, in mm, along the radius.

    Negative outside.
    """
    local = (shape.rotation.T @ (points - shape.centre_mm[:, None])) / shape.axes_mm[:, None]
    norm = np.maximum(np.linalg.norm(local, axis=0), 1e-6)
    radius = shape.radius(local / norm).astype(np.float64)
    # The length of the relative radius in mm depends on the direction.
    scale = np.linalg.norm(shape.axes_mm[:, None] * local / norm, axis=0)
    result: Vector = (radius - norm) * scale
    return result


def _profile(lesion: Lesion, points: Vector, depth: Vector) -> tuple[Vector, Vector]:
    """Returns (n,) grey values relative to the liver, and the nodules' strength from 0 to 1."""
    grey = np.full(depth.shape, lesion.core)
    if lesion.rim_mm:
        inner = np.clip(1.5 - depth / lesion.rim_mm, 0, 1)
        grey += (lesion.rim - lesion.core) * inner
    bright = np.zeros(depth.shape)
    for x, y, z, radius in lesion.nodules:
        distance = np.linalg.norm(points - np.array([[x], [y], [z]]), axis=0)
        bright = np.maximum(bright, np.clip(0.5 + (radius - distance) / 1.0, 0, 1))
    return grey * (1 - bright), bright


def _averaged(fine: Vector, parts: npt.NDArray[np.int_]) -> Vector:
    """Averages a field over voxels of `parts` sub-voxels along each axis."""
    (z, a), (y, b), (x, c) = ((n // p, p) for n, p in zip(fine.shape, parts, strict=True))
    result: Vector = fine.reshape(z, a, y, b, x, c).mean(axis=(1, 3, 5))
    return result


def _sample_shape(rng: np.random.Generator, diameter_mm: float) -> Blob:
    """Draws a smooth irregular surface around the origin with the volume of a sphere."""
    waves, units = rng.normal(size=(5, 3)), _directions()
    waves *= rng.uniform(1.5, 3.5, (5, 1)) / np.linalg.norm(waves, axis=1, keepdims=True)
    axes = rng.uniform(0.8, 1.25, 3)
    shape = Blob(
        centre_mm=np.zeros(3),
        axes_mm=axes,
        rotation=rotation_matrix(rng.uniform(-math.pi, math.pi, 3)),
        waves=waves,
        phases=rng.uniform(0, 2 * math.pi, 5),
        roughness=float(rng.uniform(0.03, 0.1)),
        lobe=np.array([1.0, 0.0, 0.0]),
    )
    # The volume of a star-shaped body is the mean of its cubed radius over the unit sphere.
    cubed = float((shape.radius(units).astype(np.float64) ** 3).mean()) * float(axes.prod())
    return Blob(
        centre_mm=shape.centre_mm,
        axes_mm=axes * (diameter_mm / 2) / cubed ** (1 / 3),
        rotation=shape.rotation,
        waves=shape.waves,
        phases=shape.phases,
        roughness=shape.roughness,
        lobe=shape.lobe,
    )


def _directions(count: int = 500) -> Vector:
    """Returns (3, n) unit vectors evenly over the sphere (a Fibonacci lattice)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    angle = math.pi * (1 + 5**0.5) * np.arange(count)
    flat = np.sqrt(1 - z * z)
    return np.stack([flat * np.cos(angle), flat * np.sin(angle), z])


def _check(options: LesionOptions) -> None:
    (fewest, most), (low, high) = options.count, options.diameter_mm
    if not 0 <= fewest <= most or not 0 < low <= high < math.inf:
        raise OptionError(
            f"lesions: {options.count} lesions of {options.diameter_mm} mm are not possible.",
            hint="Give (fewest, most) and (smallest, largest), zero or more and above zero.",
        )
