"""The commands `verify`, `plan` and `preprocess`."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    DaskOption,
    MemoryGb,
    ShardOption,
    Threads,
    Verbose,
    Workers,
    WorkspaceDir,
    machine_of,
)
from autoliver.cli.output import emit, say, start, table
from autoliver.cli.planning_options import (
    Arch,
    BatchCap,
    Encoder,
    Fresh,
    KeepAxes,
    Like,
    LikeSpacing,
    Modality,
    Preset,
    Slices,
    Spacing,
    Vram,
    Window,
    ZStrides,
)
from autoliver.cli.shards import emit_shard, shard_of
from autoliver.commands import command
from autoliver.values import counted

if TYPE_CHECKING:
    from autoliver.pipeline.mending.mend import Repaired
    from autoliver.pipeline.replan import Replanned
    from autoliver.planning.findings import Finding
    from autoliver.planning.plan import Plan
    from autoliver.planning.verify import Verification

_REPAIR = "Repair"

DatasetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="DATASET",
        help="Folder or name. [default: the dataset in the current folder, else the only one in "
        "the workspace]",
    ),
]

FixedCopy = Annotated[
    Path | None,
    typer.Option(
        metavar="OUT",
        help="Write a dataset with repaired copies of the files in which there are errors into "
        "this new folder, with a picture for each repaired case.",
        rich_help_panel=_REPAIR,
    ),
]
ValueMeaning = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OLD=NEW",
        help="What a value in label files means, such as 7=0 or nan=0. The option may be repeated.",
        rich_help_panel=_REPAIR,
    ),
]
LeaveOut = Annotated[
    bool,
    typer.Option(
        "--leave-out",
        help="Leave out the cases that cannot be repaired; else nothing is written if there are "
        "any.",
        rich_help_panel=_REPAIR,
    ),
]


def verify(
    dataset: DatasetArgument = None,
    fix: FixedCopy = None,
    value: ValueMeaning = None,
    leave_out: LeaveOut = False,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check a dataset: files, geometry, values, labels, duplicates.

    With --fix OUT, errors are mended in copies; the files of the dataset stay as they are.
    """
    from autoliver.pipeline import data
    from autoliver.planning.verify import raise_on_errors
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    machine = machine_of(workers=workers, memory_gb=memory_gb)
    place = Workspace(workspace)
    if fix is not None:
        from autoliver.pipeline.mending.mend import MendRequest, mend

        request = MendRequest(values=tuple(value or ()), leave_out=leave_out)
        done = mend(place, dataset, fix, request=request, machine=machine)
        emit(done.facts, _show_repaired(done), as_json=as_json)
        return
    for option, given in (("--value", value), ("--leave-out", leave_out)):
        if given:
            raise typer.BadParameter("It belongs to --fix OUT.", param_hint=option)
    folder, source, found = data.verify_dataset(place, dataset, machine=machine)
    result = {
        "dataset": source.name,
        "cases": len(source.cases),
        "findings": listed(found.findings),
        "file": str(folder.verify),
    }
    cases = counted(len(source.cases), "case")
    text = f"{source.name}: {cases}.\n{_findings(found)}\nWritten: {folder.verify}"
    emit(result, text, as_json=as_json)
    if as_json and found.errors:
        raise typer.Exit(1)  # not raise_on_errors: it would print a second JSON object
    raise_on_errors(found, listed=True)


