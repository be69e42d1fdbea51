"""BTCV (Landman et al. 2015), abdominal CT with thirteen organs, and AMOS, CT and MR with fifteen.

AMOS (Ji et al. 2022) numbers its CT to 500 and its MR from there on.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from autoliver.datasets.layouts import by_stem, image_files
from autoliver.io.header import split_ending
from autoliver.pipeline.conversion.kind import (
    Found,
    Kind,
    Layer,
    folders_in,
    there_twice,
    without_image,
)

_ORGANS = ("spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach")
_BTCV = (
    *(*_ORGANS, "aorta", "inferior_vena_cava", "portal_and_splenic_vein", "pancreas"),
    *("right_adrenal_gland", "left_adrenal_gland"),
)
_AMOS = (
    *(*_ORGANS, "aorta", "inferior_vena_cava", "pancreas", "right_adrenal_gland"),
    *("left_adrenal_gland", "duodenum", "bladder", "prostate_or_uterus"),
)
_LAST_CT = 500


def _pairs(
    source: Path, image: re.Pattern[str], label: re.Pattern[str]
) -> Iterator[tuple[str, Path, Path | None]]:
    """Yields number, image and label map, of names that give a number."""
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for folder in folders_in(source, depth=3):
        for stem, path in by_stem(image_files(folder), prefer=None).items():
            where = f"{folder.name}/{stem}"
            if match := image.fullmatch(where):
                there_twice(images, match[1], path)
            elif match := label.fullmatch(where):
                there_twice(labels, match[1], path)
    for number, path in labels.items():
        if number not in images:
            wanted = f"of the number {number}, as for other cases"
            raise without_image(split_ending(path.name)[0], path, wanted)
    for number, path in images.items():
        yield number, path, labels.get(number)


def _layers(label: Path | None, names: tuple[str, ...]) -> tuple[Layer, ...]:
    if label is None:
        return ()
    return (Layer(path=str(label), values={value: value for value in range(len(names) + 1)}),)


def _find_btcv(source: Path) -> Iterator[Found]:
    pattern = (re.compile(r"img/img(\d+)"), re.compile(r"label/label(\d+)"))
    for number, image, label in _pairs(source, *pattern):
        name = f"img{number}"
        layers = _layers(label, _BTCV)
        yield Found(name=name, images=(str(image),), layers=layers, patient=name)


def _find_amos(source: Path, *, only: str = "") -> Iterator[Found]:
    pattern = (
        re.compile(r"images(?:Tr|Va|Ts)/amos_(\d+)"),
        re.compile(r"labels(?:Tr|Va|Ts)/amos_(\d+)"),
    )
    for number, image, label in _pairs(source, *pattern):
        name, modality = f"amos_{number}", "CT" if int(number) <= _LAST_CT else "MR"
        if only in ("", modality):
            yield Found(
                name=name,
                images=(str(image),),
                layers=_layers(label, _AMOS),
                patient=name,
                modality="" if only else modality,
            )


def _values(names: tuple[str, ...]) -> dict[str, int]:
    return {name: value for value, name in enumerate(("background", *names))}


BTCV = Kind(
    title="BTCV",
    layout="img/img0001.nii.gz with label/label0001.nii.gz",
    description={"channel_names": {"0": "CT"}, "labels": _values(_BTCV)},
    find=_find_btcv,
)


def _amos(title: str, channel: str, only: str) -> Kind:
    return Kind(
        title=title,
        layout="imagesTr/amos_0001.nii.gz with labelsTr/amos_0001.nii.gz",
        description={"channel_names": {"0": channel}, "labels": _values(_AMOS)},
        find=partial(_find_amos, only=only),
    )


AMOS = Kind(
    title="AMOS",
    layout="imagesTr/amos_0001.nii.gz with labelsTr/amos_0001.nii.gz, likewise imagesVa",
    description={"channel_names": {"0": "CT or MRI"}, "labels": _values(_AMOS)},
    find=_find_amos,
    parts={"ct": _amos("AMOS CT", "CT", "CT"), "mr": _amos("AMOS MR", "MRI", "MR")},
)
