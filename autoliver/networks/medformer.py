"""MedFormer: a U-shaped network in which voxels attend to a few tokens (2D and 3D).

Written from the description in Gao et al. 2022, arXiv:2203.00131, not from its code. Where that
leaves a choice open, this is what was taken:

- The first block of a decoder level takes the concatenated features, with a projected shortcut: 1x1
  in attention, and as wide as the other convolutions in residual blocks. Instance norms have no
  weights, and convolutions have no biases, except for the projections of the attention, the
  squeeze and excitation, the fusion of the maps and the heads. This gives the published numbers of
  parameters, 38.6 million and, for the tiny network, 0.307 million.
- Squeeze and excitation come after norm and ReLU: a norm after them would undo the excitation.
- The last block of the decoder's attention returns no map, since nothing would read it; all other
  weights learn.
- Upsampling doubles axis by axis, which is linear interpolation with a deterministic gradient.
- The auxiliary head lies at the decoder's finest level of attention.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoliver.networks.blocks import CONV, INSTANCE_NORM, NORM_EPS, activated_norm
from autoliver.networks.medformer_spec import CONVOLUTION_LEVELS, EXPANSION, MedFormerSpec

_SQUEEZE = 4  # features per feature inside a squeeze and excitation


class MedFormer(nn.Module):
    """The network of a `MedFormerSpec`.

    Args:
        spec: The network's spec.
        deep_supervision: Whether `forward` also returns the logits of the auxiliary head.

    Attributes:
        spec: The network's spec.
        deep_supervision: Whether `forward` also returns the logits of the auxiliary head; may be
            changed at any time.
    """

    def __init__(self, spec: MedFormerSpec, *, deep_supervision: bool) -> None:
        super().__init__()
        self.spec = spec
        self.deep_supervision = deep_supervision
        levels = range(len(spec.features))
        self.encoder = nn.ModuleList(_EncoderLevel(spec, level) for level in levels)
        self.fusion = MapFusion(spec)
        self.decoder = nn.ModuleList(_DecoderLevel(spec, level) for level in levels[:-1])
        self.heads = nn.ModuleList(
            CONV[spec.dimension](spec.features[level], spec.out_channels, 1)
            for level in (0, CONVOLUTION_LEVELS)
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Computes the logits of a batch.

        Args:
            x: Images (b, in_channels, *shape); the size of every axis is a multiple of the spec's
                total stride, and more than one voxel is left at the deepest level.

        Returns:
            Logits (b, out_channels, *shape). With deep supervision, a list of two: the logits, and
            those of the auxiliary head at the same resolution.
        """
        skips: list[Tensor] = []
        maps: list[Tensor | None] = []
        for level in self.encoder:
            x, tokens = level(x)
            skips.append(x)
            maps.append(tokens)
        maps = [*maps[:CONVOLUTION_LEVELS], *self.fusion(maps[CONVOLUTION_LEVELS:])]
        skips.pop()
        tokens, auxiliary = maps.pop(), []
        for number in reversed(range(len(self.decoder))):
            x, tokens = self.decoder[number](x, skips.pop(), tokens, maps.pop())
            if self.deep_supervision and number == CONVOLUTION_LEVELS:
                auxiliary.append(self._auxiliary(x))
        logits: Tensor = self.heads[0](x)
        if not self.deep_supervision:
            return logits
        return [logits, *auxiliary]

    def _auxiliary(self, x: Tensor) -> Tensor:
        logits: Tensor = self.heads[1](x)
        for stride in reversed(self.spec.strides[1 : CONVOLUTION_LEVELS + 1]):
            logits = doubled(logits, stride)
        return logits


