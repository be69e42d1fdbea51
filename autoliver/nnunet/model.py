"""Reads models of nnU-Net v2 as autoliver's folds, and writes folds so that nnU-Net predicts."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from autoliver.artifacts import replacing, write_bytes
from autoliver.datasets.cases import short_name
from autoliver.datasets.description import Description, read_description
from autoliver.errors import ModelError
from autoliver.models.files import FoldModel
from autoliver.networks.spec import NetworkSpec
from autoliver.nnunet.export import NAMES, PLANS_NAME, nnunet_dataset, nnunet_plans
from autoliver.nnunet.folder import (
    DATASET_FILE,
    FINAL_FILE,
    PLANS_FILE,
    NnunetRun,
    checkpoint_run,
    open_runs,
)
from autoliver.nnunet.plan import plan_from_nnunet, read_plans
from autoliver.planning.names import ConfigurationName

if TYPE_CHECKING:
    from torch import Tensor

    from autoliver.nnunet.checkpoint import NnunetCheckpoint

_log = logging.getLogger(__name__)

# The number given to datasets that have none, since nnU-Net finds models by "DatasetNNN_".
_NUMBER = 999


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedFold:
    """One fold read from nnU-Net, ready for `save_fold`.

    Attributes:
        run: Name of its run's folder in nnU-Net, TRAINER__PLANS__CONFIGURATION; the same for all
            folds of a run.
        info: The fold's description, without training cases, since these are unknown.
        weights: State dict under autoliver's names, memory-mapped from the file.
    """

    run: str
    info: FoldModel
    weights: "dict[str, Tensor]"


def read_nnunet_model(
    path: Path, *, folds: Sequence[str] | None = None, trust: bool = False
) -> list[ImportedFold]:
    """Reads every fold of a results folder or exported zip of nnU-Net v2.

    Args:
        path: A folder TRAINER__PLANS__CONFIGURATION, a folder above it with several, or a zip.
        folds: The folds to read; None: all folds that exist.
        trust: Whether a checkpoint may run code when it is read; this may be any code.

    Raises:
        AutoliverError: Something is missing, damaged, unsafe or not supported.
    """
    with open_runs(path, folds=folds) as runs:
        return [fold for run in runs for fold in _read_run(run, trust=trust)]


def read_nnunet_folds(path: Path, *, wanted: ConfigurationName | None = None) -> list[ImportedFold]:
    """Reads one fold of every run: fold `all`, else the first; or the fold of a checkpoint file.

    Args:
        path: As in `read_nnunet_model`, or a checkpoint such as RUN/fold_0/checkpoint_best.pth.
        wanted: Read only runs of this configuration, if there are any; None: all runs.

    Raises:
        AutoliverError: As in `read_nnunet_model`.
    """
    if path.suffix == ".pth":
        return _read_run(checkpoint_run(path), trust=False)
    with open_runs(path) as runs:
        ending = f"__{NAMES[wanted]}" if wanted else ""
        runs = [run for run in runs if run.path.name.endswith(ending)] or runs
        return [fold for run in runs for fold in _read_run(_one_fold(run), trust=False)]


def _one_fold(run: NnunetRun) -> NnunetRun:
    fold = "all" if "all" in run.folds else min(run.folds)
    return NnunetRun(path=run.path, folds={fold: run.folds[fold]})


def write_nnunet_model(
    folds: Sequence[tuple[FoldModel, "Mapping[str, Tensor]"]],
    folder: Path,
    *,
    number: int | None = None,
) -> Path:
    """Writes folds as a folder that nnU-Net can predict with.

    Args:
        folds: Descriptions and state dicts of the folds, all of one run.
        folder: The folder to be used as nnU-Net's `nnUNet_results`.
        number: The dataset's number in nnU-Net; None: the number in its name, else 999.

    Returns:
        The folder folder/DatasetNNN_Name/nnUNetTrainer__nnUNetPlans__CONFIGURATION, which can be
        passed to `nnUNetv2_predict_from_modelfolder -m`.

    Raises:
        AutoliverError: The folds disagree, nnU-Net does not support a feature of the model, or the
            folder already exists.
    """
    from autoliver.nnunet.checkpoint import write_checkpoint

    info = _common(folds)
    name = NAMES[info.configuration]
    dataset = _dataset_name(info.plan.dataset, number)
    plans = nnunet_plans(info.plan, info.configuration, dataset=dataset)
    head = nnunet_dataset(info.plan, cases=len({c for each, _ in folds for c in each.cases}))
    target = folder / dataset / f"nnUNetTrainer__{PLANS_NAME}__{name}"
    if target.exists():
        raise ModelError(f"{target}: already exists.", hint="Remove it, or choose another folder.")
    spec = info.decisions.network
    with replacing(target) as beside:
        write_bytes(beside / PLANS_FILE, _json(plans))
        write_bytes(beside / DATASET_FILE, _json(head))
        for each, weights in folds:
            fold = int(each.fold) if each.fold.isdigit() else each.fold
            write_checkpoint(
                beside / f"fold_{fold}" / FINAL_FILE,
                _nnunet_weights(weights, spec),
                start={"plans": plans, "configuration": name, "fold": fold, "dataset_json": head},
                epochs=each.epochs,
                mirror_axes=each.mirror_axes,
            )
    return target


def _read_run(run: NnunetRun, *, trust: bool) -> list[ImportedFold]:
    from autoliver.nnunet.checkpoint import read_checkpoint

    plans = read_plans(run.path / PLANS_FILE)
    description = read_description(run.path, trained=True)
    if description.painting:
        _log.warning(
            "%s: %s (That is for a new training; this model paints as nnU-Net does.)",
            *(run.path.name, description.painting),
        )
    checkpoints = {
        name: read_checkpoint(path, trust=trust) for name, path in sorted(run.folds.items())
    }
    first = next(iter(checkpoints.values()))
    imported = []
    for fold, checkpoint in checkpoints.items():
        where = f"{run.path.name}/fold_{fold}"
        for what in ("trainer", "configuration"):
            if getattr(checkpoint, what) != getattr(first, what):
                raise ModelError(
                    f"{where}: its {what} is {getattr(checkpoint, what)}, that of the other folds "
                    f"is {getattr(first, what)}.",
                    hint="Import folds of one training only.",
                )
        info = _fold_model(plans, description, checkpoint, fold=fold, where=where)
        spec = info.decisions.network
        weights = _our_weights(checkpoint, spec, where)
        imported.append(ImportedFold(run=run.path.name, info=info, weights=weights))
    return imported


def _fold_model(
    plans: Mapping[str, Any],
    description: Description,
    checkpoint: "NnunetCheckpoint",
    *,
    fold: str,
    where: str,
) -> FoldModel:
    name = checkpoint.configuration
    source = f"{where.partition('/')[0]}/{PLANS_FILE}"
    plan, configuration = plan_from_nnunet(plans, description, configuration=name, where=source)
    if checkpoint.plans:
        own = plan_from_nnunet(checkpoint.plans, description, configuration=name, where=where)
        if own[0].replace(dataset=plan.dataset, reasons={}) != plan.replace(reasons={}):
            raise ModelError(
                f"{where}: was trained with other plans than {source} holds.",
                hint="Take plans.json and the folds from one training.",
            )
    dimension = plan.configurations[configuration].dimension
    if any(not 0 <= axis < dimension for axis in checkpoint.mirror_axes):
        raise ModelError(
            f"{where}: flips the axes {checkpoint.mirror_axes}, but has only {dimension} axes.",
            hint="Take plans.json and the folds from one training.",
        )
    return FoldModel(
        made_from={"checkpoint": checkpoint.digest},
        plan=plan,
        configuration=configuration,
        fold=fold,
        cases=(),
        epochs=checkpoint.epochs,
        mirror_axes=checkpoint.mirror_axes,
        weights_sha256="",
        previous_run=plan.configurations[configuration].previous_stage,
    )


def _our_weights(
    checkpoint: "NnunetCheckpoint", spec: NetworkSpec, where: str
) -> "dict[str, Tensor]":
    from autoliver.networks.build import build_without_weights
    from autoliver.networks.checkpoint import check_fit
    from autoliver.nnunet.names import from_nnunet

    network = build_without_weights(spec, deep_supervision=False)
    try:
        weights = from_nnunet(checkpoint.weights, spec)
        check_fit(weights, network, where="nnU-Net weights")
    except ModelError as error:
        hint = error.hint
        if checkpoint.trainer != "nnUNetTrainer":
            hint = (
                f"The trainer {checkpoint.trainer} may build another network than the plan says; "
                "only the plan's network can be imported."
            )
        raise ModelError(f"{where}: {error.problem}", hint=hint) from None
    return weights


def _nnunet_weights(weights: "Mapping[str, Tensor]", spec: NetworkSpec) -> "dict[str, Tensor]":
    import torch

    from autoliver.nnunet.names import to_nnunet

    # Cloned, since torch would save the whole storage of a tensor that is a view of a larger one.
    own = {
        name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in weights.items()
    }
    return to_nnunet(own, spec)


def _common(folds: Sequence[tuple[FoldModel, "Mapping[str, Tensor]"]]) -> FoldModel:
    """Returns the first fold's description after checking that all others agree with it."""
    if not folds:
        raise ModelError(
            "There is no fold to export.", hint="Train one first: autoliver train DATASET CONFIG"
        )
    first = folds[0][0]
    for info, _ in folds:
        if (info.configuration, info.plan.digest()) != (first.configuration, first.plan.digest()):
            raise ModelError(
                f"Fold {info.fold} was trained with another plan than fold {first.fold}.",
                hint="Export them one by one.",
            )
    return first


def _dataset_name(name: str, number: int | None) -> str:
    match = re.fullmatch(r"Dataset(\d{3})_(.+)", name)
    if match and number in (None, int(match[1])):
        return name
    return f"Dataset{_NUMBER if number is None else number:03d}_{short_name(name)}"


def _json(content: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=4) + b"\n"
