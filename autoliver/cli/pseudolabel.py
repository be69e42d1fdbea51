"""The command `pseudolabel`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    DaskOption,
    Device,
    MemoryGb,
    ShardOption,
    Verbose,
    WorkspaceDir,
    machine_of,
)
from autoliver.cli.output import emit, start, table
from autoliver.cli.shards import emit_shard, shard_of
from autoliver.inference.options import ModalityChoice
from autoliver.values import counted

if TYPE_CHECKING:
    from autoliver.pipeline.pseudo.pseudolabel import Pseudolabelled

_REFUSAL = "What is refused"
_WIDTH = 80


# Longer than 60 lines, because every option of the command is a parameter with its help.
def pseudolabel(
    dataset: Annotated[
        str,
        typer.Argument(
            help="Folder or name of the dataset. Cases without a label map are labelled as well."
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the new dataset; it must be new.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="The model, as for predict.")
    ],
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL", help="A label that the model gives. Repeat it. [default: liver]"
        ),
    ] = None,
    modality: Annotated[
        ModalityChoice, typer.Option(help="Modality that every case is normalised as.")
    ] = "auto",
    folds: Annotated[
        str | None,
        typer.Option(metavar="0,1,..|all", help="Folds to use. [default: as for predict]"),
    ] = None,
    min_confidence: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Least mean probability inside a label.",
            rich_help_panel=_REFUSAL,
        ),
    ] = 0.8,
    volume: Annotated[
        tuple[float, float],
        typer.Option(metavar="LOW HIGH", help="Volume of a label in ml.", rich_help_panel=_REFUSAL),
    ] = (500.0, 4000.0),
    max_outside: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Largest share of drawn tumours that lies outside the label.",
            rich_help_panel=_REFUSAL,
        ),
    ] = 0.5,
    band: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="Voxels with a probability between these are ignored in training. [default: 0.3 "
            "0.7]",
        ),
    ] = None,
    no_band: Annotated[bool, typer.Option("--no-band", help="Ignore no voxel.")] = False,
    largest: Annotated[
        bool, typer.Option("--largest/--all-pieces", help="Keep only the largest piece.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a dataset that was made before.")
    ] = False,
    shard: ShardOption = None,
    dask: DaskOption = None,
    device: Device = "auto",
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make a dataset of cases that a model labels plausibly.

    Labels that people have drawn stay. pseudolabels.csv in the new folder has the quality of every
    case, refused ones included, and pictures/ shows them.
    """
    from autoliver.pipeline.pseudo.pseudolabel import pseudolabel as label_cases
    from autoliver.pipeline.pseudo.request import PseudolabelRequest
    from autoliver.shards import Sharded
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    if no_band and band is not None:
        raise typer.BadParameter(
            f"{band[0]:g} {band[1]:g} contradicts --no-band. Leave one of them out.",
            param_hint="--band",
        )
    bands = {"band": None} if no_band else {} if band is None else {"band": band}
    request = PseudolabelRequest(
        labels=tuple(label or ("liver",)),
        modality=modality,
        folds=folds,
        least_confidence=min_confidence,
        volume_ml=volume,
        most_outside=max_outside,
        **bands,
        largest=largest,
        overwrite=overwrite,
        shard=shard_of(shard, dask=dask, workspace=workspace),
        machine=machine_of(memory_gb=memory_gb, device=device),
    )
    done = label_cases(Workspace(workspace), dataset, model, output, request)
    if isinstance(done, Sharded):
        emit_shard(done, as_json=as_json)
        return
    emit(done.facts, _show(done), as_json=as_json)


def _show(done: "Pseudolabelled") -> str:
    rows = [
        (
            case.case,
            label,
            "-" if quality.volume_ml is None else f"{quality.volume_ml:.0f}",
            f"{quality.confidence:.2f}",
            case.refused or "kept",
        )
        for case in done.cases
        for label, quality in case.quality.items()
    ]
    rows += [(case.case, "", "", "", "drawn") for case in done.cases if not case.quality]
    refused = sum(bool(case.refused) for case in done.cases)
    kept = counted(len(done.cases) - refused, "case")
    return "\n".join(
        [
            table(("case", "label", "ml", "confidence", ""), rows, wrap=_WIDTH),
            f"{done.model}: {kept} kept, {refused} refused.",
            f"Table: {done.table}",
            f"Pictures: {done.folder / 'pictures'}",
            f"Written: {done.folder}",
            f"Next: {done.next_command}",
        ]
    )
