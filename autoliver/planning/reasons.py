"""Words the reasons for a plan's decisions: one sentence each, with the numbers behind it.

The sentences are part of the plan and of its digest, so rewording one changes the digests of plans.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Labels
from autoliver.io.orientation import commonest
from autoliver.planning.fit import FIRST_EDGE, Fit
from autoliver.planning.plan import IntensityStats, Normalization
from autoliver.planning.presets import MIN_BATCH

Numbers = Sequence[float] | npt.NDArray[np.float64]


def times(values: Numbers) -> str:
    """Formats sizes, e.g. "40 x 56 x 40"."""
    return " x ".join(f"{value:g}" for value in values)


def millimetres(values: Numbers) -> str:
    """Formats lengths in mm, e.g. "5.00 x 0.78 x 0.78 mm"."""
    return " x ".join(f"{value:.2f}" for value in values) + " mm"


def share(value: float) -> str:
    """Formats a share as a percentage of at most 100 %; below 10 % with one decimal."""
    return f"{100 * value:.1f} %" if value < 0.1 else f"{100 * min(value, 1):.0f} %"


def spacing_of_median(spacing_mm: Numbers, cases: int) -> str:
    """Gives the reason for a target spacing that is the median."""
    of = f"of the {cases} labelled cases" if cases > 1 else "of the one labelled case"
    return f"{millimetres(spacing_mm)}, the median spacing {of}."


def spacing_of_anisotropic(spacing_mm: Numbers, *, axis: str, median_mm: float) -> str:
    """Gives the reason for a target spacing whose coarse axis is finer than the median."""
    return (
        f"{millimetres(spacing_mm)}: the median spacing, except along {axis}, where the median of "
        f"{median_mm:.2f} mm is more than 3 times coarser than the other axes and would blur the "
        "thinner slices; there the 10th percentile is taken, kept no finer than the other axes."
    )


def spacing_of_slices(spacing_mm: Numbers) -> str:
    """Gives the reason for the spacing of a 2D network, which keeps the slices as acquired."""
    return (
        f"{millimetres(spacing_mm)} in plane, as at full resolution; slices are not resampled "
        "across, since the network labels one at a time."
    )


def neighbours(slices: int) -> str:
    """Gives the reason for the slices that a 2D network sees as channels."""
    return (
        f"{slices}, as asked for: each slice with {slices // 2} on either side, as they were "
        "acquired; beyond the first and last slice these are repeated."
    )


def spacing_of_lowres(full_mm: Numbers, low_mm: Numbers, *, covered: float, now: float) -> str:
    """Gives the reason for a spacing made coarser until the patch covers enough of a case."""
    return (
        f"{millimetres(low_mm)} instead of {millimetres(full_mm)}: coarsened in steps of 3 % "
        f"(finer axes first) until one patch covers {share(now)} of the median case, where at "
        f"full resolution it covers {share(covered)} (at least 25 % wanted)."
    )


def patch(fit: Fit, *, vram_gb: float) -> str:
    """Gives the reason for the patch size: the size of a case, or the memory."""
    size = fit.topology.patch_shape
    extent = [n * mm for n, mm in zip(size, fit.spacing_mm, strict=True)]
    head = f"{times(size)} voxels ({' x '.join(f'{mm:.0f}' for mm in extent)} mm)"
    case = f"the median case of {times(fit.median_shape)} voxels"
    if fit.shrunk:
        return f"{head}: what {vram_gb:g} GB of memory allow, kept close to the shape of {case}."
    if all(n >= m for n, m in zip(size, fit.median_shape, strict=True)):
        return f"{head}: takes in {case} whole, rounded up to what the network can halve."
    edge = FIRST_EDGE[len(size)]
    largest = times([edge] * len(size))
    return f"{head}: as many voxels as the largest patch tried, {largest}, within {case}."


def batch(fit: Fit, *, share_allowed: float, most: int | None) -> str:
    """Gives the reason for the batch size: the memory, the dataset's size, or a limit.

    Args:
        fit: The patch, and the batch sizes that memory and dataset allow.
        share_allowed: The largest share of the dataset's voxels in one batch, from 0 to 1.
        most: The preset's limit on the batch size; None for no limit.
    """
    size, memory, dataset = fit.batch_size, fit.batch_by_memory, fit.batch_by_dataset
    if most is not None and size > most:
        return f"{most} patches, the limit of this preset; default would take {size}."
    if dataset <= size < memory:
        few = "" if dataset == size else "; fewer than this are never used"
        return (
            f"{size} patches, where memory would hold {memory}: one step may show at most "
            f"{100 * share_allowed:g} % of the dataset, lest the network learn its cases by heart"
            f"{few}."
        )
    if size == MIN_BATCH:
        return (
            f"{size} patches, the fewest ever used: memory goes into the size of the patch first."
        )
    return f"{size} patches: as many of this size as the memory target holds."


def labels(found: Labels) -> dict[str, str]:
    """Gives the reason for labels of a single value that are independent; empty if none are."""
    if not found.has_regions or found.has_unions:
        return {}
    return {
        "labels": "Independent of each other (sigmoid), since not all of them are annotated in "
        "every case."
    }


def normalization(
    names: Sequence[str],
    schemes: Sequence[Normalization],
    intensities: Sequence[IntensityStats],
    *,
    masked: Sequence[bool],
    kept: float,
    asked: bool = False,
) -> str:
    """Gives the reasons for the normalisation, one clause per group of channels treated alike.

    Args:
        names: The name of each channel.
        schemes: The normalisation scheme of each channel.
        intensities: The intensities of each channel.
        masked: Per channel, whether statistics use only the non-zero mask.
        kept: The share of voxels that cropping keeps, from 0 to 1.
        asked: Whether the user asked for the CT window.
    """
    channels: dict[str, list[str]] = {}
    for name, scheme, stats in zip(names, schemes, intensities, strict=True):
        channels.setdefault(_scheme(scheme, stats, asked=asked), []).append(name)
    clauses = [f"{', '.join(group)}: {how}" for how, group in channels.items()]
    if any(masked):
        clauses.append(
            f"mean and deviation are taken inside the non-zero region, since cropping to it keeps "
            f"{share(kept)} of the voxels (below 75 %)"
        )
    return "; ".join(clauses) + "."


def of_both_modalities(how: str) -> str:
    """Adds to the reason for the normalisation of CT how the MR cases of the dataset differ."""
    return (
        f"CT cases, whose voxels alone were counted: {how} MR cases: each is shifted by its own "
        "mean and divided by its own deviation, since MR has no common scale."
    )


def _scheme(scheme: Normalization, stats: IntensityStats, *, asked: bool) -> str:
    match scheme:
        case "ct":
            why = "as asked for" if asked else "0.5 and 99.5 % of the labelled voxels"
            return (
                f"clipped to {stats.percentile_00_5:.4g} to {stats.percentile_99_5:.4g} ({why}), "
                f"then shifted by the labelled voxels' mean {stats.mean:.4g} and divided by their "
                f"deviation {stats.std:.4g}, the same for every case, since CT numbers mean the "
                "same tissue in every scan"
            )
        case "zscore":
            return "each case by its own mean and deviation, since the scale differs between scans"
        case "rescale01":
            return "each case rescaled to 0 to 1, as the channel's name asks"
        case "rgb":
            return "divided by 255, as the channel's name asks"
        case "none":
            return "left as it is, as the channel's name asks"


def dice_of_slices() -> str:
    """Gives the reason why 2D always pools Dice over the batch."""
    return (
        "Over the whole batch: a single slice often lacks a structure, and its Dice means little."
    )


def dice_of_lowres(covered: float) -> str:
    """Gives the reason why low resolution computes Dice per patch."""
    return f"Per patch: one patch covers {share(covered)} of the median case, enough for its own."


def dice_of_full(covered: float, *, pooled: bool) -> str:
    """Gives the reason why full resolution pools Dice over the batch, or computes it per patch.

    It is pooled if there is a low-resolution configuration.
    """
    if pooled:
        return (
            f"Over the whole batch: one patch covers only {share(covered)} of the median case and "
            "often lacks a structure."
        )
    return (
        f"Per patch: one patch covers {share(covered)} of the median case and no low-resolution "
        "network is needed, so most patches hold enough of each structure."
    )


def axes(orders: Sequence[str], *, kept: bool) -> dict[str, str]:
    """What happens to the anatomical orders of the cases' axes; nothing where all have one.

    Args:
        orders: Of the cases whose order is known.
        kept: Whether they keep their own.
    """
    if len(set(orders)) < 2:
        return {}
    counts = {order: orders.count(order) for order in sorted(set(orders))}
    first = commonest(orders)
    found = ", ".join(f"{order} ({count})" for order, count in counts.items())
    if kept:
        return {"axes": f"Kept as in the files, as asked for, although they differ: {found}."}
    return {
        "axes": f"Every case is brought to {first}, the commonest of {found}, by flips and "
        "exchanges of axes alone."
    }


def transpose(axis: str, spacing_mm: float, *, next_mm: float) -> str:
    """Gives the reason which axis comes first."""
    if spacing_mm > next_mm:
        return (
            f"Axis {axis} comes first: it is the coarsest ({spacing_mm:.2f} mm, the next "
            f"{next_mm:.2f} mm), so 2D slices are cut across it."
        )
    return f"Axis {axis} comes first: no other is coarser ({spacing_mm:.2f} mm)."


def transpose_of_slice(axis: str) -> str:
    """Gives the reason which axis comes first if the images have a single slice."""
    return f"Axis {axis} comes first: the images are one slice deep along it."


def lowres_not_needed(patch_shape: Sequence[int], covered: float) -> str:
    """Gives the reason to drop low resolution if the full-resolution patch covers enough."""
    return (
        f"dropped: the full-resolution patch of {times(patch_shape)} voxels already covers "
        f"{share(covered)} of the median case (a low-resolution network serves below 25 %)."
    )


def lowres_too_similar(low_mm: Numbers, fewer: float) -> str:
    """Gives the reason to drop low resolution if it would hardly have fewer voxels."""
    return (
        f"dropped: at {millimetres(low_mm)}, where a patch covers 25 % of the median case, the "
        f"case has only {fewer:.1f} times fewer voxels than at full resolution (at least 2 wanted)."
    )


def previous_stage(channels: int, lowres_mm: Numbers) -> str:
    """Gives the reason for the additional input channels of the cascade."""
    return (
        f"Gets the labels that 3d_lowres found at {millimetres(lowres_mm)} as {channels} further "
        "channels, since its own patch is too small to see where in the body it is."
    )