def plan(
    dataset: DatasetArgument = None,
    preset: Preset = None,
    arch: Arch = None,
    encoder: Encoder = None,
    z_strides: ZStrides = None,
    vram: Vram = None,
    spacing: Spacing = None,
    window: Window = None,
    modality: Modality = None,
    like: Like = None,
    like_spacing: LikeSpacing = None,
    batch_cap: BatchCap = None,
    keep_axes: KeepAxes = None,
    slices: Slices = None,
    fresh: Fresh = False,
    shard: ShardOption = None,
    dask: DaskOption = None,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Inspect a dataset and decide spacing, patch size and networks.

    Every decision is printed with its reason. A dataset that was planned before keeps its options,
    except for those that are given now.
    """
    from autoliver.pipeline.data import remind
    from autoliver.pipeline.data_shards import plan_shard
    from autoliver.pipeline.replan import PlanRequest, replan
    from autoliver.transfer.follow import far_axes
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    given: dict[str, Any] = {
        "preset": preset,
        "arch": arch,
        "encoder": encoder,
        "z_strides": z_strides,
        "vram_gb": vram,
        "batch_cap": batch_cap,
        "keep_axes": keep_axes,
        "slices": slices,
        "window_hu": window,
    }
    given |= {"spacing": like_spacing, "spacing_mm": spacing}
    request = PlanRequest(
        changes={name: value for name, value in given.items() if value is not None},
        modality=modality,
        like=like,
        fresh=fresh,
        shard=shard_of(shard, dask=dask, workspace=workspace),
        notify=say,
        machine=machine_of(workers=workers, memory_gb=memory_gb),
    )
    if request.shard is not None:
        part = plan_shard(Workspace(workspace), dataset, request, request.shard)
        return emit_shard(part, as_json=as_json)
    made = replan(Workspace(workspace), dataset, request)
    remind(made.planned)
    if like is not None:
        for finding in far_axes(made.planned.plan, made.own):
            say(f"Note: {finding}")
    _emit_plan(made, like=like, as_json=as_json)


def preprocess(
    dataset: DatasetArgument = None,
    configurations: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CONFIG", help="Configurations to preprocess. [default: all of the plan]"
        ),
    ] = None,
    shard: ShardOption = None,
    dask: DaskOption = None,
    workers: Workers = 0,
    threads: Threads = None,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Crop, normalise and resample all labelled cases for training."""
    from autoliver.pipeline import data
    from autoliver.pipeline.data_shards import preprocess_shard
    from autoliver.workspace import Workspace, check_configuration

    start(verbose=verbose)
    names = [check_configuration(name) for name in configurations or ()]
    machine = machine_of(workers=workers, memory_gb=memory_gb, threads=threads)
    part = shard_of(shard, dask=dask, workspace=workspace)
    if part is not None:
        done = preprocess_shard(Workspace(workspace), dataset, names, part, machine=machine)
        emit_shard(done, as_json=as_json)
        return
    planned = data.planned_dataset(Workspace(workspace), dataset, machine=machine)
    data.remind(planned)
    stores = data.preprocess(planned, names, machine=machine)
    cases = len(planned.dataset.labelled)
    number = counted(cases, "case")
    text = "\n".join(f"{name}: {number} in {folder}" for name, folder in stores.items())
    result = {
        "cases": cases,
        "stores": {name: str(folder) for name, folder in stores.items()},
        "warnings": listed(planned.warnings),
    }
    emit(result, text, as_json=as_json)


def _emit_plan(made: "Replanned", *, like: str | None, as_json: bool) -> None:
    import msgspec

    plan = made.planned.plan
    trainable = [n for n, c in plan.configurations.items() if c.previous_stage is None]
    following = [] if like is None else ["--like", like]
    train = command(
        *("train", made.planned.dataset.name, trainable[-1]),
        options=following,
        workspace=made.planned.folder.path.parent,
    )
    parts = [*_show_changes(made), f"Written: {made.file}\nNext: {train}"]
    result = {
        "plan": msgspec.to_builtins(plan),
        "changes": msgspec.to_builtins(made.changes),
        "stale_runs": made.stale_runs,
        "warnings": listed(made.planned.warnings),
        "file": str(made.file),
    }
    emit(result, f"{_show_plan(plan)}\n" + "\n".join(parts), as_json=as_json)


def _show_changes(made: "Replanned") -> list[str]:
    """Describes changes since the previous plan and the runs they affect; empty if none."""
    if not made.changes:
        return []
    rows = [
        (c.configuration or "all", c.decision, f"{c.before or '-'} -> {c.now or '-'}")
        for c in made.changes
    ]
    parts = ["", table(("changed", "decision", "before -> now"), rows, wrap=_width()), ""]
    if made.stale_runs:
        parts.append(
            f"Runs of the previous plan, which cannot be resumed: {', '.join(made.stale_runs)}. "
            "They can still predict. To train with the new plan, use train with --fresh to replace "
            "a run, or with --tag NAME to keep both."
        )
    return parts


def listed(findings: "Sequence[Finding]") -> list[dict[str, str | None]]:
    """Findings as plain values for --json."""
    return [
        {"case": f.case, "severity": f.severity, "code": f.code, "problem": f.problem}
        for f in findings
    ]


def _findings(found: "Verification") -> str:
    if not found.findings:
        return "No problems found."
    rows = [(f.severity, f.case or "(all)", f.problem) for f in found.findings]
    return table(("severity", "case", "problem"), rows, wrap=_width())


def _show_repaired(done: "Repaired") -> str:
    if done.folder is None:
        return f"No error that needs a repair; nothing was written.\nNext: {done.next_command}"
    rows = [(fix.case, fix.file, fix.done) for fix in done.fixes]
    parts = [table(("case", "repaired file", "what was done"), rows, wrap=_width())]
    if done.left_out:
        parts.append(table(("left out", "because"), list(done.left_out.items()), wrap=_width()))
    pictures = f"Pictures, before and after: {done.folder}/pictures"
    parts.append(
        f"{counted(done.cases, 'case')}, {counted(len(done.fixes), 'file')} repaired. Look at each "
        f"of them.\n{pictures}\nWritten: {done.folder}\nNext: {done.next_command}"
    )
    return "\n\n".join(parts)


def _show_plan(plan: "Plan") -> str:
    from autoliver.planning.changes import decisions

    modality = "CT and MR" if plan.mixed else plan.modality
    parts = [
        f"{plan.dataset}: {modality}, channels {', '.join(plan.channel_names)}, "
        f"labels {', '.join(plan.labels.values)}; {_network(plan)}, {plan.vram_gb:g} GB"
    ]
    for name, c in plan.configurations.items():
        rows = [
            (made.what, made.text, c.reasons.get(made.reason, ""))
            for made in decisions(c)
            if made.text and made.reason
        ]
        parts.append(table((name, "decision", "because"), rows, wrap=_width()))
    dropped = list(plan.reasons.items())
    return "\n\n".join([*parts, table(("dataset", "because"), dropped, wrap=_width())])


def _network(plan: "Plan") -> str:
    kind = "" if plan.arch == "unet" else f" of {plan.arch}"
    encoder = "" if plan.encoder is None else f" with {plan.encoder}"
    return f"preset {plan.preset}{kind}{encoder}"


def _width() -> int:
    return shutil.get_terminal_size((110, 24)).columns
