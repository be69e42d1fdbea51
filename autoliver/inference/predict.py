"""Predicts cases and writes their label maps, on the grid and in the file type of each input."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import replacing
from autoliver.datasets.cases import Modality
from autoliver.datasets.layouts import PREVIEW, UNCERTAINTY
from autoliver.errors import AutoliverError, DatasetError, MachineError
from autoliver.inference.axes import check_axes
from autoliver.inference.clean import clean
from autoliver.inference.ensemble import (
    Output,
    component_means,
    mean_labels,
    mean_probabilities,
    uncertainty,
)
from autoliver.inference.lesions.given import Mask, given_lesions, only_given, without_lesions
from autoliver.inference.lesions.measure import CaseLesions, LesionLabels, measure
from autoliver.inference.lesions.vote import VoteOptions, lesion_names, vote
from autoliver.inference.modality import decide_modality
from autoliver.inference.model import Member, Model, check_histograms
from autoliver.inference.options import PredictOptions, UsedModality
from autoliver.inference.outputs import OnWindows, PreparedCase, decided, outputs
from autoliver.inference.seen import warn_if_far
from autoliver.io.files import read_image, write_image, write_label
from autoliver.io.header import fraction_ending, label_name, split_ending
from autoliver.io.volume import Geometry, Volume
from autoliver.memory import running_out
from autoliver.planning.ranges import SeenImages, channel_range
from autoliver.preprocessing.crop import Bounds
from autoliver.values import counted

Export = Callable[["PredictJob", Sequence[Output]], None]
LabelArray = npt.NDArray[np.integer]
_Finish = Callable[["PredictJob", Sequence[Output], Mask | None], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """One case to predict.

    Attributes:
        name: Name of the case.
        images: The image files, in the order of the channels.
        output: The file that its label map is written to.
        modality: Its modality, if that is known, so that it need not be found by its values.
        lesions: A label map of its lesions, if they are given and only their class is predicted.
        boxes: `Roi.key` -> the box of the region that members with this region predict in, on the
            image's grid; None: nothing was found, so that they predict the whole image.
    """

    name: str
    images: tuple[Path, ...]
    output: Path
    modality: Modality | None = None
    lesions: Path | None = None
    boxes: Mapping[str, Bounds | None] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """All files that its label map is made from."""
        return self.images if self.lesions is None else (*self.images, self.lesions)

    @property
    def finished(self) -> bool:
        """Whether the label map exists; files are written whole or not at all."""
        return self.output.is_file()

    @property
    def probabilities(self) -> Path:
        """The file that the probabilities are written to, if they are requested."""
        return self.output.with_name(f"{split_ending(self.output.name)[0]}.npz")

    @property
    def uncertainty(self) -> Path:
        """The file that the map of uncertainty is written to, if it is requested."""
        stem, ending = split_ending(self.output.name)
        return self.output.with_name(f"{stem}{UNCERTAINTY}{fraction_ending(ending)}")

    @property
    def preview(self) -> Path:
        """The picture of the label map, if it is requested."""
        return self.output.with_name(f"{split_ending(self.output.name)[0]}{PREVIEW}")

    @property
    def files(self) -> tuple[Path, Path, Path, Path]:
        """All files that may be written for the case."""
        return self.output, self.probabilities, self.uncertainty, self.preview

    def further(self, *, probabilities: bool, uncertainty: bool) -> list[Path]:
        """The files that are requested besides the label map."""
        asked = ((self.probabilities, probabilities), (self.uncertainty, uncertainty))
        return [file for file, wanted in asked if wanted]

    def complete(self, *, probabilities: bool, uncertainty: bool) -> bool:
        """Whether the label map and the requested further files exist."""
        further = self.further(probabilities=probabilities, uncertainty=uncertainty)
        return self.finished and all(file.exists() for file in further)


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told of the progress of a prediction.

    Attributes:
        on_windows: Called with the name of a case and its number of windows; returns a function
            that is called after each window.
        on_modality: Called with the modality by which each case is normalised.
        on_case: Called with each label map (z, y, x), and with the file that holds it and is about
            to get the job's name. What is noted of it then is there before it is.
        on_lesions: Called before each label map is written, with the lesions in it, if the model
            has labels of lesions; None: they are not measured.
        on_failure: Takes the error of a case that cannot be read or does not fit the model, and the
            others are predicted; None: the error is raised. What fails for every case, such as a
            full disk, is raised in any case.
    """

    on_windows: OnWindows | None = None
    on_modality: Callable[[PredictJob, UsedModality], object] = lambda _, __: None
    on_case: Callable[[PredictJob, LabelArray, Path], object] = lambda _, __, ___: None
    on_lesions: Callable[[PredictJob, CaseLesions], object] | None = None
    on_failure: Callable[[PredictJob, AutoliverError], object] | None = None

    def shown(self, start: OnWindows, drop: Callable[[str], object]) -> "Listener":
        """Returns a listener that moves a bar as well.

        Args:
            start: As `on_windows`.
            drop: Called with the name of a case that fails and is taken.
        """
        take = self.on_failure
        if take is None:
            return dataclasses.replace(self, on_windows=start)

        def fail(job: PredictJob, error: AutoliverError) -> None:
            drop(job.name)
            take(job, error)

        return dataclasses.replace(self, on_windows=start, on_failure=fail)

    @contextlib.contextmanager
    def taking(self, job: PredictJob) -> Iterator[None]:
        """Hands the error of a case over; errors that concern all cases are raised."""
        try:
            yield
        except DatasetError as error:
            if self.on_failure is None:
                raise
            self.on_failure(job, error)


