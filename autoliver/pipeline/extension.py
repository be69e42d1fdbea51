"""More epochs for a finished run: what was asked for, and which folds have had them."""

from collections.abc import Sequence
from pathlib import Path

from autoliver.errors import OptionError
from autoliver.inference.model import MODEL_FILE, FoldModel
from autoliver.training.folds import Fold
from autoliver.training.options import TrainingOptions
from autoliver.workspace import RunFolder


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


def with_extension(
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
