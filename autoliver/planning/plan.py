"""The records of a dataset's fingerprint and of the plan that is made from it."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import msgspec

from autoliver.artifacts import Artifact, Fault, Record, unfit, within
from autoliver.datasets.cases import Labels, Modality
from autoliver.errors import ModelError, OptionError, WrongValue
from autoliver.io.dicom.codes import SegmentCodes
from autoliver.networks.spec import NetworkSpec
from autoliver.planning.names import (
    ENCODER_OF,
    PRESETS_OF,
    WITH_ENCODER,
    Architecture,
    ConfigurationName,
    EncoderName,
    Preset,
    SpacingMode,
    ZStrides,
)
from autoliver.planning.ranges import SeenImages
from autoliver.values import check_types, counted

Normalization = Literal["ct", "zscore", "rescale01", "rgb", "none"]
Average = Literal["logits", "probabilities"]
# What no plan exceeds: voxels along an axis and of a patch, mm, patches of a step, grey values.
MOST_VOXELS, MOST_PATCH_VOXELS, MOST_MM = 100_000, 2**27, 100_000.0
MOST_PATCHES, MOST_INTENSITY = 100_000, 1e30
_LEAST_MM = 1e-4
# Every way of naming the two directions of each axis, x first.
_AXIS_CODES = re.compile(r"(?!.*([LR]).*[LR])(?!.*[PA].*[PA])(?!.*[IS].*[IS])[LRPAIS]{3}")


class IntensityStats(Record, frozen=True, kw_only=True):
    """Statistics of the foreground intensities of one channel, pooled over all labelled cases."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float

    def faults(self) -> Iterator[Fault]:
        """Yields numbers that no image holds, and bounds in the wrong order."""
        for name in self.__struct_fields__:
            if not abs(getattr(self, name)) <= MOST_INTENSITY:
                yield name, unfit(getattr(self, name), f"at most {MOST_INTENSITY:g}")
        if self.std < 0:
            yield "std", unfit(self.std, "0 or more")
        if self.percentile_00_5 > self.percentile_99_5:
            found = [self.percentile_00_5, self.percentile_99_5]
            yield "percentile_00_5", unfit(found, "no more than percentile_99_5")


class CaseFingerprint(Record, frozen=True, kw_only=True):
    """The grid of one case. All tuples are (z, y, x).

    Attributes:
        name: The case's name.
        spacing_mm: Spacing of the image.
        shape: Size of the image in voxels.
        shape_after_crop: Size in voxels after cropping to the non-zero region.
        axis_codes: Anatomical order of the image axes, x first, such as "LPS"; "" if unknown.
        label_values: The values in the label map, in ascending order; empty if unknown.
    """

    NOT_COUNTED: ClassVar[frozenset[str]] = frozenset({"label_values"})

    name: str
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    shape_after_crop: tuple[int, int, int]
    axis_codes: str = ""
    label_values: tuple[int, ...] = ()


class Fingerprint(Artifact, frozen=True, kw_only=True):
    """The properties of a dataset that the planner uses.

    Attributes:
        cases: The grid of each labelled case, sorted by name.
        median_relative_size_after_cropping: Median over cases of the share of voxels that cropping
            keeps, from 0 to 1.
        intensities: The foreground intensities of each channel.
        seen: What the images of the labelled cases look like as a whole; None if unknown.
    """

    KIND: ClassVar[str] = "fingerprint"
    NOT_COUNTED: ClassVar[frozenset[str]] = frozenset({"seen"})

    cases: tuple[CaseFingerprint, ...]
    median_relative_size_after_cropping: float
    intensities: tuple[IntensityStats, ...]
    seen: SeenImages | None = None

    def faults(self) -> Iterator[Fault]:
        """Yields grids that no image has, and intensities'."""
        for number, case in enumerate(self.cases):
            for field in ("shape", "shape_after_crop"):
                yield from _sizes(f"cases[{number}].{field}", getattr(case, field))
            yield from _lengths(f"cases[{number}].spacing_mm", case.spacing_mm)
        if not 0 <= self.median_relative_size_after_cropping <= 1:
            found = self.median_relative_size_after_cropping
            yield "median_relative_size_after_cropping", unfit(found, "0 to 1")
        if not self.intensities:
            yield "intensities", unfit([], "those of each channel")
        for number, stats in enumerate(self.intensities):
            yield from within(f"intensities[{number}]", stats.faults())