def make_jobs(
    cases: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    modalities: Mapping[str, Modality] | None = None,
    lesions: Mapping[str, Path] | None = None,
    endings: Mapping[str, str] | None = None,
) -> list[PredictJob]:
    """Makes one job for each case.

    Args:
        cases: Maps the name of each case to its image files.
        output: The folder for label maps; each one gets the file ending of its image.
        modalities: Maps cases to their modality where that is known.
        lesions: Maps cases to label maps of their lesions where these are given.
        endings: Maps cases to the ending of their label map where it is not that of the image.

    Raises:
        AutoliverError: A label map would replace an image.
    """
    endings = endings or {}
    jobs = [
        PredictJob(
            name=name,
            images=tuple(images),
            output=output
            / (f"{name}{endings[name]}" if name in endings else label_name(name, images[0])),
            modality=(modalities or {}).get(name),
            lesions=(lesions or {}).get(name),
        )
        for name, images in cases.items()
    ]
    inputs = {path.resolve() for job in jobs for path in job.images}
    for job in jobs:
        if job.output.resolve() in inputs:
            raise AutoliverError(
                f"{job.name}: its label map would overwrite the image {job.output}.",
                hint="Choose another folder with -o.",
            )
    return jobs


def predict_jobs(
    model: Model,
    jobs: Iterable[PredictJob],
    options: PredictOptions,
    *,
    listener: "Listener | None" = None,
    export: Export | None = None,
) -> None:
    """Predicts cases one after the other; each file is written whole or not at all.

    The first case that fails ends the prediction, unless failures are taken. Cases predicted before
    it are still written.

    Args:
        model: The model to predict with.
        jobs: The cases to predict.
        options: How to predict.
        listener: What is told of the progress; None for nothing.
        export: Called with the members' outputs for each case, instead of writing the label map.

    Raises:
        AutoliverError: A case cannot be read, does not fit the model or cannot be written.
    """
    listener = listener or Listener()

    quick = export is None and _labels_suffice(model, options, listener)

    def finish(job: PredictJob, found: Sequence[Output], lesions: Mask | None) -> None:
        if export is None:
            _export(model, job, found, options, listener, lesions)
        else:
            with _naming(job.name):
                export(job, found)

    if options.overlap:
        _predict_overlapped(model, jobs, options, listener, finish, quick=quick)
        return
    for job in jobs:
        with listener.taking(job):
            case = _prepare(model, job, options, listener)
            found = _outputs(model, case, options, listener.on_windows, labels_suffice=quick)
            lesions = case.lesions
            del case  # its images are not needed any more
            finish(job, found, lesions)
            del found


def _labels_suffice(model: Model, options: PredictOptions, listener: Listener) -> bool:
    """Whether nothing but the label map of a case is written or told."""
    lesions = listener.on_lesions is not None and bool(lesion_labels(model).names)
    return not (options.probabilities or options.uncertainty or lesions)


def predict_volume(
    model: Model,
    image: Volume,
    options: PredictOptions,
    *,
    name: str,
    on_windows: OnWindows | None = None,
) -> npt.NDArray[np.integer]:
    """Predicts the label map (z, y, x) of one image, on the grid of the image.

    Raises:
        DatasetError: The image's channels or intensities do not fit the model.
        OptionError: The model only tells the class of lesions.
    """
    if model.needs_lesions:
        raise without_lesions(model.name)
    job = PredictJob(name=name, images=(), output=Path())
    _, case = _prepared(model, image, options, job)
    found = _outputs(model, case, options, on_windows, labels_suffice=True)
    return _labels(model, found, image.geometry, name)[0]


