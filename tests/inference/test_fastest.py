import logging

import pytest
import torch
from torch import Tensor, nn

from autoliver.inference import fastest as module
from autoliver.inference.fastest import ChannelsLast, Fastest
from autoliver.networks.blocks import ConvBlock
from autoliver.networks.build import build_network
from autoliver.networks.spec import ResidualUNetSpec, UNetSpec

torch.set_num_threads(1)


def make_network(axes: int = 3, kind: str = "unet") -> nn.Module:
    spec = {"unet": UNetSpec, "resenc": ResidualUNetSpec}[kind](
        in_channels=2,
        out_channels=3,
        features=(4, 8, 8),
        strides=((1,) * axes, (2,) * axes, (1, 2, 2)[-axes:]),
        kernels=((1, 3, 3)[-axes:], (3,) * axes, (3,) * axes),
        blocks_encoder=(1, 2, 1),
        blocks_decoder=(1, 1),
    )
    generator = torch.Generator().manual_seed(0)
    return build_network(spec, deep_supervision=False, generator=generator).eval()


@pytest.mark.parametrize("kind", ["unet", "resenc"])
@pytest.mark.parametrize("shape", [(1, 2, 8, 16, 12), (3, 2, 8, 12, 8), (2, 2, 16, 24)])
def test_channels_last_computes_the_same(shape: tuple[int, ...], kind: str) -> None:
    network = make_network(len(shape) - 2, kind)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = 3 * torch.randn(*shape) + 2
    with torch.inference_mode():
        expected = network(image)
        found = ChannelsLast(network)(image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert any(
        isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d) for module in network.modules()
    )


@pytest.mark.parametrize("kind", ["unet", "resenc"])
def test_blocks_keep_the_format_of_their_convolutions(kind: str) -> None:
    """A block that returned the plain format would have every activation copied twice.

    Convolutions of few voxels, for which PyTorch has another way, return that format by themselves.
    """
    network = ChannelsLast(make_network(3, kind))
    found: dict[nn.Module, bool] = {}

    def note(part: nn.Module, _inputs: object, output: Tensor) -> None:
        found[part] = output.is_contiguous(memory_format=torch.channels_last_3d)

    for part in network.modules():
        if isinstance(part, ConvBlock | nn.Conv3d):
            part.register_forward_hook(note)
    with torch.inference_mode():
        network(torch.randn(2, 2, 16, 32, 24))
    blocks = [part for part in found if isinstance(part, ConvBlock)]
    assert any(found[block] for block in blocks)
    kept = [block for block in blocks if found[block] == found.get(block.conv)]
    if kind == "unet":
        assert len(kept) == len(blocks)
    else:  # the last norms of a residual block are called within it
        assert kept


@pytest.mark.parametrize(("mean", "error"), [(0.0, 5e-6), (1.0, 5e-6), (10.0, 2e-4)])
def test_moments_are_close_to_those_in_float64(mean: float, error: float) -> None:
    # PyTorch's own channels-last norms are off by 3e-3 to 3e-2 here.
    image = torch.randn(1, 3, 24, 160, 160) + mean
    norm = nn.InstanceNorm3d(3, affine=True)
    with torch.inference_mode():
        expected = norm.double()(image.double())
        layout = image.contiguous(memory_format=torch.channels_last_3d)
        found = module._ChannelsLastNorm(norm.float())(layout)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert float((found - expected).abs().max()) < error


