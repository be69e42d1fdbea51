"""The options of a run: as it was begun, with the epochs it has been extended by."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoliver.artifacts import to_record
from autoliver.datasets.folds import Fold
from autoliver.errors import ArtifactError, OptionError
from autoliver.models.files import FoldFolder, FoldModel
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

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """How a run begins or goes on, decided before anything is written or removed.

    Attributes:
        run: The run.
        options: Its options.
        new: Whether they are new: nothing was begun, or it starts over.
        extended: Whether epochs are added to what was begun.
        removed: Folders of folds that start over.
    """

    run: RunFolder
    options: TrainingOptions
    new: bool
    extended: bool
    removed: tuple[Path, ...]

    def write(self) -> None:
        """Removes what starts over and writes the options; nothing may be refused after this."""
        for folder in self.removed:
            shutil.rmtree(folder)
        if self.new:
            forget_start(self.run)
        if self.new or self.extended:
            self.options.save(self.run.options)


def decide_beginning(
    run: RunFolder,
    made_from: dict[str, str],
    request: TrainRequest,
    folds: Sequence[Fold],
    *,
    cases: int,
) -> Beginning:
    """How a run begins or goes on; refuses other options than it was begun with.

    Args:
        run: The run.
        made_from: What there is now to make it from.
        request: What was asked for.
        folds: The folds that the request names.
        cases: How many cases are trained on.

    Raises:
        OptionError: The options cannot be, or differ from those that the run was begun with.
        ArtifactError: The run was made from something else than what is there now.
    """
    if request.extend is not None and (request.fresh or not run.options.exists()):
        raise OptionError(
            f"--extend {request.extend}: goes on with a finished run, "
            + ("--fresh starts over." if request.fresh else f"and {run.name} was not begun."),
            hint="Leave --extend out.",
        )
    named = {run.fold(fold) for fold in folds}
    others = sorted(path.name for path in run.begun if path not in named)
    new = not run.options.exists() or (request.fresh and not others)
    if new:
        epochs = default_epochs(request.changes.get("pretrained"), cases)
        fields = {"made_from": made_from, "epochs": epochs, **request.changes}
        options = begun = to_record(fields, TrainingOptions, where="The options of train")
        check_options(options)
    else:
        options = begun = TrainingOptions.load(run.options)
        again = "Add --fresh to start over, or --tag NAME to keep both."
        if request.fresh:
            again = (
                f"{', '.join(others)} would stay as begun: start over with all folds (--fold cv "
                "--fresh), or add --tag NAME."
            )
        _refuse_changes(run, options, made_from, request.changes, again=again)
        if request.extend is not None:
            options = _with_extension(run, options, request.extend, folds)
    return Beginning(
        run=run,
        options=options,
        new=new,
        extended=options is not begun,
        removed=tuple(sorted(f for f in named if f.exists())) if request.fresh else (),
    )


def is_trained(folder: FoldFolder, options: TrainingOptions) -> bool:
    """Whether a fold has its model, made with all the extensions of its run.

    Raises:
        OptionError: It lacks one and cannot go on, as its training state is gone.
        ArtifactError: Its model.json is damaged.
    """
    if not folder.model.exists():
        return False
    if FoldModel.load(folder.model).extended >= len(options.extensions):
        return True
    if not folder.resume.exists():
        raise OptionError(
            f"{folder.path}: --extend needs the state that the training ended with, resume.pt; it "
            "is gone.",
            hint="Train it anew with --fresh and more --epochs; --tag NAME keeps this one as well.",
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
    folders = {fold: FoldFolder(run.fold(fold)) for fold in folds}
    behind = [fold for fold, folder in folders.items() if not is_trained(folder, options)]
    if not behind:
        longer = options.replace(extensions=(*options.extensions, epochs))
        for folder in folders.values():
            is_trained(folder, longer)  # or it could not go on
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
