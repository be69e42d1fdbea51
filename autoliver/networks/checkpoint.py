"""Saves and loads weights and training state.

Weights, and the statistics of norms among them, are stored in float32 in a safetensors file. Its
metadata holds the network's spec, so that this file alone is enough to build the network. Training
state (optimiser, schedule, random numbers) is stored as a line with size and checksum, followed by
a torch file.
"""

import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from autoliver.artifacts import Readable, content_of, json_value, write_bytes
from autoliver.errors import ArtifactError, ModelError
from autoliver.networks.build import build_without_weights, check_spec
from autoliver.networks.spec import NetworkSpec, read_spec
from autoliver.system import read_whole

KIND = "weights"
SCHEMA = "1"

# Limit of the safetensors format; a larger header length means that the file has another format.
_MAX_HEADER_BYTES = 100_000_000
_STATE_MAGIC = b"autoliver-training-state-1"
_MAX_STATE_HEAD_BYTES = 128
# What the library raises of a type of numbers, or a shape, that it does not know.
_UNKNOWN_TYPES = (KeyError, ValueError, TypeError, RuntimeError, OverflowError)
_AGAIN = (
    "Copy it again from where it came from, or train it again with: "
    "autoliver train DATASET CONFIG --fresh"
)
_START_OVER = "Start this fold over with: autoliver train DATASET CONFIG --fold N --fresh"


def save_weights(path: Path, state_dict: Mapping[str, Tensor], *, spec: NetworkSpec) -> None:
    """Writes weights and the spec of their network to one file, atomically.

    Args:
        path: The file, ending in .safetensors.
        state_dict: Weights of a network built from `spec`, on any device; stored as float32, and
            integers, such as the number of batches that a norm has seen, as integers.
        spec: The network's spec.

    Raises:
        AutoliverError: The disk is full or read-only, or there is no permission to write.
    """
    tensors = {name: _stored(tensor) for name, tensor in state_dict.items()}
    metadata = {
        "kind": KIND,
        "schema": SCHEMA,
        "autoliver": version("autoliver"),
        "spec": msgspec.json.encode(spec).decode(),
        "extra": "{}",  # not read; kept so that files of equal weights stay byte-identical
    }
    write_bytes(path, _in_order(safetensors.torch.save(tensors, metadata)))


def _stored(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype).contiguous()


