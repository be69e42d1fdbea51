"""export and import."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from autoliver.cli.options import DEFAULT_WORKSPACE, AsJson, Verbose, WorkspaceDir
from autoliver.cli.output import emit, start, table

if TYPE_CHECKING:
    from autoliver.pipeline.models import Format, ModelFacts, Moved


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="DATASET, DATASET/RUN, a model's name or folder.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="The file to write, e.g. liver.autoliver; for nnU-Net the folder nnUNet_results.",
        ),
    ],
    folds: Annotated[
        str | None, typer.Option(metavar="0,1,..|all", help="Folds to take; default: all finished.")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", metavar="autoliver|nnunet", help="What will read the file.")
    ] = "autoliver",
    case_names: Annotated[
        bool, typer.Option("--with-case-names", help="Keep the names of the training cases.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write a trained model as one file, which predict -m and import take on any machine."""
    from autoliver.pipeline import models
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = models.ExportRequest(
        folds=folds, case_names=case_names, format=cast("Format", format_), overwrite=overwrite
    )
    done = models.export_model(Workspace(workspace), model, target, request)
    emit(_result(done), f"{_show(done.facts)}\nWritten: {target}", as_json=as_json)


def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What export or nnU-Net wrote.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to call it. [default: its own name]")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an imported model of that name.")
    ] = False,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Run code that a checkpoint of nnU-Net may hold. Dangerous."),
    ] = False,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Put an exported model, or one of nnU-Net, into the workspace, to be used by name."""
    from autoliver.pipeline import models
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    done = models.import_model(
        Workspace(workspace),
        source,
        models.ImportRequest(name=name, overwrite=overwrite, trust=trust),
    )
    command = f"autoliver predict -i IN -o OUT -m {shlex.quote(done.name)}"
    text = f"{_show(done.facts)}\nImported; use it with: {command}"
    emit(_result(done), text, as_json=as_json)


def _result(done: "Moved") -> dict[str, Any]:
    import msgspec

    facts: dict[str, Any] = msgspec.to_builtins(done.facts)
    return {"name": done.name, "path": str(done.path), **facts}


def _show(facts: "ModelFacts") -> str:
    labels = (f"{name} {', '.join(map(str, v))}" for name, v in facts.labels.foreground.items())
    rows = [
        ("trained on", f"{facts.dataset}, {facts.modality}: {', '.join(facts.channels)}"),
        ("labels", "; ".join(labels)),
    ]
    for run in facts.runs:
        what = "first stage" if run.previous else "member"
        epochs = sorted(set(run.epochs))
        text = f"{run.run}, fold {', '.join(run.folds)}, {' or '.join(map(str, epochs))} epochs"
        rows.append((what, text))
    rows.append(("cleaning", "; ".join(facts.cleaning) or "none"))
    return table(("model", ""), rows, wrap=100)
