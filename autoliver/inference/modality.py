"""Whether a case is CT or MR, and what a model does with one that it was not planned for."""

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Modality
from autoliver.errors import DatasetError
from autoliver.inference.model import Member, Model
from autoliver.inference.options import ModalityChoice
from autoliver.inference.seen import as_trained, is_noise
from autoliver.planning.plan import Configuration, Plan
from autoliver.planning.ranges import ChannelRange, channel_range
from autoliver.preprocessing.normalize import SOFT_TISSUE_HU, renormalized

# CT of the body holds air, and air is about -1000 HU.
_AIR_HU = -900.0
# Where HU were clipped at a window's lower end (-17 is the highest one in use), it is what air and
# fat have become: more than half of the voxels of abdominal scans. MR has less than one in a
# hundred: none, or ringing of its resampling.
_CLEARLY_NEGATIVE = -10.0
_NEGATIVE_SHARE = 0.01
# No soft organ is denser: a model whose foreground is was trained on CT stored with an offset.
_MOST_ORGANS_HU = 500.0

# How to find the ends of several ranges.
_ENDS: tuple[tuple[Callable[[list[float]], float], str], ...] = ((min, "min"), (max, "max"))

_log = logging.getLogger(__name__)


def case_modality(
    model: Model, image: npt.NDArray[np.generic], choice: ModalityChoice | None, *, name: str
) -> Modality | None:
    """The modality by which all networks of a model get to see a case; says it in the log.

    Args:
        model: What is to predict the case.
        image: (c, z, y, x), intensities as in the files.
        choice: "auto" decides by the image; None: each network sees it as it was planned.
        name: The case.

    Returns:
        The modality; None: as planned.

    Raises:
        DatasetError: The image is of another modality than some network, which was not trained for
            that; never with an explicit choice.
    """
    deciding = next((part for part in model.parts if part.plan.modality != "other"), None)
    if choice is None:
        return None
    if deciding is None:
        if choice != "auto":
            _log.warning(
                "%s: %s was asked for, but %s knows no modality: normalised as planned.",
                *(name, choice, model.name),
            )
        return None
    seen, why = seen_modality(image, deciding.plan, deciding.configuration)
    modality = seen or deciding.plan.modality if choice == "auto" else choice
    foreign = [p for p in model.parts if {p.plan.modality, modality} == {"CT", "MR"}]
    how = _how(modality, foreign)
    if choice == "auto":
        _check_prepared(foreign, modality, f"{name}: looks like {modality} ({why})")
        level = logging.WARNING if foreign else logging.INFO
        _log.log(level, "%s: looks like %s (%s): %s.", name, modality, why, how)
    elif seen not in (None, choice):
        _log.warning(
            "%s: looks like %s (%s), but %s was asked for: %s.", *(name, seen, why, choice, how)
        )
    else:
        _log.info("%s: %s, as asked for: %s.", name, choice, how)
    return modality


def seen_modality(
    image: npt.NDArray[np.generic], plan: Plan, configuration: Configuration
) -> tuple[Modality | None, str]:
    """What an image is by its values: CT is well below zero in places, MR nowhere.

    Args:
        image: (c, z, y, x), intensities as in the files.
        plan: Of the model that is to see it, which may have been trained on CT without or MR with
            negative values.
        configuration: Which channels to look at: those normalised as CT or by mean and deviation.

    Returns:
        The modality, None where values do not tell, and why.
    """
    schemes = configuration.normalization
    # Beside CT other channels, such as PET, have no negative values either.
    telling = "ct" if plan.modality == "CT" and "ct" in schemes else "zscore"
    channels = [index for index, scheme in enumerate(schemes) if scheme == telling]
    if plan.modality == "other" or not channels:
        return None, "normalised in a way that knows no modality"
    seen = plan.seen if plan.seen and len(plan.seen.channels) == len(schemes) else None
    if seen is not None:
        ranges = {index: channel_range(image[index]) for index in channels}
        # Never refuse the model's own training images, however they are stored.
        if all(
            as_trained(ranges[index], seen.channels[index], ct=telling == "ct")
            for index in channels
        ):
            low, high = (f([getattr(r, n) for r in ranges.values()]) for f, n in _ENDS)
            return None, f"{low:g} to {high:g}, as {plan.modality} of its training"
        return _unlike_training(list(ranges.values()), plan)
    low = min(float(image[index].min()) for index in channels)
    known = [plan.intensities[index] for index in channels]
    if low >= 0:
        high = max(float(image[index].max()) for index in channels)
        why = f"no negative values, {low:g} to {high:g}"
        offset = plan.modality == "CT" and any(stats.mean > _MOST_ORGANS_HU for stats in known)
        return (None, f"{why}, as CT of its training") if offset else ("MR", why)
    why = f"lowest value {low:g}"
    if low <= _AIR_HU:
        return "CT", why
    if plan.modality == "MR" and any(s.percentile_00_5 <= _CLEARLY_NEGATIVE for s in known):
        return None, f"{why}, as MR of its training"
    below = max(float(np.mean(image[index] <= _CLEARLY_NEGATIVE)) for index in channels)
    return ("CT", why) if below >= _NEGATIVE_SHARE else (None, f"{why}, which does not tell")


def _unlike_training(ranges: list[ChannelRange], plan: Plan) -> tuple[Modality | None, str]:
    """What an image is that differs from all images of the training, and why."""
    low, high = (f([getattr(r, n) for r in ranges]) for f, n in _ENDS)
    if low >= 0:
        more = "; CT stored with an offset or a window looks like this as well"
        why = f"no negative values, {low:g} to {high:g}"
        return "MR", why + (more if plan.modality == "CT" else "")
    why = f"lowest value {low:g}"
    if low <= _AIR_HU:
        return "CT", why
    below = max(r.share_negative for r in ranges)
    if below < _NEGATIVE_SHARE or all(map(is_noise, ranges)):
        return None, f"{why}, which does not tell"
    return "CT", why


def _how(modality: Modality, foreign: list[Member]) -> str:
    if not any(renormalized(modality, part.plan, part.configuration) for part in foreign):
        return "normalised as planned"
    if modality == "CT" and all(part.plan.source_intensities for part in foreign):
        return "normalised as the CT that its weights come from"
    how = "normalised by its own mean and deviation"
    if modality == "CT":
        how = f"clipped to {SOFT_TISSUE_HU[0]:g} to {SOFT_TISSUE_HU[1]:g} HU and {how}"
    return how


def _check_prepared(foreign: list[Member], modality: Modality, found: str) -> None:
    """Refuses parts of a model that have never seen contrasts such as the case's."""
    for part in foreign:
        if not (part.cross_modal or part.plan.source_intensities):
            raise DatasetError(
                f"{found}, but {part.name} was trained on {part.plan.modality}.",
                hint=f"Choose a model for {modality} with -m, train one with --augment "
                "cross-modality or fine-tune this one with --pretrained; or force it with "
                f"--modality {modality} (--modality {part.plan.modality} if that is what it is).",
            )
