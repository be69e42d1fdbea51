"""The score of the CHAOS challenge (Kavur et al. 2021), as its organisers define and print it.

Each metric becomes 0 to 100 points by its own threshold; the score of an organ in a case is the
mean of the four, that of a task the mean over organs and cases.
"""

import re
from collections.abc import Iterable, Mapping

from autoliver.commands import command
from autoliver.errors import OptionError
from autoliver.values import first_few

# Organ -> its words in the name of a label.
_ORGANS = {
    "liver": ({"liver"},),
    "right kidney": ({"right", "kidney"}, {"r", "kidney"}, {"rk"}),
    "left kidney": ({"left", "kidney"}, {"l", "kidney"}, {"lk"}),
    "spleen": ({"spleen"},),
}
# Organs of a task -> its numbers, as the challenge counts them.
TASKS = {
    ("liver",): "1, 2, 3",
    tuple(_ORGANS): "4, 5",
}
# Field of a Score -> what it is computed from, and the worst value with points.
_LIMITS = {
    "chaos_ravd": ("ravd_percent", 5.0),
    "chaos_assd": ("assd_mm", 15.0),
    "chaos_mssd": ("mssd_mm", 60.0),
}
_LEAST_DICE = 0.8
_SHOWN = 5  # labels in one message
POINTS = ("chaos_dice", *_LIMITS)


def organ_of(label: str) -> str | None:
    """Returns which of the four organs of the challenge a label is; None if it is none."""
    words = set(re.findall(r"[a-z]+", label.casefold()))
    return next((organ for organ, names in _ORGANS.items() if words in names), None)


def check_organs(labels: Iterable[str]) -> None:
    """Refuses labels of which none is an organ of the challenge.

    Raises:
        OptionError: None of them is.
    """
    names = list(labels)
    if any(map(organ_of, names)):
        return
    raise OptionError(
        f"--chaos: found the labels {first_few(names, _SHOWN)}; the challenge scores "
        f"{', '.join(_ORGANS)}.",
        hint="Leave it out; or name the dataset whose labels are called so, e.g. "
        f"{command('evaluate', options=['-p', 'PRED', '-r', 'REF', '-d', 'DATASET', '--chaos'])}",
    )


def points(values: Mapping[str, float]) -> dict[str, float]:
    """Returns the points of a case for each metric, and their mean as the score.

    Args:
        values: dice, ravd_percent, assd_mm and mssd_mm; NaN or infinite where a mask is empty,
            which has no points.

    Returns:
        Fields of `Score`: those of `POINTS`, and chaos.
    """
    dice = values["dice"]
    found = {"chaos_dice": 100 * dice if dice >= _LEAST_DICE else 0.0}
    for field, (source, limit) in _LIMITS.items():
        value = values[source]
        found[field] = 100 - 100 / limit * value if value <= limit else 0.0
    return {**found, "chaos": sum(found.values()) / len(found)}


def task_scores(means: Mapping[str, float]) -> dict[str, float]:
    """Returns the score of each task whose organs are all there: "1, 2, 3" for the liver.

    Args:
        means: Label -> its mean score over cases.
    """
    organs = {organ: mean for label, mean in means.items() if (organ := organ_of(label))}
    return {
        name: sum(organs[organ] for organ in task) / len(task)
        for task, name in TASKS.items()
        if all(organ in organs for organ in task)
    }
