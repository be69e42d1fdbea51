"""Loads trained models: networks and everything they need to predict."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoliver.errors import MachineError, ModelError
from autoliver.inference.lesions.vote import VoteOptions
from autoliver.memory import out_of_memory
from autoliver.models.files import (
    WEIGHTS_FILE,
    ModelFiles,
    Place,
    Roi,
    check_members,
    check_previous,
    load_infos,
    shared_roi,
)
from autoliver.models.selection import CleaningRule
from autoliver.planning.plan import Configuration, Plan
from autoliver.preprocessing.histogram import Histogram, mean_histograms
from autoliver.values import counted

if TYPE_CHECKING:
    import torch
    from torch import nn


# With these augmentations a network has seen no contrasts but those of its training cases.
_OWN_MODALITY_ALONE = ("default", "none")


@dataclass(frozen=True, kw_only=True)
class Member:
    """Folds of one run, whose logits are averaged on the network grid.

    Attributes:
        name: Name for messages.
        plan: The plan that all folds share.
        configuration: The configuration that all folds share.
        mirror_axes: Patch axes along which every fold was trained with flips.
        networks: One network per fold, in eval mode.
        device: The device that the networks are on.
        previous: For a cascade, the low-resolution stage whose label map is part of the input; else
            None.
        cross_modal: Whether every fold was trained with augmentations that prepare it for images of
            another modality than the plan's.
        histograms: What the training images look like to the networks, channel by channel; empty if
            that is not known.
        next_stage_cleaning: Rules applied to its label map before a cascade takes it as input.
        lesion_classes: Labels that are classes of lesions to every fold; empty if there are none.
        roi: The region that it predicts in; None: whole scans.
    """

    name: str
    plan: Plan
    configuration: Configuration
    mirror_axes: tuple[int, ...]
    networks: tuple["nn.Module", ...]
    device: "torch.device"
    previous: "Member | None" = None
    cross_modal: bool = False
    next_stage_cleaning: tuple[CleaningRule, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    lesion_classes: tuple[str, ...] = ()
    roi: Roi | None = None

    @property
    def votes(self) -> bool:
        """Whether each lesion gets one of several classes."""
        return len(self.lesion_classes) > 1

    @property
    def classifies(self) -> bool:
        """Whether it only tells the class of lesions."""
        return self.configuration.network.classifies


@dataclass(frozen=True, kw_only=True)
class Model:
    """Members whose probabilities are averaged on the case's own grid.

    Attributes:
        name: Name for messages.
        members: At least one; all have the same channels and labels.
        cleaning: Cleaning rules that are applied to the label map.
        finder: A coarse member that runs first; the others then predict only near the foreground it
            finds. None to predict everywhere.
        temperature: Temperature of the probabilities of lesions' classes.
    """

    name: str
    members: tuple[Member, ...]
    cleaning: tuple[CleaningRule, ...] = ()
    finder: Member | None = None
    temperature: float = 1.0

    @property
    def plan(self) -> Plan:
        """The plan of the first member; all members share its channels, modality and labels."""
        return self.members[0].plan

    @property
    def lesion_classes(self) -> tuple[str, ...]:
        """Labels that are classes of lesions to every member; empty if members differ."""
        return _shared([member.lesion_classes for member in self.members])

    @property
    def votes(self) -> bool:
        """Whether each lesion gets one of several classes."""
        return len(self.lesion_classes) > 1

    @property
    def needs_lesions(self) -> bool:
        """Whether a member only tells the class of lesions, and has to be told where they are."""
        return any(part.classifies for part in self.parts)

    @property
    def parts(self) -> tuple[Member, ...]:
        """Everything that is run on the image: members, first stages of cascades, the finder."""
        previous = (member.previous for member in self.members)
        return tuple(part for part in (*self.members, *previous, self.finder) if part is not None)


def load_model(files: ModelFiles, *, device: "torch.device") -> Model:
    """Loads the members of a model.

    Args:
        files: The files of the model.
        device: The device to put the networks on.

    Raises:
        ArtifactError: A model.json is missing or damaged.
        ModelError: Weights are missing or damaged, folds of a member differ in their plan or
            configuration, members differ in their channels or labels, or a class of lesions has no
            value of its own.
    """
    members = []
    for part in files.members:
        member = load_member(part.folds, name=files.name, device=device)
        if member.configuration.previous_stage is not None:
            check_previous(part, member.plan, member.configuration, name=files.name)
            previous = load_member(part.previous, name=files.name, device=device)
            member = dataclasses.replace(member, previous=previous)
        members.append(member)
    check_members(files, [member.plan for member in members])
    finder = None
    if files.finder is not None:
        run = files.finder.folds[0].parent
        # A model in an exported file may have no name other than its run's.
        name = f"{run.parent.parent.name}/{run.name}".lstrip("/")
        finder = load_member(files.finder.folds, name=name, device=device)
    model = Model(
        name=files.name,
        members=tuple(members),
        cleaning=files.cleaning,
        finder=finder,
        temperature=files.temperature,
    )
    several = {member.lesion_classes for member in members if member.lesion_classes}
    if len(several) > 1:
        told = "; ".join(f"{m.name} has {', '.join(m.lesion_classes)}" for m in members)
        raise ModelError(
            f"{files.name}: its members tell other classes of lesions apart: {told}.",
            hint="Predict with each of them alone.",
        )
    VoteOptions.of(model.plan.labels, model.lesion_classes, model=model.name)
    return model


def check_histograms(model: Model) -> None:
    """Checks that the values of a case can be matched for every network of a model.

    Raises:
        ModelError: A network's training images are not known.
    """
    for part in model.parts:
        if not part.histograms:
            raise ModelError(
                f"--match: {part.name} does not say what its training images look like, which "
                "models of nnU-Net and of earlier versions of autoliver do not.",
                hint="Predict without --match; or train the model again, or for one more epoch "
                "(train --extend 1), which records it.",
            )


def load_member(folders: Sequence[Place], *, name: str, device: "torch.device") -> Member:
    """Loads folds of one run.

    Args:
        folders: The folders of the folds.
        name: Name for messages.
        device: The device to put the networks on.

    Raises:
        ArtifactError: A model.json is missing or damaged.
        ModelError: Weights are missing or damaged, or the folds differ in plan or configuration.
        MachineError: The networks do not fit on the device.
    """
    from autoliver.inference.fastest import Fastest
    from autoliver.networks.checkpoint import load_network
    from autoliver.networks.device import MORE_MEMORY

    infos = load_infos(folders, name=name)
    first, histograms = infos[0], [info.histograms for info in infos]
    try:
        networks = [
            Fastest(
                load_network(
                    folder / WEIGHTS_FILE,
                    device=device,
                    sha256=info.weights_sha256,
                    expected=info.decisions.network,
                )
            ).eval()
            for folder, info in zip(folders, infos, strict=True)
        ]
    except RuntimeError as error:
        if out_of_memory(error) != "accelerator":
            raise
        raise MachineError(
            f"{name}: the GPU has too little memory for {counted(len(folders), 'network')}.",
            hint=MORE_MEMORY,
        ) from error
    return Member(
        name=name,
        plan=first.plan,
        configuration=first.decisions,
        mirror_axes=tuple(sorted(set.intersection(*(set(info.mirror_axes) for info in infos)))),
        networks=tuple(networks),
        device=device,
        next_stage_cleaning=first.next_stage_cleaning,
        histograms=mean_histograms(histograms) if all(histograms) else (),
        cross_modal=all(info.augment not in _OWN_MODALITY_ALONE for info in infos),
        lesion_classes=_shared([info.lesion_classes for info in infos]),
        roi=shared_roi(infos, name=name),
    )


def _shared(classes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """What is the same everywhere; nothing if it is not."""
    return classes[0] if len(set(classes)) == 1 else ()
