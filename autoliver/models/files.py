"""The parts of a trained model on disk: folds, members, what is known of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from autoliver.artifacts import Artifact, Readable, file_sha256
from autoliver.datasets.cases import Labels
from autoliver.datasets.folds import Fold
from autoliver.errors import ModelError
from autoliver.models.selection import CleaningRule, Selection
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Configuration, Plan

if TYPE_CHECKING:
    from torch import Tensor


WEIGHTS_FILE = "weights.safetensors"


MODEL_FILE = "model.json"
SCORES_FILE = "scores.json"


_MEND = "autoliver train DATASET CONFIG --fold N --fresh"


class FoldModel(Artifact, frozen=True, kw_only=True):
    """What a trained fold needs to predict, besides its weights.

    Attributes:
        plan: The plan it was trained with, reduced to its configuration.
        configuration: That configuration's name.
        fold: "0" to "4", or "all".
        cases: What it was trained on.
        epochs: Finished epochs.
        mirror_axes: Patch axes over whose flips a prediction may average: those it was trained on.
        weights_sha256: Of the weights file beside it.
        previous_run: Folder of the low-resolution run beside its own, for a cascade.
        extended: How often its training was taken up again after its end.
        augment: The augmentations it was trained with.
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

    @property
    def decisions(self) -> Configuration:
        """What its plan decides for its configuration."""
        return self.plan.configurations[self.configuration]


class Place(Readable, Protocol):
    """A file or folder of a model: a path on disk, or a place in an archive."""

    @property
    def name(self) -> str:
        """Its last part."""
        ...

    @property
    def parent(self) -> Self:
        """The folder it is in."""
        ...

    def __truediv__(self, name: str, /) -> Self:
        """What has this name in it."""
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
        """What the fold needs to predict; written last, so it says that the fold is trained."""
        return self.path / MODEL_FILE

    @property
    def weights(self) -> Path:
        """The weights."""
        return self.path / WEIGHTS_FILE

    @property
    def resume(self) -> Path:
        """The state that the training goes on from."""
        return self.path / "resume.pt"

    @property
    def progress(self) -> Path:
        """The finished epochs, one JSON object a line."""
        return self.path / "progress.jsonl"

    @property
    def picture(self) -> Path:
        """The curves of the finished epochs."""
        return self.path / "progress.png"

    @property
    def tensorboard(self) -> Path:
        """The event files for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def request(self) -> Path:
        """What the queue has asked the process of this fold to do."""
        return self.path / "request.json"

    @property
    def log(self) -> Path:
        """What the process of this fold has written to stderr, where a queue started it."""
        return self.path / "train.log"

    @property
    def validation(self) -> Path:
        """The label maps of the held-out cases."""
        return self.path / "validation"

    @property
    def scores(self) -> Path:
        """The scores of the held-out cases."""
        return self.validation / SCORES_FILE


@dataclass(frozen=True, kw_only=True)
class MemberFiles:
    """Where the parts of a member lie.

    Attributes:
        folds: Folders of its folds, each with model.json and weights.safetensors.
        previous: Folders of the folds of the low-resolution stage, for a cascade.
    """

    folds: tuple[Place, ...]
    previous: tuple[Place, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where the parts of a model lie.

    Attributes:
        name: For messages.
        members: At least one.
        cleaning: Rules applied to its label maps.
        finder: What finds the region to look in first; None: look everywhere.
        selection: How it was chosen, where it was.
    """

    name: str
    members: tuple[MemberFiles, ...]
    cleaning: tuple[CleaningRule, ...] = ()
    finder: MemberFiles | None = None
    selection: Selection | None = None


def fold_folder_name(fold: Fold | str) -> str:
    """The name of a fold's folder: "fold_0" for 0, "fold_all" for "all"."""
    return f"fold_{fold}"


def fold_of(folder: Place) -> str:
    """The fold that a folder holds, as text: "0" to "4", or "all"."""
    return folder.name.removeprefix("fold_")


def one_fold(folds: Sequence[Place]) -> Place:
    """The fold that stands for a run: `all`, else the first by name."""
    return min(folds, key=lambda fold: (fold_of(fold) != "all", fold.name))


def together(models: Sequence[ModelFiles]) -> ModelFiles:
    """Several models as one: all their members, and the cleaning rules they share.

    A rule that only some of the models learnt says nothing about the others' mistakes.
    """
    first = models[0]
    if len(models) == 1:
        return first
    shared = [rule for rule in first.cleaning if all(rule in m.cleaning for m in models[1:])]
    return ModelFiles(
        name=" + ".join(model.name for model in models),
        members=tuple(member for model in models for member in model.members),
        cleaning=tuple(shared),
    )


def save_fold(folder: Path, weights: "dict[str, Tensor]", info: FoldModel) -> None:
    """Writes weights and then model.json, whose presence says that the fold is finished.

    Args:
        folder: The fold's folder.
        weights: State dict of the network.
        info: Its description; the checksum is filled in here.
    """
    from autoliver.networks.checkpoint import save_weights

    spec = info.decisions.network
    files = FoldFolder(folder)
    save_weights(files.weights, weights, spec=spec)
    info.replace(weights_sha256=file_sha256(files.weights)).save(files.model)


def load_infos(folders: Sequence[Place], *, name: str) -> list[FoldModel]:
    """What folds of one run say of themselves.

    Raises:
        ArtifactError: A model.json is missing or damaged.
        ModelError: They disagree in plan or configuration.
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


def check_previous(
    part: MemberFiles, plan: Plan, configuration: Configuration, *, name: str
) -> None:
    """Refuses a cascade whose first stage is not there.

    Raises:
        ModelError: Saying how to train it.
    """
    if configuration.previous_stage is not None and not part.previous:
        raise ModelError(
            f"{name}: the {configuration.previous_stage} model that its cascade starts from is "
            "not there.",
            hint=f"Train it: autoliver train {plan.dataset} {configuration.previous_stage}",
        )


def check_members(files: ModelFiles, plans: Sequence[Plan]) -> None:
    """Refuses members that cannot be averaged, given the plan of each.

    Raises:
        ModelError: They differ in channels or labels.
    """
    first = plans[0]
    for part, plan in zip(files.members[1:], plans[1:], strict=True):
        for what in ("labels", "channel_names"):
            expected, found = getattr(first, what), getattr(plan, what)
            if expected != found:
                one, other = files.members[0].folds[0].parent, part.folds[0].parent
                raise ModelError(
                    f"{files.name}: members differ in their {what.replace('_', ' ')}: "
                    f"{one.name} has {_names(expected)}, {other.name} {_names(found)}.",
                    hint="Predict with each of them alone.",
                )


def _names(value: "Labels | Sequence[str]") -> str:
    if isinstance(value, Labels):
        return ", ".join(f"{name} {values}" for name, values in value.values.items())
    return ", ".join(value)
