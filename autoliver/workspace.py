"""Names -> paths: where everything of a dataset lies, and which dataset or model a name means."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoliver.dataset import Dataset, read_dataset, short_name
from autoliver.errors import DatasetError, ModelError, OptionError
from autoliver.inference.model import MODEL_FILE
from autoliver.planning.plan import CONFIGURATION_NAMES, ConfigurationName
from autoliver.training.folds import Fold


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One training of one configuration; its folds are inside."""

    path: Path

    @property
    def options(self) -> Path:
        """The options it was begun with."""
        return self.path / "options.json"

    def fold(self, fold: Fold) -> Path:
        """The folder of one fold."""
        return self.path / f"fold_{fold}"

    @property
    def finished(self) -> tuple[Path, ...]:
        """Folders of the finished folds."""
        return tuple(sorted(p.parent for p in self.path.glob(f"fold_*/{MODEL_FILE}")))

    def members(self, folds: str | None) -> tuple[Path, ...]:
        """Folders of the folds that predict.

        Args:
            folds: "0,2", "all", or None: the finished folds of the cross-validation, else `all`.

        Raises:
            ModelError: A wanted fold is not finished.
        """
        there = {path.name.removeprefix("fold_"): path for path in self.finished}
        numbered = [name for name in there if name != "all"]
        wanted = [fold.strip() for fold in folds.split(",")] if folds else numbered or list(there)
        missing = [name for name in wanted if name not in there]
        if missing:
            raise ModelError(
                f"{self.name}: fold {missing[0]} is not trained.",
                hint=f"Finished folds: {', '.join(there)}.",
            )
        return tuple(there[name] for name in wanted)

    @property
    def name(self) -> str:
        """As messages and -m name it: DATASET/RUN."""
        return f"{self.path.parent.parent.name}/{self.path.name}"


