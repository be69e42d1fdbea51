"""LiverHccSeg (Gross et al. 2023): MR of liver and HCC in four phases, drawn by two raters.

Masks are drawn on the arterial phase, one file for the liver and one for each tumour. The other
phases are left out: they have no masks of their own.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from autoliver.datasets.layouts import by_stem, image_files
from autoliver.errors import DatasetError
from autoliver.pipeline.conversion.kind import Found, Kind, Layer, folders_in, mask
from autoliver.values import first_few

_IMAGE = "art"
_MASK = re.compile(r"rater[12]_(?:liver|tumou?r\d*)")


def _find(source: Path, *, rater: int) -> Iterator[Found]:
    for folder in folders_in(source):
        files = by_stem(image_files(folder), prefer=None)
        if _IMAGE not in files and not any(map(_MASK.fullmatch, files)):
            continue
        name = f"{folder.parent.name}_{folder.name}"
        if _IMAGE not in files:
            raise DatasetError(
                f"{name}: the arterial image is missing, on which the masks are drawn: expected "
                f"{folder / 'art.nii.gz'}, found {first_few(sorted(files), 5)}.",
                hint="Add the file, or move the case out of the folder.",
            )
        yield Found(
            name=name,
            images=(str(files[_IMAGE]),),
            layers=tuple(_layers(name, folder, files, rater)),
            patient=folder.parent.name,
        )


def _layers(case: str, folder: Path, files: dict[str, Path], rater: int) -> Iterator[Layer]:
    """Yields the masks of a rater, the liver first."""
    tumours = [name for name in files if re.fullmatch(rf"rater{rater}_tumou?r\d*", name)]
    liver = files.get(f"rater{rater}_liver")
    if liver is not None:
        yield mask(liver, 1)
    elif tumours:
        raise DatasetError(
            f"{case}: rater {rater} has drawn {first_few(sorted(tumours), 3)}, but no liver: "
            f"expected {folder / f'rater{rater}_liver.nii.gz'}.",
            hint="Add the file, or move the case out of the folder.",
        )
    yield from (mask(files[name], 2) for name in sorted(tumours))


_RATERS = {rater: partial(_find, rater=rater) for rater in (1, 2)}

LIVERHCCSEG = Kind(
    title="LiverHccSeg",
    layout="TCGA-BC-4073/1999-12-30/art.nii.gz",
    description={
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
    },
    find=_RATERS[1],
    raters=_RATERS,
)
