"""Classification weights of other libraries under the names of our encoders.

Known are the state dicts of timm, of torchvision's EfficientNets, of efficientnet-pytorch and of
ResNets, which have the same names everywhere.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoliver.errors import ModelError
from autoliver.networks.efficientnet import NORM_EPS, EfficientNet
from autoliver.networks.encoders import (
    ENCODERS,
    EncoderRow,
    Family,
    full_spans,
    published_strides,
)
from autoliver.networks.resnet import ResNet
from autoliver.values import counted

# torch's default, with which torchvision's EfficientNets of these sizes were trained.
_TORCH_EPS = 1e-5
_WRAPPERS = ("state_dict", "model")  # keys of checkpoints that hold the weights
_PREFIXES = ("module.", "_orig_mod.", "model.")
_HEAD = ("conv_head", "bn2", "classifier", "fc")  # of the encoder's own, first words of names
_COUNT = "num_batches_tracked"
# Beginnings of names of weights -> what has such weights.
_STRANGERS = {
    "patch_embed.": "a vision transformer",
    "conv_proj.": "a vision transformer",
    "features.conv0.": "a DenseNet",
    "stages.": "a ConvNeXt",
    "encoder.": "a network for segmentation",
    "features.0.weight": "a VGG or an AlexNet",
    "features.0.0.": "a MobileNet or a ConvNeXt",
}


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The names of one library.

    Attributes:
        library: The library.
        family: The family of encoders.
        mark: The name of a weight by which it is recognised.
        rename: Returns our name of a weight, given its own and the encoder; heads get the names of
            timm, and a block that the encoder does not have keeps its name.
        eps: The constant of its batch norms, if it differs from ours.
    """

    library: str
    family: Family
    mark: str
    rename: Callable[[str, EncoderRow], str]
    eps: float | None = None


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """The weights of an encoder under our names.

    Attributes:
        weights: Weights and statistics of the 2D encoder, whose stem sees red, green and blue.
        unused: The weights of the classification head.
        library: The library whose names the file has.
    """

    weights: dict[str, Tensor]
    unused: dict[str, Tensor]
    library: str


def read_state(content: Any, *, where: str) -> dict[str, Tensor]:
    """Takes the weights out of what a checkpoint wraps them in.

    Args:
        content: The content of the file.
        where: The file, for messages.

    Raises:
        ModelError: It holds no weights by name, or values that are not finite.
    """
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(
            f"{where}: holds no weights by name, but {type(content).__name__}.",
            hint="Save a network's weights with: torch.save(model.state_dict(), FILE)",
        )
    state = {str(name): value for name, value in content.items()}
    _refuse_strangers(state, where)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{where}: {name} is {type(value).__name__}, not a weight.",
                hint="Save a network's weights with: torch.save(model.state_dict(), FILE)",
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"{where}: {name} has values that are not finite.",
                hint="Fetch the file again from its source.",
            )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def is_classifier(names: Iterable[str]) -> bool:
    """Whether weights have the names of one of the known libraries."""
    return not {layout.mark for layout in _LAYOUTS}.isdisjoint(names)


def classifier(state: Mapping[str, Tensor], encoder: str, *, where: str) -> Classifier:
    """Returns the weights of an encoder from a state dict of another library.

    Statistics of norms are kept as they are; if the norms add another constant to their variance,
    the difference is added to it, which is exact wherever they are not computed anew.

    Args:
        state: The weights, from `read_state`.
        encoder: The name of the encoder.
        where: The file, for messages.

    Raises:
        ModelError: They are weights of another network, or some are missing or of another shape.
    """
    row = ENCODERS[encoder]
    layout = next((each for each in _LAYOUTS if each.mark in state), None)
    if layout is None:
        names = ", ".join(list(state)[:3])
        like = _like(state)
        raise ModelError(
            f"{where}: its weights ({names}, ...) are those of no EfficientNet or ResNet"
            f"{like and f', but perhaps of {like}'}; the plan's encoder is {encoder}.",
            hint=f"Give weights of {encoder} for classification, as timm or torchvision has them.",
        )
    found = _renamed(state, layout, row)
    if _problem(found, row):
        raise _misfit(state, layout, row, where=where)
    weights = {}
    for name in _shapes(row):
        weight = found.get(name, torch.zeros((), dtype=torch.long))  # old files do not count
        if layout.eps is not None and name.endswith("running_var"):
            weight = weight + (layout.eps - NORM_EPS)
        weights[name] = weight.clone()
    return Classifier(
        weights=weights,
        unused={name: weight for name, weight in found.items() if _is_head(name)},
        library=layout.library,
    )


def _refuse_strangers(state: Mapping[str, Any], where: str) -> None:
    """Refuses files that `--pretrained` takes itself."""
    if "network_weights" in state:
        raise ModelError(
            f"{where}: a checkpoint of nnU-Net, not a network for classification.",
            hint="Start from it with --pretrained FILE, without --encoder-weights.",
        )
    if "heads.0.weight" in state:
        raise ModelError(
            f"{where}: weights of one of autoliver's networks, not of one for classification.",
            hint="Start from it with --pretrained FILE, without --encoder-weights.",
        )


def _like(state: Mapping[str, object]) -> str:
    """What other network has weights of these names; "" if unknown."""
    starts = (w for s, w in _STRANGERS.items() if any(name.startswith(s) for name in state))
    return next(starts, "")


