"""A run that has begun keeps the weights that it started from, whatever their name means later."""

from dataclasses import replace
from typing import TYPE_CHECKING

from autoliver.datasets.cases import short_name
from autoliver.errors import OptionError
from autoliver.models.files import FoldFolder, FoldModel
from autoliver.pipeline.data import Planned, check_unchanged
from autoliver.pipeline.run.request import TrainRequest
from autoliver.pipeline.run.source import Source, safe
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Plan
from autoliver.training.options import TrainingOptions
from autoliver.transfer.table import Transfer
from autoliver.workspace import DatasetFolder, RunFolder

if TYPE_CHECKING:
    from torch import Tensor


def begun_run(
    folder: DatasetFolder, request: TrainRequest, source: Source | None
) -> RunFolder | None:
    """Finds the run that a request resumes, if the name of its source means other weights by now.

    Args:
        folder: The dataset's folder in the workspace.
        request: The request; `pretrained` is given.
        source: What `pretrained` means now; None if it means nothing any more.

    Returns:
        The run; None if there is none, it has made no step, its source is the same, or another
        fold is asked for by its full name.
    """
    asked = str(request.pretrained)
    if request.fresh or request.twin:
        return None
    name = safe(short_name(asked.partition("/")[0])) if source is None else source.name
    run = folder.run(request.configuration, source=name, tag=request.tag)
    if not (run.options.exists() and run.transfer.exists() and run.start.exists()):
        return None
    kept = Transfer.load(run.transfer, mend=run.mend)
    options = TrainingOptions.load(run.options, mend=run.mend)
    digest = kept.made_from["source"]
    begun_from = options.pretrained, options.made_from.get("source")
    if not run.has_stepped or begun_from != (kept.source, digest):
        return None
    if source is not None:
        same = (source.fold, source.digest) == (kept.source, digest)
        other = "/" in asked and source.fold != kept.source
        if same or other:
            return None
    return run


def as_begun(own: Planned, run: RunFolder, wanted: ConfigurationName) -> tuple[Planned, Source]:
    """Returns the plan that a run has begun with, and a source that stands for its kept weights.

    Args:
        own: The dataset with its own plan.
        run: The run, from `begun_run`.
        wanted: Its configuration.

    Raises:
        ArtifactError: The dataset has changed since the plan was made.
        OptionError: The plan is gone or was made anew.
    """
    kept, options = (
        Transfer.load(run.transfer, mend=run.mend),
        TrainingOptions.load(run.options, mend=run.mend),
    )
    like = own.folder.plan_like(run.source)
    plans = [Plan.load(like)] if like.exists() else []
    plan = next(
        (p for p in (*plans, own.plan) if p.digest() == options.made_from.get("plan")), None
    )
    if plan is None:
        raise OptionError(
            f"{run.name} was started with another plan.",
            hint="Add --fresh to start over, or --tag NAME to keep both.",
        )
    check_unchanged(
        plan, own, where=f"The plan of {run.name}", mend="the same command with --fresh"
    )

    def read() -> "dict[str, Tensor]":
        raise AssertionError("a run that has begun starts from its own start.safetensors")

    source = Source(
        name=run.source,
        fold=kept.source,
        where=kept.found,
        again=kept.source,
        info=None,
        spec=plan.configurations[wanted].network,
        digest=kept.made_from["source"],
        read=read,
    )
    return replace(own, plan=plan, source=run.source), source


def refuse_circle(folder: DatasetFolder, request: TrainRequest, source: Source) -> None:
    """Refuses to start a run over from weights that come from this very run.

    Raises:
        OptionError: They do.
    """
    if not request.fresh:
        return
    run = folder.run(request.configuration, source=source.name, tag=request.tag)
    for fold in run.finished:
        if FoldModel.load(FoldFolder(fold).model).weights_sha256[:12] in source.ancestors:
            raise OptionError(
                f"--pretrained {request.pretrained}: {source.fold} started from {run.name}/"
                f"{fold.name}, which --fresh would replace.",
                hint="Name another source, or keep this run with --tag NAME.",
            )
