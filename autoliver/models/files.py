"""The files of a trained model on disk: its folds, its members and the description of each."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from autoliver.artifacts import (
    Artifact,
    Fault,
    Readable,
    Record,
    digest,
    file_sha256,
    unfit,
    within,
)
from autoliver.commands import command
from autoliver.datasets.cases import Labels
from autoliver.datasets.folds import Fold
from autoliver.datasets.layouts import SCORES_FILE as SCORES_FILE
from autoliver.errors import ModelError, OptionError
from autoliver.models.selection import CleaningRule, Selection
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Configuration, Plan
from autoliver.preprocessing.histogram import Histogram
from autoliver.values import MOST, counted, name_problem

if TYPE_CHECKING:
    from torch import Tensor


WEIGHTS_FILE = "weights.safetensors"


MODEL_FILE = "model.json"


_MEND = "autoliver train DATASET CONFIG --fold N --fresh"


class Roi(Record, frozen=True, kw_only=True):
    """The region of interest that a model was trained on, and predicts in.

    Attributes:
        label: The label whose box the region is.
        margin_mm: By how much the box is grown on each side.
        model: Name of the model that finds the label; empty with `truth`.
        digest: `model_digest` of this model; empty with `truth`.
        truth: Whether the region came from reference labels.
    """

    label: str
    margin_mm: float
    model: str = ""
    digest: str = ""
    truth: bool = False

    @property
    def key(self) -> str:
        """What tells regions of different labels or models apart, whatever their margin."""
        return digest([self.label, self.digest, self.truth])

    @property
    def text(self) -> str:
        """The region in words."""
        finder = "reference labels show" if self.truth else f"{self.model} finds"
        return f"what lies within {self.margin_mm:g} mm of the {self.label} that {finder}"


class FoldModel(Artifact, frozen=True, kw_only=True):
    """The description of a trained fold: all that it needs to predict besides its weights.

    Attributes:
        plan: The plan it was trained with, reduced to its configuration.
        configuration: Name of that configuration.
        fold: "0" to "4", or "all".
        cases: Names of the training cases; empty if they are unknown or were left out.
        epochs: Number of finished epochs.
        mirror_axes: Patch axes along which it was trained with flips; a prediction may average
            over flips along them.
        weights_sha256: SHA-256 of the weights file beside it.
        previous_run: For a cascade, name of its low-resolution run's folder, which lies beside its
            own run; None otherwise.
        extended: How often its training was extended after it had finished.
        augment: The augmentations it was trained with.
        trained_on: The `image_key` of each case that it was trained on; empty if unknown.
        seen_before: The `image_key` of each case that the weights it started from had seen, and
            those that these started from, back to random weights.
        ancestors: First twelve hex digits of the checksum of each of these weights, the last first.
        replay: Name of the dataset whose cases were replayed; empty if none was. `trained_on` names
            these cases as well.
        replay_share: Share of the patches that came from them, 0 to 1.
        outside_negative: Distance in mm from known labels beyond which unknown ones that lie in
            them were learnt as absent; None: they were not.
        keep_source: Share of the tuned weights in the weights, 0 to 1; the rest is of the weights
            that it started from. None if they were not mixed.
        histograms: What its training images look like to the network, channel by channel; empty
            for models of earlier versions and of nnU-Net.
        next_stage_cleaning: Rules applied to its label maps before a cascade takes them as input,
            as in nnU-Net v1; those for the final label map are the model's.
        lesion_classes: Labels that are classes of lesions; with two or more, every connected lesion
            of its label maps gets one of them. Empty for models that were not trained to do so.
        roi: The region that it was trained on; None: whole scans.
    """

    KIND: ClassVar[str] = "model"

    plan: Plan
    configuration: ConfigurationName
    fold: str
    cases: tuple[str, ...]
    epochs: int
    mirror_axes: tuple[int, ...]
    weights_sha256: str
    previous_run: str | None = None
    extended: int = 0
    augment: str = "default"
    trained_on: tuple[str, ...] = ()
    seen_before: tuple[str, ...] = ()
    ancestors: tuple[str, ...] = ()
    replay: str = ""
    replay_share: float = 0.0
    outside_negative: float | None = None
    keep_source: float | None = None
    next_stage_cleaning: tuple[CleaningRule, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    lesion_classes: tuple[str, ...] = ()
    roi: Roi | None = None

    def faults(self) -> Iterator[Fault]:
        """Yields the plan's, and what does not go with it."""
        yield from within("plan", self.plan.faults())
        if self.configuration not in self.plan.configurations:
            known = ", ".join(self.plan.configurations)
            yield "configuration", unfit(self.configuration, f"one of the plan's: {known}")
            return
        axes = list(range(self.decisions.dimension))
        if not _some_of(self.mirror_axes, axes):
            yield "mirror_axes", unfit(list(self.mirror_axes), f"some of {axes}, each once")
        labels = self.plan.labels.foreground
        if not _some_of(self.lesion_classes, labels):
            yield "lesion_classes", unfit(list(self.lesion_classes), "labels, each once")
        if len(self.histograms) not in (0, len(self.plan.channel_names)):
            channels = counted(len(self.plan.channel_names), "channel")
            yield "histograms", f"found {len(self.histograms)}, expected one for each of {channels}"
        for number, rule in enumerate(self.next_stage_cleaning):
            yield from within(f"next_stage_cleaning[{number}]", rule.faults(labels))
        yield from self._own_faults()

    def _own_faults(self) -> Iterator[Fault]:
        """Yields names that are no folders', and numbers out of range."""
        for field in ("fold", "previous_run"):
            name = getattr(self, field)
            if name is not None and name_problem(name):
                yield field, unfit(name, name_problem(name))
        if self.previous_run is not None and self.decisions.previous_stage is None:
            yield "previous_run", unfit(self.previous_run, "none, since its plan has no such stage")
        for field in ("epochs", "extended"):
            if not 0 <= getattr(self, field) <= MOST:
                yield field, unfit(getattr(self, field), "0 or more")
        for field in ("replay_share", "keep_source"):
            share = getattr(self, field)
            if share is not None and not 0 <= share <= 1:
                yield field, unfit(share, "0 to 1")

    @property
    def decisions(self) -> Configuration:
        """The decisions of its plan for its configuration."""
        return self.plan.configurations[self.configuration]

    @property
    def votes(self) -> bool:
        """Whether each lesion gets one of several classes."""
        return len(self.lesion_classes) > 1

    @property
    def needs_lesions(self) -> bool:
        """Whether it only tells the class of lesions, so that it has to be told where they are."""
        return self.decisions.network.classifies


