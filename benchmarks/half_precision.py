"""How far gradients of mixed precision are from those of float32: bfloat16, and float16 scaled.

    python -m benchmarks.half_precision [--only 2d 3d] [--seeds N] [--steps N]

The same batch goes through the same network three times: in float32, under autocast to bfloat16,
as `train` does on a GPU, and under autocast to float16 with a loss scaled by 65,536, as nnU-Net
does. Printed are, over all weights together, the length of the gradients' difference as a share of
the gradient of float32, and the cosine between both; before the first step and after some steps.
Autocast of the CPU rounds as a GPU does, but adds up in another order and has another list of
operations, so a GPU's figures differ a little.
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.pretend_cuda import made_up_task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from autoliver.training.fold import FoldTask

_SCALE = 65536.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.half_precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=("2d", "3d"), default=["2d", "3d"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of the training, in float32")
    arguments = parser.parse_args()
    print("| network | step | precision | difference | cosine |")
    print("| --- | --- | --- | --- | --- |")
    for kind in arguments.only:
        found = [_measured(kind, seed, arguments.steps) for seed in range(arguments.seeds)]
        for key in found[0]:
            errors, cosines = zip(*(each[key] for each in found), strict=True)
            print(
                f"| {kind} | {key[0]} | {key[1]} | {statistics.mean(errors):.2%} "
                f"({min(errors):.2%} to {max(errors):.2%}) | {statistics.mean(cosines):.5f} |"
            )
    return 0


def _measured(kind: str, seed: int, steps: int) -> dict[tuple[int, str], tuple[float, float]]:
    """Difference and cosine, by step and precision."""
    import torch

    from autoliver.training.fold import open_patches
    from autoliver.training.objectives.choice import make_objective

    with tempfile.TemporaryDirectory() as folder:
        task = made_up_task(f"step {kind}", Path(folder), torch.device("cpu"))
        patches, _ = open_patches(task)
        objective = make_objective(task.labels, task.configuration, task.options)
        network = _network(task, seed)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True)
        found = {}
        shape = task.configuration.drawn_shape
        for batch in patches.batches(range(steps + 1), patch_shape=shape, spec=None):

            def gradient(dtype: "torch.dtype | None", scale: float) -> "Tensor":
                network.zero_grad()
                block = torch.autocast("cpu", dtype=dtype) if dtype else nullcontext()
                with block:
                    outputs = network(batch.image)  # noqa: B023
                loss, _ = objective.loss(outputs, batch, task.group)  # noqa: B023
                (loss * scale).backward()  # type: ignore[no-untyped-call]
                every = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
                return torch.cat(every).double() / scale

            exact = gradient(None, 1.0)
            if batch.number in (0, steps):
                for name, dtype, scale in (
                    ("bfloat16", torch.bfloat16, 1.0),
                    ("float16, scaled", torch.float16, _SCALE),
                ):
                    other = gradient(dtype, scale)
                    error = float((other - exact).norm() / exact.norm())
                    cosine = float(torch.cosine_similarity(other, exact, dim=0))
                    found[batch.number, name] = (error, cosine)
                gradient(None, 1.0)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
            optimizer.step()
        return found


def _network(task: "FoldTask", seed: int) -> "torch.nn.Module":
    import torch

    from autoliver.networks.build import build_network

    generator = torch.Generator().manual_seed(seed)
    return build_network(task.configuration.network, deep_supervision=True, generator=generator)


if __name__ == "__main__":
    sys.exit(main())
