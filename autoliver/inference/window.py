"""Sliding-window inference as in nnU-Net: patches weighted with a Gaussian, averaged over flips."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from autoliver.inference.roi import Window, spanned_box
from autoliver.planning.nonzero import Box
from autoliver.planning.plan import neighbours

_SIGMA = 1.0 / 8.0  # of the patch size
_STEP = 0.5
# Windows and their flips are batched up to this number of voxels. On the CPU single small patches
# miss PyTorch's fast convolutions: a batch of 8 flips of 40x56x40 takes a quarter of the time that
# single patches take. Patches of 128^3 are computed one at a time.
_BATCH_VOXELS = 1 << 20
# Number of outputs kept for groups of constant windows, such as air and padding.
_REMEMBERED = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """What networks see of an image at a time.

    Attributes:
        patch_shape: 2 or 3 values. With 2, every z slice is an image of its own.
        mirror_axes: Patch axes to flip; the outputs are averaged over all combinations of flips.
            The networks must have been trained with such flips.
        slices: Odd number of neighbouring slices that 2D networks see as channels.
    """

    patch_shape: tuple[int, ...]
    mirror_axes: tuple[int, ...] = ()
    slices: int = 1


def sliding_window(
    image: Tensor,
    networks: Sequence[nn.Module],
    scan: Scan,
    *,
    windows: Sequence[Window] | None = None,
    on_window: Callable[[], object] = lambda: None,
) -> Tensor:
    """Computes the mean logits of networks over a whole image, or over the box around some windows.

    Windows with the same constant value, such as air, go through the networks only once.

    Args:
        image: (c, z, y, x) on the networks' device. With a 2D patch every z slice is an image of
            its own.
        networks: Networks with one output each (no deep supervision), in eval mode.
        scan: What the networks see of it at a time.
        windows: At least one window from `windows_of`; None for all windows, half a patch apart.
        on_window: Called after every window (for a progress bar).

    Returns:
        Logits (k, *box), float32, on the image's device. The box is `box_of` the windows; without
        `windows` it is the whole image. Voxels that no window covers are NaN.
    """
    patch_shape = scan.patch_shape
    if windows is None:
        windows = windows_of(image.shape[1:], patch_shape, _STEP)
    pad = _padding(image.shape[1:], patch_shape)
    padded = pad_nd_image(image, patch_shape)
    weight = gaussian_weight(patch_shape).to(image.device)
    box = spanned_box(windows)
    shape = [part.stop - part.start for part in box]
    total = torch.zeros((1, *shape), device=image.device)
    logits: Tensor | None = None
    flips = _flips(scan.mirror_axes)
    at_once = max(1, _BATCH_VOXELS // (math.prod(patch_shape) * len(flips)))
    network = _ConstantsOnce(lambda patches: _mean_over_networks(networks, patches, flips))
    for start in range(0, len(windows), at_once):
        group = windows[start : start + at_once]
        outputs = network(torch.stack([_cut(padded, window, scan.slices) for window in group]))
        if logits is None:
            logits = torch.zeros((outputs.shape[1], *shape), device=image.device)
        for window, output in zip(group, outputs, strict=True):
            place = _within(window, box)
            logits[:, *place].add_(output * weight)
            total[:, *place].add_(weight)
            on_window()
    if logits is None:
        raise ValueError("there are no windows")
    logits /= total
    found = box_of(windows, image.shape[1:], patch_shape)
    for axis, (wanted, p, there) in enumerate(zip(found, pad, box, strict=True), start=1):
        first = wanted.start + p // 2 - there.start
        logits = logits.narrow(axis, first, wanted.stop - wanted.start)
    return logits


def _cut(padded: Tensor, window: Window, slices: int) -> Tensor:
    """Returns the voxels of a window; neighbouring slices are channels, those of the first first.

    Args:
        padded: (c, z, y, x).
        window: The window; in 2D its first entry is a slice.
        slices: How many slices around this one, an odd number; the first and last are repeated.

    Returns:
        (c, *patch), or (c * slices, *patch).
    """
    z = window[0]
    if slices == 1 or not isinstance(z, int):
        return padded[:, *window]
    return padded[:, neighbours(z, slices, padded.shape[1]), *window[1:]].flatten(0, 1)


def windows_of(shape_zyx: Sequence[int], patch_shape: tuple[int, ...], step: float) -> list[Window]:
    """Returns all windows on an image's grid, padded where the patch is larger.

    Args:
        shape_zyx: Shape of the image.
        patch_shape: 2 or 3 values; with 2 every z slice has windows of its own.
        step: Largest distance between neighbouring windows as a share of the patch.
    """
    axes = len(patch_shape)
    boxes = [
        [slice(start, start + patch) for start in _starts(max(size, patch), patch, step)]
        for size, patch in zip(shape_zyx[-axes:], patch_shape, strict=True)
    ]
    slices = [list(range(shape_zyx[0]))] if axes == 2 else []
    return list(itertools.product(*slices, *boxes))


def padded_shape(shape_zyx: Sequence[int], patch_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the windows' grid: the image padded where the patch is larger."""
    return tuple(s + p for s, p in zip(shape_zyx, _padding(shape_zyx, patch_shape), strict=True))


