"""2D weights in 3D networks and back, against the 2D networks themselves."""

import numpy as np
import pytest
import torch
from small_trainings import LABELS as TRAINED
from small_trainings import make_case, make_task
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from autoliver.datasets.cases import Labels
from autoliver.networks.build import build_network
from autoliver.networks.spec import MedFormerSpec, NetworkSpec, ResidualUNetSpec, UNetSpec
from autoliver.planning.presets import preset_row
from autoliver.training.loop import train_fold
from autoliver.transfer.adapt import Side, transfer_weights
from autoliver.transfer.inflate import default_inflation, flatten_kernel, inflate_kernel

torch.set_num_threads(1)

LITS = Labels(values={"background": (0,), "liver": (1,), "tumor": (2,)})
PLANE = ((1, 1), (2, 2), (2, 2))
STRIDES = {"slices": (1, 1, 1), "isotropic": (1, 2, 2), "thick": (1, 1, 2)}  # along the depth
DEPTHS = {"slices": (3, 3, 3), "isotropic": (3, 3, 3), "thick": (1, 3, 3)}


def unet(kind="", network=UNetSpec, **changes):
    """A 2D network; a 3D one with strides and depths of `kind` along the depth."""

    def deep(values, plane):
        return tuple((d, *p) for d, p in zip(values, plane, strict=True)) if kind else plane

    return network(
        **{
            "in_channels": 1,
            "out_channels": 3,
            "features": (4, 6, 8),
            "strides": deep(STRIDES.get(kind, ()), PLANE),
            "kernels": deep(DEPTHS.get(kind, ()), ((3, 3),) * 3),
            "blocks_encoder": (2, 2, 2),
            "blocks_decoder": (2, 1),
        }
        | changes
    )


def medformer(kind=""):
    plane = ((1, 1), *((2, 2),) * 3)
    depth = {"isotropic": (1, 2, 2, 2), "slices": (1, 1, 1, 1)}.get(kind)
    return MedFormerSpec(
        in_channels=1,
        out_channels=3,
        features=(4, 4, 8, 8),
        strides=tuple((d, *p) for d, p in zip(depth, plane, strict=True)) if depth else plane,
        kernels=((3,) * (3 if depth else 2),) * 4,
        blocks_encoder=(1, 1, 1, 1),
        blocks_decoder=(1, 1, 1),
        heads=(1, 1, 2, 2),
        tokens=4,
        fusion_features=8,
        fusion_heads=2,
        fusion_layers=1,
    )


def state(network: NetworkSpec, seed: int) -> dict[str, Tensor]:
    made = build_network(network, deep_supervision=True, generator=Generator().manual_seed(seed))
    generator = Generator().manual_seed(seed + 100)
    return {
        k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in made.state_dict().items()
    }


def carried(source, target, **how):
    sides = [Side(spec=spec, channels=("CT",), labels=LITS) for spec in (source, target)]
    weights, drawn = state(source, 0), state(target, 1)
    new, table = transfer_weights(weights, sides[0], drawn, sides[1], **how)
    assert {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in drawn.items()}
    return weights, new, {entry.name: entry for entry in table.weights}, table