def _some_of(found: Sequence[Any], known: Container[Any]) -> bool:
    """Whether all of a list are known, each once."""
    return len(set(found)) == len(found) and all(each in known for each in found)


class Place(Readable, Protocol):
    """A file or folder of a model: a path on disk, or a place in an archive."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        ...

    @property
    def parent(self) -> Self:
        """The folder that contains it."""
        ...

    def __truediv__(self, name: str, /) -> Self:
        """Returns the file or folder of this name inside it."""
        ...


@dataclass(frozen=True, slots=True)
class FoldFolder:
    """The folder of a fold, runs/RUN/fold_N, and the files in it.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def model(self) -> Path:
        """The fold's description (`FoldModel`); written last, so it marks the fold as trained."""
        return self.path / MODEL_FILE

    @property
    def weights(self) -> Path:
        """The trained weights."""
        return self.path / WEIGHTS_FILE

    @property
    def resume(self) -> Path:
        """The training state from which an interrupted training is resumed."""
        return self.path / "resume.pt"

    @property
    def progress(self) -> Path:
        """The log of finished epochs, one JSON object per line."""
        return self.path / "progress.jsonl"

    @property
    def picture(self) -> Path:
        """The plot of the training curves."""
        return self.path / "progress.png"

    @property
    def threads(self) -> Path:
        """The threads of a training with `--deterministic`."""
        return self.path / "threads.json"

    @property
    def tensorboard(self) -> Path:
        """The folder of event files for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def request(self) -> Path:
        """The request of a queue to the process that trains this fold."""
        return self.path / "request.json"

    @property
    def log(self) -> Path:
        """The training in lines: one per epoch, and what a queue's process says besides."""
        return self.path / "train.log"

    @property
    def validation(self) -> Path:
        """The folder of predicted label maps of the held-out cases."""
        return self.path / "validation"

    @property
    def scores(self) -> Path:
        """The scores of the held-out cases."""
        return self.validation / SCORES_FILE

    @property
    def lesions(self) -> Path:
        """The lesions of the held-out cases, if the model tells classes of them apart."""
        return self.validation / "lesions.json"

    @property
    def on_source(self) -> Path:
        """The folder of predicted label maps of cases of the dataset that the weights come from."""
        return self.path / "source"

    @property
    def trial(self) -> Path:
        """The folder of mixed weights that are tried, and of what they predict."""
        return self.path / "keep-source"


