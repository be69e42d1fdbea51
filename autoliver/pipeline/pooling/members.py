"""The members of a pool: what `--add` says of their labels, and the values these get."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from autoliver.datasets.cases import Annotation, Dataset, Labels
from autoliver.datasets.lesions import is_lesion
from autoliver.errors import DatasetError, WrongValue
from autoliver.values import meant

DROP = "drop"
STATES = (*get_args(Annotation), DROP)
_SPEC = re.compile(r"[^:/\\=,]+(=[^:/\\=,]*)?(,[^:/\\=,]+(=[^:/\\=,]*)?)*")
_ORGAN = re.compile(r"liver", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Add:
    """One `--add`.

    Attributes:
        text: As it was given.
        dataset: Name or path of the dataset.
        labels: Label of the pool -> the labels of the dataset that count as it.
        states: Label of the pool -> its state in this dataset.
        dropped: Labels of the dataset that become background.
    """

    text: str
    dataset: str
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    states: dict[str, Annotation] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def again(self, folder: str) -> str:
        """The same with the absolute folder of the dataset."""
        return f"{folder}{self.text.removeprefix(self.dataset)}"

    def kept(self, dataset: Dataset) -> dict[str, tuple[str, ...]]:
        """Label of the pool -> labels of the dataset; all of its labels if nothing is said."""
        if self.labels or self.dropped:
            return self.labels
        return {name: (name,) for name in dataset.labels.foreground}

    @classmethod
    def read(cls, text: str) -> "Add":
        """Reads DATASET or DATASET:label=state,label+label=state,...

        Raises:
            WrongValue: It is of another form, or a state is unknown.
        """
        dataset, colon, spec = text.rpartition(":")
        if not colon or not dataset or not _SPEC.fullmatch(spec):
            return cls(text=text, dataset=text)
        labels: dict[str, tuple[str, ...]] = {}
        states: dict[str, Annotation] = {}
        dropped: list[str] = []
        for part in spec.split(","):
            names, equals, state = part.partition("=")
            own = tuple(name.strip() for name in names.split("+"))
            state = state.strip() if equals else "real"
            if state not in STATES or not all(own):
                known = (
                    f"States are {', '.join(STATES)}, as in --add CHAOS:liver=real,tumour=absent"
                )
                raise WrongValue(
                    f"--add {text}: '{part}' has the state '{state}'.",
                    hint=f"{meant(state, STATES)} {known}".strip(),
                )
            if own[0] in labels:
                raise WrongValue(f"--add {text}: {own[0]} is there twice.", hint="Give it once.")
            if state == DROP:
                dropped += own
            else:
                labels[own[0]] = own
                states[own[0]] = state  # type: ignore[assignment]
        return cls(text=text, dataset=dataset, labels=labels, states=states, dropped=tuple(dropped))


@dataclass(frozen=True, kw_only=True)
class Member:
    """A dataset with the meaning of its labels in the pool.

    Attributes:
        add: What was asked for.
        dataset: The dataset, with the contents of its files.
        states: Label of the pool -> its state in this dataset.
        own: Label of the pool -> the labels of this dataset that count as it.
    """

    add: Add
    dataset: Dataset
    states: dict[str, Annotation] = field(default_factory=dict)
    own: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The short name of the dataset."""
        return self.dataset.short_name

    @property
    def nested(self) -> dict[str, str]:
        """Maps the pool's labels to the smallest label that they lie in here."""
        held = {
            label: {value for part in parts for value in self.dataset.labels.values[part]}
            for label, parts in self.own.items()
        }
        found: dict[str, str] = {}
        for inner, values in held.items():
            outer = [name for name, others in held.items() if values and values < others]
            if outer:
                found[inner] = min(outer, key=lambda name: len(held[name]))
        return found

    @property
    def is_partial(self) -> bool:
        """Whether some label of some case is unknown or a pseudo-label."""
        cases = (self.annotated(case.annotated) for case in self.dataset.labelled)
        return any(state in ("none", "pseudo") for case in cases for state in case.values())

    def values(self, pooled: Labels) -> dict[int, int]:
        """Maps the values of its label maps to those of the pool.

        A value becomes that of the smallest label that holds it: of a liver with its tumours, the
        tumour.
        """
        own = self.dataset.labels
        found = {0: 0}
        for value in sorted(own.allowed - {0}):
            if value == own.ignore:
                found[value] = pooled.ignore or 0
                continue
            held = [
                (len(own.values[name]), label)
                for label, names in self.own.items()
                for name in names
                if value in own.values[name]
            ]
            found[value] = pooled.values[min(held)[1]][0] if held else 0
        return found

    def annotated(self, case_states: Mapping[str, Annotation]) -> dict[str, Annotation]:
        """The states of the labels of a case, which may have states of its own; without "real"."""
        found = dict(self.states)
        for label, names in self.own.items():
            said = [case_states[name] for name in names if name in case_states]
            if said and found.get(label, "real") == "real":
                found[label] = said[0]
        return {label: state for label, state in found.items() if state != "real"}