class SliceNorm(nn.Module):
    """The instance norm of each slice of a volume by itself, as in a 2D network."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        slices = x.transpose(1, 2).flatten(0, 1)
        normed = F.instance_norm(slices, weight=self.weight, bias=self.bias, eps=self.eps)
        return normed.unflatten(0, (len(x), -1)).transpose(1, 2)


def logits(spec, weights, image, *, norm=None):
    """What a network computes, with all its norms exchanged for others."""
    made = build_network(spec, deep_supervision=False)
    made.load_state_dict(weights)
    for module in [*made.modules()] if norm else []:
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d):
                setattr(module, name, norm(child))
    with torch.no_grad():
        return made.eval()(image)


def volume(depth=8, *, size=16, constant=False):
    shape = (1, 1, 1 if constant else depth, size, size)
    image = torch.randn(shape, generator=Generator().manual_seed(7))
    return image.expand(-1, -1, depth, -1, -1)


def slice_by_slice(spec, weights, image):
    return torch.stack([logits(spec, weights, plane) for plane in image.unbind(2)], 2)


@pytest.mark.parametrize("network", [UNetSpec, ResidualUNetSpec])
def test_by_center_every_slice_of_any_volume_is_that_of_the_2d_network(network):
    flat, deep = unet(network=network), unet("slices", network=network)
    weights, new, entries, table = carried(flat, deep, inflate="center")
    image = volume()
    expected = slice_by_slice(flat, weights, image)
    torch.testing.assert_close(
        logits(deep, new, image, norm=SliceNorm), expected, atol=1e-4, rtol=1e-4
    )
    assert table.share(deep) == 1.0
    assert entries[deep.first_convolution].how == "kernel 3x3 -> 3x3x3 by center"
    # A volume's own norms agree where its slices are alike, up to the very borders.
    alike = volume(constant=True)
    torch.testing.assert_close(
        logits(deep, new, alike), slice_by_slice(flat, weights, alike), atol=1e-4, rtol=1e-4
    )


# Slices that the padding reaches: a kernel of 3 reaches one slice of its own level further, and
# levels of half the slices up to three more, as they begin at a multiple of 2 or 4.
REACH = {
    (UNetSpec, "slices"): 6 + 3,
    (UNetSpec, "isotropic"): (2 + 1 + 2 + 2 + 4) + (2 + 2) + 3,
    (UNetSpec, "thick"): (0 + 2 + 1 + 2) + (1 + 0) + 1,
    (ResidualUNetSpec, "slices"): 13 + 3,
    (ResidualUNetSpec, "isotropic"): (5 + 1 + 6 + 2 + 12) + (2 + 2) + 3,
    (ResidualUNetSpec, "thick"): (0 + 4 + 1 + 6) + (1 + 0) + 1,
}


SLICED = ("CT, slice -1", "CT", "CT, slice +1", "PET, slice -1", "PET", "PET, slice +1")


@pytest.mark.parametrize("channels", [("CT", "PET"), ("PET", "CT"), ("MR a", "MR b")])
def test_neighbouring_slices_become_the_planes_of_the_first_kernel(channels):
    """The first 3D convolution of a volume is the 2D one of each slice and its neighbours."""
    flat, deep = unet(in_channels=6), unet("slices", in_channels=2)
    weights = state(flat, 0)
    sides = [Side(spec=s, channels=c, labels=LITS) for s, c in ((flat, SLICED), (deep, channels))]
    new, table = transfer_weights(weights, sides[0], state(deep, 1), sides[1], inflate="mean")
    name = flat.first_convolution
    image = torch.randn(1, 2, 7, 16, 16, generator=Generator().manual_seed(2))
    found = F.conv3d(image, new[name], padding=(0, 1, 1))
    order = [1, 0] if channels[0] == "PET" else [0, 1]
    for z in range(1, 6):
        near = image[:, order, z - 1 : z + 2].flatten(1, 2)
        torch.testing.assert_close(found[:, :, z - 1], F.conv2d(near, weights[name], padding=1))
    assert "as planes" in {each.name: each for each in table.weights}[name].how


@pytest.mark.parametrize(("kind", "slices", "depth"), [("thick", 3, 1), ("slices", 5, 3)])
def test_more_slices_than_planes_are_summed(kind, slices, depth):
    """Where slices are alike, the first convolution is the 2D one."""
    half = slices // 2
    names = [f"CT, slice {i:+}" if i else "CT" for i in range(-half, half + 1)]
    flat, deep = unet(in_channels=slices), unet(kind)
    weights, name = state(flat, 0), flat.first_convolution
    sides = [Side(spec=s, channels=c, labels=LITS) for s, c in ((flat, names), (deep, ("CT",)))]
    new, _ = transfer_weights(weights, sides[0], state(deep, 1), sides[1], inflate="mean")
    assert new[name].shape[1:3] == (1, depth)
    torch.testing.assert_close(new[name].sum(2), weights[name].sum(1, keepdim=True))


@pytest.mark.parametrize(("network", "kind"), REACH)
def test_by_mean_a_constant_volume_is_the_2d_network_inside_the_border(network, kind):
    flat, deep = unet(network=network), unet(kind, network=network)
    weights, new, _, _ = carried(flat, deep, inflate="mean")
    reach = REACH[network, kind]
    image = volume(80, size=8, constant=True)
    result = logits(deep, new, image, norm=nn.Identity)
    expected = logits(flat, weights, image[:, :, 0], norm=nn.Identity).unsqueeze(2)
    inside = result[:, :, reach:-reach]
    torch.testing.assert_close(inside, expected.expand_as(inside), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(result[:, :, 0], expected[:, :, 0], atol=1e-2)


def test_one_convolution_by_mean_differs_at_the_outer_slices_alone():
    weight = torch.randn(4, 3, 3, 3)
    image = torch.randn(1, 3, 1, 9, 9).expand(-1, -1, 6, -1, -1)
    result = F.conv3d(image, inflate_kernel(weight, 3, "mean"), padding=1)
    expected = F.conv2d(image[:, :, 0], weight, padding=1)
    for index, plane in enumerate(result.unbind(2)):
        share = 2 / 3 if index in (0, 5) else 1  # of the kernel's planes lie in the volume
        torch.testing.assert_close(plane, expected * share, atol=1e-4, rtol=1e-4)
    more = F.conv3d(image, inflate_kernel(weight, 3, "repeat"), padding=1)
    torch.testing.assert_close(more, 3 * result, atol=1e-4, rtol=1e-4)


def test_by_repeat_the_norms_take_the_larger_scale_back():
    flat, deep = unet(), unet("slices")
    means, repeats = (carried(flat, deep, inflate=way)[1] for way in ("mean", "repeat"))
    name = "encoder.1.0.conv.weight"
    torch.testing.assert_close(repeats[name], 3 * means[name])
    assert torch.equal(repeats["encoder.1.0.norm.weight"], means["encoder.1.0.norm.weight"])
    one, other = (logits(deep, weights, volume()) for weights in (means, repeats))
    torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)
    one, other = (logits(deep, w, volume(), norm=nn.Identity) for w in (means, repeats))
    assert not torch.allclose(one, other, atol=1e-1)


@pytest.mark.parametrize("way", ["mean", "center", "repeat"])
def test_a_kernel_of_one_voxel_or_plane_keeps_its_values(way):
    weight = torch.randn(4, 3, 3, 3)
    assert torch.equal(inflate_kernel(weight, 1, way)[:, :, 0], weight)


@pytest.mark.parametrize("way", ["mean", "center", "repeat"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_transposed_convolution_repeats_and_does_not_divide(way, depth):
    weight, plane = torch.randn(4, 3, 2, 2), torch.randn(1, 4, 5, 5)
    deep = inflate_kernel(weight, depth, way, transposed=True)
    result = F.conv_transpose3d(
        plane.unsqueeze(2).expand(-1, -1, 3, -1, -1), deep, stride=(depth, 2, 2)
    )
    expected = F.conv_transpose2d(plane, weight, stride=2).unsqueeze(2)
    assert result.shape[2] == 3 * depth
    torch.testing.assert_close(result, expected.expand_as(result))
    torch.testing.assert_close(flatten_kernel(deep, "sum", transposed=True), weight)


@pytest.mark.parametrize("way", ["mean", "center"])
@pytest.mark.parametrize("kind", ["slices", "isotropic", "thick"])
def test_3d_to_2d_by_sum_undoes_both(way, kind):
    flat, deep = unet(), unet(kind)
    weights, new, _, _ = carried(flat, deep, inflate=way)
    sides = [Side(spec=spec, channels=("CT",), labels=LITS) for spec in (deep, flat)]
    back, table = transfer_weights(new, sides[0], state(flat, 5), sides[1], inflate="mean")
    assert table.share(flat) == 1.0
    for name, weight in weights.items():
        torch.testing.assert_close(back[name], weight, atol=1e-6, rtol=1e-6)


def test_3d_to_2d_by_center_is_the_middle_plane():
    weight = torch.randn(4, 3, 5, 3, 3)
    assert torch.equal(flatten_kernel(weight, "center"), weight[:, :, 2])
    torch.testing.assert_close(flatten_kernel(weight, "sum"), weight.sum(2))
    _, _, entries, _ = carried(unet("slices"), unet(), inflate="center")
    assert entries["encoder.1.0.conv.weight"].how == "kernel 3x3x3 -> 3x3 by center"


def test_batch_norms_are_copied_with_their_statistics():
    """A weight without a kernel is the same in both dimensions, whatever it is of."""
    from autoliver.transfer.inflate import to_dimension

    for weight in (torch.randn(6), torch.tensor(5), torch.randn(6, 4), torch.randn(6, 4, 1)):
        same, how = to_dimension(weight, torch.zeros_like(weight), "mean")
        assert torch.equal(same, weight)
        assert how == ""


def test_levels_of_another_resolution_in_plane_are_reset_and_listed():
    """The 3D network halves the depth alone first, so that its level 1 is the 2D level 0."""
    flat = unet()
    deep = unet("slices", strides=((1, 1, 1), (2, 1, 1), (1, 2, 2)))
    weights, new, entries, _ = carried(flat, deep)
    reset = {name.rpartition(".")[0] for name, e in entries.items() if e.action == "reset"}
    assert reset == {
        *(f"encoder.{level}.{block}.{part}" for level in (1, 2) for block in (0, 1)
          for part in ("conv", "norm")),
        *("up.0", "up.1", "decoder.1.0.conv", "decoder.1.0.norm", "heads.1"),
    }  # fmt: skip
    assert {e.how for e in entries.values() if e.action == "reset"} == {
        "the source has another resolution in plane there"
    }
    torch.testing.assert_close(
        new["encoder.0.1.conv.weight"], weights["encoder.0.1.conv.weight"].unsqueeze(2).expand(
            -1, -1, 3, -1, -1) / 3
    )  # fmt: skip


def test_kernels_features_and_depth_of_the_levels_may_differ_in_plane_as_well():
    deep = unet(
        "slices",
        features=(5, 6, 8),
        kernels=((1, 5, 5), (3, 3, 3), (3, 3, 3)),
    )
    weights, new, entries, _ = carried(unet(), deep)
    name = "encoder.0.0.conv.weight"
    assert entries[name].how == "kernel 1x3x3 -> 1x5x5; features 4x1 -> 5x1"
    assert torch.equal(new[name][:4, :, 0, 1:4, 1:4], weights[name])


@pytest.mark.parametrize("kind", ["slices", "isotropic"])
def test_medformer_on_slices_that_are_alike_is_the_2d_network_by_center(kind):
    """Every weight is carried; with strides along the depth, merged slices share their part."""
    flat, deep = medformer(), medformer(kind)
    weights, new, _, table = carried(flat, deep, inflate="center")
    assert table.share(deep) == 1.0
    image = volume(8, constant=True)
    expected = logits(flat, weights, image[:, :, 0]).unsqueeze(2)
    result = logits(deep, new, image)
    torch.testing.assert_close(result, expected.expand_as(result), atol=1e-4, rtol=1e-4)
    sides = [Side(spec=spec, channels=("CT",), labels=LITS) for spec in (deep, flat)]
    back, _ = transfer_weights(new, sides[0], state(flat, 5), sides[1])
    for name, weight in weights.items():
        torch.testing.assert_close(back[name], weight, atol=1e-6, rtol=1e-6)


def test_the_way_is_chosen_by_the_thickness_of_slices():
    assert default_inflation((1.0, 0.8, 0.8)) == "mean"
    assert default_inflation((7.7, 1.5, 1.5)) == "center"
    assert default_inflation((0.8, 0.8)) == "mean"


def encoder_unet(depth: int = 0) -> NetworkSpec:
    """A network of batch norms, with an encoder; in 3D its slices keep their number."""
    row = preset_row("tiny", "unet", "resnet18")
    topology = row.topology((1.0, 1.0), (32, 32))
    flat = row.network(topology, in_channels=1, out_channels=3)
    if not depth:
        return flat
    return flat.replace(strides=tuple((1, *plane) for plane in flat.strides))


def with_statistics(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with means and variances of norms as a training would leave them."""
    generator = Generator().manual_seed(3)
    return {
        name: torch.rand(value.shape, generator=generator) + 0.5
        if name.endswith("running_var")
        else value
        for name, value in weights.items()
    }


