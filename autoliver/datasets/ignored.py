"""Reports keys of dataset.json that have no effect, before anything is trained.

The first table lists keys of single cases that would change what a network learns: they are
refused by `refuse_ignored`. The second table lists keys that users may expect to have an effect,
without noticing that they have none: they cause a warning. When a key gets an effect, its row is
removed.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autoliver.commands import command
from autoliver.datasets.cases import Case, Dataset
from autoliver.datasets.description import read_raw
from autoliver.datasets.lesions import lesion_classes
from autoliver.errors import DatasetError
from autoliver.io.header import split_ending

_log = logging.getLogger(__name__)

Raw = Mapping[str, Any]

# Names of channels that decide how they are normalised, whatever the modality.
_NORMALISED_BY_NAME = ("nonorm", "zscore", "rescale_to_0_1", "rgb_to_0_1")
_READERS = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "NaturalImage2DIO")
_SHOWN = 3


def _lesion_classes(case: Case) -> str:
    return next((f"lesion {k!r} is {v!r}" for k, v in case.lesion_classes.items()), "")


def _classes_as_labels(dataset: Dataset) -> str:
    if lesion_classes(dataset.labels.foreground, dataset.lesion_class_names):
        return "The label maps hold classes of lesions: leave 'lesion_classes' out of dataset.json."
    convert = command("convert", "lesion-classes", dataset.folder, "OUT")
    return f"Make a dataset whose label maps hold the classes: {convert}"


# Key -> (a function that returns the value of a case that has no effect, "" for none; what happens
# instead; a function that returns what to do).
_REFUSED: dict[str, tuple[Callable[[Case], str], str, Callable[[Dataset], str]]] = {
    "lesion_classes": (
        _lesion_classes,
        "classes are learnt from label maps that hold them",
        _classes_as_labels,
    ),
}


def refuse_ignored(dataset: Dataset) -> None:
    """Refuses keys that have no effect but should change training; warns of harmless ones.

    Raises:
        DatasetError: There are such keys. The error names each of them, with the first case and
            value that were found.
    """
    found = [text for key in _REFUSED if (text := _refused(dataset, key))]
    if found:
        rows = [row for row in _REFUSED.values() if any(map(row[0], dataset.cases))]
        hints = " ".join(hint(dataset) for _, _, hint in rows)
        raise DatasetError(f"{_where(dataset)}: {' '.join(found)}", hint=hints)
    for warning in ignored_keys(dataset):
        _log.warning("%s: %s", _where(dataset), warning)


def ignored_keys(dataset: Dataset) -> Iterator[str]:
    """Yields keys that have no effect, or less than expected, with what is done instead."""
    where = _where(dataset)
    raw = read_raw(where) if where.exists() else {}
    for key, says in _WARNED.items():
        if key in raw and (found := says(dataset, raw)):
            yield f"{key}: {found}"


def _refused(dataset: Dataset, key: str) -> str:
    says, instead, _ = _REFUSED[key]
    cases = [(case.name, text) for case in dataset.cases if (text := says(case))]
    if not cases:
        return ""
    name, text = cases[0]
    more = f" (and {len(cases) - 1} more cases)" if len(cases) > 1 else ""
    return f"{key}: {name}: {text}{more}, which has no effect here: {instead}."


def _where(dataset: Dataset) -> Path:
    return Path(dataset.folder) / "dataset.json"


def _modality(dataset: Dataset, raw: Raw) -> str:
    """Describes modalities that do not decide how cases are normalised; "" if there are none."""
    if "channel_names" not in raw:  # in Decathlon datasets, these are the names of channels
        return ""
    kinds = Counter(case.modality for case in dataset.labelled)
    named = {name.casefold() for name in dataset.channel_names}
    named_ct = "ct" in named
    how = "as CT, by the name of their channel" if named_ct else "each by its own mean"
    if set(kinds) == {"CT", "MR"} and not named <= set(_NORMALISED_BY_NAME):
        return ""  # each case is normalised by its own modality
    if len(kinds) > 1:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return f"images of several modalities ({counts}) are normalised alike, {how}."
    if named_ct and "CT" not in kinds and kinds:
        return f"{next(iter(kinds))} does not change that images are normalised {how}."
    return ""


def _regions_class_order(dataset: Dataset, _: Raw) -> str:
    if dataset.labels.has_unions:
        return ""
    return "is not used: it orders regions, but each of these labels has a single value."


def _training(dataset: Dataset, raw: Raw) -> str:
    """Describes a Decathlon list that another layout overrides, or keys in it that are not read."""
    entries = raw["training"] if isinstance(raw["training"], list) else []
    if dataset.layout == "msd" and not raw.get("dataset"):
        return _extra_keys(entries, known=("image", "label"))
    listed = {_stem(entry) for entry in entries}
    if not listed or listed == {case.name for case in dataset.cases}:
        return ""
    other = "the 'dataset' table" if raw.get("dataset") else "the folder of images"
    return f"is not read; the cases are those of {other}: {len(dataset.cases)}."


def _dataset(_: Dataset, raw: Raw) -> str:
    return _extra_keys(raw["dataset"].values(), known=("images", "label"))


def _extra_keys(entries: Iterable[Any], *, known: tuple[str, ...]) -> str:
    keys = {
        key for entry in entries if isinstance(entry, dict) for key in entry if key not in known
    }
    if not keys:
        return ""
    named = ", ".join(f"'{key}'" for key in sorted(keys)[:_SHOWN])
    return f"{named} in its entries is not read; only {' and '.join(known)} are."


def _stem(entry: Any) -> str:
    image = entry.get("image", "") if isinstance(entry, dict) else entry
    return split_ending(Path(str(image)).name)[0]


def _reader(_: Dataset, raw: Raw) -> str:
    name = raw["overwrite_image_reader_writer"]
    if name in (None, "", "None", *_READERS):
        return ""
    return (
        f"{name} is not used: all images are read with SimpleITK, and spacings are taken from the "
        "image files only."
    )


def _validation(_: Dataset, __: Raw) -> str:
    return "is not read: folds are made of all cases, or taken from splits_final.json."


# Key -> a function that returns which expected effect it does not have, "" for none.
_WARNED: dict[str, Callable[[Dataset, Raw], str]] = {
    "modality": _modality,
    "regions_class_order": _regions_class_order,
    "training": _training,
    "dataset": _dataset,
    "overwrite_image_reader_writer": _reader,
    "validation": _validation,
}
