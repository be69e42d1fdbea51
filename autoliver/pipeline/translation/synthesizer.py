"""What the folder of a translation holds, and finding one that is learnt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from autoliver.artifacts import Artifact, Fault, unfit, within
from autoliver.datasets.cases import Labels
from autoliver.errors import ModelError
from autoliver.pipeline.translation.again import fit_command
from autoliver.planning.names import ConfigurationName, ModalityName
from autoliver.planning.plan import MOST_INTENSITY, Plan
from autoliver.synthesis.translation.body import RealImages
from autoliver.synthesis.translation.options import Range, TranslationOptions, option_of
from autoliver.values import first_few, name_problem
from autoliver.workspace import SYNTHESIS, Workspace

SYNTHESIZER_FILE = "synthesizer.json"


class Synthesizer(Artifact, frozen=True, kw_only=True):
    """A translation that is learnt, or being learnt.

    Attributes:
        name: Its name.
        source: Name of the dataset with labels.
        target: Name of the dataset whose images it imitates.
        plan: The plan of the target, by which both are preprocessed.
        labels: The labels of the source.
        learnt_from: Digests of the cases of both, images and labels.
        source_range: The normalised values of the source that are -1 and 1.
        options: How it is learnt.
        seen: The `image_key` of each case of the target that it has seen.
        real: What the images of the target look like.
        held_out: Names of the cases of the target that it must not see.
        images: Path of a target in which cases lack labels; empty for a planned dataset.
        modality: What such images are, if it was said.
        spacing_mm: The spacing (z, y, x) that was asked for them; None for none.
        epochs: Number of finished epochs.
    """

    KIND: ClassVar[str] = "synthesizer"

    name: str
    source: str
    target: str
    plan: Plan
    labels: Labels
    learnt_from: dict[str, str]
    source_range: Range
    options: TranslationOptions
    seen: tuple[str, ...]
    real: RealImages
    held_out: tuple[str, ...] = ()
    images: str = ""
    modality: ModalityName | None = None
    spacing_mm: tuple[float, float, float] | None = None
    epochs: int = 0

    def faults(self) -> Iterator[Fault]:
        """Yields the plan's and the labels', names that are no folder's, and an empty range."""
        yield from within("plan", self.plan.faults())
        yield from within("labels", self.labels.faults())
        for field in ("name", "source", "target"):
            if name_problem(getattr(self, field)):
                yield field, unfit(getattr(self, field), name_problem(getattr(self, field)))
        low, high = self.source_range.low, self.source_range.high
        if not -MOST_INTENSITY <= low < high <= MOST_INTENSITY:
            yield "source_range", unfit([low, high], "a lower and a higher number")
        if not 0 <= self.epochs <= self.options.epochs:
            yield "epochs", unfit(self.epochs, f"0 to {self.options.epochs}")

    @property
    def finished(self) -> bool:
        """Whether it can be applied."""
        return not self.options.learns or self.epochs >= self.options.epochs

    def again(
        self, workspace: Workspace, *, fresh: bool = False, instead: Sequence[str] = ()
    ) -> str:
        """The command that learns it.

        Args:
            workspace: The workspace.
            fresh: Whether it starts over.
            instead: "--fresh", and "--lr" with the learning rate that it starts over with; empty
                to go on.
        """
        options, fresh = self.options, fresh or "--fresh" in instead
        if "--lr" in instead:
            options = options.replace(lr=float(instead[instead.index("--lr") + 1]))
        more = [] if self.modality is None else ["--modality", self.modality]
        if self.spacing_mm is not None:
            more += ["--spacing", *(f"{mm:g}" for mm in self.spacing_mm)]
        for case in self.held_out:
            more += ["--held-out", case]
        return fit_command(
            *((self.source, self.images or self.target), self.name, options),
            more=[*more, *(["--fresh"] if fresh else [])],
            workspace=workspace.root,
        )


