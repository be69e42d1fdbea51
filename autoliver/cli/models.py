"""The commands `export` and `import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from autoliver.cli.options import DEFAULT_WORKSPACE, AsJson, Verbose, WorkspaceDir
from autoliver.cli.output import emit, start, table
from autoliver.commands import command
from autoliver.values import counted

if TYPE_CHECKING:
    from autoliver.pipeline.models import Format, ModelFacts, Moved


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model to export: DATASET, DATASET/RUN, an imported model's name, or a folder.",
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="File to write, e.g. liver.autoliver; with --format nnunet the folder "
            "nnUNet_results.",
        ),
    ],
    folds: Annotated[
        str | None,
        typer.Option(
            metavar="0,1,..|all",
            help="Folds to export. [default: the selected ones, else finished 0 to 4, else all]",
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format", metavar="autoliver|nnunet", help="Program that will read the model."
        ),
    ] = "autoliver",
    case_names: Annotated[
        bool,
        typer.Option(
            "--with-case-names",
            help="Keep the names of the training cases in the file. [default: left out]",
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace an existing file; folders for nnU-Net are never replaced."
        ),
    ] = False,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write a trained model as one file, or as a folder for nnU-Net.

    `predict -m` and `import` take the file on any machine.
    """
    from autoliver.pipeline import models
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = models.ExportRequest(
        folds=folds, case_names=case_names, format=cast("Format", format_), overwrite=overwrite
    )
    done = models.export_model(Workspace(workspace), model, target, request)
    emit(_result(done), f"{_show(done.facts)}\nWritten: {target}", as_json=as_json)


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="File that export wrote, or nnU-Net's results folder or exported zip.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the imported model. [default: its own]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an imported model of the same name.")
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Run any code that an nnU-Net checkpoint contains. Dangerous."
        ),
    ] = False,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Add an exported model, or one of nnU-Net, to the workspace.

    `predict -m` and `train --pretrained` then take it by its name.
    """
    from autoliver.pipeline import models
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    done = models.import_model(
        Workspace(workspace),
        source,
        models.ImportRequest(name=name, overwrite=overwrite, trust=trust),
    )
    use = command(
        "predict", options=["-i", "IN", "-o", "OUT", "-m", done.name], workspace=workspace
    )
    text = f"{_show(done.facts)}\nImported; use it with: {use}"
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
    if facts.lesion_classes:
        given = "; it has to be told where lesions are (--lesions)" if facts.needs_lesions else ""
        rows.append(("a lesion is one of", ", ".join(facts.lesion_classes) + given))
    if facts.region:
        rows.append(("looks at", facts.region))
    for run in facts.runs:
        what = "first stage" if run.previous else "member"
        epochs = " or ".join(counted(number, "epoch") for number in sorted(set(run.epochs)))
        text = f"{run.run}, fold {', '.join(run.folds)}, {epochs}"
        rows.append((what, text))
    rows.append(("cleaning", "; ".join(facts.cleaning) or "none"))
    return table(("model", ""), rows, wrap=100)
