"""Decides whether a case is CT or MR, and how a model planned for the other one treats it."""

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Modality
from autoliver.errors import DatasetError
from autoliver.inference.model import Member, Model
from autoliver.inference.options import ModalityChoice, UsedModality
from autoliver.inference.seen import as_trained
from autoliver.planning.modality import AIR_HU, NEGATIVE_SHARE, emptiness, looks_like
from autoliver.planning.plan import Configuration, Plan
from autoliver.planning.ranges import CLEARLY_NEGATIVE, ChannelRange, channel_range
from autoliver.preprocessing.normalize import SOFT_TISSUE_HU, renormalized

# No soft organ is denser. If the mean foreground of a model is above this, the model was trained on
# CT that was stored with an offset.
_MOST_ORGANS_HU = 500.0

# How to find the ends of several ranges.
_ENDS: tuple[tuple[Callable[[list[float]], float], str], ...] = ((min, "min"), (max, "max"))

_log = logging.getLogger(__name__)


def decide_modality(
    model: Model,
    image: npt.NDArray[np.generic],
    choice: ModalityChoice | None,
    *,
    name: str,
    stated: Modality | None = None,
) -> UsedModality:
    """Chooses the modality by which a case is normalised for all networks, and logs the choice.

    Args:
        model: The model that will predict the case.
        image: (c, z, y, x), intensities as in the files.
        choice: "CT" or "MR" is used as given; "auto" decides by the image; None normalises the
            image for each network as its plan says.
        name: Name of the case.
        stated: The modality that the image's own header states, as DICOM does; with "auto" it holds
            whatever the image looks like. None: it states none.

    Raises:
        DatasetError: The image looks like another modality than some network was trained on, and
            that network was not prepared for it; or a model of both cannot tell what it is. Only
            raised with "auto".
    """
    deciding = next((part for part in model.parts if part.plan.modality != "other"), None)
    if choice is None:
        return UsedModality()
    if deciding is None:
        if choice != "auto":
            _log.warning(
                "%s: %s was requested, but %s knows no modality: normalised as planned.",
                *(name, choice, model.name),
            )
        return UsedModality(why="the model knows no modality")
    seen, why = seen_modality(image, deciding.plan, deciding.configuration)
    empty = all(channel.min() == channel.max() for channel in image)
    looks, said = seen, "looks like"
    if stated is not None and choice == "auto":
        seen, said = stated, "is"
        why = "by its header" if looks in (None, stated) else f"by its header; {why}"
    if choice == "auto" and seen is None and deciding.plan.mixed and not empty:
        raise DatasetError(
            f"{name}: {why}. {deciding.name} was trained on both CT and MR, which it normalises in "
            "different ways.",
            hint="Say what it is with --modality CT or --modality MR.",
        )
    modality = seen or deciding.plan.modality if choice == "auto" else choice
    parts = [part for part in model.parts if {part.plan.modality, modality} == {"CT", "MR"}]
    foreign = [part for part in parts if part.plan.is_foreign(modality)]
    how = _how(modality, parts)
    if deciding.plan.mixed and not parts:
        how = f"{how} for {modality}"  # MR cases are normalised in another way
    if choice == "auto":
        taken = f"{said} {modality}" if seen else f"taken for {modality}"
        _check_prepared(foreign, modality, f"{name}: {taken} ({why})")
        level = logging.WARNING if foreign or empty else logging.INFO
        _log.log(level, "%s: %s (%s): %s.", name, taken, why, how)
    elif seen not in (None, choice):
        _log.warning(
            "%s: looks like %s (%s), but %s was requested: %s.", *(name, seen, why, choice, how)
        )
    else:
        _log.info("%s: %s, as requested: %s.", name, choice, how)
    return UsedModality(modality=modality, why=why if choice == "auto" else "as requested", how=how)