def box_of(
    windows: Sequence[Window], shape_zyx: Sequence[int], patch_shape: tuple[int, ...]
) -> Box:
    """Returns the part of the image that windows on its padded grid span."""
    pad = _padding(shape_zyx, patch_shape)
    z, y, x = (
        slice(max(0, part.start - p // 2), min(size, part.stop - p // 2))
        for part, p, size in zip(spanned_box(windows), pad, shape_zyx, strict=True)
    )
    return z, y, x


def gaussian_weight(patch_shape: Sequence[int]) -> Tensor:
    """Returns the weight of each voxel of a window: a Gaussian around the centre, nowhere zero."""
    weight = torch.ones(())
    for size in patch_shape:
        impulse = np.zeros(size)
        impulse[size // 2] = 1.0
        line = torch.from_numpy(gaussian_filter1d(impulse, size * _SIGMA, mode="constant"))
        weight = weight[..., None] * line
    weight = weight / weight.max()
    weight[weight == 0] = weight[weight > 0].min()
    return weight.float()


def _starts(size: int, patch: int, step: float) -> list[int]:
    """Returns the first voxels of the windows along an axis: even, at most step * patch apart."""
    number = int(np.ceil((size - patch) / (patch * step))) + 1
    distance = (size - patch) / (number - 1) if number > 1 else 0.0
    return [round(distance * i) for i in range(number)]


def _padding(shape_zyx: Sequence[int], patch_shape: tuple[int, ...]) -> list[int]:
    """Returns by how many voxels each of the three axes is shorter than the patch."""
    patch = (1, 1, 1, *patch_shape)[-3:]
    return [max(0, p - s) for p, s in zip(patch, shape_zyx, strict=True)]


def _within(window: Window, box: Box) -> Window:
    return tuple(
        w - b.start if isinstance(w, int) else slice(w.start - b.start, w.stop - b.start)
        for w, b in zip(window, box, strict=True)
    )


def _flips(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns all subsets of these patch axes, as axes of a batch (b, c, *spatial)."""
    spatial = [axis + 2 for axis in axes]
    return [flip for n in range(len(axes) + 1) for flip in itertools.combinations(spatial, n)]


class _ConstantsOnce:
    """Computes groups of windows, and reuses the outputs of a group of constant windows.

    Whole groups are compared rather than single windows, because the same input in the same shape
    gives the same bits, while the outputs of a window may depend on its position in the batch.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        self._compute = compute
        self._known: dict[tuple[float, ...], Tensor] = {}

    def __call__(self, patches: Tensor) -> Tensor:
        """Returns outputs (b, k, *patch) of windows (b, c, *patch); they must not be modified."""
        voxels = patches.flatten(2)
        first = voxels[:, :, :1]
        # The last voxel is compared first: for most windows that suffices, without a pass over the
        # whole patch.
        if not torch.equal(voxels[:, :, -1:], first) or not (voxels == first).all():
            return self._compute(patches)
        key = tuple(first.flatten().tolist())
        if key not in self._known:
            while len(self._known) >= _REMEMBERED:
                self._known.pop(next(iter(self._known)))
            self._known[key] = self._compute(patches)
        return self._known[key]


def _mean_over_networks(
    networks: Sequence[nn.Module], patches: Tensor, flips: Sequence[tuple[int, ...]]
) -> Tensor:
    """Returns the mean logits (b, k, *patch), float32, of windows (b, c, *patch)."""
    fit = max(1, _BATCH_VOXELS // patches[:, 0].numel())
    total: Tensor | None = None
    for network in networks:
        for start in range(0, len(flips), fit):
            some = flips[start : start + fit]
            outputs = network(torch.cat([patches.flip(flip) for flip in some])).float()
            for flip, output in zip(some, outputs.split(len(patches)), strict=True):
                output = output.flip(flip)
                total = output if total is None else total.add_(output)
    if total is None:
        raise ValueError("there is no network to predict with")
    return total / (len(networks) * len(flips))
