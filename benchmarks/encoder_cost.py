"""What a U-Net with a classification encoder costs beside a plain one of the same multiply-adds.

    python -m benchmarks.encoder_cost [--encoders resnet18 efficientnet_b0] [--rounds 5]

The plain U-Net has five halvings as well; its features are chosen so that a forward pass has as
many multiply-adds, as torch counts them. Both do a training step (forward, backward) on the same
batch in turn; the ratio is that of the medians, so that what else the machine does hits both.
"""

import argparse
import statistics
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoliver.networks.build import build_network
from autoliver.networks.spec import NetworkSpec, UNetSpec
from autoliver.planning.presets import preset_row

PATCH, BATCH, CLASSES = (128, 128), 2, 5
LEVELS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=["resnet18", "efficientnet_b0"])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print("| encoder | G multiply-adds | plain: features, G | s per step | plain | ratio |")
    print("|---|---|---|---|---|---|")
    for name in given.encoders:
        row = preset_row("default", "unet", name)
        spec = row.network(row.topology((1.0, 1.0), PATCH), in_channels=1, out_channels=CLASSES)
        wanted = multiply_adds(spec)
        plain = min(
            (unet(base) for base in range(8, 65)), key=lambda u: abs(multiply_adds(u) - wanted)
        )
        seconds = in_turn(spec, plain, given.rounds)
        theirs = f"{plain.features[0]}.., {multiply_adds(plain) / 1e9:.2f}"
        print(
            f"| {name} | {wanted / 1e9:.2f} | {theirs} "
            f"| {seconds[0]:.3f} | {seconds[1]:.3f} | {seconds[0] / seconds[1]:.2f} |",
            flush=True,
        )


def unet(base: int) -> UNetSpec:
    """A plain U-Net of as many levels as the encoder's."""
    return UNetSpec(
        in_channels=1,
        out_channels=CLASSES,
        features=tuple(min(base * 2**level, 16 * base) for level in range(LEVELS)),
        strides=((1, 1), *((2, 2),) * (LEVELS - 1)),
        kernels=((3, 3),) * LEVELS,
        blocks_encoder=(2,) * LEVELS,
        blocks_decoder=(2,) * (LEVELS - 1),
    )


def multiply_adds(spec: NetworkSpec) -> int:
    """Of a forward pass of the batch, counted on the meta device."""
    with torch.device("meta"):
        network = build_network(spec, deep_supervision=False)
        image = torch.empty(BATCH, 1, *PATCH)
    with FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops()) // 2


def in_turn(one: NetworkSpec, other: NetworkSpec, rounds: int) -> tuple[float, float]:
    """Median seconds of a training step of each."""
    networks = [build_network(spec, deep_supervision=False).train() for spec in (one, other)]
    image = torch.randn(BATCH, 1, *PATCH)
    found: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for times, network in zip(found, networks, strict=True):
            seconds = step(network, image)
            if turn:  # the first one allocates
                times.append(seconds)
    first, second = map(statistics.median, found)
    return first, second


def step(network: nn.Module, image: torch.Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    start = time.perf_counter()
    network.zero_grad()
    network(image).square().mean().backward()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
