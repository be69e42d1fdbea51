"""DS-Net: the published chain of depths, samples that do not mix, and patches of any depth."""

import pytest
import torch
from torch import Tensor, nn

from autoliver.errors import ModelError, OptionError
from autoliver.networks.build import build_network
from autoliver.networks.ds_net_spec import MOST_DEPTH, strides_of_depth
from autoliver.networks.spec import DSNetSpec, EncoderUNetSpec
from autoliver.planning.plan import PlanOptions
from autoliver.planning.presets import preset_row
from autoliver.training.objectives.objective import Tally
from autoliver.training.options import TrainingOptions
from autoliver.training.recipes import RECIPES
from autoliver.training.state import EpochSums, new_state

torch.set_num_threads(1)


def make_spec(
    depth: int = 8, *, plane: tuple[int, int] = (32, 16), in_channels: int = 1
) -> DSNetSpec:
    row = preset_row("tiny", "dsnet", "resnet18")
    topology = row.topology((1.0, 1.0, 1.0), (depth, *plane))
    spec = row.network(topology, in_channels=in_channels, out_channels=3)
    assert isinstance(spec, DSNetSpec)
    return spec


def drawn(spec: DSNetSpec) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    return build_network(spec, deep_supervision=False, generator=generator)


def test_128_slices_go_as_published() -> None:
    spec = make_spec(128, in_channels=4)
    assert spec.depth_strides == (3, 2, 2, 4)
    assert spec.depths == (128, 43, 22, 11, 3)
    ups = [spec.up(level)[:2] for level in (3, 2, 1, 0)]
    assert ups == [(5, 3), (2, 2), (3, 2), (4, 3)]
    seen: list[tuple[int, ...]] = []
    network = drawn(spec).eval()

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend((tuple(inputs[0].shape), tuple(output.shape)))

    network.plane.register_forward_hook(note)  # type: ignore[operator, union-attr]
    for up in network.up:  # type: ignore[union-attr]
        up.register_forward_hook(note)
    with torch.no_grad():
        logits = network(torch.zeros(1, 4, 128, 32, 16))
    assert logits.shape == (1, 3, 128, 32, 16)
    assert seen[:2] == [(4, 3, 32, 16), (4, 3, 32, 16)]
    assert [shape[1:3] for shape in seen[3::2]] == [(96, 11), (48, 22), (32, 43), (16, 128)]


@pytest.mark.parametrize("depth", [3, 5, 6, 7, 16, 20, 33, 64, 100, 128, 200, MOST_DEPTH])
def test_any_depth_ends_in_three_slices_and_comes_back(depth: int) -> None:
    spec = make_spec(depth)
    assert (spec.depth, spec.depths[-1]) == (depth, 3)
    for level in range(4):
        kernel, stride, padding = spec.up(level)
        small, large = spec.depths[level + 1], spec.depths[level]
        assert kernel >= stride, "some slices get nothing"
        assert (small - 1) * stride - 2 * padding + kernel == large


@pytest.mark.parametrize(("asked", "taken"), [(1, 3), (2, 3), (4, 3), (400, MOST_DEPTH)])
def test_depths_that_it_cannot_take_are_brought_to_the_next(asked: int, taken: int) -> None:
    assert make_spec(asked).depth == taken


def test_four_slices_are_refused() -> None:
    with pytest.raises(ModelError, match="depth: found 4 slices, expected 3 or 5 to 324"):
        strides_of_depth(4)


def test_samples_of_a_batch_do_not_mix() -> None:
    network = drawn(make_spec()).eval()
    x = torch.randn(3, 1, 8, 32, 16)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(one) for one in x.split(1)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_a_longer_patch_is_cut_into_slabs() -> None:
    spec = make_spec()
    network = drawn(spec).eval()
    x = torch.randn(2, 1, 16, 32, 16)
    with torch.no_grad():
        found, parts = network(x), torch.cat([network(x[:, :, :8]), network(x[:, :, 8:])], 2)
    assert torch.allclose(found, parts, atol=1e-5)
    assert spec.total_stride[0] == 8
    assert spec.feature_map_elements((16, 32, 16)) == 2 * spec.feature_map_elements((8, 32, 16))


def test_every_weight_learns_has_a_role_and_parts_are_complete() -> None:
    spec = make_spec()
    plane = spec.plane.replace(drop_path=0.0)
    network = build_network(spec.replace(plane=plane), deep_supervision=True)
    (logits,) = network(torch.randn(2, 1, 8, 32, 16))
    logits.square().mean().backward()
    # What comes before an instance norm of one value per channel needs no gradient of its mean.
    without = [n for n, w in network.named_parameters() if w.grad is None]
    assert without == []
    state = network.state_dict()
    roles = {name: spec.role(name) for name in state}
    named = {(group.name, stage) for group in spec.parts for stage in range(group.stages)}
    assert {role.part for role in roles.values() if not role.head} == named
    assert {name for name, role in roles.items() if role.head} == {"heads.0.weight", "heads.0.bias"}
    assert spec.role("plane.heads.0.weight").part == ("decoder", 0)
    assert all(spec.strides_to(name) for name in state)
    with pytest.raises(ValueError, match="stem"):
        spec.role("stem.weight")


def test_it_trains_in_channels_last_with_kernels_of_2d_and_3d() -> None:
    state = new_state(
        make_spec(),
        RECIPES["short"],
        options=TrainingOptions(),
        device=torch.device("cpu"),
        sums=EpochSums(tally=Tally.empty({})),
    )
    flat, deep = (
        state.network.get_parameter(name)
        for name in ("plane.encoder.conv1.weight", "stack.1.conv.weight")
    )
    assert flat.is_contiguous(memory_format=torch.channels_last)
    assert deep.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"depth_strides": (2, 2, 2)}, r"depth_strides: found \[2, 2, 2\], expected four"),
        ({"depth_strides": (2, 2, 2, 2)}, "which lead to 1 slice, expected 3 slices"),
        ({"out_channels": 0}, "found 1 and 0, expected 1 or more"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        build_network(make_spec().replace(**changes), deep_supervision=False)


def test_a_2d_network_of_other_channels_is_refused() -> None:
    spec = make_spec()
    with pytest.raises(ModelError, match="plane: found 2D, 1 and 3 channels, expected 2D, 3 and 3"):
        spec.replace(plane=spec.plane.replace(in_channels=1)).check()


def test_its_2d_configuration_is_the_2d_network_alone() -> None:
    row = preset_row("tiny", "dsnet", "resnet18")
    topology = row.topology((1.0, 1.0), (32, 32))
    spec = row.network(topology, in_channels=1, out_channels=3)
    assert isinstance(spec, EncoderUNetSpec)
    assert (spec.feed, spec.up, spec.activation) == ("image", "transposed", "silu")
    assert "network is resnet18" in make_spec().unlike(spec)
    assert make_spec(16).unlike(make_spec(8)) == ""


def test_it_has_no_strides_of_a_3d_encoder() -> None:
    with pytest.raises(OptionError, match="with a 3D encoder; that of dsnet is 2D"):
        PlanOptions(arch="dsnet", z_strides="all")
