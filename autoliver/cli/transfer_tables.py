"""Tables of `train` about what a transfer gained, and what is still known of the source."""

from typing import TYPE_CHECKING

from autoliver.cli.output import number, table
from autoliver.values import counted, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autoliver.pipeline.run.job import FoldResult
    from autoliver.workspace import RunFolder

LABEL = 20  # characters of a label's name in the table
NAMED = "lesion accuracy"  # lesions that were found and have the right class


def run_of(results: "Sequence[FoldResult]") -> "RunFolder":
    """The run that folds belong to."""
    from autoliver.workspace import RunFolder

    return RunFolder(results[0].folder.parent)


def show_source(results: "Sequence[FoldResult]", scratch: "Sequence[FoldResult]" = ()) -> str:
    """The Dice of each label on unseen cases of the source, before and after the training."""
    from autoliver.pipeline.run.outcome import mean_of

    scored = [r.source for r in results if r.source]
    if not scored:
        return ""
    twins = [r.source for r in scratch if r.source]
    columns = {
        **({"source": [s.mean_before for s in scored]} if scored[0].before else {}),
        "now": [s.mean for s in scored],
        **({"from scratch": [s.mean for s in twins]} if twins else {}),
    }
    labels = dict.fromkeys(label for each in scored for label in each.mean)
    rows = [
        [
            shortened(label, LABEL),
            *(number(mean_of([of.get(label) for of in folds])) for folds in columns.values()),
        ]
        for label in labels
    ]
    means = [mean_of([mean_of(list(of.values())) for of in folds]) for folds in columns.values()]
    rows.append(["mean", *map(number, means)])
    cases = counted(len({case for each in scored for case in each.cases}), "unseen case")
    title = f"{cases} of {scored[0].dataset}:"
    return f"\n\n{title}\n{table(('Dice', *columns), rows)}"


def show_gain(transferred: "list[FoldResult]", scratch: "list[FoldResult]") -> str:
    """The Dice of each label with and without transfer, and the difference."""
    from autoliver.pipeline.run.outcome import outcome_of

    with_, without = (outcome_of(run_of(results)) for results in (transferred, scratch))
    if not with_.scores:
        return "No case was held out: compare both runs on other cases with predict and evaluate."
    rows = []
    for label, gained in with_.mean_dice.items():
        before = without.mean_dice.get(label)
        gain = None if gained is None or before is None else gained - before
        signed = "-" if gain is None else f"{gain:+.3f}"
        rows.append([shortened(label, LABEL), number(gained), number(before), signed])
    return table(("Dice", "transferred", "from scratch", "difference"), rows)
