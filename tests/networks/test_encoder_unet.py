"""U-Nets with a classification encoder: sizes as published, both dimensions, running statistics."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from small_trainings import LABELS, PATCH, make_task, stop_after, timeless
from torch import Tensor, nn

from autoliver.datasets.cases import Labels
from autoliver.errors import ModelError, OptionError
from autoliver.networks.build import build_network
from autoliver.networks.checkpoint import load_network, load_training_state, save_weights
from autoliver.networks.encoders import ENCODERS
from autoliver.networks.spec import EncoderUNetSpec, UNetSpec
from autoliver.planning.names import EncoderName
from autoliver.planning.plan import PlanOptions
from autoliver.planning.presets import preset_row
from autoliver.planning.topology import even_topology, pool_topology
from autoliver.training.fold import FoldTask
from autoliver.training.loop import train_fold
from autoliver.training.options import TrainingOptions
from autoliver.transfer.adapt import Side, transfer_weights
from autoliver.transfer.blend import blend, source_part

torch.set_num_threads(1)

HEAD_OF_B0, HEAD_OF_B4 = 320 * 1280 + 2 * 1280, 448 * 1792 + 2 * 1792


def make_spec(
    encoder: str = "efficientnet_b0",
    *,
    arch: str = "unet",
    preset: str = "tiny",
    patch: tuple[int, ...] = (32, 32),
    spacing: tuple[float, ...] = (),
    out_channels: int = 3,
) -> EncoderUNetSpec:
    row = preset_row(preset, arch, encoder)  # type: ignore[arg-type]
    topology = row.topology(spacing or (1.0,) * len(patch), patch)
    spec = row.network(topology, in_channels=1, out_channels=out_channels)
    assert isinstance(spec, EncoderUNetSpec)
    return spec


def drawn(spec: EncoderUNetSpec, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return build_network(spec, deep_supervision=False, generator=generator)


def parameters(spec: EncoderUNetSpec) -> int:
    with torch.device("meta"):
        network = build_network(spec, deep_supervision=True)
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("arch", "encoder", "axes", "head", "millions"),
    [
        ("omnia", "efficientnet_b0", 2, HEAD_OF_B0, 6.26),
        ("omnia", "efficientnet_b4", 2, HEAD_OF_B4, 20.23),
        ("dxnet", "efficientnet_b0", 3, HEAD_OF_B0, 12.95),
    ],
)
def test_it_has_as_many_weights_as_published(
    arch: str, encoder: str, axes: int, head: int, millions: float
) -> None:
    """The published count holds the last convolution of the classifier, which nothing uses."""
    spec = make_spec(encoder, arch=arch, preset="default", patch=(128,) * axes, out_channels=2)
    assert round((parameters(spec) + head) / 1e6, 2) == millions


def test_the_names_that_plan_takes_are_those_of_the_table() -> None:
    assert get_args(EncoderName) == tuple(ENCODERS)


@pytest.mark.parametrize(
    ("encoder", "arch", "patch", "spacing"),
    [
        *((encoder, "unet", (32, 32), (1.0, 1.0)) for encoder in ENCODERS),
        ("efficientnet_lite0", "omnia", (64, 32), (1.0, 1.0)),
        ("resnet18", "omnia", (64, 32), (1.0, 1.0)),
        # Strides and kernels of 1 along the first axis.
        ("efficientnet_b0", "dxnet", (4, 32, 16), (5.0, 0.8, 0.8)),
        ("resnet50", "dxnet", (4, 32, 16), (5.0, 0.8, 0.8)),
        ("resnet18", "unet", (8, 16, 16), (1.0, 1.0, 1.0)),
    ],
)
def test_the_output_has_the_size_of_the_patch_and_every_weight_learns(
    encoder: str, arch: str, patch: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    spec = make_spec(encoder, arch=arch, patch=patch, spacing=spacing).replace(drop_path=0.0)
    network = build_network(spec, deep_supervision=True, generator=torch.Generator().manual_seed(0))
    image = torch.randn(2, 1, *patch, generator=torch.Generator().manual_seed(1))
    (logits,) = network(image)
    assert logits.shape == (2, 3, *patch)
    logits.square().mean().backward()
    assert [n for n, w in network.named_parameters() if w.grad is None or not w.grad.any()] == []


def test_levels_follow_the_plan_and_are_five() -> None:
    flat = make_spec(patch=(8, 64, 64), spacing=(5.0, 0.8, 0.8))
    assert [stride[0] for stride in flat.strides] == [1, 1, 1, 2, 1, 1]
    assert flat.thin_levels == 2
    assert flat.spans[0] == (False, True, True)
    assert flat.spans[1:] == ((True, True, True),) * 4
    large, small = make_spec(patch=(512, 512)), make_spec(patch=(16, 16))
    assert large.total_stride == (32, 32)
    assert small.total_stride == (4, 4)
    assert len(small.strides) == len(large.strides) == 6


def test_published_strides_halve_all_axes_whatever_the_spacing() -> None:
    row = preset_row("tiny", "dxnet", z_strides="all")
    assert row.topology is even_topology
    topology = row.topology((5.0, 0.8, 0.8), (20, 100, 96))
    assert topology.patch_shape == (32, 128, 96)
    assert row.network(topology, in_channels=1, out_channels=2).total_stride == (32, 32, 32)
    assert row.topology((0.8, 0.8), (100, 96)) == pool_topology((0.8, 0.8), (100, 96))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder": "vgg16"}, "encoder: found vgg16, expected one of efficientnet_b0, "),
        ({"features": (8, 8, 16)}, "features: found 3 entries, expected 5"),
        ({"features": (0, 8, 16, 8, 8)}, "features: found 0, expected 1 or more"),
        ({"strides": ((2, 2),) * 6}, r"strides\[0\]: found \[2, 2\], expected ones"),
        ({"strides": ((1, 1), *((4, 4),) * 5)}, r"strides\[1\]: found \[4, 4\], expected 1 or 2"),
        ({"strides": ((1, 1), *((1, 2, 2),) * 5)}, r"strides\[1\]: found 3 axes, expected 2"),
        ({"strides": ((1,), *((2,),) * 5)}, "strides: found 1 axis, expected 2 or 3"),
        ({"thin_levels": 1}, "thin_levels: found 1, expected 0 to 0"),
        ({"drop_path": 1.0}, "drop_path: found 1, expected 0 or more and below 1"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        build_network(make_spec().replace(**changes), deep_supervision=False)


@pytest.mark.parametrize("arch", ["unet", "omnia", "dxnet"])
@pytest.mark.parametrize("encoder", ["efficientnet_lite0", "resnet18"])
def test_every_weight_and_statistic_has_a_role_and_parts_are_complete(
    arch: str, encoder: str
) -> None:
    spec = make_spec(encoder, arch=arch)
    with torch.device("meta"):
        state = build_network(spec, deep_supervision=True).state_dict()
    roles = {name: spec.role(name) for name in state}
    named = {(group.name, stage) for group in spec.parts for stage in range(group.stages)}
    assert {role.part for role in roles.values() if not role.head} == named
    assert {name for name, role in roles.items() if role.head} == {"heads.0.weight", "heads.0.bias"}
    seen = [name for name in state if spec.sees_image(name)]
    assert len(seen) == (2 if arch == "unet" else 1)
    assert spec.first_convolution in seen
    assert {state[name].shape[1] for name in seen} == {spec.in_channels}
    with pytest.raises(ValueError, match="stem"):
        spec.role("stem.weight")


def test_the_estimate_of_memory_grows_with_patch_and_encoder() -> None:
    spec = make_spec(patch=(64, 64))
    one = spec.feature_map_elements((64, 64))
    assert spec.feature_map_elements((128, 64)) == 2 * one
    assert make_spec("efficientnet_b4", patch=(64, 64)).feature_map_elements((64, 64)) > one


@pytest.mark.parametrize("arch", ["unet", "omnia"])
def test_the_estimate_counts_the_outputs_of_all_convolutions(arch: str) -> None:
    spec, counted = make_spec(arch=arch, patch=(64, 32)), [0]

    def count(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape[-1] > 1:  # squeezed features are a single voxel
            counted[0] += output.numel()

    network = drawn(spec).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    network(torch.zeros(1, 1, 64, 32))
    below = (spec.row.features[-1], *reversed(spec.features[1:]))
    size, voxels = 64 * 32, []
    for stride in spec.strides[:-1]:
        size //= math.prod(stride)
        voxels.append(size)
    repeated = sum(b * v for b, v in zip(below, reversed(voxels), strict=True))
    assert spec.feature_map_elements((64, 32)) == counted[0] + repeated


def encoder_task(folder: Path, spec: EncoderUNetSpec | None = None, **options: object) -> FoldTask:
    folder.mkdir(exist_ok=True)
    task = make_task(folder, **{"epochs": 2, "iterations": 2, "ema": 0.999, **options})
    topology = pool_topology((1.0, 1.0), PATCH)
    network = spec or preset_row("tiny", "omnia", "efficientnet_lite0").network(
        topology, in_channels=1, out_channels=task.labels.out_channels
    )
    return replace(task, configuration=task.configuration.replace(network=network))


def test_a_training_that_was_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Statistics go on, and random depth draws the same, although another program drew between."""
    whole = train_fold(encoder_task(tmp_path / "whole"))
    broken = encoder_task(tmp_path / "broken")
    assert broken.configuration.network.drop_path == 0.4  # type: ignore[union-attr]
    for number in range(4):
        torch.manual_seed(number)
        again = train_fold(broken, stop=stop_after(1))
    assert again.finished
    assert timeless(again.logs) == timeless(whole.logs)
    for name, value in whole.weights.items():
        assert torch.equal(again.weights[name], value), name
        assert again.weights[name].dtype == value.dtype, name
    assert {int(n) for name, n in whole.weights.items() if name.endswith("_tracked")} == {4}