def _in_order(content: bytes) -> bytes:
    """The content of a safetensors file with the fields of its header in a fixed order.

    The library writes the metadata in another order in every process, and a checksum of the file is
    to depend on the weights alone.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), separators=(",", ":"), sort_keys=True)
    text = header.encode()
    text += b" " * (-len(text) % 8)  # the format aligns the weights to 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def load_weights(path: Readable, *, sha256: str = "") -> tuple[dict[str, Tensor], NetworkSpec]:
    """Loads weights (float32, integers as they are, on the CPU) and the spec of their network.

    Args:
        path: The file.
        sha256: The checksum of the file that model.json recorded; not checked if empty.

    Raises:
        ModelError: The file is missing, cut short, damaged, or not a weights file of autoliver.
    """
    try:
        content = content_of(path)
    except (FileNotFoundError, IsADirectoryError):
        raise _missing(path) from None
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise ModelError(
            f"{path}: damaged: its checksum differs from the one in model.json.",
            hint="Copy the file again from where it came, or train the fold with --fresh.",
        )
    metadata = _metadata(path, content)
    try:
        where = f"{path}: spec"
        spec = read_spec(json_value(metadata.get("spec", "").encode(), where=where), where=where)
    except ArtifactError as error:
        raise ModelError(error.problem, hint=_AGAIN) from None
    try:
        check_spec(spec)
    except ModelError as error:
        raise ModelError(f"{path}: {error.problem}", hint=_AGAIN) from None
    try:
        weights = safetensors.torch.load(content)
    except (SafetensorError, *_UNKNOWN_TYPES) as error:
        raise ModelError(f"{path}: damaged: {_first_line(error)}.", hint=_AGAIN) from None
    _check_values(path, weights)
    return weights, spec


def _check_values(path: Readable, weights: Mapping[str, Tensor]) -> None:
    """Refuses types that `save_weights` does not write, and numbers that are none."""
    for name, tensor in weights.items():
        if tensor.dtype not in (torch.float32, torch.int64):
            found = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{path}: {name} holds {found}, expected float32.",
                hint=_AGAIN,
            )
    check_finite(weights, where=str(path))


def check_finite(weights: Mapping[str, Tensor], *, where: str) -> None:
    """Refuses weights that are infinite or no numbers, from which nothing can be predicted.

    Args:
        weights: The weights.
        where: The origin of the weights, for the message.

    Raises:
        ModelError: There are some. The error names the first tensor.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(
                f"{where}: {name} holds values that are infinite or no numbers.",
                hint="The training went wrong, or the file was changed. " + _AGAIN,
            )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def load_network(
    path: Readable,
    *,
    deep_supervision: bool = False,
    device: torch.device | str = "cpu",
    sha256: str = "",
    hint: str | None = None,
    expected: NetworkSpec | None = None,
) -> nn.Module:
    """Builds the network of a weights file and loads its weights.

    Args:
        path: The file.
        deep_supervision: Whether the network returns the logits of every level.
        device: The device to put the network on.
        sha256: The checksum of the file that model.json recorded; not checked if empty.
        hint: What helps if they cannot be loaded; None: what helps for the weights of a run.
        expected: The network that the file must be of; None for any.

    Raises:
        ModelError: The weights cannot be loaded, see `load_weights`, or do not fit the spec in the
            same file, or this is not the expected one.
    """
    try:
        state_dict, spec = load_weights(path, sha256=sha256)
        if expected is not None and spec != expected:
            raise ModelError(
                f"{path}: weights of {_differing(spec, expected)}.",
                hint="Take both files from one training, or train the fold with --fresh.",
            )
        network = build_without_weights(spec, deep_supervision=deep_supervision)
        check_fit(state_dict, network, where=str(path))
    except ModelError as error:
        raise ModelError(error.problem, hint=error.hint if hint is None else hint) from None
    network.load_state_dict(state_dict, strict=True, assign=True)
    return network.to(device)


def _differing(found: NetworkSpec, expected: NetworkSpec) -> str:
    """How two networks differ, in words: the first field, or their kinds."""
    if type(found) is type(expected):
        for name in found.__struct_fields__:
            own, other = getattr(found, name), getattr(expected, name)
            if own != other:
                return f"a network whose {name} is {own}, while that of model.json is {other}"
    return f"a {found.kind}, while the network of model.json is a {expected.kind}"


def check_fit(state_dict: Mapping[str, Tensor], network: nn.Module, *, where: str) -> None:
    """Refuses weights whose names and shapes are not exactly those of a network.

    Args:
        state_dict: The weights.
        network: The network.
        where: The origin of the weights, for the message.

    Raises:
        ModelError: A weight is missing, superfluous or of another shape. The error names the first
            such weight, with both shapes.
    """
    hint = "The weights do not belong to the network's spec; check which model they are from."
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in state_dict:
            raise ModelError(f"{where}: the network's {name} is missing.", hint=hint)
        found = state_dict[name]
        if found.shape != tensor.shape:
            raise ModelError(
                f"{where}: {name} has the shape {tuple(found.shape)}, "
                f"the network expects {tuple(tensor.shape)}.",
                hint=hint,
            )
        if found.is_floating_point() != tensor.is_floating_point():
            kinds = [str(each.dtype).removeprefix("torch.") for each in (found, tensor)]
            raise ModelError(
                f"{where}: {name} holds {kinds[0]}, the network expects {kinds[1]}.", hint=hint
            )
    for name in state_dict:
        if name not in expected:
            raise ModelError(f"{where}: {name} has no place in the network.", hint=hint)