def settle_labels(
    members: Sequence[Member], *, inside: Mapping[str, str] | None
) -> tuple[tuple[Member, ...], Labels]:
    """Decides the labels of the pool, and which labels of each member they are.

    Args:
        members: The datasets as asked for.
        inside: Label -> the label that it lies in; None: lesions lie in the liver.

    Raises:
        DatasetError: A member has a label that nothing is said about, or lacks one that it is said
            to have; or labels clash.
    """
    names: list[str] = []
    for member in members:
        for label in member.add.kept(member.dataset):
            if _like(label, names) is None:
                names.append(label)
    settled = tuple(_settled(member, names) for member in members)
    nested = _nested(names, settled, inside)
    values: dict[str, tuple[int, ...]] = {"background": (0,)}
    number = {name: i for i, name in enumerate(names, 1)}
    for name, own in number.items():
        values[name] = (own, *(number[inner] for inner in names if _lies_in(inner, name, nested)))
    ignored = any(member.dataset.labels.ignore is not None for member in members)
    order = tuple(range(1, len(names) + 1))
    return settled, Labels(
        values=values,
        regions_class_order=order if nested else None,
        ignore=len(names) + 1 if ignored else None,
    )


def _settled(member: Member, names: Sequence[str]) -> Member:
    add, dataset = member.add, member.dataset
    there = list(dataset.labels.foreground)
    where = f"--add {add.text}"
    asked = add.kept(dataset)
    if not asked:
        raise DatasetError(
            f"{where}: no label is left of {dataset.name}.",
            hint=f"Leave the dataset out, or keep one of {', '.join(there)}.",
        )
    own: dict[str, tuple[str, ...]] = {}
    states: dict[str, Annotation] = {}
    for label, parts in asked.items():
        name = _like(label, names) or label
        state = add.states.get(label, "real")
        found = [known for part in parts if (known := _like(part, there)) is not None]
        if len(found) < len(parts) and (state in ("real", "pseudo") or len(parts) > 1):
            lacking = next(part for part in parts if _like(part, there) is None)
            raise DatasetError(
                f"{where}: {dataset.name} has no label '{lacking}', only {', '.join(there)}.",
                hint=meant(lacking, there)
                or f"Say {lacking}=none if it is not annotated there, {lacking}=absent if no case "
                "has it.",
            )
        states[name], own[name] = state, tuple(found)
    used = {part for parts in own.values() for part in parts}
    dropped = [known for part in add.dropped if (known := _like(part, there)) is not None]
    for part in add.dropped:
        if _like(part, there) is None:
            raise DatasetError(
                f"{where}: {dataset.name} has no label '{part}', only {', '.join(there)}.",
                hint=meant(part, there) or f"Leave {part}={DROP} out.",
            )
    if unsaid := [name for name in there if name not in used and name not in dropped]:
        first = next(iter(own), names[0])
        raise DatasetError(
            f"{where}: nothing is said about the label '{unsaid[0]}' of {dataset.name}.",
            hint=f"Say {unsaid[0]}=real to keep it, {first}+{unsaid[0]}=real to count it as "
            f"{first}, or {unsaid[0]}={DROP} to make it background.",
        )
    for name in names:
        states.setdefault(name, "none")
    return Member(add=add, dataset=dataset, states=states, own=own)


def _nested(
    names: Sequence[str], members: Sequence[Member], inside: Mapping[str, str] | None
) -> dict[str, str]:
    """Maps labels to the label they lie in; empty if the labels exclude one another.

    Labels that lie in another one in a member do so in the pool.
    """
    if inside is not None:
        for name in (name for pair in inside.items() for name in pair):
            if name not in names:
                raise DatasetError(
                    f"--inside: the pool has no label '{name}', only {', '.join(names)}.",
                    hint=meant(name, names) or "Name labels of the pool.",
                )
        return dict(inside)
    found: dict[str, str] = {}
    for member in members:
        found = member.nested | found
    organ = next((name for name in names if _ORGAN.fullmatch(name)), None)
    if organ is not None and any(member.is_partial for member in members):
        for name in names:
            if is_lesion(name):
                found.setdefault(name, organ)
    return found


def _lies_in(inner: str, outer: str, nested: Mapping[str, str]) -> bool:
    """Whether a label lies in another one, directly or by way of others."""
    parent = nested.get(inner)
    return parent is not None and (parent == outer or _lies_in(parent, outer, nested))


def _like(name: str, known: Sequence[str]) -> str | None:
    """Returns the name among the known that is the same, whatever its spelling; None if none is."""
    if name in known:
        return name
    return next((each for each in known if _plain(each) == _plain(name)), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.casefold().replace("tumor", "tumour")).strip()