def label_map(model: Model, found: Sequence[Output], name: str) -> LabelArray:
    """Returns the label map (z, y, x) of the members' outputs, for callers that write none."""
    return _labels(model, found, found[0].properties.geometry, name)[0]


def lesion_labels(model: Model) -> LesionLabels:
    """Returns which labels of a model are lesions; none for most models."""
    labels, classes = model.plan.labels, model.lesion_classes
    names = lesion_names(labels, classes)
    temperature = model.temperature if model.votes else 1.0
    return LesionLabels(labels=labels, names=names, voted=model.votes, temperature=temperature)


def _outputs(
    model: Model,
    case: PreparedCase,
    options: PredictOptions,
    on_windows: OnWindows | None,
    *,
    labels_suffice: bool,
) -> tuple[Output, ...]:
    with _naming(case.name):
        return outputs(model, case, options, on_windows, labels_suffice=labels_suffice)


def _labels(
    model: Model,
    found: Sequence[Output],
    geometry: Geometry,
    name: str,
    *,
    lesions: Mask | None = None,
) -> tuple[LabelArray, int]:
    """Returns the label map of a case, and how many lesions were removed for want of an organ.

    Args:
        model: The model.
        found: The outputs of its members.
        geometry: The grid of the image.
        name: The name of the case.
        lesions: (z, y, x), where lesions are, if these are given.
    """
    labels, removed = model.plan.labels, 0
    options = VoteOptions.of(labels, model.lesion_classes, model=model.name)
    if len(found) == 1:
        segmentation = decided(found[0], labels, options)
    else:
        segmentation = mean_labels(found, labels=labels, classes=options.shared)
    if model.votes:
        if lesions is not None:
            segmentation = only_given(segmentation, lesions, options)
            options = options.replace(needs_organ=False)
        means = functools.partial(component_means, found, labels=labels)
        voted = vote(segmentation, options, means)
        segmentation, removed = voted.segmentation, voted.removed
        if voted.unseen:
            _log.warning(
                "%s: %s where the image is empty; nothing is known of the class.",
                *(name, counted(voted.unseen, "given lesion lies", "given lesions lie")),
            )
    if removed:
        _log.warning(
            "%s: no liver was found, so %s removed.",
            *(name, "its only lesion was" if removed == 1 else f"its {removed} lesions were"),
        )
    values = labels.values
    spacing = geometry.spacing_mm
    return clean(segmentation, model.cleaning, values=values, spacing_mm=spacing), removed


def _predict_overlapped(
    model: Model,
    jobs: Iterable[PredictJob],
    options: PredictOptions,
    listener: "Listener",
    finish: _Finish,
    *,
    quick: bool,
) -> None:
    todo = iter(jobs)
    # Leaving the block waits for both threads, so an error loses no case that was predicted before.
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "export") as writer:

        def read_next() -> tuple[PredictJob, Future[PreparedCase]] | None:
            job = next(todo, None)
            if job is None:
                return None
            return job, reader.submit(_prepare, model, job, options, listener)

        written: tuple[PredictJob, Future[None]] | None = None
        following = read_next()
        while following is not None:
            job, reading = following
            case = None
            with listener.taking(job):
                case = reading.result()
            del reading
            following = read_next()
            if case is None:
                continue
            with listener.taking(job):
                found = _outputs(model, case, options, listener.on_windows, labels_suffice=quick)
                before, written = written, None
                if before is not None:
                    wait([before[1]])
                written = job, writer.submit(finish, job, found, case.lesions)
                del found  # else it would stay in memory together with that of the next case
                if before is not None:
                    with listener.taking(before[0]):
                        before[1].result()
            del case
        if written is not None:
            with listener.taking(written[0]):
                written[1].result()


def _prepare(
    model: Model, job: PredictJob, options: PredictOptions, listener: Listener
) -> PreparedCase:
    if model.needs_lesions and job.lesions is None:
        raise without_lesions(model.name)
    with _naming(job.name):
        known = job.modality if options.modality is None and model.plan.mixed else None
        options = options.replace(modality=known or options.modality)
        image = dataclasses.replace(_read(job), spare=True)
        decided, case = _prepared(model, image, options, job)
        if job.lesions is not None:
            classes = VoteOptions.of(model.plan.labels, model.lesion_classes, model=model.name)
            mask = given_lesions(job.lesions, image.geometry, classes.classes)
            case = dataclasses.replace(case, lesions=mask)
    listener.on_modality(job, decided)
    return case