@dataclass(frozen=True, kw_only=True)
class MemberFiles:
    """The folders of one member of a model.

    Attributes:
        folds: Folders of its folds, each with model.json and weights.safetensors.
        previous: For a cascade, folders of the low-resolution stage's folds; empty otherwise.
    """

    folds: tuple[Place, ...]
    previous: tuple[Place, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The folders of a whole model, with its cleaning rules.

    Attributes:
        name: The model's name, for messages.
        members: The members whose probabilities are averaged; at least one.
        cleaning: Rules applied to its label maps.
        finder: The model that first finds the region to segment; None: the whole image is
            segmented.
        selection: The selection that chose its members; None if there is none.
    """

    name: str
    members: tuple[MemberFiles, ...]
    cleaning: tuple[CleaningRule, ...] = ()
    finder: MemberFiles | None = None
    selection: Selection | None = None

    @property
    def temperature(self) -> float:
        """The temperature of the probabilities of lesions' classes; 1 if none was learnt."""
        learnt = self.selection.temperature if self.selection is not None else None
        return 1.0 if learnt is None else learnt.value


def fold_folder_name(fold: Fold | str) -> str:
    """Returns the name of a fold's folder: "fold_0" for 0, "fold_all" for "all"."""
    return f"fold_{fold}"


def fold_of(folder: Place) -> str:
    """Returns the fold that a folder holds, as text: "0" to "4", or "all"."""
    return folder.name.removeprefix("fold_")


def one_fold(folds: Sequence[Place]) -> Place:
    """Chooses the fold that represents a run: `all`, else the first by name."""
    return min(folds, key=lambda fold: (fold_of(fold) != "all", fold.name))


def together(models: Sequence[ModelFiles]) -> ModelFiles:
    """Combines several models into one with all their members and their common cleaning rules.

    Other rules are dropped, since a rule that some of the models learnt need not suit the others.

    Args:
        models: At least one model.

    Raises:
        OptionError: Two of them share a fold, which would count twice.
    """
    first = models[0]
    if len(models) == 1:
        return first
    whose: dict[Place, str] = {}
    for model in models:
        for fold in (fold for member in model.members for fold in member.folds):
            if fold in whose:
                raise OptionError(
                    f"-m {whose[fold]} -m {model.name}: {fold} would be averaged with itself.",
                    hint="Name each model once.",
                )
        whose |= {fold: model.name for member in model.members for fold in member.folds}
    shared = [rule for rule in first.cleaning if all(rule in m.cleaning for m in models[1:])]
    return ModelFiles(
        name=" + ".join(model.name for model in models),
        members=tuple(member for model in models for member in model.members),
        cleaning=tuple(shared),
    )


def model_digest(files: ModelFiles) -> str:
    """Returns a digest of all that decides a model's label maps: its weights and cleaning rules.

    Raises:
        ArtifactError: A model.json is missing or damaged.
    """
    folds = [fold for member in files.members for fold in (*member.folds, *member.previous)]
    weights = [FoldModel.load(fold / MODEL_FILE, mend=_MEND).weights_sha256 for fold in folds]
    return digest([weights, files.cleaning])


def save_fold(folder: Path, weights: "dict[str, Tensor]", info: FoldModel) -> None:
    """Writes the weights and then model.json, whose presence marks the fold as finished.

    Args:
        folder: The fold's folder.
        weights: State dict of the network.
        info: The fold's description; `weights_sha256` is filled in here.
    """
    from autoliver.networks.checkpoint import save_weights

    spec = info.decisions.network
    files = FoldFolder(folder)
    save_weights(files.weights, weights, spec=spec)
    info.replace(weights_sha256=file_sha256(files.weights)).save(files.model)


def load_infos(folders: Sequence[Place], *, name: str) -> list[FoldModel]:
    """Loads the descriptions of several folds of one run.

    Args:
        folders: The folds' folders.
        name: The model's name, for messages.

    Raises:
        ArtifactError: A model.json is missing or damaged.
        ModelError: The folds disagree in plan or configuration.
    """
    infos = [FoldModel.load(folder / MODEL_FILE, mend=_MEND) for folder in folders]
    first = infos[0]
    for folder, info in zip(folders, infos, strict=True):
        if (info.configuration, info.plan.digest()) != (first.configuration, first.plan.digest()):
            raise ModelError(
                f"{name}: {folder.name} was trained with another plan than {folders[0].name}.",
                hint="Predict with one of them (--folds), or train the others again.",
            )
    return infos


def shared_roi(infos: Sequence[FoldModel], *, name: str) -> Roi | None:
    """Returns the region that all folds of a run were trained on; None: whole scans.

    Raises:
        ModelError: They were trained on different ones.
    """
    first = infos[0]
    for info in infos[1:]:
        if info.roi != first.roi:
            raise ModelError(
                f"{name}: folds {first.fold} and {info.fold} were trained on different regions "
                "(--roi).",
                hint="Predict with one of them (--folds), or train the others again.",
            )
    return first.roi


def check_previous(
    part: MemberFiles, plan: Plan, configuration: Configuration, *, name: str
) -> None:
    """Refuses a cascade whose first stage is missing.

    Raises:
        ModelError: The first stage is missing; the hint says how to train it.
    """
    if configuration.previous_stage is not None and not part.previous:
        raise ModelError(
            f"{name}: the {configuration.previous_stage} model that its cascade starts from is "
            "missing.",
            hint=f"Train it: {command('train', plan.dataset, configuration.previous_stage)}",
        )


def check_members(files: ModelFiles, plans: Sequence[Plan]) -> None:
    """Refuses members whose predictions cannot be averaged, and rules for labels that they lack.

    Args:
        files: The model.
        plans: The plan of each member.

    Raises:
        ModelError: The members differ in channels or labels, or a rule names another label.
    """
    first = plans[0]
    for rule in files.cleaning:
        for field, problem in rule.faults(first.labels.foreground):
            raise ModelError(
                f"{files.name}: its cleaning rule '{rule}': {field}: {problem}.",
                hint="Select the model again with: autoliver select DATASET",
            )
    for part, plan in zip(files.members[1:], plans[1:], strict=True):
        for what in ("labels", "channel_names"):
            expected, found = getattr(first, what), getattr(plan, what)
            if expected != found:
                one, other = files.members[0].folds[0].parent, part.folds[0].parent
                raise ModelError(
                    f"{files.name}: members differ in their {what.replace('_', ' ')}: "
                    f"{one.name} has {_names(expected)}, {other.name} {_names(found)}.",
                    hint="Predict with each member alone.",
                )


def _names(value: "Labels | Sequence[str]") -> str:
    if isinstance(value, Labels):
        return ", ".join(f"{name} {values}" for name, values in value.values.items())
    return ", ".join(value)
