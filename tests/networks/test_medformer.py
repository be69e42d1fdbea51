"""MedFormer: sizes as published, attention in float32, both dimensions, anisotropic strides."""

import pytest
import torch
import torch.nn.functional as F

from autoliver.errors import ModelError
from autoliver.networks.build import build_network
from autoliver.networks.medformer import SemanticMap, TwoWayAttention, doubled
from autoliver.networks.spec import MedFormerSpec
from autoliver.planning.presets import preset_row
from autoliver.planning.topology import pool_topology
from autoliver.training.objectives.segmentation import deep_supervision_weights


def make_spec(
    *, preset: str = "tiny", patch: tuple[int, ...] = (32, 32, 32), spacing: tuple[float, ...] = ()
) -> MedFormerSpec:
    topology = pool_topology(spacing or (1.0,) * len(patch), patch)
    row = preset_row(preset, "medformer")  # type: ignore[arg-type]
    spec = row.network(topology, in_channels=1, out_channels=3)
    assert isinstance(spec, MedFormerSpec)
    return spec


def parameters(spec: MedFormerSpec) -> int:
    with torch.device("meta"):
        network = build_network(spec, deep_supervision=True)
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("preset", "count", "millions"),
    [("default", 38_598_022, 38.6), ("tiny", 307_078, 0.307)],
)
def test_it_has_as_many_weights_as_published(preset: str, count: int, millions: float) -> None:
    found = parameters(make_spec(preset=preset, patch=(128, 128, 128)))
    assert found == count
    assert found / 1e6 == pytest.approx(millions, rel=2e-3)


def test_it_has_five_levels_however_deep_a_unet_would_be() -> None:
    small, usual, large = (make_spec(patch=(size,) * 3) for size in (8, 64, 160))
    assert [len(spec.features) for spec in (small, usual, large)] == [5, 5, 5]
    assert small.total_stride == (2, 2, 2)
    assert usual == large
    assert usual.total_stride == (16, 16, 16)


