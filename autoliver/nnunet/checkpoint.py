"""Reads nnU-Net's checkpoint files without running code that they may contain, and writes them."""

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from autoliver.artifacts import file_sha256, write_bytes
from autoliver.errors import ModelError
from autoliver.system import raise_refusal

_AGAIN = "Copy the file again from its source."


@dataclass(frozen=True, kw_only=True, slots=True)
class NnunetCheckpoint:
    """The parts of a checkpoint that an import needs.

    Attributes:
        weights: State dict under nnU-Net's names; memory-mapped from the file.
        trainer: Class name of the trainer.
        configuration: nnU-Net's name of the configuration.
        plans: The plans it was trained with; {} if the file has none.
        epochs: Number of finished epochs.
        mirror_axes: Patch axes along which it was trained with flips.
        digest: First twelve hex digits of the file's SHA-256.
    """

    weights: dict[str, Tensor]
    trainer: str
    configuration: str
    plans: dict[str, Any]
    epochs: int
    mirror_axes: tuple[int, ...]
    digest: str


def read_checkpoint(path: Path, *, trust: bool = False) -> NnunetCheckpoint:
    """Reads a checkpoint of nnU-Net v2.

    Of all objects that a pickle can name, only tensors, plain values and numpy scalars are created;
    numpy's own functions are not called.

    Args:
        path: The file.
        trust: Whether to create any object the file names. This runs any code its author put there.

    Raises:
        ModelError: The file is damaged or not a checkpoint of nnU-Net v2, or it can only be read
            with `trust`.
    """
    _check_intact(path)
    content = _trusted(path) if trust else _untrusted(path)
    try:
        content = {**content}
        start = content["init_args"]
        return NnunetCheckpoint(
            weights=_weights(content["network_weights"]),
            trainer=str(content["trainer_name"]),
            configuration=str(start["configuration"]),
            plans=dict(start.get("plans") or {}),
            epochs=int(content.get("current_epoch", 0)),
            mirror_axes=tuple(
                int(axis) for axis in content.get("inference_allowed_mirroring_axes") or ()
            ),
            digest=file_sha256(path)[:12],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path}: not a checkpoint of nnU-Net v2: {error!r}.",
            hint="Give the folder that nnUNetv2_train wrote, or its export.",
        ) from None


def write_checkpoint(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    start: Mapping[str, Any],
    epochs: int,
    mirror_axes: tuple[int, ...],
) -> None:
    """Writes a checkpoint that nnU-Net can predict with, like its own trainer; atomically.

    Args:
        path: The file to write.
        weights: State dict under nnU-Net's names; a tensor under several names is stored once.
        start: Arguments of nnU-Net's trainer: plans, configuration, fold, dataset_json.
        epochs: Number of finished epochs.
        mirror_axes: Patch axes along which a prediction may flip.
    """
    content = {
        "network_weights": dict(weights),
        "current_epoch": epochs,
        "init_args": dict(start),
        "trainer_name": "nnUNetTrainer",
        # nnU-Net accepts None, but not an empty tuple, for "none".
        "inference_allowed_mirroring_axes": mirror_axes or None,
    }
    # Not into the file itself, where torch replaces the system's errors with its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


class _Dtype:
    """Replaces numpy.dtype when a checkpoint is read: it holds only a type code and byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = str(code)
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(dtype: _Dtype, data: bytes | str) -> float | int | bool:
    """Replaces the numpy function that makes a scalar from its bytes when a checkpoint is read."""
    if dtype.code[:1] not in ("f", "i", "u", "b") or not dtype.code[1:].isdigit():
        raise pickle.UnpicklingError(f"a numpy value of type {dtype.code!r}")
    raw = data.encode("latin-1") if isinstance(data, str) else data
    number: float | int | bool = np.frombuffer(raw, dtype.order + dtype.code, count=1)[0].item()
    return number


# nnU-Net logs losses as numpy scalars, whose module was renamed in numpy 2.
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Dtype, "numpy.dtype"),
    (_number, "numpy._core.multiarray.scalar"),
    (_number, "numpy.core.multiarray.scalar"),
]


# The exceptions that reading a malformed pickle can raise.
_MALFORMED = (
    *(RuntimeError, ValueError, TypeError, LookupError),
    *(AttributeError, AssertionError, EOFError),
)


def _untrusted(path: Path) -> Any:
    with safe_globals(_ALLOWED):
        try:
            return torch.load(path, "cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            named = sorted(get_unsafe_globals_in_checkpoint(path))
            reason = ", ".join(named) or str(error).partition("\n")[0]
        except _MALFORMED as error:
            raise _damaged(path, error) from None
    raise ModelError(
        f"{path}: reading it would have to run {reason}, which no checkpoint of nnU-Net needs "
        "to predict.",
        hint="Such a file can run any code with your rights when it is read. If you know its "
        "author and trust them, use --trust. Otherwise ask for a checkpoint without such objects.",
    )


def _trusted(path: Path) -> Any:
    try:
        return torch.load(path, "cpu", weights_only=False, mmap=True)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{path}: contains objects of a package that is not installed here: {error}.",
            hint="Install the package, or save the checkpoint again without these objects.",
        ) from None
    except (pickle.UnpicklingError, *_MALFORMED) as error:
        raise _damaged(path, error) from None


def _check_intact(path: Path) -> None:
    """Verifies the checksums in the file, which torch writes but does not check."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise_refusal(path, error)
        raise _damaged(path, error) from None
    if bad is not None:
        raise _damaged(path, f"the checksum of {bad} does not match")


def _damaged(path: Path, reason: object) -> ModelError:
    what = str(reason).partition("\n")[0].rstrip(".")
    return ModelError(f"{path}: damaged, or not a PyTorch checkpoint: {what}.", hint=_AGAIN)


def _weights(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    weights = {str(name): value for name, value in found.items()}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"network_weights: {name} is not a tensor")
    return weights
