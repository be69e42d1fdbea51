"""Reads models of nnU-Net as autoliver's folds, and writes folds so that nnU-Net v2 predicts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from autoliver.artifacts import write_bytes
from autoliver.datasets.description import Description, read_description
from autoliver.errors import ModelError
from autoliver.locks import only_writing
from autoliver.models.files import FoldModel
from autoliver.models.selection import CleaningRule
from autoliver.networks.spec import NetworkSpec
from autoliver.networks.unet_spec import UNetSpec
from autoliver.nnunet.export import NAMES, PLANS_NAME, nnunet_dataset, nnunet_name, nnunet_plans
from autoliver.nnunet.folder import (
    CHECKPOINT_ENDINGS,
    DATASET_FILE,
    FINAL_FILE,
    PLANS_FILE,
    V1,
    NnunetRun,
    checkpoint_run,
    open_runs,
)
from autoliver.nnunet.plan import plan_from_nnunet, read_plans
from autoliver.nnunet.v1_plan import in_the_order_of_v1, read_cleaning
from autoliver.planning.names import ConfigurationName

if TYPE_CHECKING:
    from torch import Tensor

    from autoliver.nnunet.checkpoint import NnunetCheckpoint

_log = logging.getLogger(__name__)

# nnU-Net's own trainers, which build the network that the plan describes.
_OWN_TRAINERS = ("nnUNetTrainer", "nnUNetTrainerV2", "nnUNetTrainerV2CascadeFullRes")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedFold:
    """One fold read from nnU-Net, ready for `save_fold`.

    Attributes:
        run: Name of its run's folder in nnU-Net, TRAINER__PLANS__CONFIGURATION; the same for all
            folds of a run.
        info: The fold's description, without training cases, since these are unknown.
        weights: State dict under autoliver's names, memory-mapped from the file.
        cleaning: The cleaning rules that nnU-Net v1 stores beside its folds.
    """

    run: str
    info: FoldModel
    weights: "dict[str, Tensor]"
    cleaning: tuple[CleaningRule, ...] = ()


def read_nnunet_model(
    path: Path, *, folds: Sequence[str] | None = None, trust: bool = False
) -> list[ImportedFold]:
    """Reads every fold of a results folder or exported zip of nnU-Net v2 or v1.

    Args:
        path: A folder TRAINER__PLANS__CONFIGURATION (v1: TRAINER__PLANS), a folder above it with
            several, or a zip.
        folds: The folds to read; None: all folds that exist.
        trust: Whether a checkpoint may run code when it is read; this may be any code.

    Raises:
        AutoliverError: Something is missing, damaged, unsafe or not supported.
    """
    with open_runs(path, folds=folds) as runs:
        return _read_runs(runs, trust=trust)


def read_nnunet_folds(path: Path, *, wanted: ConfigurationName | None = None) -> list[ImportedFold]:
    """Reads one fold of every run: fold `all`, else the first; or the fold of a checkpoint file.

    Args:
        path: As in `read_nnunet_model`, or a checkpoint such as RUN/fold_0/checkpoint_best.pth.
        wanted: Read only runs of this configuration, if there are any; None: all runs.

    Raises:
        AutoliverError: As in `read_nnunet_model`.
    """
    if path.suffix in CHECKPOINT_ENDINGS:
        return _read_runs([checkpoint_run(path)], trust=False)
    with open_runs(path) as runs:
        runs = [run for run in runs if wanted and _is_of(run, NAMES[wanted])] or runs
        return _read_runs([_one_fold(run) for run in runs], trust=False)


def _read_runs(runs: Sequence[NnunetRun], *, trust: bool) -> list[ImportedFold]:
    found = [fold for run in runs for fold in _read_run(run, trust=trust)]
    if any(run.version == 1 and not (run.path / DATASET_FILE).is_file() for run in runs):
        _log.warning(
            "nnU-Net v1 keeps no names of labels: they are called %s. To name them otherwise, put "
            "the dataset's dataset.json beside each plans.pkl.",
            ", ".join(name for name in found[0].info.plan.labels.values if name != "background"),
        )
    return found


def _one_fold(run: NnunetRun) -> NnunetRun:
    fold = "all" if "all" in run.folds else min(run.folds)
    return replace(run, folds={fold: run.folds[fold]})


def _is_of(run: NnunetRun, configuration: str) -> bool:
    """Whether the folders' names say that a run is of a configuration."""
    if run.version == 1:
        return run.path.parents[1].name == configuration
    return run.path.name.endswith(f"__{configuration}")


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
        number: The dataset's number in nnU-Net; None: the number in its name, else a free one.

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
    if info.decisions.normalize_after_resampling:
        _log.warning(
            "%s: nnU-Net v2 normalises before it resamples and averages logits; this model of "
            "nnU-Net v1 does not, so some voxels can get other labels there.",
            name,
        )
    dataset = nnunet_name(info.plan.dataset, folder, number=number)
    plans = nnunet_plans(info.plan, info.configuration, dataset=dataset)
    head = nnunet_dataset(info.plan, cases=len({c for each, _ in folds for c in each.cases}))
    target = folder / dataset / f"nnUNetTrainer__{PLANS_NAME}__{name}"
    if target.exists():
        raise ModelError(f"{target}: already exists.", hint="Remove it, or choose another folder.")
    spec = info.decisions.network
    with only_writing(target) as beside:
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
    plans, description, checkpoints = _content(run, trust=trust)
    if description.painting:
        _log.warning(
            "%s: %s (That is for a new training; this model paints as nnU-Net does.)",
            *(run.path.name, description.painting),
        )
    first = next(iter(checkpoints.values()))
    imported: list[ImportedFold] = []
    cleaning = _cleaning(run, description)
    for fold, checkpoint in checkpoints.items():
        where = f"{run.path.name}/{run.folds[fold].parent.name}"
        for what in ("trainer", "configuration"):
            if getattr(checkpoint, what) != getattr(first, what):
                raise ModelError(
                    f"{where}: its {what} is {getattr(checkpoint, what)}, that of the other folds "
                    f"is {getattr(first, what)}.",
                    hint="Import folds of one training only.",
                )
        info = _fold_model(plans, description, checkpoint, fold=fold, run=run)
        if info.configuration == "3d_lowres":
            info = info.replace(next_stage_cleaning=cleaning)
        weights = _our_weights(checkpoint, info.decisions.network, where, version=run.version)
        # The folders of v1 do not say the configuration, which makes the name unique.
        name = f"{run.path.name}__{checkpoint.configuration}"
        name = name if run.version == 1 else run.path.name
        imported.append(ImportedFold(run=name, info=info, weights=weights, cleaning=cleaning))
    return imported


