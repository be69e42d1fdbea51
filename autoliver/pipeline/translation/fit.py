"""synthesize fit: learns to make images of one dataset look like those of another."""

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record, digest, sweep
from autoliver.datasets.cases import Case, Dataset, Labels
from autoliver.datasets.contents import image_key
from autoliver.datasets.names import alike
from autoliver.errors import AutoliverError, DatasetError, OptionError, WrongValue
from autoliver.locks import only_one
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.models.archive import fit_for_name
from autoliver.pipeline.data import Planned, planned_configuration, planned_dataset, preprocess
from autoliver.pipeline.translation.synthesizer import (
    SynthesisFolder,
    Synthesizer,
    differences,
    folder_of,
)
from autoliver.pipeline.translation.unlabelled import (
    Target,
    as_unlabelled,
    find_target,
    lacks_labels,
    shown_slices,
)
from autoliver.planning.names import ModalityName
from autoliver.planning.plan import Configuration, Plan, check_spacing
from autoliver.preprocessing.store import StoredCase, read_case, store_key
from autoliver.synthesis.translation.body import RealImages, Slices, body_mask, real_images
from autoliver.synthesis.translation.options import (
    LEAST_PATCH,
    LEAST_SLICES,
    TranslationOptions,
    refuse_idle,
)
from autoliver.training.progress import add_to_log, failure_line
from autoliver.training.stop import Stopped, stop_on_signal
from autoliver.transfer.labels import match_labels
from autoliver.values import check_choice, check_types, counted, first_few
from autoliver.workspace import Workspace

if TYPE_CHECKING:
    from autoliver.synthesis.translation.domains import Domain
    from autoliver.synthesis.translation.state import Translation, TranslationTask

_PICTURES = 5  # epochs from one picture to the next
_LARGEST = 256
_SHOWN = 5  # cases that a message names

_log = logging.getLogger(__name__)