def test_random_depth_depends_on_the_seed_and_the_step(tmp_path: Path) -> None:
    def trained(name: str, drop_path: float) -> dict[str, Tensor]:
        task = encoder_task(tmp_path / name)
        spec = task.configuration.network.replace(drop_path=drop_path)  # type: ignore[call-arg]
        return train_fold(encoder_task(tmp_path / f"{name}_", spec)).weights  # type: ignore[arg-type]

    one, other = trained("one", 0.4), trained("other", 0.0)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_what_is_frozen_keeps_its_statistics(tmp_path: Path) -> None:
    start = drawn(encoder_task(tmp_path).configuration.network).state_dict()  # type: ignore[arg-type]
    task = encoder_task(tmp_path, pretrained="Source", freeze="encoder:3,decoder.4")
    spec = task.configuration.network
    done = train_fold(replace(task, start=start), stop=stop_after(3))
    saved = load_training_state(task.files.resume)["network"]
    for weights in (done.weights, saved):
        for name, value in weights.items():
            part = spec.role(name).part
            frozen = part == ("decoder", 4) or part in {("encoder", stage) for stage in range(3)}
            assert torch.equal(value, start[name]) == frozen, name


def test_what_thaws_learns_statistics_again(tmp_path: Path) -> None:
    options = {"pretrained": "Source", "freeze": "encoder", "unfreeze": "encoder.4@1"}
    task = encoder_task(tmp_path, epochs=2, **options)
    start = drawn(task.configuration.network).state_dict()  # type: ignore[arg-type]
    weights = train_fold(replace(task, start=start)).weights
    assert int(weights["encoder.bn1.num_batches_tracked"]) == 0
    assert int(weights["encoder.blocks.6.0.bn1.num_batches_tracked"]) == 2
    assert int(weights["front.norm.num_batches_tracked"]) == 4


