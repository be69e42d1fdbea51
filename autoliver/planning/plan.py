"""The fingerprint of a dataset and the plan made from it, as values."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import msgspec

from autoliver.artifacts import Artifact, Record
from autoliver.datasets.cases import Labels, Modality
from autoliver.errors import OptionError
from autoliver.networks.spec import NetworkSpec
from autoliver.planning.names import ConfigurationName, Preset, SpacingMode
from autoliver.planning.ranges import SeenImages
from autoliver.values import check_types, set_field, spelled

Normalization = Literal["ct", "zscore", "rescale01", "rgb", "none"]


class IntensityStats(Record, frozen=True, kw_only=True):
    """Foreground intensities of one channel, pooled over all labelled cases."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


class CaseFingerprint(Record, frozen=True, kw_only=True):
    """What one case contributes. All tuples are (z, y, x).

    Attributes:
        name: The case.
        spacing_mm: Its spacing.
        shape: Its size in voxels.
        shape_after_crop: Its size after cropping to the non-zero region.
        axis_codes: The anatomical order of its axes, x first, e.g. "LPS"; "" where unknown.
    """

    name: str
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    shape_after_crop: tuple[int, int, int]
    axis_codes: str = ""


class Fingerprint(Artifact, frozen=True, kw_only=True):
    """What the planner needs to know about a dataset.

    Attributes:
        cases: One entry per labelled case, sorted by name.
        median_relative_size_after_cropping: Median over cases of the cropped share of voxels.
        intensities: One per channel.
        seen: What the labelled cases' images look like as a whole; None where that is not known.
    """

    KIND: ClassVar[str] = "fingerprint"
    NOT_COUNTED: ClassVar[frozenset[str]] = frozenset({"seen"})

    cases: tuple[CaseFingerprint, ...]
    median_relative_size_after_cropping: float
    intensities: tuple[IntensityStats, ...]
    seen: SeenImages | None = None


class Configuration(Record, frozen=True, kw_only=True):
    """Every decision of one configuration. Axes are the plan's transposed ones.

    Attributes:
        spacing_mm: Target spacing, 3 values; in 2D the 2 in-plane ones (the slice axis is kept).
        median_shape: Median size of the resampled cases (2 or 3 values, as nnU-Net states them).
        patch_shape: Patch size, 2 or 3 values.
        batch_size: Patches per step.
        batch_dice: Whether Dice is computed over the batch as one rather than per sample.
        normalization: One scheme per channel.
        mask_norm: Per channel, whether statistics use only the non-zero mask.
        network: The network, in_channels and out_channels included.
        previous_stage: The configuration whose prediction enters as further channels.
        reasons: Decision -> why, in one sentence each.
    """

    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    patch_shape: tuple[int, ...]
    batch_size: int
    batch_dice: bool
    normalization: tuple[Normalization, ...]
    mask_norm: tuple[bool, ...]
    network: NetworkSpec
    previous_stage: ConfigurationName | None = None
    reasons: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.patch_shape)


_SPACING_HINT = "Give the spacing as Z Y X, e.g. --spacing 2.5 0.8 0.8."


def check_spacing(spacing_mm: Sequence[float]) -> None:
    """Refuses a spacing that no image has.

    Args:
        spacing_mm: (z, y, x).

    Raises:
        OptionError: A length is not above zero, or not finite.
    """
    if not all(0 < mm < math.inf for mm in spacing_mm):
        values = " ".join(f"{mm:g}" for mm in spacing_mm)
        raise OptionError(
            f"--spacing {values}: expected lengths above zero, in mm.", hint=_SPACING_HINT
        )


# How the command line spells the fields whose names carry units.
_FLAGS = {"vram_gb": "--vram", "spacing_mm": "--spacing", "window_hu": "--window"}


