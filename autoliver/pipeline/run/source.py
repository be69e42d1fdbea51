"""Finds what `--pretrained` and `--like` name: a trained fold to start from, a plan to follow."""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.artifacts import file_sha256
from autoliver.commands import command
from autoliver.datasets.cases import short_name
from autoliver.datasets.names import near_path, nearest
from autoliver.errors import ModelError
from autoliver.models.archive import open_archive
from autoliver.models.archive_zip import is_archive
from autoliver.models.files import (
    MODEL_FILE,
    WEIGHTS_FILE,
    FoldModel,
    Place,
    fold_folder_name,
    one_fold,
)
from autoliver.nnunet.folder import CHECKPOINT_ENDINGS
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Plan
from autoliver.workspace import ModelFolder, RunFolder, Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from autoliver.networks.spec import NetworkSpec
    from autoliver.nnunet.model import ImportedFold


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained fold whose weights another training may start from.

    Attributes:
        name: Short name, used in names of files.
        fold: NAME/RUN/fold_N; `--pretrained` takes it if the fold was found by name. For a file of
            weights alone, the name of the file.
        where: Where it was found, in words for the user.
        again: The value of `--like` that follows its plan.
        info: The content of its model.json; None for a file of weights alone.
        spec: The specification of its network.
        digest: Identifies its weights.
        read: Reads its weights, under autoliver's parameter names.
        channels: Of an encoder that was trained for classification, its image channels; empty for
            networks for segmentation.
    """

    name: str
    fold: str
    where: str
    again: str
    info: FoldModel | None
    spec: "NetworkSpec"
    digest: str
    read: "Callable[[], dict[str, Tensor]]"
    channels: tuple[str, ...] = ()

    @property
    def seen(self) -> tuple[str, ...]:
        """The `image_key` of each case that its weights, or weights before them, have seen."""
        info = self.info
        return () if info is None else tuple(dict.fromkeys((*info.trained_on, *info.seen_before)))

    @property
    def ancestors(self) -> tuple[str, ...]:
        """Digests of its weights and of those before them, the last first."""
        return (self.digest, *(() if self.info is None else self.info.ancestors))

    def plan_for(self, name: ConfigurationName) -> Plan | None:
        """Returns its plan with its own configuration only, renamed to the target's configuration.

        3d_fullres can follow a 2D configuration, which keeps its name. None if there is no
        model.json, or the source's network cannot be followed in the target's dimension.
        """
        if self.info is None:
            return None
        if self.spec.dimension != _dimension(name):
            decisions = self.info.decisions
            plane = self.info.plan.replace(configurations={"2d": decisions})
            return plane if name == "3d_fullres" else None
        # A cascade may start from the weights of a plain network, and the other way round.
        previous: ConfigurationName | None = "3d_lowres" if name == "3d_cascade" else None
        decisions = self.info.decisions.replace(previous_stage=previous)
        return self.info.plan.replace(configurations={name: decisions})


@dataclass(frozen=True)
class _Run:
    """A run of any model.

    Attributes:
        name: Name of the run.
        folds: Folders of its finished folds, on disk or in an exported file.
    """

    name: str
    folds: tuple[Place, ...]

    @property
    def parts(self) -> RunFolder:
        """A `RunFolder` that parses the name into configuration, source and tag."""
        return RunFolder(Path(self.name))


def find_source(
    workspace: Workspace, name: str, *, wanted: ConfigurationName, target: str
) -> Source:
    """Finds the trained fold that a name means.

    A path is the folder of a run or a fold, a folder of runs, an exported file, nnU-Net's folder,
    zip or checkpoint, or a file of weights. Any other name is that of a dataset of the workspace
    with a run of the configuration, or of an imported model. NAME/RUN names one of several runs,
    NAME/RUN/fold_N one of its folds. Where a configuration has one run alone, RUN may be the
    configuration.

    Args:
        workspace: The workspace in which names are looked up.
        name: The name or path, as given.
        wanted: The configuration to be trained; a run of the same configuration is chosen.
        target: Short name of the target dataset; a run that was planned like it is preferred.

    Raises:
        ModelError: There is no such fold, or several could be meant.
    """
    path = Path(name)
    if names_model(path):
        return _of_path(path, wanted, target)
    # The folder of a dataset stands for the runs that were trained on it.
    known = path.exists() and workspace.trained(path.resolve().name)
    return _of_name(workspace, path.resolve().name if known else name, wanted, target)


def find_plan(workspace: Workspace, name: str) -> tuple[str, Plan] | None:
    """Finds the plan of a model that a path or a name means.

    A dataset does not count as a model here, unless one of its runs is named. Its plan is in its
    own folder.

    Returns:
        A short name and the plan; None if no model has that name.

    Raises:
        ModelError: A file or folder is damaged.
    """
    path = Path(name)
    if names_model(path):
        runs = _runs_of_path(path)
        infos = _infos(runs) if runs else [fold.info for fold in _nnunet_folds(path)]
        return safe(short_name(infos[0].plan.dataset)), _joined_plan(infos)
    model, _, run = name.partition("/")
    found = workspace.trained(model)
    folders = [f for f in found if run or f in workspace.models]
    if folders and not run and len(found) > 1:
        raise _several(workspace, f"'{name}'", found)
    for folder in folders:
        runs = _runs(folder)
        runs = _named(folder, runs, run) if run else runs
        if runs:
            return safe(short_name(folder.name)), _joined_plan(_infos(runs))
    return None


def safe(name: str) -> str:
    """Returns a name in a form that can be part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "source"


