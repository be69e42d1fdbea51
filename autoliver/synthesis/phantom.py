"""Simulates phantom scans of the abdomen in CT and MR contrast, and writes datasets of them.

They replace patients in demos, tests and benchmarks: liver, tumours, spleen and kidneys with their
label map, on realistic grids. Grey values and disturbances follow METHODS.md, Part C.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import interpolate, ndimage

from autoliver.artifacts import Record, write_bytes
from autoliver.datasets.cases import Labels, Modality
from autoliver.errors import OptionError
from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry, Volume
from autoliver.synthesis.phantom_anatomy import (
    AIR,
    TISSUES,
    TUMOUR,
    paint_anatomy,
    rotation_matrix,
    sample_anatomy,
)
from autoliver.synthesis.phantom_solids import Codes, Floats, Grid, Vector

Contrast = Literal["CT", "T1", "T2"]

PHANTOM_LABELS = Labels(
    values={
        "background": (0,),
        "liver": (1,),
        "tumour": (2,),
        "spleen": (3,),
        "right_kidney": (4,),
        "left_kidney": (5,),
    }
)
MODALITY: dict[Contrast, Modality] = {"CT": "CT", "T1": "MR", "T2": "MR"}

# Mean grey values in the order of TISSUES: HU for CT, relative signal for T1 (in phase) and T2 (fat
# suppressed). They are from METHODS.md, Part C, except the tumour's: dark in CT and T1, bright in
# T2.
TISSUE_MEANS: dict[Contrast, tuple[float, ...]] = {
    "CT": (-1000, -100, 50, 110, 120, 190, 400, 20, 170, 65),
    "T1": (0.02, 0.95, 0.45, 0.62, 0.40, 0.42, 0.55, 0.25, 0.15, 0.43),
    "T2": (0.02, 0.15, 0.22, 0.38, 0.72, 0.85, 0.30, 0.95, 0.12, 0.58),
}

_CT_JITTER_HU, _CT_TEXTURE_HU, _CT_NOISE_HU = 8.0, 6.0, 12.0
_MR_JITTER, _MR_TEXTURE, _MR_NOISE = 0.15, 0.03, 0.03
_MR_GAIN = (200.0, 1200.0)
_BLUR_VOXELS = 0.6
# Files hold 16-bit whole numbers, as scanners write them.
_INT16_MOST = 32767
_BIAS_KNOTS = 4

_SHAPES: dict[Modality, tuple[int, int, int]] = {"CT": (40, 96, 96), "MR": (24, 96, 96)}
_SLICES_MM: dict[Modality, tuple[float, float]] = {"CT": (3.0, 5.0), "MR": (5.0, 8.0)}
# Room for an adult with some air around the body: (y, x) in mm.
_ADULT_FIELD_MM = (290.0, 385.0)

_CHUNK_VOXELS = 4_000_000
_TILE = 96


class PhantomOptions(Record, frozen=True, kw_only=True):
    """The properties of a phantom scan.

    Attributes:
        contrast: CT, T1 (in phase) or T2 (fat suppressed).
        shape_zyx: Voxels per axis; None: (40, 96, 96) for CT, (24, 96, 96) for MR.
        shape_jitter: Largest relative change of the number of slices, which is drawn for each case.
        spacing_mm: (z, y, x); None: drawn for each case from 1.5-2.5 mm in plane (less for large
            slices) and 3-5 mm (CT) or 5-8 mm (MR) between slices (less for many slices).
        scale: Size of the patient relative to an adult; None: as large as the field of view allows.
        lesions: Smallest and largest number of liver lesions; fewer if there is no room for them.
        oblique: Whether the grid is rotated against the patient by a few degrees.
        bias: Strength of the bias field of MR: standard deviation of the logarithm of the coils'
            sensitivity; about 0.1 is left where the scanner has corrected for them.
    """

    contrast: Contrast = "CT"
    shape_zyx: tuple[int, int, int] | None = None
    shape_jitter: float = 0.0
    spacing_mm: tuple[float, float, float] | None = None
    scale: float | None = None
    lesions: tuple[int, int] = (0, 4)
    oblique: bool = True
    bias: float = 0.25

    @property
    def modality(self) -> Modality:
        """CT or MR."""
        return MODALITY[self.contrast]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phantom:
    """A phantom scan; all three volumes have one channel and share one geometry.

    Attributes:
        image: float32; HU for CT, not negative for MR; whole numbers that fit in 16 bits.
        label: uint8, values of `PHANTOM_LABELS`.
        tissue: uint8, values of `autoliver.synthesis.phantom_anatomy.TISSUES`.
    """

    image: Volume
    label: Volume
    tissue: Volume


def make_phantom(rng: np.random.Generator, options: PhantomOptions) -> Phantom:
    """Draws a patient and scans it.

    The patient is drawn first, so generators with the same seed give the same patient in every
    contrast.

    Args:
        rng: Random generator.
        options: Properties of the scan.

    Returns:
        Image, label map and tissue map.

    Raises:
        OptionError: A shape, spacing, scale or number of lesions is invalid.
    """
    _check(options)
    anatomy = sample_anatomy(rng, lesions=options.lesions)
    geometry, grid = _sample_geometry(rng, options)
    tissue, label = paint_anatomy(anatomy, grid)
    image = _scan_ct(rng, tissue) if options.contrast == "CT" else _scan_mr(rng, tissue, options)
    return Phantom(
        image=Volume(array=image[None], geometry=geometry),
        label=Volume(array=label[None], geometry=geometry),
        tissue=Volume(array=tissue[None], geometry=geometry),
    )


def write_phantom_dataset(
    folder: Path,
    *,
    name: str,
    cases: int,
    seed: int,
    options: PhantomOptions | Sequence[PhantomOptions],
    test_cases: int = 0,
) -> Path:
    """Writes phantom scans as a dataset in the layout of nnU-Net v2.

    Case i depends only on the seed, on i and on its options. Test cases continue the numbering;
    their images go to imagesTs and their labels to labelsTs.

    Args:
        folder: The folder in which the dataset's folder is created.
        name: The dataset's name, e.g. "Dataset001_PhantomCT"; the part after the number also names
            the cases.
        cases: Number of training cases.
        seed: Seed of the whole dataset; two contrasts with the same seed show the same patients.
        options: The options of all cases, or several, which the cases use cyclically.
        test_cases: Number of additional test cases.

    Returns:
        The dataset's folder.

    Raises:
        OptionError: There are no cases or no options, or an option is invalid.
    """
    choices = (options,) if isinstance(options, PhantomOptions) else tuple(options)
    if cases < 1 or test_cases < 0 or not choices:
        raise OptionError(
            f"{name}: {cases} training cases, {test_cases} test cases, {len(choices)} options.",
            hint="Ask for at least one training case and give at least one PhantomOptions.",
        )
    dataset = folder / name
    modalities: dict[str, str] = {}
    for index in range(cases + test_cases):
        part = "Tr" if index < cases else "Ts"
        chosen = choices[index % len(choices)]
        case = f"{name.split('_', 1)[-1]}_{index:03d}"
        phantom = make_phantom(np.random.default_rng([seed, index]), chosen)
        geometry = phantom.image.geometry
        stored = phantom.image.array.astype(np.int16)
        write_image(dataset / f"images{part}" / f"{case}_0000.nii.gz", stored, geometry)
        write_label(dataset / f"labels{part}" / f"{case}.nii.gz", phantom.label.array[0], geometry)
        modalities[case] = chosen.modality
    description = _describe(modalities, cases)
    write_bytes(
        dataset / "dataset.json", msgspec.json.format(msgspec.json.encode(description), indent=1)
    )
    return dataset


def _describe(modalities: dict[str, str], cases: int) -> dict[str, object]:
    """Returns the content of dataset.json."""
    kinds = set(modalities.values())
    return {
        "channel_names": {"0": "CT" if kinds == {"CT"} else "MR"},
        "labels": {label: values[0] for label, values in PHANTOM_LABELS.values.items()},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "modality": kinds.pop() if len(kinds) == 1 else modalities,
    }


def _check(options: PhantomOptions) -> None:
    shape, spacing = options.shape_zyx, options.spacing_mm
    wrong = {
        "shape_zyx": shape is not None and min(shape) < 4,
        "shape_jitter": not 0 <= options.shape_jitter < 1,
        "spacing_mm": spacing is not None and min(spacing) <= 0,
        "scale": options.scale is not None and options.scale <= 0,
        "lesions": not 0 <= options.lesions[0] <= options.lesions[1],
        "bias": not 0 <= options.bias < np.inf,
    }
    for field, is_wrong in wrong.items():
        if is_wrong:
            raise OptionError(
                f"phantom: {field} {getattr(options, field)} is not possible.",
                hint="Shapes are 4 voxels or more, spacings and scales above zero, shape_jitter "
                "is below 1, lesions are (fewest, most), and bias is zero or more.",
            )


def _sample_geometry(rng: np.random.Generator, options: PhantomOptions) -> tuple[Geometry, Grid]:
    """Draws the scan's grid, as files describe it and in the frame of an adult patient."""
    # All numbers are drawn, needed or not, so that options do not change the random numbers later.
    jitter, in_plane, field_mm, thick, cover_mm = (float(v) for v in rng.uniform(size=5))
    angles = rng.uniform(-0.12, 0.12, 3) * options.oblique
    table_mm, off_centre_mm = rng.uniform(-150, 150, 3), rng.uniform(-8, 8, 3)

    nz, ny, nx = options.shape_zyx or _SHAPES[options.modality]
    nz = max(4, round(nz * (1 + options.shape_jitter * (2 * jitter - 1))))
    pixel_mm = min(1.5 + in_plane, (340 + 80 * field_mm) / max(ny, nx))
    spacing = options.spacing_mm or (0.0, round(pixel_mm, 4), round(pixel_mm, 4))
    scale = options.scale or min(
        ny * spacing[1] / _ADULT_FIELD_MM[0], nx * spacing[2] / _ADULT_FIELD_MM[1]
    )
    if options.spacing_mm is None:
        thinnest, thickest = _SLICES_MM[options.modality]
        slice_mm = thinnest + thick * (thickest - thinnest)
        slice_mm = min(slice_mm, (240 + 100 * cover_mm) * scale / nz)
        spacing = (round(slice_mm, 4), *spacing[1:])

    direction = rotation_matrix(angles)
    # Each column is one step along z, y or x of the array, in mm along the patient's x, y, z.
    steps = direction[:, ::-1] * np.array(spacing)
    middle = np.array([0.0, 0.0, -10.0]) + off_centre_mm
    first = middle * scale - steps @ ((np.array([nz, ny, nx]) - 1) / 2)
    geometry = Geometry(
        shape_zyx=(nz, ny, nx),
        spacing_mm=spacing,
        origin_xyz=_floats3(np.round(first + table_mm, 4)),
        direction=tuple(float(v) for v in direction.ravel()),
    )
    return geometry, Grid(shape_zyx=(nz, ny, nx), matrix=steps / scale, origin_mm=first / scale)


