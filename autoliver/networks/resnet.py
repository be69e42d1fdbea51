"""ResNets as encoders, in 2D or 3D; the names of their weights are those of torchvision."""

import torch
from torch import nn

from autoliver.networks.blocks import BATCH_NORM, CONV, MAX_POOL, DropPath, padded_conv
from autoliver.networks.encoders import ENCODERS, Spans, Strides, kernel_size


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
        count, done = sum(stage.blocks for stage in self.row.stages), 0
        made = _Bottleneck if self.row.bottleneck else _Basic
        for index, stage in enumerate(self.row.stages):
            kernel = kernel_size(stage.kernel, spans[stage.level])
            blocks = []
            for block in range(stage.blocks):
                strided = index > 0 and block == 0
                blocks.append(
                    made(
                        self.row.widths(index, block),
                        kernel,
                        strides[stage.level] if strided else (1,) * dimension,
                        project=self.row.shortcut(index, block),
                        drop=drop_path * done / count,
                    )
                )
                done += 1
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))

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

    def __init__(
        self,
        widths: tuple[int, int, int],
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        *,
        project: bool,
        drop: float,
    ) -> None:
        super().__init__()
        first, inside, last = widths
        dimension = len(kernel)
        self.conv1 = padded_conv(first, inside, kernel, stride=stride)
        self.bn1 = BATCH_NORM[dimension](inside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = padded_conv(inside, last, kernel)
        self.bn2 = BATCH_NORM[dimension](last)
        self.downsample = _shortcut(first, last, stride, project=project)
        self.drop_path = DropPath(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: torch.Tensor = self.relu(self.downsample(x) + self.drop_path(y))
        return out


class _Bottleneck(nn.Module):
    """A convolution between two that narrow and widen the features, and a shortcut."""

    def __init__(
        self,
        widths: tuple[int, int, int],
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        *,
        project: bool,
        drop: float,
    ) -> None:
        super().__init__()
        first, inside, last = widths
        dimension = len(kernel)
        self.conv1 = CONV[dimension](first, inside, 1, bias=False)
        self.bn1 = BATCH_NORM[dimension](inside)
        self.conv2 = padded_conv(inside, inside, kernel, stride=stride)
        self.bn2 = BATCH_NORM[dimension](inside)
        self.conv3 = CONV[dimension](inside, last, 1, bias=False)
        self.bn3 = BATCH_NORM[dimension](last)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(first, last, stride, project=project)
        self.drop_path = DropPath(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: torch.Tensor = self.relu(self.downsample(x) + self.drop_path(y))
        return out


def _shortcut(first: int, last: int, stride: tuple[int, ...], *, project: bool) -> nn.Module:
    if not project:
        return nn.Identity()
    dimension = len(stride)
    return nn.Sequential(
        CONV[dimension](first, last, 1, stride, bias=False), BATCH_NORM[dimension](last)
    )