def _infos(runs: Sequence[_Run]) -> list[FoldModel]:
    return [FoldModel.load(run.folds[0] / MODEL_FILE) for run in runs]


def _joined_plan(infos: Sequence[FoldModel]) -> Plan:
    """Joins the configurations of all folds into one plan; of equal names the first one is used."""
    configurations = {info.configuration: info.decisions for info in reversed(infos)}
    return infos[0].plan.replace(configurations=configurations)


def names_model(path: Path) -> bool:
    """Whether a model, or a file that claims to be one, is at a path."""
    return path.exists() and _is_model(path)


def _is_model(path: Path) -> bool:
    """Whether a path is a model of any kind, or a file that claims to be one."""
    from autoliver.pipeline.models import kind_of

    folder = path.resolve()  # so that "." has a name
    if path.is_file():
        return True
    if (folder / "imagesTr").is_dir() or (folder / "images").is_dir():
        return False  # a dataset, perhaps of thousands of files to look through
    ours = (folder / MODEL_FILE).exists() or RunFolder(folder).finished or ModelFolder(folder).runs
    return bool(ours) or kind_of(path) is not None


def _of_path(path: Path, wanted: ConfigurationName, target: str) -> Source:
    if _is_bare(path):
        return _bare(path)
    runs = _runs_of_path(path)
    if runs is None:
        return _nnunet(path, wanted)
    # A run that is named explicitly is used even if it is of another configuration.
    run = runs[0] if len(runs) == 1 else _choose(runs, wanted, target, whose=str(path))
    return _of_run(run, name="", where=f"the path {path}", again=str(path))


def _is_bare(path: Path) -> bool:
    """Whether a file contains weights without a model.json beside it."""
    beside = path.name == WEIGHTS_FILE and (path.parent / MODEL_FILE).exists()
    return path.suffix == ".safetensors" and not beside


def _runs_of_path(path: Path) -> list[_Run] | None:
    """Returns the runs at a path; None if it may be a model of nnU-Net.

    Raises:
        ModelError: The path is not a model, or a file of weights alone.
    """
    if path.name == WEIGHTS_FILE:
        path = path.parent
    folder = path.resolve()  # so that "." has a name
    if is_archive(path):
        members = open_archive(path).files().members
        parts = [folds for member in members for folds in (member.folds, member.previous) if folds]
        return [_Run(folds[0].parent.name, folds) for folds in parts]
    if (folder / MODEL_FILE).exists() and (folder / WEIGHTS_FILE).exists():
        return [_Run(folder.parent.name, (folder,))]
    if RunFolder(folder).finished:
        return [_Run(folder.name, RunFolder(folder).finished)]
    if ModelFolder(folder).runs:
        return _runs(ModelFolder(folder))
    if _is_bare(path):
        raise ModelError(
            f"{path}: a file of weights alone has no plan to follow.",
            hint="Give the folder of the fold that they come from.",
        )
    if path.is_file() and path.suffix not in (*CHECKPOINT_ENDINGS, ".zip"):
        raise ModelError(
            f"{path}: this is neither a trained model of autoliver nor one of nnU-Net.",
            hint="Give a run's folder (WORKSPACE/DATASET/runs/2d), an exported file, a file of "
            "weights (.safetensors), or nnU-Net's results folder or checkpoint.",
        )
    return None