class FitRequest(Record, frozen=True, kw_only=True):
    """A request to `synthesize fit`.

    Attributes:
        source: Name or path of the dataset with labels.
        target: Name or path of the dataset whose images are imitated.
        name: The name of the translation.
        options: How it is learnt.
        held_out: Names of cases of the target that must not be seen; nor are other cases of their
            patients.
        modality: What the images of a target without labels are; None to decide it by their values.
        spacing_mm: Spacing (z, y, x) of a target without labels; None for the median of its images.
        fresh: Whether to start over.
        machine: The device, processes and memory that may be used.
    """

    source: str
    target: str
    name: str
    options: TranslationOptions = TranslationOptions()
    held_out: tuple[str, ...] = ()
    modality: ModalityName | None = None
    spacing_mm: tuple[float, float, float] | None = None
    fresh: bool = False
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            OptionError: A value is invalid.
        """
        check_types(self, flags={"spacing_mm": "--spacing"})
        refuse_idle(self.options)
        if self.spacing_mm is not None:
            check_spacing(self.spacing_mm)
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
    folder = folder_of(workspace, request.name, request.options)
    with only_one(folder.lock, "it is being learnt"):
        sweep(folder.path)
        return _fit(workspace, request, folder)


def _fit(workspace: Workspace, request: FitRequest, folder: SynthesisFolder) -> SynthesisFolder:
    from autoliver.synthesis.translation.training import learn_translation

    _check_name(workspace, folder, request.name)
    source = planned_dataset(workspace, request.source, machine=request.machine)
    asked = Target(name=request.target, modality=request.modality, spacing_mm=request.spacing_mm)
    target = find_target(workspace, asked, source, folder.target, machine=request.machine)
    _check(source, target)
    seen = _seen(target.dataset, request.held_out)
    ours = as_target(source, target.plan)
    task = _task(ours, target, seen, request, folder)
    info = Synthesizer(
        name=request.name,
        source=source.dataset.name,
        target=target.dataset.name,
        # Runs that start from its segmentation network are named after it.
        plan=ours.plan.replace(
            dataset=request.name, configurations={folder.configuration: task.configuration}
        ),
        labels=ours.plan.labels,
        learnt_from={
            source.dataset.name: digest_of(source.dataset),
            target.dataset.name: digest_of(target.dataset, target.dataset.cases),
        },
        source_range=task.source.range,
        options=task.options,
        # Without learning, the images tell no more than their spacing.
        seen=tuple(image_key(case) for case in seen) if task.options.learns else (),
        real=_look_of(task.target),
        held_out=request.held_out,
        images=target.dataset.folder if lacks_labels(target.dataset) else "",
        modality=request.modality,
        spacing_mm=request.spacing_mm,
    )
    task = replace(task, again=info.again(workspace, fresh=True))
    _begin(task, folder, info, fresh=request.fresh)
    if not task.options.learns:
        return folder
    with stop_on_signal() as stop:
        try:
            state = learn_translation(task, stop=stop, on_epoch=lambda state: _tell(task, state))
        except AutoliverError as error:
            with contextlib.suppress(OSError, AutoliverError):  # the disk may be the reason
                add_to_log(folder.log, failure_line(error))
            raise
    if state.step < task.options.steps:
        raise Stopped(
            f"{request.name}: stopped after {counted(len(state.logs), 'epoch')}; the state is "
            "saved.",
            stop.number,
            hint=f"Continue with: {info.again(workspace)}",
        )
    _draw(task, state)  # here, so that a command that was killed in its last moment draws again
    _save(folder, info, state, trained_on=[image_key(case) for case in source.dataset.labelled])
    return folder


def _seen(dataset: Dataset, held_out: Sequence[str]) -> list[Case]:
    """The cases of the target that the translation may see: of patients without a held-out one.

    Raises:
        OptionError: A case that is held out does not exist, or all are.
    """
    known = [case.name for case in dataset.cases]
    for name in held_out:
        check_choice("--held-out", name, known)
    patients = {case.patient for case in dataset.cases if case.name in held_out}
    hidden = [case.name for case in dataset.cases if case.patient in patients]
    seen = [case for case in dataset.cases if case.patient not in patients]
    others = [name for name in hidden if name not in held_out]
    if not seen:
        whose = " or their patients" if others else ""
        raise OptionError(
            f"--held-out names all cases of the target{whose}.", hint="Leave some of them."
        )
    if others:
        _log.warning(
            "--held-out: %s of the same patients: not seen either: %s.",
            *(counted(len(others), "further case"), first_few(others, _SHOWN)),
        )
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
    from autoliver.synthesis.translation.networks import segmentor_spec
    from autoliver.synthesis.translation.state import TranslationTask
    from autoliver.training.patches.cache import choose_cache, measure_need, measure_room
    from autoliver.training.state import amp_dtype

    planned = planned_configuration(target, folder.configuration)
    cases = _stored(source, source.dataset.labelled, folder, request.machine)
    imitated, shown = _imitated(target, cases, seen, source.plan.labels, folder, request.machine)
    patch = _patch(request.options, planned, [*cases, *imitated])
    options = request.options.settled(patch)
    network = segmentor_spec(options, source.plan.labels.out_channels, planned.spacing_mm)
    domains = [
        Domain(
            cases=tuple(some),
            labels=each.plan.labels,
            range=range_of(some, where=each.dataset.name),
            shown=slices,
        )
        for each, some, slices in ((source, cases, {}), (target, imitated, shown))
    ]
    for domain, each in zip(domains, (source, target), strict=True):
        _check_slices(domain, each.dataset.name, options.batch_size)
    device = choose_device(request.machine.device)
    room = measure_room(request.machine, device)
    return TranslationTask(
        title=request.name,
        source=domains[0],
        target=domains[1],
        configuration=planned.replace(
            network=network, patch_shape=patch, batch_size=options.batch_size, slices=1
        ),
        options=options,
        device=device,
        cache=choose_cache(request.machine.cache, measure_need([*cases, *imitated]), room),
        folder=folder.path,
        half=amp_dtype(device),
    )


def _imitated(
    target: Planned,
    source: Sequence[StoredCase],
    seen: Sequence[Case],
    labels: Labels,
    folder: SynthesisFolder,
    machine: Machine,
) -> tuple[list[StoredCase], dict[str, Slices]]:
    """The preprocessed cases of the target, and the slices of those without labels.

    Args:
        target: The dataset that is imitated.
        source: The preprocessed cases of the source.
        seen: The cases of the target that are seen.
        labels: The labels of the source.
        folder: The folder of the translation.
        machine: The processes and memory that may be used.
    """
    without = {case.name for case in seen if case.label is None}
    stored = [
        as_unlabelled(case) if case.name in without else case
        for case in _stored(target, seen, folder, machine)
    ]
    unlabelled = [case for case in stored if case.name in without]
    return stored, shown_slices(unlabelled, source, labels)


def _check_slices(domain: "Domain", name: str, batch_size: int) -> None:
    """Refuses slices that nothing can be learnt from, and a dataset with fewer than a batch.

    Raises:
        DatasetError: The slices of a case are constant, or there are too few of all cases.
    """
    number = 0
    for case in domain.cases:
        first, end = domain.slices(case)
        number += end - first
        values = case.image[:, first:end]
        if values.min() == values.max():
            raise DatasetError(
                f"{name}: {case.name}: slices {first + 1} to {end} have the same value everywhere, "
                "so that there is nothing to learn.",
                hint="Take this case out of the dataset, or correct its image.",
            )
    if number < batch_size:
        raise DatasetError(
            f"{name}: {counted(number, 'slice')} to learn from, fewer than the {batch_size} of a "
            "batch.",
            hint=f"Add cases, or take smaller batches: --batch-size {number}.",
        )


def _look_of(domain: "Domain") -> RealImages:
    """What the images of a domain look like, in the slices that are learnt from."""
    import torch

    def scans() -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], float]]:
        for case in domain.cases:
            image = domain.range.squeezed(torch.from_numpy(case.image[0])).numpy()
            first, end = domain.slices(case)
            yield image[first:end], body_mask(image)[first:end], case.spacing_mm[0]

    return real_images(scans())


def digest_of(dataset: Dataset, cases: Sequence[Case] | None = None) -> str:
    """A digest of cases, of the labelled ones for None: their files, and what their labels mean."""
    files = {case.name: case.files for case in (dataset.labelled if cases is None else cases)}
    return digest([files, dataset.labels.values])


def _check_name(workspace: Workspace, folder: SynthesisFolder, name: str) -> None:
    """Refuses a new translation that is named as something else that people call by its name.

    Raises:
        OptionError: A dataset or model has this name.
    """
    taken = [path for path in workspace.names if alike(name, path.name)]
    if taken and not folder.info.exists():
        raise OptionError(
            f"--name {name}: {taken[0]} is called that as well. Runs that start from the "
            "segmentation network of the translation are named after it.",
            hint=f"Choose another name, such as -o {name}-translated.",
        )


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
    names = match_labels(source.plan.labels, target.plan.labels)
    if not any(names.values()):
        raise DatasetError(
            f"--from {source.dataset.name} and --to {target.dataset.name} have no label in common "
            f"({', '.join(source.plan.labels.foreground)}; "
            f"{', '.join(target.plan.labels.foreground)}): a translation needs scans of the same "
            "part of the body.",
            hint="If they show the same, give the folder of its images alone: --to "
            f"{target.dataset.folder}/imagesTr",
        )
    if source.plan.labels.has_regions:
        raise DatasetError(
            f"--from {source.dataset.name}: its labels are regions, or not annotated in every "
            "case.",
            hint="Give every label a value of its own, and annotate all of them.",
        )


def _stored(
    planned: Planned, cases: Sequence[Case], folder: SynthesisFolder, machine: Machine
) -> list[StoredCase]:
    preprocess(planned, [folder.configuration], cases=cases, machine=machine)
    store = planned.folder.store(store_key(planned.plan, folder.configuration))
    return [read_case(store, case.name, case.facts) for case in cases]


def _patch(
    options: TranslationOptions, planned: Configuration, cases: Sequence[StoredCase]
) -> tuple[int, ...]:
    """The size of the patches: as asked, or what fits into all slices, up to 256."""
    from autoliver.synthesis.translation.networks import generator_spec

    axes = range(4 - options.dimension, 4)
    smallest = [min(case.image.shape[axis] for case in cases) for axis in axes]
    multiples = generator_spec(options, planned.spacing_mm).total_stride
    largest = [size // step * step for size, step in zip(smallest, multiples, strict=True)]
    slices = max(LEAST_SLICES, 2 * multiples[0])  # two where they are halved most often
    least = [slices, LEAST_PATCH, LEAST_PATCH][-options.dimension :]
    if any(size < few for size, few in zip(smallest, least, strict=True)):
        raise DatasetError(
            f"The smallest image has {_by(smallest)} pixels at the spacing of the target, "
            f"expected at least {_by(least)}.",
            hint="Leave this case out, or plan the target with a finer --spacing.",
        )
    if options.patch is None:
        return tuple(min(size, _LARGEST) for size in largest)
    asked = f"--patch {' '.join(map(str, options.patch))}"
    if any(size > most for size, most in zip(options.patch, smallest, strict=True)):
        raise OptionError(
            f"{asked}: the smallest image has {_by(smallest)} pixels at the spacing of the target; "
            "around it there would be nothing to translate.",
            hint=f"Take at most --patch {' '.join(map(str, largest))}.",
        )
    fit = [
        max(few, size // step * step)
        for size, step, few in zip(options.patch, multiples, least, strict=True)
    ]
    if fit != list(options.patch):
        raise OptionError(
            f"{asked}: expected multiples of {_by(multiples)} from {_by(least)} on.",
            hint=f"Try --patch {' '.join(map(str, fit))}.",
        )
    return options.patch


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


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
        before = before.replace(epochs=0, images=info.images)
        if before != info:
            raise OptionError(
                f"{info.name}: a translation of this name was begun with "
                f"{'; with '.join(differences(before, info))}.",
                hint="Choose another name with -o, or start over with --fresh.",
            )
        return
    info.save(folder.info)


def _tell(task: "TranslationTask", state: "Translation") -> None:
    log = state.logs[-1]
    losses = ", ".join(f"{name} {value:.3f}" for name, value in log.losses.items())
    add_to_log(
        SynthesisFolder(path=task.folder).log,
        f"epoch {log.epoch + 1}/{task.options.epochs}; {losses}; {log.seconds:.1f} s",
        also=sys.stderr,
    )
    if log.epoch + 1 < task.options.epochs and log.epoch % _PICTURES == 0:
        _draw(task, state)


def _draw(task: "TranslationTask", state: "Translation") -> None:
    from autoliver.synthesis.translation.picture import draw_losses, draw_samples

    title = f"{task.title}, epoch {state.logs[-1].epoch + 1} of {task.options.epochs}"
    draw_losses(task.folder / "losses.png", state.logs, title=title)
    draw_samples(task.folder / "samples.png", state, title=title)


def _save(
    folder: SynthesisFolder, info: Synthesizer, state: "Translation", *, trained_on: Sequence[str]
) -> None:
    from autoliver.models.files import FoldModel, save_fold
    from autoliver.networks.checkpoint import save_weights
    from autoliver.synthesis.translation.networks import SEGMENTOR, THERE, generator_spec

    networks = state.networks
    spacing = info.plan.configurations[folder.configuration].spacing_mm
    weights = networks[THERE].state_dict()
    save_weights(folder.generator, weights, spec=generator_spec(info.options, spacing))
    if info.options.segments:
        model = FoldModel(
            plan=info.plan,
            configuration=folder.configuration,
            fold="all",
            cases=(),
            epochs=len(state.logs),
            mirror_axes=(),
            weights_sha256="",
            trained_on=tuple(trained_on),
            seen_before=info.seen,
        )
        folder.segmentor.mkdir(parents=True, exist_ok=True)
        save_fold(folder.segmentor, networks[SEGMENTOR].state_dict(), model)
    info.replace(epochs=len(state.logs)).save(folder.info)
