"""Networks that translate images between modalities, and those that tell real from translated."""

from collections.abc import Sequence

import torch
from torch import nn

from autoliver.networks.blocks import CONV, INSTANCE_NORM, TRANSPOSED_CONV, Layer, activated_norm
from autoliver.networks.translator_spec import TranslatorSpec

# Layers that pad a feature map by mirroring it, by dimension.
_REFLECT: dict[int, Layer] = {2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d}
_KERNEL = 7  # of the first and the last convolution
_LEAK = 0.2  # of the discriminator


class _Block(nn.Module):
    """A convolution on a mirrored border, an instance norm without weights, and a ReLU."""

    def __init__(self, before: int, after: int, *, kernel: tuple[int, ...]) -> None:
        super().__init__()
        dimension = len(kernel)
        self.pad = _REFLECT[dimension](_around(kernel))
        self.conv = CONV[dimension](before, after, kernel)
        self.norm = INSTANCE_NORM[dimension](after)
        self.activation: nn.Module = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, before, *shape) -> (b, after, *shape)."""
        return activated_norm(self.conv(self.pad(x)), self.norm, self.activation)


class _Residual(nn.Module):
    """Two convolutions and the features they began with."""

    def __init__(self, features: int, *, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.first = _Block(features, features, kernel=kernel)
        self.second = _Block(features, features, kernel=kernel)
        self.second.activation = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, features, *shape) -> the same."""
        y: torch.Tensor = x + self.second(self.first(x))
        return y


class _Down(nn.Module):
    """A strided convolution, an instance norm and a ReLU."""

    def __init__(self, before: int, after: int, *, stride: tuple[int, ...]) -> None:
        super().__init__()
        kernel, dimension = tuple(3 if step > 1 else 1 for step in stride), len(stride)
        self.conv = CONV[dimension](
            before, after, kernel, stride=stride, padding=tuple(k // 2 for k in kernel)
        )
        self.norm = INSTANCE_NORM[dimension](after)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, before, *shape) -> (b, after, *shape / stride)."""
        return self.parts(x)[1]

    def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The output of the convolution, and that of the whole layer."""
        convolved: torch.Tensor = self.conv(x)
        return convolved, activated_norm(convolved, self.norm, self.activation)


