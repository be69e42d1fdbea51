"""MedFormer: memory of a training step against the planner's estimate, on the CPU in float32.

    python -m benchmarks.medformer [--preset tiny default] [--threads 2]

Every row is a process of its own. The peak is the memory that two steps (forward, loss, backward,
AdamW, running mean) add to a process that has trained a tiny network, so that libraries are loaded.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from autoliver.memory import GB
from autoliver.planning.fit import memory_gb
from autoliver.planning.names import Preset
from autoliver.planning.plan import Configuration
from autoliver.planning.presets import preset_row
from autoliver.planning.topology import pool_topology
from autoliver.training.objectives.objective import Tally
from autoliver.training.objectives.segmentation import LossOptions, segmentation_loss
from autoliver.training.options import TrainingOptions
from autoliver.training.recipes import RECIPES
from autoliver.training.state import EpochSums, memory_format, new_state
from benchmarks.clock import high_water_mb

# Spacing, patch and batch.
CASES: dict[Preset, list[tuple[tuple[float, ...], tuple[int, ...], int]]] = {
    "tiny": [
        ((1.0, 1.0, 1.0), (64, 64, 64), 2),
        ((1.0, 1.0, 1.0), (96, 96, 96), 2),
        ((5.0, 0.8, 0.8), (32, 128, 128), 2),
        ((0.8, 0.8), (256, 256), 8),
    ],
    "default": [
        ((1.0, 1.0, 1.0), (48, 48, 48), 2),
        ((1.0, 1.0, 1.0), (64, 64, 64), 2),
        ((0.8, 0.8), (128, 128), 8),
    ],
}
_STEPS, CLASSES = 2, 3
_WARM_UP = ((1.0, 1.0), (32, 32), 1)


def configuration(preset: Preset, number: int) -> Configuration:
    """The configuration that the planner would make for a row of `CASES`."""
    return _configuration(preset, *CASES[preset][number])


def _configuration(
    preset: Preset, spacing: tuple[float, ...], patch: tuple[int, ...], batch: int
) -> Configuration:
    topology = pool_topology(spacing, patch)
    network = preset_row(preset, "medformer").network(topology, in_channels=1, out_channels=CLASSES)
    return Configuration(
        spacing_mm=spacing,
        median_shape=tuple(map(float, patch)),
        patch_shape=topology.patch_shape,
        batch_size=batch,
        batch_dice=True,
        normalization=("zscore",),
        mask_norm=(False,),
        network=network,
    )


def step_gb(one: Configuration) -> float:
    """The most memory in GB that training steps add to this process."""
    take_steps(_configuration("tiny", *_WARM_UP))
    before = resident_gb()
    take_steps(one)
    return high_water_mb() * 2**20 / GB - before


def take_steps(one: Configuration) -> None:
    """Trains a network on noise."""
    device, spec, batch = torch.device("cpu"), one.network, one.batch_size
    generator = torch.Generator().manual_seed(0)
    sums = EpochSums(tally=Tally.empty({}))
    recipe, options = RECIPES["short"], TrainingOptions()
    state = new_state(spec, recipe, options=options, device=device, sums=sums)
    loss_options = LossOptions(batch_dice=True, lowest_weight=spec.lowest_weight)
    for _ in range(_STEPS):
        image = torch.randn(batch, 1, *one.patch_shape, generator=generator)
        shape = (batch, 1, *one.patch_shape)
        target = torch.randint(CLASSES, shape, generator=generator, dtype=torch.int16)
        outputs = state.network(image.contiguous(memory_format=memory_format(spec, device)))
        loss = segmentation_loss(outputs, target, options=loss_options)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        state.update_average()
        state.step += 1


def resident_gb() -> float:
    """The memory of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / GB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.row is not None:
        print(json.dumps(step_gb(configuration(arguments.preset[0], arguments.row))))
        return
    print("| preset | patch x batch | values | estimate | peak | estimate / peak |")
    print("|---|---|---|---|---|---|")
    for preset in arguments.preset:
        for number in range(len(CASES[preset])):
            one = configuration(preset, number)
            words = ["--preset", preset, "--row", str(number), "--threads", arguments.threads]
            command = [sys.executable, "-m", "benchmarks.medformer", *map(str, words)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peak, estimate = float(done.stdout), memory_gb(one, preset, "medformer")
            values = one.network.feature_map_elements(one.patch_shape) * one.batch_size
            patch = f"{'x'.join(map(str, one.patch_shape))} x {one.batch_size}"
            sizes = f"{estimate:.2f} GB | {peak:.2f} GB | {estimate / peak:.2f}"
            print(f"| {preset} | {patch} | {values / 1e6:.1f} M | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
