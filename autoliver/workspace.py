"""The layout of the workspace: paths of all files, and which dataset or model a name means."""

import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoliver.artifacts import digest
from autoliver.commands import DATASET, command, remove
from autoliver.datasets.cases import Dataset, read_dataset
from autoliver.datasets.folds import Fold, folds_text
from autoliver.datasets.known import is_there, make_folder, read_planned, settle, workspace_inside
from autoliver.datasets.names import (
    beside,
    dataset_around,
    is_dataset,
    known_as,
    near_path,
    nearest,
)
from autoliver.errors import DatasetError, ModelError, WrongValue
from autoliver.models.archive import open_archive
from autoliver.models.archive_zip import is_archive
from autoliver.models.files import (
    FoldFolder,
    FoldModel,
    MemberFiles,
    ModelFiles,
    fold_folder_name,
    fold_of,
)
from autoliver.models.selection import (
    SELECTION_FILE,
    Selection,
    choose_folds,
    choose_previous,
)
from autoliver.planning.names import CONFIGURATION_NAMES, ConfigurationName
from autoliver.shards import ShardFolder
from autoliver.system import entries, refuse_no_folder
from autoliver.values import meant, spelled

_log = logging.getLogger(__name__)

# What the cascade is called in nnU-Net, and what people who know it may write.
_CASCADES = ("3d_cascade_fullres", "3d_cascade_lowres", "cascade")

# The lock of each process that works on a run.
_USER = ".used-by-{}.lock"

