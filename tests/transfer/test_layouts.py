"""Weights of other libraries, and what is said of those that do not fit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published import resnet, resnet_state, torchvision_b0, torchvision_b0_state
from safetensors.torch import save_file
from torch import Tensor, nn

from autoliver.errors import ModelError
from autoliver.networks.efficientnet import EfficientNet
from autoliver.networks.encoders import ENCODERS, full_spans, published_strides
from autoliver.networks.resnet import ResNet
from autoliver.transfer.imagenet import imagenet_weights
from autoliver.transfer.layouts import classifier, read_state

R18, R34, R50 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3)


def encoder(name: str) -> nn.Module:
    made = EfficientNet if ENCODERS[name].family == "efficientnet" else ResNet
    return made(name, 3, strides=published_strides(2), spans=full_spans(2)).eval()


def check_levels(name: str, state: dict[str, Tensor], levels: list[Tensor], x: Tensor) -> None:
    network = encoder(name)
    network.load_state_dict(classifier(state, name, where="here").weights)
    with torch.inference_mode():
        found = network(x)
    assert len(found) == len(levels) == 5
    for mine, theirs in zip(found, levels, strict=True):
        size = theirs.std().item()
        torch.testing.assert_close(mine / size, theirs / size, rtol=0, atol=1e-4)


def test_torchvisions_efficientnet_gives_the_same_levels() -> None:
    state = torchvision_b0_state()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    check_levels("efficientnet_b0", state, torchvision_b0(state, x), x)


@pytest.mark.parametrize(
    ("name", "blocks", "bottleneck"),
    [("resnet18", R18, False), ("resnet34", R34, False), ("resnet50", R50, True)],
)
def test_resnets_give_the_same_levels(name: str, blocks: tuple[int, ...], bottleneck: bool) -> None:
    # Files of torch before 1.0 have not counted batches.
    state = resnet_state(blocks, bottleneck=bottleneck, counted=name != "resnet18")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    check_levels(name, state, resnet(state, x, blocks, bottleneck=bottleneck), x)


def test_names_are_those_of_timm() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = set(encoder("efficientnet_b0").state_dict())
    first = {"conv_dw.weight", "conv_pw.weight"}
    first |= {
        f"se.conv_{way}.{kind}" for way in ("reduce", "expand") for kind in ("weight", "bias")
    }
    first |= {f"bn{number}.{kind}" for number in (1, 2) for kind in norm}
    other = first | {"conv_pwl.weight"} | {f"bn3.{kind}" for kind in norm}
    assert {n for n in names if not n.startswith("blocks.")} == {
        "conv_stem.weight",
        *(f"bn1.{kind}" for kind in norm),
    }
    assert {n for n in names if n.startswith("blocks.0.0.")} == {f"blocks.0.0.{n}" for n in first}
    assert {n for n in names if n.startswith("blocks.5.3.")} == {f"blocks.5.3.{n}" for n in other}


def timm_state(name: str) -> dict[str, Tensor]:
    state = dict(encoder(name).state_dict())
    state |= {"conv_head.weight": torch.zeros(1280, 320, 1, 1), "bn2.weight": torch.zeros(1280)}
    return state | {"classifier.weight": torch.zeros(1000, 1280)}


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state},
    "parallel": lambda state: {f"module.{name}": weight for name, weight in state.items()},
    "compiled": lambda state: {
        "state_dict": {f"module._orig_mod.{name}": weight for name, weight in state.items()}
    },
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_are_taken_off_and_heads_recognised(
    tmp_path: Path, wrapper: str, zipped: bool
) -> None:
    state = timm_state("efficientnet_lite0")
    path = tmp_path / "weights.pth"
    torch.save(WRAPPERS[wrapper](state), path, _use_new_zipfile_serialization=zipped)
    found = imagenet_weights("efficientnet_lite0", str(path), again="again")
    assert {*found.unused} == {"conv_head.weight", "bn2.weight", "classifier.weight"}
    for name, weight in encoder("efficientnet_lite0").state_dict().items():
        assert found.weights[name].shape == weight.shape
        assert torch.equal(found.weights[name], state[name]), name


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({n: w.clone() for n, w in timm_state("efficientnet_lite0").items()}, path)
    found = imagenet_weights("efficientnet_lite0", str(path), again="again")
    assert str(path) in found.where


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: weight for name, weight in state.items() if name not in names}


def wider(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return state | {name: torch.zeros(2, *state[name].shape)}


# A state dict, the plan's encoder, and what the error and its hint say.
MISFITS: list[tuple[Callable[[], dict[str, Tensor]], str, str, str]] = [
    (
        lambda: resnet_state(R18, bottleneck=False),
        "resnet34",
        "these are weights of resnet18; the plan's encoder is resnet34",
        "autoliver plan DATASET --encoder resnet18",
    ),
    (
        lambda: timm_state("efficientnet_lite0"),
        "efficientnet_b0",
        "these are weights of efficientnet_lite0",
        "--encoder efficientnet_lite0",
    ),
    (
        torchvision_b0_state,
        "resnet50",
        "these are weights of efficientnet_b0; the plan's encoder is resnet50",
        "--encoder efficientnet_b0",
    ),
    (
        lambda: resnet_state((3, 4, 23, 3), bottleneck=True),
        "resnet50",
        "not weights of resnet50, the plan's encoder: they have 33 blocks, expected 16",
        "Give weights of resnet50",
    ),
    (
        lambda: resnet_state((3, 4, 23, 3), bottleneck=True),
        "efficientnet_b4",
        "not weights of efficientnet_b4, the plan's encoder, but of a ResNet",
        "Give weights of efficientnet_b4",
    ),
    (
        lambda: without(resnet_state(R18, bottleneck=False), "layer2.1.conv2.weight"),
        "resnet18",
        "layer2.1.conv2.weight is missing",
        "fetch the file again",
    ),
    (
        lambda: without(torchvision_b0_state(), "features.1.0.block.1.fc1.bias"),
        "efficientnet_b0",
        "blocks.0.0.se.conv_reduce.bias is missing",
        "fetch the file again",
    ),
    (
        lambda: wider(resnet_state(R18, bottleneck=False), "bn1.weight"),
        "resnet18",
        r"bn1.weight has the shape \(2, 64\), expected \(64,\)",
        "fetch the file again",
    ),
    (
        lambda: resnet_state(R18, bottleneck=False) | {"layer4.1.se.weight": torch.zeros(3)},
        "resnet18",
        "layer4.1.se.weight has no place in it",
        "Give weights of resnet18",
    ),
    (
        lambda: {"cls_token": torch.zeros(3), "patch_embed.proj.weight": torch.zeros(3)},
        "resnet18",
        r"\(cls_token, patch_embed.proj.weight, ...\) are those of no EfficientNet or ResNet, but "
        "perhaps of a vision transformer; the plan's encoder is resnet18",
        "Give weights of resnet18",
    ),
    (
        lambda: resnet_state(R18, bottleneck=False) | {"fc.bias": torch.full((1000,), torch.nan)},
        "resnet18",
        "fc.bias has values that are not finite",
        "Fetch the file again",
    ),
    (
        lambda: {"encoder.0.0.conv.weight": torch.zeros(3), "heads.0.weight": torch.zeros(3)},
        "resnet18",
        "weights of one of autoliver's networks",
        "--pretrained FILE",
    ),
    (
        lambda: {"network_weights": torch.zeros(3)},
        "resnet18",
        "a checkpoint of nnU-Net",
        "--pretrained FILE",
    ),
]


@pytest.mark.parametrize(("make", "name", "says", "mends"), MISFITS)
def test_misfits_are_one_error_with_what_was_found_and_expected(
    make: Callable[[], dict[str, Tensor]], name: str, says: str, mends: str
) -> None:
    with pytest.raises(ModelError, match=f"^here: .*{says}") as caught:
        classifier(read_state(make(), where="here"), name, where="here")
    assert mends in (caught.value.hint or "")


@pytest.mark.parametrize("content", [[torch.zeros(3)], {}, {"state_dict": {}}, {"epoch": 3}])
def test_contents_without_weights_are_refused(content: object) -> None:
    with pytest.raises(ModelError, match=r"^here: ") as caught:
        read_state(content, where="here")
    assert "state_dict()" in (caught.value.hint or "")
