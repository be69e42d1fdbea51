import contextlib
import hashlib
import io
import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from autoliver.errors import ModelError
from autoliver.networks.build import build_network
from autoliver.networks.checkpoint import (
    load_network,
    load_training_state,
    load_weights,
    save_training_state,
    save_weights,
)
from autoliver.networks.spec import ResidualUNetSpec

torch.set_num_threads(1)

SPEC = ResidualUNetSpec(
    in_channels=1,
    out_channels=2,
    features=(2, 4),
    strides=((1, 1), (2, 2)),
    kernels=((3, 3), (3, 3)),
    blocks_encoder=(1, 1),
    blocks_decoder=(1,),
)


@pytest.fixture
def network():
    return build_network(SPEC, deep_supervision=False, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weights(tmp_path, network):
    path = tmp_path / "weights.safetensors"
    save_weights(path, network.state_dict(), spec=SPEC)
    return path


@pytest.fixture
def resume(tmp_path):
    network = torch.nn.Linear(3, 2)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    state = {
        "optimiser": optimiser.state_dict(),
        "epoch": 3,
        "best": None,
        "dice": [0.5, 0.75],
        "generator": torch.Generator().manual_seed(7).get_state(),
    }
    path = tmp_path / "resume.pt"
    save_training_state(path, state)
    return path, state


def test_weights_come_back_with_their_spec(weights, network):
    state_dict, spec = load_weights(weights)
    assert spec == SPEC
    expected = network.state_dict()
    assert state_dict.keys() == expected.keys()
    assert all(torch.equal(state_dict[name], expected[name]) for name in expected)


def test_a_file_is_enough_for_the_network(weights, network):
    before = torch.get_rng_state()
    loaded = load_network(weights, deep_supervision=True)
    assert torch.equal(torch.get_rng_state(), before)
    image = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(loaded(image)[0], network(image), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_is_loaded_to_the_device_asked_for(weights):
    loaded = load_network(weights, device="cuda")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_kept_in_float32(tmp_path, network, dtype):
    path = tmp_path / "half.safetensors"
    state_dict = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    save_weights(path, state_dict, spec=SPEC)
    loaded, _ = load_weights(path)
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[name], state_dict[name].float()) for name in loaded)


def test_other_tools_can_read_the_file(weights):
    with safetensors.safe_open(weights, framework="numpy") as file:
        assert json.loads(file.metadata()["spec"])["features"] == [2, 4]
        assert file.get_tensor("heads.0.bias").shape == (2,)


def test_a_cut_file_says_how_much_is_left(weights):
    whole = weights.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 3, 8, 9, 200, header - 1, header, header + 1, len(whole) - 1):
        weights.write_bytes(whole[:length])
        for load in (load_weights, load_network):
            with pytest.raises(ModelError, match=f"cut short: {length} bytes") as caught:
                load(weights)
            assert caught.value.hint
        if length >= header:
            assert f"expected {len(whole)}" in caught.value.problem


def test_a_longer_file_is_damaged(weights):
    whole = weights.read_bytes()
    weights.write_bytes(whole + b"\0" * 7)
    with pytest.raises(ModelError, match=f"damaged: {len(whole) + 7} bytes, expected {len(whole)}"):
        load_weights(weights)


def test_a_damaged_header_never_leaves_as_another_error(weights):
    whole = weights.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    for place in range(0, end, 7):
        weights.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        # Some bytes are only names of extra text or of the version; those may pass.
        with contextlib.suppress(ModelError):
            load_network(weights)


@pytest.mark.parametrize("load", [load_weights, load_training_state])
def test_a_missing_file(tmp_path, load):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ModelError, match="there is no such") as caught:
            load(path)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a text file that somebody renamed", "not a weights file"),
        (b"PK\x03\x04" + b"\0" * 40, "a torch checkpoint, expected a weights file"),
        ((2).to_bytes(8, "little") + b"{}", "not a weights file"),
        ((2).to_bytes(8, "little") + b"[]", "not a weights file"),
        ((4).to_bytes(8, "little") + b"{..}", "header cannot be read"),
        ((20).to_bytes(8, "little") + b'{"__metadata__": "a"}'[:20], "header cannot be read"),
        ((21).to_bytes(8, "little") + b'{"__metadata__": "a"}', "header cannot be read"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "header cannot be read"),
    ],
)
def test_a_foreign_file(tmp_path, content, problem):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=problem):
        load_weights(path)


