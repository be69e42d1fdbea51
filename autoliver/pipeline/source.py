"""What `--pretrained` and `--like` name: a trained fold to begin with, a plan to follow."""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.dataset import short_name
from autoliver.errors import ModelError
from autoliver.inference.archive import open_archive
from autoliver.inference.archive_zip import is_archive
from autoliver.inference.model import MODEL_FILE, WEIGHTS_FILE, FoldModel, Place
from autoliver.planning.plan import ConfigurationName, Plan
from autoliver.workspace import ModelFolder, RunFolder, Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from autoliver.inference.nnunet_model import ImportedFold
    from autoliver.networks.spec import UNetSpec

_log = logging.getLogger(__name__)

IMAGENET = "imagenet"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained fold whose weights another training may begin with.

    Attributes:
        name: Short, for names of files.
        fold: Which: MODEL/RUN fold FOLD.
        where: Where it was found, for people.
        info: What the fold says of itself; None of a file of weights alone.
        spec: Its network.
        digest: Of its weights.
        read: Reads its weights, by our names.
    """

    name: str
    fold: str
    where: str
    info: FoldModel | None
    spec: "UNetSpec"
    digest: str
    read: "Callable[[], dict[str, Tensor]]"

    def plan_for(self, name: ConfigurationName) -> Plan | None:
        """Its plan with its configuration alone, under the name that the target's has."""
        if self.info is None:
            return None
        return self.info.plan.replace(configurations={name: self.info.decisions})


@dataclass(frozen=True)
class _Run:
    """A run of any model: its name and the folders of its folds."""

    name: str
    folds: tuple[Place, ...]

    @property
    def parts(self) -> RunFolder:
        """What its name says."""
        return RunFolder(Path(self.name))


def find_source(
    workspace: Workspace, name: str, *, wanted: ConfigurationName, target: str
) -> Source:
    """The trained fold that a name means.

    Looked up in this order: a path (a run's or a fold's folder, a folder of runs, an exported
    file, nnU-Net's folder, zip or checkpoint, a file of weights); a dataset of the workspace with
    a run of the configuration; an imported model. NAME/RUN names one of several runs.

    Args:
        workspace: Where names are looked up.
        name: As given.
        wanted: The configuration to be trained: a run of the same is taken.
        target: Short name of the target: a run that was planned like it comes first.

    Raises:
        ModelError: There is none, several could be meant, or what there is cannot be used.
    """
    if Path(name).exists():
        source = _of_path(Path(name), wanted, target)
    else:
        source = _of_name(workspace, name, wanted, target)
    dimension = 2 if wanted == "2d" else 3
    if source.spec.dimension != dimension:
        raise _other_dimension(source, wanted, dimension)
    return source


def find_plan(workspace: Workspace, name: str) -> tuple[str, Plan] | None:
    """The plan of a model that a path or a name means, with a short name; None: no model.

    A dataset is none here, unless one of its runs is named: its plan is in its folder.

    Raises:
        ModelError: A file or folder is damaged.
    """
    path = Path(name)
    if path.exists():
        if not _is_model(path):
            return None
        runs = _runs_of_path(path)
        if runs is None:
            plan = _nnunet_fold(path, "3d_fullres").info.plan
            return safe(short_name(plan.dataset)), plan
        plan = _joined_plan(runs)
        return safe(short_name(plan.dataset)), plan
    model, _, run = name.partition("/")
    folders = [f for f in workspace.trained(model) if run or f in workspace.models]
    for folder in folders:
        runs = [each for each in _runs(folder) if run in ("", each.name)]
        if runs:
            return safe(short_name(folder.name)), _joined_plan(runs)
    return None


