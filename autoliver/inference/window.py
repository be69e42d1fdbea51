"""Sliding-window inference as in nnU-Net: patches weighted with a Gaussian, averaged over flips."""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from autoliver.errors import MachineError, ModelError
from autoliver.inference.fastest import as_they_are
from autoliver.inference.roi import Window, spanned_box
from autoliver.inference.sums import (
    Pinned,
    WeightedSums,
    finished_before,
    rows_kept,
    rows_of,
    sums_bytes,
)
from autoliver.memory import GB, out_of_memory
from autoliver.networks.device import MORE_MEMORY, free_bytes, on_gpu
from autoliver.planning.nonzero import Box
from autoliver.planning.plan import neighbours
from autoliver.values import counted

T = TypeVar("T")

_log = logging.getLogger(__name__)

_SIGMA = 1.0 / 8.0  # of the patch size
_STEP = 0.5
# Windows and their flips are batched up to this number of voxels. On the CPU single small patches
# miss PyTorch's fast convolutions: a batch of 8 flips of 40x56x40 takes a quarter of the time that
# single patches take. Patches of 128^3 are computed one at a time.
_BATCH_VOXELS = 1 << 20
# With memory to spare, batches on a GPU hold up to this number of voxels: two patches of 128^3,
# whose feature maps keep a GPU busy. They take up to this share of what is free.
_GPU_BATCH_VOXELS = 1 << 22
_BATCH_SHARE = 0.7
# Share of the free memory that the image may take, and what is left for copies of a few slices.
_IMAGE_SHARE = 0.5
_MARGIN_BYTES = 1 << 28
_HOST = torch.device("cpu")
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
        title: The case and the model, for messages.
        exact: Whether batches have the same size whatever memory is free, as the size may change
            the last bits of the outputs on a GPU.
    """

    patch_shape: tuple[int, ...]
    mirror_axes: tuple[int, ...] = ()
    slices: int = 1
    title: str = "the image"
    exact: bool = False


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
        image: (c, z, y, x), best on the host: it is brought to the networks' device if it fits
            there. With a 2D patch every z slice is an image of its own.
        networks: Networks with one output each (no deep supervision), in eval mode.
        scan: What the networks see of it at a time.
        windows: At least one window from `windows_of`; None for all windows, half a patch apart.
        on_window: Called after every window (for a progress bar).

    Returns:
        Logits (k, *box), float32, on the host. The box is `box_of` the windows; without `windows`
        it is the whole image. Voxels that no window covers are NaN.

    Raises:
        MachineError: A single window needs more memory than the GPU has left.
        ModelError: An output is not finite, in float32 too.
    """
    if windows is None:
        windows = windows_of(image.shape[1:], scan.patch_shape, _STEP)
    rows = finished_rows(image, networks, scan, windows=windows, on_window=on_window)
    box = box_of(windows, image.shape[1:], scan.patch_shape)
    shape = [part.stop - part.start for part in box]
    whole: Tensor | None = None
    pinned = Pinned()
    for first, done in rows:
        if done.device.type == "cpu" and list(done.shape[1:]) == shape:
            return done
        if whole is None:
            whole = torch.full((len(done), *shape), torch.nan)
        start = first - box[0].start
        for target, channel in zip(whole, done, strict=True):
            target[start : start + len(channel)] = pinned.copy(channel)
    if whole is None:
        raise ValueError("there are no windows")
    return whole