@pytest.mark.parametrize(
    ("patch", "spacing"),
    [
        ((32, 32, 32), (1.0, 1.0, 1.0)),
        ((8, 48, 32), (5.0, 0.8, 0.8)),  # strides and kernels of 1 along the first axis
        ((64, 32), (1.0, 1.0)),
    ],
)
def test_both_outputs_have_the_size_of_the_patch_and_every_weight_learns(
    patch: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    spec = make_spec(patch=patch, spacing=spacing)
    spec.check()
    generator = torch.Generator().manual_seed(0)
    network = build_network(spec, deep_supervision=True, generator=generator)
    image = torch.randn(2, 1, *patch, generator=generator)
    outputs = network(image)
    assert len(outputs) == spec.output_levels == 2
    assert {tuple(output.shape) for output in outputs} == {(2, 3, *patch)}
    weights = deep_supervision_weights(2, lowest_weight=spec.lowest_weight)
    assert weights == (0.5, 0.5)
    sum(output.square().mean() for output in outputs).backward()
    idle = [n for n, w in network.named_parameters() if w.grad is None or not w.grad.any()]
    assert idle == []
    network.deep_supervision = False
    assert torch.equal(network(image), outputs[0])


def test_weights_depend_on_the_generator_alone() -> None:
    def drawn(global_seed: int, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(global_seed)
        generator = torch.Generator().manual_seed(seed)
        network = build_network(make_spec(), deep_supervision=False, generator=generator)
        return network.state_dict()

    one, again, other = drawn(1, 0), drawn(2, 0), drawn(1, 1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["fusion.layers.0.mix.weight"], other["fusion.layers.0.mix.weight"])


def test_voxels_that_attend_to_one_token_take_its_value() -> None:
    torch.manual_seed(0)
    attention = TwoWayAttention(6, 6, kernel=(3, 3), heads=2, gives_map=True)
    x, token = torch.randn(2, 6, 5, 4), torch.randn(2, 6, 1)
    seen, _ = attention(x, token)
    value = attention.of_tokens(token)[:, 6:, :, None].expand(2, 6, 5, 4)
    assert torch.allclose(seen, attention.to_voxels(value), atol=1e-6)


def test_tokens_take_the_mean_of_voxels_that_they_ask_nothing_of() -> None:
    torch.manual_seed(0)
    attention = TwoWayAttention(6, 6, kernel=(3, 3), heads=2, gives_map=True)
    with torch.no_grad():
        attention.of_tokens.weight[:6] = 0.0
        attention.of_tokens.bias[:6] = 0.0
    x, tokens = torch.randn(2, 6, 5, 4), torch.randn(2, 6, 3)
    _, found = attention(x, tokens)
    mean = attention.of_voxels(x)[:, 6:].flatten(2).mean(-1, keepdim=True).expand(2, 6, 3)
    assert torch.allclose(found, attention.to_tokens(mean), atol=1e-6)


def test_attention_is_computed_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    attention = TwoWayAttention(8, 8, kernel=(3, 3), heads=2, gives_map=True)
    tokens_of = SemanticMap(8, 3, kernel=(3, 3))
    kinds = []
    for module in (attention.to_voxels[0], attention.to_tokens):
        module.register_forward_pre_hook(lambda _, inputs: kinds.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.randn(2, 8, 6, 6)
        assert attention.of_voxels(x).dtype == torch.bfloat16
        tokens = tokens_of(x)
        assert tokens.dtype == torch.float32
        attention(x, tokens)
    assert kinds == [torch.float32, torch.float32]


@pytest.mark.parametrize("patch", [(32, 32, 32), (32, 32)])
def test_a_step_under_autocast_is_close_to_one_in_float32(patch: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    network = build_network(make_spec(patch=patch), deep_supervision=True, generator=generator)
    image = torch.randn(2, 1, *patch, generator=generator)
    exact = network(image)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network(image)
    sum(output.float().square().mean() for output in outputs).backward()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in network.parameters())
    # Norms over the few voxels of the deepest level enlarge the rounding of bfloat16.
    assert F.cosine_similarity(exact.flatten(), outputs[0].float().flatten(), 0) > 0.8


@pytest.mark.parametrize(
    ("stride", "mode"), [((2, 2), "bilinear"), ((1, 2, 2), "trilinear"), ((2, 2, 2), "trilinear")]
)
def test_upsampling_is_linear_interpolation(stride: tuple[int, ...], mode: str) -> None:
    x = torch.randn(2, 3, *(4, 5, 6)[: len(stride)], dtype=torch.float64)
    expected = F.interpolate(x, scale_factor=stride, mode=mode, align_corners=False)
    assert torch.allclose(doubled(x, stride), expected)


def test_weights_and_maps_of_feature_map_elements_grow_with_the_patch() -> None:
    spec = make_spec(patch=(64, 64, 64))
    one = spec.feature_map_elements((64, 64, 64))
    assert spec.feature_map_elements((128, 64, 64)) == 2 * one
    wide = make_spec(preset="default", patch=(64, 64, 64))
    assert wide.feature_map_elements((64, 64, 64)) > 4 * one


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"heads": (1, 1, 3, 4, 4)}, "heads: found 3, expected a divisor of 16"),
        ({"tokens": 0}, "tokens: found 0, expected 1 or more"),
        ({"blocks_encoder": (1, 1)}, "blocks_encoder: found 2 entries, expected 5"),
        ({"strides": ((2,) * 3,) * 5}, r"strides\[0\]: found \[2, 2, 2\], expected ones"),
        ({"kernels": ((2,) * 3,) * 5}, r"kernels\[0\]: found \[2, 2, 2\], expected odd sizes"),
        ({"features": (8, 8, 16)}, "features: found 3 levels, expected at least 4"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        build_network(make_spec().replace(**changes), deep_supervision=False)


def test_every_weight_has_a_role_and_parts_are_complete() -> None:
    spec = make_spec()
    with torch.device("meta"):
        names = build_network(spec, deep_supervision=True).state_dict()
    roles = {name: spec.role(name) for name in names}
    named = {(group.name, stage) for group in spec.parts for stage in range(group.stages)}
    assert {role.part for role in roles.values() if not role.head} == named
    assert {name for name, role in roles.items() if role.head} == {
        f"heads.{level}.{kind}" for level in (0, 1) for kind in ("weight", "bias")
    }
    assert names[spec.first_convolution].shape[1] == spec.in_channels
    with pytest.raises(ValueError, match="stem"):
        spec.role("stem.weight")
