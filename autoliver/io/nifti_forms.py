"""Where a NIfTI file lies: sform, qform and pixdim, read as they are and compared.

Which is used: where both forms are valid, what ITK (and so nnU-Net) takes, whose spacing is always
pixdim; where one is valid, that one with its own spacing; where there is none, pixdim alone.
"""

import gzip
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from autoliver.io.grids import compare_grids, geometry_from_xyz, orthonormal
from autoliver.io.header import Header, bad_numbers, numbers
from autoliver.io.nifti_header import first_bytes
from autoliver.io.volume import FLAT_SPACING, Geometry, NiftiForms

Array = npt.NDArray[np.float64]
Form = Literal["sform", "qform", "pixdim"]

_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LENGTHS = "lengths above zero, in mm"
# Offset and type of what `NiftiForms` holds, of NIfTI-1 and NIfTI-2.
_PLACES: dict[int, dict[str, tuple[int, str]]] = {
    348: {
        **{"pixdim": (76, "8f"), "units": (123, "B"), "codes": (252, "2h")},
        **{"quaternion": (256, "6f"), "sform": (280, "12f")},
    },
    540: {
        **{"pixdim": (104, "8d"), "units": (500, "i"), "codes": (344, "2i")},
        **{"quaternion": (352, "6d"), "sform": (400, "12d")},
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RawForms:
    """What a NIfTI header says of its place, and what is wrong with it.

    Attributes:
        header: nibabel's, nothing mended.
        forms: Its numbers.
        axes: How many of its dimensions are of space.
        grids: The forms that are valid -> the affine to LPS in mm, and the spacing it states.
        faults: Forms that are in use and not valid -> field, values and what was expected.
    """

    header: Any
    forms: NiftiForms
    axes: int
    grids: dict[Form, Array] = field(default_factory=dict)
    faults: dict[Form, tuple[str, str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """Where a file lies by its own numbers.

    Attributes:
        geometry: The grid; None where ITK's is to be taken.
        note: What is wrong with the numbers.
    """

    geometry: Geometry | None
    note: str


def read_forms(path: Path) -> RawForms | None:
    """Reads the forms of a NIfTI file; None where it is none, or damaged (others say how).

    Raises:
        DatasetError: A slope or an intercept is not finite.
    """
    import nibabel

    start = first_bytes(path)
    kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    size = next((n for n in kinds for order in "<>" if start[:4] == struct.pack(order + "i", n)), 0)
    magic = start[344:347] if size == 348 else start[4:7]
    if len(start) < size or magic not in (b"n+1", b"ni1", b"n+2", b"ni2"):
        return None
    header = kinds[size].from_fileobj(io.BytesIO(start), check=False)
    for name in ("scl_slope", "scl_inter"):
        if not np.isfinite(header[name]):
            raise bad_numbers(path, name, f"{float(header[name]):g}", "a finite number")
    forms = NiftiForms(
        qform_code=int(header["qform_code"]),
        sform_code=int(header["sform_code"]),
        pixdim=_floats(header["pixdim"]),
        quaternion=_floats(
            header[f"{part}"]
            for part in (
                *("quatern_b", "quatern_c", "quatern_d"),
                *("qoffset_x", "qoffset_y", "qoffset_z"),
            )
        ),
        sform=_floats(np.concatenate([header[f"srow_{axis}"] for axis in "xyz"])),
        units=int(header["xyzt_units"]),
    )
    raw = RawForms(header=header, forms=forms, axes=min(3, max(1, int(header["dim"][0]))))
    for find in (_sform, _qform, _pixdim):
        find(raw)
    return raw


def place(path: Path, raw: RawForms) -> Placed:
    """Decides which numbers of a NIfTI header are used.

    Raises:
        DatasetError: None of them can be.
    """
    forms, grids, faults = raw.forms, raw.grids, raw.faults
    used = [form for form in grids if form != "pixdim"]
    stated = [form for form in faults if form != "pixdim"]
    if not used and (stated or not grids):
        field_, found, expected = next(iter(faults.values()))
        raise bad_numbers(path, field_, found, expected)
    notes = list(dict.fromkeys(f"{what} is {found}" for what, found, _ in faults.values()))
    negative = [n < 0 for n in forms.pixdim[1 : raw.axes + 1]]
    if not used:
        if any(negative):
            return Placed(
                geometry=_geometry(raw, grids["pixdim"]),
                note=f"pixdim[1:{raw.axes + 1}] is {numbers(forms.pixdim[1 : raw.axes + 1])}: "
                "absolute values used, the direction of negative axes flipped",
            )
        return Placed(geometry=None, note="")
    if notes:
        form = used[0]
        spacing = numbers(np.linalg.norm(grids[form][:3, :3], axis=0))
        note = f"{'; '.join(notes)}: {form} used, spacing {spacing} mm (x, y, z)"
        return Placed(geometry=_geometry(raw, grids[form]), note=note)
    if used == ["qform"]:
        if any(negative):
            return Placed(
                geometry=_geometry(raw, grids["qform"]),
                note=f"pixdim[1:{raw.axes + 1}] is {numbers(forms.pixdim[1 : raw.axes + 1])}: "
                "absolute values used, the direction of negative axes flipped",
            )
        return Placed(geometry=None, note="")
    if used == ["sform"]:
        return _only_sform(raw)
    return Placed(geometry=None, note=_contradiction(raw))


def own_header(raw: RawForms, geometry: Geometry, note: str) -> Header | None:
    """The header by the file's own numbers; None where a voxel has several components."""
    kind = raw.header.get_data_dtype()
    if kind.fields is not None or kind.kind not in "iuf":
        return None
    scaled = raw.header["scl_slope"] not in (0, 1) or raw.header["scl_inter"] != 0
    dimensions = int(raw.header["dim"][0])
    return Header(
        geometry=geometry.replace(forms=kept_forms(raw, geometry)),
        channels=int(np.prod(raw.header["dim"][4 : dimensions + 1], dtype=int)),
        pixel_type=str(kind),
        integer=kind.kind in "iu" and not scaled,
        note=note,
        doubtful=True,
    )


def kept_forms(raw: RawForms, geometry: Geometry) -> NiftiForms | None:
    """The forms to write with what is made for a file; None where its geometry says it all."""
    forms, faults = raw.forms, raw.faults
    every = (*forms.pixdim, *forms.quaternion, *forms.sform)
    used = [form for form in raw.grids if form != "pixdim"]
    if faults or not used or not np.isfinite(every).all() or min(forms.pixdim[1:4]) <= 0:
        return None
    # What ITK writes: both forms alike, with code 1, in mm.
    alike = (
        all(not compare_grids(geometry, _geometry(raw, raw.grids[form])) for form in used)
        and len(used) == 2
    )
    if alike and forms.qform_code == forms.sform_code == 1 and forms.units & 7 in (0, 2):
        return None
    return forms


def write_forms(path: Path, forms: NiftiForms) -> None:
    """Writes forms into the header of a NIfTI-1 file that ITK wrote."""
    content = path.read_bytes()
    packed = content[:2] == b"\x1f\x8b"
    raw = bytearray(gzip.decompress(content) if packed else content)
    places = _PLACES[348]
    order = "<" if raw[:4] == struct.pack("<i", 348) else ">"
    # The first of pixdim is the qform's handedness; those after the third are not of space.
    values: dict[str, Sequence[float]] = {
        "pixdim": (*forms.pixdim[:4], *struct.unpack_from(order + "8f", raw, 76)[4:]),
        "units": (forms.units & 7 | raw[123] & 0x38,),
        "codes": (forms.qform_code, forms.sform_code),
        "quaternion": forms.quaternion,
        "sform": forms.sform,
    }
    for name, numbers_ in values.items():
        offset, kind = places[name]
        struct.pack_into(order + kind, raw, offset, *numbers_)
    path.write_bytes(gzip.compress(bytes(raw), 6, mtime=0) if packed else bytes(raw))


def _sform(raw: RawForms) -> None:
    if raw.forms.sform_code <= 0:
        return
    matrix = np.eye(4)
    matrix[:3] = np.array(raw.forms.sform).reshape(3, 4)
    for axis, row in zip("xyz", matrix, strict=False):
        if not np.isfinite(row).all():
            raw.faults["sform"] = (f"srow_{axis}", numbers(row), "finite numbers")
            return
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    whole = lengths[: raw.axes].all() and (raw.axes < 3 or _volume(matrix, lengths) > 1e-6)
    if not whole:
        rows = " ".join(numbers(row) for row in matrix[:3])
        raw.faults["sform"] = (
            "srow_x, srow_y, srow_z",
            rows,
            "three directions in space (this affine is not valid)",
        )
        return
    raw.grids["sform"] = _LPS @ _scaled(raw, matrix)


def _volume(matrix: Array, lengths: Array) -> float:
    return abs(float(np.linalg.det(matrix[:3, :3] / lengths)))


def _qform(raw: RawForms) -> None:
    forms = raw.forms
    if forms.qform_code <= 0:
        return
    if not np.isfinite(forms.quaternion).all():
        bad = "quatern_b, quatern_c, quatern_d, qoffset_x, qoffset_y, qoffset_z"
        raw.faults["qform"] = (bad, numbers(forms.quaternion), "finite numbers")
        return
    spacing = np.array(forms.pixdim[1:4])
    fault = _pixdim_fault(raw)
    if fault is not None:
        raw.faults["qform"] = fault
        return
    if (spacing[: raw.axes] < 0).any() and "sform" in raw.grids:
        found = numbers(forms.pixdim[1 : raw.axes + 1])
        raw.faults["qform"] = (f"pixdim[1:{raw.axes + 1}]", found, _LENGTHS)
        return
    b, c, d = forms.quaternion[:3]
    length = b * b + c * c + d * d
    a = np.sqrt(max(0.0, 1.0 - length))
    if length > 1:
        b, c, d = (value / np.sqrt(length) for value in (b, c, d))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    spacing[raw.axes :] = np.where(spacing[raw.axes :] > 0, spacing[raw.axes :], 1.0)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * spacing * [1, 1, -1 if forms.pixdim[0] < 0 else 1]
    matrix[:3, 3] = forms.quaternion[3:]
    raw.grids["qform"] = _LPS @ _scaled(raw, matrix)


def _pixdim(raw: RawForms) -> None:
    fault = _pixdim_fault(raw)
    if fault is not None:
        raw.faults["pixdim"] = fault
        return
    spacing = np.array(raw.forms.pixdim[1:4])
    spacing[raw.axes :] = 1.0
    # As ITK reads files without forms: at the origin, along the axes of LPS.
    raw.grids["pixdim"] = _scaled(raw, np.diag([*spacing, 1.0]))


def _pixdim_fault(raw: RawForms) -> tuple[str, str, str] | None:
    spacing = np.array(raw.forms.pixdim[1 : raw.axes + 1])
    if np.isfinite(spacing).all() and spacing.all():
        return None
    return f"pixdim[1:{raw.axes + 1}]", numbers(spacing), _LENGTHS


def _scaled(raw: RawForms, matrix: Array) -> Array:
    scaled = matrix.copy()
    scaled[:3] *= _MM.get(raw.forms.units & 7, 1.0)
    return scaled


def _only_sform(raw: RawForms) -> Placed:
    affine = raw.grids["sform"]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)[: raw.axes]
    pixdim = np.array(raw.forms.pixdim[1 : raw.axes + 1]) * _MM.get(raw.forms.units & 7, 1.0)
    if np.abs(1 - pixdim / lengths).max() <= 1e-3:
        return Placed(geometry=None, note="")
    note = (
        f"sform and pixdim contradict each other: spacing by sform {numbers(lengths)}, by pixdim "
        f"{numbers(pixdim)} mm (x, y, z); that of the sform used, as there is no qform"
    )
    return Placed(geometry=_geometry(raw, affine), note=note)


def _contradiction(raw: RawForms) -> str:
    one, other = (_geometry(raw, raw.grids[form]) for form in ("sform", "qform"))
    found = []
    for difference in compare_grids(one, other):
        if not difference.rounding:
            values = difference.values()
            order = " (z, y, x)" if difference.what == "spacing" else ""
            found.append(f"{difference.what}{order} {values[0]} and {values[1]}")
    if not found:
        return ""
    codes = f"sform (code {raw.forms.sform_code}) and qform (code {raw.forms.qform_code})"
    return f"{codes} contradict each other: {'; '.join(found)}"


def _geometry(raw: RawForms, affine: Array) -> Geometry:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    spacing[spacing == 0] = 1.0
    matrix = affine[:3, :3] / spacing
    matrix[:, ~matrix.any(axis=0)] = np.eye(3)[:, ~matrix.any(axis=0)]
    direction = orthonormal(matrix)[0]
    if raw.axes == 2:
        spacing[2] = FLAT_SPACING * max(spacing[:2])
    size = (*(int(n) for n in raw.header["dim"][1 : raw.axes + 1]), 1, 1)
    return geometry_from_xyz(size, spacing.tolist(), affine[:3, 3].tolist(), direction)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
