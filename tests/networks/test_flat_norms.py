"""Norms without their last view: the same bits as torch's own norms, and fewer bytes written."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autoliver.networks import blocks
from autoliver.networks.build import build_network
from autoliver.networks.spec import NetworkSpec, TranslatorSpec
from autoliver.planning.presets import preset_row
from autoliver.planning.topology import pool_topology


def ds_net() -> NetworkSpec:
    row = preset_row("tiny", "dsnet", "resnet18")
    return row.network(row.topology((1.0, 1.0, 1.0), (8, 32, 16)), in_channels=1, out_channels=3)


def medformer(patch: tuple[int, ...]) -> NetworkSpec:
    topology = pool_topology((1.0,) * len(patch), patch)
    return preset_row("tiny", "medformer").network(topology, in_channels=1, out_channels=3)


TRANSLATOR = TranslatorSpec(in_channels=1, out_channels=1, features=4, blocks=1, strides=((2, 2),))
SPECS: list[tuple[NetworkSpec, tuple[int, ...]]] = [
    (ds_net(), (8, 32, 16)),
    (medformer((16, 16, 16)), (16, 16, 16)),
    (medformer((32, 32)), (32, 32)),
    (TRANSLATOR, (16, 16)),
]


class Copied(TorchDispatchMode):
    """Counts the bytes of tensors that are copied."""

    bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten.clone):
            self.bytes += found.nbytes
        return found


def trained_once(
    spec: NetworkSpec, shape: tuple[int, ...]
) -> tuple[Tensor, dict[str, Tensor], list[str], int]:
    """Output, gradients, names of the weights, and bytes copied."""
    network: nn.Module = build_network(
        spec, deep_supervision=False, generator=torch.Generator().manual_seed(0)
    )
    image = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)  # DS-Net leaves out blocks at random
    with Copied() as copied:
        found = network(image)
        found.square().mean().backward()
    grads = {n: w.grad for n, w in network.named_parameters() if w.grad is not None}
    return found.detach(), grads, list(network.state_dict()), copied.bytes


@pytest.mark.parametrize(("spec", "shape"), SPECS, ids=["dsnet", "med3d", "med2d", "translator"])
def test_the_bits_are_those_of_torchs_norms_and_less_is_copied(
    spec: NetworkSpec, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, grads, names, copied = trained_once(spec, shape)
    monkeypatch.setattr(blocks, "flat_norm", lambda x, norm: norm(x))
    expected, their_grads, their_names, theirs = trained_once(spec, shape)
    assert names == their_names
    assert torch.equal(found, expected)
    assert grads.keys() == their_grads.keys()
    for name, grad in grads.items():
        assert torch.equal(grad, their_grads[name]), name
    assert copied < theirs
