"""MCT-LTDiag: CT of liver tumours of five classes in four phases, with a mask of one phase.

Masks are drawn on the portal venous phase (PVP). The other phases are not aligned with it as they
are published, so that they have no label map, and are left out.
"""

from collections.abc import Iterator
from pathlib import Path

from autoliver.datasets.layouts import by_stem, image_files
from autoliver.errors import DatasetError
from autoliver.pipeline.conversion.kind import Found, Kind, folders_in, mask, without_image
from autoliver.values import first_few, meant

# Folder -> class. Metastases are of breast (BCLM) and of colorectal cancer (CRLM).
_CLASSES = {"HCC": "HCC", "ICC": "ICC", "BCLM": "BCLM", "CRLM": "CRLM", "HH": "hemangioma"}
_IMAGE, _MASK = "pvp", "mask_pvp"


def _find(source: Path) -> Iterator[Found]:
    images, masks = _files(source / "volume"), _files(source / "mask")
    for (kind, case), files in masks.items():
        if _MASK in files and (kind, case) not in images:
            place = source / "volume" / kind / case
            raise without_image(f"{kind}_{case}", files[_MASK], f"PVP.nii.gz in {place}")
    for (kind, case), files in images.items():
        name = f"{kind}_{case}"
        if _IMAGE not in files:
            raise DatasetError(
                f"{name}: the PVP image is missing, on which the mask is drawn: expected "
                f"{source / 'volume' / kind / case / 'PVP.nii.gz'}, found "
                f"{first_few([path.name for path in files.values()], 5)}.",
                hint="Add the file, or move the case out of the folder.",
            )
        label = masks.get((kind, case), {}).get(_MASK)
        layers = () if label is None else (mask(label, _value(source, kind)),)
        yield Found(name=name, images=(str(files[_IMAGE]),), layers=layers, patient=name)


def _files(folder: Path) -> dict[tuple[str, str], dict[str, Path]]:
    """(Class, case) -> name of a file in small letters, without its ending -> file."""
    found = {}
    for place in folders_in(folder):
        files = by_stem(image_files(place), prefer=None)
        if place.parent.parent == folder and files:
            key = place.parent.name, place.name
            found[key] = {stem.casefold(): path for stem, path in files.items()}
    return found


def _value(source: Path, kind: str) -> int:
    known = [name.casefold() for name in _CLASSES]
    if kind.casefold() not in known:
        raise DatasetError(
            f"{source / 'volume' / kind}: {kind} is no known class of tumours; expected one of "
            f"{', '.join(_CLASSES)}.",
            hint=meant(kind, _CLASSES) or "Rename the folder, or move it out of the source.",
        )
    return 1 + known.index(kind.casefold())


MCT_LTDIAG = Kind(
    title="MCT-LTDiag",
    layout="volume/HCC/case1/PVP.nii.gz",
    description={
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: 1 + n for n, name in enumerate(_CLASSES.values())}},
        "lesion_class_names": list(_CLASSES.values()),
    },
    find=_find,
)
