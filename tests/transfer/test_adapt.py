import pytest
import torch
from torch import Generator, nn
from torch.nn import functional as F

from autoliver.datasets.cases import Labels
from autoliver.errors import ModelError
from autoliver.networks.build import build_network
from autoliver.networks.spec import ResidualUNetSpec, UNetSpec
from autoliver.transfer.adapt import (
    Side,
    adapt_channels,
    adapt_features,
    adapt_kernel,
    transfer_weights,
)

torch.set_num_threads(1)

LITS = Labels(values={"background": (0,), "liver": (1,), "tumor": (2,)})
CHAOS = Labels(
    values={"background": (0,), "Liver": (1,), "right kidney": (2,), "left kidney": (3,)}
)


def spec(axes=3, network=UNetSpec, **changes):
    return network(
        **{
            "in_channels": 1,
            "out_channels": 3,
            "features": (4, 8, 16),
            "strides": ((1,) * axes, (2,) * axes, (2,) * axes),
            "kernels": ((3,) * axes,) * 3,
            "blocks_encoder": (2, 2, 2),
            "blocks_decoder": (2, 2),
        }
        | changes
    )


def side(network=None, channels=("CT",), labels=LITS, *, sees=False):
    return Side(spec=network or spec(), channels=channels, labels=labels, sees_labels=sees)


def state(network, seed):
    made = build_network(network, deep_supervision=True, generator=Generator().manual_seed(seed))
    # Biases and scales as after a training, not all equal.
    generator = Generator().manual_seed(seed + 100)
    return {
        k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in made.state_dict().items()
    }


def run(source, target, *, heads="map"):
    weights, drawn = state(source.spec, 0), state(target.spec, 1)
    new, table = transfer_weights(weights, source, drawn, target, heads=heads)
    assert {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in drawn.items()}
    assert [w.name for w in table.weights] == list(drawn)
    return weights, drawn, new, table


def network_with(network, weights):
    made = build_network(network, deep_supervision=False)
    made.load_state_dict(weights)
    return made.eval()


def test_equal_sides_give_the_source_itself():
    weights, _, new, table = run(side(), side())
    assert all(torch.equal(new[name], weights[name]) for name in weights)
    assert {w.action for w in table.weights} == {"loaded"}
    assert table.share(spec()) == 1.0
    assert table.ignored == ()
    assert table.labels == {"liver": "liver", "tumor": "tumor"}


def test_ct_weights_meet_mr_as_they_are_and_the_source_stays_untouched():
    weights, _, new, _ = run(side(), side(channels=("T2",)))
    assert all(torch.equal(new[name], weights[name]) for name in weights)
    new["heads.0.bias"].fill_(9)
    assert not (weights["heads.0.bias"] == 9).any()


def test_heads_follow_the_names_of_labels():
    target = side(spec(out_channels=4), labels=CHAOS)
    weights, drawn, new, table = run(side(), target)
    for part in ("weight", "bias"):
        name = f"heads.0.{part}"
        assert torch.equal(new[name][:2], weights[name][:2])
        assert torch.equal(new[name][2:], drawn[name][2:])
    assert table.labels == {"Liver": "liver", "right kidney": "", "left kidney": ""}
    assert table.share(target.spec) == 1.0
    body = {w.action for w in table.weights if not target.spec.role(w.name).head}
    assert body == {"loaded"}


def test_heads_can_be_drawn_anew():
    _, drawn, new, table = run(side(), side(), heads="reset")
    assert torch.equal(new["heads.1.weight"], drawn["heads.1.weight"])
    assert table.labels == {"liver": "", "tumor": ""}
    nothing = side(labels=Labels(values={"background": (0,), "edema": (1,), "core": (2,)}))
    with pytest.raises(ModelError, match=r"No label of the target .edema, core.") as caught:
        run(side(), nothing)
    assert "--reset-heads" in caught.value.hint
    run(side(), nothing, heads="reset")


@pytest.mark.parametrize("forward", [True, False])
def test_one_label_as_class_and_as_region_is_the_same_prediction(forward):
    classes = side(spec(out_channels=2), labels=Labels(values={"background": (0,), "liver": (1,)}))
    regions = side(
        spec(out_channels=1),
        labels=Labels(values={"background": (0,), "liver": (1, 2)}, regions_class_order=(1,)),
    )
    source, target = (classes, regions) if forward else (regions, classes)
    weights, _, new, _ = run(source, target)
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        one = network_with(source.spec, weights)(image)
        other = network_with(target.spec, new)(image)
    softmax, sigmoid = (one, other) if forward else (other, one)
    torch.testing.assert_close(softmax.softmax(1)[:, 1], sigmoid.sigmoid()[:, 0])


