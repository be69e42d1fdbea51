"""What a transfer did, weight by weight."""

from typing import ClassVar, Literal

from autoliver.artifacts import Artifact, Record
from autoliver.networks.spec import NetworkSpec

Action = Literal["loaded", "adapted", "reset"]
# Whether the heads' rows follow the names of the labels, or are drawn.
Heads = Literal["map", "reset"]

# Of the parameters outside of the heads: below this a transfer is hardly one.
ENOUGH = 0.95
_MEANING: dict[Action, str] = {
    "loaded": "as they are",
    "adapted": "made to fit",
    "reset": "drawn: the source has none for them",
}


class Transferred(Record, frozen=True, kw_only=True):
    """What became of one weight of the target.

    Attributes:
        name: The weight.
        action: "loaded" as it is, "adapted", or "reset": as drawn.
        parameters: How many numbers it holds.
        taken: How many of them come from the source.
        how: What was done, in words; empty where it was loaded as it is.
    """

    name: str
    action: Action
    parameters: int
    taken: int
    how: str = ""


class TransferTable(Record, frozen=True, kw_only=True):
    """What became of all weights.

    Attributes:
        weights: Of the target.
        ignored: Names of the source's weights that found no place.
        labels: Target label -> source label whose row it began with; "" where it was drawn.
    """

    weights: tuple[Transferred, ...]
    ignored: tuple[str, ...]
    labels: dict[str, str]

    def share(self, network: NetworkSpec) -> float:
        """The share of the parameters outside of the heads that come from the source.

        Args:
            network: The target.
        """
        body = [weight for weight in self.weights if not network.role(weight.name).head]
        return sum(w.taken for w in body) / max(1, sum(w.parameters for w in body))

    def describe(self, share: float) -> str:
        """A table for people: how many weights and parameters went which way.

        Args:
            share: Of the parameters outside of the heads, how much comes from the source.
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
        lines.append(f"{'ignored':8}  {len(self.ignored):7d}  of the source, without a place here")
        mapped = [f"{name} <- {from_}" for name, from_ in self.labels.items() if from_]
        fresh = [name for name, from_ in self.labels.items() if not from_]
        lines.append("heads: " + (", ".join(mapped) or "all rows drawn"))
        if mapped and fresh:
            lines.append(f"       drawn: {', '.join(fresh)}")
        if share < ENOUGH:
            lines.append(
                f"Only {100 * share:.0f} % of the parameters outside of the heads come from "
                "the source: its network differs much."
            )
        return "\n".join(lines)


class Transfer(Artifact, frozen=True, kw_only=True):
    """The transfer.json of a run: what its folds began with.

    Attributes:
        source: The fold whose weights were taken.
        found: Where it was found.
        share: Of the parameters outside of the heads, how much comes from the source.
        mirror_axes: Patch axes that the source was trained to see flipped.
        augment: The augmentations that it was trained with.
        table: What became of each weight.
    """

    KIND: ClassVar[str] = "transfer"

    source: str
    found: str
    share: float
    mirror_axes: tuple[int, ...]
    augment: str
    table: TransferTable
