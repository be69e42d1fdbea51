"""The values of `--loss`: the objectives of a training, and how each of them is made."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from autoliver.values import check_choice

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
        return SegmentationObjective(
            options=loss, names=tuple(labels.foreground), pseudo_weight=options.pseudo_weight
        )

    return make


OBJECTIVES: dict[str, Make] = {
    "dice-ce": _segmentation("dice-ce"),
    "dice-topk": _segmentation("dice-topk"),
    "dice-focal": _segmentation("dice-focal"),
    "dice-bce": _segmentation("dice-bce"),
}
DEFAULT_OBJECTIVE = "dice-ce"


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
