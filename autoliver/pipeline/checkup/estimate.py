"""How long trainings and predictions take, and what they take of disk and memory: arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoliver.memory import GB
from autoliver.needs import grid_need, network_shape
from autoliver.pipeline.checkup.findings import Estimate, Finding
from autoliver.pipeline.checkup.probe import Timing
from autoliver.planning.plan import CaseFingerprint, Configuration, Plan

# Size of preprocessed cases for each byte of float32: 0.77 on 15 MR scans (docs/RESULTS.md).
_COMPRESSED = 0.8
_FLOAT32 = 4
# Copies of the weights that a fold leaves: the model, and weights, two moments and a running mean
# in the state from which it is resumed.
_COPIES = 5
_DAYS = 86400.0
_OVERLAP = 0.5  # windows of a prediction lie half a patch apart
# As in `autoliver.needs`: a case is refused if it needs so many times what is free.
_OVER_FREE = 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What a training consists of.

    Attributes:
        iterations: Training steps of an epoch.
        held_out_steps: Steps on held-out patches after each epoch.
        epochs: Number of epochs.
        folds: Number of folds of the cross-validation.
        cases: Sizes (z, y, x) of the preprocessed cases in voxels; empty without a dataset.
        mirrored: Whether predictions are averaged over flips along all axes.
    """

    iterations: int
    held_out_steps: int
    epochs: int
    folds: int
    cases: Sequence[tuple[int, int, int]]
    mirrored: bool


def estimate(name: str, configuration: Configuration, timing: Timing, course: Course) -> Estimate:
    """Works out how long a training takes from the time of its steps.

    Args:
        name: Name of the configuration.
        configuration: The network, its patch and its batch.
        timing: The time of a step.
        course: What the training consists of.
    """
    train_s, held_out_s = timing.train_s, timing.held_out_s
    folds, epochs, cases = course.folds, course.epochs, course.cases
    epoch_s = course.iterations * train_s + course.held_out_steps * held_out_s
    # A window is a forward pass of a patch, as is each sample of a step on held-out patches.
    flips = 2**configuration.dimension if course.mirrored else 1
    window_s = flips * held_out_s / configuration.batch_size
    each = [window_s * number_of_windows(shape, configuration.patch_shape) for shape in cases]
    held_out_cases = math.ceil(len(cases) / folds)
    mean_s = sum(each) / len(each) if each else 0.0
    fold_s = epochs * epoch_s + held_out_cases * mean_s
    return Estimate(
        configuration=name,
        step_s=train_s,
        held_out_s=held_out_s,
        epoch_s=epoch_s,
        epochs=epochs,
        fold_s=fold_s,
        folds=folds,
        all_s=folds * fold_s,
        case_s=mean_s if each else None,
        scaled=timing.scaled,
    )


def number_of_windows(shape_zyx: Sequence[int], patch_shape: Sequence[int]) -> int:
    """Returns the number of windows of a prediction; with a 2D patch, those of every slice."""
    sides = shape_zyx[-len(patch_shape) :]
    slices = math.prod(shape_zyx[: -len(patch_shape)])
    return slices * math.prod(
        1 + math.ceil(max(0, side - patch) / (_OVERLAP * patch))
        for side, patch in zip(sides, patch_shape, strict=True)
    )


def store_gb(plan: Plan, name: str, cases: Sequence[CaseFingerprint]) -> float:
    """Returns the size of the preprocessed cases of a configuration on disk, in GB."""
    configuration = next(c for known, c in plan.configurations.items() if known == name)
    voxels = sum(math.prod(network_shape(case, plan, configuration)) for case in cases)
    return voxels * len(plan.channel_names) * _FLOAT32 * _COMPRESSED / GB


def runs_gb(weights: int, folds: int) -> float:
    """Returns the size of the folds of a run on disk, in GB.

    Args:
        weights: Number of weights of its network.
        folds: Number of folds.
    """
    return folds * weights * _FLOAT32 * _COPIES / GB


def judge_time(estimate: Estimate, *, small: bool, dataset: str) -> Finding:
    """Judges how long a cross-validation takes.

    Args:
        estimate: The estimate.
        small: Whether the network is of the smallest preset already.
        dataset: The command line's name of the dataset.
    """
    topic = estimate.configuration
    found = (
        f"{days(estimate.all_s)} for all {estimate.folds} folds, {days(estimate.fold_s)} for one"
    )
    if estimate.all_s < _DAYS:
        return Finding(topic=topic, found=found)
    ways = [] if small else [f"a smaller network: autoliver plan {dataset} --preset tiny"]
    ways += ["fewer --epochs, or --hours 8", "one training on all cases: --fold all"]
    if estimate.configuration != "2d":
        ways += ["2d", f"coarser voxels: autoliver plan {dataset} --spacing Z Y X"]
    return Finding(
        topic=topic,
        found=found,
        level="worth changing",
        why="days pass before anything can be compared",
        todo="; or ".join(ways),
    )


def judge_disk(needed_gb: float, free_gb: float) -> Finding:
    """Judges whether the disk holds what is still to be written."""
    found = f"{needed_gb:.2g} GB still to be written, {free_gb:.1f} GB free"
    if needed_gb < free_gb / 2:
        return Finding(topic="room on disk", found=found)
    return Finding(
        topic="room on disk",
        found=found,
        level="will fail" if needed_gb > free_gb else "worth changing",
        why="preprocessed cases and runs fill the disk",
        todo="choose another disk with --workspace, or see what may go: autoliver clean",
    )


def judge_case(plan: Plan, name: str, cases: Sequence[CaseFingerprint], free_gb: float) -> Finding:
    """Judges whether the largest case fits into the memory when it is preprocessed."""
    configuration = next(c for known, c in plan.configurations.items() if known == name)
    need = max((grid_need(each, plan, configuration) for each in cases), key=lambda n: n.gb)
    topic = f"{name}, memory"
    found = f"the largest case, {need.name}, needs about {need.gb:.1f} GB; {free_gb:.1f} GB free"
    if need.gb < free_gb:
        return Finding(topic=topic, found=found)
    return Finding(
        topic=topic,
        found=found,
        level="will fail" if need.gb > _OVER_FREE * free_gb else "worth changing",
        why="it may be killed while it is preprocessed",
        todo="use a machine with more memory, leave the case out, or plan a coarser --spacing",
    )


def judge_batch(name: str, least_gb: float, room_gb: float, *, dataset: str) -> Finding:
    """Judges whether a batch fits into the memory of the device.

    Args:
        name: Name of the configuration.
        least_gb: A lower bound of what a step takes.
        room_gb: The memory for it.
        dataset: The command line's name of the dataset.
    """
    topic = f"{name}, batch"
    found = f"a step takes more than {least_gb:.2g} GB; {room_gb:.1f} GB there"
    # Measured were 1.7 to 2.9 times the bound (`autoliver.pipeline.run.batch`).
    if 3 * least_gb < room_gb:
        return Finding(topic=topic, found=found)
    return Finding(
        topic=topic,
        found=found,
        level="will fail" if least_gb > room_gb else "worth changing",
        why="the training runs out of memory",
        todo="a smaller --batch-size, or plan for less: "
        f"autoliver plan {dataset} --vram {max(1, math.floor(room_gb))}",
    )


def days(seconds: float) -> str:
    """A time span in words, days with a decimal as long as they are few."""
    from autoliver.training.bar import duration

    amount = seconds / _DAYS
    return f"{amount:.1f} days" if 1.5 <= amount < 10 else duration(seconds)
