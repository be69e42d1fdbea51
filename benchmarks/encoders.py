"""Networks with an encoder: memory of a training step against the planner's estimate, on the CPU.

    python -m benchmarks.encoders [--threads 2]

It is measured as `benchmarks.medformer` does: every row is a process of its own, in float32.
"""

import argparse
import json
import subprocess
import sys

import torch

from autoliver.memory import GB
from autoliver.planning.fit import memory_gb
from autoliver.planning.names import Architecture, EncoderName
from autoliver.planning.plan import Configuration
from autoliver.planning.presets import preset_row
from benchmarks.clock import high_water_mb
from benchmarks.medformer import CLASSES, resident_gb, take_steps

Case = tuple[Architecture, EncoderName, tuple[float, ...], tuple[int, ...], int]
# Architecture, encoder, spacing, patch and batch.
CASES: list[Case] = [
    ("unet", "efficientnet_b0", (0.8, 0.8), (256, 256), 8),
    ("unet", "efficientnet_b0", (1.0, 1.0, 1.0), (64, 96, 96), 2),
    ("unet", "resnet18", (0.8, 0.8), (256, 256), 8),
    ("unet", "resnet50", (0.8, 0.8), (256, 256), 4),
    ("omnia", "efficientnet_b4", (0.8, 0.8), (256, 256), 4),
    ("dxnet", "efficientnet_b0", (5.0, 0.8, 0.8), (32, 128, 128), 2),
    ("dsnet", "efficientnet_b0", (1.0, 1.0, 1.0), (64, 96, 96), 2),
]
_WARM_UP: Case = ("unet", "resnet18", (1.0, 1.0), (32, 32), 1)


def configuration(case: Case) -> Configuration:
    """The configuration that the planner would make for a row of `CASES`."""
    arch, encoder, spacing, patch, batch = case
    row = preset_row("default", arch, encoder)
    topology = row.topology(spacing, patch)
    return Configuration(
        spacing_mm=spacing,
        median_shape=tuple(map(float, patch)),
        patch_shape=topology.patch_shape,
        batch_size=batch,
        batch_dice=True,
        normalization=("zscore",),
        mask_norm=(False,),
        network=row.network(topology, in_channels=1, out_channels=CLASSES),
    )


def step_gb(case: Case) -> float:
    """The most memory in GB that training steps add to this process."""
    take_steps(configuration(_WARM_UP))
    before = resident_gb()
    take_steps(configuration(case))
    return high_water_mb() * 2**20 / GB - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.row is not None:
        print(json.dumps(step_gb(CASES[arguments.row])))
        return
    print("| network | patch x batch | values | estimate | peak | estimate / peak |")
    print("|---|---|---|---|---|---|")
    for number, case in enumerate(CASES):
        arch, encoder, *_ = case
        one = configuration(case)
        words = ["--row", str(number), "--threads", str(arguments.threads)]
        command = [sys.executable, "-m", "benchmarks.encoders", *words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peak, estimate = float(done.stdout), memory_gb(one, "default", arch, encoder)
        values = one.network.feature_map_elements(one.patch_shape) * one.batch_size
        patch = f"{'x'.join(map(str, one.patch_shape))} x {one.batch_size}"
        sizes = f"{estimate:.2f} GB | {peak:.2f} GB | {estimate / peak:.2f}"
        print(f"| {arch} {encoder} | {patch} | {values / 1e6:.1f} M | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