# Name of the workspace folder that holds imported models.
MODELS = "models"
# Name of the one that holds translations between modalities.
SYNTHESIS = "synthesis"
# Name of the workspace folder that holds DICOM series as image files while they are used.
STAGED = "dicom"
# Name of the one that holds what shards have done, until the whole is made of it.
SHARDS = "shards"
_OWN = (MODELS, STAGED, SYNTHESIS, SHARDS)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run: one training of one configuration, with a folder for each fold."""

    path: Path

    @property
    def options(self) -> Path:
        """The file with the training options of the run."""
        return self.path / "options.json"

    @property
    def transfer(self) -> Path:
        """The file that describes how another model's weights were adapted, if they were used."""
        return self.path / "transfer.json"

    @property
    def start(self) -> Path:
        """The file with the adapted weights that training of the folds starts from."""
        return self.path / "start.safetensors"

    @property
    def source_part(self) -> Path:
        """The file with the part of these weights that is the source's, for `--keep-source`."""
        return self.path / "source.safetensors"

    @property
    def configuration(self) -> str:
        """The configuration: the first part of the name CONFIGURATION[@SOURCE][+TAG]."""
        return self.path.name.partition("+")[0].partition("@")[0]

    @property
    def source(self) -> str:
        """The name of the source that its plan follows; empty for the dataset's own plan."""
        return self.path.name.partition("+")[0].partition("@")[2]

    @property
    def tag(self) -> str:
        """The tag that distinguishes runs of the same configuration and source; may be empty."""
        return self.path.name.partition("+")[2]

    def fold(self, fold: Fold | str) -> Path:
        """Returns the folder of one fold."""
        return self.path / fold_folder_name(fold)

    def lock(self, fold: Fold | str) -> Path:
        """Returns the lock of the process that trains a fold (see `autoliver.locks`)."""
        return self.path / f".{fold_folder_name(fold)}.lock"

    @property
    def beginning(self) -> Path:
        """The lock of the process that decides how the run begins."""
        return self.path / ".begin.lock"

    def user(self, process: str) -> Path:
        """Returns the lock of a process that works on the run, whatever it does there."""
        return self.path / _USER.format(process)

    @property
    def users(self) -> tuple[Path, ...]:
        """The locks of all processes that work on the run."""
        return tuple(entries(self.path, _USER.format("*")))

    @property
    def mend(self) -> str:
        """The command to begin with if one of its files is damaged, in words for a hint."""
        return f"{remove(self.path)} (removes the run, which can then be trained again)"

    @property
    def begun(self) -> tuple[Path, ...]:
        """Folders of all folds whose training was started, finished or not."""
        return tuple(entries(self.path, fold_folder_name("*")))

    @property
    def has_stepped(self) -> bool:
        """Whether the training of any fold has saved a step."""
        folds = map(FoldFolder, self.begun)
        return any(fold.resume.exists() or fold.model.exists() for fold in folds)

    @property
    def finished(self) -> tuple[Path, ...]:
        """Folders of the finished folds."""
        return tuple(path for path in self.begun if FoldFolder(path).model.exists())

    @property
    def finished_names(self) -> tuple[str, ...]:
        """Names of the finished folds: "0" to "4", or "all"."""
        return tuple(map(fold_of, self.finished))

    def members(self, folds: str | None) -> tuple[Path, ...]:
        """Returns the folders of the folds to predict with.

        Args:
            folds: "0,2" or "all"; None for the finished folds of the cross-validation, or fold
                `all` if there are none.

        Raises:
            ModelError: A requested fold is not finished.
        """
        chosen = choose_folds(self.finished_names, folds, name=self.name)
        return tuple(map(self.fold, chosen))

    @property
    def name(self) -> str:
        """The name that messages and -m use: DATASET/RUN."""
        return f"{self.path.parent.parent.name}/{self.path.name}"

    def member(self, folds: str | None) -> MemberFiles:
        """Returns the files of the folds to predict with.

        For a cascade they include the low-resolution stage: the same folds if all of them are
        finished, else its finished folds of the cross-validation, or fold `all`.

        Args:
            folds: As for `members`.

        Raises:
            ModelError: A requested fold is not finished, or a model.json is damaged.
        """
        chosen = self.members(folds)
        previous = FoldModel.load(FoldFolder(chosen[0]).model).previous_run
        stage = self.first_stage(previous, list(map(fold_of, chosen)))
        return MemberFiles(folds=chosen, previous=stage)

    def first_stage(self, previous: str | None, folds: Sequence[str]) -> tuple[Path, ...]:
        """Returns the folds of the low-resolution stage that predict for folds of a cascade.

        Args:
            previous: Name of the low-resolution run; None without a cascade, which has none.
            folds: The folds of the cascade.
        """
        if previous is None:
            return ()
        low = RunFolder(self.path.parent / previous)
        same = choose_previous(low.finished_names, folds, name=low.name)
        return tuple(map(low.fold, same))

    def files(self, folds: str | None) -> ModelFiles:
        """Returns the files of a model that consists of this run alone.

        Args:
            folds: As for `members`.

        Raises:
            ModelError: A requested fold is not finished, or a model.json is damaged.
        """
        member = self.member(folds)
        names = ", ".join(fold.name for fold in member.folds)
        return ModelFiles(name=f"{self.name} ({names})", members=(member,))


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with trained runs, of a dataset or imported, and perhaps a selection of them."""

    path: Path

    @property
    def name(self) -> str:
        """The name of the dataset, or the name of the imported model."""
        return self.path.name

    @property
    def selection(self) -> Path:
        """The file with the selected members and cleaning rules."""
        return self.path / SELECTION_FILE

    @property
    def runs(self) -> tuple[RunFolder, ...]:
        """All runs with at least one finished fold."""
        folders = (RunFolder(p) for p in entries(self.path / "runs") if p.is_dir())
        return tuple(run for run in folders if run.finished)

    def selected(self, folds: str | None) -> ModelFiles:
        """Returns the files of the selected members.

        Args:
            folds: "0,2" or "all" instead of the selected folds; None for the selected ones.

        Raises:
            ArtifactError: model.json is damaged.
            ModelError: A fold is not finished.
        """
        selection = Selection.load(
            self.selection, mend=command("select", self.name, workspace=self.path.parent)
        )
        members = []
        for chosen in selection.members:
            run = RunFolder(self.path / "runs" / chosen.run)
            members.append(run.member(folds or ",".join(chosen.folds)))
        what = " + ".join(chosen.run for chosen in selection.members)
        return ModelFiles(
            name=f"{self.name} ({what})",
            members=tuple(members),
            cleaning=selection.cleaning,
            selection=selection,
        )


@dataclass(frozen=True, slots=True)
class DatasetFolder:
    """The folder of one dataset in the workspace."""

    path: Path

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.path.name

    @property
    def dataset(self) -> Path:
        """The file with the dataset as it was when planned, and with its last known path."""
        return self.path / "dataset.json"

    @property
    def files(self) -> Path:
        """The file with the hashes of the dataset's files."""
        return self.path / "files.json"

    @property
    def verify(self) -> Path:
        """The file with the findings of `verify`."""
        return self.path / "verify.json"

    @property
    def fingerprint(self) -> Path:
        """The file with the dataset's fingerprint."""
        return self.path / "fingerprint.json"

    @property
    def folds(self) -> Path:
        """The file with the splits of the cross-validation."""
        return self.path / "folds.json"

    @property
    def plan(self) -> Path:
        """The file with the plan made from the dataset's own fingerprint."""
        return self.path / "plan.json"

    def plan_like(self, source: str) -> Path:
        """Returns the file with the plan that follows a source."""
        return self.path / f"plan@{source}.json"

    def store(self, key: str) -> Path:
        """Returns the folder of the preprocessed cases of one store key."""
        return self.path / "store" / key

    def run(
        self, configuration: ConfigurationName, *, source: str = "", tag: str | None = None
    ) -> RunFolder:
        """Returns the run of a configuration, whether it was started or not.

        Args:
            configuration: The configuration.
            source: Name of the source that its plan follows; empty for the dataset's own plan.
            tag: Distinguishes runs of the same configuration and source; None or empty for no tag.

        Raises:
            OptionError: The tag cannot be part of a folder's name.
        """
        check_tag(tag)
        name = configuration + (f"@{source}" if source else "") + (f"+{tag}" if tag else "")
        return RunFolder(self.path / "runs" / name)

    @property
    def comparing(self) -> Path:
        """The lock of the process that compares the dataset's runs."""
        return self.path / ".select.lock"

    def ensemble(self, runs: Sequence[str], fold: Fold) -> Path:
        """Returns the folder of the out-of-fold label maps and scores of averaged runs.

        `select` compares them.
        """
        return self.path / "selection" / ",".join(runs) / fold_folder_name(fold)

    @property
    def trained(self) -> ModelFolder:
        """The dataset's runs and the model selected from them."""
        return ModelFolder(self.path)