@pytest.mark.parametrize("network", [UNetSpec, ResidualUNetSpec])
def test_an_image_in_every_channel_is_the_image(network):
    one = spec(network=network)
    three = spec(network=network, in_channels=3)
    source, target = side(one), side(three, channels=("T1", "T2", "FLAIR"))
    weights, _, new, table = run(source, target)
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        expected = network_with(one, weights)(image)
        result = network_with(three, new)(image.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    changed = [w.name for w in table.weights if w.action == "adapted"]
    assert changed == [three.first_convolution]


def test_channels_go_by_name_then_by_number():
    weight = torch.randn(4, 3, 3, 3)
    same, how = adapt_channels(weight, ("T1", "T2", "PD"), ("T1", "T2", "PD"))
    assert torch.equal(same, weight)
    assert how == ""
    turned, _ = adapt_channels(weight, ("T1", "T2", "PD"), ("pd", "T1"))
    assert torch.equal(turned, weight[:, [2, 0]])
    more, _ = adapt_channels(weight, ("T1", "T2", "PD"), ("T1", "T2", "PD", "CE"))
    torch.testing.assert_close(more[:, 3], weight.mean(1) * 0.1)
    grey, _ = adapt_channels(weight, ("R", "G", "B"), ("CT",))
    image = torch.randn(1, 1, 9, 9)
    torch.testing.assert_close(
        F.conv2d(image, grey), F.conv2d(image.expand(-1, 3, -1, -1), weight), atol=1e-5, rtol=1e-5
    )
    five, _ = adapt_channels(weight, ("R", "G", "B"), tuple("vwxyz"))
    torch.testing.assert_close(five[:, 4], weight[:, 1] * 3 / 5)


def test_a_larger_kernel_gives_the_same_output():
    weight = torch.randn(5, 4, 1, 3, 3)
    image = torch.randn(1, 4, 6, 7, 8)
    larger = adapt_kernel(weight, (3, 3, 5))
    expected = F.conv3d(image, weight, padding=(0, 1, 1))
    result = F.conv3d(image, larger, padding=(1, 1, 2))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_a_smaller_kernel_is_the_mean_or_the_middle():
    weight = torch.randn(2, 2, 3, 5)
    assert torch.equal(adapt_kernel(weight, (1, 5)), weight.mean(2, keepdim=True))
    assert torch.equal(adapt_kernel(weight, (3, 3)), weight[..., 1:4])


def test_transposed_convolutions_repeat_and_do_not_divide():
    weight = torch.randn(4, 3, 1, 2, 2)
    up = nn.ConvTranspose3d(4, 3, (2, 2, 2), (2, 2, 2), bias=False)
    up.weight.data = adapt_kernel(weight, (2, 2, 2), repeat=True)
    image = torch.randn(1, 4, 1, 5, 5)
    flat = F.conv_transpose3d(image, weight, stride=(1, 2, 2))
    with torch.no_grad():
        torch.testing.assert_close(up(image), flat.expand(-1, -1, 2, -1, -1))
    back = adapt_kernel(up.weight.data, (1, 2, 2), repeat=True)
    torch.testing.assert_close(back, weight)


@pytest.mark.parametrize("deeper", [True, False])
def test_other_depths_share_the_levels_they_have(deeper):
    shallow = spec(
        features=(4, 8),
        strides=((1,) * 3, (2,) * 3),
        kernels=((3,) * 3,) * 2,
        blocks_encoder=(2, 2),
        blocks_decoder=(2,),
    )
    one, other = (shallow, spec()) if deeper else (spec(), shallow)
    weights, drawn, new, table = run(side(one), side(other))
    for name in new:
        expected = weights if name in weights else drawn
        assert torch.equal(new[name], expected[name])
    assert bool(table.ignored) != deeper
    assert ("reset" in {w.action for w in table.weights}) == deeper


def test_leading_features_are_kept_of_both_halves_of_a_decoder():
    narrow, wide = spec(features=(4, 8, 16)), spec(features=(6, 8, 20))
    weights, drawn, new, table = run(side(narrow), side(wide))
    name = "decoder.0.0.conv.weight"
    assert torch.equal(new[name][:4, :4], weights[name][:, :4])
    assert torch.equal(new[name][:4, 6:10], weights[name][:, 4:])
    assert torch.equal(new[name][:4, 4:6], drawn[name][:4, 4:6])
    assert torch.equal(new[name][4:], drawn[name][4:])
    entry = next(w for w in table.weights if w.name == name)
    assert entry.taken == 4 * 8 * 27
    assert entry.action == "adapted"
    assert 0.5 < table.share(wide) < 1
    vector, count = adapt_features(torch.ones(3), torch.zeros(5), halves=False)
    assert (vector.tolist(), count) == ([1, 1, 1, 0, 0], 3)


def test_what_does_not_correspond_is_refused():
    with pytest.raises(ModelError, match=r"plain \(default\), the target's residual") as caught:
        run(side(), side(spec(network=ResidualUNetSpec)))
    assert "SOURCE" not in caught.value.hint


def test_a_cascade_begins_with_the_image_channel_of_another_modality():
    """Channels of labels go by label, whatever the image is; those without a source are blind."""
    source = side(spec(in_channels=3), channels=("CT",), sees=True)  # liver, tumor
    heart = Labels(values={"background": (0,), "spleen": (1,), "Tumour": (2,), "liver": (3,)})
    target = side(spec(in_channels=4, out_channels=4), channels=("T2",), labels=heart, sees=True)
    weights, _, new, table = run(source, target)
    name = target.spec.first_convolution
    found, made = weights[name], new[name]
    assert torch.equal(made[:, 0], found[:, 0])
    assert not made[:, 1].any()
    assert torch.equal(made[:, 2], found[:, 2])
    assert torch.equal(made[:, 3], found[:, 1])
    how = next(weight.how for weight in table.weights if weight.name == name)
    assert how == "2 of 3 channels of labels by label"


def test_a_cascade_that_begins_with_a_plain_network_is_that_network():
    source, target = side(), side(spec(in_channels=3), channels=("T2",), sees=True)
    weights, _, new, _ = run(source, target)
    plain, cascade = (build_network(s.spec, deep_supervision=False) for s in (source, target))
    plain.load_state_dict(weights)
    cascade.load_state_dict(new)
    image = torch.randn(1, 3, 8, 8, 8, generator=Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(cascade(image)[0], plain(image[:, :1])[0])
