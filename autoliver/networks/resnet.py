"""ResNets as encoders, in 2D or 3D; the names of their weights are those of torchvision."""

import torch
from torch import nn

from autoliver.networks.blocks import BATCH_NORM, CONV, MAX_POOL, DropPath, padded_conv
from autoliver.networks.encoders import ENCODERS, Block, Spans, Strides, kernel_size


class ResNet(nn.Module):
    """A ResNet without its classification head.

    Bottlenecks stride in their second convolution, as in torchvision. The maximum over neighbours
    after the stem has the size 1 along axes that the second level does not stride.

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
        dimension = len(strides[0])
        kernel = kernel_size(7, spans[0])
        self.conv1 = padded_conv(in_channels, self.row.stem, kernel, stride=strides[0])
        self.bn1 = BATCH_NORM[dimension](self.row.stem)
        self.relu = nn.ReLU(inplace=True)
        pool = kernel_size(3, [stride > 1 for stride in strides[1]])
        self.maxpool = MAX_POOL[dimension](pool, strides[1], padding=tuple(k // 2 for k in pool))
        made = _Bottleneck if self.row.bottleneck else _Basic
        for index, stage in enumerate(self.row.blocks(strides, spans, drop_path)):
            self.add_module(f"layer{index + 1}", nn.Sequential(*(made(block) for block in stage)))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Computes the features of the five levels.

        Args:
            x: (b, in_channels, *shape).

        Returns:
            The last features of each level, the highest resolution first; the first are the stem's.
        """
        x = self.relu(self.bn1(self.conv1(x)))
        levels = [x]
        x = self.maxpool(x)
        for index in range(len(self.row.stages)):
            x = self.get_submodule(f"layer{index + 1}")(x)
            levels.append(x)
        return levels


class _Basic(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        first, inside, last = block.widths
        dimension = len(block.kernel)
        self.conv1 = padded_conv(first, inside, block.kernel, stride=block.stride)
        self.bn1 = BATCH_NORM[dimension](inside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = padded_conv(inside, last, block.kernel)
        self.bn2 = BATCH_NORM[dimension](last)
        self.downsample = _shortcut(block)
        self.drop_path = DropPath(block.drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: torch.Tensor = self.relu(self.downsample(x) + self.drop_path(y))
        return out


class _Bottleneck(nn.Module):
    """A convolution between two that narrow and widen the features, and a shortcut."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        first, inside, last = block.widths
        dimension = len(block.kernel)
        self.conv1 = CONV[dimension](first, inside, 1, bias=False)
        self.bn1 = BATCH_NORM[dimension](inside)
        self.conv2 = padded_conv(inside, inside, block.kernel, stride=block.stride)
        self.bn2 = BATCH_NORM[dimension](inside)
        self.conv3 = CONV[dimension](inside, last, 1, bias=False)
        self.bn3 = BATCH_NORM[dimension](last)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(block)
        self.drop_path = DropPath(block.drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: torch.Tensor = self.relu(self.downsample(x) + self.drop_path(y))
        return out


def _shortcut(block: Block) -> nn.Module:
    if not block.shortcut:
        return nn.Identity()
    dimension, (first, _, last) = len(block.stride), block.widths
    return nn.Sequential(
        CONV[dimension](first, last, 1, block.stride, bias=False), BATCH_NORM[dimension](last)
    )
