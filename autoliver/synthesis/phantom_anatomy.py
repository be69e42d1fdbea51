"""Draws a simplified random abdomen that does not depend on any voxel grid.

Patient frame: LPS millimetres of an adult, x towards the patient's left, y towards the back, z
towards the head; the origin is in the middle of the body at the height of the liver. So the liver
has negative x: with identity direction cosines it is at small x indices, at the left of a
radiological view.

Tissues follow METHODS.md, Part C.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoliver.synthesis.phantom_solids import (
    Blob,
    Capsule,
    Codes,
    Column,
    Grid,
    Layer,
    Marbling,
    Solid,
    Vector,
    paint_layers,
)

AIR, FAT, MUSCLE, LIVER, SPLEEN, KIDNEY, BONE, STOMACH, VESSEL, TUMOUR = range(10)
TISSUES: dict[str, int] = {
    "air": AIR,
    "fat": FAT,
    "muscle": MUSCLE,
    "liver": LIVER,
    "spleen": SPLEEN,
    "kidney": KIDNEY,
    "bone": BONE,
    "stomach": STOMACH,
    "vessel": VESSEL,
    "tumour": TUMOUR,
}

# Codes used only while painting, where the content of the cavity must differ from the fat and
# muscle of the wall, and the liver's vessels from aorta and vena cava. Afterwards they are replaced
# by the tissues that they consist of.
_LIVER_VESSEL, _VISCERAL_FAT, _BOWEL = 253, 254, 255
_SETTLED = {_LIVER_VESSEL: VESSEL, _VISCERAL_FAT: FAT, _BOWEL: MUSCLE}

_CAVITY = (_VISCERAL_FAT, _BOWEL)
_ORGANS = (*_CAVITY, STOMACH, SPLEEN, LIVER)

# Lesions that cannot be placed within this number of tries are left out.
_TRIES = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class _Organ:
    """The distribution from which the blobs of one organ are drawn; lengths in mm, (x, y, z).

    Attributes:
        centre_mm: Mean centre.
        axes_mm: Typical half axes.
        shift_mm: Largest shift of the centre along each axis.
        roughness: Standard deviation of the relative radius.
        lobe_gain: Typical relative growth of the radius at the lobe.
    """

    centre_mm: tuple[float, float, float]
    axes_mm: tuple[float, float, float]
    shift_mm: float
    roughness: float
    lobe_gain: float = 0.0


# The liver's bulge is its left lobe, which crosses the midline in front of the stomach.
_LIVER = _Organ(
    centre_mm=(-66, -6, 10), axes_mm=(60, 62, 70), shift_mm=8, roughness=0.05, lobe_gain=0.85
)
_SPLEEN = _Organ(centre_mm=(92, 22, 24), axes_mm=(25, 40, 46), shift_mm=8, roughness=0.05)
_STOMACH = _Organ(centre_mm=(58, -36, 18), axes_mm=(40, 33, 44), shift_mm=9, roughness=0.06)
# Both kidneys have the same distribution, so only the position distinguishes right from left.
_KIDNEYS = tuple(
    _Organ(centre_mm=(side * 67, 40, -42), axes_mm=(26, 27, 50), shift_mm=7, roughness=0.04)
    for side in (-1, 1)
)


def sample_anatomy(rng: np.random.Generator, *, lesions: tuple[int, int]) -> tuple[Layer, ...]:
    """Draws one patient.

    Args:
        rng: Random generator.
        lesions: Smallest and largest number of liver lesions; fewer if there is no room for them.

    Returns:
        The patient's parts in painting order. Labels: 1 liver with its vessels, 2 tumour, 3 spleen,
        4 right kidney, 5 left kidney.
    """
    frame, cavity = _sample_frame(rng)
    kidneys = [_sample_blob(rng, kidney) for kidney in _KIDNEYS]
    stomach, spleen, liver = (_sample_blob(rng, organ) for organ in (_STOMACH, _SPLEEN, _LIVER))
    centre = _sample_centre(rng)
    vessels = _sample_vessels(rng, liver)
    carving = [*kidneys, spleen, *(layer.solid for layer in centre)]
    tumours = _sample_lesions(
        rng, liver, int(rng.integers(*lesions, endpoint=True)), within=cavity, without=carving
    )
    return (
        *frame,
        *(_layer(_grown(kidney, 1.2), _VISCERAL_FAT, over=_CAVITY) for kidney in kidneys),
        _layer(stomach, STOMACH, over=_CAVITY),
        _layer(spleen, SPLEEN, label=3, over=(*_CAVITY, STOMACH)),
        _layer(liver, LIVER, label=1, over=(*_CAVITY, STOMACH)),
        _layer(kidneys[0], KIDNEY, label=4, over=_ORGANS),
        _layer(kidneys[1], KIDNEY, label=5, over=_ORGANS),
        *centre,
        *(_layer(piece, _LIVER_VESSEL, label=1, over=(LIVER,)) for piece in vessels),
        *(_layer(tumour, TUMOUR, label=2, over=(LIVER, _LIVER_VESSEL)) for tumour in tumours),
    )


def paint_anatomy(anatomy: Sequence[Layer], grid: Grid) -> tuple[Codes, Codes]:
    """Paints the tissues and labels of a patient on a voxel grid.

    Args:
        anatomy: The patient's parts, from `sample_anatomy`.
        grid: The voxel grid in the patient frame.

    Returns:
        Tissue map (values of `TISSUES`) and label map, both (z, y, x).
    """
    tissue, label = paint_layers(anatomy, grid)
    settled = np.arange(256, dtype=np.uint8)
    settled[list(_SETTLED)] = list(_SETTLED.values())
    for plane in tissue:
        plane[:] = settled[plane]
    return tissue, label


def rotation_matrix(angles_rad: Vector) -> Vector:
    """Returns the 3x3 matrix that rotates by three angles about x, then y, then z."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles_rad), np.sin(angles_rad)
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    result: Vector = about_z @ about_y @ about_x
    return result


