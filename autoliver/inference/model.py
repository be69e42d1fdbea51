"""A trained model on disk and in memory: networks and all they need to predict."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from autoliver.artifacts import Artifact
from autoliver.errors import ModelError
from autoliver.planning.plan import Configuration, ConfigurationName, Plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WEIGHTS_FILE = "weights.safetensors"
MODEL_FILE = "model.json"

_MEND = "autoliver train DATASET CONFIG --fold N --fresh"


class FoldModel(Artifact, frozen=True, kw_only=True):
    """What a trained fold needs to predict, besides its weights.

    Attributes:
        plan: The plan it was trained with, reduced to its configuration.
        configuration: That configuration's name.
        fold: "0" to "4", or "all".
        cases: What it was trained on.
        epochs: Finished epochs.
        mirror_axes: Patch axes over whose flips a prediction may average: those it was trained on.
        weights_sha256: Of the weights file beside it.
    """

    KIND: ClassVar[str] = "model"

    plan: Plan
    configuration: ConfigurationName
    fold: str
    cases: tuple[str, ...]
    epochs: int
    mirror_axes: tuple[int, ...]
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """Folds that predict together.

    Attributes:
        name: For messages.
        plan: Their common plan.
        configuration: Their common configuration.
        mirror_axes: Patch axes that every fold was trained to see flipped.
        networks: One per fold, in eval mode.
        device: Where the networks are.
    """

    name: str
    plan: Plan
    configuration: Configuration
    mirror_axes: tuple[int, ...]
    networks: tuple["nn.Module", ...]
    device: "torch.device"


def save_fold(folder: Path, weights: "dict[str, Tensor]", info: FoldModel) -> None:
    """Writes weights and then model.json, whose presence says that the fold is finished.

    Args:
        folder: The fold's folder.
        weights: State dict of the network.
        info: Its description; the checksum is filled in here.
    """
    from autoliver.networks.checkpoint import save_weights

    spec = info.plan.configurations[info.configuration].network
    save_weights(folder / WEIGHTS_FILE, weights, spec=spec)
    info.replace(weights_sha256=_sha256(folder / WEIGHTS_FILE)).save(folder / MODEL_FILE)


def load_model(folders: Sequence[Path], *, name: str, device: "torch.device") -> Model:
    """Loads folds of one run.

    Args:
        folders: Fold folders, each with model.json and weights.safetensors.
        name: Of the model, for messages.
        device: Where to put the networks.

    Raises:
        ArtifactError: A model.json is missing or damaged.
        ModelError: The weights are missing or damaged, or the folds disagree in plan or
            configuration.
    """
    from autoliver.networks.checkpoint import load_network

    infos = [FoldModel.load(folder / MODEL_FILE, mend=_MEND) for folder in folders]
    first = infos[0]
    networks = []
    for folder, info in zip(folders, infos, strict=True):
        if (info.configuration, info.plan.digest()) != (first.configuration, first.plan.digest()):
            raise ModelError(
                f"{name}: {folder.name} was trained with another plan than {folders[0].name}.",
                hint="Predict with one of them (--folds), or train the others again.",
            )
        weights = folder / WEIGHTS_FILE
        if weights.exists() and _sha256(weights) != info.weights_sha256:
            raise ModelError(
                f"{weights}: damaged: its content is not what model.json recorded.",
                hint="Copy the file again from where it came, or train the fold with --fresh.",
            )
        networks.append(load_network(weights, device=device).eval())
    return Model(
        name=name,
        plan=first.plan,
        configuration=first.plan.configurations[first.configuration],
        mirror_axes=tuple(sorted(set.intersection(*(set(info.mirror_axes) for info in infos)))),
        networks=tuple(networks),
        device=device,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
