"""How to predict, as a value; needs no torch."""

from typing import Literal

from autoliver.artifacts import Record
from autoliver.values import check_number, check_types

ModalityChoice = Literal["auto", "CT", "MR"]

# Windows closer together than a tenth of the patch repeat one another; beyond one patch there would
# be gaps.
LEAST_STEP, MOST_STEP = 0.1, 1.0

# The way of computing in which a network is exact.
AS_IT_IS = "as it is"


class PredictOptions(Record, frozen=True, kw_only=True):
    """How to predict.

    Attributes:
        step: Distance of neighbouring windows as a share of the patch, 0.1 to 1.
        mirror: Average over flips along the axes the model was trained to see flipped.
        overlap: Read the next case and export the last one while one is on the device; takes the
            memory of up to three cases.
        probabilities: Also write CASE.npz with the probabilities, (k, z, y, x).
        uncertainty: Also write CASE_uncertainty with the entropy of the mean over all networks.
        modality: By which each case is normalised; "auto": what it looks like; None: what each
            network was planned for.
        exact: Compute in float32 with the networks as they are. Nothing is chosen by timing, so the
            same machine gives the same bits again.
    """

    step: float = 0.5
    mirror: bool = True
    overlap: bool = True
    probabilities: bool = False
    uncertainty: bool = False
    modality: ModalityChoice | None = "auto"
    exact: bool = False

    def __post_init__(self) -> None:
        """Refuses values that cannot be; from Python they may be anything.

        Raises:
            OptionError: Naming the option and its value.
        """
        check_types(self)
        check_number("--step", self.step, least=LEAST_STEP, most=MOST_STEP)