def _of_name(workspace: Workspace, name: str, wanted: ConfigurationName, target: str) -> Source:
    model, _, asked = name.partition("/")
    asked, _, fold = asked.partition("/")
    # A dataset or model without a run of the configuration is passed over.
    found = [(folder, _runs(folder)) for folder in workspace.trained(model)]
    fits: list[tuple[ModelFolder, _Run]] = []
    for folder, runs in found:
        if asked:
            fits += [(folder, run) for run in _named(folder, runs, asked)]
        elif any(run.parts.configuration == wanted for run in runs):
            fits.append((folder, _choose(runs, wanted, target, whose=folder.name)))
    if len(fits) > 1:
        raise _several(workspace, f"--pretrained {name}", [folder for folder, _ in fits])
    if fits:
        folder, run = fits[0]
        kind = "an imported model" if folder in workspace.models else "a run of this workspace"
        short, again = short_name(folder.name), f"{folder.name}/{run.name}"
        return _of_run(_with_fold(run, fold, name), name=short, where=kind, again=again)
    there = [f"{folder.name}/{run.name}" for folder, runs in found for run in runs]
    if there:
        what = f"run {asked}" if asked else f"trained {wanted}"
        raise ModelError(
            f"--pretrained {name}: it has no {what}, only {', '.join(there)}.",
            hint=_other_run(workspace, name, found, wanted),
        )
    if found:
        raise ModelError(
            f"--pretrained {name}: {found[0][0].name} is planned, but nothing is trained on it.",
            hint="Train it: "
            + command("train", model, wanted, options=["--fold", "all"], workspace=workspace.root),
        )
    raise ModelError(
        f"--pretrained {name}: there is no such file, trained dataset or imported model.",
        hint=workspace.hint_of_translation(name) or _known(workspace, wanted, typed=name),
    )


def _named(folder: ModelFolder, runs: Sequence[_Run], asked: str) -> list[_Run]:
    """Returns the run of a name, or else the only one of a configuration, whatever its suffix.

    Args:
        folder: The model, for errors.
        runs: Its runs.
        asked: Name of a run or of a configuration.

    Returns:
        The run; empty if there is none.

    Raises:
        ModelError: Several runs of the configuration could be meant.
    """
    exact = [run for run in runs if run.name == asked]
    found = exact or [run for run in runs if run.parts.configuration == asked]
    if len(found) > 1:
        raise ModelError(
            f"{folder.name}/{asked}: {len(found)} of its runs could be meant.",
            hint="Give one of these instead: "
            + ", ".join(shlex.quote(f"{folder.name}/{run.name}") for run in found),
        )
    return found


def _several(workspace: Workspace, name: str, folders: Sequence[ModelFolder]) -> ModelError:
    may = " or ".join(map(workspace.told_apart, folders))
    return ModelError(f"{name} may mean {may}.", hint="Give one of these instead.")


def _other_run(
    workspace: Workspace,
    name: str,
    found: Sequence[tuple[ModelFolder, Sequence[_Run]]],
    wanted: ConfigurationName,
) -> str:
    """Hints at what can be named instead of a run that is not there, or done to have it."""
    every = [(folder, run) for folder, runs in found for run in runs]
    runs = [f"{folder.name}/{run.name}" for folder, run in every if _fits_dimension(run, wanted)]
    others = [f"{f.name}/{run.name}" for f, run in every if not _fits_dimension(run, wanted)]
    near = nearest(name, [*runs, *others]) if "/" in name else ""
    if near:
        return f"Did you mean {shlex.quote(near)}?"
    datasets = [folder.name for folder, _ in found if folder not in workspace.models]
    ways = []
    if len(datasets) == 1:
        train = command(
            *("train", datasets[0], wanted),
            options=["--fold", "all"],
            workspace=workspace.root,
        )
        ways.append(f"Train it: {train}")
    if runs:
        ways.append(f"Name another run: --pretrained {shlex.quote(runs[0])}")
    elif others:
        what = "Take the depth from a 3D" if wanted == "2d" else "Inflate a 2D"
        ways.append(f"{what} network: --pretrained {shlex.quote(others[0])}")
    return "\n".join(ways) or _known(workspace, wanted)


def _fits_dimension(run: _Run, wanted: str) -> bool:
    return _dimension(run.parts.configuration) == _dimension(wanted)


def _dimension(configuration: str) -> int:
    return 2 if configuration == "2d" else 3


def _with_fold(run: _Run, fold: str, name: str) -> _Run:
    """Returns the run with only the requested fold; unchanged if no fold is requested.

    Raises:
        ModelError: There is no such fold.
    """
    if not fold:
        return run
    folds = tuple(place for place in run.folds if place.name == fold)
    if not folds:
        there = ", ".join(place.name for place in run.folds)
        raise ModelError(f"--pretrained {name}: there is no {fold}.", hint=f"Choose from: {there}.")
    return _Run(run.name, folds)


def _choose(runs: Sequence[_Run], wanted: str, target: str, *, whose: str) -> _Run:
    """Chooses the run of a configuration: the one planned like the target, or else the plain one.

    Args:
        runs: The runs to choose from.
        wanted: The configuration.
        target: Short name of the target dataset.
        whose: Name of the model, for errors.

    Raises:
        ModelError: There is no run of the configuration, or several could be meant.
    """
    fitting = [run for run in runs if run.parts.configuration == wanted]
    for name in (f"{wanted}@{target}", wanted):
        exact = [run for run in fitting if run.name == name]
        if exact:
            return exact[0]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        there = ", ".join(run.name for run in runs)
        raise ModelError(
            f"{whose}: it has no trained {wanted}, only {there}.", hint="Give one of its runs."
        )
    raise ModelError(
        f"{whose}: {len(fitting)} of its runs could be meant.",
        hint="Choose one: "
        + ", ".join(f"--pretrained {run.folds[0].parent}" for run in fitting)
        + ".",
    )


