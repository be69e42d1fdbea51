"""EfficientNets as encoders, in 2D or 3D; the names of their weights are those of timm."""

import torch
from torch import nn

from autoliver.networks.blocks import BATCH_NORM, CONV, DropPath, padded_conv
from autoliver.networks.encoders import ENCODERS, Block, EncoderRow, Spans, Strides, kernel_size

# As in the weights that were published with TensorFlow. torch's own default is 1e-5; some features
# have a variance below both. The statistics move with torch's default momentum, not with the
# published 0.01, which short trainings would end before they have moved.
NORM_EPS = 1e-3


class EfficientNet(nn.Module):
    """An EfficientNet without its classification head.

    Convolutions are padded by half their kernel on both sides.

    Args:
        name: A name in `ENCODERS`.
        in_channels: Number of input channels.
        strides: For each of the five levels, one stride per axis (2 or 3 axes).
        spans: For each level and axis, whether kernels reach neighbours along the axis.
        drop_path: Probability that the last block is left out in training; that of the others grows
            linearly with their depth.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        *,
        strides: Strides,
        spans: Spans,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.row = ENCODERS[name]
        kernel = kernel_size(3, spans[0])
        self.conv_stem = padded_conv(in_channels, self.row.stem, kernel, stride=strides[0])
        self.bn1 = _norm(self.row.stem, len(kernel))
        self.activation = _activation(self.row)
        self.blocks = nn.ModuleList()
        for index, stage in enumerate(self.row.blocks(strides, spans, drop_path)):
            made = _Separable if index == 0 else _Inverted
            self.blocks.append(nn.Sequential(*(made(self.row, block) for block in stage)))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Computes the features of the five levels.

        Args:
            x: (b, in_channels, *shape).

        Returns:
            The last features of each level, the highest resolution first; the first are the stem's.
        """
        x = self.activation(self.bn1(self.conv_stem(x)))
        levels = [x]
        for stage, blocks in zip(self.row.stages, self.blocks, strict=True):
            x = blocks(x)
            if stage.level == len(levels):
                levels.append(x)
            elif stage.level > 0:
                levels[-1] = x
        return levels


class _Excitation(nn.Module):
    """Scales each feature by a gate that depends on the means of all (squeeze-and-excitation)."""

    def __init__(self, features: int, squeezed: int, dimension: int) -> None:
        super().__init__()
        self.conv_reduce = CONV[dimension](features, squeezed, 1)
        self.activation = nn.SiLU()
        self.conv_expand = CONV[dimension](squeezed, features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        gates: torch.Tensor = self.conv_expand(self.activation(self.conv_reduce(means)))
        return x * gates.sigmoid()


class _Separable(nn.Module):
    """A depthwise convolution and a mixture of its features: the blocks of the first stage."""

    def __init__(self, row: EncoderRow, block: Block) -> None:
        super().__init__()
        first, _, last = block.widths
        dimension = len(block.kernel)
        self.conv_dw = padded_conv(first, first, block.kernel, stride=block.stride, groups=first)
        self.bn1 = _norm(first, dimension)
        self.se = _excitation(row, first, first, dimension)
        self.conv_pw = CONV[dimension](first, last, 1, bias=False)
        self.bn2 = _norm(last, dimension)
        self.activation = _activation(row)
        self.residual = first == last and max(block.stride) == 1
        self.drop_path = DropPath(block.drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.se(self.activation(self.bn1(self.conv_dw(x))))
        y = self.bn2(self.conv_pw(y))
        out: torch.Tensor = x + self.drop_path(y) if self.residual else y
        return out


class _Inverted(nn.Module):
    """A block that widens its input, convolves it depthwise and narrows it again (MBConv)."""

    def __init__(self, row: EncoderRow, block: Block) -> None:
        super().__init__()
        first, inside, last = block.widths
        dimension = len(block.kernel)
        self.conv_pw = CONV[dimension](first, inside, 1, bias=False)
        self.bn1 = _norm(inside, dimension)
        self.conv_dw = padded_conv(inside, inside, block.kernel, stride=block.stride, groups=inside)
        self.bn2 = _norm(inside, dimension)
        self.se = _excitation(row, first, inside, dimension)
        self.conv_pwl = CONV[dimension](inside, last, 1, bias=False)
        self.bn3 = _norm(last, dimension)
        self.activation = _activation(row)
        self.residual = first == last and max(block.stride) == 1
        self.drop_path = DropPath(block.drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.activation(self.bn1(self.conv_pw(x)))
        y = self.se(self.activation(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        out: torch.Tensor = x + self.drop_path(y) if self.residual else y
        return out


def _excitation(row: EncoderRow, first: int, features: int, dimension: int) -> nn.Module:
    squeezed = row.squeezed(first)
    return _Excitation(features, squeezed, dimension) if squeezed else nn.Identity()


def _activation(row: EncoderRow) -> nn.Module:
    return nn.ReLU6(inplace=True) if row.lite else nn.SiLU(inplace=True)


def _norm(features: int, dimension: int) -> nn.Module:
    return BATCH_NORM[dimension](features, eps=NORM_EPS)