class PlanOptions(Record, frozen=True, kw_only=True):
    """What the user decides about a plan.

    Attributes:
        preset: The network's size; M, L and XL have a residual encoder, tiny is default with a
            quarter of the features.
        vram_gb: Memory target; None takes the preset's.
        spacing_mm: Target spacing (z, y, x) of full resolution; None takes the dataset's.
        batch_cap: Whether a batch shows at most 5 % of the dataset's voxels.
        window_hu: What CT is clipped to; None takes percentiles of the labelled voxels.
        keep_axes: Whether cases keep the order of axes of their files, as in nnU-Net, instead of
            being brought to one.
    """

    preset: Preset = "default"
    vram_gb: float | None = None
    spacing_mm: tuple[float, float, float] | None = None
    batch_cap: bool = True
    window_hu: tuple[float, float] | None = None
    keep_axes: bool = False

    def __post_init__(self) -> None:
        """Refuses values that cannot be; a preset may be given in other capitals.

        Raises:
            OptionError: Naming the option and its value.
        """
        set_field(self, "preset", spelled(self.preset, get_args(Preset)))
        check_types(self, flags=_FLAGS)
        if self.vram_gb is not None and not 0 < self.vram_gb < math.inf:
            raise OptionError(
                f"--vram {self.vram_gb}: expected a size in GB above zero.",
                hint="Give the memory of your GPU, e.g. --vram 8, or leave the option out.",
            )
        window = self.window_hu
        if window is not None and not -math.inf < window[0] < window[1] < math.inf:
            raise OptionError(
                f"--window {window[0]:g} {window[1]:g}: expected a lower and a higher HU value.",
                hint="For soft tissue and fat give --window -150 250.",
            )
        if self.spacing_mm is not None:
            check_spacing(self.spacing_mm)


class LikeOptions(Record, frozen=True, kw_only=True):
    """How a target is planned like a source.

    Attributes:
        spacing: "source": images are brought to the source's spacing, where organs have the size
            in voxels that its network knows; "target": to the target's own median; "auto": the
            source's, but for axes along which more than half of the target's slices would be
            interpolated, which keep their own; "fixed": to `spacing_mm`.
        spacing_mm: Three spacings (z, y, x), with "fixed" alone.
    """

    spacing: SpacingMode = "auto"
    spacing_mm: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        """Refuses options that contradict each other or cannot be.

        Raises:
            OptionError: Saying what to give.
        """
        check_types(self, flags={"spacing": "--like-spacing", "spacing_mm": "--spacing"})
        given = self.spacing_mm
        if (given is None) == (self.spacing == "fixed"):
            problem = "lacks --spacing" if given is None else "and --spacing contradict each other"
            raise OptionError(f"--like-spacing {self.spacing} {problem}.", hint=_SPACING_HINT)
        if given is not None:
            check_spacing(given)


class Plan(Artifact, frozen=True, kw_only=True):
    """Every decision for one dataset, with its reason; with it a case can be preprocessed.

    Attributes:
        dataset: The dataset's name.
        preset: The preset it was made with.
        vram_gb: The memory target the patch and batch sizes were fitted to.
        channel_names: One per image channel.
        modality: Of the dataset.
        labels: Names and values.
        file_ending: Of the dataset's images.
        axis_codes: The anatomical order of axes that every case is brought to, x first, e.g. "LPS";
            "" where cases keep their own: with `keep_axes`, and in plans of nnU-Net or made before
            orders were looked at.
        seen_axes: The orders of the cases it was made from, where they keep their own.
        transpose_forward: Order of the image axes (z, y, x) in preprocessed arrays.
        transpose_backward: The inverse permutation.
        intensities: Of the fingerprint, one per channel; what CT normalisation uses.
        source_intensities: Of the CT that a plan for another modality follows, one per channel: how
            its network has learnt CT. Empty otherwise.
        like: How it follows another plan, where it does.
        asked: The options it was made with, so that it can be made again; None where it follows
            another plan, is another tool's, or was made before options were kept. They are not
            decisions and leave the digest as it is.
        seen: What the dataset's images look like as a whole, so that a case of another kind is
            noticed; None where that is not known. Not a decision either.
        configurations: Name -> configuration.
        reasons: Decisions about the plan as a whole, such as a configuration that was dropped
            ("3d_lowres"), and why, in one sentence each.
    """

    KIND: ClassVar[str] = "plan"
    NOT_COUNTED: ClassVar[frozenset[str]] = frozenset({"asked", "seen", "seen_axes"})

    dataset: str
    preset: Preset
    vram_gb: float
    channel_names: tuple[str, ...]
    modality: Modality
    labels: Labels
    file_ending: str
    transpose_forward: tuple[int, int, int]
    transpose_backward: tuple[int, int, int]
    intensities: tuple[IntensityStats, ...]
    configurations: dict[ConfigurationName, Configuration]
    source_intensities: tuple[IntensityStats, ...] = ()
    like: LikeOptions | None = None
    asked: PlanOptions | None = None
    seen: SeenImages | None = None
    axis_codes: str = ""
    seen_axes: tuple[str, ...] = ()
    reasons: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def ct_channels(self) -> tuple[int, ...]:
        """Indices of the channels whose intensities are normalised as CT."""
        schemes = [configuration.normalization for configuration in self.configurations.values()]
        found = {i for each in schemes for i, scheme in enumerate(each) if scheme == "ct"}
        return tuple(sorted(found))