def _sizes(field: str, shape: Sequence[float]) -> Iterator[Fault]:
    if not all(1 <= size <= MOST_VOXELS for size in shape):
        yield field, unfit(list(shape), f"sizes from 1 to {MOST_VOXELS}")


def _lengths(field: str, spacing_mm: Sequence[float]) -> Iterator[Fault]:
    if not all(_LEAST_MM <= mm <= MOST_MM for mm in spacing_mm):
        yield field, unfit(list(spacing_mm), f"lengths from {_LEAST_MM:g} to {MOST_MM:g} mm")


class Configuration(Record, frozen=True, kw_only=True):
    """All decisions of one configuration. Axes are in the plan's transposed order.

    Attributes:
        spacing_mm: Target spacing, 3 values; in 2D the 2 in-plane ones, as slices are not resampled
            across.
        median_shape: Median size of the resampled cases in voxels (2 or 3 values, as in nnU-Net).
        patch_shape: Patch size in voxels, 2 or 3 values.
        batch_size: Number of patches per step.
        batch_dice: Whether Dice is computed over the whole batch rather than per sample.
        normalization: The normalisation scheme of each channel.
        mask_norm: Per channel, whether statistics use only the non-zero mask.
        network: The network's spec.
        previous_stage: The configuration whose prediction is added to the input channels; None for
            no such configuration.
        normalize_after_resampling: Whether intensities are normalised after resampling, as in
            nnU-Net v1, and not before.
        average: What is averaged over windows, flips and folds, and resampled to the case's grid:
            probabilities as in nnU-Net v1, which had no regions in it, or logits.
        slices: Odd number of neighbouring slices that a 2D network sees as channels; it labels the
            middle one. 1 in 3D.
        reasons: Decision -> the reason for it, in one sentence.
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
    normalize_after_resampling: bool = False
    average: Average = "logits"
    slices: int = 1
    reasons: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """The patch size with all slices that the network sees."""
        return self.patch_shape if self.slices == 1 else (self.slices, *self.patch_shape)

    def inputs(self, channel_names: Sequence[str]) -> tuple[str, ...]:
        """Returns the name of each image channel of the network."""
        half = self.slices // 2
        return tuple(
            f"{name}, slice {offset:+}" if offset else name
            for name in channel_names
            for offset in range(-half, half + 1)
        )

    @property
    def dimension(self) -> int:
        """The number of patch axes, 2 or 3."""
        return len(self.patch_shape)

    def faults(self) -> Iterator[Fault]:
        """Yields numbers that no plan has, and those that do not go with the network's."""
        if self.dimension not in (2, 3):
            yield "patch_shape", unfit(list(self.patch_shape), "2 or 3 sizes")
        yield from _sizes("patch_shape", self.patch_shape)
        if math.prod(self.patch_shape) > MOST_PATCH_VOXELS:
            yield "patch_shape", unfit(list(self.patch_shape), f"{MOST_PATCH_VOXELS} voxels in all")
        if len(self.spacing_mm) != self.dimension:
            expected = f"{self.dimension} lengths as in patch_shape"
            yield "spacing_mm", unfit(list(self.spacing_mm), expected)
        yield from _lengths("spacing_mm", self.spacing_mm)
        if len(self.median_shape) not in (2, 3):
            yield "median_shape", unfit(list(self.median_shape), "2 or 3 sizes")
        if not all(0 < size <= MOST_VOXELS for size in self.median_shape):
            yield "median_shape", unfit(list(self.median_shape), f"at most {MOST_VOXELS}")
        if not 1 <= self.batch_size <= MOST_PATCHES:
            yield "batch_size", unfit(self.batch_size, f"1 to {MOST_PATCHES}")
        if self.slices not in range(1, MOST_SLICES + 1, 2):
            yield "slices", unfit(self.slices, f"an odd number from 1 to {MOST_SLICES}")
        if self.slices > 1 and self.dimension == 3:
            yield "slices", unfit(self.slices, "1 in 3D")
        yield from self._network_faults()

    def _network_faults(self) -> Iterator[Fault]:
        network = self.network
        try:
            network.check_size()
            network.check()
            network.check_class_head()
        except ModelError as error:  # "network: FIELD: found X, expected Y."
            part, field, problem = error.problem.removesuffix(".").split(": ", 2)
            yield f"{part}.{field}", problem
            return
        if network.dimension != self.dimension:
            yield "network.strides", unfit(network.dimension, f"{self.dimension} axes as the patch")
        elif any(n % s for n, s in zip(self.patch_shape, network.total_stride, strict=True)):
            expected = f"multiples of {list(network.total_stride)}, the strides of the network"
            yield "patch_shape", unfit(list(self.patch_shape), expected)