def _of_run(run: _Run, *, name: str, where: str, again: str) -> Source:
    """Returns fold `all` of a run as the source, or else its first fold."""
    from autoliver.networks.checkpoint import load_network

    def read() -> "dict[str, Tensor]":
        network = info.decisions.network
        path = place / WEIGHTS_FILE
        return dict(load_network(path, sha256=info.weights_sha256, expected=network).state_dict())

    place = one_fold(run.folds)
    info = FoldModel.load(place / MODEL_FILE)
    name = safe(name or short_name(info.plan.dataset))
    return Source(
        name=name,
        fold=f"{name}/{run.name}/{place.name}",
        where=where,
        again=again,
        info=info,
        spec=info.decisions.network,
        digest=info.weights_sha256[:12],
        read=read,
    )


def _bare(path: Path) -> Source:
    """Returns a file of weights without model.json as the source; only its network is known."""
    from autoliver.networks.build import build_without_weights
    from autoliver.networks.checkpoint import check_fit, load_weights
    from autoliver.transfer.imagenet import of_classifier

    if of_classifier(path):
        raise ModelError(
            f"--pretrained {path}: weights of a network for classification, not of a model.",
            hint="Start from them with: --pretrained imagenet --encoder-weights "
            f"{shlex.quote(str(path))}",
        )
    weights, spec = load_weights(path)
    check_fit(weights, build_without_weights(spec, deep_supervision=False), where=str(path))
    return Source(
        name=safe(path.stem),
        fold=path.name,
        where=f"{path}, weights alone",
        again=str(path),
        info=None,
        spec=spec,
        digest=file_sha256(path)[:12],
        read=lambda: weights,
    )


def _nnunet(path: Path, wanted: ConfigurationName) -> Source:
    folds = _nnunet_folds(path, wanted)
    if len(folds) > 1:
        raise ModelError(
            f"{path}: {len(folds)} trained configurations could be meant: "
            f"{', '.join(fold.run for fold in folds)}.",
            hint="Give the folder of one of them.",
        )
    fold = folds[0]
    name = safe(short_name(fold.info.plan.dataset))
    return Source(
        name=name,
        fold=f"{name}/{fold.run}/{fold_folder_name(fold.info.fold)}",
        where=f"nnU-Net's, {path}",
        again=str(path),
        info=fold.info,
        spec=fold.info.decisions.network,
        digest=fold.info.made_from["checkpoint"],
        read=lambda: fold.weights,
    )


def _nnunet_folds(path: Path, wanted: ConfigurationName | None = None) -> "list[ImportedFold]":
    from autoliver.nnunet.model import read_nnunet_folds

    return read_nnunet_folds(path, wanted=wanted)


def _runs(folder: ModelFolder) -> list[_Run]:
    return [_Run(run.path.name, run.finished) for run in folder.runs]


def _known(workspace: Workspace, wanted: str, *, typed: str = "") -> str:
    """Names what was meant instead, or lists what there is, as a hint.

    Args:
        workspace: The workspace.
        wanted: The configuration to be trained; runs of another dimension are not proposed unless
            a run was named.
        typed: What the user wrote.
    """
    names, whole, every = [], [], []
    for folder in workspace.all_trained:
        runs = [run for run in _runs(folder) if _fits_dimension(run, wanted)]
        names += [f"{folder.name}/{run.name}" for run in runs]
        every += [f"{folder.name}/{run.name}" for run in _runs(folder)]
        fitting = [run.name for run in runs if run.parts.configuration == wanted]
        whole += [folder.name] if len(fitting) == 1 or wanted in fitting else []
    near = nearest(typed, every if "/" in typed else whole)
    near = near or (near_path(typed, _may_start) if typed else "")
    if near:
        return f"Did you mean {shlex.quote(near)}?"
    if not names:
        train = command(
            *("train", "OTHER", wanted), options=["--fold", "all"], workspace=workspace.root
        )
        load = command("import", "FILE", options=["--name", "NAME"], workspace=workspace.root)
        return (
            f"The workspace {workspace.root.absolute()} holds no trained model for {wanted}: train "
            f"one ({train}), or import one: {load}"
        )
    return f"Choose from: {', '.join(names)}."


def _may_start(path: Path) -> bool:
    """Whether a path looks like trained weights or models, without reading them."""
    if path.is_file():
        return path.suffix in (".safetensors", *CHECKPOINT_ENDINGS, ".zip") or is_archive(path)
    return _is_model(path)
