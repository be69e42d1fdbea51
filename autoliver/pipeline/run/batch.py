"""Refuses batches that the memory of the device certainly cannot hold, before anything is made."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoliver.datasets.folds import Fold
from autoliver.errors import OptionError
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.memory import GB, free_gb
from autoliver.models.files import FoldFolder
from autoliver.pipeline.run.begin import Beginning, is_trained
from autoliver.pipeline.run.fold_queue import queue_devices
from autoliver.pipeline.run.request import TrainRequest, train_command
from autoliver.planning.plan import Configuration
from autoliver.training.options import flag
from autoliver.values import counted

if TYPE_CHECKING:
    from autoliver.training.distributed import Group

# Bytes of a value of a feature map: float32, and half precision on CUDA.
_VALUE_BYTES, _CUDA_VALUE_BYTES = 4, 2
_IMAGE_BYTES, _LABEL_BYTES = 4, 2  # float32, int16
# A training takes more than the bound: measured were 1.7 to 2.9 times as much on the CPU, for small
# and large U-Nets of both dimensions. The batch that is proposed fits with this share.
_TAKEN = 3.0
# What the process takes besides its batches (measured: 0.4 GB for a small 2D network).
_PROCESS_GB = 0.5
# As for cases, --memory-gb has to be exceeded clearly.
_OVER_ASKED = 2.0


def least_patch_gb(configuration: Configuration, *, value_bytes: int = _VALUE_BYTES) -> float:
    """Returns a lower bound of the memory that a training step takes for each patch, in GB.

    The backward pass needs the output of each convolution of the forward pass, so all of them are
    in memory at once, and so are the image and the target of the patch. Gradients, outputs of
    normalisations, weights and augmentation come on top, and are left out.

    Args:
        configuration: The network and the patch.
        value_bytes: Bytes of each value of a feature map.
    """
    network, voxels = configuration.network, math.prod(configuration.patch_shape)
    values = network.feature_map_elements(configuration.patch_shape)
    patch = voxels * (_IMAGE_BYTES * network.in_channels + _LABEL_BYTES)
    return (value_bytes * values + patch) / GB


@dataclass(frozen=True, kw_only=True)
class Room:
    """The memory for the steps that are taken at the same time.

    Attributes:
        gb: What is there, in GB.
        words: The same in words, for messages.
        most_gb: A bound of what steps take is refused above this.
        patch_gb: The bound for one patch.
        share: How many patches are in this memory for each patch of a batch: above 1 if it holds
            the batches of several folds, below if several processes share one batch.
    """

    gb: float
    words: str
    most_gb: float
    patch_gb: float
    share: float

    def holds(self, batch_size: int) -> bool:
        """Whether the bound for batches of so many patches fits."""
        return batch_size * self.share * self.patch_gb <= self.most_gb

    @property
    def good_batch(self) -> int:
        """The largest number of patches that should fit; 0 if one patch takes too much."""
        left = max(self.gb - _PROCESS_GB, self.gb / 2)
        return math.floor(left / (_TAKEN * self.patch_gb * self.share))


def check_batch(
    begun: Beginning,
    configuration: Configuration,
    request: TrainRequest,
    folds: Sequence[Fold],
    group: "Group",
) -> None:
    """Refuses batches of which a lower bound (`least_patch_gb`) already exceeds the memory.

    Nothing is refused if the folds are trained already.

    Args:
        begun: How the run begins.
        configuration: The configuration with the batch and the patch of the options.
        request: The request to `train`.
        folds: The folds that it names.
        group: The processes that train together.

    Raises:
        OptionError: It says what is needed, what there is, and which batch fits.
    """
    run, options = begun.run, begun.options
    done = (is_trained(FoldFolder(run.fold(fold)), options) for fold in folds)
    if not request.fresh and all(done):
        return
    for room in _rooms(configuration, request.machine, len(folds), group):
        if not room.holds(configuration.batch_size):
            raise _too_large(room, begun, configuration, request, least=group.size)


def _rooms(
    configuration: Configuration, machine: Machine, folds: int, group: "Group"
) -> list[Room]:
    """Returns the memory of each device that folds are trained on."""
    from autoliver.networks.device import choose_device

    devices = queue_devices(machine, most=folds) or (machine.device,)
    rooms = []
    for name, at_once in Counter(devices).items():
        device = choose_device(name)
        if device.type == "cuda":
            import torch

            gb = torch.cuda.mem_get_info(device)[1] / GB
            words, most = f"the GPU has {gb:.1f} GB", gb
            value_bytes, share = _CUDA_VALUE_BYTES, at_once / group.size
        else:
            asked = machine.limits.memory_gb
            gb = free_gb() if asked is None else asked
            words = f"{gb:.1f} GB are free" if asked is None else f"--memory-gb allows {gb:.1f} GB"
            most = gb if asked is None else _OVER_ASKED * gb
            value_bytes, share = _VALUE_BYTES, at_once * group.local_size / group.size
        patch_gb = least_patch_gb(configuration, value_bytes=value_bytes)
        rooms.append(Room(gb=gb, words=words, most_gb=most, patch_gb=patch_gb, share=share))
    return rooms


def _too_large(
    room: Room, begun: Beginning, configuration: Configuration, request: TrainRequest, *, least: int
) -> OptionError:
    options, size = begun.options, configuration.batch_size
    given = [flag(n, v) for n in ("batch_size", "patch") if (v := getattr(options, n)) is not None]
    shape = "x".join(map(str, configuration.patch_shape))
    need = size * room.share * room.patch_gb
    folds = f" in each of {room.share:g} folds at a time" if room.share > 1 else ""
    problem = (
        f"{' '.join(given) or 'The batch of the plan'}: a step on "
        f"{counted(size, 'patch', 'patches')} of {shape} voxels{folds} needs more than "
        f"{need:,.1f} GB of memory; {room.words}."
    )
    if room.good_batch < least:
        return OptionError(
            problem,
            hint="No batch of such patches fits: give a smaller --patch, or use a machine with "
            "more memory. Or plan for less: autoliver plan DATASET --vram GB",
        )
    again = "Start over with a batch that fits" if not begun.new else "The largest batch that fits"
    words = _command(begun, request, room.good_batch)
    return OptionError(problem, hint=f"{again}: {words}")


def _command(begun: Beginning, request: TrainRequest, batch_size: int) -> str:
    """Returns the command of a request with another batch size."""
    changes = {**request.changes, "batch_size": batch_size}
    options = [word for name, value in changes.items() for word in flag(name, value).split()]
    machine, default = request.machine, WHOLE_MACHINE
    named: dict[str, object] = {
        "--device": machine.device if machine.device != default.device else None,
        "--gpus": ",".join(map(str, machine.gpus)),
        "--jobs": machine.jobs,
        "--memory-gb": machine.limits.memory_gb and f"{machine.limits.memory_gb:g}",
    }
    words = [str(word) for name, value in named.items() if value for word in (name, value)]
    words += ["--fresh"] if request.fresh or not begun.new else []
    return train_command(begun.run, request, request.folds, options=[*words, *options])