class Slow(nn.Module):
    """Doubles; takes as long as told."""

    def __init__(self, clock: list[float], seconds: float, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.clock, self.seconds, self.calls = clock, seconds, 0

    def forward(self, x: Tensor) -> Tensor:
        self.clock[0] += self.seconds
        self.calls += 1
        return torch.cat([x * self.factor, 1 - x], dim=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def tried(monkeypatch: pytest.MonkeyPatch, *ways: module.Way, seconds: float = 0.0) -> None:
    trials = tuple(
        module._Trial(name=f"way {i}", calls=3, seconds=seconds, build=lambda *_, way=way: way)
        for i, way in enumerate(ways)
    )
    monkeypatch.setattr(module, "_trials", lambda _: trials)


def test_a_faster_way_that_agrees_is_taken(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slow, fast, wrong = Slow(clock, 1.0), Slow(clock, 0.5), Slow(clock, 0.1, factor=2.1)
    tried(monkeypatch, wrong, fast)
    network = Fastest(slow).eval()
    x = torch.randn(1, 1, 4, 4, 4)
    with torch.inference_mode():
        outputs = [network(x) for _ in range(8)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert (slow.calls, wrong.calls, fast.calls) == (4, 1, 5)
    assert "way 0: 0.100 s a patch instead of 1.000 s, with other results: not taken" in caplog.text
    assert "way 1: 0.500 s a patch instead of 1.000 s: taken" in caplog.text


def test_a_way_that_is_no_faster_or_fails_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def fails(_: Tensor) -> Tensor:
        raise RuntimeError("no compiler\nmore")

    slow, same = Slow(clock, 1.0), Slow(clock, 0.95)
    tried(monkeypatch, fails, same)
    network = Fastest(slow).eval()
    with torch.inference_mode():
        for _ in range(8):
            network(torch.randn(1, 1, 4, 4, 4))
    assert (slow.calls, same.calls) == (8, 2)
    assert "way 0 is not possible here: RuntimeError: no compiler" in caplog.text


def test_nothing_is_tried_before_it_is_worth_it(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    slow, fast = Slow(clock, 1.0), Slow(clock, 0.5)
    tried(monkeypatch, fast, seconds=6.0)
    network = Fastest(slow).eval()
    with torch.inference_mode():
        for _ in range(5):
            network(torch.randn(1, 1, 4, 4, 4))
        assert fast.calls == 0
        network(torch.randn(1, 1, 4, 4, 4))
        assert fast.calls == 1


@pytest.mark.parametrize("channels_last_s", [0.5, 2.0])
def test_on_cuda_what_is_compiled_is_the_fastest_way_so_far(
    channels_last_s: float, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """PyTorch's norms are slower in channels-last format there, so nothing is taken for granted."""
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda way, **_: (compiled.append(way), way)[1])
    monkeypatch.setattr(module, "_WORTH_COMPILING_S", 3.0)
    slow, other = Slow(clock, 1.0), Slow(clock, channels_last_s)
    monkeypatch.setattr(module, "ChannelsLast", lambda _: other)
    trials = module._trials(torch.device("cuda"))
    monkeypatch.setattr(module, "_trials", lambda _: trials)
    network = Fastest(slow).eval()
    with torch.inference_mode():
        for _ in range(8):
            network(torch.randn(1, 1, 4, 4, 4))
    assert compiled == [other if channels_last_s < 1 else slow]


class OnCuda(Tensor):
    is_cuda = True


def test_on_cuda_few_calls_are_timed(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: waits.append(1))
    slow, fast = Slow(clock, 1.0), Slow(clock, 0.5)
    tried(monkeypatch, fast, seconds=30.0)
    network = Fastest(slow).eval()
    x = torch.randn(1, 1, 4, 4, 4).as_subclass(OnCuda)
    with torch.inference_mode():
        for _ in range(31):
            network(x)
        assert len(waits) == 2 * (2 + 1)
        assert fast.calls == 0
        network(x)  # 2 + 16 + 16 seconds
    assert fast.calls == 1


def test_single_regions_agree_by_their_sign() -> None:
    one = torch.linspace(-1, 1, 1000).reshape(1, 1, 10, 10, 10)
    assert module._agree(one * 1.1, one, exact=False)
    assert not module._agree(one + 0.1, one, exact=False)
    assert not module._agree(one * 1.1, one, exact=True)
    assert not module._agree(one * torch.nan, one, exact=False)


def test_where_compiling_fails_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", cannot)
    monkeypatch.setattr(module, "_WORTH_COMPILING_S", 0.0)
    network = make_network()
    fastest = Fastest(network).eval()
    image = torch.randn(1, 2, 8, 16, 12)
    with torch.inference_mode():
        for _ in range(6):
            torch.testing.assert_close(fastest(image), network(image), rtol=1e-5, atol=2e-5)
