"""Toy programs on the pretended CUDA device: prints what was counted of each, as JSON.

Run in a process of its own, since the device changes PyTorch for the rest of it.
"""

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.pretend_cuda_device import DEVICE, DeviceMixError, begin

PROGRAMS: dict[str, Callable[[], object]] = {}


def program(function: Callable[[], object]) -> Callable[[], object]:
    PROGRAMS[function.__name__] = function
    return function


def on_device(*shape: int) -> torch.Tensor:
    made = torch.ones(shape, device="cuda")
    DEVICE.restart()
    return made


@program
def add() -> object:
    return (on_device(4) + 1).device.type


@program
def item() -> object:
    return on_device(4).sum().item()


@program
def truth() -> object:
    return bool(on_device(1) > 0)


@program
def to_list() -> object:
    return on_device(4).tolist()


@program
def mask() -> object:
    x = on_device(4)
    return x[x > 0].cpu().tolist()


@program
def filled_by_mask() -> object:
    x = on_device(4)
    x[x > 0] = 3.0
    return x.tolist()


@program
def nonzero() -> object:
    return on_device(4).nonzero().shape[0]


@program
def indexed_by_list() -> object:
    return tuple(on_device(4)[[0, 1]].shape)


@program
def views() -> object:
    return on_device(4, 2).view(8)[2:].unflatten(0, (2, 3)).transpose(0, 1).is_cuda


@program
def pageable() -> object:
    return torch.ones(4).to("cuda", non_blocking=True).is_cuda


@program
def pinned() -> object:
    return torch.ones(4).pin_memory()[:2].to("cuda", non_blocking=True).is_cuda


@program
def pinned_but_blocking() -> object:
    return torch.ones(4, pin_memory=False).pin_memory().to("cuda").is_cuda


@program
def made_from_list() -> object:
    return torch.tensor([1.0, 2.0], device="cuda").is_cuda


@program
def where_it_is() -> object:
    x = on_device(4)
    return x.to("cuda") is x and x.to(x.device, torch.float32) is x


@program
def to_pinned() -> object:
    x = on_device(4)
    target = torch.empty(4, pin_memory=True)
    target.copy_(x, non_blocking=True)
    return target.tolist()


@program
def synchronize() -> object:
    torch.cuda.synchronize()
    return torch.cuda.is_available()


@program
def mixed() -> object:
    return on_device(4) + torch.ones(4)


@program
def single_number_of_host() -> object:
    return (on_device(4) + torch.tensor(1.0)).tolist()


@program
def generator_of_host() -> object:
    return torch.randn(3, device="cuda", generator=torch.Generator().manual_seed(1))


@program
def generator_of_device() -> object:
    generator = torch.Generator(device="cuda").manual_seed(1)
    expected = torch.randn(3, generator=torch.Generator().manual_seed(1))
    found = torch.randn(3, device="cuda", generator=generator)
    return torch.equal(found.cpu(), expected)


@program
def memory() -> object:
    x = on_device(1000)
    y = x * 2  # 4000 bytes more
    del y
    z = x[:500].clone()  # 2000 bytes
    return [DEVICE.held_bytes - x.nbytes - z.nbytes, DEVICE.peak_bytes - DEVICE.held_bytes]


@program
def in_a_thread() -> object:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(torch.zeros(4, device="cuda") + 1))
    thread.start()
    thread.join()
    return found[0].is_cuda


@program
def waits_in_a_thread() -> object:
    thread = threading.Thread(target=torch.zeros(4, device="cuda").tolist)
    thread.start()
    thread.join()
    return True


@program
def pinned_array() -> object:
    array = torch.zeros(4, pin_memory=True).numpy()[1:3].view("int32")
    return torch.from_numpy(array).to("cuda", non_blocking=True).is_cuda


def _step(device: str) -> list[float]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, affine=True), nn.LeakyReLU(inplace=True)
    ).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    image = torch.randn((1, 1, 8, 8)).to(device)
    for _ in range(3):
        optimizer.zero_grad()
        loss = (network(image) - 1).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return [round(float(p.detach().cpu().double().sum()), 5) for p in network.parameters()]


@program
def step_as_on_the_cpu() -> object:
    return _step("cuda") == _step("cpu")


@program
def autocast() -> object:
    network, image = nn.Conv2d(1, 2, 3).to("cuda"), on_device(1, 1, 8, 8)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        half = network(image)
        full = torch.softmax(half, 1)
    full.sum().backward()
    grad = network.weight.grad
    return [str(x.dtype) for x in (half, full, grad) if x is not None]


@program
def a_copy_of_a_network() -> object:
    import copy

    network = nn.Linear(3, 3).to("cuda")
    twin = copy.deepcopy(network)
    return [type(p).__name__ for p in twin.parameters()]


def main() -> None:
    begin()
    found = {}
    for name, run in PROGRAMS.items():
        DEVICE.restart()
        try:
            result = run()
        except DeviceMixError as error:
            result = f"DeviceMixError: {error}"
        counts = DEVICE.counts
        found[name] = {
            "result": result,
            "syncs": counts.waits,
            "launches": counts.launches,
            "read": counts.read_bytes,
            "written": counts.written_bytes,
            "to_device": counts.to_device_bytes,
            "to_host": counts.to_host_bytes,
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
