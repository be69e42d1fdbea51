import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from autoliver.errors import ModelError
from autoliver.networks.build import build_network
from autoliver.networks.spec import read_spec
from autoliver.networks.unet_spec import UNetStages
from autoliver.nnunet.names import from_nnunet, to_nnunet
from autoliver.nnunet.network import architecture_of

torch.set_num_threads(1)

# Made by benchmarks/parity/network_golden.py with nnU-Net 2.8.1.
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=["plain_2d", "plain_3d", "resenc_3d", "resenc_2d"])
def golden(request):
    with np.load(GOLDEN / f"networks_{request.param}.npz") as file:
        return dict(file)


def spec_of(golden):
    return read_spec(json.loads(str(golden["spec"])), where="golden")


def state_of(golden):
    return {
        name: torch.from_numpy(golden[f"weights/{first}"])
        for name, first in json.loads(str(golden["aliases"]))
    }


def test_same_output_as_nnunet_at_every_level(golden):
    spec = spec_of(golden)
    network = build_network(spec, deep_supervision=True)
    network.load_state_dict(from_nnunet(state_of(golden), spec), strict=True)
    with torch.no_grad():
        outputs = network(torch.from_numpy(golden["image"]))
    assert len(outputs) == len(spec.features) - 1
    for level, output in enumerate(outputs):
        np.testing.assert_allclose(output.numpy(), golden[f"output_{level}"], rtol=1e-5, atol=1e-5)


def test_names_and_tensors_come_back_as_nnunet_has_them(golden):
    spec, theirs = spec_of(golden), state_of(golden)
    back = to_nnunet(from_nnunet(theirs, spec), spec)
    assert list(back) == list(theirs)
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_a_network_of_ours_survives_the_way_there_and_back(golden):
    spec = spec_of(golden)
    network = build_network(spec, deep_supervision=False)
    assert sum(parameter.numel() for parameter in network.parameters()) == golden["parameters"]
    ours = network.state_dict()
    back = from_nnunet(to_nnunet(ours, spec), spec)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_stripped(golden, wrapper):
    spec, theirs = spec_of(golden), state_of(golden)
    wrapped = {wrapper + name: tensor for name, tensor in theirs.items()}
    plain = from_nnunet(theirs, spec)
    unwrapped = from_nnunet(wrapped, spec)
    assert plain.keys() == unwrapped.keys()
    assert all(plain[name] is unwrapped[name] for name in plain)


def test_duplicates_may_be_missing(golden):
    spec = spec_of(golden)
    only = {first for _, first in json.loads(str(golden["aliases"]))}
    once = {name: tensor for name, tensor in state_of(golden).items() if name in only}
    network = build_network(spec, deep_supervision=False)
    network.load_state_dict(from_nnunet(once, spec), strict=True)


def test_a_checkpoint_of_another_network_is_refused(golden):
    spec, theirs = spec_of(golden), state_of(golden)
    more = spec.replace(blocks_decoder=tuple(n + 1 for n in spec.blocks_decoder))
    with pytest.raises(ModelError, match=r"are missing, the first is decoder\.stages\.0"):
        from_nnunet(theirs, more)
    with pytest.raises(ModelError, match=r"unknown to the network, the first is extra\.weight"):
        from_nnunet({**theirs, "extra.weight": torch.zeros(1)}, spec)
    ours = from_nnunet(theirs, spec)
    with pytest.raises(ModelError, match="are missing"):
        to_nnunet(ours, more)


class OtherSpec(UNetStages, frozen=True, kw_only=True, tag="other"):
    """Has every field of a U-Net, and is none of nnU-Net's two."""


def test_a_network_that_nnunet_has_not_is_refused_however_alike_it_is(golden):
    spec, theirs = spec_of(golden), state_of(golden)
    other = OtherSpec(**msgspec.structs.asdict(spec))
    refused = pytest.raises(ModelError, match="nnU-Net has no network of kind 'other'")
    with refused:
        from_nnunet(theirs, other)
    with refused:
        to_nnunet(from_nnunet(theirs, spec), other)
    with refused:
        architecture_of(other)
