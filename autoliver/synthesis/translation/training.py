"""Learns to translate, epoch by epoch; what is learnt is in `step.py`.

Every step draws its patches and its pool from generators that are seeded with its number, so that a
resumed training goes on as if it had not stopped.
"""

import time
from collections.abc import Callable
from contextlib import closing

import msgspec
import numpy as np
import torch

from autoliver.artifacts import write_bytes
from autoliver.errors import AutoliverError
from autoliver.networks.checkpoint import save_training_state
from autoliver.synthesis.translation.state import Translation, TranslationLog, TranslationTask
from autoliver.synthesis.translation.step import Learner


def learn_translation(
    task: TranslationTask,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_epoch: Callable[[Translation], None] = lambda _: None,
) -> Translation:
    """Learns a translation; goes on after the last finished epoch.

    The state is saved after every epoch.

    Args:
        task: The translation.
        stop: Called after every step; once it returns True the training ends, and the next one
            begins with the epoch that was left.
        on_epoch: Called after every epoch.

    Raises:
        AutoliverError: Losses or weights are not finite; the last good state is kept.
        ModelError: The saved state is damaged.
    """
    state = Translation(task)
    learner = Learner(state)
    options = task.options
    while state.step < options.steps and not stop():
        start, sums = time.monotonic(), []
        last = (state.step // options.iterations + 1) * options.iterations
        with closing(state.batches(range(state.step, last))) as pairs:
            for source, target in pairs:
                sums.append(learner.take(source, target))
                if state.step < last and stop():
                    return state
        means = {name: float(torch.stack([s[name] for s in sums]).mean()) for name in sums[0]}
        _check_finite(task, state, means)
        state.logs.append(
            TranslationLog(
                epoch=len(state.logs),
                learning_rate=options.rate(state.step - 1),
                losses=means,
                seconds=time.monotonic() - start,
            )
        )
        _save(task, state)
        on_epoch(state)
    return state


def _check_finite(task: TranslationTask, state: Translation, means: dict[str, float]) -> None:
    finite = np.isfinite(list(means.values())).all()
    if finite and all(bool(w.isfinite().all()) for w in state.networks.parameters()):
        return
    kept = f" The state of epoch {len(state.logs)} is kept." if state.logs else ""
    losses = ", ".join(f"{name} {value:.3g}" for name, value in means.items())
    raise AutoliverError(
        f"{task.title}: epoch {len(state.logs) + 1}: the translation diverged ({losses}).{kept}",
        hint="Start over with a smaller learning rate, such as --lr "
        f"{task.options.lr / 4:.2g}, and --fresh.",
    )


def _save(task: TranslationTask, state: Translation) -> None:
    lines = b"".join(msgspec.json.encode(log) + b"\n" for log in state.logs)
    write_bytes(task.progress, lines)
    save_training_state(task.resume, state.snapshot())
