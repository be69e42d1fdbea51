"""Folds of a cross-validation: which cases each one trains on and which it validates on."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import msgspec
import numpy as np

from autoliver.artifacts import Artifact, Fault, Record, read_json_by_hand
from autoliver.datasets.cases import Case
from autoliver.datasets.stratify import stratified
from autoliver.errors import DatasetError, WrongValue
from autoliver.values import counted, natural

_log = logging.getLogger(__name__)

Fold = int | Literal["all"]

_FOLDS = 5
_SEED = 12345  # the seed of nnU-Net, so that scores can be compared fold by fold


def check_folds(value: object) -> tuple[Fold, ...]:
    """Parses the folds that `train` is asked for.

    Args:
        value: A number, "all", "cv" (all folds of the cross-validation), a list such as "0,2", or
            several numbers.

    Returns:
        The folds without repetitions; empty for all folds of the cross-validation.

    Raises:
        OptionError: The value is none of these.
    """
    if value == "cv":
        return ()
    folds = (_fold(part, "--fold", "0..4, all, cv") for part in _parts(value))
    return tuple(dict.fromkeys(folds))


def folds_text(value: object) -> str | None:
    """Converts the folds to predict with or to export to text, e.g. "0,2" or "all".

    Args:
        value: A text such as "0,2" or "all", a number, several numbers, or None for the default
            folds.

    Returns:
        The text; None if `value` is None.

    Raises:
        OptionError: The value is none of these.
    """
    if value is None:
        return None
    folds = [str(_fold(part, "--folds", "0,1,.., all")) for part in _parts(value)]
    if not folds:
        raise WrongValue("--folds names no fold.", hint="Leave the option out to use all folds.")
    return ",".join(dict.fromkeys(folds))


def _parts(value: object) -> list[object]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        return list(value)
    return [value]


def _fold(part: object, option: str, known: str) -> Fold:
    if part == "all":
        return "all"
    number = natural(part)
    if number is not None:
        return number
    raise WrongValue(f"{option}: {part!r} is not one of {known}.", hint="Give a fold's number.")


class Split(Record, frozen=True, kw_only=True):
    """One fold: the names of its training and validation cases."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


class Folds(Artifact, frozen=True, kw_only=True):
    """The splits of a cross-validation, one per fold; empty if there is only one patient."""

    KIND: ClassVar[str] = "folds"

    splits: tuple[Split, ...]

    def faults(self) -> Iterator[Fault]:
        """Yields folds with a case twice or on both sides, and without training cases."""
        for number, split in enumerate(self.splits):
            if problem := _split_problem(split.train, split.validation):
                yield f"splits[{number}]", problem

    def split(self, fold: Fold, cases: Sequence[str]) -> Split:
        """Returns the cases of one fold.

        Args:
            fold: The fold's number, or "all" to train on every case without validation.
            cases: The names of all labelled cases.

        Raises:
            DatasetError: The fold does not exist.
        """
        if fold == "all":
            return Split(train=tuple(cases), validation=())
        if not self.splits:
            raise DatasetError(
                f"There is no fold {fold}: to hold cases out, two patients with cases of the "
                f"origin 'real' are needed; there are {counted(len(cases), 'labelled case')}.",
                hint="Use --fold all to train on every case.",
            )
        if not 0 <= fold < len(self.splits):
            raise DatasetError(
                f"There is no fold {fold}: {counted(len(cases), 'labelled case')} "
                f"{'makes' if len(cases) == 1 else 'make'} {counted(len(self.splits), 'fold')}.",
                hint=f"Use --fold 0 to {len(self.splits) - 1}, or --fold all.",
            )
        return self.splits[fold]


def _split_problem(train: Sequence[str], held_out: Sequence[str]) -> str:
    """What is wrong with a fold, whatever cases there are; "" if nothing is."""
    for side in (train, held_out):
        twice = next((name for name, count in Counter(side).items() if count > 1), None)
        if twice is not None:
            return f"{twice} is there twice"
    if shared := sorted(set(train) & set(held_out)):
        return f"{shared[0]} is on both sides"
    return "" if train else "no training cases"


class _OwnSplit(msgspec.Struct):
    """One fold in the user's splits_final.json; other keys are ignored.

    Attributes:
        train: Names of the training cases.
        val: Names of the validation cases.
        shared_patients: Whether cases of a patient may be on both sides.
    """

    train: list[str]
    val: list[str]
    shared_patients: bool = False


