"""CirrMRI600+ (Jha et al. 2025): T1 and T2 MR of cirrhotic livers.

A patient has the same number in both sequences. The folders train, valid and test are put together:
folds are made of all patients, as a patient's sequences may lie in different ones of them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from autoliver.datasets.layouts import by_stem, image_files
from autoliver.io.header import split_ending
from autoliver.pipeline.conversion.kind import Found, Kind, folders_in, mask, without_image

_SEQUENCE = re.compile(r"cirrhosis_(T[12])_3D", re.IGNORECASE)
_IMAGES, _MASKS = "_images", "_masks"


def _find(source: Path) -> Iterator[Found]:
    for folder in (source, *folders_in(source, depth=3)):
        part, _, what = folder.name.rpartition("_")
        sequence = next(filter(None, map(_SEQUENCE.fullmatch, reversed(folder.parts))), None)
        if sequence is None or f"_{what}" not in (_IMAGES, _MASKS):
            continue
        images = by_stem(image_files(folder.with_name(part + _IMAGES)), prefer=None)
        masks = by_stem(image_files(folder.with_name(part + _MASKS)), prefer=None)
        for stem, path in masks.items():
            if stem not in images:
                place = folder.with_name(part + _IMAGES)
                wanted = f"{stem}{split_ending(path.name)[1]} in {place}"
                raise without_image(f"{stem}_{sequence[1].upper()}", path, wanted)
        if what == _IMAGES[1:]:
            for stem, path in images.items():
                yield Found(
                    name=f"{stem}_{sequence[1].upper()}",
                    images=(str(path),),
                    layers=(mask(masks[stem], 1),) if stem in masks else (),
                    patient=stem,
                )


CIRRMRI = Kind(
    title="CirrMRI600+",
    layout="Cirrhosis_T1_3D/train_images/1.nii.gz",
    description={"channel_names": {"0": "MRI"}, "labels": {"background": 0, "liver": 1}},
    find=_find,
)
