"""BraTS: MR of brain tumours in four channels, in the file names of 2017 to 2021 and of 2023.

Label maps keep the values 1 (necrosis) and 2 (oedema). The enhancing tumour is 4 in the older files
and 3 in the newer ones, and 3 in the dataset. A value 4 in the newer files is another tissue.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from autoliver.datasets.layouts import by_stem, image_files
from autoliver.errors import DatasetError
from autoliver.io.header import split_ending
from autoliver.pipeline.conversion.kind import Found, Kind, Layer, folders_in
from autoliver.values import first_few

_CHANNELS = ("T1", "T1ce", "T2", "FLAIR")
# Separator -> ends of the names of the images in the order of the channels, and the values.
_NAMES = {"_": ("t1", "t1ce", "t2", "flair"), "-": ("t1n", "t1c", "t2w", "t2f")}
_VALUES = {"_": {0: 0, 1: 1, 2: 2, 4: 3}, "-": {0: 0, 1: 1, 2: 2, 3: 3}}
_LABEL = "seg"
_TIME_POINT = re.compile(r"(BraTS-.+)-\d{3}")


def _find(source: Path) -> Iterator[Found]:
    for folder in folders_in(source):
        for (name, sign), files in _cases(folder).items():
            yield _found(folder, name, sign, files)


def _cases(folder: Path) -> dict[tuple[str, str], dict[str, Path]]:
    """(Case, separator) -> ending of the name -> file."""
    cases: dict[tuple[str, str], dict[str, Path]] = {}
    for stem, path in by_stem(image_files(folder), prefer=None).items():
        for sign, names in _NAMES.items():
            name, _, what = stem.rpartition(sign)
            if name and what in (*names, _LABEL):
                cases.setdefault((name, sign), {})[what] = path
    return cases


def _found(folder: Path, name: str, sign: str, files: Mapping[str, Path]) -> Found:
    for channel, what in zip(_CHANNELS, _NAMES[sign], strict=True):
        if what not in files:
            one = next(iter(files.values()))
            wanted = folder / f"{name}{sign}{what}{split_ending(one.name)[1]}"
            have = first_few([path.name for path in files.values()], 5)
            raise DatasetError(
                f"{name}: the {channel} image is missing: expected {wanted}, found {have}.",
                hint="Add the file, or move the case out of the folder.",
            )
    label = files.get(_LABEL)
    visit = _TIME_POINT.fullmatch(name)
    return Found(
        name=name,
        images=tuple(str(files[what]) for what in _NAMES[sign]),
        layers=() if label is None else (Layer(path=str(label), values=_VALUES[sign]),),
        patient=visit[1] if visit else name,
    )


BRATS = Kind(
    title="BraTS",
    layout="BraTS20_Training_001/BraTS20_Training_001_t1ce.nii.gz (or "
    "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz)",
    description={
        "channel_names": {str(n): name for n, name in enumerate(_CHANNELS)},
        "labels": {
            "background": 0,
            "whole tumor": [1, 2, 3],
            "tumor core": [1, 3],
            "enhancing tumor": 3,
        },
        # Painted one over the other: oedema, necrosis in it, enhancing tumour in that.
        "regions_class_order": [2, 1, 3],
    },
    find=_find,
)
