"""Models that travel: one file out, one file or folder in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoliver.artifacts import replacing
from autoliver.datasets.cases import Labels, Modality
from autoliver.datasets.folds import folds_text
from autoliver.errors import ModelError, OptionError
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
from autoliver.planning.names import ConfigurationName
from autoliver.values import check_types, set_field
from autoliver.workspace import MODELS, ModelFolder, Workspace

Format = Literal["autoliver", "nnunet"]


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """How `export` was asked to work.

    Attributes:
        folds: "0,2" or "all": instead of all finished or selected folds.
        case_names: Keep the names of the training cases.
        format: For whom.
        overwrite: Replace what is there.
    """

    folds: str | None = None
    case_names: bool = False
    format: Format = "autoliver"
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuses values that cannot be.

        Raises:
            OptionError: Naming the option and its value.
        """
        set_field(self, "folds", folds_text(self.folds))
        check_types(self, flags={"case_names": "--with-case-names"})


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """How `import` was asked to work.

    Attributes:
        name: What to call the model; None: what it calls itself.
        overwrite: Replace an imported model of that name.
        trust: Run what a checkpoint of nnU-Net asks for, which may be any code.
    """

    name: str | None = None
    overwrite: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        """Refuses values that cannot be.

        Raises:
            OptionError: Naming the option and its value.
        """
        check_types(self)
        if self.name is not None and not fit_for_name(self.name):
            raise OptionError(
                f"--name {self.name}: '{self.name}' cannot be the name of a model.",
                hint="Choose another one with --name.",
            )


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a model uses of one run.

    Attributes:
        run: Its folder's name.
        configuration: What was trained.
        folds: Names of its folds.
        epochs: How many epochs each fold was trained for.
        previous: Whether it is the first stage of a cascade rather than a member.
    """

    run: str
    configuration: ConfigurationName
    folds: tuple[str, ...]
    epochs: tuple[int, ...]
    previous: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model is, for a person who got it.

    Attributes:
        dataset: What it was trained on.
        modality: The modality of its images.
        channels: Their names.
        labels: What it finds.
        runs: What predicts.
        cleaning: Rules for its label maps, in words.
    """

    dataset: str
    modality: Modality
    channels: tuple[str, ...]
    labels: Labels
    runs: tuple[RunFacts, ...]
    cleaning: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A model that was exported or imported.

    Attributes:
        name: What -m calls it, or will once it is imported.
        path: The file written, or the folder it was imported into.
        facts: What it is.
    """

    name: str
    path: Path
    facts: ModelFacts


def export_model(
    workspace: Workspace, model: str, target: Path, request: ExportRequest | None = None
) -> Moved:
    """Writes a model as one file.

    Args:
        workspace: Where models are looked up.
        model: As for `predict -m`.
        target: The file.
        request: How.

    Raises:
        ModelError: No such model, or it is damaged or incomplete.
        OptionError: The file is there already, or is a folder.
    """
    request = request or ExportRequest()
    files = workspace.model_to_predict(model, folds=request.folds)
    name = _WRITERS[request.format](files, target, request)
    return Moved(name=name, path=target, facts=model_facts(files))


def import_model(workspace: Workspace, source: Path, request: ImportRequest | None = None) -> Moved:
    """Puts a model into the workspace, whole or not at all.

    Args:
        workspace: Where to.
        source: An exported file, or nnU-Net's results folder or exported zip.
        request: How.

    Raises:
        ModelError: The file is damaged, foreign or unsafe.
        OptionError: The name is taken, or cannot be a folder's.
    """
    if not source.exists():
        raise ModelError(f"{source}: there is no such file or folder.", hint="Check the path.")
    kind = kind_of(source)
    if kind is None:
        raise ModelError(
            f"{source}: neither a model that autoliver exported nor one of nnU-Net.",
            hint="Pass what `autoliver export` or `nnUNetv2_export_model_to_zip` wrote, or the "
            "folder with nnU-Net's plans.json and fold_*.",
        )
    folder = _READERS[kind](workspace, source, request or ImportRequest())
    return Moved(name=folder.name, path=folder.path, facts=model_facts(folder.selected(None)))


def kind_of(source: Path) -> Format | None:
    """Whose model a file or folder may be, by its content."""
    if is_archive(source):
        return "autoliver"
    with_checkpoints = source.is_dir() and any(
        any(source.rglob(pattern)) for pattern in ("fold_*/checkpoint_*.pth", "plans.json")
    )
    return "nnunet" if with_checkpoints or _is_zip(source) else None


def new_model(workspace: Workspace, name: str, *, overwrite: bool) -> ModelFolder:
    """The folder of a model about to be imported.

    Raises:
        OptionError: The name is taken, or cannot be a folder's.
    """
    if not fit_for_name(name):
        raise OptionError(
            f"'{name}' cannot be the name of a model.", hint="Choose another one with --name."
        )
    taken = {dataset.name.casefold() for dataset in workspace.datasets}
    if name.casefold() in taken:
        raise OptionError(
            f"The name {name} belongs to a dataset of the workspace {workspace.root}.",
            hint=f"Choose another one: --name {name}-imported",
        )
    folder = ModelFolder(workspace.root / MODELS / name)
    if folder.path.exists() and not overwrite:
        raise OptionError(
            f"There is a model {name} in the workspace {workspace.root} already.",
            hint="Choose another name with --name, or replace it with --overwrite.",
        )
    return folder


def model_facts(files: ModelFiles) -> ModelFacts:
    """What a model is.

    Raises:
        AutoliverError: A model.json is missing or damaged, or the parts do not fit together.
    """
    infos = check_parts(files)
    first = next(iter(infos.values())).plan
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
        runs=tuple(runs),
        cleaning=tuple(str(rule) for rule in files.cleaning),
    )


def _export_file(files: ModelFiles, target: Path, request: ExportRequest) -> str:
    if target.is_dir():
        hint = f"Give a file: {target / f'model{ENDING}'}"
        raise OptionError(f"{target}: is a folder.", hint=hint)
    if target.exists() and not request.overwrite:
        raise OptionError(f"{target}: is there already.", hint="Replace it with --overwrite.")
    return write_archive(target, files, case_names=request.case_names).name


def _import_file(workspace: Workspace, source: Path, request: ImportRequest) -> ModelFolder:
    archive = open_archive(source)
    name = request.name or archive.manifest.name
    folder = new_model(workspace, name, overwrite=request.overwrite)
    with replacing(folder.path) as beside:
        archive.extract(beside)
    return folder


def _export_nnunet(files: ModelFiles, target: Path, request: ExportRequest) -> str:
    if target.is_file():
        raise OptionError(f"{target}: is a file.", hint="nnU-Net's models are folders; give one.")
    if request.overwrite:
        raise OptionError(
            "--overwrite: nnU-Net's folders are not replaced, since it may have added to them.",
            hint="Remove the folder, or give another one.",
        )
    return export_for_nnunet(files, target)[-1].name


def _import_nnunet(workspace: Workspace, source: Path, request: ImportRequest) -> ModelFolder:
    from autoliver.nnunet.model import read_nnunet_model

    folds = read_nnunet_model(source, trust=request.trust)
    name = request.name or folds[0].info.plan.dataset
    folder = new_model(workspace, name, overwrite=request.overwrite)
    with replacing(folder.path) as beside:
        save_imported(beside, folds, source=source)
    return folder


def _is_zip(source: Path) -> bool:
    if not source.is_file():
        return False
    with source.open("rb") as file:
        return file.read(2) == b"PK"


# Format -> what writes a model and returns its name.
_WRITERS: dict[Format, Callable[[ModelFiles, Path, ExportRequest], str]] = {
    "autoliver": _export_file,
    "nnunet": _export_nnunet,
}
# Whose model -> what puts it into the workspace.
_READERS: dict[Format, Callable[[Workspace, Path, ImportRequest], ModelFolder]] = {
    "autoliver": _import_file,
    "nnunet": _import_nnunet,
}
