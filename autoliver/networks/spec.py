"""What a network is, as a value: no torch here, so that plans can hold it."""

from typing import Literal

from autoliver.artifacts import Record

NetworkKind = Literal["unet", "resenc"]


class UNetSpec(Record, frozen=True, kw_only=True):
    """A U-Net, plain or with a residual encoder, in 2D or 3D.

    The number of stages is the length of `features`. Every per-stage tuple has that length; the
    decoder has one stage less. The first stage has stride 1.

    Attributes:
        kind: "unet" (plain convolutions) or "resenc" (residual blocks in the encoder).
        in_channels: Image channels (and one-hot channels of a previous stage, if any).
        out_channels: Rows of the segmentation heads: classes incl. background, or regions.
        features: Features per stage, full resolution first.
        strides: Per stage, one stride per axis (2 or 3 axes); the first all ones.
        kernels: Per stage, one odd kernel size per axis.
        blocks_encoder: Convolutions (or residual blocks) per encoder stage.
        blocks_decoder: Convolutions per decoder stage, deepest last (length: stages - 1).
    """

    kind: NetworkKind = "unet"
    in_channels: int
    out_channels: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    blocks_encoder: tuple[int, ...]
    blocks_decoder: tuple[int, ...]

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.strides[0])

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Per axis, by how much the input shrinks on its way to the bottleneck."""
        total = [1] * self.dimension
        for stride in self.strides:
            total = [t * s for t, s in zip(total, stride, strict=True)]
        return tuple(total)
