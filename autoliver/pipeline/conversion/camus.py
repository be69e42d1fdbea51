"""CAMUS (Leclerc et al. 2019): ultrasound of the heart, two views at two instants per patient."""

import re
from collections.abc import Iterator
from pathlib import Path

from autoliver.datasets.layouts import by_stem, image_files
from autoliver.io.header import split_ending
from autoliver.pipeline.conversion.kind import Found, Kind, Layer, folders_in, without_image

# Sequences of frames, and their label maps, have other names and are left out.
_FRAME = re.compile(r"(patient\d+)_(?:2CH|4CH)_(?:ED|ES)", re.IGNORECASE)
_LABEL = "_gt"
_VALUES = {value: value for value in range(4)}


def _find(source: Path) -> Iterator[Found]:
    for folder in folders_in(source):
        files = [path for path in image_files(folder) if _FRAME.match(path.name)]
        frames = by_stem(_frames(files), prefer=None)
        for stem, path in frames.items():
            name = stem.removesuffix(_LABEL)
            if name not in frames:
                wanted = f"{name}{split_ending(path.name)[1]} beside it"
                raise without_image(name, path, wanted)
            if name == stem:
                label = frames.get(name + _LABEL)
                yield Found(
                    name=name,
                    images=(str(path),),
                    layers=() if label is None else (Layer(path=str(label), values=_VALUES),),
                    patient=name.partition("_")[0].lower(),
                )


def _frames(files: list[Path]) -> list[Path]:
    stems = ((path, split_ending(path.name)[0].removesuffix(_LABEL)) for path in files)
    return [path for path, stem in stems if _FRAME.fullmatch(stem)]


CAMUS = Kind(
    title="CAMUS",
    layout="patient0001/patient0001_2CH_ED.nii.gz",
    description={
        "channel_names": {"0": "ultrasound"},
        "labels": {"background": 0, "endocardium": 1, "myocardium": 2, "atrium": 3},
    },
    find=_find,
)
