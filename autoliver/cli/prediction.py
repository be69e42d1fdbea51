"""predict and evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    Device,
    MemoryGb,
    Verbose,
    Workers,
    WorkspaceDir,
    machine_of,
)
from autoliver.cli.output import emit, start
from autoliver.inference.options import ModalityChoice

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="DATASET, DATASET/RUN, an imported model's name, a folder or an exported file; several"
        " are averaged. [default: the workspace's only model]",
    ),
]
Roi = Annotated[
    str,
    typer.Option(
        metavar="auto|off|MODEL",
        help="Look only within 2 cm of what a coarse model finds: the 3d_lowres run beside the"
        " model (auto), or any model. All else becomes background.",
    ),
]
Modality = Annotated[
    ModalityChoice,
    typer.Option(
        help="What the cases are and are normalised as; auto goes by each case's values and refuses"
        " what the model was not trained for."
    ),
]


def predict(
    source: Annotated[
        Path, typer.Option("--input", "-i", metavar="IN", help="Folder of cases, or one file.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder for the label maps.")
    ],
    model: Models = None,
    folds: Annotated[
        str | None, typer.Option(metavar="0,1,..|all", help="Folds to use; default: all finished.")
    ] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror/--no-mirror", help="Average over flips, if trained on them.")
    ] = True,
    step: Annotated[
        float, typer.Option(min=0.1, max=1.0, help="Distance of windows as a share of the patch.")
    ] = 0.5,
    roi: Roi = "off",
    modality: Modality = "auto",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write CASE.npz with them.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write a map of it: 0 sure, 1 undecided.")
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="In float32, nothing chosen by timing: the same machine gives the same bits.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Predict finished cases again.")
    ] = False,
    device: Device = "auto",
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Predict label maps on each image's own grid, in its file type. Finished cases are skipped."""
    from autoliver.pipeline import prediction as stage
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = stage.PredictRequest(
        step=step,
        mirror=mirror,
        overwrite=overwrite,
        probabilities=probabilities,
        uncertainty=uncertainty,
        roi=None if roi == "off" else roi,
        modality=modality,
        exact=exact,
        machine=machine_of(memory_gb=memory_gb, device=device),
    )
    written = stage.predict_folder(
        Workspace(workspace), source, output, request, models=tuple(model or ()), folds=folds
    )
    text = f"{written.model}: {written.new} cases predicted, {written.skipped} were there already."
    result = {
        "model": written.model,
        "predicted": written.new,
        "skipped": written.skipped,
        "files": [str(path) for path in written.files],
    }
    emit(result, f"{text}\nWritten: {output}", as_json=as_json)


def evaluate(
    prediction: Annotated[
        Path, typer.Option("--prediction", "-p", metavar="PRED", help="Folder of label maps.")
    ],
    reference: Annotated[
        Path, typer.Option("--reference", "-r", metavar="REF", help="Folder of true label maps.")
    ],
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "-d", metavar="DATASET", help="Names the labels."),
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these; may be repeated.")
    ] = None,
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Add the CHAOS challenge's score.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for the scores. [default: PRED]"
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace scores that hold what the new ones do not."),
    ] = False,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Score predictions per case and label: overlap, surface distances, volumes."""
    import msgspec

    from autoliver.evaluation.results import table
    from autoliver.pipeline import evaluation
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = evaluation.EvaluateRequest(
        dataset=dataset,
        metrics=tuple(metrics or ()),
        chaos=chaos,
        output=output,
        overwrite=overwrite,
        machine=machine_of(workers=workers, memory_gb=memory_gb),
    )
    scores = evaluation.evaluate(Workspace(workspace), prediction, reference, request)
    text = f"{table(scores)}\nWritten: {output or prediction}/scores.json, scores.csv"
    emit(msgspec.to_builtins(scores), text, as_json=as_json)
