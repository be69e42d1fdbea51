"""Exports models to files and imports models from files or folders."""

import fnmatch
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoliver.artifacts import brief
from autoliver.datasets.cases import Labels, Modality
from autoliver.datasets.folds import folds_text
from autoliver.datasets.names import alike, refuse_inside_dataset
from autoliver.errors import ModelError, OptionError, WrongValue
from autoliver.locks import only_writing
from autoliver.models.archive import (
    ENDING,
    check_parts,
    fit_for_name,
    open_archive,
    write_archive,
)
from autoliver.models.archive_zip import is_archive
from autoliver.models.files import ModelFiles, fold_of
from autoliver.nnunet.exchange import export_for_nnunet, save_imported
from autoliver.pipeline.region import regions_of
from autoliver.planning.names import ConfigurationName
from autoliver.values import check_types, set_field
from autoliver.workspace import MODELS, ModelFolder, Workspace

_log = logging.getLogger(__name__)

Format = Literal["autoliver", "nnunet"]
# The checkpoints of nnU-Net v2 and v1.
_CHECKPOINTS = ("checkpoint_*.pth", "model_*.model")


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """A request to `export`.

    Attributes:
        folds: "0,2" or "all"; None for all finished or selected folds.
        case_names: Whether to keep the names of the training cases.
        format: The format to write, "autoliver" or "nnunet".
        overwrite: Whether to replace an existing file.
    """

    folds: str | None = None
    case_names: bool = False
    format: Format = "autoliver"
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            OptionError: A value is invalid; the message names the option and the value.
        """
        set_field(self, "folds", folds_text(self.folds))
        check_types(self, flags={"case_names": "--with-case-names"})


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """A request to `import`.

    Attributes:
        name: The name to give the model; None for the name stored in it.
        overwrite: Whether to replace an imported model of that name.
        trust: Whether to run the code that a checkpoint of nnU-Net may contain.
    """

    name: str | None = None
    overwrite: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            OptionError: A value is invalid; the message names the option and the value.
        """
        check_types(self)
        if self.name is not None and not fit_for_name(self.name):
            raise WrongValue(
                f"--name {self.name}: '{self.name}' cannot be the name of a model.",
                hint="Choose another one with --name.",
            )


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The part of a model that comes from one run.

    Attributes:
        run: Name of the run's folder.
        configuration: The configuration that was trained.
        folds: Names of the folds that the model uses.
        epochs: Number of epochs that each of these folds was trained for.
        previous: Whether the run is the first stage of a cascade rather than a member.
    """

    run: str
    configuration: ConfigurationName
    folds: tuple[str, ...]
    epochs: tuple[int, ...]
    previous: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A description of a model for people who receive it.

    Attributes:
        dataset: Name of the dataset that it was trained on.
        modality: The modality of its images.
        channels: Names of the image channels.
        labels: The labels that it predicts.
        lesion_classes: Its labels that are classes of a lesion, of which each lesion has one.
        needs_lesions: Whether it only tells the class of lesions that are given.
        region: The region that it looks at, in words; "" for whole scans.
        runs: The runs that it uses.
        cleaning: Its cleaning rules, in words.
    """

    dataset: str
    modality: Modality
    channels: tuple[str, ...]
    labels: Labels
    lesion_classes: tuple[str, ...]
    needs_lesions: bool
    region: str
    runs: tuple[RunFacts, ...]
    cleaning: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A model that was exported or imported.

    Attributes:
        name: The name that -m takes, for an exported model once it is imported.
        path: The file that was written, or the folder that the model was imported into.
        facts: A description of the model.
    """

    name: str
    path: Path
    facts: ModelFacts

    __repr__ = brief


def export_model(
    workspace: Workspace, model: str, target: Path, request: ExportRequest | None = None
) -> Moved:
    """Writes a model to one file, or for nnU-Net to its folder of results.

    Args:
        workspace: The workspace in which the model is looked up.
        model: Name, folder or exported file of the model, as for `predict -m`.
        target: The file to write; for nnU-Net the folder nnUNet_results.
        request: How to export; None for the defaults.

    Raises:
        ModelError: There is no such model, or it is damaged or incomplete.
        OptionError: The file already exists, or is a folder.
    """
    request = request or ExportRequest()
    files = workspace.model_to_predict(model, folds=request.folds)
    name = _WRITERS[request.format](files, target, request)
    for roi in regions_of(files):
        _log.warning(
            "%s predicts near the %s that %s finds, which the file does not hold.",
            *(name, roi.label, roi.model or "a model (--roi-from)"),
        )
    return Moved(name=name, path=target, facts=model_facts(files))


def import_model(workspace: Workspace, source: Path, request: ImportRequest | None = None) -> Moved:
    """Imports a model into the workspace, completely or not at all.

    Args:
        workspace: The workspace to import into.
        source: A file exported by autoliver, or nnU-Net's results folder or exported zip.
        request: How to import; None for the defaults.

    Raises:
        ModelError: The source is damaged, unsafe or not a model.
        OptionError: The name is already used, or cannot be the name of a folder.
    """
    if not source.exists():
        raise ModelError(f"{source}: there is no such file or folder.", hint="Check the path.")
    kind = kind_of(source)
    if kind is None:
        raise ModelError(
            f"{source}: this is neither an exported model of autoliver nor a model of nnU-Net.",
            hint="Pass a file that `autoliver export` or `nnUNetv2_export_model_to_zip` wrote, or "
            "the folder with nnU-Net's plans.json (v1: plans.pkl) and fold_*.",
        )
    folder = _READERS[kind](workspace, source, request or ImportRequest())
    return Moved(name=folder.name, path=folder.path, facts=model_facts(folder.selected(None)))


def kind_of(source: Path) -> Format | None:
    """Guesses from the content of a file or folder whose model it may be; None if nobody's."""
    if is_archive(source):
        return "autoliver"
    with_checkpoints = source.is_dir() and _holds_nnunet(source)
    return "nnunet" if with_checkpoints or _is_zip(source) else None


