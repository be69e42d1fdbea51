"""verify, plan, preprocess."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    MemoryGb,
    Verbose,
    Workers,
    WorkspaceDir,
)
from autoliver.cli.output import emit, start, table
from autoliver.cli.planning_options import (
    BatchCap,
    Like,
    LikeSpacing,
    Preset,
    PresetName,
    Spacing,
    Vram,
    Window,
)

if TYPE_CHECKING:
    from autoliver.pipeline.data import Planned
    from autoliver.planning.plan import Plan
    from autoliver.planning.verify import Verification

DatasetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="DATASET",
        help="Folder or name; default: the one in the current folder or in the workspace.",
    ),
]


def verify(
    dataset: DatasetArgument = None,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check a dataset: files, geometry, values, labels, duplicates."""
    from autoliver.parallel import Limits
    from autoliver.pipeline import data
    from autoliver.planning.verify import raise_on_errors
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    folder, source, found = data.verify_dataset(
        Workspace(workspace), dataset, limits=Limits(workers=workers, memory_gb=memory_gb)
    )
    result = {
        "dataset": source.name,
        "cases": len(source.cases),
        "findings": [
            {"case": f.case, "severity": f.severity, "code": f.code, "problem": f.problem}
            for f in found.findings
        ],
        "file": str(folder.verify),
    }
    text = (
        f"{source.name}: {len(source.cases)} cases.\n{_findings(found)}\nWritten: {folder.verify}"
    )
    emit(result, text, as_json=as_json)
    if as_json and found.errors:
        raise typer.Exit(1)  # the findings are told; a second object would be one too many
    raise_on_errors(found)


def plan(
    dataset: DatasetArgument = None,
    preset: Preset = PresetName.default,
    vram: Vram = None,
    spacing: Spacing = None,
    window: Window = None,
    like: Like = None,
    like_spacing: LikeSpacing = None,
    batch_cap: BatchCap = True,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Inspect a dataset and decide spacing, patch size and networks, with reasons."""
    from autoliver.parallel import Limits
    from autoliver.pipeline.plans import PlanRequest, make
    from autoliver.transfer.follow import far_axes
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = PlanRequest(
        preset=preset.value,
        vram_gb=vram,
        spacing_mm=spacing,
        window_hu=window,
        batch_cap=batch_cap,
        like=like,
        like_spacing=None if like_spacing is None else like_spacing.value,
        limits=Limits(workers=workers, memory_gb=memory_gb),
    )
    made = make(Workspace(workspace), dataset, request)
    if made.own is not None:
        for finding in far_axes(made.planned.plan, made.own):
            typer.echo(f"Note: {finding}", err=True)
    again = "" if like is None else f" --like {like}"
    _emit_plan(made.planned, made.file, like=again, as_json=as_json)


def preprocess(
    dataset: DatasetArgument = None,
    configurations: Annotated[
        list[str] | None, typer.Argument(metavar="CONFIG", help="Default: all of the plan.")
    ] = None,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Crop, normalise and resample all cases into the store."""
    from autoliver.parallel import Limits
    from autoliver.pipeline import data
    from autoliver.workspace import Workspace, check_configuration

    start(verbose=verbose)
    names = [check_configuration(name) for name in configurations or ()]
    planned = data.planned_dataset(
        Workspace(workspace), dataset, limits=Limits(workers=workers, memory_gb=memory_gb)
    )
    stores = data.preprocess(planned, names, limits=Limits(workers=workers, memory_gb=memory_gb))
    cases = len(planned.dataset.labelled)
    text = "\n".join(f"{name}: {cases} cases in {folder}" for name, folder in stores.items())
    result = {"cases": cases, "stores": {name: str(folder) for name, folder in stores.items()}}
    emit(result, text, as_json=as_json)


def _emit_plan(planned: "Planned", file: Path, *, like: str = "", as_json: bool) -> None:
    import msgspec

    made = planned.plan
    trainable = [n for n, c in made.configurations.items() if c.previous_stage is None]
    text = (
        f"{_show_plan(made)}\nWritten: {file}\n"
        f"Next: autoliver train {planned.dataset.name} {trainable[-1]}{like}"
    )
    emit({"plan": msgspec.to_builtins(made), "file": str(file)}, text, as_json=as_json)


def _findings(found: "Verification") -> str:
    if not found.findings:
        return "No problems found."
    rows = [(f.severity, f.case or "(all)", f.problem) for f in found.findings]
    return table(("severity", "case", "problem"), rows)


def _show_plan(plan: "Plan") -> str:
    parts = [
        f"{plan.dataset}: {plan.modality}, channels {', '.join(plan.channel_names)}, "
        f"labels {', '.join(plan.labels.values)}; preset {plan.preset}, {plan.vram_gb:g} GB"
    ]
    for name, c in plan.configurations.items():
        decisions = [
            ("spacing", _join(c.spacing_mm, " x ", "{:.3g}") + " mm", "spacing"),
            ("patch", _join(c.patch_shape, " x "), "patch"),
            ("batch", str(c.batch_size), "batch"),
            ("network", f"{c.network.kind} {_join(c.network.features, '-')}", "topology"),
            ("intensities", _join(c.normalization, ", "), "normalization"),
            ("Dice over", "batch" if c.batch_dice else "patch", "batch_dice"),
            ("input", c.previous_stage or "", "previous_stage"),
        ]
        rows = [
            (what, value, c.reasons.get(reason, "")) for what, value, reason in decisions if value
        ]
        parts.append(table((name, "decision", "because"), rows, wrap=_width()))
    dropped = list(plan.reasons.items())
    return "\n\n".join([*parts, table(("dataset", "because"), dropped, wrap=_width())])


def _width() -> int:
    return shutil.get_terminal_size((110, 24)).columns


def _join(values: "tuple[object, ...]", between: str, form: str = "{}") -> str:
    return between.join(form.format(v) for v in values)
