"""A trained model on disk and in memory: networks and all they need to predict."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoliver.models.files import (
    WEIGHTS_FILE,
    ModelFiles,
    Place,
    check_members,
    check_previous,
    load_infos,
)
from autoliver.models.selection import CleaningRule
from autoliver.planning.plan import Configuration, Plan

if TYPE_CHECKING:
    import torch
    from torch import nn


# With these a network has seen the contrasts of its training cases alone.
_OWN_MODALITY_ALONE = ("default", "none")


@dataclass(frozen=True, kw_only=True)
class Member:
    """Folds of one run: their logits are averaged on the network's grid.

    Attributes:
        name: For messages.
        plan: Their common plan.
        configuration: Their common configuration.
        mirror_axes: Patch axes that every fold was trained to see flipped.
        networks: One per fold, in eval mode.
        device: Where the networks are.
        previous: The low-resolution stage whose label map they see, for a cascade.
        cross_modal: Whether every fold was trained with augmentations that prepare it for images of
            another modality than the plan's.
    """

    name: str
    plan: Plan
    configuration: Configuration
    mirror_axes: tuple[int, ...]
    networks: tuple["nn.Module", ...]
    device: "torch.device"
    previous: "Member | None" = None
    cross_modal: bool = False


@dataclass(frozen=True, kw_only=True)
class Model:
    """Members whose probabilities are averaged on the case's own grid.

    Attributes:
        name: For messages.
        members: At least one; all with the same channels and labels.
        cleaning: Rules applied to the label map.
        finder: Coarse folds near whose foreground alone the members look; None: everywhere.
    """

    name: str
    members: tuple[Member, ...]
    cleaning: tuple[CleaningRule, ...] = ()
    finder: Member | None = None

    @property
    def plan(self) -> Plan:
        """The first member's: channels, modality and labels are those of all."""
        return self.members[0].plan

    @property
    def parts(self) -> tuple[Member, ...]:
        """All that look at the image: members, first stages of cascades, the finder."""
        previous = (member.previous for member in self.members)
        return tuple(part for part in (*self.members, *previous, self.finder) if part is not None)


def load_model(files: ModelFiles, *, device: "torch.device") -> Model:
    """Loads the members of a model.

    Args:
        files: Where they lie.
        device: Where to put the networks.

    Raises:
        ArtifactError: A model.json is missing or damaged.
        ModelError: Weights are missing or damaged, the folds of a member disagree in plan or
            configuration, or members in channels or labels.
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
        # A model in a file may have no name but its run's.
        name = f"{run.parent.parent.name}/{run.name}".lstrip("/")
        finder = load_member(files.finder.folds, name=name, device=device)
    return Model(name=files.name, members=tuple(members), cleaning=files.cleaning, finder=finder)


def load_member(folders: Sequence[Place], *, name: str, device: "torch.device") -> Member:
    """Loads folds of one run; arguments and errors as `load_model`."""
    from autoliver.inference.fastest import Fastest
    from autoliver.networks.checkpoint import load_network

    infos = load_infos(folders, name=name)
    first = infos[0]
    networks = [
        Fastest(
            load_network(folder / WEIGHTS_FILE, device=device, sha256=info.weights_sha256)
        ).eval()
        for folder, info in zip(folders, infos, strict=True)
    ]
    return Member(
        name=name,
        plan=first.plan,
        configuration=first.decisions,
        mirror_axes=tuple(sorted(set.intersection(*(set(info.mirror_axes) for info in infos)))),
        networks=tuple(networks),
        device=device,
        cross_modal=all(info.augment not in _OWN_MODALITY_ALONE for info in infos),
    )
