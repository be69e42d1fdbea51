"""Reads a run of nnU-Net v1 in the terms of nnU-Net v2, and its weights under our names."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoliver.datasets.description import Description, read_description
from autoliver.errors import ModelError
from autoliver.networks.unet_spec import UNetSpec
from autoliver.nnunet.checkpoint import NnunetCheckpoint, read_v1_checkpoint
from autoliver.nnunet.export import numbered
from autoliver.nnunet.folder import DATASET_FILE, V1, NnunetRun
from autoliver.nnunet.names import unwrapped
from autoliver.nnunet.pickles import read_pickle
from autoliver.nnunet.v1_plan import (
    check_description,
    mirror_axes,
    plain_description,
    v2_plans,
)


def read_v1_run(
    run: NnunetRun, *, trust: bool
) -> tuple[dict[str, Any], Description, dict[str, NnunetCheckpoint]]:
    """Reads plans, description and checkpoints of a run.

    Args:
        run: The run.
        trust: Whether a file of weights may run code when it is read.

    Returns:
        The content of plans.json and dataset.json as nnU-Net v2 would have written them, and fold
        -> checkpoint, whose weights have the names of v1.

    Raises:
        AutoliverError: Something is missing, damaged, unsafe or not supported.
    """
    where = f"{run.path.name}/{V1.plans}"
    raw = read_pickle(run.path / V1.plans)
    if not isinstance(raw, Mapping) or "plans_per_stage" not in raw:
        raise ModelError(
            f"{where}: not a plans file of nnU-Net v1.",
            hint="Take plans.pkl from the folder that nnU-Net v1 trained into, unchanged.",
        )
    dataset = _dataset(run.path.parent.name)
    first: dict[str, Any] = {}
    checkpoints = {}
    for fold, path in sorted(run.folds.items()):
        found = read_v1_checkpoint(path, trust=trust)
        in_v2 = partial(v2_plans, stage=found.stage, trainer=found.trainer, dataset=dataset)
        plans = in_v2(found.plans, where=f"{run.path.name}/{path.parent.name}")
        first = first or in_v2(raw, where=where)
        ((name, settings),) = plans["configurations"].items()
        checkpoints[fold] = NnunetCheckpoint(
            weights=found.weights,
            trainer=found.trainer,
            configuration=name,
            plans=plans,
            epochs=found.epochs,
            mirror_axes=mirror_axes(found.trainer, axes=len(settings["patch_size"])),
            digest=found.digest,
        )
    return first, _description(run.path, raw), checkpoints


def weights_from_v1(state_dict: Mapping[str, Tensor], spec: UNetSpec) -> dict[str, Tensor]:
    """Renames the weights of a network of v1 (Generic_UNet) to autoliver's names.

    Where v1 has a smaller kernel, it is surrounded by zeros; where it has no bias, the bias is 0.

    Args:
        state_dict: The `state_dict` of a checkpoint of v1.
        spec: The network that the weights belong to.

    Raises:
        ModelError: A weight is missing or unknown to the network.
    """
    theirs = {unwrapped(name): tensor for name, tensor in state_dict.items()}
    names = dict(_names(spec))
    missing = [name for name in names if name not in theirs and not _may_lack(name)]
    unknown = [name for name in theirs if name not in names]
    for found, what in ((missing, "are missing"), (unknown, "are unknown to the network")):
        if found:
            raise ModelError(
                f"nnU-Net weights: {len(found)} {what}, the first is {found[0]}.",
                hint="Only Generic_UNet with instance norm and strided convolutions can be "
                "imported, and plans and checkpoint must come from one folder.",
            )
    weights = {ours: theirs[name] for name, ours in names.items() if name in theirs}
    for name, ours in names.items():
        if name not in theirs:
            level = int(ours.split(".")[1])
            size = spec.out_channels if ours.startswith("heads") else spec.features[level]
            weights[ours] = torch.zeros(size)
    return {name: _grown(name, tensor, spec) for name, tensor in weights.items()}


def _names(spec: UNetSpec) -> Iterator[tuple[str, str]]:
    """Yields (the name in v1, autoliver's name) of every weight.

    v1 keeps the last block of the bottleneck and of each stage of the decoder apart, and numbers
    the decoder from the deepest stage upwards.
    """
    bottom = len(spec.features) - 1
    for level, count in enumerate(spec.blocks_encoder):
        for i in range(count):
            place = _apart(i, count) if level == bottom else f"blocks.{i}"
            yield from _block(f"conv_blocks_context.{level}.{place}", f"encoder.{level}.{i}")
    for level, count in enumerate(spec.blocks_decoder):
        theirs = bottom - 1 - level
        for i in range(count):
            place = f"conv_blocks_localization.{theirs}.{_apart(i, count)}"
            yield from _block(place, f"decoder.{level}.{i}")
        for kind in ("weight", "bias"):
            yield f"tu.{theirs}.{kind}", f"up.{level}.{kind}"
            yield f"seg_outputs.{theirs}.{kind}", f"heads.{level}.{kind}"


def _apart(block: int, count: int) -> str:
    return "1.blocks.0" if block == count - 1 else f"0.blocks.{block}"


def _block(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for part, own in (("conv", "conv"), ("instnorm", "norm")):
        for kind in ("weight", "bias"):
            yield f"{theirs}.{part}.{kind}", f"{ours}.{own}.{kind}"


def _may_lack(name: str) -> bool:
    """Whether v1 has no such weight: its transposed convolutions and heads have no bias."""
    return name.startswith(("tu.", "seg_outputs.")) and name.endswith(".bias")


def _grown(name: str, weight: Tensor, spec: UNetSpec) -> Tensor:
    """Surrounds a convolution's kernel by zeros up to the spec's; other weights are unchanged."""
    if not name.endswith(".conv.weight"):
        return weight
    wanted = spec.kernels[int(name.split(".")[1])]
    around = [(size - own) // 2 for size, own in zip(wanted, weight.shape[2:], strict=True)]
    if max(around) == 0 or min(around) < 0:
        return weight
    return torch.nn.functional.pad(weight, [side for n in reversed(around) for side in (n, n)])


def _description(folder: Path, raw: Mapping[str, Any]) -> Description:
    path = folder / DATASET_FILE
    if path.is_file():
        description = read_description(folder, trained=True)
        check_description(description, raw, where=f"{folder.name}/{V1.plans}")
        return description
    return plain_description(raw, task=folder.parent.name, where=path)


def _dataset(name: str) -> str:
    """The name in nnU-Net v2: Task029_LiTS is Dataset029_LiTS there."""
    number, short = numbered(name)
    return name if number is None else f"Dataset{number:03d}_{short}"