def _holds_nnunet(folder: Path) -> bool:
    """Whether a folder, or one inside it, holds files that nnU-Net writes for a model."""

    def refuse(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(folder, onerror=refuse):
        in_fold = Path(place).name.startswith("fold_")
        if "plans.json" in names or "plans.pkl" in names:
            return True
        if in_fold and any(fnmatch.filter(names, name) for name in _CHECKPOINTS):
            return True
        if Path(place).name.startswith("ensemble_") and "postprocessing.json" in names:
            return True
    return False


def new_model(workspace: Workspace, name: str, *, overwrite: bool) -> ModelFolder:
    """Returns the folder for a model that is about to be imported.

    Args:
        workspace: The workspace to import into.
        name: The model's name.
        overwrite: Whether an imported model of that name may be replaced.

    Raises:
        OptionError: The name is already used, or cannot be the name of a folder.
    """
    if not fit_for_name(name):
        raise WrongValue(
            f"{name!r} cannot be the name of a model.",
            hint="Choose one with --name: letters, digits, '.', '-', '_' and spaces between them, "
            "and none of the words that options understand, such as auto.",
        )
    folder = ModelFolder(workspace.root / MODELS / name)
    other = next((n for n in workspace.names if n != folder.path and alike(n.name, name)), None)
    if other is not None:
        what = "model" if other.parent == folder.path.parent else "dataset"
        known = "" if other.name == name else f", which is also known as {name}"
        raise OptionError(
            f"The workspace {workspace.root} has the {what} {other.name}{known}.",
            hint=f"Choose another name: --name {name}-imported",
        )
    if folder.path.exists() and not overwrite:
        raise OptionError(
            f"There is already a model {name} in the workspace {workspace.root}.",
            hint="Choose another name with --name, or replace it with --overwrite.",
        )
    return folder


def model_facts(files: ModelFiles) -> ModelFacts:
    """Describes a model.

    Raises:
        AutoliverError: A model.json is missing or damaged, or the parts do not fit together.
    """
    infos = check_parts(files)
    info = next(iter(infos.values()))
    first = info.plan
    runs = []
    for part in files.members:
        for folds, previous in ((part.folds, False), (part.previous, True)):
            own = [infos[fold] for fold in folds]
            if own:
                facts = RunFacts(
                    run=folds[0].parent.name,
                    configuration=own[0].configuration,
                    folds=tuple(map(fold_of, folds)),
                    epochs=tuple(info.epochs for info in own),
                    previous=previous,
                )
                runs.append(facts)
    return ModelFacts(
        dataset=first.dataset,
        modality=first.modality,
        channels=first.channel_names,
        labels=first.labels,
        lesion_classes=info.lesion_classes,
        needs_lesions=info.needs_lesions,
        region="" if info.roi is None else info.roi.text,
        runs=tuple(runs),
        cleaning=tuple(str(rule) for rule in files.cleaning),
    )


def _export_file(files: ModelFiles, target: Path, request: ExportRequest) -> str:
    if target.is_dir():
        hint = f"Give a file: {target / f'model{ENDING}'}"
        raise OptionError(f"{target}: this is a folder.", hint=hint)
    if target.exists() and not request.overwrite:
        raise OptionError(f"{target} already exists.", hint="Replace it with --overwrite.")
    return write_archive(target, files, case_names=request.case_names).name


def _import_file(workspace: Workspace, source: Path, request: ImportRequest) -> ModelFolder:
    archive = open_archive(source)
    name = request.name or archive.manifest.name
    folder = new_model(workspace, name, overwrite=request.overwrite)
    with only_writing(folder.path) as beside:
        archive.extract(beside)
    return folder


def _export_nnunet(files: ModelFiles, target: Path, request: ExportRequest) -> str:
    if target.is_file():
        raise OptionError(
            f"{target}: this is a file.", hint="Models of nnU-Net are folders; give a folder."
        )
    if request.overwrite:
        raise OptionError(
            "--overwrite: folders of nnU-Net are not replaced, since nnU-Net may have added files "
            "to them.",
            hint="Remove the folder, or give another one.",
        )
    refuse_inside_dataset(target)
    return export_for_nnunet(files, target)[-1].name


def _import_nnunet(workspace: Workspace, source: Path, request: ImportRequest) -> ModelFolder:
    from autoliver.nnunet.model import read_nnunet_model

    folds = read_nnunet_model(source, trust=request.trust)
    name = request.name or folds[0].info.plan.dataset
    folder = new_model(workspace, name, overwrite=request.overwrite)
    with only_writing(folder.path) as beside:
        save_imported(beside, folds, source=source)
    return folder


def _is_zip(source: Path) -> bool:
    if not source.is_file():
        return False
    with source.open("rb") as file:
        return file.read(2) == b"PK"


# Maps each format to the function that writes a model in it and returns the model's name.
_WRITERS: dict[Format, Callable[[ModelFiles, Path, ExportRequest], str]] = {
    "autoliver": _export_file,
    "nnunet": _export_nnunet,
}
# Maps each format to the function that imports a model in it.
_READERS: dict[Format, Callable[[Workspace, Path, ImportRequest], ModelFolder]] = {
    "autoliver": _import_file,
    "nnunet": _import_nnunet,
}
