"""Evaluates an epoch: scores of its training patches and of patches of held-out cases."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from msgspec import UNSET, UnsetType

from autoliver.training.objectives.objective import Objective, Scores, Tally
from autoliver.training.patches.stream import Patches, TrainingBatch
from autoliver.training.progress import EpochLog, FurtherScores
from autoliver.training.reading import Reading
from autoliver.training.state import TrainingState
from autoliver.training.step import Stepper


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The result of evaluating patches of held-out cases.

    Attributes:
        loss: Mean loss over the batches whose loss is finite; None if there are none.
        tally: Counts of all batches together.
        not_finite: Cases of the batches whose loss is not finite.
        waited: Seconds spent waiting for the patches.
    """

    loss: float | None
    tally: Tally
    not_finite: tuple[str, ...]
    waited: float


def score_held_out(stepper: Stepper, batches: Iterable[TrainingBatch], patches: Patches) -> HeldOut:
    """Computes loss and counts of batches with the resulting network, without learning from them.

    Args:
        stepper: The stepper of the training.
        batches: Batches of held-out cases, without augmentations.
        patches: Where they come from.

    Raises:
        AutoliverError: The image of a batch without a finite loss is not finite.
    """
    network = stepper.state.result.eval()
    losses, not_finite, waited = [], [], 0.0
    total = Tally.empty(stepper.objective.lengths)
    with torch.no_grad():
        for batch in batches:
            found, counts = stepper.loss(network, batch)
            loss, _, tally = Reading(found, found, counts).values()
            if math.isfinite(loss):
                losses.append(loss)
            else:
                not_finite += stepper.cases_of(batch)
                stepper.check_images(batch, patches)
            total += tally
            waited += batch.waited
    return HeldOut(loss=_mean(losses), tally=total, not_finite=tuple(not_finite), waited=waited)


def epoch_log(
    state: TrainingState,
    objective: Objective,
    held_out: HeldOut | None,
    *,
    iterations: int,
    seconds: float,
) -> EpochLog:
    """Makes the log of the epoch whose sums the state holds.

    Args:
        state: State after the epoch's last step.
        objective: Computes scores from counts.
        held_out: Result on patches of held-out cases; None if no cases are held out.
        iterations: Steps per epoch.
        seconds: Seconds that the held-out cases took; the steps are counted separately.
    """
    sums = state.sums
    total = sums.seconds + seconds
    waited = sums.waited + (held_out.waited if held_out else 0.0)
    train = objective.scores(sums.tally)
    validation = objective.scores(held_out.tally) if held_out else None
    return EpochLog(
        epoch=(state.step - 1) // iterations,
        step=state.step,
        learning_rate=state.optimizer.param_groups[0]["lr"],
        train_loss=_mean(sums.losses),
        train_dice=train.mean,
        validation_loss=held_out.loss if held_out else None,
        validation_dice=validation.labels if validation else None,
        seconds=round(total, 3),
        data_wait=round(waited / max(total, 1e-9), 4),
        skipped=(*sums.skipped, *(held_out.not_finite if held_out else ())),
        scores=_further(train, validation, objective.watched),
    )


def _further(
    train: Scores, validation: Scores | None, watched: str | None
) -> FurtherScores | UnsetType:
    if not train.further and watched is None:
        return UNSET
    return FurtherScores(
        train=train.further,
        validation=validation.further if validation else None,
        watched=watched,
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