def test_by_center_a_network_of_batch_norms_is_the_2d_network_on_any_volume():
    """Of METHODS paper 2, (5) b: with norms that know no neighbours, nothing needs to be alike."""
    source, target = encoder_unet(), encoder_unet(depth=5)
    sides = [Side(spec=spec, channels=("CT",), labels=LITS) for spec in (source, target)]
    made = build_network(source, deep_supervision=False, generator=Generator().manual_seed(0))
    weights = with_statistics(made.state_dict())
    drawn = build_network(target, deep_supervision=False).state_dict()
    new, _ = transfer_weights(weights, sides[0], drawn, sides[1], inflate="center")
    image = volume(5, size=32)
    found, wanted = logits(target, new, image), slice_by_slice(source, weights, image)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_trained_2d_network_segments_in_3d_before_any_training(tmp_path):
    """Of METHODS paper 2, (5) f, on a volume whose slices are alike; by chance it does not."""
    result = train_fold(make_task(tmp_path, epochs=1, iterations=150, schedule="short"))
    flat = make_task(tmp_path).configuration.network
    deep = flat.replace(
        strides=tuple((1, *plane) for plane in flat.strides), kernels=((3, 3, 3),) * 2
    )
    case = make_case(7)
    plane = torch.from_numpy(case.image[:, 3, :16, :16])[None]
    truth = case.label[0, 3, :16, :16]
    sides = [Side(spec=spec, channels=("CT",), labels=TRAINED) for spec in (flat, deep)]
    drawn = build_network(
        deep, deep_supervision=True, generator=Generator().manual_seed(5)
    ).state_dict()
    new, _ = transfer_weights(result.weights, sides[0], drawn, sides[1], inflate="center")
    image = plane[:, :, None].expand(-1, -1, 6, -1, -1)
    in_plane = dice(logits(flat, result.weights, plane)[0].argmax(0), truth)
    in_depth = [dice(found, truth) for found in logits(deep, new, image)[0].argmax(0)]
    by_chance = [dice(found, truth) for found in logits(deep, drawn, image)[0].argmax(0)]
    assert in_plane > 0.8
    assert min(in_depth) >= 0.95 * in_plane
    assert max(by_chance) < 0.7 * in_plane


def dice(found: Tensor, truth: np.ndarray) -> float:
    a, b = found.numpy() > 0, truth > 0
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())
