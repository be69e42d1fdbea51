"""What `pseudolabel` is asked for."""

from dataclasses import dataclass

from autoliver.errors import WrongValue
from autoliver.inference.options import ModalityChoice
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.shards import Shard
from autoliver.values import check_number, check_types


@dataclass(frozen=True, kw_only=True)
class PseudolabelRequest:
    """A request to `pseudolabel`.

    Attributes:
        labels: The labels that the model gives.
        modality: The modality by which each case is normalised, as for `predict`.
        folds: The folds to predict with, as for `predict`.
        least_confidence: Cases in which the mean probability of a label is lower are refused.
        volume_ml: Cases in which a label's volume is outside of these bounds are refused.
        most_outside: Cases are refused in which a larger share of a drawn label that belongs inside
            lies outside.
        band: Voxels with a probability between these get the ignore label; None: none does.
        largest: Whether only the largest piece of each label is kept.
        overwrite: Whether a dataset that is there may be replaced.
        shard: The part of the cases to label, for a dataset that is made later; None for all.
        machine: The device and memory that may be used.
    """

    labels: tuple[str, ...] = ("liver",)
    modality: ModalityChoice = "auto"
    folds: str | None = None
    least_confidence: float = 0.8
    volume_ml: tuple[float, float] = (500.0, 4000.0)
    most_outside: float = 0.5
    band: tuple[float, float] | None = (0.3, 0.7)
    largest: bool = True
    overwrite: bool = False
    shard: Shard | None = None
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            WrongValue: A value is invalid; the message names the option and the value.
        """
        check_types(self)
        check_number("--min-confidence", self.least_confidence, least=0, most=1)
        check_number("--max-outside", self.most_outside, least=0, most=1)
        low, high = self.volume_ml
        if not 0 <= low < high:
            raise WrongValue(
                f"--volume {low:g} {high:g}: expected two volumes in ml, the smaller one first.",
                hint="Give them as --volume 500 4000.",
            )
        if self.band is not None and not 0 <= self.band[0] <= 0.5 <= self.band[1] <= 1:
            raise WrongValue(
                f"--band {self.band[0]:g} {self.band[1]:g}: expected probabilities around 0.5.",
                hint="Give them as --band 0.3 0.7, or --no-band.",
            )
        if self.shard is not None and self.overwrite:
            raise WrongValue(
                f"--shard {self.shard} and --overwrite: one shard would remove what another made.",
                hint="Choose a new folder, or remove the old one first.",
            )
        if not self.labels:
            raise WrongValue("--label names no label.", hint="Give it as --label liver.")
