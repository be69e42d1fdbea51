"""Evaluates one folder of predictions, or compares two case by case."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.errors import DatasetError, OptionError
from autoliver.pipeline.evaluation import (
    EvaluateRequest,
    Task,
    evaluate,
    score,
    task_of,
    with_named,
)
from autoliver.pipeline.evaluation_shard import evaluate_shard
from autoliver.shards import Sharded
from autoliver.values import counted, first_few
from autoliver.workspace import Workspace

if TYPE_CHECKING:
    from autoliver.evaluation.comparison import Comparison
    from autoliver.evaluation.results import Scores

JSON_FILE = "comparison.json"
CSV_FILE = "comparison.csv"

_DEFAULT = ("dice",)
_SHOWN = 5  # names in one message


def evaluate_all(
    workspace: Workspace, predictions: Sequence[Path], reference: Path, request: EvaluateRequest
) -> "Scores | Comparison | Sharded":
    """Scores one set of predictions, or a shard of it, or compares two.

    Args:
        workspace: The workspace in which the dataset is looked up.
        predictions: The folders or files of the predictions, one or two.
        reference: As for `evaluate`.
        request: As for `evaluate` and `compare`.

    Raises:
        DatasetError: As for `evaluate` and `compare`.
        OptionError: As for these; or there are more predictions, or none, or two with a shard.
    """
    match predictions:
        case [only] if request.shard is not None:
            return evaluate_shard(workspace, only, reference, request, request.shard)
        case [only]:
            return evaluate(workspace, only, reference, request)
        case [_, _] if request.shard is not None:
            raise OptionError(
                f"--shard {request.shard}: two predictions are compared as a whole.",
                hint="Leave it out, or give --prediction once to score one of them by shards.",
            )
        case [first, second]:
            return compare(workspace, (first, second), reference, request)
    raise OptionError(
        f"--prediction is given {len(predictions)} times; it must be given once or twice.",
        hint="Give one to score it, or two to compare them.",
    )


def compare(
    workspace: Workspace, predictions: tuple[Path, Path], reference: Path, request: EvaluateRequest
) -> "Comparison":
    """Scores two sets of predictions and writes their differences as JSON and CSV.

    Args:
        workspace: The workspace in which the dataset is looked up.
        predictions: Two folders of predicted label maps, or two files.
        reference: As for `evaluate`.
        request: What to compute, and where to write it; without metrics only the Dice. Where
            several labels are classes of lesions, these are compared as well. With `subset`, cases
            that one of the two lacks are left out rather than refused.

    Raises:
        DatasetError: As for `evaluate`, or a case is in one of the two alone.
        OptionError: Both are the same, there is no folder for the result, or it holds another
            comparison.
    """
    from autoliver.evaluation.comparison import compare_scores, write_comparison

    output = _output(predictions, request)
    request = replace(request, metrics=request.metrics or _DEFAULT)
    some = replace(request, subset=True)
    tasks = [task_of(workspace, path, reference, some, output=output) for path in predictions]
    tasks = shared(tasks, predictions, subset=request.subset)
    first, second = (score(task, _with_classes(request, task)) for task in tasks)
    found = compare_scores(
        first,
        second,
        predictions=(str(predictions[0]), str(predictions[1])),
        reference=str(reference),
        options=request.options(),
    )
    if not request.overwrite:
        _refuse_loss(output / JSON_FILE, found)
    found.save(output / JSON_FILE)
    write_comparison(found, output / CSV_FILE)
    return found


def _with_classes(request: EvaluateRequest, task: Task) -> EvaluateRequest:
    """The request with the lesions to name, if several labels are classes of lesions."""
    if task.labels is None:
        return request
    named = with_named(request, task.dataset, task.labels)
    named = replace(named, metrics=(*named.metrics, "lesions"))
    return named if named.options().lesion_classes(task.labels) else request


def _output(predictions: tuple[Path, Path], request: EvaluateRequest) -> Path:
    first, second = predictions
    if first.resolve() == second.resolve():
        raise OptionError(
            f"--prediction: {first} and {second} are the same predictions.",
            hint="Give two that differ, or one to score it.",
        )
    if request.output is None:
        raise OptionError(
            "--output is missing: a comparison belongs to neither of the two predictions.",
            hint=f"Give a folder for {JSON_FILE} and {CSV_FILE} with --output.",
        )
    return request.output


def shared(tasks: list[Task], predictions: tuple[Path, Path], *, subset: bool) -> list[Task]:
    """Returns the tasks of two predictions with the cases that both have.

    Args:
        tasks: What there is to score of each of the two.
        predictions: The folders or files of both, for messages.
        subset: Whether cases that one of them lacks are left out rather than refused.

    Raises:
        DatasetError: They have no case in common, or, unless a subset was asked for, one of them
            lacks a case.
    """
    files = [task.pairs.files for task in tasks]
    both = files[0].keys() & files[1].keys()
    alone = [sorted(each.keys() - both) for each in files]
    told = "; ".join(
        f"{counted(len(names), 'case')} only in {path}: {first_few(names, _SHOWN)}"
        for names, path in zip(alone, predictions, strict=True)
        if names
    )
    neither = sorted(set(tasks[0].pairs.missing) & set(tasks[1].pairs.missing))
    if neither:
        told += f"{'; ' if told else ''}{counted(len(neither), 'reference')} without a "
        told += f"prediction in both: {first_few(neither, _SHOWN)}"
    if told and not (subset and both):
        hint = "Predict the missing cases, or compare those that both have with --subset."
        raise DatasetError(f"{told}.", hint=hint if both else "Give predictions of the same cases.")
    note = (f"Left out: {told}.",) if told else ()
    return [
        replace(
            task,
            pairs=replace(
                task.pairs,
                files={name: pair for name, pair in task.pairs.files.items() if name in both},
                extra=(),
                missing=(),
            ),
            warnings=(*note, *task.warnings),
        )
        for task in tasks
    ]


def _refuse_loss(path: Path, found: "Comparison") -> None:
    """Refuses to replace a comparison that holds something the new one does not."""
    from autoliver.evaluation.comparison import Comparison

    if not path.exists():
        return
    then = Comparison.load(path, mend="the same command with --overwrite")
    rows = {(row.case, row.label, row.metric) for row in found.cases}
    if then.predictions != found.predictions:
        lost = f"a comparison of {' and '.join(then.predictions)}"
    elif gone := [row for row in then.cases if (row.case, row.label, row.metric) not in rows]:
        lost = f"the {gone[0].metric} of {gone[0].label} in {gone[0].case}"
    else:
        return
    raise OptionError(
        f"{path}: it contains {lost}, which the new one would not contain.",
        hint="Write it elsewhere with --output, or replace the old one with --overwrite.",
    )