def test_a_file_gives_back_the_network_with_its_statistics(tmp_path: Path) -> None:
    spec = make_spec("resnet18")
    network = drawn(spec)
    network(torch.randn(2, 1, 32, 32))
    path = tmp_path / "weights.safetensors"
    save_weights(path, network.state_dict(), spec=spec)
    loaded = load_network(path)
    for name, value in network.state_dict().items():
        found = loaded.state_dict()[name]
        assert torch.equal(found, value), name
        assert found.dtype == value.dtype, name
    image = torch.randn(1, 1, 32, 32)
    assert torch.equal(loaded.eval()(image), network.eval()(image))


def side(spec: EncoderUNetSpec | UNetSpec, labels: Labels = LABELS) -> Side:
    return Side(spec=spec, channels=("CT",), labels=labels)


def with_statistics(spec: EncoderUNetSpec) -> dict[str, Tensor]:
    network = drawn(spec, seed=1)
    for seed in range(3):
        noise = torch.Generator().manual_seed(seed)
        network(torch.randn(2, 1, 32, 32, generator=noise) + 1)
    return network.state_dict()


@pytest.mark.parametrize("arch", ["unet", "dxnet"])
@pytest.mark.parametrize("encoder", ["efficientnet_lite0", "resnet18"])
def test_centre_inflated_from_2d_it_is_the_2d_network_on_each_slice(
    arch: str, encoder: str
) -> None:
    flat = make_spec(encoder, arch=arch)
    deep = flat.replace(strides=tuple((1, *stride) for stride in flat.strides), thin_levels=1)
    state = with_statistics(flat)
    fresh = drawn(deep).state_dict()
    weights, table = transfer_weights(state, side(flat), fresh, side(deep), inflate="center")
    assert {entry.action for entry in table.weights} == {"loaded", "adapted"}
    assert table.share(deep) == 1.0
    two, three = drawn(flat).eval(), drawn(deep).eval()
    two.load_state_dict(state)
    three.load_state_dict(weights)
    volume = torch.randn(1, 1, 3, 32, 32)
    if encoder == "resnet18":  # the maximum over neighbours after its stem is taken in plane
        assert three.encoder.maxpool.kernel_size == (1, 3, 3)  # type: ignore[union-attr]
    with torch.no_grad():
        slices = torch.stack([two(volume[:, :, z]) for z in range(3)], dim=2)
        found = three(volume)
    assert torch.allclose(found, slices, atol=1e-4)