def slices_of(inputs: Sequence[str]) -> dict[str, list[int]]:
    """Maps each image channel to the inputs that are its slices, the lowest slice first.

    Args:
        inputs: Names of a network's image channels, from `Configuration.inputs`.
    """
    found: dict[str, list[int]] = {}
    for index, name in enumerate(inputs):
        found.setdefault(re.sub(r", slice [+-]\d+$", "", name), []).append(index)
    return found


def neighbours(z: int, slices: int, size: int) -> list[int]:
    """Returns the indices of a slice and its neighbours; the first and last slice are repeated.

    Args:
        z: The middle slice.
        slices: How many slices, an odd number.
        size: Number of slices of the case.
    """
    half = slices // 2
    return [min(max(index, 0), size - 1) for index in range(z - half, z + half + 1)]


_SPACING_HINT = "Give the spacing as Z Y X, e.g. --spacing 2.5 0.8 0.8."


def check_spacing(spacing_mm: Sequence[float]) -> None:
    """Refuses an invalid spacing.

    Args:
        spacing_mm: The spacing (z, y, x).

    Raises:
        OptionError: A value is not above zero, or not finite.
    """
    if not all(0 < mm < math.inf for mm in spacing_mm):
        values = " ".join(f"{mm:g}" for mm in spacing_mm)
        raise WrongValue(
            f"--spacing {values}: expected lengths above zero, in mm.", hint=_SPACING_HINT
        )


# With more slices than this, a 3D network sees more for less.
MOST_SLICES = 15
# Field -> option, for fields whose names contain units.
_FLAGS = {"vram_gb": "--vram", "spacing_mm": "--spacing", "window_hu": "--window"}


class PlanOptions(Record, frozen=True, kw_only=True):
    """The user's options for a plan.

    Attributes:
        preset: The type and size of the network: M, L and XL have a residual encoder, and tiny is
            default with a quarter of the features.
        vram_gb: The target for the GPU memory in GB; None for that of the preset.
        spacing_mm: Target spacing (z, y, x) at full resolution; None to derive it from the dataset.
        batch_cap: Whether a batch is limited to 5 % of the dataset's voxels.
        window_hu: Lower and upper bound in HU that CT is clipped to; None for percentiles of the
            labelled voxels.
        keep_axes: Whether cases keep the order of axes of their files, as in nnU-Net, instead of
            being brought to one order.
        arch: The type of network: a U-Net; or MedFormer, Omnia-Net, DX-Net or DS-Net, in the sizes
            default and tiny.
        encoder: The classification network that is the encoder, in the sizes default and tiny; None
            for that of the architecture, which a U-Net and MedFormer do not have.
        z_strides: Where an encoder halves the depth of volumes: "auto" where the planner does,
            "all" at all five levels.
        slices: Odd number of neighbouring slices that the 2D network sees as channels.
    """

    preset: Preset = "default"
    vram_gb: float | None = None
    spacing_mm: tuple[float, float, float] | None = None
    batch_cap: bool = True
    window_hu: tuple[float, float] | None = None
    keep_axes: bool = False
    arch: Architecture = "unet"
    encoder: EncoderName | None = None
    z_strides: ZStrides = "auto"
    slices: int = 1

    def __post_init__(self) -> None:
        """Refuses invalid values; names of networks may be spelled in any case.

        Raises:
            OptionError: A value is invalid; the error names the option and its value.
        """
        check_types(self, flags=_FLAGS)
        self._check_network()
        if self.vram_gb is not None and not 0 < self.vram_gb < math.inf:
            raise WrongValue(
                f"--vram {self.vram_gb}: expected a size in GB above zero.",
                hint="Give the memory of your GPU, e.g. --vram 8, or leave the option out.",
            )
        if self.slices not in range(1, MOST_SLICES + 1, 2):
            raise WrongValue(
                f"--slices {self.slices}: expected an odd number from 1 to {MOST_SLICES}, since "
                "the slice that is labelled has as many on either side.",
                hint="Give --slices 3, or leave it out for single slices.",
            )
        window = self.window_hu
        if window is not None and not -math.inf < window[0] < window[1] < math.inf:
            raise WrongValue(
                f"--window {window[0]:g} {window[1]:g}: expected a lower and a higher HU value.",
                hint="For soft tissue and fat give --window -150 250.",
            )
        if self.spacing_mm is not None:
            check_spacing(self.spacing_mm)

    def _check_network(self) -> None:
        """Refuses a preset, an encoder or strides that the architecture does not have."""
        if self.encoder is not None and self.arch == "medformer":
            raise OptionError(
                f"--encoder {self.encoder} does not go with --arch medformer, which has its own.",
                hint="Leave one of them out; --fresh forgets those of the previous plan.",
            )
        encoder = self.encoder or ENCODER_OF.get(self.arch)
        presets = PRESETS_OF[self.arch] if encoder is None else WITH_ENCODER
        if self.preset not in presets:
            what = f"--arch {self.arch}" if self.arch != "unet" else f"--encoder {encoder}"
            raise OptionError(
                f"--preset {self.preset} is not one of {what}, which has {' and '.join(presets)}.",
                hint="Give --preset default and fit it to your GPU with --vram GB.",
            )
        if self.z_strides != "auto" and (encoder is None or self.arch == "dsnet"):
            none = "this has none" if encoder is None else "that of dsnet is 2D"
            raise OptionError(
                f"--z-strides {self.z_strides} is for networks with a 3D encoder; {none}.",
                hint="Name an encoder, e.g. --encoder efficientnet_b0, or leave it out; --fresh "
                "forgets that of the previous plan."
                if encoder is None
                else "Choose --arch dxnet, or leave it out; --fresh forgets the previous plan's.",
            )