@dataclass(frozen=True, slots=True)
class DatasetFolder:
    """What the workspace holds of one dataset."""

    path: Path

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.path.name

    @property
    def dataset(self) -> Path:
        """The dataset as it was when planned."""
        return self.path / "dataset.json"

    @property
    def verify(self) -> Path:
        """What `verify` found."""
        return self.path / "verify.json"

    @property
    def fingerprint(self) -> Path:
        """The fingerprint."""
        return self.path / "fingerprint.json"

    @property
    def folds(self) -> Path:
        """The splits."""
        return self.path / "folds.json"

    @property
    def plan(self) -> Path:
        """The plan made from the dataset's own fingerprint."""
        return self.path / "plan.json"

    def store(self, key: str) -> Path:
        """Preprocessed cases of one key."""
        return self.path / "store" / key

    def run(self, configuration: ConfigurationName, *, tag: str | None = None) -> RunFolder:
        """The run of a configuration.

        Raises:
            OptionError: The tag cannot be part of a folder's name.
        """
        if tag and not re.fullmatch(r"[\w.-]+", tag):
            raise OptionError(
                f"--tag {tag}: cannot be part of a folder's name.",
                hint="Use letters, digits, '.', '_' and '-'.",
            )
        return RunFolder(self.path / "runs" / (configuration + (f"+{tag}" if tag else "")))

    @property
    def runs(self) -> tuple[RunFolder, ...]:
        """All runs with at least one finished fold."""
        folders = (RunFolder(p) for p in sorted(self.path.glob("runs/*")) if p.is_dir())
        return tuple(run for run in folders if run.finished)


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder that holds everything autoliver makes."""

    root: Path

    @property
    def datasets(self) -> tuple[DatasetFolder, ...]:
        """The planned datasets."""
        return tuple(DatasetFolder(p.parent) for p in sorted(self.root.glob("*/dataset.json")))

    def source(self, dataset: str | None) -> Dataset:
        """Reads the dataset that a path or a name means, from its own folder.

        Args:
            dataset: A folder, or the name of a planned dataset; None: the dataset in the current
                folder, else the only one of the workspace.

        Raises:
            DatasetError: There is none, or several could be meant; or the folder is no dataset.
        """
        if dataset is None:
            return self._only_source()
        folder = Path(dataset)
        if folder.is_dir():
            return self._own(read_dataset(folder))
        return self._read_planned(self.folder(dataset))

    def folder(self, name: str) -> DatasetFolder:
        """The workspace folder of a planned dataset, by name or short name.

        Raises:
            DatasetError: It was not planned yet, or the short name fits several.
        """
        fitting = [d for d in self.datasets if name.lower() in _names_of(d.name)]
        exact = [d for d in fitting if d.name == name]
        fitting = exact or fitting
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise DatasetError(
                f"'{name}' may mean {' or '.join(d.name for d in fitting)}.",
                hint="Give the full name.",
            )
        raise DatasetError(
            f"There is no folder and no planned dataset '{name}' (workspace {self.root}).",
            hint=_known("dataset", name, [d.name for d in self.datasets])
            or "Give the path of the dataset's folder: autoliver plan PATH",
        )

    def run_to_predict(self, model: str | None) -> RunFolder:
        """The run that predicts: the named one, else the only one of the workspace.

        Args:
            model: DATASET, DATASET/RUN or a run's folder.

        Raises:
            ModelError: There is none, or several could be meant (they are listed).
        """
        runs = [run for dataset in self.datasets for run in dataset.runs]
        if model is not None:
            folder = RunFolder(Path(model).resolve())  # "." has a name, too
            if folder.finished:
                return folder
            dataset, _, run = model.partition("/")
            runs = [
                r
                for r in runs
                if dataset.lower() in _names_of(r.path.parent.parent.name)
                and run in ("", r.path.name)
            ]
        if len(runs) == 1:
            return runs[0]
        if not runs:
            everything = [r.name for d in self.datasets for r in d.runs]
            what = f"no trained model '{model}'" if model else "no trained model"
            raise ModelError(
                f"There is {what} in {self.root}.",
                hint=_known("model", model or "", everything)
                or "Train one first: autoliver train DATASET 3d_fullres",
            )
        raise ModelError(
            f"{len(runs)} trained models could be meant.",
            hint="Choose one: " + ", ".join(f"-m {run.name}" for run in runs),
        )

    def _only_source(self) -> Dataset:
        here = Path.cwd()
        if (here / "dataset.json").exists() or (here / "images").is_dir():
            return self._own(read_dataset(here))
        planned = self.datasets
        if len(planned) == 1:
            return self._read_planned(planned[0])
        raise DatasetError(
            f"No dataset was named, {here} is none, and the workspace {self.root} holds "
            f"{len(planned)}.",
            hint="Name one: "
            + (", ".join(d.name for d in planned) or "autoliver plan PATH/TO/DATASET"),
        )

    def _own(self, dataset: Dataset) -> Dataset:
        """Refuses a second dataset under a name that is taken, and its own folder as workspace."""
        planned = DatasetFolder(self.root / dataset.name)
        if planned.path.resolve() == Path(dataset.folder).resolve():
            raise DatasetError(
                f"{dataset.folder}: the workspace {self.root} would keep its files among the "
                "dataset's own.",
                hint="Choose another folder for the workspace (-w).",
            )
        if planned.dataset.exists():
            known = Dataset.load(planned.dataset)
            # A folder that is gone may have been moved here.
            if Path(known.folder) != Path(dataset.folder) and Path(known.folder).is_dir():
                raise DatasetError(
                    f"{dataset.folder}: the name {dataset.name} already belongs to "
                    f"{known.folder} in this workspace.",
                    hint="Rename the folder, or use another workspace (-w).",
                )
        return dataset

    def _read_planned(self, planned: DatasetFolder) -> Dataset:
        folder = Path(Dataset.load(planned.dataset).folder)
        if not folder.is_dir():
            raise DatasetError(
                f"{planned.name}: its images were in {folder}, which is not there any more.",
                hint="Bring the folder back, or give its new place: autoliver plan PATH",
            )
        return read_dataset(folder)


def check_configuration(name: str) -> ConfigurationName:
    """The configuration of that name.

    Raises:
        OptionError: There is none; the near one is named.
    """
    for known in CONFIGURATION_NAMES:
        if name == known:
            return known
    raise OptionError(
        f"There is no configuration '{name}'.",
        hint=_known("configuration", name, CONFIGURATION_NAMES),
    )


def _names_of(folder: str) -> set[str]:
    return {folder.lower(), short_name(folder).lower()}


def _known(kind: str, name: str, known: Sequence[str]) -> str:
    forms = {form: full for full in known for form in _names_of(full)}
    near = difflib.get_close_matches(name.lower(), forms, n=1)
    if near:
        return f"Did you mean {forms[near[0]]}?"
    return f"Known {kind}s: {', '.join(known)}." if known else ""
