"""What `--loss` may say: the objectives a training can have, and how each is made."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from autoliver.values import check_choice

if TYPE_CHECKING:
    from autoliver.datasets.cases import Labels
    from autoliver.planning.plan import Configuration
    from autoliver.training.objectives.objective import Objective
    from autoliver.training.objectives.segmentation import LossKind


class Options(Protocol):
    """What an objective may ask of the training's options (`training/options.py`)."""

    @property
    def loss(self) -> str:
        """The name of the objective."""


Make = Callable[["Labels", "Configuration", Options], "Objective"]


def _segmentation(kind: "LossKind") -> Make:
    def make(labels: "Labels", configuration: "Configuration", _options: Options) -> "Objective":
        # torch is imported late: the names alone are read by `autoliver --help`.
        from autoliver.training.objectives.segmentation import SegmentationObjective
        from autoliver.training.objectives.target import loss_options

        rows = configuration.network.out_channels - (0 if labels.has_regions else 1)
        loss = loss_options(labels, batch_dice=configuration.batch_dice, kind=kind)
        return SegmentationObjective(options=loss, rows=rows)

    return make


OBJECTIVES: dict[str, Make] = {
    "dice-ce": _segmentation("dice-ce"),
    "dice-topk": _segmentation("dice-topk"),
    "dice-focal": _segmentation("dice-focal"),
}
DEFAULT_OBJECTIVE = "dice-ce"


def make_objective(
    labels: "Labels", configuration: "Configuration", options: Options
) -> "Objective":
    """The objective of a training.

    Args:
        labels: Of the dataset.
        configuration: Of the training.
        options: Of the training; its `loss` is a name of `OBJECTIVES`.
    """
    return OBJECTIVES[options.loss](labels, configuration, options)


def check_objective(name: object) -> str:
    """Refuses a name that is none of `OBJECTIVES`.

    Raises:
        OptionError: Naming what there is, and what was meant.
    """
    return check_choice("--loss", name, tuple(OBJECTIVES))