def seen_modality(
    image: npt.NDArray[np.generic], plan: Plan, configuration: Configuration
) -> tuple[Modality | None, str]:
    """Guesses the modality of an image by its values: CT has voxels far below zero, MR has none.

    Args:
        image: (c, z, y, x), intensities as in the files.
        plan: The plan of the model that will predict it. The model may have been trained on CT
            without negative values or on MR with negative values.
        configuration: Decides which channels count: those normalised as CT, or by mean and standard
            deviation.

    Returns:
        The modality, or None if the values do not show it; and the reason in words.
    """
    schemes = configuration.normalization
    # Channels that accompany CT, such as PET, have no negative values either, so they do not count.
    telling = "ct" if plan.modality == "CT" and "ct" in schemes else "zscore"
    channels = [index for index, scheme in enumerate(schemes) if scheme == telling]
    if plan.modality == "other" or not channels:
        return None, "its normalisation does not depend on the modality"
    if plan.mixed:  # by itself, since the training's images look like either
        return _unlike_training([channel_range(image[index]) for index in channels], plan)
    seen = plan.seen if plan.seen and len(plan.seen.channels) == len(schemes) else None
    ranges = {index: channel_range(image[index]) for index in channels}
    if empty := emptiness(list(ranges.values())):
        return None, empty
    if seen is not None:
        # Never refuse the model's own training images, however they are stored.
        if all(
            as_trained(ranges[index], seen.channels[index], ct=telling == "ct")
            for index in channels
        ):
            low, high = (f([getattr(r, n) for r in ranges.values()]) for f, n in _ENDS)
            return None, f"{low:g} to {high:g}, like the {plan.modality} it was trained on"
        return _unlike_training(list(ranges.values()), plan)
    low = min(float(image[index].min()) for index in channels)
    known = [plan.intensities[index] for index in channels]
    if low >= 0:
        high = max(float(image[index].max()) for index in channels)
        why = f"no negative values, {low:g} to {high:g}"
        offset = plan.modality == "CT" and any(stats.mean > _MOST_ORGANS_HU for stats in known)
        return (None, f"{why}, like the CT it was trained on") if offset else ("MR", why)
    why = f"lowest value {low:g}"
    if low <= AIR_HU:
        return "CT", why
    if plan.modality == "MR" and any(s.percentile_00_5 <= CLEARLY_NEGATIVE for s in known):
        return None, f"{why}, like the MR it was trained on"
    below = max(float(np.mean(image[index] <= CLEARLY_NEGATIVE)) for index in channels)
    return ("CT", why) if below >= NEGATIVE_SHARE else (None, f"{why}, which is not conclusive")


def _unlike_training(ranges: list[ChannelRange], plan: Plan) -> tuple[Modality | None, str]:
    """What an image is that differs from all images of the training, and why."""
    seen, why = looks_like(ranges)
    if seen == "MR" and plan.modality == "CT":
        why += "; CT stored with an offset or a window looks like this as well"
    return seen, why


def _how(modality: Modality, foreign: list[Member]) -> str:
    if not any(renormalized(modality, part.plan, part.configuration) for part in foreign):
        return "normalised as planned"
    if modality == "CT" and all(part.plan.source_intensities for part in foreign):
        return "normalised as the CT that its weights come from"
    how = "normalised by its own mean and standard deviation"
    if modality == "CT":
        how = f"clipped to {SOFT_TISSUE_HU[0]:g} to {SOFT_TISSUE_HU[1]:g} HU and {how}"
    return how


def _check_prepared(foreign: list[Member], modality: Modality, found: str) -> None:
    """Refuses parts of a model that were never trained on contrasts like those of the case."""
    for part in foreign:
        if not (part.cross_modal or part.plan.source_intensities):
            raise DatasetError(
                f"{found}, but {part.name} was trained on {part.plan.modality}.",
                hint=f"Choose a model for {modality} with -m, train one with --augment "
                "cross-modality or fine-tune this one with --pretrained; or force prediction with "
                f"--modality {modality} (--modality {part.plan.modality} if the case is that).",
            )