def _layer(solid: Solid, tissue: int, *, label: int = 0, over: tuple[int, ...]) -> Layer:
    return Layer(solid=solid, tissue=tissue, label=label, over=over)


def _sample_frame(rng: np.random.Generator) -> tuple[tuple[Layer, ...], Column]:
    """Draws skin fat, the muscles of wall and back and the cavity's content, and its outline."""
    width, depth = rng.uniform(150, 170), rng.uniform(102, 118)
    fat_mm, wall_mm = rng.uniform(8, 22), rng.uniform(7, 11)
    squareness, phase = rng.uniform(0.1, 0.4), rng.uniform(0, 6)

    def outline(inset_mm: float) -> Column:
        return Column(
            centre_mm=(0.0, 0.0),
            radii_mm=(width - inset_mm, depth - inset_mm),
            squareness=squareness,
            swell=0.03,
            phase=phase,
        )

    cavity = outline(fat_mm + wall_mm)
    marbling = Marbling(
        waves=_unit_vectors(rng, 8) * rng.uniform(0.06, 0.13, (8, 1)),
        phases=rng.uniform(0, 2 * math.pi, 8),
        threshold=rng.uniform(-0.2, 0.8),
    )
    back = [
        Column(centre_mm=(side * 36.0, depth - fat_mm - 16), radii_mm=(24.0, 16.0))
        for side in (-1, 1)
    ]
    layers = (
        _layer(outline(0), FAT, over=(AIR,)),
        _layer(outline(fat_mm), MUSCLE, over=(FAT,)),
        _layer(cavity, _BOWEL, over=(MUSCLE,)),
        _layer(marbling, _VISCERAL_FAT, over=(_BOWEL,)),
        *(_layer(muscle, MUSCLE, over=_CAVITY) for muscle in back),
    )
    return layers, cavity


def _sample_centre(rng: np.random.Generator) -> tuple[Layer, ...]:
    """Draws the spine (discs, canal, spinous processes) and aorta and vena cava in front of it."""
    x, y = rng.uniform(-4, 4), rng.uniform(56, 62)
    sway_mm, phase = rng.uniform(-4, 4), rng.uniform(0, 6)
    over = (FAT, MUSCLE, BONE, KIDNEY, *_ORGANS)

    def column(
        at_mm: tuple[float, float], radii_mm: tuple[float, float], gap_mm: float = 0.0
    ) -> Column:
        return Column(
            centre_mm=(x + at_mm[0], y + at_mm[1]),
            radii_mm=radii_mm,
            sway_mm=sway_mm,
            phase=phase,
            gap_mm=gap_mm,
        )

    return (
        _layer(column((0, 24), (5, 16), 12), BONE, over=over),
        _layer(column((0, 0), (21, 18)), MUSCLE, over=over),
        _layer(column((0, 0), (22, 19), 7), BONE, over=over),
        _layer(column((0, 22), (8, 7)), MUSCLE, over=over),
        _layer(column((11, -29), (10, 10)), VESSEL, over=over),
        _layer(column((-15, -28), (12, 9)), VESSEL, over=over),
    )