def test_weights_of_another_tool(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="not a weights file of autoliver") as caught:
        load_weights(path)
    assert "weights.safetensors" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": "9"}, "schema 9 by autoliver"),
        ({"spec": "{"}, "not valid JSON"),
        ({"spec": '{"kind": "vnet"}'}, "spec: .*kind"),
    ],
)
def test_metadata_that_cannot_be_used(weights, change, problem):
    with safetensors.safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file(tensors, weights, {**metadata, **change})
    with pytest.raises(ModelError, match=problem):
        load_weights(weights)


def test_a_spec_that_does_not_fit_names_the_weight_and_both_shapes(tmp_path, network):
    path = tmp_path / "wrong.safetensors"
    save_weights(path, network.state_dict(), spec=SPEC.replace(out_channels=5))
    with pytest.raises(ModelError, match=r"heads\.0\.weight has .*\(2, 2, 1, 1\).*\(5, 2, 1, 1\)"):
        load_network(path)
    save_weights(path, network.state_dict(), spec=SPEC.replace(blocks_decoder=(2,)))
    with pytest.raises(ModelError, match=r"decoder\.0\.1\.conv\.weight is missing"):
        load_network(path)
    save_weights(path, {**network.state_dict(), "more": torch.zeros(1)}, spec=SPEC)
    with pytest.raises(ModelError, match="more has no place in the network"):
        load_network(path)


def test_a_failed_save_leaves_the_old_file(weights, network):
    old = weights.read_bytes()
    with pytest.raises(AttributeError):
        save_weights(weights, {**network.state_dict(), "bad": None}, spec=SPEC)
    assert weights.read_bytes() == old
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]


def test_training_state_comes_back(resume):
    path, state = resume
    loaded = load_training_state(path)
    assert loaded.keys() == state.keys()
    assert (loaded["epoch"], loaded["best"], loaded["dice"]) == (3, None, [0.5, 0.75])
    assert torch.equal(loaded["generator"], state["generator"])
    momentum = loaded["optimiser"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, state["optimiser"]["state"][0]["momentum_buffer"])


def test_a_state_that_could_not_be_loaded_is_not_saved(tmp_path, resume):
    path, _ = resume
    old = path.read_bytes()
    with pytest.raises(Exception, match="weights_only"):
        save_training_state(path, {"folder": tmp_path})
    assert path.read_bytes() == old


def test_a_cut_training_state(resume):
    path, _ = resume
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    for length in (0, 10, head - 1, head, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        expected = f"cut short: {length} bytes, expected {len(whole)}"
        with pytest.raises(ModelError, match=expected if length >= head else "damaged") as caught:
            load_training_state(path)
        assert "--fresh" in caught.value.hint


def test_any_changed_byte_of_a_training_state_is_noticed(resume):
    path, _ = resume
    whole = path.read_bytes()
    for place in [*range(130), *range(130, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(ModelError, match="damaged"):
            load_training_state(path)
    path.write_bytes(whole + b"0")
    with pytest.raises(ModelError, match="damaged"):
        load_training_state(path)


def test_a_training_state_with_code_inside_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"folder": tmp_path}, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest()
    path = tmp_path / "foreign.pt"
    path.write_bytes(f"autoliver-training-state-1 {len(payload)} {digest}\n".encode() + payload)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_training_state(path)
    path.write_bytes(payload)
    with pytest.raises(ModelError, match="not a training state of autoliver"):
        load_training_state(path)


def test_equal_weights_are_equal_files_in_every_process(tmp_path):
    """The library's own order of the metadata differs from process to process."""
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from autoliver.networks.checkpoint import save_weights\n"
        "from autoliver.networks.spec import UNetSpec\n"
        "spec = UNetSpec(in_channels=1, out_channels=2, features=(2,), strides=((1, 1),),\n"
        "  kernels=((3, 3),), blocks_encoder=(1,), blocks_decoder=())\n"
        "weights = {f'w{i}': torch.arange(7.0) + i for i in range(5)}\n"
        "save_weights(Path(sys.argv[1]), weights, spec=spec)"
    )
    files = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for file in files:
        subprocess.run([sys.executable, "-c", code, file], check=True)
    assert len({file.read_bytes() for file in files}) == 1
    found = safetensors.torch.load_file(files[0])
    assert torch.equal(found["w3"], torch.arange(7.0) + 3)