def _content(
    run: NnunetRun, *, trust: bool
) -> "tuple[dict[str, Any], Description, dict[str, NnunetCheckpoint]]":
    """Reads plans, dataset.json and checkpoints of a run, all as nnU-Net v2 has them."""
    if run.version == 1:
        from autoliver.nnunet.v1_model import read_v1_run

        return read_v1_run(run, trust=trust)
    from autoliver.nnunet.checkpoint import read_checkpoint

    return (
        read_plans(run.path / PLANS_FILE),
        read_description(run.path, trained=True),
        {fold: read_checkpoint(path, trust=trust) for fold, path in sorted(run.folds.items())},
    )


def _fold_model(
    plans: Mapping[str, Any],
    description: Description,
    checkpoint: "NnunetCheckpoint",
    *,
    fold: str,
    run: NnunetRun,
) -> FoldModel:
    name = checkpoint.configuration
    file = V1.plans if run.version == 1 else PLANS_FILE
    source, where = f"{run.path.name}/{file}", f"{run.path.name}/{run.folds[fold].parent.name}"
    plan, configuration = plan_from_nnunet(plans, description, configuration=name, where=source)
    if checkpoint.plans:
        own = plan_from_nnunet(checkpoint.plans, description, configuration=name, where=where)
        if own[0].replace(dataset=plan.dataset, reasons={}) != plan.replace(reasons={}):
            raise ModelError(
                f"{where}: was trained with other plans than {source} holds.",
                hint=f"Take {file} and the folds from one training.",
            )
    if run.version == 1:
        plan = in_the_order_of_v1(plan)
    dimension = plan.configurations[configuration].dimension
    if any(not 0 <= axis < dimension for axis in checkpoint.mirror_axes):
        raise ModelError(
            f"{where}: flips the axes {checkpoint.mirror_axes}, but has only {dimension} axes.",
            hint=f"Take {file} and the folds from one training.",
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


def _cleaning(run: NnunetRun, description: Description) -> tuple[CleaningRule, ...]:
    if run.version != 1 or description.labels is None:
        return ()
    return read_cleaning(run.path, description.labels.values)


def _our_weights(
    checkpoint: "NnunetCheckpoint", spec: NetworkSpec, where: str, *, version: int
) -> "dict[str, Tensor]":
    from autoliver.networks.build import build_without_weights
    from autoliver.networks.checkpoint import check_fit
    from autoliver.nnunet.names import from_nnunet
    from autoliver.nnunet.v1_model import weights_from_v1

    network = build_without_weights(spec, deep_supervision=False)
    try:
        if version == 1 and isinstance(spec, UNetSpec):
            weights = weights_from_v1(checkpoint.weights, spec)
        else:
            weights = from_nnunet(checkpoint.weights, spec)
        check_fit(weights, network, where="nnU-Net weights")
    except ModelError as error:
        hint = error.hint
        if checkpoint.trainer not in _OWN_TRAINERS:
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


def _json(content: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=4) + b"\n"