@dataclass(frozen=True, slots=True)
class Workspace:
    """The workspace: the folder that all results are written to.

    Attributes:
        root: Path of the folder.
    """

    root: Path

    def __post_init__(self) -> None:
        """Refuses what is no folder, or lies among images, before anything is read or written."""
        refuse_no_folder("--workspace", self.root)
        if (dataset := dataset_around(self.root)) is not None:
            raise workspace_inside(self.root, dataset)

    @property
    def datasets(self) -> tuple[DatasetFolder, ...]:
        """The planned datasets."""
        folders = (path for path in entries(self.root) if (path / "dataset.json").exists())
        return tuple(DatasetFolder(path) for path in folders if path.name.casefold() not in _OWN)

    def source(self, dataset: str | None) -> Dataset:
        """Reads the dataset that a path or a name means, and hashes its files.

        If the dataset that was planned under its name has the same content, it counts as that
        dataset wherever its folder is, and the workspace remembers the new place.

        Args:
            dataset: A folder, or the name of a planned dataset; None for the dataset in the current
                folder, or else for the only dataset of the workspace.

        Raises:
            DatasetError: There is no such dataset, or several could be meant; or the folder is not
                a dataset; or its name belongs to another dataset of the workspace.
            AutoliverError: The workspace cannot be written.
        """
        found = self.read(dataset)
        folder = self.folder_for(found)
        return settle(found, self.root, kept=folder.dataset, index=folder.files)

    def read(self, dataset: str | None) -> Dataset:
        """Reads a dataset like `source`, but looks only at the names of its files.

        Nothing is written.

        Args:
            dataset: As for `source`.

        Raises:
            DatasetError: There is no such dataset, or several could be meant; or the folder is not
                a dataset.
        """
        if dataset is None:
            return self._only_dataset()
        if Path(dataset).is_dir():
            return read_dataset(dataset)
        found = self._fitting(dataset)
        if not found and (folder := beside(dataset)) is not None:
            return read_dataset(folder)
        return read_planned(self.root, self.folder(dataset).dataset)

    def folder_for(self, dataset: Dataset) -> DatasetFolder:
        """Returns the workspace folder of a dataset, planned or not, and creates it if missing.

        Raises:
            DatasetError: The dataset's name cannot be used for a folder in this workspace, or the
                workspace is in the same place as the dataset.
            AutoliverError: The workspace cannot be written.
        """
        return DatasetFolder(make_folder(self.root, dataset, taken=_OWN))

    def folder(self, name: str) -> DatasetFolder:
        """Returns the workspace folder of a planned dataset.

        Args:
            name: The dataset's name, short name or number (see `autoliver.datasets.names`).

        Raises:
            DatasetError: No such dataset was planned, or the name fits several.
        """
        fitting = self._fitting(name)
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise DatasetError(
                f"'{name}' may mean {' or '.join(d.name for d in fitting)}.",
                hint="Give the full name.",
            )
        raise DatasetError(
            f"There is no folder and no planned dataset '{name}' (workspace "
            f"{self.root.absolute()}).",
            hint=self.meant(name)
            or "Give the path of the dataset's folder: "
            + command("plan", "PATH", workspace=self.root),
        )

    def planned(self, name: str) -> DatasetFolder:
        """Returns the workspace folder of a planned dataset that a path or a name means.

        Args:
            name: The dataset's folder, or as for `folder`.

        Raises:
            DatasetError: No such dataset was planned, or the name fits several.
        """
        if not Path(name).is_dir():
            return self.folder(name)
        known = Path(name).resolve().name
        if not self._fitting(known):
            raise DatasetError(
                f"{name} has not been planned in the workspace {self.root.absolute()}.",
                hint="Plan it first: " + command("plan", name, workspace=self.root),
            )
        return self.folder(known)

    def knows(self, name: str) -> bool:
        """Whether a name or path means a dataset, or may mean several."""
        return Path(name).is_dir() or bool(self._fitting(name)) or beside(name) is not None

    def meant(self, name: str, *, more: Sequence[str] = ()) -> str:
        """Returns a hint that names the dataset that was meant, or else lists all.

        Args:
            name: A name or path of no dataset.
            more: Names of other things that could be named in its place.
        """
        there = [d.name for d in self.datasets if is_there(self.root, d.dataset)]
        near = nearest(name, [*there, *more]) or near_path(name, is_dataset)
        return _hint("dataset", near, [*there, *more])

    def hint_of_translation(self, name: str) -> str:
        """Returns a hint for the name of a translation: the model that it has; "" for others."""
        for run in entries(self.root / SYNTHESIS / name / "segmentor") if "/" not in name else ():
            if RunFolder(run).finished:
                return f"{name} is a translation. Its segmentation network: {shlex.quote(str(run))}"
        return ""

    def _fitting(self, name: str) -> list[DatasetFolder]:
        """The planned datasets that a name may mean; the full name comes before all others."""
        fitting = [d for d in self.datasets if known_as(name, d.name)]
        return [d for d in fitting if d.name == name] or fitting

    def shards(self, name: str, *inputs: object) -> ShardFolder:
        """Returns where the shards of a command keep their results.

        Args:
            name: The command.
            inputs: What it works on, such as the names of datasets and absolute paths.
        """
        return ShardFolder(path=self.root / SHARDS / f"{name}-{digest(list(map(str, inputs)))}")

    @property
    def models(self) -> tuple[ModelFolder, ...]:
        """The imported models."""
        folders = (ModelFolder(p) for p in entries(self.root / MODELS))
        return tuple(f for f in folders if f.selection.exists() and not f.name.startswith("."))

    @property
    def names(self) -> tuple[Path, ...]:
        """The folders of all planned datasets and imported models; people call them by name."""
        return (*(each.path for each in self.datasets), *(each.path for each in self.models))

    @property
    def all_trained(self) -> tuple[ModelFolder, ...]:
        """The folders of all datasets and then of the imported models, trained or not."""
        return (*(dataset.trained for dataset in self.datasets), *self.models)

    def model_to_predict(self, model: str | None, *, folds: str | None = None) -> ModelFiles:
        """Returns the model to predict with: the named one, or else the only one of the workspace.

        Args:
            model: DATASET (its selected model, or else its only run), DATASET/RUN, the name of an
                imported model, the folder of one of these, or an exported file; None for the only
                model of the workspace.
            folds: "0,2" or "all" instead of all finished or selected folds; None for these.

        Raises:
            ModelError: There is no such model, or several could be meant (they are listed); or an
                exported file is damaged or was not written by autoliver.
            OptionError: `folds` does not name folds.
        """
        folds = folds_text(folds)
        choices = self._choices()
        if model is not None:
            if Path(model).is_file():
                return open_archive(Path(model)).files(folds)
            folder = Path(model).resolve()  # so that "." has a name
            if RunFolder(folder).finished:
                return RunFolder(folder).files(folds)
            if ModelFolder(folder).selection.exists() or ModelFolder(folder).runs:
                choices = self._of_folder(ModelFolder(folder))
            else:
                choices = self._named(model)
        if len(choices) == 1:
            choice = choices[0]
            return choice.files(folds) if isinstance(choice, RunFolder) else choice.selected(folds)
        if not choices:
            what = f"no trained model '{model}'" if model else "no trained model"
            known = [choice.name for choice in self._choices()]
            runs = [run.name for folder in self.all_trained for run in folder.runs]
            near = nearest(model, [*known, *runs]) or near_path(model, is_model) if model else ""
            raise ModelError(
                f"There is {what} in {self.root.absolute()}.",
                hint=(self.hint_of_translation(model) if model else "")
                or _hint("model", near, known)
                or "Train one first: " + command("train", DATASET, "3d_fullres"),
            )
        may = f"'{model}' may mean {len(choices)} trained models." if model else ""
        raise ModelError(
            may or f"{len(choices)} trained models could be meant.",
            hint="Name one of them: " + ", ".join(map(self.told_apart, choices)),
        )

    def _choices(self) -> list[RunFolder | ModelFolder]:
        """Lists all models: of each folder its selection, or its runs if nothing was selected."""
        return [choice for folder in self.all_trained for choice in self._of_folder(folder)]

    def _of_folder(self, folder: ModelFolder) -> list[RunFolder | ModelFolder]:
        return [folder] if folder.selection.exists() else list(folder.runs)

    def trained(self, name: str) -> list[ModelFolder]:
        """Finds the datasets and then the imported models with a name or short name.

        Exact names take precedence over short ones of the same kind; a dataset and an imported
        model that can be meant are both returned, trained or not.
        """
        datasets = [dataset.trained for dataset in self._fitting(name)]
        models = [folder for folder in self.models if known_as(name, folder.name)]
        return [*datasets, *([f for f in models if f.name == name] or models)]

    def _named(self, model: str) -> list[RunFolder | ModelFolder]:
        name, _, run = model.partition("/")
        fitting = self.trained(name)
        if not run:
            return [choice for folder in fitting for choice in self._of_folder(folder)]
        return [r for folder in fitting for r in folder.runs if r.path.name == run]

    def told_apart(self, choice: RunFolder | ModelFolder) -> str:
        """Returns the name of a choice, or its path if the name does not mean it alone."""
        if isinstance(choice, ModelFolder):
            alone = self.trained(choice.name) == [choice]
        else:
            alone = self._named(choice.name) == [choice]
        return shlex.quote(choice.name if alone else str(choice.path))

    def _only_dataset(self) -> Dataset:
        here = Path.cwd()
        if (here / "dataset.json").exists() or (here / "images").is_dir():
            return read_dataset(here)
        planned = self.datasets
        if len(planned) == 1:
            return read_planned(self.root, planned[0].dataset)
        raise DatasetError(
            f"No dataset was named, {here} is not a dataset, and the workspace "
            f"{self.root.absolute()} holds {len(planned)}.",
            hint="Name one: "
            + (
                ", ".join(d.name for d in planned)
                or command("plan", "PATH/TO/DATASET", workspace=self.root)
            ),
        )


