"""Classification networks written down once more, as functions of published state dicts.

They know nothing of autoliver's networks: names, strides and formulas are those of the libraries.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]

# Of each stage of EfficientNet-B0 and -lite0: expansion, kernel, stride, features, blocks.
B0 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
# The stages whose last features a U-Net takes; the stem comes before them.
LAST = (1, 2, 4, 6)


def convolved(
    state: State, name: str, x: Tensor, *, stride: int = 1, groups: int = 1, same: bool = False
) -> Tensor:
    """Convolves with symmetric padding, or with TensorFlow's SAME."""
    weight = state[f"{name}.weight"]
    size = weight.shape[-1]
    if same:
        whole = max(size - stride if x.shape[-1] % stride == 0 else size - x.shape[-1] % stride, 0)
        x = F.pad(x, (whole // 2, whole - whole // 2) * 2)
    padding = 0 if same else size // 2
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, padding, groups=groups)


def normed(state: State, name: str, x: Tensor, *, eps: float) -> Tensor:
    def axis(kind: str) -> Tensor:
        return state[f"{name}.{kind}"].view(1, -1, 1, 1)

    scaled = (x - axis("running_mean")) / (axis("running_var") + eps).sqrt()
    return scaled * axis("weight") + axis("bias")


def lite0(state: State, x: Tensor, *, same: bool = False) -> list[Tensor]:
    """The five levels of EfficientNet-lite0 from the names of efficientnet-pytorch."""

    def step(name: str, norm: str, y: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        y = convolved(state, name, y, stride=stride, groups=groups, same=same)
        return normed(state, norm, y, eps=1e-3)

    x = step("_conv_stem", "_bn0", x, 2).clamp(0, 6)
    levels, number = [x], 0
    for stage, (expansion, _, stride, features, blocks) in enumerate(B0):
        for block in range(blocks):
            here, y = f"_blocks.{number}.", x
            if expansion > 1:
                y = step(f"{here}_expand_conv", f"{here}_bn0", y).clamp(0, 6)
            deep = f"{here}_depthwise_conv"
            y = step(deep, f"{here}_bn1", y, stride if block == 0 else 1, y.shape[1]).clamp(0, 6)
            y = step(f"{here}_project_conv", f"{here}_bn2", y)
            x = x + y if block else y
            assert x.shape[1] == features
            number += 1
        if stage in LAST:
            levels.append(x)
    return levels


def lite0_classes(state: State, x: Tensor) -> Tensor:
    """The probabilities of ImageNet's 1000 classes from the last level."""
    y = normed(state, "_bn1", convolved(state, "_conv_head", x), eps=1e-3).clamp(0, 6)
    return F.linear(y.mean((2, 3)), state["_fc.weight"], state["_fc.bias"]).softmax(1)


def torchvision_b0(state: State, x: Tensor) -> list[Tensor]:
    """The five levels of EfficientNet-B0 from the names of torchvision."""

    def step(name: str, y: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        y = convolved(state, f"{name}.0", y, stride=stride, groups=groups)
        return normed(state, f"{name}.1", y, eps=1e-5)

    x = F.silu(step("features.0", x, 2))
    levels = [x]
    for stage, (expansion, _, stride, _, blocks) in enumerate(B0):
        for block in range(blocks):
            here, y, part = f"features.{stage + 1}.{block}.block", x, 0
            if expansion > 1:
                y, part = F.silu(step(f"{here}.0", y)), 1
            y = F.silu(step(f"{here}.{part}", y, stride if block == 0 else 1, y.shape[1]))
            gate = F.silu(convolved(state, f"{here}.{part + 1}.fc1", y.mean((2, 3), keepdim=True)))
            y = y * convolved(state, f"{here}.{part + 1}.fc2", gate).sigmoid()
            y = step(f"{here}.{part + 2}", y)
            x = x + y if block else y
        if stage in LAST:
            levels.append(x)
    return levels


def resnet(state: State, x: Tensor, blocks: tuple[int, ...], *, bottleneck: bool) -> list[Tensor]:
    """The five levels of a ResNet."""

    def step(here: str, number: int, y: Tensor, stride: int = 1) -> Tensor:
        y = convolved(state, f"{here}conv{number}", y, stride=stride)
        return normed(state, f"{here}bn{number}", y, eps=1e-5)

    x = F.relu(step("", 1, x, 2))
    levels = [x]
    x = F.max_pool2d(x, 3, 2, 1)
    for layer, count in enumerate(blocks, start=1):
        for block in range(count):
            here, stride = f"layer{layer}.{block}.", 2 if layer > 1 and block == 0 else 1
            if bottleneck:
                y = F.relu(step(here, 1, x))
                y = step(here, 3, F.relu(step(here, 2, y, stride)))
            else:
                y = step(here, 2, F.relu(step(here, 1, x, stride)))
            if f"{here}downsample.0.weight" in state:
                x = convolved(state, f"{here}downsample.0", x, stride=stride)
                x = normed(state, f"{here}downsample.1", x, eps=1e-5)
            x = F.relu(x + y)
        levels.append(x)
    return levels


def torchvision_b0_state() -> dict[str, Tensor]:
    """Random weights of EfficientNet-B0 with its head, as torchvision names and shapes them."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("features.0.0", (32, 3, 3, 3))]
    before = 32
    for stage, (expansion, kernel, _, features, blocks) in enumerate(B0, start=1):
        for block in range(blocks):
            here, inside, parts = f"features.{stage}.{block}.block", before * expansion, 0
            if expansion > 1:
                shapes.append((f"{here}.0.0", (inside, before, 1, 1)))
                parts = 1
            shapes.append((f"{here}.{parts}.0", (inside, 1, kernel, kernel)))
            shapes.append((f"{here}.{parts + 1}.fc1", (before // 4, inside, 1, 1)))
            shapes.append((f"{here}.{parts + 1}.fc2", (inside, before // 4, 1, 1)))
            shapes.append((f"{here}.{parts + 2}.0", (features, inside, 1, 1)))
            before = features
    shapes.append(("features.8.0", (1280, 320, 1, 1)))
    shapes.append(("classifier.1", (1000, 1280)))
    return dict(_drawn(shapes))


def resnet_state(
    blocks: tuple[int, ...], *, bottleneck: bool, counted: bool = True
) -> dict[str, Tensor]:
    """Random weights of a ResNet with its head, as torchvision names and shapes them."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("conv1", (64, 3, 7, 7))]
    before, wide = 64, 4 if bottleneck else 1
    for layer, count in enumerate(blocks, start=1):
        inside = 32 * 2**layer
        for block in range(count):
            here, last = f"layer{layer}.{block}", inside * wide
            if bottleneck:
                shapes.append((f"{here}.conv1", (inside, before, 1, 1)))
                shapes.append((f"{here}.conv2", (inside, inside, 3, 3)))
                shapes.append((f"{here}.conv3", (last, inside, 1, 1)))
            else:
                shapes.append((f"{here}.conv1", (inside, before, 3, 3)))
                shapes.append((f"{here}.conv2", (inside, inside, 3, 3)))
            if before != last or (layer > 1 and block == 0):
                shapes.append((f"{here}.downsample.0", (last, before, 1, 1)))
            before = last
    shapes.append(("fc", (1000, before)))
    drawn = dict(_drawn(shapes))
    return {n: t for n, t in drawn.items() if counted or not n.endswith("num_batches_tracked")}


def _drawn(shapes: list[tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, Tensor]]:
    """Draws each convolution or linear layer, and the norm after each convolution without bias."""
    random = torch.Generator().manual_seed(0)
    for name, shape in shapes:
        fan = torch.Size(shape[1:]).numel()
        yield f"{name}.weight", torch.randn(shape, generator=random) * (2 / fan) ** 0.5
        if len(shape) == 2 or ".fc" in name:
            yield f"{name}.bias", torch.randn(shape[0], generator=random) * 0.1
            continue
        norm = name[:-1] + "1" if name[-2:] == ".0" else name.replace("conv", "bn")
        count = shape[0]
        # Some features hardly vary, where the constant of the norm matters.
        variance = torch.rand(count, generator=random) ** 8
        scale = torch.rand(count, generator=random) / 2 + 0.25
        yield f"{norm}.weight", scale * (variance + 1e-5).sqrt()
        yield f"{norm}.bias", torch.randn(count, generator=random) * 0.1
        yield f"{norm}.running_mean", torch.randn(count, generator=random) * 0.1
        yield f"{norm}.running_var", variance
        yield f"{norm}.num_batches_tracked", torch.tensor(7)