# What is asked for by an option, and how that is written.
_ASKED = {"held_out": "--held-out", "modality": "--modality", "spacing_mm": "--spacing"}


def differences(before: Synthesizer, now: Synthesizer) -> list[str]:
    """Says by what a translation differs from the one of its name: options by their values."""
    fields = TranslationOptions.__struct_fields__
    pairs = [(option_of(n), getattr(before.options, n), getattr(now.options, n)) for n in fields]
    pairs += [(flag, getattr(before, n), getattr(now, n)) for n, flag in _ASKED.items()]
    found = [
        f"{_spelt(flag, then)}, not {_spelt(flag, value)}"
        for flag, then, value in pairs
        if then != value
    ]
    data = [("--from", before.source, now.source), ("--to", before.target, now.target)]
    found += [f"{flag} {then}, not {name}" for flag, then, name in data if then != name]
    if found:  # what follows from options is not told once more
        return found
    rest = [n for n in now.__struct_fields__ if getattr(before, n) != getattr(now, n)]
    return [f"other data ({', '.join(name.replace('_', ' ') for name in rest)})"]


def _spelt(flag: str, value: object) -> str:
    """An option with its value; without one it has its default."""
    if value is None or value == ():
        return f"the default {flag}"
    if isinstance(value, tuple):
        return f"{flag} {' '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in value)}"
    return f"{flag} {value:g}" if isinstance(value, float) else f"{flag} {value}"


@dataclass(frozen=True, kw_only=True)
class SynthesisFolder:
    """The folder of a translation in the workspace.

    Attributes:
        path: The folder.
        configuration: That of its segmentor.
    """

    path: Path
    configuration: ConfigurationName = "2d"

    @property
    def info(self) -> Path:
        """What it translates, and how it is learnt."""
        return self.path / SYNTHESIZER_FILE

    @property
    def generator(self) -> Path:
        """The weights of the network that translates the source."""
        return self.path / "generator.safetensors"

    @property
    def log(self) -> Path:
        """One line for each epoch, and why it failed."""
        return self.path / "train.log"

    @property
    def resume(self) -> Path:
        """The state of the last finished epoch."""
        return self.path / "resume.pt"

    @property
    def progress(self) -> Path:
        """One line of JSON per finished epoch."""
        return self.path / "progress.jsonl"

    @property
    def lock(self) -> Path:
        """The lock of the process that learns it (see `autoliver.locks`)."""
        return self.path / ".fit.lock"

    @property
    def target(self) -> Path:
        """The folder of preprocessed images without labels."""
        return self.path / "target"

    @property
    def segmentor(self) -> Path:
        """The fold of the model that finds the source's labels in the target."""
        return self.path / "segmentor" / self.configuration / "fold_all"


def folder_of(workspace: Workspace, name: str, options: TranslationOptions) -> SynthesisFolder:
    """The folder of a translation that is learnt with these options."""
    path = workspace.root / SYNTHESIS / name
    return SynthesisFolder(path=path, configuration=options.configuration)


def find_synthesizer(workspace: Workspace, name: str) -> tuple[SynthesisFolder, Synthesizer]:
    """Finds a translation that is learnt.

    Raises:
        ModelError: There is none, or it is not finished.
    """
    path = workspace.root / SYNTHESIS / name / SYNTHESIZER_FILE
    if not path.exists():
        there = sorted(
            path.parent.name for path in workspace.root.glob(f"{SYNTHESIS}/*/{SYNTHESIZER_FILE}")
        )
        raise ModelError(
            f"{name}: there is no such translation; there is {first_few(there, 5) or 'none'}.",
            hint="Learn one with: autoliver synthesize fit --from SOURCE --to TARGET -o NAME",
        )
    info = Synthesizer.load(path)
    if not info.finished:
        raise ModelError(
            f"{name}: this translation is not finished.",
            hint=f"Go on with: {info.again(workspace)}",
        )
    return folder_of(workspace, name, info.options), info
