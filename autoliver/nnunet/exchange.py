"""Saves imported nnU-Net models as model folders, and exports autoliver's models for nnU-Net."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.errors import ModelError
from autoliver.models.files import (
    MODEL_FILE,
    WEIGHTS_FILE,
    FoldModel,
    ModelFiles,
    fold_folder_name,
    save_fold,
)
from autoliver.models.selection import SELECTION_FILE, Chosen, Selection
from autoliver.nnunet.export import nnunet_name
from autoliver.planning.names import ConfigurationName

if TYPE_CHECKING:
    from autoliver.nnunet.model import ImportedFold

_log = logging.getLogger(__name__)

# nnU-Net does not record which configuration was best, so the first of these that exists predicts.
_PREFERRED: tuple[ConfigurationName, ...] = ("3d_cascade", "3d_fullres", "3d_lowres", "2d")


def save_imported(folder: Path, folds: "Sequence[ImportedFold]", *, source: Path) -> None:
    """Writes imported nnU-Net folds as a model folder: their runs, and the selection that predicts.

    Args:
        folder: The model folder; it is empty or does not exist.
        folds: The folds, all of one dataset.
        source: The folder or file they were imported from, to be recorded.

    Raises:
        ModelError: There is only a cascade, without its first stage.
    """
    names = _run_names(folds)
    for fold in folds:
        place = folder / "runs" / names[fold.run] / fold_folder_name(fold.info.fold)
        save_fold(place, fold.weights, fold.info)
    kinds = {names[fold.run]: fold.info.configuration for fold in folds}
    run = min(_whole(kinds, source), key=lambda name: _PREFERRED.index(kinds[name]))
    chosen = [fold for fold in folds if names[fold.run] == run]
    own = tuple(fold.info.fold for fold in chosen)
    numbered = tuple(fold for fold in own if fold != "all")
    why = [f"Imported from {source.name}."]
    if len(kinds) > 1:
        others = ", ".join(f"-m NAME/{name}" for name in kinds if name != run)
        why.append(f"{run} predicts by default; for another run, use {others}.")
        _log.warning("%s", why[-1])
    selection = Selection(
        dataset=folds[0].info.plan.dataset,
        members=(Chosen(run=run, folds=numbered or own),),
        cleaning=chosen[0].cleaning,
        why=tuple(why),
    )
    selection.save(folder / SELECTION_FILE)


def _whole(kinds: Mapping[str, ConfigurationName], source: Path) -> list[str]:
    """The runs that can predict: all but a cascade without its first stage."""
    first = "3d_lowres" in kinds
    whole = [run for run, kind in kinds.items() if first or kind != "3d_cascade"]
    if not whole:
        raise ModelError(
            f"{source}: a cascade without the 3d_lowres that it starts from.",
            hint="Give the folder above that holds both, or the zip.",
        )
    return whole


def export_for_nnunet(files: ModelFiles, target: Path) -> tuple[Path, ...]:
    """Writes the members of a model, and the first stages of cascades, as nnU-Net results folders.

    Cleaning rules are not exported, and nnU-Net averages members only on request.

    Args:
        files: The model.
        target: The folder to be used as nnU-Net's `nnUNet_results`.

    Returns:
        One folder per configuration.

    Raises:
        AutoliverError: nnU-Net does not support a feature of a member, or a folder already exists.
    """
    from autoliver.networks.checkpoint import load_network
    from autoliver.nnunet.model import write_nnunet_model

    if files.cleaning:
        _log.warning(
            "%s: its cleaning rules are not exported: %s.",
            files.name,
            "; ".join(str(rule) for rule in files.cleaning),
        )
    written: list[Path] = []
    names: dict[str, str] = {}
    groups = [folds for part in files.members for folds in (part.previous, part.folds) if folds]
    for folds in dict.fromkeys(groups):
        parts = []
        for fold in folds:
            info = FoldModel.load(fold / MODEL_FILE)
            _check_fold(info)
            own = info.plan.dataset
            name = names[own] = names.get(own) or _renamed(own, target)
            info = info.replace(plan=info.plan.replace(dataset=name))
            network = load_network(
                fold / WEIGHTS_FILE,
                sha256=info.weights_sha256,
                expected=info.decisions.network,
            )
            weights = dict(network.state_dict())
            parts.append((info, weights))
        written.append(write_nnunet_model(parts, target))
    return tuple(written)


def _check_fold(info: FoldModel) -> None:
    if info.roi is not None:
        raise ModelError(
            f"{info.plan.dataset}: the model predicts in a region that another one finds (--roi), "
            "which nnU-Net cannot do.",
            hint="Export it for autoliver: leave out --format nnunet",
        )
    if info.fold != "all" and not (info.fold.isascii() and info.fold.isdigit()):
        raise ModelError(
            f"{info.plan.dataset}: a fold is named {info.fold!r}; expected a number or 'all'.",
            hint="Get the model again from whoever exported it.",
        )


def _renamed(dataset: str, target: Path) -> str:
    """The name of a dataset in nnU-Net: one folder, wherever the model came from; told if new."""
    one_folder = re.sub(r"[^\w.-]+", "-", dataset).strip("-.") or "model"
    name = nnunet_name(one_folder, target)
    if name != dataset:
        _log.warning(
            "%s is exported as %s: nnU-Net finds a dataset by a number of three digits.",
            *(dataset, name),
        )
    return name


def _run_names(folds: "Sequence[ImportedFold]") -> dict[str, str]:
    """Maps nnU-Net's name of a run to ours: the configuration, made unique where necessary."""
    configurations = {fold.run: fold.info.configuration for fold in folds}
    taken = list(configurations.values())
    return {
        run: name if taken.count(name) == 1 else f"{name}+{run.rpartition('__')[0]}"
        for run, name in configurations.items()
    }
