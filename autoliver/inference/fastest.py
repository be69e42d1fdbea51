"""The fastest way to run a network here, found while it works.

What is fast hangs on the machine and on the patch: channels-last convolutions take half the time of
plain ones on some CPUs and more on others; bfloat16 is a gain where the CPU has instructions for
it. So other ways are tried on real patches, each once the time spent is worth the trial, and taken
where they are faster and agree.
"""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoliver.inference.options import AS_IT_IS

_log = logging.getLogger(__name__)

Way = Callable[[Tensor], Tensor]

# The first call pays for allocations and the choice of kernels.
_FIRST_TRIAL = 2
_GAIN = 0.9  # of the time so far, at most
# Measured on two cores: half a minute to two minutes to compile, for a tenth to a third less time.
_WORTH_COMPILING_S = 1200.0
# Reductions in another order: 1e-5 of logits of about 10 was measured.
_FLOAT32_SHARE = 1e-4
_SAME_LABELS = 0.9995


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A way to try.

    Attributes:
        name: For the log.
        calls: Not before so many patches, ...
        seconds: ... nor before so much time was spent in the network.
        build: Makes it of the network.
        exact: Whether it computes in the network's own precision.
    """

    name: str
    calls: int
    seconds: float
    build: Callable[[nn.Module], Way]
    exact: bool = True


class Fastest(nn.Module):
    """A network that changes to a faster way of computing the same while it is used.

    Args:
        network: In eval mode, one output, where it stays.

    Attributes:
        network: The network as it is.
        ways: Names of the ways that results have been computed in, in their order.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.ways: list[str] = []
        self._name = AS_IT_IS
        self._way: Way = network
        self._todo = _trials(next(network.parameters()).device)
        self._calls, self._seconds = 0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """The network's output; on some calls computed twice, to compare."""
        if self._name not in self.ways:
            self.ways.append(self._name)
        if not self._todo or self.training:
            return self._way(x)
        result, seconds = _timed(self._way, x)
        self._calls += 1
        self._seconds += seconds
        trial = self._todo[0]
        if self._calls >= trial.calls and self._seconds >= trial.seconds:
            self._todo = self._todo[1:]
            self._try(trial, x, result, seconds)
        return result

    def _try(self, trial: _Trial, x: Tensor, expected: Tensor, seconds: float) -> None:
        try:
            # Weights made in inference mode could never be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                way = trial.build(self.network)
            found, taken = _timed(way, x)
            if taken >= _GAIN * seconds:  # the first call may have paid for allocations
                found, taken = _timed(way, x)
        # A way that does not work here, for whatever reason, is one not taken.
        except Exception as error:  # noqa: BLE001
            reason = str(error).partition("\n")[0][:200]
            _log.info("%s is not possible here: %s: %s", trial.name, type(error).__name__, reason)
            return
        agrees = _agree(found, expected, exact=trial.exact)
        taken_now = agrees and taken < _GAIN * seconds
        _log.info(
            "%s: %.3f s a patch instead of %.3f s%s: %s.",
            *(trial.name, taken, seconds, "" if agrees else ", with other results"),
            "taken" if taken_now else "not taken",
        )
        if taken_now:
            self._way, self._name = way, trial.name


def as_they_are(networks: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """The networks themselves, whatever way of computing them has been found faster."""
    return tuple(each.network if isinstance(each, Fastest) else each for each in networks)


def _trials(device: torch.device) -> tuple[_Trial, ...]:
    compiled = _Trial(
        name="compiled",
        calls=_FIRST_TRIAL,
        seconds=_WORTH_COMPILING_S,
        build=_compiled,
    )
    first = _Trial(name="channels-last", calls=_FIRST_TRIAL, seconds=0.0, build=ChannelsLast)
    if device.type == "cpu":
        # Twice the time where it is emulated, so only once that is a small loss.
        half = _Trial(name="bfloat16", calls=100, seconds=30.0, build=_bfloat16, exact=False)
        return first, half, compiled
    return (first, compiled) if device.type == "cuda" else ()


class ChannelsLast(nn.Module):
    """A copy of a network that keeps channels together in memory, and takes any image.

    PyTorch's instance norm would bring every activation back to the plain format; on the CPU the
    copy has one that does not.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        if next(network.parameters()).device.type == "cpu":
            _replace_norms(self.network)
        three = any(weight.ndim == 5 for weight in network.parameters())
        self.layout = torch.channels_last_3d if three else torch.channels_last
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """The network's output."""
        result: Tensor = self.network(x.contiguous(memory_format=self.layout))
        return result


def _compiled(network: nn.Module) -> Way:
    usual: Way = ChannelsLast(network)
    fast: Way = torch.compile(usual, dynamic=False)
    shapes: list[torch.Size] = []

    def run(x: Tensor) -> Tensor:
        if not shapes:
            shapes.append(x.shape)
        # A case's last windows are fewer: compiling for them as well would cost more than it saves.
        return fast(x) if x.shape == shapes[0] else usual(x)

    return run


def _bfloat16(network: nn.Module) -> Way:
    way: Way = ChannelsLast(network)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            result = way(x)
        return result.float()

    return run


class _ChannelsLastNorm(nn.Module):
    """Instance norm of an image whose channels lie together.

    PyTorch's own norms in this format add up all voxels in float32, and err by 3e-3 of a standard
    deviation where there are a million. Here sums of squares of pieces are added up in float64.
    """

    def __init__(self, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        rows = x.movedim(1, -1).reshape(len(x), -1, x.shape[-1], channels)
        normed = [
            nn.functional.batch_norm(
                image, *_moments(pieces), self.weight, self.bias, training=False, eps=self.eps
            )
            for image, pieces in zip(torch.split(x, 1), rows, strict=True)
        ]
        return normed[0] if len(normed) == 1 else torch.cat(normed)


def _moments(pieces: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of (pieces, n, channels)."""
    pieces = pieces.float()
    count = pieces.shape[0] * pieces.shape[1]
    mean = pieces.flatten(0, 1).mean(0, dtype=torch.float32).double()
    squares = torch.bmm(pieces.transpose(1, 2), pieces).diagonal(dim1=1, dim2=2)
    variance = squares.double().sum(0) / count - mean**2
    return mean.float(), variance.clamp_min(0).float()


def _replace_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d):
            setattr(module, name, _ChannelsLastNorm(child))
        else:
            _replace_norms(child)


def _timed(way: Way, x: Tensor) -> tuple[Tensor, float]:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    start = time.perf_counter()
    result = way(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return result, time.perf_counter() - start


def _agree(found: Tensor, expected: Tensor, *, exact: bool) -> bool:
    found, expected = found.float(), expected.float()
    if not torch.isfinite(found).all():
        return False
    if exact and not found.is_cuda:
        limit = _FLOAT32_SHARE * max(1.0, float(expected.abs().max()))
        return float((found - expected).abs().max()) <= limit
    labels = [
        torch.cat([torch.zeros_like(each[:, :1]), each], dim=1).argmax(dim=1)
        if each.shape[1] == 1
        else each.argmax(dim=1)
        for each in (found, expected)
    ]
    return float((labels[0] == labels[1]).float().mean()) >= _SAME_LABELS