def save_training_state(path: Path, state: dict[str, Any]) -> None:
    """Writes the state from which a training can be resumed, atomically.

    Args:
        path: The file.
        state: Tensors, numbers, text and None in dicts, lists and tuples; other objects could not
            be loaded safely.

    Raises:
        AutoliverError: The disk is full or read-only, or there is no permission to write.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    # Fails now, rather than on resume, if the state holds an unsafe object; reads no tensors.
    torch.load(buffer, map_location="meta", weights_only=True)
    payload = buffer.getvalue()
    write_bytes(path, _state_head(payload) + payload)


def load_training_state(path: Path, *, hint: str = _START_OVER) -> dict[str, Any]:
    """Loads the state that `save_training_state` wrote, with tensors on the CPU.

    Args:
        path: The file.
        hint: What helps if it cannot be loaded.

    Raises:
        ModelError: The file is missing, cut short, damaged, or not a training state.
    """
    try:
        content = io.BytesIO(read_whole(path))
        head = content.readline(_MAX_STATE_HEAD_BYTES)
        payload = content.read()
    except (FileNotFoundError, IsADirectoryError):
        raise ModelError(f"{path}: there is no such training state.", hint=hint) from None
    found = re.fullmatch(_STATE_MAGIC + rb" (\d+) [0-9a-f]{64}\n", head)
    if found is None:
        raise ModelError(f"{path}: damaged, or not a training state of autoliver.", hint=hint)
    size, expected = len(head) + len(payload), len(head) + int(found[1])
    if size < expected:
        raise ModelError(f"{path}: cut short: {size} bytes, expected {expected}.", hint=hint)
    if head != _state_head(payload):
        raise ModelError(f"{path}: damaged: its checksum does not match.", hint=hint)
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), "cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{path}: cannot be loaded: {reason}", hint=hint) from None
    return state


def _state_head(payload: bytes) -> bytes:
    # torch writes checksums into its files but does not check them on reading.
    digest = hashlib.sha256(payload).hexdigest()
    return b"%s %d %s\n" % (_STATE_MAGIC, len(payload), digest.encode())


def _missing(path: Readable) -> ModelError:
    return ModelError(
        f"{path}: there is no such weights file.",
        hint="Check the path, or train the fold with: autoliver train DATASET CONFIG --fold N",
    )


def _metadata(path: Readable, content: bytes) -> dict[str, str]:
    """Returns the metadata of a weights file, after checking its header and its size."""
    head, size = content[:8], len(content)
    header_bytes = int.from_bytes(head, "little")
    header = content[8 : 8 + header_bytes] if header_bytes <= _MAX_HEADER_BYTES else b""
    if size < 8:
        raise ModelError(f"{path}: cut short: {size} bytes, no header.", hint=_AGAIN)
    if not header.startswith(b"{") and size > 8:
        raise _foreign(path, head)
    if len(header) < header_bytes:
        expected = f"expected more than {8 + header_bytes}"
        raise ModelError(f"{path}: cut short: {size} bytes, {expected}.", hint=_AGAIN)
    metadata, expected_bytes = _parsed(path, header)
    if metadata.get("kind") != KIND:
        raise _foreign(path, head)
    if metadata.get("schema") != SCHEMA:
        raise ModelError(
            f"{path}: written in schema {metadata.get('schema')} by autoliver "
            f"{metadata.get('autoliver')}; this version reads schema {SCHEMA}.",
            hint="Update autoliver.",
        )
    if size != expected_bytes:
        what = "cut short" if size < expected_bytes else "damaged"
        raise ModelError(f"{path}: {what}: {size} bytes, expected {expected_bytes}.", hint=_AGAIN)
    return metadata


def _parsed(path: Readable, header: bytes) -> tuple[dict[str, str], int]:
    """Returns the metadata and the size in bytes that the file must have."""
    try:
        entries = json_value(header, where=str(path))
        metadata = msgspec.convert(entries.pop("__metadata__", {}), dict[str, str])
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        return metadata, 8 + len(header) + max(ends, default=0)
    except ArtifactError as error:
        problem = error.problem.removeprefix(f"{path}: ")
        raise ModelError(
            f"{path}: damaged: its header cannot be read: {problem}", hint=_AGAIN
        ) from None
    except (AttributeError, ValueError, KeyError, TypeError, IndexError, msgspec.ValidationError):
        raise ModelError(f"{path}: damaged: its header cannot be read.", hint=_AGAIN) from None


def _foreign(path: Readable, head: bytes) -> ModelError:
    # torch.save writes zip files; before 2020 it wrote pickle files.
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return ModelError(
            f"{path}: a torch checkpoint, expected a weights file of autoliver (.safetensors).",
            hint="Pass a run of autoliver; import nnU-Net's models with: autoliver import FOLDER",
        )
    return ModelError(
        f"{path}: not a weights file of autoliver.",
        hint="Pass a run's weights.safetensors.",
    )
