"""What a pretended GPU computes in, and what counts as too little memory."""

import pytest
import torch

from autoliver.inference.outputs import arithmetic
from autoliver.networks.device import free_bytes, half_precision
from autoliver.training.state import amp_dtype

CUDA = [torch.device("cuda", number) for number in range(3)]
CAPABILITIES = [(7, 5), (8, 0), (9, 0)]  # T4, A100, H100


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def capability(device: torch.device) -> tuple[int, int]:
        return CAPABILITIES[device.index]

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    # It counts emulation and looks at the current device: nothing may depend on it.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)


@pytest.mark.usefixtures("gpus")
def test_a_training_takes_the_type_that_its_own_gpu_computes() -> None:
    expected = [torch.float16, torch.bfloat16, torch.bfloat16]
    assert [half_precision(device, training=True) for device in CUDA] == expected
    assert [amp_dtype(device) for device in CUDA] == expected
    assert amp_dtype(torch.device("cpu")) is None


@pytest.mark.usefixtures("gpus")
def test_a_prediction_takes_float16_on_every_gpu() -> None:
    assert {half_precision(device, training=False) for device in CUDA} == {torch.float16}
    assert half_precision(torch.device("mps"), training=False) is None


def test_on_the_cpu_nothing_is_computed_in_half_precision() -> None:
    with arithmetic(torch.device("cpu"), exact=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_free_memory_counts_what_pytorch_keeps_of_tensors_that_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    assert free_bytes(CUDA[0]) == 1400