def _misfit(
    state: Mapping[str, Tensor], layout: _Layout, row: EncoderRow, *, where: str
) -> ModelError:
    """Says of which encoder the weights are, or else what is missing or different."""
    for other in ENCODERS.values():
        if other.family == layout.family and not _problem(_renamed(state, layout, other), other):
            return ModelError(
                f"{where}: these are weights of {other.name}; the plan's encoder is {row.name}.",
                hint=f"Give weights of {row.name}, or plan with: "
                f"autoliver plan DATASET --encoder {other.name}",
            )
    found = f"{where}: not weights of {row.name}, the plan's encoder"
    hint = f"Give weights of {row.name}; if they are, fetch the file again from its source."
    if layout.family != row.family:
        like = "an EfficientNet" if layout.family == "efficientnet" else "a ResNet"
        return ModelError(f"{found}, but of {like}.", hint=hint)
    blocks = len({match[0] for name in state if (match := _BLOCK.match(name))})
    expected = sum(stage.blocks for stage in row.stages)
    if blocks != expected:
        has = f"they have {counted(blocks, 'block')}, expected {expected}"
        return ModelError(f"{found}: {has}.", hint=hint)
    return ModelError(f"{found}: {_problem(_renamed(state, layout, row), row)}.", hint=hint)


# A block in the names of any of the layouts.
_BLOCK = re.compile(r"(blocks\.\d+|layer\d+|_blocks)\.\d+\.|features\.\d+\.\d+\.block")


def _problem(found: Mapping[str, Tensor], row: EncoderRow) -> str:
    """Says how weights differ from those of an encoder; "" if they are its weights."""
    shapes = _shapes(row)
    missing = [n for n in shapes if n not in found and not n.endswith(_COUNT)]
    if missing:
        first = f"{missing[0]} is missing"
        return first if len(missing) == 1 else f"{first}, and {len(missing) - 1} others"
    for name, shape in shapes.items():
        if name in found and tuple(found[name].shape) != shape:
            return f"{name} has the shape {tuple(found[name].shape)}, expected {shape}"
    more = [name for name in found if name not in shapes and not _is_head(name)]
    return f"{more[0]} has no place in it" if more else ""


def _is_head(name: str) -> bool:
    return name.split(".", 1)[0] in _HEAD


def _shapes(row: EncoderRow) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights of the 2D encoder of a colour image."""
    made = EfficientNet if row.family == "efficientnet" else ResNet
    with torch.device("meta"):
        network = made(row.name, 3, strides=published_strides(2), spans=full_spans(2))
    return {name: tuple(weight.shape) for name, weight in network.state_dict().items()}


def _renamed(state: Mapping[str, Tensor], layout: _Layout, row: EncoderRow) -> dict[str, Tensor]:
    return {layout.rename(name, row): weight for name, weight in state.items()}


# Parts of a block -> our names: of the first stage's blocks, and of the others'.
_SEPARABLE = {
    **{"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
    **{"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"},
    **{"0.0": "conv_dw", "0.1": "bn1", "2.0": "conv_pw", "2.1": "bn2"},
    **{"1.fc1": "se.conv_reduce", "1.fc2": "se.conv_expand"},
}
_INVERTED = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
    **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
    **{"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"},
    **{"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "3.0": "conv_pwl"},
    **{"3.1": "bn3", "2.fc1": "se.conv_reduce", "2.fc2": "se.conv_expand"},
}


def _part(stage: int, block: int, part: str, kind: str) -> str:
    known = _INVERTED if stage else _SEPARABLE
    return f"blocks.{stage}.{block}.{known.get(part, part)}.{kind}"


def _of_lukemelas(name: str, row: EncoderRow) -> str:
    """Returns our name of a weight of efficientnet-pytorch, whose blocks are numbered through."""
    if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
        number = int(found[1])
        for stage, each in enumerate(row.stages):
            if number < each.blocks:
                return _part(stage, number, found[2], found[3])
            number -= each.blocks
        return name
    layer, _, kind = name.partition(".")
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    return f"{top.get(layer, 'classifier' if layer == '_fc' else layer)}.{kind}"


def _of_torchvision(name: str, _: EncoderRow) -> str:
    """Returns our name of a weight of torchvision's EfficientNets."""
    if found := re.fullmatch(r"features\.([1-7])\.(\d+)\.block\.(\d\.\w+)\.(\w+)", name):
        return _part(int(found[1]) - 1, int(found[2]), found[3], found[4])
    tops = {"features.0.0": "conv_stem", "features.0.1": "bn1", "classifier.1": "classifier"}
    tops |= {"features.8.0": "conv_head", "features.8.1": "bn2"}
    layer, kind = name.rsplit(".", 1) if "." in name else (name, "")
    return f"{tops.get(layer, layer)}.{kind}"


def _same(name: str, _: EncoderRow) -> str:
    return name


_LAYOUTS = (
    _Layout(library="timm", family="efficientnet", mark="conv_stem.weight", rename=_same),
    _Layout(
        library="torchvision",
        family="efficientnet",
        mark="features.1.0.block.0.0.weight",
        rename=_of_torchvision,
        eps=_TORCH_EPS,
    ),
    _Layout(
        library="efficientnet-pytorch",
        family="efficientnet",
        mark="_conv_stem.weight",
        rename=_of_lukemelas,
    ),
    _Layout(library="torchvision", family="resnet", mark="layer1.0.conv1.weight", rename=_same),
)
