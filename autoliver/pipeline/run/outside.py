"""Whether `--outside-negative` teaches anything, and what."""

from collections.abc import Sequence
from dataclasses import dataclass

from autoliver.datasets.cases import CaseFacts, Labels, known_around
from autoliver.errors import OptionError
from autoliver.pipeline.data import Planned
from autoliver.pipeline.run.replay import Replay
from autoliver.values import counted


@dataclass(frozen=True, kw_only=True)
class _Learnt:
    """Cases that a training learns from.

    Attributes:
        name: Full name of their dataset.
        short_name: Its name in messages.
        facts: The facts about each case, with the states of the run's labels.
        labels: The labels of the run.
    """

    name: str
    short_name: str
    facts: Sequence[CaseFacts]
    labels: Labels

    def unknown(self) -> list[tuple[str, str]]:
        """Pairs of a case and a label that is not annotated in it."""
        return [
            (case.name, label)
            for case in self.facts
            for label in self.labels.foreground
            if case.annotated.get(label) == "none"
        ]

    def told(self) -> dict[str, list[str]]:
        """Maps unknown labels to the known ones that they lie in, one for each case that has it."""
        found: dict[str, list[str]] = {}
        for case in self.facts:
            for inner, outer in known_around(self.labels.foreground, case).items():
                found.setdefault(inner, []).append(outer)
        return found


def _learnt(planned: Planned, replay: Replay | None) -> list[_Learnt]:
    """The cases that are trained on, and those that are replayed."""
    labels, dataset = planned.plan.labels, planned.dataset
    own = [case.facts for case in dataset.labelled]
    found = [
        _Learnt(name=dataset.name, short_name=dataset.short_name, facts=own, labels=labels),
    ]
    if replay is not None:
        found.append(
            _Learnt(
                name=replay.dataset.name,
                short_name=replay.dataset.short_name,
                facts=replay.facts(labels),
                labels=labels,
            )
        )
    return found


def check_outside(distance_mm: float, planned: Planned, replay: Replay | None) -> None:
    """Refuses `--outside-negative` where no label is unknown, or nothing is known around it.

    Args:
        distance_mm: The distance.
        planned: The dataset that is trained.
        replay: The dataset that is replayed; None: none.

    Raises:
        OptionError: Nothing would be learnt; the message says why.
    """
    learnt = _learnt(planned, replay)
    unknown = [(part, *pair) for part in learnt for pair in part.unknown()]
    where = f"--outside-negative {distance_mm:g}"
    if not unknown:
        raise OptionError(
            f"{where}: every label of {' and '.join(part.name for part in learnt)} is annotated in "
            "every case, so that there is nothing to be learnt from where it cannot be.",
            hint='Leave it out, or write "annotated" into dataset.json, for example: {"annotated": '
            '{"case_07": {"tumour": "none"}}}.',
        )
    if any(part.told() for part in learnt):
        return
    part, name, label = unknown[0]
    case = name if part.name == planned.dataset.name else f"{part.short_name}/{name}"
    labels = planned.plan.labels.foreground
    raise OptionError(
        f"{where}: {label} is not annotated in {case}, and lies in no label that is "
        f"(labels: {', '.join(f'{name} {list(values)}' for name, values in labels.items())}), so "
        "that it is not known where it cannot be.",
        hint="Leave it out, or write the organ as a region that includes what lies in it, such as "
        '"liver": [1, 2], "tumour": 2 with "regions_class_order": [1, 2].',
    )


def outside_notes(distance_mm: float, planned: Planned, replay: Replay | None) -> list[str]:
    """Says in one sentence for each dataset and label what is learnt as absent, and where.

    Args:
        distance_mm: As for `check_outside`.
        planned: As for `check_outside`.
        replay: As for `check_outside`.
    """
    return [
        f"In {counted(len(around), 'case')} of {part.short_name} {inner} is learnt as absent "
        f"further than {distance_mm:g} mm from {' or '.join(sorted(set(around)))}."
        for part in _learnt(planned, replay)
        for inner, around in part.told().items()
    ]