def _sample_blob(rng: np.random.Generator, organ: _Organ) -> Blob:
    lobe = np.array([0.85, -0.45, 0.25]) + rng.normal(0, 0.1, 3)
    return Blob(
        centre_mm=np.array(organ.centre_mm) + rng.uniform(-1, 1, 3) * organ.shift_mm,
        axes_mm=np.array(organ.axes_mm) * rng.uniform(0.9, 1.12) * rng.uniform(0.94, 1.06, 3),
        rotation=rotation_matrix(rng.normal(0, 0.12, 3)),
        waves=_unit_vectors(rng, 5) * rng.uniform(2.0, 3.8, (5, 1)),
        phases=rng.uniform(0, 2 * math.pi, 5),
        roughness=organ.roughness,
        lobe=lobe / np.linalg.norm(lobe),
        lobe_gain=organ.lobe_gain * rng.uniform(0.6, 1.3),
    )


def _sample_vessels(rng: np.random.Generator, liver: Blob) -> tuple[Capsule, ...]:
    """Draws a vessel tree that starts at the liver's inner side and branches outwards."""
    root = liver.point(np.array([0.7, 0.6, -0.3]), 0.45)
    pieces: list[Capsule] = []
    for outwards in _unit_vectors(rng, int(rng.integers(4, 7))):
        fork = (root + liver.point(outwards, 0.6)) / 2 + rng.normal(0, 4, 3)
        pieces.append(_capsule(root, fork, (5.5, 4.5)))
        for spread in _unit_vectors(rng, 2):
            middle = liver.point(outwards + 0.3 * spread, 0.6)
            end = liver.point(outwards + 0.6 * spread, 0.85)
            pieces += [_capsule(fork, middle, (4.0, 3.2)), _capsule(middle, end, (3.2, 2.0))]
    return tuple(pieces)


def _capsule(start_mm: Vector, end_mm: Vector, radii_mm: tuple[float, float]) -> Capsule:
    return Capsule(start_mm=start_mm, end_mm=end_mm, radii_mm=radii_mm)


def _sample_lesions(
    rng: np.random.Generator, liver: Blob, count: int, *, within: Solid, without: Sequence[Solid]
) -> tuple[Blob, ...]:
    lesions: list[Blob] = []
    for _ in range(_TRIES):
        if len(lesions) == count:
            break
        radius_mm = math.exp(rng.uniform(math.log(10), math.log(28)))
        centre_mm = liver.point(_unit_vectors(rng, 1)[0], rng.uniform(0.1, 0.8))
        lesion = _sample_blob(
            rng,
            _Organ(
                centre_mm=(centre_mm[0], centre_mm[1], centre_mm[2]),
                axes_mm=(radius_mm, radius_mm, radius_mm),
                shift_mm=0,
                roughness=0.06,
            ),
        )
        hidden = any(_holds(solid, centre_mm) for solid in without) or not _holds(within, centre_mm)
        apart = all(
            np.linalg.norm(centre_mm - other.centre_mm) > radius_mm + other.axes_mm.max() + 3
            for other in lesions
        )
        if apart and not hidden:
            lesions.append(lesion)
    return tuple(lesions)


def _grown(blob: Blob, factor: float) -> Blob:
    return dataclasses.replace(blob, axes_mm=blob.axes_mm * factor)


def _holds(solid: Solid, point_mm: Vector) -> bool:
    x, y, z = point_mm.astype(np.float32).reshape(3, 1)
    return bool(solid.contains(x, y, z)[0])


def _unit_vectors(rng: np.random.Generator, count: int) -> Vector:
    vectors = rng.normal(size=(count, 3))
    result: Vector = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result
