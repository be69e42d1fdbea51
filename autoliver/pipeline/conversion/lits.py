"""LiTS (Bilic et al. 2023): CT of livers with tumours, in two batches, and test volumes.

Label maps belong to their volumes voxel by voxel. The headers of some say another place or another
direction; then that of the volume holds, if the label map fits the intensities so.
"""

import re
from collections.abc import Iterator
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

_IMAGE, _LABEL = re.compile(r"((?:test-)?volume)-(\d+)"), re.compile(r"segmentation-(\d+)")
_VALUES = {0: 0, 1: 1, 2: 2}


def _find(source: Path) -> Iterator[Found]:
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for folder in (source, *folders_in(source)):
        for stem, path in by_stem(image_files(folder), prefer=None).items():
            if match := _IMAGE.fullmatch(stem):
                there_twice(images, f"{match[1]}-{match[2]}", path)
            elif match := _LABEL.fullmatch(stem):
                there_twice(labels, f"volume-{match[1]}", path)
    for name, path in labels.items():
        if name not in images:
            raise without_image(name, path, f"{name}{split_ending(path.name)[1]}")
    for name, path in images.items():
        label = labels.get(name)
        yield Found(
            name=name,
            images=(str(path),),
            layers=() if label is None else (Layer(path=str(label), values=_VALUES),),
            patient=name,
        )


LITS = Kind(
    title="LiTS",
    layout="volume-0.nii and segmentation-0.nii, in one or several folders",
    description={
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
    },
    find=_find,
    by_voxel=True,
)
