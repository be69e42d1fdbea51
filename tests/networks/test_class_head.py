"""Networks that tell the class of the lesion in a patch: their outputs, weights and memory."""

import msgspec
import pytest
import torch

from autoliver.errors import ModelError
from autoliver.networks.build import build_network
from autoliver.networks.class_head import joined
from autoliver.networks.contract import ClassHead
from autoliver.networks.encoder_unet_spec import EncoderUNetSpec
from autoliver.networks.spec import NetworkSpec, ResidualUNetSpec, UNetSpec, read_spec
from autoliver.planning.presets import MEDFORMER
from autoliver.planning.topology import pool_topology

ROWS = (2, 3, 4)
STAGES = {
    "in_channels": 2,
    "features": (4, 8, 8),
    "strides": ((1, 1), (2, 2), (2, 2)),
    "kernels": ((3, 3), (3, 3), (3, 3)),
    "blocks_encoder": (1, 1, 1),
    "blocks_decoder": (1, 1),
}
ENCODER = EncoderUNetSpec(
    in_channels=2,
    out_channels=5,
    encoder="resnet18",
    features=(4, 4, 4, 4, 4),
    strides=((1, 1), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2)),
)
SPECS: dict[str, NetworkSpec] = {
    "unet": UNetSpec(out_channels=5, **STAGES),
    "resenc": ResidualUNetSpec(out_channels=5, **STAGES),
    "encoder": ENCODER,
}


def built(name: str, *, alone: bool, rows: tuple[int, ...] = ROWS, every: bool = True):
    spec = SPECS[name].replace(class_head=ClassHead(rows=rows, alone=alone))
    generator = torch.Generator().manual_seed(1)
    return spec, build_network(spec, deep_supervision=every, generator=generator)


def image() -> torch.Tensor:
    return torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", SPECS)
def test_training_gets_every_segmentation_and_the_classes_last(name):
    spec, network = built(name, alone=False)
    *maps, classes = network(image())
    assert len(maps) == spec.output_levels
    assert {each.shape[1] for each in maps} == {3}  # background, liver, lesion
    assert classes.shape == (3, 3)


@pytest.mark.parametrize("name", SPECS)
def test_a_classifier_has_an_encoder_and_no_decoder(name):
    spec, network = built(name, alone=True)
    (classes,) = network(image())
    assert classes.shape == (3, 3)
    assert spec.output_levels == 0
    assert not [n for n, _ in network.named_parameters() if n.startswith(("up", "decoder", "head"))]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("rows", [(2, 3, 4), (1, 3, 4), (1, 4)])
def test_in_prediction_the_classes_share_the_lesions_probability(name, rows):
    _, network = built(name, alone=False, rows=rows)
    network.eval()
    with torch.no_grad():
        maps, *_, classes = network(image())
        network.deep_supervision = False
        found = network(image()).softmax(1)
    assert found.shape[1] == 5
    segmented, told = maps.softmax(1), classes.softmax(1)
    lesion = segmented[:, rows[0]]
    for number, row in enumerate(rows):
        expected = lesion * told[:, number, None, None]
        torch.testing.assert_close(found[:, row], expected, atol=1e-5, rtol=1e-4)
    others = [row for row in range(5) if row not in rows]
    kept = [row for row in range(segmented.shape[1]) if row != rows[0]]
    torch.testing.assert_close(found[:, others], segmented[:, kept], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_a_classifier_says_the_same_at_every_position(name):
    _, network = built(name, alone=True)
    network.eval()
    with torch.no_grad():
        (classes,) = network(image())
        network.deep_supervision = False
        found = network(image()).softmax(1)
    assert found.shape == (3, 5, 32, 32)
    assert float(found[:, :2].max()) == 0.0
    expected = classes.softmax(1)[:, :, None, None].expand(-1, -1, 32, 32)
    torch.testing.assert_close(found[:, 2:], expected)


def test_joined_by_hand():
    logits = torch.tensor([0.0, 1.0, 2.0]).reshape(1, 3, 1)
    classes = torch.log(torch.tensor([[0.25, 0.75]]))
    found = joined(logits, classes, ClassHead(rows=(1, 3)))
    expected = [0.0, 1.0 + torch.log(torch.tensor(0.25)), 2.0, 1.0 + torch.log(torch.tensor(0.75))]
    torch.testing.assert_close(found.flatten(), torch.tensor(expected))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("alone", [False, True])
def test_every_weight_has_a_role_and_strides(name, alone):
    spec, network = built(name, alone=alone)
    told = set()
    for weight in network.state_dict():
        role = spec.role(weight)
        spec.strides_to(weight)
        if role.tells_classes:
            told.add(weight)
    assert told == {f"classifier.{part}" for part in ("norm.weight", "norm.bias")} | {
        "classifier.linear.weight",
        "classifier.linear.bias",
    }


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("alone", [False, True])
def test_gradients_reach_all_weights_that_the_loss_depends_on(name, alone):
    spec, network = built(name, alone=alone)
    sum(each.square().mean() for each in network(image())).backward()
    for weight, parameter in network.named_parameters():
        if not spec.role(weight).idle:
            assert parameter.grad is not None, weight
            assert torch.isfinite(parameter.grad).all(), weight
    assert float(network.classifier.linear.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", SPECS)
def test_the_form_in_files(name):
    spec, _ = built(name, alone=True)
    kept = msgspec.json.decode(msgspec.json.encode(spec))
    assert kept["class_head"] == {"rows": [2, 3, 4], "alone": True}
    assert read_spec(kept, where="here") == spec
    assert "class_head" not in msgspec.json.decode(msgspec.json.encode(SPECS[name]))


@pytest.mark.parametrize("name", SPECS)
def test_memory_is_that_of_what_is_computed(name):
    plain = SPECS[name].feature_map_elements((32, 32))
    both = built(name, alone=False)[0].feature_map_elements((32, 32))
    alone = built(name, alone=True)[0].feature_map_elements((32, 32))
    assert alone < both < plain
    assert plain - both == 2 * 32 * 32  # two channels less in the head at full resolution


@pytest.mark.parametrize("rows", [(2,), (2, 2), (0, 1), (3, 5), ()])
def test_rows_that_cannot_be_classes_are_refused(rows):
    with pytest.raises(ModelError, match=r"class_head\.rows"):
        built("unet", alone=False, rows=rows)


def test_a_network_without_deepest_features_is_refused():
    topology = pool_topology((1.0, 1.0), (64, 64))
    spec = MEDFORMER["tiny"].network(topology, in_channels=1, out_channels=5)
    with pytest.raises(ModelError, match="class_head"):
        build_network(spec.replace(class_head=ClassHead(rows=ROWS)), deep_supervision=True)
