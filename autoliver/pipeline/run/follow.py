"""Plans datasets like a source, so that the source's weights fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoliver.commands import command
from autoliver.errors import ArtifactError, DatasetError, OptionError
from autoliver.machine import Machine
from autoliver.pipeline.data import Planned, check_unchanged, plan_command, planned_dataset
from autoliver.pipeline.run.source import find_plan, safe
from autoliver.planning.names import ConfigurationName
from autoliver.planning.options import option_words
from autoliver.planning.plan import LikeOptions, Plan
from autoliver.transfer.follow import like_digest, plan_like
from autoliver.transfer.table import IMAGENET
from autoliver.workspace import Workspace

_DEFAULT = LikeOptions()


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A plan that another dataset's plan follows.

    Attributes:
        name: Short name of the source.
        plan: The source's plan.
        again: The value of `--like` that names the source.
    """

    name: str
    plan: Plan
    again: str


def plan_following(own: Planned, followed: Followed, options: LikeOptions) -> Planned:
    """Plans a dataset like a source and writes the plan as plan@SOURCE.json.

    The source may be CT and the dataset MR, or the other way round.

    Args:
        own: The dataset with its own plan.
        followed: The source's plan.
        options: How to choose the spacing.

    Raises:
        OptionError: The options contradict each other, or the source's plan cannot serve the
            dataset.
    """
    made = plan_like(own.plan, followed.plan, options, deepen=True)
    return _save(own, followed, made, [*followed.plan.configurations, *made.configurations])


def plan_to_follow(workspace: Workspace, name: str, *, machine: Machine) -> Followed:
    """Returns the plan of a source.

    Args:
        workspace: The workspace in which the source is looked up.
        name: Name or path of a model or a dataset; a dataset without a plan is planned.
        machine: The processes and memory that may be used.

    Raises:
        AutoliverError: There is no such source.
    """
    found = find_plan(workspace, name)
    if found is not None:
        return Followed(name=found[0], plan=found[1], again=name)
    if not workspace.knows(name):
        models = [model.name for model in workspace.models]
        raise DatasetError(
            f"--like {name}: there is no such dataset or model (workspace "
            f"{workspace.root.absolute()}).",
            hint=workspace.meant(name, more=models) or "Give the path of a dataset or a model.",
        )
    planned = planned_dataset(workspace, name, machine=machine)
    return Followed(name=safe(planned.dataset.short_name), plan=planned.plan, again=name)


def planned_like(own: Planned, followed: Followed, name: ConfigurationName) -> Planned:
    """Returns a dataset with its plan like a source.

    The existing plan is used. If it, or the needed configuration in it, is missing, it is made.

    Args:
        own: The dataset with its own plan.
        followed: The source's plan.
        name: The configuration that is needed.

    Raises:
        ArtifactError: The dataset has changed since the plan was made, or the plan follows another
            source of that name.
        OptionError: The source has no such configuration, or its plan cannot serve the dataset.
    """
    source, path = followed.plan, own.folder.plan_like(followed.name)
    again = ("--like", followed.again)
    mend = plan_command(own.folder, own.dataset, again)
    plan = Plan.load(path, mend=mend) if path.exists() else None
    if plan is not None and plan.like is not None:
        mend = plan_command(own.folder, own.dataset, (*again, *option_words(plan.like)))
    options = _DEFAULT if plan is None else plan.like or _DEFAULT
    made = plan_like(own.plan, source, options, deepen=name == "3d_fullres")
    if name not in made.configurations:
        raise _not_like(own, source, name, list(made.configurations))
    if plan is None:
        return _save(own, followed, made, [*source.configurations, *made.configurations])
    where = f"{path.name} of {own.dataset.name}"
    check_unchanged(plan, own, where=where, mend=mend)
    if name not in plan.configurations and _alike(plan, made):
        both = {**plan.configurations, name: made.configurations[name]}
        return _save(own, followed, plan.replace(configurations=both), [name])
    if plan.made_from.get(_part(name)) != like_digest(source, name):
        place = own.folder.path.parent
        load = command("import", "FILE", options=["--name", "NAME"], workspace=place)
        raise ArtifactError(
            f"{where} was made like another {followed.name}: its {name} has another spacing, "
            "network or window.",
            hint=f"Plan again with: {mend} (runs of the old plan stay, but cannot be resumed)\n"
            f"Or import one of the two under another name: {load}",
        )
    return replace(own, plan=plan, source=followed.name)


def _not_like(
    own: Planned, source: Plan, name: ConfigurationName, there: Sequence[ConfigurationName]
) -> OptionError:
    """Says that a configuration cannot follow a source, and what can be done instead.

    Args:
        own: The dataset with its own plan.
        source: The source's plan.
        name: The configuration.
        there: The configurations that can follow it.
    """
    problem = f"{own.dataset.name} cannot be planned like {source.dataset} for {name}"
    hint = f"Choose one of: {', '.join(there)}."
    flat = source.configurations.get("2d")
    if name == "3d_fullres" and flat is not None and flat.network.pretrainable is not None:
        again = command(
            *("train", own.dataset.name, name),
            options=["--pretrained", IMAGENET],
            workspace=own.folder.path.parent,
        )
        problem += f": {flat.network.summary} in 2D has other weights than in 3D"
        hint += f" Or start from ImageNet weights: {again}"
    return OptionError(f"{problem}.", hint=hint)


def _alike(plan: Plan, made: Plan) -> bool:
    """Whether a configuration of `made` can be added to `plan`."""
    return all(
        getattr(plan, what) == getattr(made, what)
        for what in ("axis_codes", "transpose_forward", "intensities", "source_intensities")
    )


def _save(
    own: Planned, followed: Followed, plan: Plan, names: Sequence[ConfigurationName]
) -> Planned:
    """Writes a plan like a source, with digests of the dataset and of what it takes.

    Digests of further configurations that are already in the plan are kept.

    Args:
        own: The dataset with its own plan.
        followed: The source's plan.
        plan: The plan to write.
        names: The configurations that follow the source now.
    """
    parts = {_part(name): like_digest(followed.plan, name) for name in names}
    known = {key: value for key, value in plan.made_from.items() if key.startswith(_part(""))}
    plan = plan.replace(made_from={"dataset": own.dataset.digest(), **known, **parts})
    plan.save(own.folder.plan_like(followed.name))
    return replace(own, plan=plan, source=followed.name)


def _part(name: str) -> str:
    """Returns the key in `made_from` of the digest of a source's configuration."""
    return f"source {name}"