def make_folds(
    cases: Sequence[Case], classes: Mapping[str, Collection[str]] | None = None
) -> tuple[Split, ...]:
    """Divides cases into five folds as nnU-Net does, but by patient.

    Fewer than five patients give one fold per patient (leave one out). If every case is of another
    patient, the folds equal those of scikit-learn's `KFold(5, shuffle=True, random_state=12345)` on
    the sorted names. If patients have different classes of lesions, the folds are alike in the
    number of patients with each class instead.

    Cases that are not real are held out in no fold. They train in the folds that hold out no case
    of their patient.

    Args:
        cases: The labelled cases.
        classes: Case -> classes of its lesions; None if the dataset has no classes.

    Returns:
        One split per fold; empty for a single patient with real cases.
    """
    groups: dict[str, list[str]] = {}
    for case in cases:
        if case.origin == "real":
            groups.setdefault(case.patient, []).append(case.name)
    if len(groups) < 2:
        return ()
    told = classes or {}
    held = {
        patient: frozenset(name for case in groups[patient] for name in told.get(case, ()))
        for patient in sorted(groups)
    }
    if len(groups) > _FOLDS and len(set(held.values())) > 1:
        folds = stratified(held, folds=_FOLDS, seed=_SEED)
    else:
        folds = _shuffled(list(held))
    return tuple(_split(cases, groups, fold) for fold in folds)


def _shuffled(patients: Sequence[str]) -> list[set[str]]:
    order = np.arange(len(patients))
    if len(patients) >= _FOLDS:
        np.random.RandomState(_SEED).shuffle(order)
    parts = np.array_split(order, min(_FOLDS, len(patients)))
    return [{patients[index] for index in part} for part in parts]


def read_splits(path: Path, cases: Sequence[Case]) -> tuple[Split, ...]:
    """Reads and checks the user's `splits_final.json`, a list of {"train": [...], "val": [...]}.

    A fold with `"shared_patients": true` may have cases of a patient on both sides; it is warned
    of. nnU-Net ignores this key.

    Args:
        path: The file.
        cases: The labelled cases.

    Raises:
        DatasetError: The file has the wrong form, names an unknown case, has a fold without
            training cases, lists a case twice or both for training and for validation, holds out a
            case that is not real, or has cases of a patient on both sides.
    """
    try:
        raw = msgspec.convert(read_json_by_hand(path), list[_OwnSplit])
    except msgspec.ValidationError as error:
        raise DatasetError(
            f'{path}: expected a list of {{"train": [...], "val": [...]}} with names of cases: '
            f"{error}.",
            hint="Correct the file, or remove it to have five folds made.",
        ) from None
    if not raw:
        raise DatasetError(
            f"{path}: holds no folds.", hint="Remove the file to have five folds made."
        )
    known = {case.name for case in cases}
    for number, split in enumerate(raw):
        unknown = sorted({*split.train, *split.val} - known)
        what = f"unknown case {unknown[0]}" if unknown else _split_problem(split.train, split.val)
        if what:
            raise DatasetError(
                f"{path}: fold {number}: {what}.",
                hint="List each labelled case at most once per fold, and at least one in 'train'.",
            )
    _refuse_made_cases(raw, cases, where=path)
    _check_patients(raw, cases, where=path)
    return tuple(Split(train=tuple(s.train), validation=tuple(s.val)) for s in raw)


def _refuse_made_cases(splits: Sequence[_OwnSplit], cases: Sequence[Case], *, where: Path) -> None:
    made = {case.name: case.origin for case in cases if case.origin != "real"}
    for number, split in enumerate(splits):
        for name in split.val:
            if name in made:
                raise DatasetError(
                    f"{where}: fold {number}: {name} is in 'val', but its origin is {made[name]}; "
                    "only real cases are validated on.",
                    hint="Take it out of 'val'; it may be in 'train'.",
                )


def _check_patients(splits: Sequence[_OwnSplit], cases: Sequence[Case], *, where: Path) -> None:
    """Refuses folds with cases of a patient on both sides, or warns of those that ask for it."""
    patients = {case.name: case.patient for case in cases}
    for number, split in enumerate(splits):
        learnt = {patients[name]: name for name in reversed(split.train)}
        shared = [name for name in split.val if patients[name] in learnt]
        if not shared:
            continue
        patient, held = patients[shared[0]], shared[0]
        if not split.shared_patients:
            raise DatasetError(
                f"{where}: fold {number}: patient {patient} is on both sides: {learnt[patient]} is "
                f"in 'train', {held} in 'val'. Its scores would be too good.",
                hint="Put all cases of a patient on one side, or correct 'patients' in "
                'dataset.json. To keep the fold as it is, add "shared_patients": true to it.',
            )
        _log.warning(
            "%s: fold %d: cases of patient %s are on both sides: its scores will be too good.",
            *(where, number, patient),
        )


def _split(
    cases: Sequence[Case], groups: Mapping[str, Sequence[str]], held_back: Collection[str]
) -> Split:
    return Split(
        train=tuple(sorted(case.name for case in cases if case.patient not in held_back)),
        validation=tuple(sorted(name for patient in held_back for name in groups[patient])),
    )
