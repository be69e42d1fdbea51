"""The options of prediction; this module does not import torch."""

from typing import Literal

from autoliver.artifacts import Record
from autoliver.planning.names import ModalityName
from autoliver.values import check_number, check_types

ModalityChoice = Literal["auto", "CT", "MR"]
# What is written for a case: a label map, or a DICOM segmentation as well.
OutputFormat = Literal["nifti", "dicom-seg"]

# Windows closer together than a tenth of the patch are nearly the same; if they were further apart
# than one patch, there would be gaps.
LEAST_STEP, MOST_STEP = 0.1, 1.0

# Name of the way of computing in which a network is run unchanged.
AS_IT_IS = "as it is"


class UsedModality(Record, frozen=True, kw_only=True):
    """The modality by which a case is normalised.

    Attributes:
        modality: The modality; None to normalise as the model was planned.
        why: The reason for it in words.
        how: What is done to its values, in words.
    """

    modality: ModalityName | None = None
    why: str = ""
    how: str = "normalised as planned"


class UsedRegion(Record, frozen=True, kw_only=True):
    """The region of a case that a model predicts in.

    Attributes:
        label: The label that it is around.
        finder: Name of the model that found it, or "the reference label".
        box: First and last-plus-one voxel of the label per axis of the array (z, y, x), without the
            margin; None if it was not found, so that the whole scan was predicted.
    """

    label: str
    finder: str
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None


class PredictOptions(Record, frozen=True, kw_only=True):
    """The options of prediction.

    Attributes:
        step: Distance between neighbouring windows as a share of the patch, 0.1 to 1.
        mirror: Whether to average over flips along the axes that training flipped.
        overlap: Whether to read the next case and export the last one while a case is on the
            device. This needs the memory of up to three cases.
        probabilities: Whether to write CASE.npz with the probabilities, (k, z, y, x), as well.
        uncertainty: Whether to write CASE_uncertainty with the entropy of the mean over all
            networks as well.
        modality: The modality by which each case is normalised. "auto" uses what the case looks
            like; None uses what each network was planned for.
        exact: Whether to compute in float32 with the unchanged networks. Nothing is then chosen by
            timing, so the same machine gives the same bits again.
        match: Whether the values of a case of another modality than the model's are matched to
            those of the training images, instead of being normalised by themselves.
    """

    step: float = 0.5
    mirror: bool = True
    overlap: bool = True
    probabilities: bool = False
    uncertainty: bool = False
    modality: ModalityChoice | None = "auto"
    exact: bool = False
    match: bool = False

    def __post_init__(self) -> None:
        """Refuses invalid values; callers of the library may pass anything.

        Raises:
            OptionError: A value is invalid; the message names the option and the value.
        """
        check_types(self)
        check_number("--step", self.step, least=LEAST_STEP, most=MOST_STEP)