def check_tag(tag: object) -> None:
    """Refuses a tag that cannot be part of a run's name; None and an empty text mean no tag.

    Raises:
        OptionError: The tag is not a text, or contains characters other than letters, digits, ".",
            "_" and "-", or begins with "." or "-".
    """
    if tag is not None and not (isinstance(tag, str) and re.fullmatch(r"(\w[\w.-]*)?", tag)):
        raise WrongValue(
            f"--tag {tag}: this cannot be part of a folder's name.",
            hint="Begin with a letter, a digit or '_'; after it, '.' and '-' may follow as well.",
        )


def check_configuration(name: object) -> ConfigurationName:
    """Returns the configuration of that name; nnU-Net's name of the cascade is taken as well.

    Raises:
        OptionError: There is no such configuration; the hint names the most similar one.
    """
    word = spelled(name, CONFIGURATION_NAMES)
    if isinstance(name, str) and name.casefold() in _CASCADES:
        word = "3d_cascade"
        _log.warning("%s is called %s here.", name, word)
    for known in CONFIGURATION_NAMES:
        if word == known:
            return known
    raise WrongValue(
        f"There is no configuration '{name}'.",
        hint=meant(name, CONFIGURATION_NAMES)
        or f"Known configurations: {', '.join(CONFIGURATION_NAMES)}.",
    )


def is_model(path: Path) -> bool:
    """Whether a path is a model that `predict` takes: a run's folder, a dataset's, or a file."""
    if path.is_file():
        return is_archive(path)
    folder = ModelFolder(path)
    return bool(RunFolder(path).finished or folder.selection.exists() or len(folder.runs) == 1)


def _hint(kind: str, near: str, known: Sequence[str]) -> str:
    """Names the one that was meant, or else all that there are; empty if there is none."""
    if near:
        return f"Did you mean {shlex.quote(near)}?"
    return f"Known {kind}s: {', '.join(known)}." if known else ""