def _floats3(values: Vector) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _scan_ct(rng: np.random.Generator, tissue: Codes) -> Floats:
    """Simulates a CT image in rounded Hounsfield units."""
    means = np.array(TISSUE_MEANS["CT"], np.float32)
    means[AIR + 1 :] += rng.uniform(-_CT_JITTER_HU, _CT_JITTER_HU, len(means) - 1)
    image = _textured(rng, tissue, means, _CT_TEXTURE_HU)
    for part in _chunks(image.shape):
        image[part] += _CT_NOISE_HU * rng.standard_normal(image[part].shape, np.float32)
        np.clip(np.rint(image[part]), -1024, 3071, out=image[part])
    return image


def _scan_mr(rng: np.random.Generator, tissue: Codes, options: PhantomOptions) -> Floats:
    """Simulates an MR image: rounded signal with coil shading and Rician noise."""
    means = np.array(TISSUE_MEANS[options.contrast], np.float32)
    means *= rng.uniform(1 - _MR_JITTER, 1 + _MR_JITTER, len(means))
    gain = np.float32(rng.uniform(*_MR_GAIN))
    image = _textured(rng, tissue, means, _MR_TEXTURE)
    knots = rng.normal(0, options.bias, (_BIAS_KNOTS,) * 3)
    along_z, along_y, along_x = (_cubic(n) for n in image.shape)
    sheets = np.einsum("abc,yb,xc->ayx", knots, along_y, along_x).astype(np.float32)
    for part in _chunks(image.shape):
        shading = np.exp(np.tensordot(along_z[part].astype(np.float32), sheets, axes=1))
        real = image[part] * shading
        real += _MR_NOISE * rng.standard_normal(real.shape, np.float32)
        imaginary = _MR_NOISE * rng.standard_normal(real.shape, np.float32)
        image[part] = np.rint(np.minimum(gain * np.hypot(real, imaginary), _INT16_MOST))
    return image


