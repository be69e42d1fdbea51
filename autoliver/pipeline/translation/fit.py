"""synthesize fit: learns to make images of one dataset look like those of another."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from autoliver.artifacts import Artifact, Fault, Record, digest, unfit, within
from autoliver.datasets.cases import Case, Dataset, Labels
from autoliver.datasets.contents import image_key
from autoliver.errors import DatasetError, OptionError, WrongValue
from autoliver.locks import only_one
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.models.archive import fit_for_name
from autoliver.pipeline.data import Planned, planned_configuration, planned_dataset, preprocess
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import MOST_INTENSITY, Plan
from autoliver.preprocessing.store import StoredCase, read_case, store_key
from autoliver.synthesis.translation.options import (
    LEAST_PATCH,
    MULTIPLE,
    Range,
    TranslationOptions,
)
from autoliver.training.stop import Stopped, stop_on_sigterm
from autoliver.values import check_choice, check_types, counted, name_problem
from autoliver.workspace import SYNTHESIS, Workspace

if TYPE_CHECKING:
    from autoliver.synthesis.translation.training import Translation, TranslationTask

SYNTHESIZER_FILE = "synthesizer.json"
CONFIGURATION: ConfigurationName = "2d"
_PICTURES = 5  # epochs from one picture to the next
_LARGEST = 256


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
        target_range: Those of the target.
        options: How it is learnt.
        seen: The `image_key` of each case of the target that it has seen.
        epochs: Number of finished epochs.
        finished: Whether it can be applied.
    """

    KIND: ClassVar[str] = "synthesizer"

    name: str
    source: str
    target: str
    plan: Plan
    labels: Labels
    learnt_from: dict[str, str]
    source_range: Range
    target_range: Range
    options: TranslationOptions
    seen: tuple[str, ...]
    epochs: int = 0
    finished: bool = False

    def faults(self) -> Iterator[Fault]:
        """Yields the plan's and the labels', names that are no folder's, and empty ranges."""
        yield from within("plan", self.plan.faults())
        yield from within("labels", self.labels.faults())
        for field in ("name", "source", "target"):
            if name_problem(getattr(self, field)):
                yield field, unfit(getattr(self, field), name_problem(getattr(self, field)))
        for field in ("source_range", "target_range"):
            low, high = getattr(self, field).low, getattr(self, field).high
            if not -MOST_INTENSITY <= low < high <= MOST_INTENSITY:
                yield field, unfit([low, high], "a lower and a higher number")
        if not 0 <= self.epochs <= self.options.epochs:
            yield "epochs", unfit(self.epochs, f"0 to {self.options.epochs}")


@dataclass(frozen=True, kw_only=True)
class SynthesisFolder:
    """The folder of a translation in the workspace."""

    path: Path

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
        """One line for each epoch."""
        return self.path / "train.log"

    @property
    def segmentor(self) -> Path:
        """The fold of the model that finds the source's labels in the target."""
        return self.path / "segmentor" / CONFIGURATION / "fold_all"


