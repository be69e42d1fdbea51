"""The encoders of image classification: their blocks and features, without torch.

Each has five levels, from half the resolution of its input downwards as published (Tan and Le,
EfficientNet, ICML 2019; He et al., Deep Residual Learning, CVPR 2016). The first level is the stem.
`efficientnet.py` and `resnet.py` build the torch modules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LEVELS = 5

Family = Literal["efficientnet", "resnet"]
Strides = tuple[tuple[int, ...], ...]
# Per level and axis: whether kernels reach neighbours along the axis, or have the size 1 there.
Spans = tuple[tuple[bool, ...], ...]

_EXPANSION = 6  # of inverted bottlenecks, except in the first stage
_WIDENING = 4  # of bottlenecks
_SQUEEZE = 4  # squeeze-and-excitation reduces a block's input to this part


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Blocks of the same number of features.

    Attributes:
        level: The level that they are applied at; where it rises, the first block strides.
        features: Number of output features of each block.
        blocks: Number of blocks.
        kernel: Size of their kernels.
    """

    level: int
    features: int
    blocks: int
    kernel: int = 3


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of a network with given strides.

    Attributes:
        widths: Features of its input, inside, and of its output.
        kernel: Kernel size per axis.
        stride: Stride per axis.
        shortcut: Whether its shortcut has a convolution.
        drop: Probability that training leaves it out.
    """

    widths: tuple[int, int, int]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    shortcut: bool
    drop: float


@dataclass(frozen=True, kw_only=True)
class EncoderRow:
    """An encoder as published.

    Attributes:
        name: Its name in `plan --encoder`.
        family: The type of its blocks.
        stem: Number of features of the stem.
        stages: The stages after the stem.
        lite: Of EfficientNets: without squeeze-and-excitation, and with ReLU6 instead of SiLU.
        bottleneck: Of ResNets: three convolutions per block instead of two.
    """

    name: str
    family: Family
    stem: int
    stages: tuple[Stage, ...]
    lite: bool = False
    bottleneck: bool = False

    @property
    def features(self) -> tuple[int, ...]:
        """The number of features of each of the five levels."""
        last = {stage.level: stage.features for stage in self.stages if stage.level > 0}
        return (self.stem, *(last[level] for level in range(1, LEVELS)))

    @property
    def stem_weight(self) -> str:
        """The name of the first convolution's weight in the encoder's state dict."""
        return "conv_stem.weight" if self.family == "efficientnet" else "conv1.weight"

    def level(self, name: str) -> int:
        """Returns the level of a weight, which is the number of levels above it.

        Args:
            name: The weight's name in the encoder's state dict.
        """
        match name.split("."):
            case ["blocks", stage, *_]:
                return self.stages[int(stage)].level
            case [layer, *_] if layer.startswith("layer"):
                return self.stages[int(layer.removeprefix("layer")) - 1].level
        return 0

    def widths(self, stage: int, block: int) -> tuple[int, int, int]:
        """Returns the features of a block: of its input, inside, and of its output."""
        here = self.stages[stage]
        before = self.stages[stage - 1].features if stage else self.stem
        first = here.features if block else before
        if self.family == "efficientnet":
            return first, first * (_EXPANSION if stage else 1), here.features
        return first, here.features // (_WIDENING if self.bottleneck else 1), here.features

    def squeezed(self, features: int) -> int:
        """Returns to how many features squeeze-and-excitation reduces a block's; 0 for none."""
        return 0 if self.lite else max(1, features // _SQUEEZE)

    def elements(self, maps: Sequence[int]) -> int:
        """Returns the number of values in all convolution outputs.

        Args:
            maps: Number of voxels of a feature map, for each of the five levels.
        """
        total, above = self.stem * maps[0], self._above
        for index, stage in enumerate(self.stages):
            here = maps[stage.level]
            for block in range(stage.blocks):
                before = here if block else maps[above]
                _, inside, last = self.widths(index, block)
                widened = self.bottleneck or (self.family == "efficientnet" and index > 0)
                total += inside * (here + before * widened) + last * here
                total += last * here * self.shortcut(index, block)
            above = stage.level
        return total

    @property
    def _above(self) -> int:
        """The level at which the first stage begins: a ResNet's stem is pooled."""
        return 0 if self.family == "efficientnet" else 1

    def blocks(self, strides: Strides, spans: Spans, drop_path: float) -> list[list[Block]]:
        """Lists the blocks of each stage.

        Args:
            strides: For each of the five levels, one stride per axis.
            spans: For each level and axis, whether kernels reach neighbours along the axis.
            drop_path: Probability that the last block is left out in training; that of the others
                grows linearly with their depth.
        """
        count, done, above = sum(stage.blocks for stage in self.stages), 0, self._above
        found: list[list[Block]] = []
        for index, stage in enumerate(self.stages):
            here = strides[stage.level]
            found.append(
                [
                    Block(
                        widths=self.widths(index, block),
                        kernel=kernel_size(stage.kernel, spans[stage.level]),
                        stride=here if block == 0 and stage.level > above else (1,) * len(here),
                        shortcut=self.shortcut(index, block),
                        drop=drop_path * (done + block) / count,
                    )
                    for block in range(stage.blocks)
                ]
            )
            done, above = done + stage.blocks, stage.level
        return found

    def shortcut(self, stage: int, block: int) -> bool:
        """Whether the shortcut of a block has a convolution, which only ResNets have."""
        differs = stage > 0 or self.stages[stage].features != self.stem
        return self.family == "resnet" and block == 0 and differs


def _efficientnet(
    name: str, stem: int, features: Sequence[int], blocks: Sequence[int], *, lite: bool = False
) -> EncoderRow:
    kernels, levels = (3, 3, 5, 3, 5, 5, 3), (0, 1, 2, 3, 3, 4, 4)
    stages = zip(levels, features, blocks, kernels, strict=True)
    return EncoderRow(
        name=name,
        family="efficientnet",
        stem=stem,
        stages=tuple(Stage(level=i, features=f, blocks=b, kernel=k) for i, f, b, k in stages),
        lite=lite,
    )


def _resnet(name: str, blocks: Sequence[int], *, bottleneck: bool = False) -> EncoderRow:
    wide = _WIDENING if bottleneck else 1
    stages = zip((1, 2, 3, 4), (64, 128, 256, 512), blocks, strict=True)
    return EncoderRow(
        name=name,
        family="resnet",
        stem=64,
        stages=tuple(Stage(level=i, features=f * wide, blocks=b) for i, f, b in stages),
        bottleneck=bottleneck,
    )


_B0 = (16, 24, 40, 80, 112, 192, 320)
_B4 = (24, 32, 56, 112, 160, 272, 448)
_ROWS = (
    _efficientnet("efficientnet_b0", 32, _B0, (1, 2, 2, 3, 3, 4, 1)),
    _efficientnet("efficientnet_b4", 48, _B4, (2, 4, 4, 6, 6, 8, 2)),
    _efficientnet("efficientnet_lite0", 32, _B0, (1, 2, 2, 3, 3, 4, 1), lite=True),
    _resnet("resnet18", (2, 2, 2, 2)),
    _resnet("resnet34", (3, 4, 6, 3)),
    _resnet("resnet50", (3, 4, 6, 3), bottleneck=True),
)
ENCODERS = {row.name: row for row in _ROWS}


def published_strides(dimension: int) -> Strides:
    """Returns the published strides, which halve every axis at every level."""
    return ((2,) * dimension,) * LEVELS


def full_spans(dimension: int) -> Spans:
    """Returns the spans of kernels that reach neighbours along all axes at every level."""
    return ((True,) * dimension,) * LEVELS


def kernel_size(size: int, span: Sequence[bool]) -> tuple[int, ...]:
    """Returns the size of a kernel per axis, which is 1 along axes that it does not span."""
    return tuple(size if spans else 1 for spans in span)
