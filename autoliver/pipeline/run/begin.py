"""Decides with which options a run starts, resumes or is extended, and refuses changed options."""

import contextlib
import logging
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoliver.artifacts import machine_key, to_record
from autoliver.datasets.folds import Fold
from autoliver.errors import ArtifactError, AutoliverError, OptionError
from autoliver.locks import check_free, in_turn, is_held, only_one, remove_if_stale
from autoliver.models.files import FoldFolder, FoldModel
from autoliver.pipeline.run.request import TrainRequest
from autoliver.pipeline.run.start import forget_start
from autoliver.planning.fit import memory_gb
from autoliver.planning.plan import Configuration, Plan
from autoliver.system import entries
from autoliver.training.options import (
    TrainingOptions,
    check_options,
    default_epochs,
    flag,
)
from autoliver.values import another, check_whole, counted
from autoliver.workspace import RunFolder

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """How a run starts or resumes, decided before anything is written or removed.

    Attributes:
        run: The run.
        options: The options that the run is trained with.
        new: Whether these options are new: the run was never started, or it starts over.
        extended: Whether epochs are added to a run that was started before.
        removed: Folders of the folds that start over.
    """

    run: RunFolder
    options: TrainingOptions
    new: bool
    extended: bool
    removed: tuple[Path, ...]

    def write(self) -> None:
        """Removes folds that start over and writes the options.

        All checks have to be done before, since the removal cannot be undone.
        """
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
    """Decides how a run starts or resumes, and refuses options it was not started with.

    Args:
        run: The run.
        made_from: Digests of the current inputs of the run, such as plan, dataset and folds.
        request: The request to `train`.
        folds: The folds that the request names.
        cases: Number of training cases of the largest fold.

    Raises:
        OptionError: The options are invalid, or differ from those that the run was started with.
        AutoliverError: A fold that is to start over is being trained.
        ArtifactError: The run was started with other inputs than the current ones.
    """
    bound = _is_bound(run)
    new = not _keeps_options(run, request, folds)
    if request.extend is not None and (request.fresh or not bound):
        raise OptionError(
            f"--extend {request.extend} continues a finished run, "
            + ("but --fresh starts over." if request.fresh else f"but {run.name} was not started."),
            hint="Leave --extend out.",
        )
    if request.fresh:
        for fold in folds:
            check_free(run.lock(fold), being_trained(fold))
    named = {run.fold(fold) for fold in folds}
    if new:
        changes = request.changes
        schedule = changes.get("schedule", "auto")
        epochs = default_epochs(changes.get("pretrained"), cases, schedule=schedule)
        own = {"made_from": made_from, "epochs": epochs, "fold_seeds": True}
        fields = {**own, **request.changes}
        options = begun = to_record(fields, TrainingOptions, where="The options of train")
        check_options(options)
    else:
        options = begun = TrainingOptions.load(run.options, mend=run.mend)
        again = "Add --fresh to start over, or --tag NAME to keep both."
        if request.fresh:
            others = ", ".join(_others(run, folds))
            again = (
                f"{others} would keep the old options: start over with all folds "
                "(--fold cv --fresh), or add --tag NAME."
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


def current_length(run: RunFolder) -> int:
    """How many epochs a run is trained for; 0 if it was not started."""
    if not run.options.exists():
        return 0
    options = TrainingOptions.load(run.options, mend=run.mend)
    return options.epochs + sum(options.extensions)


def check_length(run: RunFolder, before: int | None, request: TrainRequest) -> None:
    """Refuses an extension if the run was extended after it had been asked for.

    Args:
        run: The run.
        before: Its length when this process began; None if it is not to be extended.
        request: The request to `train`.

    Raises:
        AutoliverError: Another process has extended the run meanwhile.
    """
    if before is not None and (now := current_length(run)) != before:
        raise AutoliverError(
            f"--extend {request.extend}: {run.name} had {before} epochs when this command began, "
            f"and another process has extended it to {now} meanwhile.",
            hint="Nothing was added. To add more, give the same command again.",
        )


def kept_options(
    run: RunFolder, request: TrainRequest, folds: Sequence[Fold]
) -> TrainingOptions | None:
    """The options that a run goes on with; None if it starts, or starts over.

    Args:
        run: The run.
        request: The request to `train`.
        folds: The folds that the request names.
    """
    keeps = _keeps_options(run, request, folds)
    return TrainingOptions.load(run.options, mend=run.mend) if keeps else None


def _keeps_options(run: RunFolder, request: TrainRequest, folds: Sequence[Fold]) -> bool:
    return _is_bound(run) and (not request.fresh or bool(_others(run, folds)))


def _others(run: RunFolder, folds: Sequence[Fold]) -> list[str]:
    """Names of the folds that were begun besides those that are requested."""
    named = {run.fold(fold) for fold in folds}
    return sorted(path.name for path in run.begun if path not in named)


def being_trained(fold: Fold) -> str:
    """What is said of a fold that another process trains."""
    return f"fold {fold} is being trained"


def _is_bound(run: RunFolder) -> bool:
    """Whether a run must keep its options: it has made a step, or is being trained right now."""
    if not run.options.exists():
        return False
    if run.has_stepped:
        return True
    return any(is_held(path) for path in run.users if path != _own(run))


@contextlib.contextmanager
def in_use(run: RunFolder, folds: Iterable[Fold]) -> Iterator[None]:
    """A block in which other processes see that this one works on folds of a run.

    Raises:
        MachineError: The run's folder cannot be written.
    """
    own = _own(run)
    with only_one(own, f"{run.name} is being trained", parts=tuple(map(str, folds))):
        for other in entries(run.path, ".*.lock"):  # its folds too
            if other != own:
                remove_if_stale(other)
        yield


def begins(run: RunFolder) -> contextlib.AbstractContextManager[None]:
    """Returns a block in which no other process decides how the run begins, or writes that.

    Of several that begin a new run at once, one decides, and the others take it as it is.
    """
    return in_turn(run.beginning, f"{run.name} is being begun")


def _own(run: RunFolder) -> Path:
    return run.user(f"{socket.gethostname()}-{machine_key()}-{os.getpid()}")


def is_trained(folder: FoldFolder, options: TrainingOptions) -> bool:
    """Whether a fold has a model that was trained with all extensions of its run.

    Raises:
        OptionError: An extension is missing and the training cannot be resumed, as its saved state
            is gone.
        ArtifactError: The fold's model.json is damaged.
    """
    if not folder.model.exists():
        return False
    if FoldModel.load(folder.model).extended >= len(options.extensions):
        return True
    if not folder.resume.exists():
        raise OptionError(
            f"{folder.path}: --extend needs the final state of the training, resume.pt, which is "
            "gone.",
            hint="Train it again with --fresh and more --epochs; --tag NAME keeps this one as "
            "well.",
        )
    return False


def log_memory(configuration: Configuration, plan: Plan) -> None:
    """Logs the estimated GPU memory of a training whose patch or batch differs from the plan."""
    _log.info(
        "Batches of %s of %s voxels need about %.1f GB of GPU memory; the plan was made for %g GB.",
        counted(configuration.batch_size, "patch", "patches"),
        "x".join(str(n) for n in configuration.patch_shape),
        memory_gb(configuration, plan.preset, plan.arch, plan.encoder),
        plan.vram_gb,
    )


def _with_extension(
    run: RunFolder, options: TrainingOptions, epochs: int, folds: Sequence[Fold]
) -> TrainingOptions:
    """Returns the options of a run with additional epochs.

    Repeating a request before the folds are trained for the added epochs does not extend the run
    again. So a command that was killed can be repeated.

    Args:
        run: The run.
        options: The current options of the run.
        epochs: Number of epochs to add.
        folds: The folds that the request names.

    Raises:
        OptionError: The number is below 1, a fold is not finished yet, or a fold's saved state is
            gone.
        AutoliverError: Another process is training a fold.
    """
    check_whole("--extend", epochs, least=1)
    folders = {fold: FoldFolder(run.fold(fold)) for fold in folds}
    behind = [fold for fold, folder in folders.items() if not _is_scored(fold, folder, options)]
    if not behind:
        longer = options.replace(extensions=(*options.extensions, epochs))
        for folder in folders.values():
            is_trained(folder, longer)  # raises if the fold cannot be resumed
        return longer
    if options.extensions and options.extensions[-1] == epochs:
        return options
    for fold in behind:  # "not finished" would be true, and to finish it the wrong advice
        check_free(run.lock(fold), being_trained(fold))
    before = f" --extend {options.extensions[-1]}" if options.extensions else ""
    raise OptionError(
        f"--extend {epochs}: fold {behind[0]} of {run.name} is not finished yet.",
        hint=f"Finish it first: the same command with{before or 'out --extend'}, or name finished "
        "folds with --fold.",
    )


def _is_scored(fold: Fold, folder: FoldFolder, options: TrainingOptions) -> bool:
    """Whether a fold is trained with all extensions, and its held-out cases are scored since."""
    return is_trained(folder, options) and (fold == "all" or folder.scores.exists())


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
                f"{run.name} was started with {then}, not {flag(name, getattr(now, name))}.",
                hint=again,
            )
    changed = [name for name, have in made_from.items() if begun.made_from.get(name) != have]
    if changed:
        raise ArtifactError(f"{run.name} was started with {another(changed[0])}.", hint=again)
