"""What shards of `pseudolabel` keep of each case, besides its label map and its picture."""

import functools
from pathlib import Path
from typing import Any

import msgspec

from autoliver.datasets.cases import Case
from autoliver.io.detached import file_states
from autoliver.pipeline.pseudo.labelling import Judged, Labelling
from autoliver.shards import KeptStage

# A case, and the file of its probabilities.
Item = tuple[Case, Path]


def label_one(item: Item, *, work: Labelling) -> Judged:
    """Labels a case (`Labelling.label`)."""
    return work.label(*item)


def labelling_stage(output: Path) -> KeptStage[Item, Judged]:
    """Returns how the judgements of cases are kept, whose label maps are in a folder."""
    return KeptStage(
        name="judged",
        case=_name,
        plain=msgspec.to_builtins,
        result=_to_judged,
        state=_files,
        there=functools.partial(_are_there, output=output),
    )


def files_of(output: Path, case: str) -> tuple[Path, Path]:
    """The label map and the picture of a case."""
    return output / f"labelsTr/{case}.nii.gz", output / f"pictures/{case}.png"


def _name(item: Item) -> str:
    return item[0].name


def _to_judged(plain: Any) -> Judged:
    return msgspec.convert(plain, Judged)


def _files(item: Item) -> list[tuple[str, int, int]]:
    case, probabilities = item
    paths = [Path(path) for path in (*case.images, case.label) if path is not None]
    return file_states([*paths, probabilities])


def _are_there(item: Item, judged: Judged, *, output: Path) -> bool:
    label, picture = files_of(output, item[0].name)
    return picture.is_file() and (bool(judged.refused) or label.is_file())