def finished_rows(
    image: Tensor,
    networks: Sequence[nn.Module],
    scan: Scan,
    *,
    windows: Sequence[Window],
    on_window: Callable[[], object] = lambda: None,
    rolling: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Computes the mean logits of networks, and yields rows of them as soon as they are finished.

    A GPU holds the image, the sums of one slab of windows and what the networks need. For 512 x 512
    x 900 voxels, one channel and patches of 128 x 128 x 128 voxels, image and sums take 1.6 GB with
    5 classes and 4.1 GB with 25 (nnU-Net 2.8, which keeps the sums of the whole scan in float16,
    takes 3.5 and 12.3 GB). What does not fit is kept on the host.

    Args:
        image: As in `sliding_window`.
        networks: As in `sliding_window`.
        scan: As in `sliding_window`.
        windows: At least one window from `windows_of`.
        on_window: Called after every window.
        rolling: Whether the host, too, holds the sums of one slab of windows alone.

    Yields:
        The first of some rows of the image, and their logits (k, rows, y, x), float32, in `box_of`
        the windows; on the networks' device, or on the host. They are overwritten afterwards. Rows
        that no window touches are left out, and voxels that no window covers are NaN.

    Raises:
        MachineError: A single window needs more memory than the GPU has left.
        ModelError: An output is not finite, in float32 too.
    """
    shape = image.shape[1:]
    z, y, x = box_of(windows, shape, scan.patch_shape)
    before = [p // 2 for p in _padding(shape, scan.patch_shape)]
    spanned = spanned_box(windows)
    narrow_y, narrow_x = (
        slice(part.start + more - span.start, part.stop + more - span.start)
        for part, more, span in zip((y, x), before[1:], spanned[1:], strict=True)
    )
    for first, done in _Run(image, networks, scan, windows, rolling).rows(on_window):
        first -= before[0]
        start, stop = max(first, z.start), min(first + done.shape[1], z.stop)
        if start < stop:
            yield start, done[:, start - first : stop - first, narrow_y, narrow_x]


class _Run:
    """Runs networks over windows, in batches that the memory of their device allows.

    Where the memory of a GPU runs out, batches that are larger than usual become smaller, then the
    sums and the image move to the host, and batches shrink further, down to a single patch.
    """

    def __init__(
        self,
        image: Tensor,
        networks: Sequence[nn.Module],
        scan: Scan,
        windows: Sequence[Window],
        rolling: bool,
    ) -> None:
        self.networks, self.scan, self.windows, self.rolling = networks, scan, windows, rolling
        self.device = _device_of(networks, image)
        self.limited = on_gpu(self.device)
        self.flips = _flips(scan.mirror_axes)
        self.patch_voxels = math.prod(scan.patch_shape)
        self.most = _BATCH_VOXELS  # voxels that go through a network at a time
        self.image = _padded(image, scan.patch_shape)
        self.image_moved = self.sums_moved = False  # to the host
        self.sums: WeightedSums | None = None
        self.repeated = 0
        self.first_bytes: int | None = None  # what the networks took for the first windows
        self.compute = _ConstantsOnce(self._finite)
        if self.limited:
            self._place_image()

    def rows(self, on_window: Callable[[], object]) -> Iterator[tuple[int, Tensor]]:
        """Yields rows of the padded grid that are finished, and the first one's number."""
        if not self.windows:
            raise ValueError("there are no windows")
        at, finished = 0, finished_before(self.windows)
        while at < len(self.windows):
            at_once = max(1, self.most // (self.patch_voxels * len(self.flips)))
            group = self.windows[at : at + at_once]
            outputs = self._with_room(partial(self._outputs, group))
            if self.sums is None:
                self.sums = self._make_sums(outputs.shape[1])
            for window, output in zip(group, outputs, strict=True):
                if self.rolling and rows_of(window)[1] > self.sums.reach:
                    yield from self.sums.finish(finished[at])
                self._with_room(partial(self.sums.add, window, output))
                on_window()
                at += 1
        if self.repeated:
            _log.warning(
                "%s: %s exceeded the range of half precision, and went through the networks again "
                "in float32.",
                *(self.scan.title, counted(self.repeated, "window")),
            )
        if self.sums is not None:  # as there are windows
            yield from self.sums.finish(max(rows_of(window)[1] for window in self.windows))

    def _outputs(self, group: Sequence[Window]) -> Tensor:
        """Returns the outputs (b, k, *patch) of windows; nothing changes if memory runs out."""
        patches = [_cut(self.image, window, self.scan.slices) for window in group]
        return self.compute(torch.stack(patches))

    def _finite(self, patches: Tensor) -> Tensor:
        """Returns the outputs (b, k, *patch) of windows; where they overflow, those in float32."""
        before = None
        if self.first_bytes is None and self.limited:
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved(self.device)
        found = self._computed(self.networks, patches)
        if before is not None:
            self.first_bytes = torch.cuda.memory_reserved(self.device) - before
        wrong = ~torch.isfinite(found).flatten(1).all(1)
        if not bool(wrong.any()):
            return found
        with torch.autocast(self.device.type, enabled=False):
            again = self._computed(as_they_are(self.networks), patches[wrong])
        if not bool(torch.isfinite(again).all()):
            raise ModelError(
                f"{self.scan.title}: the output of the network is not finite, in float32 too.",
                hint="Its weights or the values of the image are far from those of its training. "
                "Check the case (autoliver verify), or predict with another model or fold.",
            )
        found[wrong] = again
        self.repeated += int(wrong.sum())
        return found

    def _computed(self, networks: Sequence[nn.Module], patches: Tensor) -> Tensor:
        return _mean_over_networks(networks, patches.to(self.device), self.flips, self.most)

    def _place_image(self) -> None:
        """Brings the image to the GPU, unless it would fill most of it."""
        free = _free(self.device)
        if free is not None and self.image.nbytes > _IMAGE_SHARE * free:
            self.image_moved = True
            return
        self.image = self._with_room(
            lambda: self.image if self.image_moved else self.image.to(self.device)
        )

    def _make_sums(self, classes: int) -> WeightedSums:
        """Makes the sums where they fit, and batches as large as the memory that is left allows."""
        box = spanned_box(self.windows)
        shape = [part.stop - part.start for part in box]
        kept = rows_kept(self.windows, shape)
        weight = gaussian_weight(self.scan.patch_shape)
        if self.limited and not self.sums_moved:
            room = _free(self.device)
            if room is not None:
                room -= sums_bytes(classes, shape, kept) + _MARGIN_BYTES
            if room is None or room >= (self.first_bytes or 0):
                self._enlarge(room)
                self.rolling = True
                return self._with_room(
                    lambda: WeightedSums(
                        *(classes, box, weight),
                        rows=kept,
                        device=_HOST if self.sums_moved else self.device,
                    )
                )
            self.sums_moved = True
        # Rows that move on would be copied for nothing where the whole result lies anyway.
        rows = kept if self.rolling else shape[0]
        return WeightedSums(classes, box, weight, rows=rows, device=_HOST)

    def _enlarge(self, room: int | None) -> None:
        """Enlarges batches by what a patch took so far and the bytes that are left."""
        if room is None or self.scan.exact or self.first_bytes is None:
            return
        at_once = max(1, self.most // self.patch_voxels)
        patch_bytes = max(1, self.first_bytes // at_once)
        fit = min(int(_BATCH_SHARE * room) // patch_bytes, _GPU_BATCH_VOXELS // self.patch_voxels)
        # A power of two, as the number of flips is one: no batch is smaller than others.
        patches = 1 << max(0, fit.bit_length() - 1)
        self.most = max(self.most, patches * self.patch_voxels)

    def _with_room(self, make: Callable[[], T]) -> T:
        """Calls a function that changes nothing if it fails, until there is memory enough for it.

        Raises:
            MachineError: There is too little memory for a single patch.
        """
        while True:
            try:
                return make()
            except RuntimeError as error:
                if not (self.limited and out_of_memory(error) == "accelerator"):
                    raise
                change = self._less()
                if change is None:
                    raise self._too_little() from error
            # Outside of the block, as the error keeps what the function held.
            _log.warning("%s: the GPU has too little memory; %s.", self.scan.title, change)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _less(self) -> str | None:
        """Takes less memory of the GPU from now on, and says how; None if that is not possible."""
        if self.most > _BATCH_VOXELS:
            self.most = _BATCH_VOXELS
            return "batches have their usual size again"
        if not self.sums_moved:
            self.sums_moved = True
            if self.sums is not None:
                self.sums.move(_HOST)
            return "outputs are added up in the host's memory"
        if not self.image_moved:
            self.image_moved = True
            self.image = self.image.to(_HOST)
            return "the image stays in the host's memory"
        if self.most >= 2 * self.patch_voxels:
            self.most //= 2
            return "batches are smaller"
        return None

    def _too_little(self) -> MachineError:
        free = _free(self.device)
        left = "" if free is None else f" ({free / GB:.1f} GB are free)"
        shape = "x".join(map(str, self.scan.patch_shape))
        return MachineError(
            f"{self.scan.title}: the GPU has too little memory{left} for a single patch of "
            f"{shape} voxels.",
            hint=MORE_MEMORY,
        )


def _device_of(networks: Sequence[nn.Module], image: Tensor) -> torch.device:
    """Returns the device of the networks; that of the image if they have no weights."""
    weights = (weight for network in networks for weight in network.parameters())
    return next((weight.device for weight in weights), image.device)


def _free(device: torch.device) -> int | None:
    """Returns the bytes that are free on a device; None if it does not tell."""
    return free_bytes(device) if device.type == "cuda" else None


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


def _padded(image: Tensor, patch_shape: tuple[int, ...]) -> Tensor:
    """Returns an image that is padded where the patch is larger; itself if it is nowhere."""
    if not any(_padding(image.shape[1:], patch_shape)):
        return image
    padded: Tensor = pad_nd_image(image, patch_shape)
    return padded


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
    networks: Sequence[nn.Module], patches: Tensor, flips: Sequence[tuple[int, ...]], most: int
) -> Tensor:
    """Returns the mean logits (b, k, *patch), float32, of windows (b, c, *patch).

    Args:
        networks: The networks.
        patches: The windows.
        flips: Axes to flip, for every pass.
        most: Voxels that go through a network at a time; at least one patch does.
    """
    if not networks:
        raise ValueError("there is no network to predict with")
    at_once = max(1, most // patches[0, 0].numel())
    if len(patches) > at_once:
        parts = torch.split(patches, at_once)
        return torch.cat([_mean_over_networks(networks, part, flips, most) for part in parts])
    fit = max(1, most // patches[:, 0].numel())
    total: Tensor | None = None
    for network in networks:
        for start in range(0, len(flips), fit):
            some = flips[start : start + fit]
            outputs = network(torch.cat([patches.flip(flip) for flip in some])).float()
            for flip, output in zip(some, outputs.split(len(patches)), strict=True):
                output = output.flip(flip)
                total = output if total is None else total.add_(output)
    if total is None:
        raise ValueError("there are no flips")
    return total / (len(networks) * len(flips))
