"""Reads and checks dataset.json files of nnU-Net v2 and of the Medical Segmentation Decathlon."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from autoliver.artifacts import Record, read_json_by_hand
from autoliver.datasets.regions import painting_problem
from autoliver.errors import ArtifactError, DatasetError
from autoliver.io.dicom.codes import SegmentCodes, code_problem
from autoliver.io.dicom.folder import modality_of_folder
from autoliver.io.header import ENDINGS
from autoliver.io.paths import check_printable
from autoliver.values import meant, natural, shortened

# Keys of dataset.json that are read, and (below) keys that are known and ignored.
_KEYS = (
    *("channel_names", "labels", "file_ending", "numTraining", "regions_class_order", "dataset"),
    *("modality", "training", "patients", "annotated", "origin", "lesion_classes", "sources"),
    *("lesion_class_names", "codes"),
)
_HARMLESS = (
    *("name", "description", "reference", "licence", "license", "release", "tensorImageSize"),
    *("numTest", "test", "converted_by", "citation", "overwrite_image_reader_writer"),
)
# Tables with an entry per case; they are read without conversion.
_BY_CASE = ("patients", "origin", "annotated", "lesion_classes", "sources")
_MR_WORDS = re.compile(
    r"mri?|mrcp|t[12].*|flair|adc|dwi|pd|swi|stir|spir|spair|dixon|dce.*|vibe|lava|hbp|"
    r"(in|out|opp|opposed)_?phase"
)
# Modality -> name of the channel in a description that is made.
CHANNEL_OF = {"CT": "CT", "MR": "MRI", "other": "image"}
_MEND = "Correct the file in a text editor."
# The largest value of a label: above, those of label maps in float32 are not exact.
MOST_VALUE = 2**24 - 1


class LabelValues(Record, frozen=True, kw_only=True):
    """The fields of `autoliver.datasets.cases.Labels`."""

    values: dict[str, tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None
    ignore: int | None = None


class Description(Record, frozen=True, kw_only=True):
    """The content of a dataset.json.

    Attributes:
        where: The path of the dataset.json, for messages.
        layout: The format of the keys; "nnunet" for a plain pair of folders as well.
        channel_names: The name of each channel.
        labels: Names and values of the labels; None if there is no dataset.json.
        file_ending: The ending of the images; None if it is not given.
        num_training: The number of training cases; None if it is not given.
        table: The `dataset` table: case -> images and label; empty if it is not given.
        training: The list of training files of a Decathlon dataset; otherwise empty.
        patients: Case -> patient.
        origin: Case -> how the image was produced.
        annotated: Case -> label -> state of its annotation.
        lesion_classes: Case -> lesion -> class of the lesion.
        lesion_class_names: The classes that lesions may have; None if they are not listed.
        sources: Case -> the collection that it comes from.
        codes: Label -> its codes for DICOM, where its name does not say them.
        modality: The modality of the dataset, or case -> modality.
        painting: What is wrong with `regions_class_order` in a trained model; otherwise empty.
    """

    where: Path
    layout: Literal["nnunet", "msd"] = "nnunet"
    channel_names: tuple[str, ...]
    labels: LabelValues | None = None
    file_ending: str | None = None
    num_training: int | None = None
    table: dict[str, Any] = msgspec.field(default_factory=dict)
    training: list[Any] = msgspec.field(default_factory=list)
    patients: dict[str, str | int] = msgspec.field(default_factory=dict)
    origin: dict[str, str] = msgspec.field(default_factory=dict)
    annotated: dict[str, dict[str, str]] = msgspec.field(default_factory=dict)
    lesion_classes: dict[str, dict[str, str]] = msgspec.field(default_factory=dict)
    lesion_class_names: tuple[str, ...] | None = None
    sources: dict[str, str] = msgspec.field(default_factory=dict)
    codes: dict[str, SegmentCodes] = msgspec.field(default_factory=dict)
    modality: str | dict[str, str] = msgspec.field(default_factory=dict)
    painting: str = ""


def read_description(folder: Path, *, trained: bool = False) -> Description:
    """Reads a folder's dataset.json.

    Args:
        folder: Where it lies.
        trained: It belongs to a trained model: an order of regions that does not give them back is
            described in `painting` and kept.

    Raises:
        DatasetError: A key is missing or misspelt, or its value is invalid.
    """
    where = folder / "dataset.json"
    raw = read_raw(where)
    decathlon = "channel_names" not in raw
    modality = raw.get("modality")
    labels = _labels(where, raw)
    fields: dict[str, Any] = {
        "where": where,
        "painting": _painting(where, labels, trained=trained),
        "layout": "msd" if decathlon else "nnunet",
        "channel_names": _channel_names(where, raw),
        "labels": labels,
        "file_ending": _file_ending(where, raw),
        "num_training": raw.get("numTraining"),
        "table": raw.get("dataset", {}),
        "training": raw.get("training", []) if decathlon else [],
        "modality": {} if decathlon or modality is None else modality,
        "lesion_class_names": raw.get("lesion_class_names"),
        "codes": raw.get("codes", {}),
        **{key: raw[key] for key in _BY_CASE if key in raw},
    }
    for key, names in (("labels", labels.values), ("channel_names", fields["channel_names"])):
        for name in names:
            check_printable(f"{where}: {key}: {name}")
    try:
        found = msgspec.convert(fields, Description)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        raise DatasetError(
            f"{where}: {place.strip('`').removeprefix('$.')}: {what}.",
            hint=_MEND,
        ) from None
    _check_classes(where, found.lesion_class_names or (), labels)
    _check_codes(where, found.codes, labels)
    return found


def _check_codes(where: Path, codes: Mapping[str, SegmentCodes], labels: LabelValues) -> None:
    """Refuses codes of what is no label, and codes that DICOM cannot hold."""
    for name, given in codes.items():
        if name not in _foreground(labels.values):
            raise DatasetError(
                f"{where}: codes: there is no label '{name}'; the labels are "
                f"{', '.join(_foreground(labels.values))}.",
                hint=meant(name, _foreground(labels.values)) or "Give codes for labels alone.",
            )
        if problem := code_problem(given):
            raise DatasetError(
                f"{where}: codes: {name}: {problem}.",
                hint='Write e.g. "type": ["10200004", "SCT", "Liver"].',
            )


def _check_classes(where: Path, names: Sequence[str], labels: LabelValues) -> None:
    """Refuses names of classes of which some are labels and others are not."""
    _check_names(where, "lesion_class_names", names)
    lacking = [name for name in names if name not in labels.values]
    if 0 < len(lacking) < len(names):
        raise DatasetError(
            f"{where}: lesion_class_names: there is no label '{lacking[0]}', but other classes are "
            f"labels; the labels are {', '.join(labels.values)}.",
            hint=meant(lacking[0], labels.values) or "List labels alone, or add it to the labels.",
        )


def guess_description(folder: Path) -> Description:
    """Guesses the description of a plain pair of folders without dataset.json, but not its labels.

    The channel is named after the modality in the folder's name, or else in the header of DICOM.
    What the images look like is considered where they are read (`autoliver.planning.modality`).
    """
    kind = modality_in(folder.name)
    if kind == "other":
        kind = modality_of([modality_of_folder(folder / "images")])
    name = CHANNEL_OF[kind]
    return Description(where=folder / "dataset.json", channel_names=(name,))


def modality_in(name: str) -> Literal["CT", "MR", "other"]:
    """Recognises a modality in the name of a folder, such as LiverMR or T2_liver."""
    return modality_of(re.split(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]", name))


def modality_of(names: Iterable[str]) -> Literal["CT", "MR", "other"]:
    """Recognises the modality in the names of channels or of a modality."""
    words = [word for name in names for word in re.split(r"[^a-z0-9]+", name.lower())]
    if "ct" in words:
        return "CT"
    return "MR" if any(_MR_WORDS.fullmatch(word) for word in words) else "other"


def missing_description(folder: Path) -> DatasetError:
    """Returns the error for a folder that has none of the known layouts."""
    return DatasetError(
        f"{folder}: there is no dataset.json, nor a pair of folders images/ and labels/.",
        hint='Write one, e.g. {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": '
        '1}, "numTraining": 20, "file_ending": ".nii.gz"}.',
    )


def read_raw(where: Path) -> dict[str, Any]:
    """Reads the keys and values of a dataset.json without converting them.

    Raises:
        DatasetError: The file is missing or not a JSON object, or a key is misspelt.
    """
    try:
        raw = read_json_by_hand(where)
    except ArtifactError as error:
        raise DatasetError(error.problem, hint=error.hint or _MEND) from None
    if not isinstance(raw, dict):
        raise DatasetError(
            f"{where}: expected an object {{...}}, found {type(raw).__name__}.", hint=_MEND
        )
    _refuse_planned(where, raw)
    _check_keys(where, raw)
    return raw


def _refuse_planned(where: Path, raw: Mapping[str, Any]) -> None:
    """Refuses the record that a workspace keeps of a dataset under the same name."""
    if raw.get("kind") == "dataset" and "schema" in raw:
        place = raw.get("folder")
        raise DatasetError(
            f"{where.parent}: this is a folder of a workspace, with what was made of the dataset; "
            f"its images and labels are in {place}.",
            hint=f"Give {place} instead.",
        )


def _check_keys(where: Path, raw: Mapping[str, Any]) -> None:
    # A misspelt optional key would be silently ignored; then, for example, patients could be split
    # between folds. Required keys are recognised at a lower similarity.
    missing = {key: 0.9 for key in _KEYS if key not in raw}
    missing |= {key: 0.75 for key in ("channel_names", "labels") if key not in raw}
    if "modality" in raw:
        missing.pop("channel_names", None)
    for key in raw:
        if key in _KEYS or key in _HARMLESS:
            continue
        for known, bar in missing.items():
            if difflib.SequenceMatcher(None, key, known).ratio() >= bar:
                raise DatasetError(
                    f"{where}: unknown key '{key}'.", hint=f"Did you mean '{known}'? Rename it."
                )


def _channel_names(where: Path, raw: Mapping[str, Any]) -> tuple[str, ...]:
    names = raw.get("channel_names", raw.get("modality"))
    numbers = [str(number) for number in range(len(names))] if isinstance(names, dict) else []
    if not isinstance(names, dict) or not names or sorted(names) != sorted(numbers):
        raise DatasetError(
            f"{where}: channel_names: expected a name for each number, found {names!r}.",
            hint='Write e.g. "channel_names": {"0": "CT"}.',
        )
    return tuple(str(names[number]) for number in numbers)


def _file_ending(where: Path, raw: Mapping[str, Any]) -> str | None:
    ending = raw.get("file_ending")
    if isinstance(ending, str) and ending.lower() in ENDINGS:
        return ending.lower()
    if ending is not None:
        raise DatasetError(
            f"{where}: file_ending: expected one of {', '.join(ENDINGS)}, found {ending!r}.",
            hint="Give the file ending of the images, with its dot.",
        )
    return None


def _labels(where: Path, raw: Mapping[str, Any]) -> LabelValues:
    named = raw.get("labels")
    if not isinstance(named, dict) or not named:
        raise DatasetError(
            f"{where}: labels: expected names with their values, found {named!r}.",
            hint='Write e.g. "labels": {"background": 0, "liver": 1}.',
        )
    numbers = [(natural(key), str(name)) for key, name in named.items()]
    by_number = sorted((value, name) for value, name in numbers if value is not None)
    if len(by_number) == len(numbers):  # Decathlon datasets map value -> name
        named = {"background" if value == 0 else name: value for value, name in by_number}
    _check_names(where, "labels", list(named))
    values = {name: _label_values(where, name, value) for name, value in named.items()}
    ignore = values.pop("ignore", None)
    if values.get("background") != (0,):
        raise DatasetError(
            f'{where}: labels: expected "background": 0, found {named.get("background")!r}.',
            hint='Add "background": 0 to the labels.',
        )
    return _ordered_labels(where, raw, values, ignore)


def _check_names(where: Path, key: str, names: Sequence[str]) -> None:
    """Refuses names that are empty, or differ from another one in capitals and blanks alone."""
    seen: dict[str, str] = {}
    for name in names:
        plain = name.casefold().strip()
        if not plain or plain in seen:
            twins = f"'{seen.get(plain)}' and '{name}' differ in capitals alone"
            raise DatasetError(
                f"{where}: {key}: {twins if plain else 'a name is empty'}.",
                hint="Give each a name of its own.",
            )
        seen[plain] = name


def _label_values(where: Path, name: str, value: Any) -> tuple[int, ...]:
    group = value if isinstance(value, list) else [value]
    whole = [v for v in group if isinstance(v, int) and not isinstance(v, bool)]
    if not group or len(whole) < len(group) or min(whole) < 0 or max(whole) > MOST_VALUE:
        raise DatasetError(
            f"{where}: labels: {name}: expected a number or a list of numbers from 0 to "
            f"{MOST_VALUE}, found {shortened(repr(value), 80)}.",
            hint='Write e.g. "liver": 1, or "liver": [1, 2] for a region.',
        )
    return tuple(dict.fromkeys(group))


def _ordered_labels(
    where: Path,
    raw: Mapping[str, Any],
    values: dict[str, tuple[int, ...]],
    ignore: tuple[int, ...] | None,
) -> LabelValues:
    regions = any(len(group) > 1 for group in values.values())
    order = raw.get("regions_class_order") if regions else None
    # nnU-Net keeps the order of regions and sorts plain labels by value.
    key = (lambda item: item[1] != (0,)) if regions else (lambda item: item[1])
    values = dict(sorted(values.items(), key=key))
    used = [v for group in values.values() for v in group]
    problem = ""
    if len(values) < 2:
        problem = "no label other than the background"
    elif not regions and len(set(used)) < len(used):
        problem = f"two names for the same value in {raw['labels']}"
    elif ignore is not None and (len(ignore) > 1 or ignore[0] <= max(used)):
        problem = f"ignore: expected one value above all others, found {ignore}"
    hint = _MEND
    if not problem and regions and not _is_order(order, len(values) - 1):
        problem, hint = painting_problem(_foreground(values), order)
    if problem:
        raise DatasetError(f"{where}: labels: {problem}.", hint=hint)
    return LabelValues(
        values=values,
        regions_class_order=tuple(order) if order is not None else None,
        ignore=ignore[0] if ignore else None,
    )


def _is_order(order: Any, regions: int) -> bool:
    return (
        isinstance(order, list)
        and len(order) == regions
        and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in order)
    )


def _foreground(values: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: group for name, group in values.items() if name != "background"}


def _painting(where: Path, labels: LabelValues, *, trained: bool) -> str:
    """What is wrong with the order of regions; raises unless they are a trained model's."""
    if labels.regions_class_order is None:
        return ""
    problem, hint = painting_problem(_foreground(labels.values), labels.regions_class_order)
    if problem and not trained:
        raise DatasetError(f"{where}: labels: {problem}.", hint=hint)
    return f"{problem}. {hint}" if problem else ""
