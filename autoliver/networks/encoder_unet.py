"""U-Nets with a classification encoder: Omnia-Net, DX-Net, and our own decoder on an encoder.

The architecture is that of Messaoudi et al., Cross-dimensional transfer learning in medical image
segmentation with deep learning, Medical Image Analysis 2023.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoliver.networks.blocks import BATCH_NORM, TRANSPOSED_CONV, padded_conv
from autoliver.networks.class_head import classifier, with_classes
from autoliver.networks.efficientnet import EfficientNet
from autoliver.networks.encoder_unet_spec import FRONT_FEATURES, Activation, EncoderUNetSpec
from autoliver.networks.resnet import ResNet


class EncoderUNet(nn.Module):
    """The network of an `EncoderUNetSpec`.

    Args:
        spec: The network's spec.
        deep_supervision: Whether `forward` returns a list, here of one output.

    Attributes:
        spec: The network's spec.
        deep_supervision: Whether `forward` returns a list; may be changed at any time.
    """

    def __init__(self, spec: EncoderUNetSpec, *, deep_supervision: bool) -> None:
        super().__init__()
        self.spec = spec
        self.deep_supervision = deep_supervision
        levels = range(len(spec.features) if spec.head_channels else 0)
        self.front = NormedConv(
            spec.in_channels, FRONT_FEATURES, kernel=spec.kernel(0), activation=spec.activation
        )
        self.encoder = _encoder(spec)
        self.classifier = classifier(spec, spec.row.features[-1])
        skips = (FRONT_FEATURES, *spec.row.features)
        below = (*spec.features[1:], skips[-1])
        self.up = nn.ModuleList(_up(spec, level, below[level]) for level in levels)
        self.decoder = nn.ModuleList(
            _decoder_level(spec, level, skips[level] + below[level]) for level in levels
        )
        self.heads = nn.ModuleList([_head(spec)] if spec.head_channels else [])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Computes the logits of a batch.

        Args:
            x: Images (b, in_channels, *shape); the size of every axis is a multiple of the spec's
                total stride.

        Returns:
            Logits (b, out_channels, *shape); with deep supervision, a list of them, of which those
            of a class head (b, classes) come last.
        """
        front = self.front(x)
        skips = [front, *self.encoder(x if self.spec.feed == "image" else front)]
        y = skips.pop()
        classes = None if self.classifier is None else self.classifier(y)
        for level in reversed(range(len(self.decoder))):
            # Without gradients, popping frees each skip as soon as it has been copied.
            y = self.decoder[level](torch.cat((skips.pop(), self.up[level](y)), dim=1))
        logits = [head(y) for head in self.heads]
        return with_classes(logits, classes, self.spec, x, every=self.deep_supervision)


class NormedConv(nn.Module):
    """A convolution without bias, a batch norm and a non-linearity; it keeps the size."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        kernel: tuple[int, ...],
        activation: Activation,
    ) -> None:
        super().__init__()
        self.conv = padded_conv(in_features, features, kernel)
        self.norm = BATCH_NORM[len(kernel)](features)
        self.activation = _ACTIVATIONS[activation](inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_features, *shape) -> (b, features, *shape)."""
        y: Tensor = self.activation(self.norm(self.conv(x)))
        return y


_ACTIVATIONS: dict[Activation, type[nn.ReLU | nn.SiLU]] = {"relu": nn.ReLU, "silu": nn.SiLU}


class Repeat(nn.Module):
    """Enlarges a map by repeating each voxel `stride` times per axis."""

    def __init__(self, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(b, features, *shape) -> (b, features, *shape * stride)."""
        if max(self.stride) == 1:
            return x
        return F.interpolate(x, scale_factor=tuple(map(float, self.stride)), mode="nearest")


def _encoder(spec: EncoderUNetSpec) -> EfficientNet | ResNet:
    made = EfficientNet if spec.row.family == "efficientnet" else ResNet
    channels = spec.in_channels if spec.feed == "image" else FRONT_FEATURES
    return made(
        spec.encoder,
        channels,
        strides=spec.strides[1:],
        spans=spec.spans,
        drop_path=spec.drop_path,
    )


def _up(spec: EncoderUNetSpec, level: int, below: int) -> nn.Module:
    stride = spec.strides[level + 1]
    if spec.up == "nearest":
        return Repeat(stride)
    return TRANSPOSED_CONV[spec.dimension](below, below, stride, stride)


def _decoder_level(spec: EncoderUNetSpec, level: int, entering: int) -> nn.Module:
    features, kernel = spec.features[level], spec.kernel(level)
    return nn.Sequential(
        NormedConv(entering, features, kernel=kernel, activation=spec.activation),
        NormedConv(features, features, kernel=kernel, activation=spec.activation),
    )


def _head(spec: EncoderUNetSpec) -> nn.Module:
    return padded_conv(spec.features[0], spec.head_channels, spec.kernel(0), bias=True)
