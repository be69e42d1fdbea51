"""Labels that are classes of lesions: which they are, and all of them taken as one label."""

from collections.abc import Collection, Sequence

from autoliver.datasets.cases import Labels
from autoliver.datasets.lesions import lesion_classes
from autoliver.errors import OptionError
from autoliver.values import meant

# The label of lesions of all classes.
LESION = "lesion"
_LEAST = 2


def find_lesion_classes(
    labels: Labels,
    asked: Sequence[str] = (),
    *,
    named: Collection[str] | None = None,
    where: str,
    wanted_by: str,
) -> tuple[str, ...]:
    """Finds the labels that are alternative classes of a lesion.

    Args:
        labels: The labels of a dataset.
        asked: Their names; empty to find them.
        named: The `lesion_class_names` of dataset.json; None to find them by their names.
        where: The dataset's name, for messages.
        wanted_by: The option that needs them, for messages.

    Returns:
        At least two names, in ascending order of their values.

    Raises:
        OptionError: A name is no label or a region, or there are fewer than two classes.
    """
    known = labels.foreground
    for name in asked:
        if name not in known:
            raise OptionError(
                f"--lesion-classes: {where} has no label '{name}'.",
                hint=f"{meant(name, tuple(known))} Its labels are {', '.join(known)}.".strip(),
            )
    if labels.has_regions:
        raise OptionError(
            f"{wanted_by}: the labels of {where} are regions or not annotated in every case, so "
            "that a voxel may belong to several of them; classes of lesions exclude each other.",
            hint="Give every class of lesions a value of its own, and annotate all labels.",
        )
    names = asked or lesion_classes(known, named)
    found = tuple(sorted(names, key=lambda name: known[name]))
    if len(found) < _LEAST:
        raise OptionError(
            f"{wanted_by} needs at least two classes of lesions, such as cyst and metastasis; the "
            f"labels of {where} are {', '.join(known)}.",
            hint="Name them with --lesion-classes A,B, or write the classes into the label maps "
            "with: autoliver convert lesion-classes FOLDER OUT",
        )
    if LESION in known and LESION not in found:
        raise OptionError(
            f"{wanted_by}: {where} has a label '{LESION}' beside the classes of lesions; that is "
            "the name of all classes together.",
            hint="Name it among --lesion-classes, or give it another name in dataset.json.",
        )
    return found


def with_one_lesion(labels: Labels, classes: Sequence[str]) -> Labels:
    """The labels with one label in place of all classes of lesions, in the place of the first."""
    values = tuple(sorted(value for name in classes for value in labels.values[name]))
    kept = {name: v for name, v in labels.values.items() if name not in classes}
    every = {**kept, LESION: values}
    ordered = dict(sorted(every.items(), key=lambda item: item[1]))
    return labels.replace(values=ordered, exclusive=True)


def class_rows(labels: Labels, classes: Sequence[str]) -> tuple[int, ...]:
    """The output channel of each class of a softmax, in ascending order."""
    return tuple(sorted(labels.rows.index(name) for name in classes))
