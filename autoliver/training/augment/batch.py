"""Augments a batch on its own device: spatially, in appearance and intensity, and by mirroring.

With the default spec these are the training transforms of nnU-Net 2.8.1, with its probabilities and
ranges. All parameters are drawn from a CPU generator before they are applied, so the same generator
state gives the same changes on every device (only white noise is drawn on the device).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from autoliver.artifacts import Record
from autoliver.planning.plan import Configuration
from autoliver.training.augment.appearance import APPEARANCES
from autoliver.training.augment.change import apply_appearance, sample_appearance
from autoliver.training.augment.choice import AppearanceStep, parse_augment
from autoliver.training.augment.intensity import INTENSITY, IntensityStep, default_steps
from autoliver.training.augment.placement import SpatialSpec, TurnedGroup
from autoliver.training.augment.spatial import (
    apply_mirror,
    apply_spatial,
    place_turned,
    sample_mirror,
    sample_spatial,
)
from autoliver.training.share import Part

# Values of nnU-Net 2.8.1: a patch is anisotropic if the ratio of its edges exceeds them.
_ANISOTROPIC_2D = 1.5
_ANISOTROPIC_3D = 3.0
# As in nnU-Net, the patch is enlarged for this scale, not for the largest of SpatialSpec.scaling.
_SMALLEST_SCALE = 0.85


class AugmentSpec(Record, frozen=True, kw_only=True):
    """The augmentations that may be applied to a batch.

    Attributes:
        spatial: Rotation and scaling. If it has 2 axes and the patches have 3, all slices of a
            patch are transformed in the same way.
        intensity: Changes of intensity, in order.
        mirror_axes: Spatial axes of the drawn patches that may be flipped.
        masked_channels: Image channels set to zero where the label is negative (those normalised
            only within the non-zero region).
        appearance: Changes that make one modality look like another; at most one per sample.
        ignored: Label of voxels without annotation, which count as background when images are made
            from labels; None: there is no such label.
    """

    spatial: SpatialSpec
    intensity: tuple[IntensityStep, ...]
    mirror_axes: tuple[int, ...]
    masked_channels: tuple[int, ...] = ()
    appearance: tuple[AppearanceStep, ...] = ()
    ignored: int | None = None

    def axes_of(self, configuration: Configuration) -> tuple[int, ...]:
        """Returns the mirror axes as axes of the network's patches, without neighbouring slices."""
        further = len(configuration.drawn_shape) - configuration.dimension
        return tuple(axis - further for axis in self.mirror_axes)

    @property
    def views(self) -> int:
        """Number of views in which each patch is shown to the network."""
        return max((APPEARANCES[step.name].views for step in self.appearance), default=1)


def default_augment_spec(
    patch_shape: Sequence[int], *, mirror: bool = True, masked_channels: tuple[int, ...] = ()
) -> AugmentSpec:
    """The augmentations of nnU-Net 2.8.1 for patches of a given shape.

    Args:
        patch_shape: 2 or 3 sizes, the slice axis first.
        mirror: Whether to flip along all axes; False: along none.
        masked_channels: See `AugmentSpec`.
    """
    longest, axes = max(patch_shape), len(patch_shape)
    slicewise = axes == 3 and longest / patch_shape[0] > _ANISOTROPIC_3D
    if axes == 2:
        limit = math.radians(15 if longest / min(patch_shape) > _ANISOTROPIC_2D else 180)
    else:
        limit = math.radians(180 if slicewise else 30)
    return AugmentSpec(
        spatial=SpatialSpec(dimension=2 if slicewise else axes, rotation_rad=(-limit, limit)),
        intensity=default_steps(skip_axes=(0,) if slicewise else ()),
        mirror_axes=tuple(range(axes)) if mirror else (),
        masked_channels=masked_channels,
    )


def augmentation(
    configuration: Configuration, kind: str, *, mirror: bool, ignored: int | None = None
) -> AugmentSpec | None:
    """The augmentations of training patches; None if `kind` is "none".

    Args:
        configuration: The configuration of the patches.
        kind: A value of `--augment`.
        mirror: Whether patches are flipped.
        ignored: Class of voxels without annotation; None: there is no such class.

    Raises:
        OptionError: The kind is unknown.
    """
    appearance = parse_augment(kind)
    if kind == "none":
        return None
    spec = default_augment_spec(
        configuration.patch_shape,
        mirror=mirror,
        masked_channels=tuple(i for i, used in enumerate(configuration.mask_norm) if used),
    )
    if configuration.slices > 1:
        # Neighbouring slices change together: the patches have three axes here, and are rotated,
        # scaled and flipped within their slices.
        spec = spec.replace(
            intensity=default_steps(skip_axes=(0,)),
            mirror_axes=tuple(axis + 1 for axis in spec.mirror_axes),
        )
    return spec.replace(appearance=appearance, ignored=ignored)


