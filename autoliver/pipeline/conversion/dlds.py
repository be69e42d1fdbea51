"""DLDS, the Duke Liver Dataset (Macdonald et al. 2023): MR of livers, of 17 types of series.

A series lies in PATIENT/SERIES/images and its mask of the liver in PATIENT/SERIES/masks, a DICOM
file for each slice. Only some series have masks.
"""

from collections.abc import Iterator
from pathlib import Path

from autoliver.errors import DatasetError
from autoliver.io.slices import series_files, slice_files
from autoliver.pipeline.conversion.kind import Found, Kind, folders_in, mask

_IMAGES, _MASKS = "images", "masks"
_DEPTH = 3  # of Segmentation/0001/2 below the source


def _find(source: Path) -> Iterator[Found]:
    for folder in folders_in(source, depth=_DEPTH):
        images, masks = folder / _IMAGES, folder / _MASKS
        if not images.is_dir() and not masks.is_dir():
            continue
        name = f"{folder.parent.name}_{folder.name}"
        drawn = bool(slice_files(masks))
        if not series_files(images):
            if drawn:
                raise DatasetError(
                    f"{name}: {masks} is a label map without an image: expected DICOM files in "
                    f"{images}.",
                    hint="Add the files, or move the case out of the folder.",
                )
            continue
        yield Found(
            name=name,
            images=(str(images),),
            layers=(mask(masks, 1),) if drawn else (),
            patient=folder.parent.name,
        )


DLDS = Kind(
    title="DLDS (Duke Liver Dataset)",
    layout="Segmentation/0001/2/images/0001.dicom with Segmentation/0001/2/masks",
    description={"channel_names": {"0": "MRI"}, "labels": {"background": 0, "liver": 1}},
    find=_find,
)
