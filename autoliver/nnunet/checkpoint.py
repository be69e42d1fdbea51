"""Reads nnU-Net's checkpoint files without running code that they may contain, and writes them."""

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoliver.artifacts import file_sha256, write_bytes
from autoliver.errors import ModelError
from autoliver.networks.torch_file import (
    MALFORMED,
    UnsafeContent,
    check_intact,
    damaged,
    read_torch_file,
)
from autoliver.nnunet.pickles import Dtype, number, read_pickle

# The place of the stage among the arguments of a trainer of nnU-Net v1.
_V1_STAGE = 5


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


@dataclass(frozen=True, kw_only=True, slots=True)
class V1Checkpoint:
    """The parts of a checkpoint of nnU-Net v1 that an import needs.

    Attributes:
        weights: State dict under the names of v1.
        trainer: Class name of the trainer.
        stage: The key in the plans' `plans_per_stage`; None if there is only one.
        plans: The content of plans.pkl it was trained with.
        epochs: Number of finished epochs.
        digest: First twelve hex digits of the SHA-256 of the file with the weights.
    """

    weights: dict[str, Tensor]
    trainer: str
    stage: int | None
    plans: dict[str, Any]
    epochs: int
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
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ModelError(
            f"{path}: not a checkpoint of nnU-Net v2: {error!r}.",
            hint="Give the folder that nnUNetv2_train wrote, or its export.",
        ) from None


def read_v1_checkpoint(path: Path, *, trust: bool = False) -> V1Checkpoint:
    """Reads a checkpoint of nnU-Net v1: FILE.model, and FILE.model.pkl beside it.

    Args:
        path: The file with the weights, e.g. fold_0/model_final_checkpoint.model.
        trust: As in `read_checkpoint`; it does not apply to FILE.model.pkl.

    Raises:
        ModelError: A file is missing, damaged or not a checkpoint of nnU-Net v1, or names objects
            that would have to run.
    """
    about = read_pickle(path.with_name(path.name + ".pkl"))
    content = _trusted(path) if trust else _untrusted(path)
    try:
        stage = about["init"][_V1_STAGE]
        return V1Checkpoint(
            weights=_weights(content["state_dict"]),
            trainer=str(about["name"]),
            stage=None if stage is None else int(stage),
            plans=dict(about["plans"]),
            epochs=int(content["epoch"]),
            digest=file_sha256(path)[:12],
        )
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ModelError(
            f"{path}: not a checkpoint of nnU-Net v1: {error!r}.",
            hint="Give the folder that nnUNet_train wrote, or the zip of "
            "nnUNet_export_model_to_zip.",
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


# nnU-Net logs losses as numpy scalars, whose module was renamed in numpy 2.
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (Dtype, "numpy.dtype"),
    (number, "numpy._core.multiarray.scalar"),
    (number, "numpy.core.multiarray.scalar"),
]


def _untrusted(path: Path) -> Any:
    try:
        return read_torch_file(path, allowed=_ALLOWED)
    except UnsafeContent as unsafe:
        raise ModelError(
            f"{path}: reading it would have to run {unsafe}, which no checkpoint of nnU-Net needs "
            "to predict.",
            hint="Such a file can run any code with your rights when it is read. If you know its "
            "author and trust them, use --trust. Otherwise ask for a checkpoint without such "
            "objects.",
        ) from None


def _trusted(path: Path) -> Any:
    check_intact(path)
    try:
        return torch.load(path, "cpu", weights_only=False, mmap=zipfile.is_zipfile(path))
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{path}: contains objects of a package that is not installed here: {error}.",
            hint="Install the package, or save the checkpoint again without these objects.",
        ) from None
    except MALFORMED as error:
        raise damaged(path, error) from None


def _weights(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    weights = {str(name): value for name, value in found.items()}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"network_weights: {name} is not a tensor")
    return weights