class LikeOptions(Record, frozen=True, kw_only=True):
    """The user's options for planning a dataset (the target) like another one (the source).

    Attributes:
        spacing: The spacing that images are resampled to. "source" is the source's spacing, at
            which organs have the size in voxels that its network has learnt. "target" is the median
            spacing of the target. "auto" is the source's spacing, except along axes where more than
            half of the target's slices would be interpolated, which keep the target's spacing.
            "fixed" is `spacing_mm`.
        spacing_mm: The spacing (z, y, x) for "fixed"; otherwise None.
    """

    spacing: SpacingMode = "auto"
    spacing_mm: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        """Refuses options that are invalid or contradict each other.

        Raises:
            OptionError: An option is invalid; the error says what to give.
        """
        check_types(self, flags={"spacing": "--like-spacing", "spacing_mm": "--spacing"})
        given = self.spacing_mm
        if (given is None) == (self.spacing == "fixed"):
            problem = "lacks --spacing" if given is None else "and --spacing contradict each other"
            raise OptionError(f"--like-spacing {self.spacing} {problem}.", hint=_SPACING_HINT)
        if given is not None:
            check_spacing(given)


class Plan(Artifact, frozen=True, kw_only=True):
    """All decisions for one dataset with their reasons; it is enough to preprocess a case.

    Attributes:
        dataset: The dataset's name.
        preset: The preset that the plan was made with.
        vram_gb: The GPU memory in GB that patch and batch sizes were fitted to.
        channel_names: The name of each image channel.
        modality: The modality of the dataset; CT if it holds both CT and MR.
        mixed: Whether the dataset holds both CT and MR. Each case is then normalised by its own
            modality: CT as planned, MR by its own mean and deviation.
        labels: Names and values of the labels.
        codes: Label -> its codes for DICOM, where its name does not say them; no decision, and
            left out of the digest.
        file_ending: The ending of the dataset's images.
        axis_codes: Anatomical order of axes that every case is brought to, x first, such as "LPS";
            "" if cases keep their own: with `keep_axes`, in plans of nnU-Net and in plans made
            before orders were considered.
        seen_axes: The orders of the cases that the plan was made from, if they keep their own.
        transpose_forward: Order of the image axes (z, y, x) in preprocessed arrays.
        transpose_backward: The inverse permutation.
        intensities: The fingerprint's intensities of each channel, which CT normalisation uses.
        source_intensities: For a plan of another modality that follows a CT plan, the intensities
            of each channel with which the source's network has learnt CT; otherwise empty.
        like: How the plan follows another plan; None if it does not.
        asked: The options that the plan was made with, so that it can be made again; None if it
            follows another plan, comes from another tool, or was made before options were kept.
            Options are not decisions and are left out of the digest.
        seen: What the dataset's images look like as a whole, so that a case of another kind is
            noticed; None if unknown. It is left out of the digest as well.
        arch: The architecture that the plan was made with.
        encoder: The encoder that the plan was made with; None for networks without.
        z_strides: Where the encoder halves the depth of volumes.
        configurations: Name -> configuration.
        reasons: Decision -> the reason for it, in one sentence, for decisions about the plan as a
            whole. A configuration that was dropped ("3d_lowres") is such a decision.
    """

    KIND: ClassVar[str] = "plan"
    NOT_COUNTED: ClassVar[frozenset[str]] = frozenset({"asked", "seen", "seen_axes", "codes"})

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
    mixed: bool = False
    codes: dict[str, SegmentCodes] = msgspec.field(default_factory=dict)
    arch: Architecture = "unet"
    encoder: EncoderName | None = None
    z_strides: ZStrides = "auto"
    reasons: dict[str, str] = msgspec.field(default_factory=dict)

    def faults(self) -> Iterator[Fault]:
        """Yields what is wrong with the parts, and what does not go together."""
        yield from within("labels", self.labels.faults())
        if self.labels.values.get("background") != (0,) or not self.labels.foreground:
            found = {name: list(group) for name, group in self.labels.values.items()}
            yield "labels.values", unfit(found, "background 0 and another label")
        if self.labels.has_regions and self.labels.regions_class_order is None:
            yield "labels.regions_class_order", unfit(None, "a value for each region")
        if not self.channel_names:
            yield "channel_names", unfit([], "a name for each channel")
        if not 0 < self.vram_gb < math.inf:
            yield "vram_gb", unfit(self.vram_gb, "above 0")
        yield from self._axis_faults()
        for field in ("intensities", "source_intensities"):
            for number, stats in enumerate(getattr(self, field)):
                yield from within(f"{field}[{number}]", stats.faults())
        if not self.configurations:
            yield "configurations", unfit({}, "at least one")
        for name, configuration in self.configurations.items():
            yield from within(f"configurations.{name}", configuration.faults())
            yield from within(f"configurations.{name}", self._channel_faults(name, configuration))

    def _axis_faults(self) -> Iterator[Fault]:
        """Yields orders of axes that are none."""
        forward, backward = self.transpose_forward, self.transpose_backward
        if sorted(forward) != [0, 1, 2]:
            yield "transpose_forward", unfit(list(forward), "an order of 0, 1 and 2")
        elif tuple(forward.index(axis) for axis in range(3)) != backward:
            yield "transpose_backward", unfit(list(backward), "the inverse of transpose_forward")
        for codes in filter(None, (self.axis_codes, *self.seen_axes)):
            if not _AXIS_CODES.fullmatch(codes):
                yield "axis_codes", unfit(codes, "a direction of each axis, such as LPS")

    def _channel_faults(self, name: str, configuration: Configuration) -> Iterator[Fault]:
        """Yields what a configuration has for more or fewer channels than there are."""
        channels = len(self.channel_names)
        for field in ("normalization", "mask_norm"):
            found = getattr(configuration, field)
            if len(found) != channels:
                yield field, unfit(list(found), f"one for each of {counted(channels, 'channel')}")
        if "ct" in configuration.normalization and len(self.intensities) < channels:
            expected = f"intensities of each of {counted(channels, 'channel')}"
            yield "normalization", f"found ct with {len(self.intensities)}, expected {expected}"
        previous = configuration.previous_stage
        if previous is not None and (previous == name or configuration.dimension == 2):
            yield "previous_stage", unfit(previous, "another configuration, in 3D")
        further = len(self.labels.foreground_values) if previous is not None else 0
        inputs = channels * configuration.slices + further
        if configuration.network.in_channels != inputs:
            found = configuration.network.in_channels
            yield "network.in_channels", unfit(found, f"{inputs} for the channels")
        if configuration.network.out_channels != self.labels.out_channels:
            found = configuration.network.out_channels
            yield "network.out_channels", unfit(found, f"{self.labels.out_channels} for the labels")

    def is_foreign(self, modality: Modality | None) -> bool:
        """Whether a case is MR and the plan for CT alone, or the other way round."""
        return not self.mixed and {self.modality, modality} == {"CT", "MR"}

    @property
    def ct_channels(self) -> tuple[int, ...]:
        """Indices of the channels that any configuration normalises as CT, in ascending order."""
        schemes = [configuration.normalization for configuration in self.configurations.values()]
        found = {i for each in schemes for i, scheme in enumerate(each) if scheme == "ct"}
        return tuple(sorted(found))
