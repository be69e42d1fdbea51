"""The U-Net of nnU-Net, with a plain or a residual encoder."""

import torch
from torch import nn

from autoliver.networks.blocks import CONV, TRANSPOSED_CONV, ConvBlock, ResidualBlock
from autoliver.networks.class_head import classifier, with_classes
from autoliver.networks.unet_spec import UNetStages


class UNet(nn.Module):
    """The U-Net that a spec describes.

    Strided convolutions downsample; transposed convolutions with kernel = stride upsample. All
    parts are numbered by level, where 0 is full resolution: `up[i]` leads from level i + 1 to level
    i, `decoder[i]` merges its output with that of `encoder[i]`, and `heads[i]` computes logits from
    the result. All heads exist even without deep supervision, so that weights always fit (nnU-Net:
    Isensee et al., Nature Methods 2021; residual encoder: Isensee et al., MICCAI 2024).

    Args:
        spec: The network's spec.
        deep_supervision: Whether `forward` returns the logits of every level.

    Attributes:
        spec: The network's spec.
        deep_supervision: Whether `forward` returns the logits of every level; may be changed at any
            time.
    """

    def __init__(self, spec: UNetStages, *, deep_supervision: bool) -> None:
        super().__init__()
        self.spec = spec
        self.deep_supervision = deep_supervision
        self.stem = _stem(spec)
        stages = range(len(spec.features))
        self.encoder = nn.ModuleList(_encoder_stage(spec, level) for level in stages)
        self.classifier = classifier(spec, spec.features[-1])
        levels = stages[:-1] if spec.head_channels else ()
        self.up = nn.ModuleList(_up(spec, level) for level in levels)
        self.decoder = nn.ModuleList(_decoder_stage(spec, level) for level in levels)
        self.heads = nn.ModuleList(_head(spec, level) for level in levels)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Computes the logits of a batch.

        Args:
            x: Images (b, in_channels, *shape); the size of every axis is a multiple of the spec's
                total stride.

        Returns:
            Logits (b, out_channels, *shape). With deep supervision, a list of logits
            (b, head_channels, *shape), one per decoder level, full resolution first; with a class
            head, its logits (b, classes) come last.
        """
        image, x = x, self.stem(x)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        deepest = skips.pop()
        classes = None if self.classifier is None else self.classifier(deepest)
        logits: list[torch.Tensor] = []
        for level in reversed(range(len(self.decoder))):
            # Without gradients, popping frees each skip as soon as it has been copied.
            x = torch.cat((self.up[level](x), skips.pop()), dim=1)
            x = self.decoder[level](x)
            if self.deep_supervision or level == 0:
                logits.insert(0, self.heads[level](x))
        return with_classes(logits, classes, self.spec, image, every=self.deep_supervision)


def _stem(spec: UNetStages) -> nn.Module:
    if not spec.RESIDUAL:
        return nn.Identity()
    return ConvBlock(spec.in_channels, spec.features[0], kernel=spec.kernels[0])


def _encoder_stage(spec: UNetStages, level: int) -> nn.Module:
    block = ResidualBlock if spec.RESIDUAL else ConvBlock
    features, kernel = spec.features[level], spec.kernels[level]
    if level > 0:
        before = spec.features[level - 1]
    else:
        before = features if spec.RESIDUAL else spec.in_channels
    first = block(before, features, kernel=kernel, stride=spec.strides[level])
    more = (block(features, features, kernel=kernel) for _ in range(spec.blocks_encoder[level] - 1))
    return nn.Sequential(first, *more)


def _up(spec: UNetStages, level: int) -> nn.Module:
    stride = spec.strides[level + 1]
    transposed = TRANSPOSED_CONV[spec.dimension]
    return transposed(spec.features[level + 1], spec.features[level], stride, stride)


def _decoder_stage(spec: UNetStages, level: int) -> nn.Module:
    features, kernel = spec.features[level], spec.kernels[level]
    first = ConvBlock(2 * features, features, kernel=kernel)
    more = (
        ConvBlock(features, features, kernel=kernel) for _ in range(spec.blocks_decoder[level] - 1)
    )
    return nn.Sequential(first, *more)


def _head(spec: UNetStages, level: int) -> nn.Module:
    return CONV[spec.dimension](spec.features[level], spec.head_channels, 1)
