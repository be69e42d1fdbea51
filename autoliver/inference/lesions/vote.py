"""One class for each connected lesion of a label map whose labels are classes of lesions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.datasets.cases import Labels
from autoliver.datasets.lesions import is_lesion
from autoliver.errors import ModelError
from autoliver.inference.clean import Components, components, mask_of

Array = npt.NDArray[np.float64]
LabelArray = npt.NDArray[np.integer]
# Components -> (n, k): the mean probability of each row of a network's output over each of them.
MeansOf = Callable[[Components], Array]

# The organ that lesions lie in, by the word in the names of its labels.
_ORGAN = "liver"


class VoteOptions(Record, frozen=True, kw_only=True):
    """How lesions get their class.

    Attributes:
        classes: Class -> its value in the label map.
        rows: Class -> the row of the network's output that is its probability.
        organ: Values of the organ that the lesions lie in, without those of lesions; empty if the
            labels have none.
        exclusive: Whether a voxel has one label, so that its classes share the probability of a
            lesion; not if labels are regions.
        needs_organ: Whether all lesions are removed from a case without a voxel of the organ. They
            are then nearly always wrong: the scan shows another part of the body. Whoever removes
            them says so.
    """

    classes: dict[str, int]
    rows: dict[str, int]
    organ: tuple[int, ...] = ()
    exclusive: bool = True
    needs_organ: bool = True

    @property
    def shared(self) -> tuple[int, ...]:
        """The rows that decide together whether a voxel is a lesion (`union.py`)."""
        return tuple(self.rows.values()) if self.exclusive else ()

    @classmethod
    def of(cls, labels: Labels, classes: tuple[str, ...], *, model: str) -> "VoteOptions":
        """Returns the options for a model.

        Args:
            labels: The model's labels.
            classes: The labels that are classes of lesions.
            model: Its name, for messages.

        Raises:
            ModelError: A class is no label of the model, or a region of several values, so that a
                voxel would not say which class it has.
        """
        for name in classes:
            if len(labels.foreground.get(name, ())) == 1:
                continue
            found = labels.foreground.get(name)
            problem = (
                f"a region of the values {', '.join(map(str, found))}"
                if found
                else f"not one of its labels, {', '.join(labels.foreground)}"
            )
            raise ModelError(
                f"{model}: the class of lesions {name} is {problem}.",
                hint="Each class of lesions needs a value of its own: train with such labels.",
            )
        values = {name: labels.values[name][0] for name in classes}
        lesions = {*classes, *filter(is_lesion, labels.foreground)}
        organs = {name for name in labels.foreground if _ORGAN in name.casefold()} - lesions
        organ = _values(labels, organs) - _values(labels, lesions)
        rows = {name: labels.rows.index(name) for name in classes}
        return cls(
            classes=values,
            rows=rows,
            organ=tuple(sorted(organ)),
            exclusive=not labels.has_regions,
        )


@dataclass(frozen=True, kw_only=True)
class Voted:
    """A label map in which every lesion has one class.

    Attributes:
        segmentation: (z, y, x).
        found: The lesions.
        classes: The class of each lesion, in the order of their numbers.
        probabilities: (lesions, classes), each row adds up to 1; shares of voxels where no
            probabilities were given.
        removed: Number of lesions that were removed because the case has no organ.
        unseen: Number of lesions of which the probabilities say nothing, since the network has not
            seen them; they have the class of most of their voxels.
    """

    segmentation: LabelArray
    found: Components
    classes: tuple[str, ...]
    probabilities: Array
    removed: int = 0
    unseen: int = 0


def vote(segmentation: LabelArray, options: VoteOptions, means: MeansOf | None = None) -> Voted:
    """Gives every lesion the class of its highest mean probability.

    A lesion is a connected component of the union of all classes, connected through faces, edges
    and corners. Of equally probable classes the one with most voxels wins, then the one with the
    lowest value. Without probabilities, the class with most voxels wins.

    Args:
        segmentation: Label map (z, y, x), of any depth; it is not changed.
        options: How lesions get their class.
        means: Computes the mean probabilities; None: they are not known.

    Returns:
        The label map, the input itself if nothing changes, and the classes.
    """
    values = list(options.classes.values())
    union = mask_of(segmentation, values)
    found = components(union)
    count = len(found.voxels) - 1
    if count and options.needs_organ and not _has_organ(segmentation, options):
        segmentation = np.where(union, segmentation.dtype.type(0), segmentation)
        none = Components(found.box, np.zeros_like(found.numbers), found.voxels[:1])
        no_voxels = np.zeros((0, len(values)), dtype=int)
        return _voted(segmentation, none, options, no_voxels, removed=count)
    part = segmentation[found.box]
    voxels = [
        np.bincount(found.numbers[part == value], minlength=count + 1)[1:] for value in values
    ]
    shares = np.stack(voxels, axis=1)
    chances = means(found)[:, list(options.rows.values())] if means and count else None
    return _voted(segmentation, found, options, shares, chances)


def _has_organ(segmentation: LabelArray, options: VoteOptions) -> bool:
    """Whether a case has a voxel of the organ; it has where the labels have no organ."""
    return not options.organ or bool(mask_of(segmentation, options.organ).any())


def _voted(
    segmentation: LabelArray,
    found: Components,
    options: VoteOptions,
    voxels: npt.NDArray[np.integer],
    means: Array | None = None,
    *,
    removed: int = 0,
) -> Voted:
    """Decides, given the voxels and mean probabilities (lesions, classes)."""
    values = np.array(list(options.classes.values()))
    unseen: npt.NDArray[np.bool_] = np.zeros(len(voxels), bool)
    if means is not None:
        unseen = ~np.any(means, axis=1)
    means = voxels.astype(float) if means is None else np.where(unseen[:, None], voxels, means)
    # The last key counts first.
    keys = [(-values[None]).repeat(len(voxels), axis=0), voxels, means]
    best = np.array([np.lexsort([key[n] for key in keys])[-1] for n in range(len(voxels))], int)
    written = np.array([0, *values[best]]).astype(segmentation.dtype)[found.numbers]
    if np.any((written != segmentation[found.box]) & (found.numbers > 0)):
        segmentation = segmentation.copy()
        np.copyto(segmentation[found.box], written, where=found.numbers > 0)
    names = list(options.classes)
    return Voted(
        segmentation=segmentation,
        found=found,
        classes=tuple(names[n] for n in best),
        probabilities=normalised(means),
        removed=removed,
        unseen=int(unseen.sum()),
    )


def normalised(means: Array) -> Array:
    """Scales rows of probabilities (lesions, classes) so that each adds up to 1."""
    total = means.sum(axis=1, keepdims=True)
    scaled: Array = np.divide(
        means, total, out=np.full(means.shape, 1 / max(1, means.shape[1])), where=total > 0
    )
    return scaled


def means_of(probabilities: npt.NDArray[np.floating]) -> MeansOf:
    """Returns what computes the means of probabilities (k, z, y, x) that are in memory."""

    def means(found: Components) -> Array:
        flat, count = found.numbers.ravel(), len(found.voxels)
        rows = [
            np.bincount(flat, weights=row[found.box].ravel(), minlength=count)
            for row in probabilities
        ]
        result: Array = np.stack(rows, axis=1)[1:] / found.voxels[1:, None]
        return result

    return means


def lesion_names(labels: Labels, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the labels that are lesions: those a model calls so, else those with such names."""
    return classes or tuple(name for name in labels.foreground if is_lesion(name))


def _values(labels: Labels, names: Iterable[str]) -> set[int]:
    return {value for name in names for value in labels.values[name]}