def initial_patch_shape(patch_shape: Sequence[int], spec: AugmentSpec) -> tuple[int, ...]:
    """The shape of the larger patch to cut from a case, so that most rotated corners show image.

    This is nnU-Net's rule: the patch is rotated by the largest angle (at most 90 degrees) about one
    axis at a time, in one direction, and enlarged by 1 / 0.85. If all slices are transformed in the
    same way, their number is kept.
    """
    angle = min(math.pi / 2, max(abs(limit) for limit in spec.spatial.rotation_rad))
    cos, sin = math.cos(angle), math.sin(angle)
    size = [float(n) for n in patch_shape]
    largest = size.copy()
    for one, other in ((0, 1),) if len(size) == 2 else ((1, 2), (2, 0), (0, 1)):
        largest[one] = max(largest[one], abs(size[one] * cos + size[other] * sin))
        largest[other] = max(largest[other], abs(size[other] * cos - size[one] * sin))
    shape = [int(n / _SMALLEST_SCALE) for n in largest]
    fixed = len(patch_shape) - spec.spatial.dimension
    return (*patch_shape[:fixed], *shape[fixed:])


@torch.no_grad()
def augment_batch(
    image: Tensor,
    label: Tensor,
    *,
    patch_shape: Sequence[int],
    spec: AugmentSpec,
    generator: Generator,
    part: Part | None = None,
) -> tuple[Tensor, Tensor]:
    """Transforms a batch at random, on its own device.

    Args:
        image: (b, c, *initial), any float type; not changed.
        label: (b, k, *initial), int16; -1 is outside the image or outside its non-zero region. The
            first channel is the label; further channels are only transformed spatially with it.
        patch_shape: Shape of the patch to cut out of the centre.
        spec: The augmentations that may be applied.
        generator: Random generator on the CPU.
        part: Which samples of a larger batch these are: they change as they would within it. None:
            they are the whole batch.

    Returns:
        The image (b, c, *patch), float32, and the label (b, k, *patch) with 0 in place of -1. With
        several views the image is (views * b, c, *patch): all first views, all second, ...
    """
    part = part or Part(start=0, stop=len(image), whole=len(image))
    placements = sample_spatial(part.whole, spec.spatial, generator)[part.start : part.stop]
    image, label = apply_spatial(image, label, patch_shape=patch_shape, placements=placements)
    return change_patches(image, label, spec=spec, generator=generator, part=part)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedBatch:
    """A batch whose rotation and scaling was drawn before its voxels were read.

    Attributes:
        image: (b, c, *patch), float32, without values for samples that are rotated or scaled.
        label: (b, k, *patch), int16, likewise.
        groups: Which samples these are, and how they are rotated and scaled.
        wide: The image (n, c, *source) and the label of each group.
    """

    image: Tensor
    label: Tensor
    groups: Sequence[TurnedGroup]
    wide: Sequence[tuple[Tensor, Tensor]]


@torch.no_grad()
def augment_placed(
    batch: PlacedBatch, *, spec: AugmentSpec, generator: Generator, part: Part
) -> tuple[Tensor, Tensor]:
    """Does the same as `augment_batch`, in place, for a batch that holds no more than is needed.

    Args:
        batch: The batch.
        spec: The augmentations that may be applied.
        generator: Random generator on the CPU; its first draws were those of the placements.
        part: Which samples of a larger batch these are.

    Returns:
        Image and label as by `augment_batch`.
    """
    sample_spatial(part.whole, spec.spatial, generator)  # to go on after these draws
    image, label = batch.image, batch.label
    for group, source in zip(batch.groups, batch.wide, strict=True):
        place_turned(
            *source, samples=group.samples, placements=group.placements, into=(image, label)
        )
    return change_patches(image, label, spec=spec, generator=generator, part=part)


def change_patches(
    image: Tensor, label: Tensor, *, spec: AugmentSpec, generator: Generator, part: Part
) -> tuple[Tensor, Tensor]:
    """Does what follows rotation and scaling: appearance, intensities, mirroring; in place.

    Args:
        image: (b, c, *patch), float32.
        label: (b, k, *patch), int16.
        spec: The augmentations that may be applied.
        generator: Random generator on the CPU, after the draws of `sample_spatial`.
        part: Which samples of a larger batch these are.

    Returns:
        Image and label as by `augment_batch`.
    """
    image = _with_appearance(image, label[:, 0], spec, generator, part)
    views = torch.split(image, len(label))
    for view in views:
        for step in spec.intensity:
            sample, apply = INTENSITY[step.name]
            draws = sample(step, (part.whole, *image.shape[1:]), generator)
            apply(view, part.own(draws))
    flips = sample_mirror(part.whole, spec.mirror_axes, generator)[part.start : part.stop]
    apply_mirror(label, flips)
    for view in views:
        apply_mirror(view, flips)
        for channel in spec.masked_channels:
            view[:, channel].masked_fill_(label[:, 0] < 0, 0)
    # OUTSIDE is the only negative value.
    return image, label.clamp_min_(0)


def _with_appearance(
    image: Tensor, label: Tensor, spec: AugmentSpec, generator: Generator, part: Part
) -> Tensor:
    """The views of a batch with changed appearance; a single view may be changed in place."""
    changes = part.own(sample_appearance(spec.appearance, part.whole, generator))
    if spec.views > 1:
        image = image.repeat(spec.views, *[1] * (image.ndim - 1))
    if changes:
        if spec.ignored is not None:
            label = label.masked_fill(label == spec.ignored, 0)
        apply_appearance(image, label, changes)
    return image
