"""Names by which people know a dataset: Dataset003_LiTS is also LiTS, 3, 003 and Dataset003."""

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from autoliver.errors import DatasetError, OptionError

_NUMBERED = re.compile(r"(dataset|task)_?0*(\d+)[_-](.+)")
# Folders of a dataset, in small letters; what lies in them is training data or a reference.
_OF_A_DATASET = ("imagestr", "labelstr", "imagests", "labelsts", "images", "labels")
_NUMBER = re.compile(r"(dataset|task)?_?0*(\d+)")


def names_of(folder: str) -> set[str]:
    """Returns all names, in small letters, that a folder of nnU-Net or of the Decathlon has.

    They are its own, the part behind the number, the number without leading zeros, and the number
    behind its word; `known_as` returns the same for a number with zeros.
    """
    match = _NUMBERED.fullmatch(folder.casefold())
    if match is None:
        return {folder.casefold()}
    word, number, rest = match.groups()
    return {folder.casefold(), rest, number, f"{word}{number}"}


def known_as(typed: str, folder: str) -> bool:
    """Whether a folder may be meant by a name: one of its own, in any case and with any zeros."""
    match = _NUMBER.fullmatch(typed.casefold())
    plain = f"{match[1] or ''}{match[2]}" if match else typed.casefold()
    return bool({typed.casefold(), plain} & names_of(folder))


def alike(one: str, other: str) -> bool:
    """Whether one of two folders may be meant by the name of the other."""
    return known_as(one, other) or known_as(other, one)


def nearest(typed: str, known: Iterable[str]) -> str:
    """Returns the name most like what was typed, or "" if none is alike; numbers are never alike.

    Args:
        typed: As the user wrote it.
        known: Names of folders, or FOLDER/RUN; each counts under all names of its folder.
    """
    if _NUMBER.fullmatch(typed.casefold()):
        return ""
    forms: dict[str, str] = {}
    for full in known:
        folder, slash, run = full.partition("/")
        for name in names_of(folder):
            forms.setdefault(name + slash + run.casefold(), full)
    near = difflib.get_close_matches(typed.casefold(), forms, n=1)
    return forms[near[0]] if near else ""


def near_path(typed: str, fits: Callable[[Path], bool]) -> str:
    """Returns the path of the same parent folder whose name is most like one that does not exist.

    Args:
        typed: The path as the user wrote it.
        fits: Whether a path is of the kind that is looked for.

    Returns:
        The path, written like the one that was typed; "" if there is none.
    """
    wanted = Path(typed)
    siblings = {path.name: path for path in _siblings(wanted)}
    while siblings:
        same = [name for name in siblings if known_as(wanted.name, name)]
        name = same[0] if same else nearest(wanted.name, siblings)
        if not name:
            return ""
        path = siblings.pop(name)
        if fits(path):
            return str(path)
    return ""


def beside(typed: str) -> Path | None:
    """Returns the dataset's folder that a number or short name means in the folder it is given in.

    In `/data`, `102` is Dataset102_AbdomenMR, and so is `/data/102` anywhere.

    Raises:
        DatasetError: Several folders are known by it.
    """
    wanted = Path(typed)
    found = [p for p in _siblings(wanted) if known_as(wanted.name, p.name) and is_dataset(p)]
    if len(found) > 1:
        raise DatasetError(
            f"'{typed}' may mean {' or '.join(map(str, found))}.", hint="Give the full name."
        )
    return found[0] if found else None


def is_dataset(path: Path) -> bool:
    """Whether a path looks like the folder of a dataset."""
    return any((path / name).is_dir() for name in ("imagesTr", "images"))


def dataset_of(folder: Path) -> Path | None:
    """The dataset whose folder of images or labels this is; None if it is none of these."""
    place = folder.resolve()
    dataset = place.parent
    if place.name.lower() not in _OF_A_DATASET:
        return None
    return dataset if is_dataset(dataset) or (dataset / "dataset.json").exists() else None


def dataset_around(folder: Path) -> Path | None:
    """The dataset whose folder of images or labels this is, or lies in; None if there is none."""
    place = folder.resolve()
    return next((found for each in (place, *place.parents) if (found := dataset_of(each))), None)


def refuse_inside_dataset(output: Path) -> None:
    """Refuses a folder of images or labels of a dataset for a new folder, and what lies in one.

    What is written there could be taken for a case.

    Raises:
        OptionError: The output is such a place.
    """
    dataset = dataset_around(output)
    if dataset is not None:
        raise OptionError(
            f"{output}: it lies among the images or labels of the dataset {dataset}.",
            hint=f"Choose a folder elsewhere, e.g. {dataset.parent / output.name}",
        )


def _siblings(path: Path) -> list[Path]:
    try:
        return sorted(each for each in path.parent.iterdir() if not each.name.startswith("."))
    except OSError:  # there is no such folder, or it cannot be read
        return []
