"""Cases in, label maps out: on each input's own grid and in its file type."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from autoliver.artifacts import Record, replacing
from autoliver.errors import AutoliverError, DatasetError
from autoliver.inference.clean import clean
from autoliver.inference.model import Member, Model
from autoliver.inference.window import sliding_window, windows_of
from autoliver.io.header import label_ending, split_ending
from autoliver.io.itk import read_image, write_image, write_label
from autoliver.io.volume import Geometry, Volume
from autoliver.preprocessing.case import Preprocessed, backward_logits, forward, forward_cascade
from autoliver.preprocessing.ensemble import (
    Output,
    mean_labels,
    mean_probabilities,
    probabilities,
    uncertainty,
)

OnWindows = Callable[[str, int], Callable[[], object]]

# CT of the body holds air, and air is about -1000 HU; MR has no negative values.
_AIR_HU = -900.0
# No soft organ is denser: a model whose foreground is was trained on CT stored with an offset.
_MOST_ORGANS_HU = 500.0


class PredictOptions(Record, frozen=True, kw_only=True):
    """How to predict.

    Attributes:
        step: Distance of neighbouring windows as a share of the patch.
        mirror: Average over flips along the axes the model was trained to see flipped.
        overlap: Read the next case and export the last one while one is on the device; takes the
            memory of up to three cases.
        probabilities: Also write CASE.npz with the probabilities, (k, z, y, x).
        uncertainty: Also write CASE_uncertainty with the entropy of the mean over all networks.
    """

    step: float = 0.5
    mirror: bool = True
    overlap: bool = True
    probabilities: bool = False
    uncertainty: bool = False


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """One case: image files in channel order, and where its label map goes."""

    name: str
    images: tuple[Path, ...]
    output: Path

    @property
    def finished(self) -> bool:
        """Whether the label map is there; a file is written whole or not at all."""
        return self.output.exists()


def make_jobs(cases: Mapping[str, Sequence[Path]], output: Path) -> list[PredictJob]:
    """One job a case.

    Args:
        cases: Case name -> image files.
        output: The folder for label maps; each gets its image's file ending.

    Raises:
        AutoliverError: A label map would replace an image.
    """
    jobs = [
        PredictJob(
            name=name,
            images=tuple(images),
            output=output / f"{name}{label_ending(split_ending(images[0].name)[1])}",
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
    on_windows: OnWindows | None = None,
) -> None:
    """Predicts case after case; each file is written whole or not at all.

    The first case that fails ends it; what was predicted until then is still written.

    Args:
        model: What predicts.
        jobs: What to predict.
        options: How.
        on_windows: Called with a case and its number of windows; returns what is called after each.

    Raises:
        AutoliverError: A case cannot be read, does not fit the model or cannot be written.
    """
    if options.overlap:
        _predict_overlapped(model, jobs, options, on_windows)
        return
    for job in jobs:
        case = _prepare(model, job)
        _export(model, job, outputs(model, case, options, on_windows), options)


def predict_volume(
    model: Model,
    image: Volume,
    options: PredictOptions,
    *,
    name: str,
    on_windows: OnWindows | None = None,
) -> npt.NDArray[np.integer]:
    """The label map (z, y, x) of one image, on its own grid.

    Raises:
        DatasetError: The image's channels or intensities do not fit the model.
    """
    check_image(model, image, name=name)
    case = PreparedCase.of(model, image, name)
    return _labels(model, outputs(model, case, options, on_windows), image.geometry)


@dataclass(frozen=True)
class PreparedCase:
    """A case on the network grid of every member (for a cascade: of its first stage).

    Attributes:
        name: The case.
        prepared: One per member.
        image: The image itself, where a cascade needs it once more.
    """

    name: str
    prepared: tuple[Preprocessed, ...]
    image: Volume | None

    @classmethod
    def of(cls, model: Model, image: Volume, name: str) -> "PreparedCase":
        """Prepares an image."""
        stages = [member.previous or member for member in model.members]
        prepared = tuple(
            forward(image, None, plan=stage.plan, configuration=stage.configuration, name=name)
            for stage in stages
        )
        cascade = any(member.previous for member in model.members)
        return cls(name, prepared, image if cascade else None)


def outputs(
    model: Model, case: PreparedCase, options: PredictOptions, on_windows: OnWindows | None = None
) -> tuple[Output, ...]:
    """What each member says of a case."""
    results = []
    for member, prepared in zip(model.members, case.prepared, strict=True):
        if member.previous is not None and case.image is not None:
            low = _output(member.previous, prepared, options, on_windows)
            found = backward_logits(low.logits, low.properties, labels=model.plan.labels)
            prepared = forward_cascade(
                case.image,
                found,
                plan=member.plan,
                configuration=member.configuration,
                name=case.name,
            )
        results.append(_output(member, prepared, options, on_windows))
    return tuple(results)


def _output(
    member: Member, case: Preprocessed, options: PredictOptions, on_windows: OnWindows | None
) -> Output:
    name, patch = case.properties.name, member.configuration.patch_shape
    passes = [member.networks]
    if options.uncertainty:
        passes = [(network,) for network in member.networks]
    windows = windows_of(case.image.shape[1:], patch, options.step)
    tick: Callable[[], object] = lambda: None  # noqa: E731
    if on_windows is not None:
        tick = on_windows(name, len(windows) * len(passes))
    regions = member.plan.labels.has_regions
    logits: npt.NDArray[np.float32] | None = None
    spread: npt.NDArray[np.float32] | None = None
    with _naming(name), torch.inference_mode(), _autocast(member.device):
        image = torch.from_numpy(case.image).to(member.device)
        for networks in passes:
            found: npt.NDArray[np.float32] = (
                sliding_window(
                    image,
                    networks,
                    patch_shape=patch,
                    mirror_axes=member.mirror_axes if options.mirror else (),
                    windows=windows,
                    on_window=tick,
                )
                .cpu()
                .numpy()
            )
            if options.uncertainty:
                own = probabilities(found.copy(), regions=regions)
                spread = own if spread is None else spread + own
            logits = found if logits is None else logits + found
    if logits is None:
        raise ValueError("a member without networks")
    if len(passes) > 1:
        logits /= len(passes)
    if spread is not None:
        spread /= len(passes)
    return Output(logits=logits, properties=case.properties, spread=spread)


def _labels(model: Model, found: Sequence[Output], geometry: Geometry) -> npt.NDArray[np.integer]:
    labels = model.plan.labels
    if len(found) == 1:
        segmentation = backward_logits(found[0].logits, found[0].properties, labels=labels)
    else:
        segmentation = mean_labels(found, labels=labels)
    return clean(segmentation, model.cleaning, values=labels.values, spacing_mm=geometry.spacing_mm)


def _predict_overlapped(
    model: Model,
    jobs: Iterable[PredictJob],
    options: PredictOptions,
    on_windows: OnWindows | None,
) -> None:
    todo = iter(jobs)
    # Leaving the block waits for both threads, so that an error loses no case that was predicted.
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "export") as writer:

        def read_next() -> tuple[PredictJob, Future[PreparedCase]] | None:
            job = next(todo, None)
            return None if job is None else (job, reader.submit(_prepare, model, job))

        written: Future[None] | None = None
        following = read_next()
        while following is not None:
            job, case = following[0], following[1].result()
            following = read_next()
            found = outputs(model, case, options, on_windows)
            before = written
            if before is not None:
                wait([before])
            written = writer.submit(_export, model, job, found, options)
            del case, found  # or they would stay in memory beside the next one's
            if before is not None:
                before.result()
        if written is not None:
            written.result()


def _prepare(model: Model, job: PredictJob) -> PreparedCase:
    with _naming(job.name):
        image = read_image(job.images)
        check_image(model, image, name=job.name)
        return PreparedCase.of(model, image, job.name)


def _export(
    model: Model, job: PredictJob, found: Sequence[Output], options: PredictOptions
) -> None:
    """Writes the label map last: its presence says that the case is finished."""
    geometry, labels = found[0].properties.geometry, model.plan.labels
    with _naming(job.name):
        if options.probabilities:
            values = mean_probabilities(found, labels=labels)
            with replacing(job.output.with_name(f"{job.name}.npz")) as beside:
                np.savez_compressed(beside, probabilities=values)
        if options.uncertainty:
            entropy = uncertainty(found, labels=labels)
            ending = job.output.name.removeprefix(job.name)
            write_image(
                job.output.with_name(f"{job.name}_uncertainty{ending}"), entropy[None], geometry
            )
        write_label(job.output, _labels(model, found, geometry), geometry)


@contextlib.contextmanager
def _naming(case: str) -> Iterator[None]:
    """Errors inside the block tell the case."""
    try:
        yield
    except AutoliverError as error:
        if case in error.problem:
            raise
        raise type(error)(f"{case}: {error.problem}", hint=error.hint) from error
    except Exception as error:
        error.add_note(f"This happened while {case} was predicted.")
        raise


def check_image(model: Model, image: Volume, *, name: str) -> None:
    """Refuses an image that the model was not made for.

    Raises:
        DatasetError: Another number of channels, or intensities of another modality.
    """
    expected = model.plan.channel_names
    if image.array.shape[0] != len(expected):
        raise DatasetError(
            f"{name}: found {image.array.shape[0]} channels; {model.name} expects "
            f"{len(expected)}: {', '.join(expected)}.",
            hint="Give one file per channel, numbered in this order: CASE_0000, CASE_0001, ...",
        )
    if not np.isfinite(image.array).all():
        raise DatasetError(
            f"{name}: the image holds NaN or infinite values.", hint="Repair or leave out the case."
        )
    lowest = float(image.array.min())
    if model.plan.modality == "MR" and lowest <= _AIR_HU:
        raise DatasetError(
            f"{name}: looks like CT (lowest value {lowest:g}), but {model.name} was trained on MR.",
            hint="Choose a model for CT with -m.",
        )
    offset = model.plan.intensities[0].mean > _MOST_ORGANS_HU
    if model.plan.modality == "CT" and lowest >= 0 and not offset:
        raise DatasetError(
            f"{name}: has no negative values, so it is not CT in Hounsfield units, which "
            f"{model.name} expects.",
            hint="Choose a model for MR with -m, or convert the image to Hounsfield units.",
        )


def _autocast(device: torch.device) -> torch.autocast:
    dtype = torch.bfloat16
    if device.type == "cuda":
        dtype = torch.float16  # finer than bfloat16, and logits do not overflow it
    return torch.autocast(device.type, dtype=dtype, enabled=device.type == "cuda")