def safe(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "source"


def _joined_plan(runs: Sequence[_Run]) -> Plan:
    """One plan with the configurations of all runs; of two of the same, the first one's."""
    infos = [FoldModel.load(run.folds[0] / MODEL_FILE) for run in runs]
    configurations = {info.configuration: info.decisions for info in reversed(infos)}
    return infos[0].plan.replace(configurations=configurations)


def _is_model(path: Path) -> bool:
    from autoliver.pipeline.models import kind_of

    folder = RunFolder(path)
    return bool(
        path.suffix == ".safetensors"
        or (path / MODEL_FILE).exists()
        or folder.finished
        or ModelFolder(path).runs
        or kind_of(path) is not None
        or path.suffix == ".pth"
    )


def _of_path(path: Path, wanted: ConfigurationName, target: str) -> Source:
    if path.suffix == ".safetensors" and not (path.parent / MODEL_FILE).exists():
        return _bare(path)
    runs = _runs_of_path(path)
    if runs is None:
        return _nnunet(path, wanted)
    # What is named is taken, even where it is of another configuration.
    run = runs[0] if len(runs) == 1 else _choose(runs, wanted, target, whose=str(path))
    return _of_run(run, name="", where=f"the path {path}")


def _runs_of_path(path: Path) -> list[_Run] | None:
    """The runs of a path; None: it is nnU-Net's.

    Raises:
        ModelError: It is no model at all.
    """
    if path.name == WEIGHTS_FILE:
        path = path.parent
    folder = path.resolve()  # "." has a name, too
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
    if not _is_model(path):
        raise ModelError(
            f"{path}: neither a trained model of autoliver nor one of nnU-Net.",
            hint="Give a run's folder (WORKSPACE/DATASET/runs/2d), an exported file, a file of "
            "weights (.safetensors), or nnU-Net's results folder or checkpoint.",
        )
    return None


def _of_name(workspace: Workspace, name: str, wanted: ConfigurationName, target: str) -> Source:
    if name.lower() == IMAGENET:
        raise ModelError(
            "--pretrained imagenet: no network of this version takes ImageNet's weights.",
            hint=_known(workspace, wanted),
        )
    model, _, asked = name.partition("/")
    # Datasets come before imported models; one without a run of the configuration does not count.
    found = [(folder, _runs(folder)) for folder in workspace.trained(model)]
    for folder, runs in found:
        exact = [run for run in runs if run.name == asked]
        fitting = exact or [run for run in runs if run.parts.configuration == wanted]
        if fitting and (exact or not asked):
            run = exact[0] if exact else _choose(fitting, wanted, target, whose=folder.name)
            kind = "an imported model" if folder in workspace.models else "a run of this workspace"
            return _of_run(run, name=short_name(folder.name), where=kind)
    there = [f"{folder.name}/{run.name}" for folder, runs in found for run in runs]
    if there:
        what = f"run {asked}" if asked else f"trained {wanted}"
        raise ModelError(
            f"--pretrained {name}: it has no {what}, but {', '.join(there)}.",
            hint=f"Train it (autoliver train {model} {wanted} --fold all), or name another run: "
            f"--pretrained {there[0]}",
        )
    if found:
        raise ModelError(
            f"--pretrained {name}: {found[0][0].name} is planned, but nothing of it is trained.",
            hint=f"Train it: autoliver train {model} {wanted} --fold all",
        )
    raise ModelError(
        f"--pretrained {name}: there is no such file, trained dataset or imported model.",
        hint=_known(workspace, wanted),
    )


def _choose(runs: Sequence[_Run], wanted: str, target: str, *, whose: str) -> _Run:
    """The run of the configuration: one planned like the target, else the plain one."""
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
            f"{whose}: it has no trained {wanted}, but {there}.", hint="Give one of its runs."
        )
    raise ModelError(
        f"{whose}: {len(fitting)} of its runs could be meant.",
        hint="Choose one: "
        + ", ".join(f"--pretrained {short_name(whose)}/{run.name}" for run in fitting),
    )


def _of_run(run: _Run, *, name: str, where: str) -> Source:
    """Fold `all` of a run, else its first one."""
    from autoliver.networks.checkpoint import load_weights

    folds = {place.name.removeprefix("fold_"): place for place in run.folds}
    fold = "all" if "all" in folds else min(folds)
    place = folds[fold]
    info = FoldModel.load(place / MODEL_FILE)
    name = safe(name or short_name(info.plan.dataset))
    if fold != "all":
        _log.warning(
            "%s/%s: fold %s is taken, which has not learnt from the cases it held out; train it "
            "with --fold all to use them, too.",
            *(name, run.name, fold),
        )
    return Source(
        name=name,
        fold=f"{name}/{run.name} fold {fold}",
        where=where,
        info=info,
        spec=info.decisions.network,
        digest=info.weights_sha256[:12],
        read=lambda: load_weights(place / WEIGHTS_FILE, sha256=info.weights_sha256)[0],
    )


def _bare(path: Path) -> Source:
    """A file of weights without model.json: nothing is known but the network."""
    from autoliver.networks.checkpoint import load_weights

    weights, spec = load_weights(path)
    return Source(
        name=safe(path.stem),
        fold=path.name,
        where=f"{path}, weights alone",
        info=None,
        spec=spec,
        digest=_digest(path),
        read=lambda: weights,
    )


def _nnunet(path: Path, wanted: ConfigurationName) -> Source:
    fold = _nnunet_fold(path, wanted)
    name = safe(short_name(fold.info.plan.dataset))
    return Source(
        name=name,
        fold=f"{name}/{fold.run} fold {fold.info.fold}",
        where=f"nnU-Net's, {path}",
        info=fold.info,
        spec=fold.info.decisions.network,
        digest=fold.info.made_from["checkpoint"],
        read=lambda: fold.weights,
    )


def _nnunet_fold(path: Path, wanted: ConfigurationName) -> "ImportedFold":
    from autoliver.inference.nnunet_model import read_nnunet_fold

    return read_nnunet_fold(path, wanted=wanted)


def _digest(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _runs(folder: ModelFolder) -> list[_Run]:
    return [_Run(run.path.name, run.finished) for run in folder.runs]


def _other_dimension(source: Source, wanted: str, dimension: int) -> ModelError:
    there = source.spec.dimension
    hint = (
        "That is what inflation does, which this version cannot do yet. "
        if there < dimension
        else "A slice's network cannot be made from a volume's. "
    )
    return ModelError(
        f"--pretrained {source.fold}: its network is {there}D, {wanted} is {dimension}D.",
        hint=hint + f"Give a source that was trained as {wanted}, or train the {there}D one here.",
    )


def _known(workspace: Workspace, wanted: str) -> str:
    """What could be named instead."""
    folders: Iterable[ModelFolder] = [
        *(dataset.trained for dataset in workspace.datasets),
        *workspace.models,
    ]
    names = [f"{folder.name}/{run.path.name}" for folder in folders for run in folder.runs]
    if not names:
        return (
            f"The workspace {workspace.root} holds no trained model: train one (autoliver train "
            f"DATASET {wanted} --fold all), or autoliver import FILE --name NAME."
        )
    return f"There is: {', '.join(names)}."
