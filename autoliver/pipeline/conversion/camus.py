"""CAMUS (Leclerc et al. 2019): ultrasound of the heart, two views at two instants per patient."""

import re
from collections.abc import Iterator
from pathlib import Path

from autoliver.datasets.layouts import by_stem, image_files
from autoliver.errors import DatasetError
from autoliver.io.header import split_ending
from autoliver.pipeline.conversion.kind import Found, Kind, folders_in

# Sequences of frames, and their label maps, have other names and are left out.
_FRAME = re.compile(r"(patient\d+)_(?:2CH|4CH)_(?:ED|ES)", re.IGNORECASE)
_LABEL = "_gt"


def _find(source: Path) -> Iterator[Found]:
    for folder in folders_in(source):
        files = [path for path in image_files(folder) if _FRAME.match(path.name)]
        frames = by_stem(_frames(files), prefer=None)
        for stem, path in frames.items():
            name = stem.removesuffix(_LABEL)
            if name not in frames:
                raise DatasetError(
                    f"{name}: {path} is a label map without an image.",
                    hint=f"Put the image beside it, as {name}{split_ending(path.name)[1]}.",
                )
            if name == stem:
                label = frames.get(name + _LABEL)
                yield Found(
                    name=name,
                    images=(str(path),),
                    label=None if label is None else str(label),
                    patient=name.partition("_")[0].lower(),
                    values={value: value for value in range(4)},
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
