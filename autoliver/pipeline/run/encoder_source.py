"""ImageNet weights of a plan's encoder as the source of a training."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from autoliver.commands import command
from autoliver.datasets.cases import Dataset
from autoliver.errors import AutoliverError, ModelError, OptionError
from autoliver.networks.encoders import ENCODERS
from autoliver.pipeline.data import Planned, plan_command, planned_configuration
from autoliver.pipeline.run.request import TrainRequest
from autoliver.pipeline.run.source import Source, names_model
from autoliver.transfer.table import IMAGENET, Transfer
from autoliver.workspace import DatasetFolder, RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from autoliver.networks.spec import NetworkSpec


def asks_for_imagenet(name: str) -> bool:
    """Whether the value of `--pretrained` asks for ImageNet weights, not for a model."""
    return name.lower() == IMAGENET and not names_model(Path(name))


def check_planned(folder: DatasetFolder, dataset: Dataset) -> None:
    """Refuses ImageNet weights for a dataset without a plan, before one without encoder is made.

    Raises:
        ModelError: It has no plan.
    """
    if not folder.plan.exists():
        raise ModelError(
            f"--pretrained imagenet: {folder.name} has no plan yet, and by default networks have "
            "no encoder that ImageNet weights fit.",
            hint=_plan_one(folder, dataset),
        )


def is_unread(error: AutoliverError) -> bool:
    """Whether an error says that ImageNet weights cannot be read, not that they do not fit."""
    from autoliver.transfer.imagenet import UnreadWeights

    return isinstance(error, UnreadWeights)


def without_unread(request: TrainRequest, run: RunFolder) -> TrainRequest:
    """Leaves `--encoder-weights` out of a request if a run keeps other weights than it names."""
    from autoliver.transfer.imagenet import still_has

    given = request.encoder_weights
    if given is None or not run.transfer.exists():
        return request
    digest = Transfer.load(run.transfer, mend=run.mend).made_from["source"]
    return request if still_has(given, digest) else request.replace(encoder_weights=None)


def encoder_source(planned: Planned, request: TrainRequest) -> Source:
    """Finds the ImageNet weights of the encoder of the plan's network.

    Args:
        planned: The dataset with its plan.
        request: Its configuration and `encoder_weights` matter.

    Returns:
        The weights as those of a network of the same kind in 2D that sees a colour image, and of
        which nothing but the encoder is known.

    Raises:
        ModelError: The network has no such encoder, or there are no weights of it.
        OptionError: The options ask for a mixture with them.
    """
    from autoliver.transfer.imagenet import COLOURS, imagenet_weights

    wanted = request.configuration
    spec = planned_configuration(planned, wanted).network
    place = spec.pretrainable
    if place is None:
        raise ModelError(
            f"--pretrained imagenet: the network of {planned.dataset.name} {wanted} is "
            f"{spec.summary}, which has no encoder that ImageNet weights fit.",
            hint=_plan_one(planned.folder, planned.dataset),
        )
    share = request.changes.get("keep_source")
    if share is not None:
        raise OptionError(
            f"--keep-source {share} mixes the final weights with the source's, but ImageNet "
            "weights alone segment nothing.",
            hint="Leave it out, or start from a trained model.",
        )
    again = command(
        *("train", planned.dataset.name, wanted),
        options=["--pretrained", IMAGENET, "--encoder-weights", "FILE"],
        workspace=planned.folder.path.parent,
    )
    found = imagenet_weights(place.encoder, request.encoder_weights, again=again)
    # A stem that sees other features than an image starts anew, as if there were no weights of it.
    left = "" if place.stem else ENCODERS[place.encoder].stem_weight

    def read() -> "dict[str, Tensor]":
        weights = {
            name if name == left else place.prefix + name: w for name, w in found.weights.items()
        }
        return weights | found.unused

    return Source(
        name=IMAGENET,
        fold=IMAGENET,
        where=found.where,
        again=IMAGENET,
        info=None,
        spec=cast("NetworkSpec", place.alike),
        digest=found.sha256[:12],
        read=read,
        channels=COLOURS,
    )


def _plan_one(folder: DatasetFolder, dataset: Dataset) -> str:
    plan = plan_command(folder, dataset, ["--encoder", "efficientnet_b0"])
    return f"Plan it with one: {plan}"
