"""ATLAS (Quinton et al. 2023): contrast-enhanced T1 MR of the liver with tumours.

Each image is another patient. Test images have no label maps, and are left where they are.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from autoliver.datasets.layouts import by_stem, image_files
from autoliver.io.header import split_ending
from autoliver.pipeline.conversion.kind import Found, Kind, Layer, without_image

_IMAGE, _LABEL = re.compile(r"im(\d+)"), re.compile(r"lb(\d+)")
_VALUES = {0: 0, 1: 1, 2: 2}


def _find(source: Path) -> Iterator[Found]:
    place = source / "train" if (source / "train").is_dir() else source
    images = _numbered(place / "imagesTr", _IMAGE)
    labels = _numbered(place / "labelsTr", _LABEL)
    for number, path in labels.items():
        if number not in images:
            raise without_image(
                f"im{number}",
                path,
                f"im{number}{split_ending(path.name)[1]} in {place / 'imagesTr'}",
            )
    for number, path in images.items():
        label = labels.get(number)
        yield Found(
            name=f"im{number}",
            images=(str(path),),
            layers=() if label is None else (Layer(path=str(label), values=_VALUES),),
            patient=f"im{number}",
        )


def _numbered(folder: Path, name: re.Pattern[str]) -> dict[str, Path]:
    stems = by_stem(image_files(folder), prefer=None).items()
    found = ((name.fullmatch(stem), path) for stem, path in stems)
    return {match[1]: path for match, path in found if match}


ATLAS = Kind(
    title="ATLAS",
    layout="train/imagesTr/im0.nii.gz",
    description={
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
    },
    find=_find,
)