def test_another_decoder_takes_what_fits_and_skips_stay_skips() -> None:
    """The features that come across are concatenated first, so that they keep their places."""
    narrow = make_spec("efficientnet_lite0")
    wide = make_spec("efficientnet_lite0", preset="default")
    state, fresh = drawn(narrow, 1).state_dict(), drawn(wide).state_dict()
    weights, _ = transfer_weights(state, side(narrow), fresh, side(wide))
    name = "decoder.0.0.conv.weight"
    before, now = state[name], weights[name]
    assert (before.shape[:2], now.shape[:2]) == ((4, 16 + 8), (16, 16 + 32))
    assert torch.equal(now[:4, :24], before)
    assert torch.equal(now[4:], fresh[name][4:])


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (make_spec("resnet18"), "encoder is resnet18, the target's efficientnet_b0"),
        (
            make_spec(arch="omnia"),
            "encoder is applied to the features of the front, the target's to the image",
        ),
        (
            UNetSpec(
                in_channels=1,
                out_channels=3,
                features=(4, 8),
                strides=((1, 1), (2, 2)),
                kernels=((3, 3), (3, 3)),
                blocks_encoder=(1, 1),
                blocks_decoder=(1,),
            ),
            "network is unet 4-8, the target's efficientnet_b0 [+] 4-8-16-32-64",
        ),
    ],
)
def test_weights_of_other_networks_do_not_correspond(
    source: EncoderUNetSpec | UNetSpec, told: str
) -> None:
    target = make_spec()
    fresh = drawn(target).state_dict()
    with pytest.raises(ModelError, match=told):
        transfer_weights({}, side(source), fresh, side(target))


def test_blending_mixes_statistics_and_keeps_counts() -> None:
    spec = make_spec("resnet18")
    state, tuned = with_statistics(spec), drawn(spec).state_dict()
    part = source_part(state, side(spec), tuned, side(spec))
    mixed = blend(part, tuned, 0.25)
    name = "encoder.bn1.running_var"
    assert torch.allclose(mixed[name], 0.75 * state[name] + 0.25 * tuned[name])
    count = "encoder.bn1.num_batches_tracked"
    assert mixed[count].dtype == torch.int64
    assert torch.equal(mixed[count], tuned[count])


def test_the_factor_of_the_encoder_is_of_all_its_weights_and_no_others() -> None:
    from autoliver.training.objectives.objective import Tally
    from autoliver.training.recipes import RECIPES
    from autoliver.training.state import EpochSums, new_state

    spec = make_spec("resnet18")
    options = TrainingOptions(pretrained="Source", encoder_factor=0.1)
    state = new_state(
        spec,
        RECIPES["short"],
        options=options,
        device=torch.device("cpu"),
        sums=EpochSums(tally=Tally.empty({})),
    )
    slow = next(g for g in state.optimizer.param_groups if g["factor"] == 0.1)
    encoder = state.network.get_submodule("encoder")
    assert {id(w) for w in slow["params"]} == {id(w) for w in encoder.parameters()}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (lambda: PlanOptions(arch="medformer", encoder="resnet18"), "--encoder resnet18 does not"),
        (lambda: PlanOptions(preset="XL", encoder="resnet18"), "--preset XL is not one of --enc"),
        (lambda: PlanOptions(preset="L", arch="omnia"), "--preset L is not one of --arch omnia"),
        (lambda: PlanOptions(z_strides="all"), "--z-strides all is for networks with a 3D encoder"),
    ],
)
def test_options_of_plan_that_do_not_go_together_are_refused(
    options: Callable[[], PlanOptions], told: str
) -> None:
    with pytest.raises(OptionError, match=told):
        options()
