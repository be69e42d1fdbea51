"""What training, augmentation and prediction would ask of a CUDA device, counted on a CPU.

    python -m benchmarks.pretend_cuda [--only CONFIG ...] [--steps N] [--where] [--json]

For each configuration: how often the host waits for the device (syncs), operations on the device
(launches), megabytes that they read and write and that are copied between host and device, each
per step, per batch or per scan; and the most memory that tensors took. Tensors that meet on
different devices are an error. `--where` adds the lines of code that wait, and the most frequent
operations. See `pretend_cuda_device.py` for what is not pretended.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.pretend_cuda_device import DEVICE, Counts, begin

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from autoliver.planning.plan import Configuration
    from autoliver.training.fold import FoldTask

_MB = 1e6
_SHOWN = 12
# Steps before those that count: the first ones make the optimiser's state.
_WARM = 3
_COLUMNS = ("config", "syncs", "launches", "read MB", "written MB", "to device MB", "to host MB")


@dataclass(kw_only=True)
class Report:
    """What was counted, per step, batch or scan.

    Attributes:
        config: The name of the configuration.
        per: What the figures are per: "step", "batch" or "scan".
        syncs: How often the host waits for the device.
        launches: Operations on the device.
        read_mb: Megabytes that operations read.
        written_mb: Megabytes that they wrote.
        to_device_mb: Megabytes copied from the host.
        to_host_mb: Megabytes copied to the host.
        peak_mb: The most memory that tensors on the device took.
        why: How often the host waited, by reason, in all units together.
        places: Where the host waited, in all units together.
        operations: The most frequent operations, in all units together.
    """

    config: str
    per: str
    syncs: float
    launches: float
    read_mb: float
    written_mb: float
    to_device_mb: float
    to_host_mb: float
    peak_mb: float
    why: dict[str, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)


def report_of(config: str, per: str, counts: Counts, units: int, peak_bytes: int) -> Report:
    """Divides counts by the number of steps, batches or scans that they were made in."""
    return Report(
        config=config,
        per=per,
        syncs=counts.waits / units,
        launches=counts.launches / units,
        read_mb=counts.read_bytes / units / _MB,
        written_mb=counts.written_bytes / units / _MB,
        to_device_mb=counts.to_device_bytes / units / _MB,
        to_host_mb=counts.to_host_bytes / units / _MB,
        peak_mb=peak_bytes / _MB,
        why=dict(counts.syncs.most_common()),
        places=dict(counts.places.most_common(_SHOWN)),
        operations=dict(counts.operations.most_common(_SHOWN)),
    )


def train(config: str, steps: int) -> Report:
    """Counts whole steps of `train_fold`, from drawing to the update; "step": not augmented."""
    import torch

    from autoliver.training.loop import train_fold

    counted: list[tuple[Counts, int]] = []
    taken = 0

    def stop() -> bool:
        nonlocal taken
        taken += 1
        if taken == _WARM:
            DEVICE.restart()
        if taken == _WARM + steps:
            counted.append((DEVICE.counts, DEVICE.peak_bytes))
            DEVICE.restart()  # what is saved at the end does not count
        return taken >= _WARM + steps

    with tempfile.TemporaryDirectory() as folder:
        train_fold(made_up_task(config, Path(folder), torch.device("cuda", 0)), stop=stop)
    return report_of(config, "step", counted[0][0], steps, counted[0][1])


def made_up_task(config: str, folder: Path, device: "torch.device") -> "FoldTask":
    """A training on cases of noise; its epoch is longer than any number of steps counted here."""
    from autoliver.machine import Machine
    from autoliver.training.fold import FoldTask
    from autoliver.training.options import TrainingOptions

    configuration, labels = _configuration(config)
    return FoldTask(
        configuration=configuration,
        labels=labels,
        train=[_case(configuration, number) for number in range(4)],
        validation=[],
        options=TrainingOptions(
            epochs=1000, iterations=250, augment="none" if "step" in config else "default"
        ),
        folder=folder,
        device=device,
        title=config,
        machine=Machine(cache="ram"),
    )


def augment(config: str, batches: int) -> Report:
    """Counts the augmentation of batches that are on the device, cut out as trainings do."""
    import torch

    from autoliver.training.augment.batch import PlacedBatch, augment_placed, augmentation
    from autoliver.training.fold import patch_stream
    from autoliver.training.share import Part

    patch, size = _AUGMENTED[config]
    with tempfile.TemporaryDirectory() as folder:
        task = made_up_task(config, Path(folder), torch.device("cuda", 0))
    configuration = task.configuration.replace(patch_shape=patch, batch_size=size)
    task = replace(task, configuration=configuration)
    spec = augmentation(configuration, "default", mirror=True)
    if spec is None:
        raise ValueError("there are no augmentations to count")
    stream = patch_stream(task, task.train, spec, number=0)
    placed = []
    for number in range(batches):
        drawn = stream.draw(number)
        pairs = [(drawn.image, drawn.label), *drawn.wide]
        sent = [tuple(torch.from_numpy(each).to("cuda") for each in pair) for pair in pairs]
        (image, label), *wide = sent
        groups = stream.groups(number)
        placed.append(PlacedBatch(image=image, label=label, groups=groups, wide=wide))
    DEVICE.restart()
    for number, batch in enumerate(placed):
        generator = torch.Generator().manual_seed(stream.augment_seed(number))
        part = Part(start=0, stop=size, whole=size)
        augment_placed(batch, spec=spec, generator=generator, part=part)
    return report_of(config, "batch", DEVICE.counts, batches, DEVICE.peak_bytes)


def predict(config: str, scans: int) -> Report:
    """Counts the sliding window over a scan, from the image in memory to the logits in memory."""
    import torch

    from autoliver.inference.outputs import arithmetic
    from autoliver.inference.window import Scan, sliding_window
    from autoliver.networks.build import build_network

    configuration, _ = _configuration(config)
    device = torch.device("cuda", 0)
    network = build_network(
        configuration.network, deep_supervision=False, generator=torch.Generator().manual_seed(0)
    )
    network = network.to(device).eval()
    axes = range(len(configuration.patch_shape))
    scan = Scan(patch_shape=configuration.patch_shape, mirror_axes=tuple(axes))
    shape = _SCAN if len(configuration.patch_shape) == 2 else _SCAN_3D
    image = torch.randn((1, *shape), generator=torch.Generator().manual_seed(1)).numpy()
    DEVICE.restart()
    for _ in range(scans):
        with torch.inference_mode(), arithmetic(device, exact=False):
            sliding_window(torch.from_numpy(image).to(device), [network], scan).cpu()
    return report_of(config, "scan", DEVICE.counts, scans, DEVICE.peak_bytes)


_SCAN = (8, 80, 80)
_SCAN_3D = (48, 48, 48)
# Shape of the patch, and patches in a batch. A batch of 366 slices is what a plan in 2D of small
# images has; the size of the patch does not change the number of launches.
_AUGMENTED: dict[str, tuple[tuple[int, ...], int]] = {
    "augment 3d": ((32, 32, 32), 2),
    "augment 2d of 366": ((24, 24), 366),
}
_RUNS: dict[str, Callable[[str, int], Report]] = {
    "step tiny 2d": train,
    "step 3d": train,
    "train 3d": train,
    "augment 3d": augment,
    "augment 2d of 366": augment,
    "predict 2d": predict,
    "predict 3d": predict,
}


def _configuration(config: str) -> "tuple[Configuration, Any]":
    """A small network of the kind that a configuration's name says."""
    from autoliver.datasets.cases import Labels
    from autoliver.networks.spec import UNetSpec
    from autoliver.planning.plan import Configuration

    labels = Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)})
    axes = 2 if "2d" in config else 3
    features = (8, 16, 32, 64) if axes == 2 else (8, 16, 32)
    levels = len(features)
    network = UNetSpec(
        in_channels=1,
        out_channels=labels.out_channels,
        features=features,
        strides=((1,) * axes, *[(2,) * axes] * (levels - 1)),
        kernels=((3,) * axes,) * levels,
        blocks_encoder=(2,) * levels,
        blocks_decoder=(2,) * (levels - 1),
    )
    configuration = Configuration(
        spacing_mm=(1.0,) * axes,
        median_shape=(48.0,) * axes,
        patch_shape=(64, 64) if axes == 2 else (32, 32, 32),
        batch_size=4 if axes == 2 else 2,
        batch_dice=axes == 2,
        normalization=("zscore",),
        mask_norm=(False,),
        network=network,
    )
    return configuration, labels


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A case in memory; see `autoliver.training.patches.sampling.TrainingCase`."""

    facts: Any
    image: "npt.NDArray[np.float32]"
    label: "npt.NDArray[np.int16]"
    locations: "dict[int, npt.NDArray[np.int32]]"
    values: tuple[int, ...] = (1, 2)
    previous: None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


def _case(configuration: "Configuration", number: int) -> _Case:
    """Stripes of every label, brighter the higher it is, in noise; larger than a patch."""
    import numpy as np

    from autoliver.datasets.cases import CaseFacts

    rng = np.random.default_rng(number)
    sides = [side + side // 4 for side in configuration.patch_shape]
    shape = (*[8] * (3 - len(sides)), *sides)
    label = np.broadcast_to((np.arange(shape[-1]) // 4 % 3).astype(np.int16), (1, *shape)).copy()
    return _Case(
        facts=CaseFacts.named(f"case_{number}"),
        image=rng.standard_normal((1, *shape), dtype=np.float32) + label,
        label=label,
        locations={v: np.argwhere(label[0] == v).astype(np.int32) for v in (1, 2)},
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretend_cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=list(_RUNS), metavar="CONFIG")
    parser.add_argument("--steps", type=int, default=8, help="that are counted")
    parser.add_argument("--where", action="store_true", help="lines that wait, operations")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    begin()
    reports = list(_reports(arguments.only or list(_RUNS), arguments.steps))
    if arguments.json:
        print(json.dumps([vars(each) for each in reports], indent=1))
        return 0
    print(_line([*_COLUMNS, "peak MB"]), _line(["---"] * (len(_COLUMNS) + 1)), sep="\n")
    for each in reports:
        print(_line(_cells(each)))
    if arguments.where:
        for each in reports:
            for title, found in (("waits", each.places), ("operations", each.operations)):
                print(f"\n{each.config}: {title}, in all")
                print("\n".join(f"{number:7d}  {what}" for what, number in found.items()))
    return 0


def _reports(configs: list[str], steps: int) -> Iterator[Report]:
    for config in configs:
        units = 1 if config.startswith("predict") or "366" in config else steps
        yield _RUNS[config](config, units)


def _cells(each: Report) -> list[str]:
    figures = (each.read_mb, each.written_mb, each.to_device_mb, each.to_host_mb, each.peak_mb)
    return [
        f"{each.config}, per {each.per}",
        f"{each.syncs:.1f}",
        f"{each.launches:.0f}",
        *(f"{figure:.2f}" for figure in figures),
    ]


def _line(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


if __name__ == "__main__":
    sys.exit(main())
