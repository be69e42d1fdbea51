"""Chooses the run, or the pair of runs, with the best out-of-fold predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

from autoliver.artifacts import Record
from autoliver.evaluation.classification import lesion_accuracy
from autoliver.evaluation.results import CaseScores, mean_over_labels, summarize

# A pair takes twice the time of a single run, so its mean Dice must be higher by more than this.
PAIR_MARGIN = 0.001


class Candidate(Record, frozen=True, kw_only=True):
    """A run, or a pair of runs whose probabilities are averaged, and its out-of-fold Dice.

    Attributes:
        runs: Names of the runs.
        dice: Mean of the defined values of `labels`; None if there are none.
        labels: Label -> mean Dice over the cases that define it; None if no case does.
        lesion_accuracy: Share of the lesions that were found and have the right class; None if
            classes of lesions are not told apart.
    """

    runs: tuple[str, ...]
    dice: float | None
    labels: dict[str, float | None]
    lesion_accuracy: float | None = None

    @property
    def name(self) -> str:
        """The name used in messages."""
        return " + ".join(self.runs)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The outcome of a choice.

    Attributes:
        candidate: The candidate that was chosen.
        why: Reasons, one sentence each.
    """

    candidate: Candidate
    why: tuple[str, ...]


def make_candidate(
    runs: Sequence[str], cases: Sequence[CaseScores], classes: Sequence[str] = ()
) -> Candidate:
    """Summarises the held-out cases of all compared folds, pooled as in nnU-Net.

    A case with a label in neither prediction nor reference is left out of that label's mean.

    Args:
        runs: Names of the runs.
        cases: Scores of the held-out cases.
        classes: The classes of lesions that the runs tell apart.
    """
    summary = summarize(cases)
    means = {label: found.metrics.get("dice") for label, found in summary.items()}
    return Candidate(
        runs=tuple(runs),
        dice=mean_over_labels(summary).get("dice"),
        labels={label: found.mean if found else None for label, found in means.items()},
        lesion_accuracy=lesion_accuracy([case.lesions or () for case in cases], classes),
    )


def choose(candidates: Sequence[Candidate]) -> Choice | None:
    """Chooses the candidate with the highest mean Dice; of equals the first one.

    A pair is chosen only if it beats the best single run by more than `PAIR_MARGIN`.

    Args:
        candidates: At least one single run; simpler candidates first.

    Returns:
        The choice; None if no single run has a defined Dice.
    """
    ranked = sorted((c for c in candidates if c.dice is not None), key=_dice, reverse=True)
    singles = [c for c in ranked if len(c.runs) == 1]
    pairs = [c for c in ranked if len(c.runs) > 1]
    if not singles:
        return None
    single = singles[0]
    why = [f"{single.name} is the only run compared: mean Dice {_dice(single):.4f}."]
    if len(singles) > 1:
        why = [
            f"{single.name} has the highest mean Dice of the single runs: {_dice(single):.4f}; "
            f"next comes {singles[1].name} with {_dice(singles[1]):.4f}."
        ]
    if not pairs:
        return Choice(candidate=single, why=tuple(why))
    pair, gain = pairs[0], _dice(pairs[0]) - _dice(single)
    found = f"The best pair, {pair.name}, has {_dice(pair):.4f} ({gain:+.4f})"
    if gain > PAIR_MARGIN:
        why.append(f"{found}: it is chosen.")
        return Choice(candidate=pair, why=tuple(why))
    why.append(
        f"{found}, which is not more than {PAIR_MARGIN:g} better: {single.name} alone is chosen, "
        "since a pair takes the time of both."
    )
    return Choice(candidate=single, why=tuple(why))


def _dice(candidate: Candidate) -> float:
    return 0.0 if candidate.dice is None else candidate.dice