def _read(job: PredictJob) -> Volume:
    try:
        return read_image(job.images)
    except MachineError as error:
        # The other cases may lie elsewhere, or be readable.
        raise DatasetError(error.problem, hint=error.hint) from error


def _prepared(
    model: Model,
    image: Volume,
    options: PredictOptions,
    job: PredictJob,
) -> tuple[UsedModality, PreparedCase]:
    """Checks that a case fits all networks and preprocesses it for them."""
    name = job.name
    check_image(model, image, name=name)
    if model.finder is not None:
        check_image(model.finder, image, name=name)
    check_axes(model, image, name=name)
    stated = job.modality
    decided = decide_modality(model, image.array, options.modality, name=name, stated=stated)
    modality = decided.modality
    _compare_with_training(model, image, modality, name)
    match = options.match and model.plan.is_foreign(modality)
    if options.match:
        check_histograms(model)
    case = PreparedCase.of(model, image, name, modality=modality, match=match, boxes=job.boxes)
    return decided, case


def _compare_with_training(
    model: Model, image: Volume, modality: Modality | None, name: str
) -> None:
    """Warns where the case is far from all that a member was trained on."""
    told: list[SeenImages] = []
    for member in model.members:
        plan, seen = member.plan, member.plan.seen
        if seen is None or seen in told or len(seen.channels) != image.array.shape[0]:
            continue
        told.append(seen)
        # Of another modality nothing is alike, and that has been said; of a mixture all is.
        foreign = plan.mixed or plan.is_foreign(modality)
        warn_if_far(
            seen.replace(channels=()) if foreign else seen,
            () if foreign else [channel_range(channel) for channel in image.array],
            geometry=image.geometry,
            name=name,
            model=member.name,
            ct=[scheme == "ct" for scheme in member.configuration.normalization],
        )


def _export(
    model: Model,
    job: PredictJob,
    found: Sequence[Output],
    options: PredictOptions,
    listener: Listener,
    given: Mask | None,
) -> None:
    """Writes the requested files of a case.

    The label map gets its name last, which marks the case as finished.
    """
    geometry, labels = found[0].properties.geometry, model.plan.labels
    with _naming(job.name):
        if options.probabilities:
            values = mean_probabilities(found, labels=labels)
            with replacing(job.probabilities) as beside:
                np.savez_compressed(beside, probabilities=values)
            del values
        if options.uncertainty:
            entropy = uncertainty(found, labels=labels)
            write_image(job.uncertainty, entropy[None], geometry)
            del entropy
        predicted, removed = _labels(model, found, geometry, job.name, lesions=given)
        which = lesion_labels(model)
        if listener.on_lesions is not None and which.names:
            means = functools.partial(component_means, found, labels=labels)
            lesions = measure(predicted, geometry, which, means)
            case = CaseLesions(lesions=lesions, removed_without_organ=removed)
            listener.on_lesions(job, case)
        with replacing(job.output) as beside:
            write_label(beside, predicted, geometry)
            listener.on_case(job, predicted, beside)


@contextlib.contextmanager
def _naming(case: str) -> Iterator[None]:
    """Makes the errors raised in the block begin with the name of the case, exactly once."""
    try:
        with running_out(case):
            yield
    except AutoliverError as error:
        # Only the beginning counts: elsewhere in the text the name may be part of a word, a number
        # or a path.
        if not case or error.problem.startswith(f"{case}: "):
            raise
        raise type(error)(f"{case}: {error.problem}", hint=error.hint) from error
    except Exception as error:
        error.add_note(f"This happened while {case} was predicted.")
        raise


def check_image(model: Model | Member, image: Volume, *, name: str) -> None:
    """Refuses an image that a model cannot take.

    Raises:
        DatasetError: The number of channels is wrong, or intensities are NaN or infinite.
    """
    expected = model.plan.channel_names
    if image.array.shape[0] != len(expected):
        raise DatasetError(
            f"{name}: found {counted(image.array.shape[0], 'channel')}; {model.name} expects "
            f"{len(expected)}: {', '.join(expected)}.",
            hint="Give one file per channel, numbered in this order: CASE_0000, CASE_0001, ...",
        )
    # Minimum and maximum reveal NaN and infinity without a mask of the image's size.
    if not np.isfinite([image.array.min(), image.array.max()]).all():
        raise DatasetError(
            f"{name}: the image holds NaN or infinite values.", hint="Repair or leave out the case."
        )