class FitRequest(Record, frozen=True, kw_only=True):
    """A request to `synthesize fit`.

    Attributes:
        source: Name or path of the dataset with labels.
        target: Name or path of the dataset whose images are imitated.
        name: The name of the translation.
        options: How it is learnt.
        held_out: Names of cases of the target that must not be seen.
        fresh: Whether to start over.
        machine: The device, processes and memory that may be used.
    """

    source: str
    target: str
    name: str
    options: TranslationOptions = TranslationOptions()
    held_out: tuple[str, ...] = ()
    fresh: bool = False
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            OptionError: A value is invalid.
        """
        check_types(self)
        if not fit_for_name(self.name):
            raise WrongValue(
                f"--name {self.name!r} cannot be the name of a translation.",
                hint="Choose letters, digits, '.', '-', '_' and spaces between them.",
            )


def fit(workspace: Workspace, request: FitRequest) -> SynthesisFolder:
    """Learns a translation; goes on after the last finished epoch of one of the same name.

    Args:
        workspace: The workspace.
        request: What to learn.

    Raises:
        DatasetError: A dataset cannot be used, or the two have nothing in common.
        OptionError: A translation of this name was begun otherwise.
        AutoliverError: The translation diverges.
    """
    folder = SynthesisFolder(path=workspace.root / SYNTHESIS / request.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    with only_one(folder.path / ".fit.lock", "it is being learnt"):
        return _fit(workspace, request, folder)


def _fit(workspace: Workspace, request: FitRequest, folder: SynthesisFolder) -> SynthesisFolder:
    from autoliver.synthesis.translation.training import learn_translation

    target = planned_dataset(workspace, request.target, machine=request.machine)
    source = planned_dataset(workspace, request.source, machine=request.machine)
    _check(source, target)
    seen = _seen(target.dataset, request.held_out)
    ours = as_target(source, target.plan)
    task = _task(ours, target, seen, request, folder)
    info = Synthesizer(
        name=request.name,
        source=source.dataset.name,
        target=target.dataset.name,
        plan=ours.plan.replace(configurations={CONFIGURATION: task.configuration}),
        labels=ours.plan.labels,
        learnt_from={each.name: digest_of(each) for each in (source.dataset, target.dataset)},
        source_range=task.source.range,
        target_range=task.target.range,
        options=task.options,
        seen=tuple(image_key(case) for case in seen),
    )
    _begin(task, folder, info, fresh=request.fresh)
    if not task.options.learns:
        info.replace(finished=True).save(folder.info)
        return folder
    with stop_on_sigterm() as stop:
        state = learn_translation(task, stop=stop, on_epoch=lambda state: _tell(task, state))
    if state.step < task.options.steps:
        raise Stopped(
            f"{request.name}: stopped after {counted(len(state.logs), 'epoch')}; the state is "
            "saved.",
            hint="Run the same command again to continue.",
        )
    _save(folder, info, state, trained_on=[image_key(case) for case in source.dataset.labelled])
    return folder


def _seen(dataset: Dataset, held_out: Sequence[str]) -> list[Case]:
    """The cases of the target that the translation may see.

    Raises:
        OptionError: A case that is held out does not exist, or all are.
    """
    known = [case.name for case in dataset.cases]
    for name in held_out:
        check_choice("--held-out", name, known)
    seen = [case for case in dataset.labelled if case.name not in held_out]
    if not seen:
        raise OptionError("--held-out names all cases of the target.", hint="Leave some of them.")
    return seen


def _task(
    source: Planned,
    target: Planned,
    seen: Sequence[Case],
    request: FitRequest,
    folder: SynthesisFolder,
) -> "TranslationTask":
    """Preprocesses both sides alike, and says how the translation is learnt.

    Args:
        source: The dataset with labels, planned as the target.
        target: The dataset that is imitated.
        seen: Its cases that are seen.
        request: What to learn.
        folder: The folder of the translation.
    """
    from autoliver.networks.device import choose_device
    from autoliver.synthesis.translation.domains import Domain, range_of
    from autoliver.synthesis.translation.training import TranslationTask, segmentor_spec
    from autoliver.training.patches.cache import choose_cache, measure_need, measure_room

    cases = _stored(source, source.dataset.labelled, request.machine)
    imitated = _stored(target, seen, request.machine)
    patch = _patch(request.options, [*cases, *imitated])
    options = request.options.replace(patch=patch)
    domains = [
        Domain(
            name=each.dataset.short_name,
            cases=tuple(some),
            labels=each.plan.labels,
            range=range_of(some, where=each.dataset.name),
        )
        for each, some in ((source, cases), (target, imitated))
    ]
    device = choose_device(request.machine.device)
    room = measure_room(request.machine, device)
    return TranslationTask(
        title=request.name,
        source=domains[0],
        target=domains[1],
        configuration=planned_configuration(target, CONFIGURATION).replace(
            network=segmentor_spec(options, source.plan.labels.out_channels),
            patch_shape=patch,
            batch_size=options.batch_size,
            slices=1,
        ),
        options=options,
        device=device,
        cache=choose_cache(request.machine.cache, measure_need([*cases, *imitated]), room),
        folder=folder.path,
    )


def digest_of(dataset: Dataset) -> str:
    """A digest of the labelled cases of a dataset: their files, and what their labels mean."""
    files = {case.name: case.files for case in dataset.labelled}
    return digest([files, dataset.labels.values])


def as_target(source: Planned, plan: Plan) -> Planned:
    """A dataset that is preprocessed as another one is, with its own labels."""
    made = plan.replace(dataset=source.dataset.name, labels=source.plan.labels)
    return replace(source, plan=made)


def _check(source: Planned, target: Planned) -> None:
    if target.plan.modality == "CT":
        raise OptionError(
            f"--to {target.dataset.name}: images of CT have values in HU, which a translation does "
            "not give.",
            hint="Translate from CT to MR.",
        )
    for planned, role in ((source, "--from"), (target, "--to")):
        plan = planned.plan
        if len(plan.channel_names) != 1:
            raise DatasetError(
                f"{role} {plan.dataset}: {counted(len(plan.channel_names), 'channel')}; "
                "a translation takes images with one.",
                hint="Make a dataset of one of the channels.",
            )
    if source.dataset.name == target.dataset.name:
        raise OptionError(
            f"--from and --to both name {source.dataset.name}.",
            hint="Name the dataset with labels, and the one whose images are to be imitated.",
        )
    if source.plan.labels.has_regions:
        raise DatasetError(
            f"--from {source.dataset.name}: its labels are regions, or not annotated in every "
            "case.",
            hint="Give every label a value of its own, and annotate all of them.",
        )


def _stored(planned: Planned, cases: Sequence[Case], machine: Machine) -> list[StoredCase]:
    preprocess(planned, [CONFIGURATION], cases=cases, machine=machine)
    store = planned.folder.store(store_key(planned.plan, CONFIGURATION))
    return [read_case(store, case.name, case.facts) for case in cases]


def _patch(options: TranslationOptions, cases: Sequence[StoredCase]) -> tuple[int, int]:
    """The size of the patches: as asked, or what fits into all slices, up to 256."""
    height, width = (min(case.image.shape[axis] for case in cases) for axis in (2, 3))
    size = [max(MULTIPLE, min(side, _LARGEST) // MULTIPLE * MULTIPLE) for side in (height, width)]
    if min(height, width) < LEAST_PATCH:
        raise DatasetError(
            f"The smallest image has {height} x {width} pixels at the spacing of the target, "
            f"expected at least {LEAST_PATCH} x {LEAST_PATCH}.",
            hint="Leave this case out, or plan the target with a finer --spacing.",
        )
    if options.patch is not None:
        if options.patch[0] > height or options.patch[1] > width:
            raise OptionError(
                f"--patch {options.patch[0]} {options.patch[1]}: the smallest image has "
                f"{height} x {width} pixels at the spacing of the target; around it there would be "
                "nothing to translate.",
                hint=f"Take at most --patch {size[0]} {size[1]}.",
            )
        wrong = [size for size in options.patch if size % MULTIPLE]
        if wrong:
            raise OptionError(
                f"--patch {options.patch[0]} {options.patch[1]}: expected multiples of {MULTIPLE}.",
                hint=f"Try {[size // MULTIPLE * MULTIPLE for size in options.patch]}.",
            )
        return options.patch
    return size[0], size[1]


def _begin(
    task: "TranslationTask", folder: SynthesisFolder, info: Synthesizer, *, fresh: bool
) -> None:
    """Writes what is learnt; refuses to go on with something else under the same name."""
    if fresh:
        for file in (task.resume, task.progress, folder.info, folder.generator, folder.log):
            file.unlink(missing_ok=True)
        shutil.rmtree(folder.segmentor.parent.parent, ignore_errors=True)
    if folder.info.exists():
        before = Synthesizer.load(folder.info)
        before = before.replace(epochs=0, finished=False)
        if before != info:
            names = [n for n in info.__struct_fields__ if getattr(before, n) != getattr(info, n)]
            raise OptionError(
                f"{info.name}: a translation of this name was begun with other data or options "
                f"({', '.join(name.replace('_', ' ') for name in names)}).",
                hint="Choose another name with -o, or start over with --fresh.",
            )
        return
    info.save(folder.info)


def _tell(task: "TranslationTask", state: "Translation") -> None:
    from autoliver.synthesis.translation.picture import draw_losses, draw_samples
    from autoliver.training.progress import add_to_log

    log = state.logs[-1]
    losses = ", ".join(f"{name} {value:.3f}" for name, value in log.losses.items())
    add_to_log(
        SynthesisFolder(path=task.folder).log,
        f"epoch {log.epoch + 1}/{task.options.epochs}; {losses}; {log.seconds:.1f} s",
        also=sys.stderr,
    )
    last = log.epoch + 1 == task.options.epochs
    if last or log.epoch % _PICTURES == 0:
        title = f"{task.title}, epoch {log.epoch + 1} of {task.options.epochs}"
        draw_losses(task.folder / "losses.png", state.logs, title=title)
        draw_samples(task.folder / "samples.png", state, title=title)


def _save(
    folder: SynthesisFolder, info: Synthesizer, state: "Translation", *, trained_on: Sequence[str]
) -> None:
    from autoliver.models.files import FoldModel, save_fold
    from autoliver.networks.checkpoint import save_weights
    from autoliver.synthesis.translation.training import generator_spec

    networks = state.networks
    weights = networks["there"].state_dict()
    save_weights(folder.generator, weights, spec=generator_spec(info.options))
    if info.options.segments:
        model = FoldModel(
            plan=info.plan,
            configuration=CONFIGURATION,
            fold="all",
            cases=(),
            epochs=len(state.logs),
            mirror_axes=(),
            weights_sha256="",
            trained_on=tuple(trained_on),
            seen_before=info.seen,
        )
        folder.segmentor.mkdir(parents=True, exist_ok=True)
        save_fold(folder.segmentor, networks["segmentor"].state_dict(), model)
    info.replace(epochs=len(state.logs), finished=True).save(folder.info)
