"""Records what a transfer did with each weight."""

from typing import ClassVar, Literal

from autoliver.artifacts import Artifact, Record
from autoliver.networks.contract import WeightRole
from autoliver.networks.spec import NetworkSpec

Action = Literal["loaded", "adapted", "reset"]
# "map": the heads' rows are matched by the names of the labels; "reset": they are initialised at
# random.
Heads = Literal["map", "reset"]
# How a kernel of a 2D network becomes one of a 3D network (`transfer/inflate.py`).
Inflation = Literal["mean", "center", "repeat"]

# The source that stands for ImageNet weights of an encoder.
IMAGENET = "imagenet"

# Below this share of the parameters outside the heads, a transfer deserves a warning.
ENOUGH = 0.95
_MEANING: dict[Action, str] = {
    "loaded": "unchanged",
    "adapted": "changed to fit",
    "reset": "initialised at random: the source has none for them",
}


class Transferred(Record, frozen=True, kw_only=True):
    """How one weight of the target was made.

    Attributes:
        name: The weight's name.
        action: "loaded": unchanged from the source; "adapted": changed to fit; "reset": randomly
            initialised.
        parameters: How many numbers it holds.
        taken: How many of them come from the source.
        how: What was done, in words; empty if it was loaded unchanged.
    """

    name: str
    action: Action
    parameters: int
    taken: int
    how: str = ""


class TransferTable(Record, frozen=True, kw_only=True):
    """How all weights of the target were made.

    Attributes:
        weights: One entry per weight of the target.
        ignored: Names of the source's weights that the target does not have.
        labels: Target label -> source label from which its row was made; "" if the row was
            initialised at random.
    """

    weights: tuple[Transferred, ...]
    ignored: tuple[str, ...]
    labels: dict[str, str]

    def share(self, network: NetworkSpec, *, of: str | None = None) -> float:
        """Returns the share of the parameters that come from the source.

        Args:
            network: The target's network.
            of: The group of parts whose parameters count; None for all outside the heads.

        Returns:
            A number from 0 to 1.
        """
        roles = {weight.name: network.role(weight.name) for weight in self.weights}
        body = [
            weight
            for weight in self.weights
            if (not roles[weight.name].head if of is None else _is_in(roles[weight.name], of))
        ]
        return sum(w.taken for w in body) / max(1, sum(w.parameters for w in body))

    def describe(self, share: float) -> str:
        """Formats how many weights and parameters were loaded, adapted, reset and ignored.

        Args:
            share: Share of the parameters outside the heads that come from the source, 0 to 1.
        """
        every = max(1, sum(weight.parameters for weight in self.weights))
        lines = [f"{'':8}  {'weights':>7}  {'parameters':>10}  {'share':>6}"]
        for action, meaning in _MEANING.items():
            group = [weight for weight in self.weights if weight.action == action]
            count = sum(weight.parameters for weight in group)
            how = "; ".join(dict.fromkeys(w.how for w in group if w.how)) or meaning
            lines.append(
                f"{action:8}  {len(group):7d}  {count:10,d}  {100 * count / every:5.1f}%"
                + (f"  {how}" if group else "")
            )
        lines.append(f"{'ignored':8}  {len(self.ignored):7d}  of the source: not in this network")
        mapped = [f"{name} <- {from_}" for name, from_ in self.labels.items() if from_]
        fresh = [name for name, from_ in self.labels.items() if not from_]
        lines.append("heads: " + (", ".join(mapped) or "all rows initialised at random"))
        if mapped and fresh:
            lines.append(f"       initialised at random: {', '.join(fresh)}")
        if share < ENOUGH:
            lines.append(
                f"Only {100 * share:.0f} % of the parameters outside the heads come from "
                "the source: the two networks differ considerably."
            )
        return "\n".join(lines)


def _is_in(role: WeightRole, group: str) -> bool:
    return role.part is not None and role.part[0] == group


class Transfer(Artifact, frozen=True, kw_only=True):
    """The `transfer.json` of a run: the weights that its folds start from.

    Attributes:
        source: The fold whose weights were taken.
        found: Where that fold was found.
        share: Share of the parameters outside the heads that come from the source, 0 to 1; of
            ImageNet weights, of the encoder's.
        mirror_axes: Patch axes along which the source was trained with flips.
        augment: The augmentations that the source was trained with.
        seen: The `image_key` of each case that the source, or weights before it, had seen.
        ancestors: First twelve hex digits of the checksums of the weights, the source first.
        inflate: How kernels were carried between 2D and 3D; None if both networks have the same
            dimension.
        table: How each weight was made.
    """

    KIND: ClassVar[str] = "transfer"

    source: str
    found: str
    share: float
    mirror_axes: tuple[int, ...]
    augment: str
    table: TransferTable
    seen: tuple[str, ...] = ()
    ancestors: tuple[str, ...] = ()
    inflate: Inflation | None = None
