"""The options of a run: as it was begun, with the epochs it has been extended by."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from autoliver.artifacts import to_record
from autoliver.datasets.folds import Fold
from autoliver.errors import ArtifactError, OptionError
from autoliver.models.files import MODEL_FILE, FoldModel
from autoliver.pipeline.run.request import TrainRequest
from autoliver.pipeline.run.start import forget_start
from autoliver.planning.fit import memory_gb
from autoliver.planning.plan import Configuration, Plan
from autoliver.training.options import (
    TrainingOptions,
    check_options,
    default_epochs,
    flag,
)
from autoliver.workspace import RunFolder

T = TypeVar("T")

_log = logging.getLogger(__name__)


def begin_run(
    run: RunFolder,
    made_from: dict[str, str],
    request: TrainRequest,
    folds: Sequence[Fold],
    *,
    check: Callable[[TrainingOptions], T],
    cases: int,
) -> tuple[TrainingOptions, T | None]:
    """The options of a run: as begun, else new ones; refuses a change of mind.

    With `--fresh` the named folds are removed, but only once nothing can be refused any more.

    Args:
        run: The run.
        made_from: What there is now to make it from.
        request: What was asked for.
        folds: Which folds that names.
        check: Refuses new options that cannot be; called before anything is written or removed.
        cases: How many are trained on.

    Returns:
        The options, and what `check` made of them, where they are new.
    """
    if request.extend is not None and (request.fresh or not run.options.exists()):
        raise OptionError(
            f"--extend {request.extend}: goes on with a finished run, "
            + ("--fresh starts over." if request.fresh else f"and {run.name} was not begun."),
            hint="Leave --extend out.",
        )
    named, made = {run.fold(fold).name for fold in folds}, None
    others = sorted({path.name for path in run.path.glob("fold_*")} - named)
    start_over = not run.options.exists() or (request.fresh and not others)
    if start_over:
        epochs = default_epochs(request.changes.get("pretrained"), cases)
        fields = {"made_from": made_from, "epochs": epochs, **request.changes}
        options = to_record(fields, TrainingOptions, where="The options of train")
        check_options(options)
        made = check(options)
    else:
        options = TrainingOptions.load(run.options)
        again = "Add --fresh to start over, or --tag NAME to keep both."
        if request.fresh:
            again = (
                f"{', '.join(others)} would stay as begun: start over with all folds (--fold cv "
                "--fresh), or add --tag NAME."
            )
        _refuse_changes(run, options, made_from, request.changes, again=again)
        if request.extend is not None:
            options = _with_extension(run, options, request.extend, folds)
            options.save(run.options)
    if request.fresh:
        for name in sorted(named):
            if (run.path / name).exists():
                shutil.rmtree(run.path / name)
    if start_over:
        forget_start(run)
        options.save(run.options)
    return options, made


def is_trained(folder: Path, options: TrainingOptions) -> bool:
    """Whether a fold has its model, made with all the extensions of its run.

    Raises:
        OptionError: It lacks one and cannot go on, as its training state is gone.
        ArtifactError: Its model.json is damaged.
    """
    path = folder / MODEL_FILE
    if not path.exists():
        return False
    if FoldModel.load(path).extended >= len(options.extensions):
        return True
    if not (folder / "resume.pt").exists():
        raise OptionError(
            f"{folder}: --extend needs the state that the training ended with, resume.pt; it is "
            "gone.",
            hint="Train it anew with --fresh and more --epochs; --tag NAME keeps this one, too.",
        )
    return False


def log_memory(configuration: Configuration, plan: Plan) -> None:
    """Says what a training with another patch or batch than planned will need."""
    _log.info(
        "Batches of %d patches of %s voxels take about %.1f GB of GPU memory; the plan is for "
        "%g GB.",
        configuration.batch_size,
        "x".join(str(n) for n in configuration.patch_shape),
        memory_gb(configuration, plan.preset),
        plan.vram_gb,
    )


def _with_extension(
    run: RunFolder, options: TrainingOptions, epochs: int, folds: Sequence[Fold]
) -> TrainingOptions:
    """The options of a run that is to have more epochs.

    The same request again, before the folds have had them, is the same extension: a command that
    was killed can be given once more.

    Args:
        run: The run.
        options: As they are.
        epochs: How many more.
        folds: Which folds the request names.

    Raises:
        OptionError: The number is none, or some fold has not come to its end yet.
    """
    if epochs < 1:
        raise OptionError(f"--extend is {epochs}; it must be at least 1.")
    behind = [fold for fold in folds if not is_trained(run.fold(fold), options)]
    if not behind:
        longer = options.replace(extensions=(*options.extensions, epochs))
        for fold in folds:
            is_trained(run.fold(fold), longer)  # or it could not go on
        return longer
    if options.extensions and options.extensions[-1] == epochs:
        return options
    before = f" --extend {options.extensions[-1]}" if options.extensions else ""
    raise OptionError(
        f"--extend {epochs}: fold {behind[0]} of {run.name} has not come to its end yet.",
        hint=f"Finish it first: the same command with{before or 'out --extend'}, or name finished "
        "folds with --fold.",
    )


def _refuse_changes(
    run: RunFolder,
    begun: TrainingOptions,
    made_from: dict[str, str],
    changes: dict[str, Any],
    *,
    again: str,
) -> None:
    now = to_record(changes, TrainingOptions, where="The options of train")
    for name in changes:
        if getattr(begun, name) != getattr(now, name):
            then = flag(name, getattr(begun, name))
            raise OptionError(
                f"{run.name} was begun with {then}, not {flag(name, getattr(now, name))}.",
                hint=again,
            )
    changed = [name for name, have in made_from.items() if begun.made_from.get(name) != have]
    if changed:
        raise ArtifactError(f"{run.name} was begun with another {changed[0]}.", hint=again)