class _Up(_Down):
    """A transposed convolution, an instance norm and a ReLU."""

    def __init__(self, before: int, after: int, *, stride: tuple[int, ...]) -> None:
        super().__init__(before, after, stride=stride)
        kernel = tuple(3 if step > 1 else 1 for step in stride)
        self.conv = TRANSPOSED_CONV[len(stride)](
            before,
            after,
            kernel,
            stride=stride,
            padding=tuple(k // 2 for k in kernel),
            output_padding=tuple(step - 1 for step in stride),
        )


class Translator(nn.Module):
    """The residual network that a spec describes.

    Args:
        spec: The network's spec.
        deep_supervision: Whether `forward` returns a list with its only output.
    """

    def __init__(self, spec: TranslatorSpec, *, deep_supervision: bool) -> None:
        super().__init__()
        self.spec = spec
        self.deep_supervision = deep_supervision
        axes = spec.dimension
        wide, three = _kernel(_KERNEL, spec), _kernel(3, spec)
        features = [spec.features * 2**level for level in range(len(spec.strides) + 1)]
        down = [
            _Down(before, after, stride=stride)
            for before, after, stride in zip(features, features[1:], spec.strides, strict=False)
        ]
        self.encoder = nn.ModuleList([_Block(spec.in_channels, features[0], kernel=wide), *down])
        self.blocks = nn.ModuleList(
            _Residual(features[-1], kernel=three) for _ in range(spec.blocks)
        )
        self.decoder = nn.ModuleList(
            _Up(after, before, stride=stride)
            for before, after, stride in zip(features, features[1:], spec.strides, strict=False)
        )
        self.pad = _REFLECT[axes](_around(wide))
        self.head = CONV[axes](features[0], spec.out_channels, wide)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Translates a batch.

        Args:
            x: Images (b, in_channels, *shape); the size of every axis is a multiple of the spec's
                total stride, and larger than 3.

        Returns:
            (b, out_channels, *shape), in a list with deep supervision.
        """
        for part in (*self.encoder, *self.blocks, *reversed(self.decoder)):
            x = part(x)
        y: torch.Tensor = self.head(self.pad(x))
        if self.spec.outputs is not None:
            low, high = self.spec.outputs
            y = torch.tanh(y) * ((high - low) / 2) + (high + low) / 2
        return [y] if self.deep_supervision else y

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What contrastive translation compares between an image and its translation.

        These are the image itself, the output of each strided convolution, and that of the first
        and the fifth residual block (Park et al., ECCV 2020).

        Args:
            x: Images (b, in_channels, *shape), as `forward` takes them.

        Returns:
            For each of the spec's `compared_features` (b, channels, *smaller).
        """
        found, (first, *down) = [x], self.encoder
        x = first(x)
        for part in down:
            if isinstance(part, _Down):
                convolved, x = part.parts(x)
                found.append(convolved)
        compared = self.spec.compared_blocks
        for number, block in enumerate(self.blocks[: compared[-1] + 1]):
            x = block(x)
            if number in compared:
                found.append(x)
        return found


class PatchHeads(nn.Module):
    """Turns features of places into vectors by which places are compared, one network a layer.

    Each is a perceptron with two layers, as in Park et al. (ECCV 2020).

    Args:
        channels: The number of channels of each layer that is compared.
        width: Length of the vectors.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 256) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(before, width), nn.ReLU(), nn.Linear(width, width))
            for before in channels
        )

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Layers (b, places, channels) -> (b, places, width), vectors of length 1."""
        return [
            nn.functional.normalize(head(layer), dim=-1)
            for head, layer in zip(self.heads, features, strict=True)
        ]


class PatchDiscriminator(nn.Module):
    """Tells for each of many overlapping patches of an image whether it is real.

    With 64 features in 2D it is the 70 x 70 PatchGAN of Isola et al. (CVPR 2017).

    Args:
        in_channels: Number of image channels.
        features: Number of features of the first layer.
        strides: The strides of the layers but the last two, per axis. Along an axis that is never
            strided neighbours are not mixed; along one that is not always strided, such as that of
            thick slices, kernels have 3 voxels in place of 4, and a small patch does not vanish.
    """

    def __init__(
        self, in_channels: int, *, features: int, strides: Sequence[tuple[int, ...]]
    ) -> None:
        super().__init__()
        axes = len(strides[0])
        layers: list[nn.Module] = []
        before = in_channels
        kernel = tuple(_width([stride[axis] for stride in strides]) for axis in range(axes))
        padding = tuple(min(1, size - 1) for size in kernel)
        for level, stride in enumerate((*strides, (1,) * axes, (1,) * axes)):
            last = level == len(strides) + 1
            after = 1 if last else features * min(2**level, 8)
            layers.append(CONV[axes](before, after, kernel, stride=stride, padding=padding))
            if level > 0 and not last:
                layers.append(INSTANCE_NORM[axes](after))
            if not last:
                layers.append(nn.LeakyReLU(_LEAK, inplace=True))
            before = after
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, in_channels, *shape) -> (b, 1, *smaller), about 1 where the image seems real."""
        y: torch.Tensor = self.layers(x)
        return y


def _width(strides: Sequence[int]) -> int:
    """The width of a discriminator's kernels along an axis with these strides."""
    if all(stride == 1 for stride in strides):
        return 1
    return 3 if 1 in strides else 4


def _kernel(size: int, spec: TranslatorSpec) -> tuple[int, ...]:
    """A kernel that does not mix neighbours along axes that are never halved."""
    return tuple(1 if total == 1 else size for total in spec.total_stride)


def _around(kernel: tuple[int, ...]) -> tuple[int, ...]:
    """The padding on both sides of each axis, the last axis first, as torch wants it."""
    return tuple(size // 2 for size in reversed(kernel) for _ in range(2))
