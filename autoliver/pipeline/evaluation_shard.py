"""A shard of `evaluate`: it scores its cases, for scores that are written when all are scored."""

from pathlib import Path

from autoliver.errors import OptionError
from autoliver.needs import score_need
from autoliver.parallel import case_bar
from autoliver.pipeline.evaluation import (
    EvaluateRequest,
    shards_of_scores,
    task_of,
    unscored_in,
    with_named,
)
from autoliver.shards import Shard, Sharded
from autoliver.workspace import Workspace


def evaluate_shard(
    workspace: Workspace,
    prediction: Path,
    reference: Path,
    request: EvaluateRequest,
    shard: Shard,
) -> Sharded:
    """Scores some of the cases, and keeps their scores in the workspace until `evaluate` is called.

    Args:
        workspace: The workspace, in which the dataset is looked up as well.
        prediction: As for `evaluate`.
        reference: As for `evaluate`.
        request: As for `evaluate`.
        shard: The part of the cases.

    Raises:
        DatasetError: As for `evaluate`.
        OptionError: As for `evaluate`; or no dataset says which labels there are.
        AutoliverError: Another process does the same.
    """
    from autoliver.evaluation.kept import KEPT_SCORES
    from autoliver.evaluation.score import score_each

    as_json = request.files(prediction)[0]
    task = task_of(workspace, prediction, reference, request, output=as_json.parent)
    labels = task.labels
    if labels is None:
        raise OptionError(
            f"--shard {shard}: which labels there are is not known without reading all references.",
            hint="Name the dataset that says it with --dataset.",
        )
    request = with_named(request, task.dataset, labels)
    files = task.pairs.files
    names = shard.names(files)
    if not names:
        return Sharded(shard=shard, cases=(), new=0, of=len(files))
    kept = shards_of_scores(workspace, prediction, reference, as_json)
    mapper = kept.kept(KEPT_SCORES, request.machine.pool("evaluate", need=score_need))
    with kept.doing(shard):
        score_each(
            {name: files[name] for name in names},
            labels=labels,
            options=request.options(),
            unscored=unscored_in(task.dataset, labels) if task.dataset else None,
            executor=mapper,
            progress=case_bar("evaluate", len(names)),
        )
    return Sharded(shard=shard, cases=tuple(names), new=len(mapper.new), of=len(files))
