"""Finds the fastest way to run a network on this machine while the network is in use.

Which way is fastest depends on the machine and on the patch. Channels-last convolutions take half
the time of plain ones on some CPUs and more time on others; bfloat16 is faster only where the CPU
has instructions for it. So alternatives are tried on real patches, each as soon as the time already
spent in the network justifies the trial. An alternative is adopted if it is faster and its results
agree.
"""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoliver.inference.options import AS_IT_IS
from autoliver.networks.blocks import to_channels_last

_log = logging.getLogger(__name__)

Way = Callable[[Tensor], Tensor]

# Trials start with the second call, since the first one includes allocations and the choice of
# kernels.
_FIRST_TRIAL = 2
# Timing a call waits for the GPU, so only every so many-th one is timed there.
_TIMED_ON_CUDA = 16
# An alternative is adopted if it takes less than this share of the current time.
_GAIN = 0.9
# Measured on two cores: compiling takes 0.5 to 2 minutes and saves a tenth to a third of the time.
_WORTH_COMPILING_S = 1200.0
# Tolerated difference as a share of the largest logit. Reductions in another order were measured to
# change logits of about 10 by 1e-5.
_FLOAT32_SHARE = 1e-4
# Share of voxels whose label has to be the same where results are not compared as float32.
_SAME_LABELS = 0.9995


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """An alternative way of computing, and when to try it.

    Attributes:
        name: Name for the log and for predict.json.
        calls: The number of the earliest call on which it may be tried.
        seconds: The time in seconds that must have been spent in the network before it is tried.
        build: Builds the alternative from the network and from the way that is the fastest so far.
        exact: Whether it computes in the network's own precision.
    """

    name: str
    calls: int
    seconds: float
    build: Callable[[nn.Module, Way], Way]
    exact: bool = True


class Fastest(nn.Module):
    """Wraps a network and switches to a faster way of computing its output while it is used.

    Args:
        network: A network with one output, in eval mode, on the device where it stays.

    Attributes:
        network: The unchanged network.
        ways: Names of the ways in which results have been computed so far, in order of first use.
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
        """Returns the network's output; a call with a trial computes it again to compare."""
        if self._name not in self.ways:
            self.ways.append(self._name)
        if not self._todo or self.training:
            return self._way(x)
        self._calls += 1
        every = _TIMED_ON_CUDA if x.is_cuda and self._calls > _FIRST_TRIAL else 1
        if self._calls % every:
            return self._way(x)
        result, seconds = _timed(self._way, x)
        self._seconds += every * seconds
        trial = self._todo[0]
        if self._calls >= trial.calls and self._seconds >= trial.seconds:
            self._todo = self._todo[1:]
            self._try(trial, x, result, seconds)
        return result

    def _try(self, trial: _Trial, x: Tensor, expected: Tensor, seconds: float) -> None:
        try:
            # Weights created in inference mode could never be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                way = trial.build(self.network, self._way)
            found, taken = _timed(way, x)
            if taken >= _GAIN * seconds:  # the first call may have included allocations
                found, taken = _timed(way, x)
        # If an alternative fails on this machine for any reason, it is just not used.
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
    """Returns the original networks, without any faster way of computing them."""
    return tuple(_as_it_is(each) for each in networks)


def _as_it_is(network: nn.Module) -> nn.Module:
    if isinstance(network, nn.Sequential):  # a network and what its output goes through
        return nn.Sequential(*(_as_it_is(part) for part in network))
    return network.network if isinstance(network, Fastest) else network


def _trials(device: torch.device) -> tuple[_Trial, ...]:
    compiled = _Trial(
        name="compiled",
        calls=_FIRST_TRIAL,
        seconds=_WORTH_COMPILING_S,
        build=_compiled,
    )
    first = _Trial(
        name="channels-last",
        calls=_FIRST_TRIAL,
        seconds=0.0,
        build=lambda network, _: ChannelsLast(network),
    )
    if device.type == "cpu":
        # It takes twice the time where it is emulated, so it is tried only after enough time has
        # passed for that to be a small loss.
        half = _Trial(name="bfloat16", calls=100, seconds=30.0, build=_bfloat16, exact=False)
        return first, half, compiled
    return (first, compiled) if device.type == "cuda" else ()


class ChannelsLast(nn.Module):
    """A copy of a network that uses the channels-last memory format and takes any image.

    PyTorch's instance norm would convert every activation back to the plain format. On the CPU the
    copy therefore has an instance norm that does not.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        if next(network.parameters()).device.type == "cpu":
            _replace_norms(self.network)
        three = any(weight.ndim == 5 for weight in network.parameters())
        self.layout = torch.channels_last_3d if three else torch.channels_last
        to_channels_last(self.network)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the network's output."""
        result: Tensor = self.network(x.contiguous(memory_format=self.layout))
        return result


def _compiled(_: nn.Module, usual: Way) -> Way:
    """Compiles the way that is the fastest so far, in the memory format and precision of that."""
    fast: Way = torch.compile(usual, dynamic=False)
    shapes: list[torch.Size] = []

    def run(x: Tensor) -> Tensor:
        if not shapes:
            shapes.append(x.shape)
        # The last batch of a case has fewer windows. Compiling for its shape as well would cost
        # more than it saves.
        return fast(x) if x.shape == shapes[0] else usual(x)

    return run


def _bfloat16(network: nn.Module, _: Way) -> Way:
    way: Way = ChannelsLast(network)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            result = way(x)
        return result.float()

    return run


class _ChannelsLastNorm(nn.Module):
    """Instance norm of an image in channels-last format.

    PyTorch's own norms add up all voxels of this format in float32; with a million voxels they are
    off by 3e-3 of a standard deviation. Here the sums of squares of pieces are added up in float64.
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
    """Returns the mean and the variance of each channel of (pieces, n, channels)."""
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