class _EncoderLevel(nn.Module):
    """Enters a level of the encoder, and passes its blocks.

    Attributes:
        enter: The convolution of the stem, or the merging of neighbouring voxels.
        tokens: Makes the semantic map of a level with attention; None for others.
        blocks: The blocks.
    """

    def __init__(self, spec: MedFormerSpec, level: int) -> None:
        super().__init__()
        features, kernel = spec.features[level], spec.kernels[level]
        if level == 0:
            self.enter = _conv(spec.in_channels, features, kernel)
        else:
            self.enter = PatchMerging(
                spec.features[level - 1], features, kernel=kernel, stride=spec.strides[level]
            )
        attends = spec.attends(level)
        self.tokens = SemanticMap(features, spec.tokens, kernel=kernel) if attends else None
        self.blocks = _blocks(spec, level, spec.blocks_encoder[level])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the features, and the semantic map (b, features, tokens) if there is one."""
        x = self.enter(x)
        if self.tokens is None:
            for block in self.blocks:
                x = block(x)
            return x, None
        tokens = self.tokens(x)
        for block in self.blocks:
            x, tokens = block(x, tokens)
        return x, tokens


class _DecoderLevel(nn.Module):
    """Upsamples, merges with the encoder's features and map, and passes the blocks."""

    def __init__(self, spec: MedFormerSpec, level: int) -> None:
        super().__init__()
        features, both = spec.features[level], spec.features[level] + spec.features[level + 1]
        self.stride = spec.strides[level + 1]
        attends = spec.attends(level)
        self.reduce_map = _conv(both, features, (1,)) if attends else None
        # The finest level of attention gives its map to nobody.
        last = level == CONVOLUTION_LEVELS
        self.blocks = _blocks(
            spec, level, spec.blocks_decoder[level], entering=both, gives_map=not last
        )

    def forward(
        self, x: Tensor, skip: Tensor, tokens: Tensor | None, skipped_tokens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the features and the map of this level from those of the level below."""
        x = torch.cat((doubled(x, self.stride), skip), dim=1)
        if self.reduce_map is None or tokens is None or skipped_tokens is None:
            for block in self.blocks:
                x = block(x)
            return x, None
        tokens = self.reduce_map(torch.cat((tokens, skipped_tokens), dim=1))
        for block in self.blocks:
            x, tokens = block(x, tokens)
        return x, tokens


def _blocks(
    spec: MedFormerSpec, level: int, count: int, *, entering: int = 0, gives_map: bool = True
) -> nn.ModuleList:
    """Makes the blocks of a level; the first takes `entering` features, or those of the level."""
    features, kernel = spec.features[level], spec.kernels[level]
    counts = [(entering or features, features), *[(features, features)] * (count - 1)]
    if not spec.attends(level):
        return nn.ModuleList(PreActivatedBlock(*pair, kernel=kernel) for pair in counts)
    return nn.ModuleList(
        AttentionBlock(
            *pair,
            kernel=kernel,
            heads=spec.heads[level],
            gives_map=gives_map or number < count - 1,
        )
        for number, pair in enumerate(counts)
    )


class PreActivatedBlock(nn.Module):
    """Twice norm, ReLU and convolution, added to the input, which is projected if need be."""

    def __init__(self, in_features: int, features: int, *, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.norm = _norm(len(kernel), in_features)
        self.first = _conv(in_features, features, kernel)
        self.second_norm = _norm(len(kernel), features)
        self.second = _conv(features, features, kernel)
        self.shortcut: nn.Module = nn.Identity()
        if in_features != features:
            self.shortcut = _conv(in_features, features, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_features, *shape) -> (b, features, *shape)."""
        # The activated input is used twice, so that a projection sees normalised values.
        active = activated_norm(x, self.norm, torch.relu_)
        y: Tensor = self.first(active)
        y = self.second(activated_norm(y, self.second_norm, torch.relu_))
        kept = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return kept + y


class PatchMerging(nn.Module):
    """Makes one voxel of `stride` neighbours: concatenation, norm, separable convolution."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
    ) -> None:
        super().__init__()
        merged = in_features
        for step in stride:
            merged *= step
        self.stride = stride
        self.norm = _norm(len(kernel), merged)
        self.conv = _separable(merged, out_features, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_features, *shape) -> (b, out_features, *shape / stride)."""
        for axis, step in enumerate(self.stride, start=2):
            if step > 1:
                grids = [x[(slice(None),) * axis + (slice(k, None, step),)] for k in range(step)]
                x = torch.cat(grids, dim=1)
        y: Tensor = self.conv(self.norm(x))
        return y


class SemanticMap(nn.Module):
    """Sums up the features of all voxels in a few tokens, each with weights of its own."""

    def __init__(self, features: int, tokens: int, *, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.features = _conv(features, features, kernel)
        self.weights = _conv(features, tokens, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(b, features, *shape) -> (b, features, tokens)."""
        features, weights = self.features(x).flatten(2), self.weights(x).flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            tokens: Tensor = features.float() @ weights.float().softmax(-1).transpose(1, 2)
        return tokens


class TwoWayAttention(nn.Module):
    """Attention of voxels to tokens and of tokens to voxels, by the same scores.

    It is computed in float32 whatever autocast says, since a softmax over so many voxels overflows
    in half precision. Its memory is linear in the number of voxels.

    Args:
        in_features: Number of features of the voxels that enter.
        features: Number of features of tokens, and of the voxels that leave.
        kernel: Kernel size per axis of the convolutions of voxels.
        heads: Number of attention heads; a divisor of `features`.
        gives_map: Whether tokens are changed as well; otherwise None is returned for them.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        kernel: tuple[int, ...],
        heads: int,
        gives_map: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_features = features // heads
        self.gives_map = gives_map
        self.of_voxels = _separable(in_features, (1 + gives_map) * features, kernel, bias=True)
        self.of_tokens = _conv(features, 2 * features, (1,), bias=True)
        self.to_voxels = _separable(features, features, kernel, bias=True)
        self.to_tokens = _conv(features, features, (1,), bias=True) if gives_map else None

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """(b, in_features, *shape), (b, features, tokens) -> (b, features, *shape), the same."""
        voxels, (query, value) = self._split(self.of_voxels(x)), self._split(self.of_tokens(tokens))
        with torch.autocast(x.device.type, enabled=False):
            scores = voxels[0].transpose(2, 3) @ query * query.shape[2] ** -0.5
            seen = value @ scores.softmax(-1).transpose(2, 3)
            found = voxels[1] @ scores.softmax(-2) if self.gives_map else None
        y: Tensor = self.to_voxels(seen.reshape(len(x), -1, *x.shape[2:]))
        if self.to_tokens is None or found is None:
            return y, None
        return y, self.to_tokens(found.flatten(1, 2))

    def _split(self, values: Tensor) -> Tensor:
        """(b, n * features, *shape) -> (n, b, heads, features / heads, voxels) in float32."""
        shape = (len(values), -1, self.heads, self.head_features, values[0, 0].numel())
        return values.float().reshape(shape).transpose(0, 1)


class AttentionBlock(nn.Module):
    """Two-way attention, then an inverted bottleneck; both are added to their inputs."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        kernel: tuple[int, ...],
        heads: int,
        gives_map: bool,
    ) -> None:
        super().__init__()
        self.norm = _norm(len(kernel), in_features)
        self.norm_map = _norm(1, features)
        self.attention = TwoWayAttention(
            in_features, features, kernel=kernel, heads=heads, gives_map=gives_map
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_features != features:
            self.shortcut = _conv(in_features, features, (1,) * len(kernel))
        self.bottleneck = InvertedBottleneck(features, kernel=kernel)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """(b, in_features, *shape), (b, features, tokens) -> (b, features, *shape), the same."""
        normed = self.norm(x)
        y, found = self.attention(normed, self.norm_map(tokens))
        kept = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(normed)
        return self.bottleneck(kept + y), None if found is None else tokens + found


class InvertedBottleneck(nn.Module):
    """More features, a depthwise convolution, squeeze and excitation, and back; plus the input."""

    def __init__(self, features: int, *, kernel: tuple[int, ...]) -> None:
        super().__init__()
        dimension, inner, one = len(kernel), EXPANSION * features, (1,) * len(kernel)
        conv = CONV[dimension]
        self.norm = _norm(dimension, features)
        self.expand = _conv(features, inner, one)
        self.inner_norm = _norm(dimension, inner)  # without weights, so that it serves twice
        self.depthwise = _conv(inner, inner, kernel, groups=inner)
        self.squeeze = conv(inner, inner // _SQUEEZE, 1)
        self.excite = conv(inner // _SQUEEZE, inner, 1)
        self.project = _conv(inner, features, one)

    def forward(self, x: Tensor) -> Tensor:
        """(b, features, *shape) -> the same shape."""
        y = self.expand(activated_norm(x, self.norm, torch.relu_))
        y = self.depthwise(activated_norm(y, self.inner_norm, torch.relu_))
        y = activated_norm(y, self.inner_norm, torch.relu_)
        mean = y.mean(tuple(range(2, y.ndim)), keepdim=True)
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(mean), inplace=True)))
        projected: Tensor = self.project(y)
        return x + projected


class MapFusion(nn.Module):
    """Lets the tokens of all levels attend to one another.

    Args:
        spec: The network's spec.
    """

    def __init__(self, spec: MedFormerSpec) -> None:
        super().__init__()
        features = spec.features[CONVOLUTION_LEVELS:]
        inner = spec.fusion_features
        self.enter = nn.ModuleList(nn.Linear(count, inner) for count in features)
        self.layers = nn.ModuleList(
            TransformerLayer(inner, heads=spec.fusion_heads) for _ in range(spec.fusion_layers)
        )
        self.leave = nn.ModuleList(nn.Linear(inner, count) for count in features)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (b, features of the level, tokens) -> the same shapes."""
        tokens = [enter(m.transpose(1, 2)) for enter, m in zip(self.enter, maps, strict=True)]
        counts = [m.shape[1] for m in tokens]
        x = torch.cat(tokens, dim=1)
        for layer in self.layers:
            x = layer(x)
        pieces = torch.split(x, counts, dim=1)
        return [leave(p).transpose(1, 2) for leave, p in zip(self.leave, pieces, strict=True)]


class TransformerLayer(nn.Module):
    """A transformer layer with norms before self-attention and perceptron."""

    def __init__(self, features: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(features)
        self.mix = nn.Linear(features, 3 * features, bias=False)
        self.leave = nn.Linear(features, features)
        self.second_norm = nn.LayerNorm(features)
        self.first = nn.Linear(features, features)
        self.second = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, features) -> the same shape; the attention is computed in float32."""
        parts = self.mix(self.norm(x)).unflatten(2, (3, self.heads, -1)).movedim((2, 3), (0, 2))
        with torch.autocast(x.device.type, enabled=False):
            query, key, value = parts.float()
            scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
            seen = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + self.leave(seen)
        y: Tensor = self.second(F.gelu(self.first(self.second_norm(x))))
        return x + y


def doubled(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Upsamples the axes of stride 2 by linear interpolation between the centres of voxels.

    It equals `F.interpolate(..., align_corners=False)`, whose gradient on a GPU would differ from
    run to run.

    Args:
        x: (b, features, *shape).
        stride: 1 or 2 per axis.

    Returns:
        (b, features, *shape * stride).
    """
    for axis, step in enumerate(stride, start=2):
        if step == 2:
            size = x.shape[axis]
            first, last = x.narrow(axis, 0, 1), x.narrow(axis, size - 1, 1)
            before = torch.cat((first, x.narrow(axis, 0, size - 1)), dim=axis)
            after = torch.cat((x.narrow(axis, 1, size - 1), last), dim=axis)
            halves = (torch.lerp(x, before, 0.25), torch.lerp(x, after, 0.25))
            x = torch.stack(halves, dim=axis + 1).flatten(axis, axis + 1)
    return x


def _norm(dimension: int, features: int) -> nn.Module:
    return INSTANCE_NORM[dimension](features, eps=NORM_EPS)


def _conv(
    in_features: int,
    out_features: int,
    kernel: tuple[int, ...],
    *,
    groups: int = 1,
    bias: bool = False,
) -> nn.Module:
    padding = tuple(size // 2 for size in kernel)
    conv = CONV[len(kernel)]
    return conv(in_features, out_features, kernel, padding=padding, groups=groups, bias=bias)


def _separable(
    in_features: int, out_features: int, kernel: tuple[int, ...], *, bias: bool = False
) -> nn.Module:
    """Makes a depthwise convolution followed by a 1x1 convolution, which may have a bias."""
    return nn.Sequential(
        _conv(in_features, in_features, kernel, groups=in_features),
        _conv(in_features, out_features, (1,) * len(kernel), bias=bias),
    )