def _textured(rng: np.random.Generator, tissue: Codes, means: Floats, texture: float) -> Floats:
    """Adds a correlated texture to the mean grey values and blurs them like a scanner."""
    # One periodic tile of texture is repeated over scans of any size.
    tile = ndimage.gaussian_filter(rng.standard_normal((_TILE,) * 3, np.float32), 1.5, mode="wrap")
    tile *= texture / tile.std()
    strength = np.ones(len(TISSUES), np.float32)
    strength[AIR], strength[TUMOUR] = 0, 1.5
    image = np.empty(tissue.shape, np.float32)
    rows, columns = (np.arange(n) % _TILE for n in tissue.shape[1:])
    for part in _chunks(tissue.shape):
        planes = np.arange(part.start, part.stop) % _TILE
        image[part] = means[tissue[part]]
        image[part] += strength[tissue[part]] * tile[np.ix_(planes, rows, columns)]
    for axis in range(3):
        ndimage.gaussian_filter1d(image, _BLUR_VOXELS, axis=axis, output=image, mode="nearest")
    return image


def _cubic(size: int) -> npt.NDArray[np.float64]:
    """Returns the (size, knots) matrix that interpolates equally spaced knots at `size` voxels."""
    spline = interpolate.CubicSpline(np.arange(_BIAS_KNOTS), np.eye(_BIAS_KNOTS))
    result: npt.NDArray[np.float64] = spline(np.linspace(0, _BIAS_KNOTS - 1, size))
    return result


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yields ranges of slices that each hold a bounded number of voxels."""
    step = max(1, _CHUNK_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
