"""Datasets planned like a source, so that its weights fit."""

from autoliver.artifacts import check_chain
from autoliver.errors import ArtifactError, OptionError
from autoliver.parallel import NO_LIMITS, Limits
from autoliver.pipeline.data import Planned, planned_dataset
from autoliver.pipeline.source import find_plan, safe
from autoliver.planning.plan import ConfigurationName, Plan
from autoliver.transfer.plan import LikeOptions, check_like_options, like_digest, plan_like
from autoliver.workspace import Workspace

_DEFAULT = LikeOptions()


def plan_dataset_like(
    workspace: Workspace,
    name: str | None,
    source: str,
    options: LikeOptions = _DEFAULT,
    *,
    limits: Limits = NO_LIMITS,
) -> tuple[Planned, Plan]:
    """Plans a dataset like a source, in either direction, and keeps that as plan@SOURCE.json.

    Args:
        workspace: Where the artefacts go.
        name: Path or name of the dataset; its own plan is made where it has none.
        source: A planned dataset, or any model that `--pretrained` takes.
        options: The choice of spacing.
        limits: Processes and memory to read cases with.

    Returns:
        The dataset with that plan, and its own plan.

    Raises:
        AutoliverError: There is no such source, or its plan cannot serve the dataset.
    """
    check_like_options(options)
    own = planned_dataset(workspace, name, limits=limits)
    short, plan = plan_to_follow(workspace, source, limits=limits)
    return _save(own, short, plan, plan_like(own.plan, plan, options)), own.plan


def plan_to_follow(workspace: Workspace, name: str, *, limits: Limits) -> tuple[str, Plan]:
    """The plan that a source's name means, with the source's short name.

    Raises:
        AutoliverError: There is none.
    """
    found = find_plan(workspace, name)
    if found is not None:
        return found
    planned = planned_dataset(workspace, name, limits=limits)
    return safe(planned.dataset.short_name), planned.plan


def planned_like(own: Planned, short: str, source: Plan, name: ConfigurationName) -> Planned:
    """The dataset with the plan like a source that there is, made or added to where it is missing.

    Args:
        own: The dataset with its own plan.
        short: The source's short name.
        source: Its plan.
        name: The configuration that is needed.

    Raises:
        ArtifactError: The dataset changed since, or another source of that name was followed.
        OptionError: The source has no such configuration, or its plan cannot serve the dataset.
    """
    if name not in source.configurations:
        raise OptionError(
            f"{source.dataset} has no {name} to plan {own.dataset.name} like.",
            hint=f"Choose one of: {', '.join(source.configurations)}.",
        )
    path = own.folder.plan_like(short)
    made = plan_like(own.plan, source, _DEFAULT)
    if not path.exists():
        return _save(own, short, source, made)
    mend = f"autoliver plan {own.dataset.short_name} --like {short}"
    plan = Plan.load(path, mend=mend)
    where = f"{path.name} of {own.dataset.name}"
    check_chain(plan, {"dataset": own.dataset.digest()}, where=where, mend=mend)
    if name not in plan.configurations and plan.transpose_forward == made.transpose_forward:
        both = {**plan.configurations, name: made.configurations[name]}
        reduced = source.replace(configurations={name: source.configurations[name]})
        return _save(own, short, reduced, plan.replace(configurations=both))
    if plan.made_from.get(_part(name)) != like_digest(source, name):
        raise ArtifactError(
            f"{where} was made like another {short}: its {name} has another spacing, network or "
            "window.",
            hint=f"Plan again ({mend}), which leaves trained runs as they are but not to be gone "
            "on with; or bring the other source in under a name of its own: autoliver import FILE "
            "--name NAME.",
        )
    return Planned(folder=own.folder, dataset=own.dataset, plan=plan, source=short)


def _save(own: Planned, short: str, source: Plan, plan: Plan) -> Planned:
    """Keeps a plan with what it was made from; further configurations keep theirs."""
    followed = {_part(name): like_digest(source, name) for name in source.configurations}
    known = {key: value for key, value in plan.made_from.items() if key.startswith(_part(""))}
    made_from = {"dataset": own.dataset.digest(), **known, **followed}
    plan = plan.replace(made_from=made_from)
    plan.save(own.folder.plan_like(short))
    return Planned(folder=own.folder, dataset=own.dataset, plan=plan, source=short)


def _part(name: str) -> str:
    """Under what the digest of a source's configuration is kept."""
    return f"source {name}"
