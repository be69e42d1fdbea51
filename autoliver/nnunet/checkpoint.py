"""nnU-Net's checkpoint files, read without running what they may hold."""

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

from autoliver.artifacts import file_sha256, replacing
from autoliver.errors import ModelError

_AGAIN = "Copy the file again from where it came."


@dataclass(frozen=True, kw_only=True, slots=True)
class NnunetCheckpoint:
    """What matters of a checkpoint.

    Attributes:
        weights: Under nnU-Net's names; mapped from the file, so in memory only while used.
        trainer: The trainer's class name.
        configuration: nnU-Net's name of it.
        plans: The plans it was trained with, {} where the file does not say.
        epochs: Finished epochs.
        mirror_axes: Patch axes it was trained to see flipped.
        digest: Twelve hex digits of the file.
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

    Of what a pickle can name, only tensors, plain values and numpy's numbers are made; numpy itself
    is not called.

    Args:
        path: The file.
        trust: Make whatever the file names. This runs any code its author put there.

    Raises:
        ModelError: The file is damaged, no checkpoint of nnU-Net v2, or needs to be trusted.
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
            f"{path}: no checkpoint of nnU-Net v2: {error!r}.",
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
    """Writes what nnU-Net needs to predict, as its own trainer would; whole or not at all.

    Args:
        path: The file.
        weights: Under nnU-Net's names; tensors that are one are kept once.
        start: What its trainer was started with: plans, configuration, fold, dataset_json.
        epochs: Finished epochs.
        mirror_axes: Patch axes to flip.
    """
    content = {
        "network_weights": dict(weights),
        "current_epoch": epochs,
        "init_args": dict(start),
        "trainer_name": "nnUNetTrainer",
        # It takes None, but no empty tuple, for "none".
        "inference_allowed_mirroring_axes": mirror_axes or None,
    }
    with replacing(path) as beside:
        torch.save(content, beside)


class _Dtype:
    """Stands for numpy.dtype in a checkpoint: the code of a number's type, and no more."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = str(code)
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(dtype: _Dtype, data: bytes | str) -> float | int | bool:
    """Stands for numpy's function that makes one number from its bytes."""
    if dtype.code[:1] not in ("f", "i", "u", "b") or not dtype.code[1:].isdigit():
        raise pickle.UnpicklingError(f"a numpy value of type {dtype.code!r}")
    raw = data.encode("latin-1") if isinstance(data, str) else data
    number: float | int | bool = np.frombuffer(raw, dtype.order + dtype.code, count=1)[0].item()
    return number


# Losses are logged as numpy's numbers; the module's name changed with numpy 2.
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Dtype, "numpy.dtype"),
    (_number, "numpy._core.multiarray.scalar"),
    (_number, "numpy.core.multiarray.scalar"),
]


# What a pickle that does not follow the rules makes of its reader.
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
        f"{path}: to be read it would have to run {reason}, which no checkpoint of nnU-Net needs "
        "to predict.",
        hint="A file like this can run any code as you, now. If you know who made it and trust "
        "them: --trust. Otherwise ask for a checkpoint without it.",
    )


def _trusted(path: Path) -> Any:
    try:
        return torch.load(path, "cpu", weights_only=False, mmap=True)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{path}: holds objects of a program that is not installed here: {error}.",
            hint="Install it, or save the checkpoint again without them.",
        ) from None
    except (pickle.UnpicklingError, *_MALFORMED) as error:
        raise _damaged(path, error) from None


def _check_intact(path: Path) -> None:
    """Compares checksums: torch writes them, but does not look at them."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise _damaged(path, error) from None
    if bad is not None:
        raise _damaged(path, f"the checksum of {bad} does not match")


def _damaged(path: Path, reason: object) -> ModelError:
    what = str(reason).partition("\n")[0].rstrip(".")
    return ModelError(f"{path}: damaged, or no checkpoint of torch: {what}.", hint=_AGAIN)


def _weights(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    weights = {str(name): value for name, value in found.items()}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"network_weights: {name} is no tensor")
    return weights
