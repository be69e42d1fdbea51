"""Ends a training whose numbers are no longer finite, so that it is not taken for a finished one.

A single batch without a finite loss is left out (`autoliver.training.step`), since one damaged case
must not end a training. What is refused here is a network that gives no finite loss any more.
"""

import torch
from torch import Tensor

from autoliver.errors import AutoliverError
from autoliver.training.fold import FoldTask
from autoliver.training.options import choose_recipe
from autoliver.training.state import TrainingState

PATIENCE = 5  # batches in a row without a finite loss before giving up


def diverged(task: FoldTask, state: TrainingState, what: str) -> AutoliverError:
    """Returns the error for a training with numbers that are not finite.

    Args:
        task: The fold that is trained.
        state: Its state; the log of the epoch is not among its logs yet.
        what: What is not finite, as a sentence without the full stop.
    """
    kept = ""
    if task.files.resume.exists():
        kept = f" The state saved before is kept in {task.files.resume}."
    rate = state.recipe.learning_rate
    usual = choose_recipe(task.options.replace(lr=None)).learning_rate
    smaller = usual if usual < rate else rate / 10
    return AutoliverError(
        f"{task.title}: epoch {len(state.logs) + 1}: {what}.{kept}",
        hint="Start over with a smaller learning rate: the same command with --fresh and "
        f"--lr {smaller:.2g}. If that does not help, try another --seed, or check the cases: "
        "autoliver verify DATASET",
    )


def check_weights(task: FoldTask, state: TrainingState) -> None:
    """Refuses weights that are not finite, of the network and of its running mean.

    Raises:
        AutoliverError: A weight is NaN or infinite.
    """
    networks = [net for net in (state.network, state.averaged) if net is not None]
    weights = [weight for network in networks for weight in network.state_dict().values()]
    finite = torch.stack([_all_finite(weight) for weight in weights])
    if not bool(finite.all()):
        raise diverged(task, state, "the weights are not finite")


def check_end(task: FoldTask, state: TrainingState, *, judged: bool) -> None:
    """Refuses to end a training that has taken no step, or whose last batches had no finite loss.

    The last batches are as many as end a training at any time, or half of those of a shorter epoch.
    They do not count if held-out cases show that the network gives finite losses.

    Args:
        task: The fold that is trained.
        state: Its state after the last step.
        judged: Whether the loss of held-out cases is known and finite.

    Raises:
        AutoliverError: The training must not end like this.
    """
    most = state.step if judged else min(PATIENCE, -(-task.options.iterations // 2))
    if state.failures >= most:
        last = _last(state.failures)
        raise diverged(task, state, f"loss or gradients were not finite for {last}")


def _last(failures: int) -> str:
    return "the last batch" if failures == 1 else f"the last {failures} batches"


def _all_finite(weight: Tensor) -> Tensor:
    return torch.isfinite(weight).all()
