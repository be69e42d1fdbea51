"""LLD-MMRI: MR of liver lesions of seven classes in eight phases, each with a mask (MedSAM2).

An annotation file says the class of each patient's lesion by its number. It may list the names of
the numbers under `Category_info`; they are those of `_CLASSES` otherwise. The number in the file
names is not read: it is the class in some descriptions of the data, and an instance in others.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from autoliver.artifacts import read_json_by_hand
from autoliver.datasets.layouts import by_stem, image_files
from autoliver.errors import ArtifactError, DatasetError
from autoliver.io.header import split_ending
from autoliver.pipeline.conversion.kind import Found, Kind, mask, without_image
from autoliver.system import entries
from autoliver.values import first_few, natural

# Name of a class -> what its names in the annotation have, in the order of its numbers.
_CLASSES = {
    "hemangioma": r"ha?emangioma",
    "ICC": r"cholangiocarcinoma|^icc$",
    "abscess": r"abscess",
    "metastasis": r"metasta",
    "cyst": r"cyst",
    "FNH": r"nodular|^fnh$",
    "HCC": r"hepatocellular|^hcc$",
}
_ANNOTATION = "LLD_MMRI_Annotation*.json"
_RESTORE = "Put the file as it was published there."
_NAME = re.compile(r"(?P<case>(?P<patient>.+)_\d+_[^_]+)_0000")


class _Lesion(msgspec.Struct):
    category: int | str


class _Lesions(msgspec.Struct):
    lesion: dict[str, _Lesion]


class _Phase(msgspec.Struct):
    annotation: _Lesions


class _Annotation(msgspec.Struct):
    phases: dict[str, list[_Phase]] = msgspec.field(name="Annotation_info")
    numbers: dict[str, Any] = msgspec.field(name="Category_info", default_factory=dict)


def _find(source: Path) -> Iterator[Found]:
    images = _named(source / "images")
    if not images:
        return
    masks = by_stem(image_files(source / "labels"), prefer=None)
    for stem, path in masks.items():
        if stem not in images:
            raise without_image(stem, path, f"{stem}_0000{split_ending(path.name)[1]}")
    classes = _classes(source)
    for name, (path, patient) in images.items():
        label = masks.get(name)
        layers = () if label is None else (mask(label, _value(name, patient, classes)),)
        yield Found(name=name, images=(str(path),), layers=layers, patient=patient)


def _named(folder: Path) -> dict[str, tuple[Path, str]]:
    """Case -> its image and patient."""
    stems = by_stem(image_files(folder), prefer=None).items()
    found = ((path, _NAME.fullmatch(stem)) for stem, path in stems)
    return {match["case"]: (path, match["patient"]) for path, match in found if match}


def _classes(source: Path) -> dict[str, set[str]]:
    """Patient -> classes of the lesions, as names in `_CLASSES`."""
    files = [path for path in entries(source, _ANNOTATION) if path.is_file()]
    if not files:
        raise DatasetError(
            f"{source}: the classes of the lesions are missing: expected a file {_ANNOTATION}.",
            hint=_RESTORE,
        )
    where = files[-1]  # the one that ends in _full if there are two
    try:
        content = msgspec.convert(read_json_by_hand(where), _Annotation)
    except ArtifactError as error:
        raise DatasetError(error.problem, hint=error.hint or _RESTORE) from None
    except msgspec.ValidationError as error:
        raise DatasetError(
            f"{where}: expected the annotation of LLD-MMRI, patient by patient: {error}.",
            hint=_RESTORE,
        ) from None
    stated = {number: name for name, number in content.numbers.items() if isinstance(number, int)}
    numbers = stated or dict(enumerate(_CLASSES))
    return {
        patient: {
            _class(f"{where}: {patient}", lesion.category, numbers)
            for phase in phases
            for lesion in phase.annotation.lesion.values()
        }
        for patient, phases in content.phases.items()
    }


def _class(where: str, category: int | str, numbers: Mapping[int, str]) -> str:
    """The name in `_CLASSES` of a category, which may be a number, its digits or a name."""
    number = natural(category)
    text = str(category) if number is None else numbers.get(number, "")
    words = " ".join(re.findall(r"[a-z]+", text.casefold()))
    found = [name for name, pattern in _CLASSES.items() if re.search(pattern, words)]
    if len(found) != 1:
        known = ", ".join(f"{key} ({name})" for key, name in numbers.items())
        raise DatasetError(
            f"{where}: the category {category!r} is no known class; expected one of {known}.",
            hint="Correct the file, or leave the patient's images and masks out of the folder.",
        )
    return found[0]


def _value(case: str, patient: str, classes: Mapping[str, set[str]]) -> int:
    """Value of the class of a case's lesions."""
    alike = [name for name in classes if _plain(name) == _plain(patient)]
    found = classes.get(patient, classes[alike[0]] if len(alike) == 1 else set())
    if len(found) == 1:
        return 1 + list(_CLASSES).index(next(iter(found)))
    if found:
        raise DatasetError(
            f"{case}: the lesions of patient {patient} have the classes "
            f"{first_few(sorted(found), len(found))}; one file with all lesions needs one class.",
            hint="Leave the patient's images and masks out of the folder.",
        )
    raise DatasetError(
        f"{case}: the annotation says no class of the lesion of patient {patient}.",
        hint="Complete the annotation file, or leave the patient's images and masks out of the "
        "folder.",
    )


def _plain(patient: str) -> str:
    """A patient's name without the dashes that names of files and of the annotation differ in."""
    return re.sub(r"[-\s]", "", patient).casefold()


LLD_MMRI = Kind(
    title="LLD-MMRI",
    layout="images/MR12345_0_C+A_0000.nii.gz",
    description={
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, **{name: 1 + n for n, name in enumerate(_CLASSES)}},
        "lesion_class_names": list(_CLASSES),
    },
    find=_find,
)
