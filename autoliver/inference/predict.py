"""Cases in, label maps out: on each input's own grid and in its file type."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from autoliver.artifacts import Record
from autoliver.errors import AutoliverError, DatasetError
from autoliver.inference.model import Model
from autoliver.inference.window import count_windows, sliding_window
from autoliver.io.header import label_ending, split_ending
from autoliver.io.itk import read_image, write_label
from autoliver.io.volume import Volume
from autoliver.preprocessing.case import backward_logits, forward

# CT of the body holds air, and air is about -1000 HU; MR has no negative values.
_AIR_HU = -900.0


class PredictOptions(Record, frozen=True, kw_only=True):
    """How to predict.

    Attributes:
        step: Distance of neighbouring windows as a share of the patch.
        mirror: Average over flips along the axes the model was trained to see flipped.
    """

    step: float = 0.5
    mirror: bool = True


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
    on_windows: Callable[[str, int], Callable[[], object]] | None = None,
) -> None:
    """Predicts case after case; each file is written whole or not at all.

    Args:
        model: What predicts.
        jobs: What to predict.
        options: How.
        on_windows: Called with a case and its number of windows; returns what is called after each.
    """
    for job in jobs:
        image = read_image(job.images)
        labels = predict_volume(model, image, options, name=job.name, on_windows=on_windows)
        write_label(job.output, labels, image.geometry)


def predict_volume(
    model: Model,
    image: Volume,
    options: PredictOptions,
    *,
    name: str,
    on_windows: Callable[[str, int], Callable[[], object]] | None = None,
) -> npt.NDArray[np.integer]:
    """The label map (z, y, x) of one image, on its own grid.

    Raises:
        DatasetError: The image's channels or intensities do not fit the model.
    """
    check_image(model, image, name=name)
    case = forward(image, None, plan=model.plan, configuration=model.configuration, name=name)
    patch = model.configuration.patch_shape
    tick: Callable[[], object] = lambda: None  # noqa: E731
    if on_windows is not None:
        tick = on_windows(name, count_windows(case.image.shape[1:], patch, options.step))
    with torch.inference_mode(), _autocast(model.device):
        logits = sliding_window(
            torch.from_numpy(case.image).to(model.device),
            model.networks,
            patch_shape=patch,
            step=options.step,
            mirror_axes=model.mirror_axes if options.mirror else (),
            on_window=tick,
        )
    return backward_logits(logits.cpu().numpy(), case.properties, labels=model.plan.labels)


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
    # CT stored with an offset has none either; then the model's own training images had none.
    if model.plan.modality == "CT" and lowest >= 0 > model.plan.intensities[0].percentile_00_5:
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
