"""The building blocks of U-Nets, in 2D or 3D depending on the length of `kernel`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

# Layers by dimension. They are typed as callables, since torch's layers of each dimension take
# tuples of another fixed length.
Layer = Callable[..., nn.Module]
Activation = Callable[[torch.Tensor], torch.Tensor]
CONV: dict[int, Layer] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED_CONV: dict[int, Layer] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM: dict[int, Layer] = {
    1: nn.InstanceNorm1d,
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}
BATCH_NORM: dict[int, Layer] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL: dict[int, Layer] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class AveragePool3d(nn.AvgPool3d):
    """Average pooling by a stride, in a deterministic way where that is asked for.

    CUDA's gradient of `AvgPool3d` adds up in no fixed order, so PyTorch refuses it in deterministic
    trainings. There the same means are taken over axes of their own, of which the gradient is a
    plain expansion. As in `AvgPool3d`, voxels that fill no whole stride at the end are left out.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, c, *shape) -> (b, c, *shape // stride)."""
        if x.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
            return super().forward(x)
        return mean_of_strides(x, self.stride)  # type: ignore[arg-type]


def mean_of_strides(x: torch.Tensor, stride: tuple[int, int, int]) -> torch.Tensor:
    """Averages boxes of the size of a stride, side by side: (b, c, z, y, x) -> (b, c, *shape)."""
    for axis, step in enumerate(stride, start=2):
        x = x.narrow(axis, 0, x.shape[axis] // step * step)
    for axis in (4, 3, 2):  # from the last, so that the numbers of the others stay
        x = torch.unflatten(x, axis, (-1, stride[axis - 2]))
    return x.mean((3, 5, 7))


AVERAGE_POOL: dict[int, Layer] = {2: nn.AvgPool2d, 3: AveragePool3d}

LEAK = 1e-2  # slope of every LeakyReLU; the initialisation uses the same slope
NORM_EPS = 1e-5


# Rank of the kernels of 2D and of 3D convolutions, with their features -> memory format.
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_channels_last(network: nn.Module) -> None:
    """Brings the kernels of a network, which may be of 2D and of 3D, into channels-last format."""
    for weight in network.parameters():
        if weight.ndim in _CHANNELS_LAST:
            weight.data = weight.data.contiguous(memory_format=_CHANNELS_LAST[weight.ndim])


def activation() -> nn.Module:
    """Returns the network's non-linearity; it works in place, which saves an activation map."""
    return nn.LeakyReLU(LEAK, inplace=True)


def flat_norm(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """Normalises as an instance norm does, without its last view.

    torch normalises all features of all samples as a batch norm of one sample, and returns a view.
    A change in place of that view costs a copy of the features in the backward pass; here it
    does not. Values and gradients are those of `norm` bit by bit.

    Args:
        x: Features (b, c, *shape).
        norm: An instance norm, of which the weights and the epsilon are used; another module that
            was put in its place is called.

    Returns:
        (1, b * c, *shape), contiguous; `features_of` gives it the shape of `x` again. What another
        module returns is left as it is, in its own memory format.
    """
    if not isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d):
        other: torch.Tensor = norm(x)
        return other
    weights: list[torch.Tensor | None] = [getattr(norm, name) for name in ("weight", "bias")]
    weight, bias = (None if each is None else each.repeat(len(x)) for each in weights)
    flat = x.contiguous().view(1, -1, *x.shape[2:])
    return F.batch_norm(flat, None, None, weight, bias, training=True, eps=norm.eps)


def features_of(flat: torch.Tensor, count: int) -> torch.Tensor:
    """What `flat_norm` returned for `count` samples -> (count, c, *shape)."""
    return flat if len(flat) == count else flat.view(count, -1, *flat.shape[2:])


def activated_norm(x: torch.Tensor, norm: nn.Module, activation: Activation) -> torch.Tensor:
    """Normalises (b, c, *shape) and then activates, which may be in place; see `flat_norm`."""
    return features_of(activation(flat_norm(x, norm)), len(x))


class ConvBlock(nn.Module):
    """A convolution and an instance norm, followed by a LeakyReLU unless `activate` is False.

    The convolution is padded so that the size is kept at stride 1.

    Args:
        in_channels: Number of input features.
        out_channels: Number of output features.
        kernel: Kernel size per axis; sizes are odd.
        stride: Stride per axis; None for 1 everywhere.
        activate: Whether the block ends with a LeakyReLU.
        bias: Whether the convolution has a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] | None = None,
        activate: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = padded_conv(in_channels, out_channels, kernel, stride=stride, bias=bias)
        self.norm = INSTANCE_NORM[len(kernel)](out_channels, eps=NORM_EPS, affine=True)
        self.activation = activation() if activate else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, in_channels, *shape) -> (b, out_channels, *shape / stride)."""
        return activated_norm(self.conv(x), self.norm, self.activation)

    def flat(self, x: torch.Tensor) -> torch.Tensor:
        """Convolves and normalises: (b, in_channels, *shape) -> (1, b * out_channels, ...)."""
        return flat_norm(self.conv(x), self.norm)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, which is pooled and projected if the shapes differ.

    The shortcut is that of ResNet-D: average pooling before a 1x1 projection, so that no position
    is skipped (He et al., Bag of Tricks for Image Classification, CVPR 2019).

    Args:
        in_channels: Number of input features.
        out_channels: Number of output features.
        kernel: Kernel size per axis of both convolutions.
        stride: Stride per axis of the first convolution; None for 1 everywhere.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        dimension = len(kernel)
        self.first = ConvBlock(in_channels, out_channels, kernel=kernel, stride=stride)
        self.second = ConvBlock(out_channels, out_channels, kernel=kernel, activate=False)
        self.pool: nn.Module = nn.Identity()
        if stride is not None and max(stride) > 1:
            self.pool = AVERAGE_POOL[dimension](stride, stride)
        self.projection: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.projection = ConvBlock(
                in_channels, out_channels, kernel=(1,) * dimension, activate=False, bias=False
            )
        self.activation = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, in_channels, *shape) -> (b, out_channels, *shape / stride)."""
        flat = self.second.flat(self.first(x))
        flat += self.projection(self.pool(x)).reshape(flat.shape)
        return features_of(self.activation(flat), len(x))


def padded_conv(
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, ...],
    *,
    stride: tuple[int, ...] | None = None,
    groups: int = 1,
    bias: bool = False,
) -> nn.Module:
    """Returns a convolution that is padded by half its kernel on both sides of each axis.

    Args:
        in_channels: Number of input features.
        out_channels: Number of output features.
        kernel: Kernel size per axis; sizes are odd.
        stride: Stride per axis; None for 1 everywhere.
        groups: Number of groups of features that do not mix.
        bias: Whether the convolution has a bias.
    """
    return CONV[len(kernel)](
        in_channels,
        out_channels,
        kernel,
        stride or (1,) * len(kernel),
        padding=tuple(size // 2 for size in kernel),
        groups=groups,
        bias=bias,
    )


class DropPath(nn.Module):
    """Leaves out a residual block for random examples of a batch, in training only.

    What is left is scaled so that its mean stays the same (Huang et al., Deep Networks with
    Stochastic Depth, ECCV 2016).

    Args:
        rate: Probability of leaving out the block, at least 0 and below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, ...) -> (b, ...), zeros for examples without the block."""
        if self.rate == 0 or not self.training:
            return x
        kept = x.new_empty(len(x), *(1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)
