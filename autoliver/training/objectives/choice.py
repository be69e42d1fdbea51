"""The values of `--loss`: the objectives of a training, and how each of them is made."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from autoliver.errors import OptionError, WrongValue
from autoliver.values import check_choice, check_number

if TYPE_CHECKING:
    from autoliver.datasets.cases import Labels
    from autoliver.planning.plan import Configuration
    from autoliver.training.objectives.objective import Objective
    from autoliver.training.objectives.segmentation import LossKind


class Options(Protocol):
    """The part of the training's options (`training/options.py`) that objectives use."""

    @property
    def cls_weight(self) -> float:
        """Weight of the cross-entropy of the class of lesions, beside a segmentation."""

    @property
    def loss(self) -> str:
        """The name of the objective."""

    @property
    def class_weights(self) -> "tuple[float, ...] | Literal['balanced'] | None":
        """Weight of each class in the cross-entropy, background first; None: all alike.

        "balanced" has been replaced by numbers where an objective is made (`weights.py`).
        """

    @property
    def pseudo_weight(self) -> float:
        """Weight of pseudo-labels in the loss, 0 to 1."""


Make = Callable[["Labels", "Configuration", Options], "Objective"]


def _segmentation(kind: "LossKind") -> Make:
    def make(labels: "Labels", configuration: "Configuration", options: Options) -> "Objective":
        # torch is imported late because `autoliver --help` reads only the names.
        from autoliver.training.objectives.segmentation import SegmentationObjective
        from autoliver.training.objectives.target import loss_options

        loss = loss_options(labels, batch_dice=configuration.batch_dice, kind=kind)
        loss = loss.replace(lowest_weight=configuration.network.lowest_weight)
        if options.class_weights is not None and options.class_weights != "balanced":
            loss = loss.replace(class_weights=options.class_weights)
        return SegmentationObjective(
            options=loss, names=tuple(labels.foreground), pseudo_weight=options.pseudo_weight
        )

    return make


OBJECTIVES: dict[str, Make] = {
    "dice-ce": _segmentation("dice-ce"),
    "dice-topk": _segmentation("dice-topk"),
    "dice-focal": _segmentation("dice-focal"),
    "dice-bce": _segmentation("dice-bce"),
    "focal-tversky": _segmentation("focal-tversky"),
}
DEFAULT_OBJECTIVE = "dice-ce"
# Without a cross-entropy, in which classes could be weighted.
_NO_ENTROPY = frozenset({"focal-tversky"})


def make_objective(
    labels: "Labels", configuration: "Configuration", options: Options
) -> "Objective":
    """Makes the objective of a training.

    Args:
        labels: The labels of the dataset.
        configuration: The configuration that is trained.
        options: The options of the training; `loss` is a name in `OBJECTIVES`.
    """
    make, head = OBJECTIVES[options.loss], configuration.network.classifier
    if head is None:
        return make(labels, configuration, options)
    from autoliver.training.objectives.lesions import LesionObjective
    from autoliver.training.objectives.target import class_table
    from autoliver.training.tasks import head_labels

    merged = head_labels(labels, configuration)
    # Both tables begin with what lies outside of the image, which no batch shows.
    pairs = zip(class_table(labels)[1:], class_table(merged)[1:], strict=True)
    becomes = {int(own): int(other) for own, other in pairs}
    return LesionObjective(
        segmentation=None if head.alone else make(merged, configuration, options),
        rows=head.rows,
        merged=tuple(becomes.get(row, 0) for row in range(max(becomes) + 1)),
        weight=1.0 if head.alone else options.cls_weight,
    )


def check_objective(name: object) -> str:
    """Returns the name of an objective, or refuses one that is not in `OBJECTIVES`.

    Raises:
        OptionError: There is no such objective; the message names those that exist, and the hint
            one with a similar name.
    """
    return check_choice("--loss", name, tuple(OBJECTIVES))


def weights_of_classes(value: object) -> "tuple[float, ...] | Literal['balanced']":
    """Reads the weights of classes.

    Args:
        value: "balanced", text such as "0.1,1,1", or a list or tuple of numbers.

    Raises:
        OptionError: The value is neither.
    """
    if isinstance(value, str) and value.strip().casefold() == "balanced":
        return "balanced"
    parts = value.split(",") if isinstance(value, str) else value
    try:
        if isinstance(parts, list | tuple) and parts:
            return tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        pass
    raise WrongValue(
        f"--class-weights: {value!r} is neither balanced nor a list of weights such as 0.1,1,1.",
        hint="Give one weight for each class, background first.",
    )


def check_class_weights(options: Options) -> None:
    """Refuses weights of classes that are not above 0, or that the loss does not use.

    Raises:
        OptionError: They are not, or the loss has no cross-entropy.
    """
    weights = options.class_weights
    if weights is None:
        return
    if options.loss in _NO_ENTROPY:
        raise OptionError(
            f"--class-weights weighs the cross-entropy, which --loss {options.loss} does not have.",
            hint=f"Leave it out, or take --loss {DEFAULT_OBJECTIVE}.",
        )
    for weight in () if weights == "balanced" else weights:
        check_number("--class-weights", weight, above=0)


def check_classes(options: Options, labels: "Labels") -> None:
    """Refuses weights of classes that do not fit the labels of a dataset.

    Raises:
        OptionError: Their number differs, or the labels are regions, which have no classes.
    """
    weights = options.class_weights
    if weights is None:
        return
    if labels.has_regions:
        raise OptionError(
            "--class-weights needs classes that exclude one another; the labels of this dataset "
            f"are trained as regions: {', '.join(labels.foreground)}.",
            hint="Leave it out.",
        )
    names = list(labels.values)
    if weights != "balanced" and len(weights) != len(names):
        given = ",".join(f"{weight:g}" for weight in weights)
        raise OptionError(
            f"--class-weights {given} has {len(weights)} weights; there are {len(names)} classes: "
            f"{', '.join(names)}.",
            hint="Give one weight for each class, in this order, or balanced.",
        )
