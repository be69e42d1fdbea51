"""DS-Net: a 3D network whose middle is a 2D network with a classification encoder.

It is described by Messaoudi et al. 2023. Where the description leaves a choice open, this is what
was taken: the depth is enlarged by kernels of one voxel in plane, each level of the way back has
the features of its counterpart, and the last convolution has a kernel of 3 voxels.
"""

import torch
from torch import Tensor, nn

from autoliver.networks.blocks import (
    CONV,
    INSTANCE_NORM,
    NORM_EPS,
    TRANSPOSED_CONV,
    activated_norm,
)
from autoliver.networks.ds_net_spec import IMAGES, STACK_FEATURES, DSNetSpec
from autoliver.networks.encoder_unet import EncoderUNet


class DSNet(nn.Module):
    """The network of a `DSNetSpec`.

    Args:
        spec: The network's spec.
        deep_supervision: Whether `forward` returns a list, here of one output.

    Attributes:
        spec: The network's spec.
        deep_supervision: Whether `forward` returns a list; may be changed at any time.
    """

    def __init__(self, spec: DSNetSpec, *, deep_supervision: bool) -> None:
        super().__init__()
        self.spec = spec
        self.deep_supervision = deep_supervision
        levels = range(len(STACK_FEATURES))
        features = (spec.in_channels, *STACK_FEATURES, IMAGES)
        strides = (1, *spec.depth_strides)
        self.stack = nn.ModuleList(
            _DepthConv(*features[level : level + 2], stride=strides[level])
            for level in range(len(strides))
        )
        self.plane = EncoderUNet(spec.plane, deep_supervision=False)
        below = (*STACK_FEATURES[1:], IMAGES)
        self.up = nn.ModuleList(
            _up(spec, level, below[level], STACK_FEATURES[level]) for level in levels
        )
        self.unstack = nn.ModuleList(_DepthConv(2 * n, n, stride=1) for n in STACK_FEATURES)
        self.heads = nn.ModuleList([CONV[3](STACK_FEATURES[0], spec.out_channels, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Computes the logits of a batch.

        Args:
            x: Images (b, in_channels, *shape); the size of every axis is a multiple of the spec's
                total stride.

        Returns:
            Logits (b, out_channels, *shape); with deep supervision, a list of them alone.
        """
        slabs = x.shape[2] // self.spec.depth
        y = x if slabs == 1 else torch.cat(x.tensor_split(slabs, dim=2))
        skips = []
        for level in self.stack:
            y = level(y)
            skips.append(y)
        # Every feature is an image of its own, and its three slices are the colours.
        images = self.plane(skips.pop().flatten(0, 1))
        y = images.unflatten(0, (-1, IMAGES))
        for number in reversed(range(len(self.up))):
            y = self.unstack[number](torch.cat((skips.pop(), self.up[number](y)), dim=1))
        logits: Tensor = self.heads[0](y)
        if slabs > 1:
            logits = torch.cat(logits.tensor_split(slabs), dim=2)
        return [logits] if self.deep_supervision else logits


class _DepthConv(nn.Module):
    """A convolution that strides along the depth alone, an instance norm and SiLU."""

    def __init__(self, in_features: int, features: int, *, stride: int) -> None:
        super().__init__()
        self.conv = CONV[3](in_features, features, 3, (stride, 1, 1), padding=1)
        self.norm = INSTANCE_NORM[3](features, eps=NORM_EPS, affine=True)
        self.activation = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_features, z, y, x) -> (b, features, z / stride, y, x), rounded up."""
        return activated_norm(self.conv(x), self.norm, self.activation)


def _up(spec: DSNetSpec, level: int, in_features: int, features: int) -> nn.Module:
    kernel, stride, padding = spec.up(level)
    return TRANSPOSED_CONV[3](
        in_features, features, (kernel, 1, 1), (stride, 1, 1), padding=(padding, 0, 0)
    )
