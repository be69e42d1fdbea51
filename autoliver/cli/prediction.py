"""The commands `predict` and `evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    DaskOption,
    Device,
    MemoryGb,
    Series,
    ShardOption,
    Threads,
    Verbose,
    Workers,
    WorkspaceDir,
    machine_of,
)
from autoliver.cli.output import emit, say, start
from autoliver.cli.shards import emit_shard, shard_of
from autoliver.inference.options import ModalityChoice, OutputFormat
from autoliver.io.dicom.codes import SegType
from autoliver.values import counted, first_few

if TYPE_CHECKING:
    from autoliver.evaluation.comparison import Comparison
    from autoliver.evaluation.results import Scores
    from autoliver.pipeline.evaluation import EvaluateRequest
    from autoliver.pipeline.folder import Predicted

_METRICS = "Metrics"

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="DATASET, DATASET/RUN, an imported model's name, a folder or an exported file. If the "
        "option is repeated, the models are averaged. [default: the workspace's only model]",
    ),
]
Roi = Annotated[
    str,
    typer.Option(
        metavar="auto|off|MODEL",
        help="Predict only within 2 cm of what a coarse model finds; all else becomes background. "
        "The coarse model is the 3d_lowres run stored with the model (auto), or any MODEL.",
    ),
]
Modality = Annotated[
    ModalityChoice,
    typer.Option(
        help="Modality that every case is normalised as. auto decides by each case's values, and "
        "refuses a case of a modality that the model was not trained for."
    ),
]


# Longer than 60 lines, because every option of the command is a parameter with its help.
def predict(
    source: Annotated[
        list[Path],
        typer.Option(
            "--input",
            "-i",
            metavar="IN",
            help="Folder of images or of DICOM series, or one image. The option may be repeated.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Folder for the label maps; or a file such as OUT.nii.gz for a single image.",
        ),
    ],
    model: Models = None,
    folds: Annotated[
        str | None,
        typer.Option(
            metavar="0,1,..|all",
            help="Folds to use. [default: the selected ones, else finished 0 to 4, else all]",
        ),
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror/--no-mirror",
            help="Average predictions over the flips that the model was trained with (test-time "
            "augmentation).",
        ),
    ] = True,
    step: Annotated[
        float,
        typer.Option(
            min=0.1, max=1.0, help="Step of the sliding window as a share of the patch size."
        ),
    ] = 0.5,
    roi: Roi = "off",
    roi_from: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="For a model that was trained on a region (train --roi): the model that finds it. "
            "[default: the one it was trained with]",
        ),
    ] = None,
    modality: Modality = "auto",
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Also write the probabilities, as CASE.npz."),
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Also write CASE_uncertainty, a map of the uncertainty: 0 certain, 1 undecided. "
            "Beside a .png it is a .tif.",
        ),
    ] = False,
    preview: Annotated[
        bool,
        typer.Option(
            "--preview",
            help="Also draw CASE_preview.png: three planes through the organ with outlines and "
            "volumes. Finished cases are drawn without predicting them again.",
        ),
    ] = False,
    match: Annotated[
        bool,
        typer.Option(
            "--match",
            help="Match the grey values of cases of another modality than the model's (MR for a "
            "model of CT) to those of its training images. [default: normalise each case by its "
            "own mean and deviation]",
        ),
    ] = False,
    lesions: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with a label map of each case, whose lesions are told apart: each "
            "connected one gets a class, and no other lesion is looked for. [default: find "
            "lesions; needed by models of --task classify]",
        ),
    ] = None,
    series: Series = None,
    format_: Annotated[
        OutputFormat,
        typer.Option(
            "--format",
            help="dicom-seg writes a DICOM segmentation (CASE.dcm) beside each label map as well, "
            "for a viewer or a PACS; -i must name DICOM series.",
        ),
    ] = "nifti",
    seg_type: Annotated[
        SegType,
        typer.Option(
            help="binary segmentations have a mask for each label; labelmap ones (DICOM 2024c) are "
            "smaller, and few viewers read them."
        ),
    ] = "binary",
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Compute in float32 and choose nothing by timing, so that the same machine gives "
            "identical results. [default: the fastest way, found by timing]",
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Predict all cases again. [default: skip finished ones]"),
    ] = False,
    shard: ShardOption = None,
    dask: DaskOption = None,
    device: Device = "auto",
    threads: Threads = None,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Predict label maps on each image's own grid, in its file type. Finished cases are skipped.

    Every DICOM series in a folder or below it is a case; its label map is a .nii.gz file.
    """
    from autoliver.pipeline.folder import CasesFailed, predict_folder
    from autoliver.pipeline.prediction import PredictRequest
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = PredictRequest(
        step=step,
        mirror=mirror,
        overwrite=overwrite,
        probabilities=probabilities,
        uncertainty=uncertainty,
        preview=preview,
        roi=None if roi == "off" else roi,
        roi_from=roi_from,
        modality=modality,
        exact=exact,
        match=match,
        lesions=lesions,
        series=tuple(series or ()),
        format=format_,
        seg_type=seg_type,
        shard=shard_of(shard, dask=dask, workspace=workspace),
        machine=machine_of(memory_gb=memory_gb, device=device, threads=threads),
    )
    try:
        written = predict_folder(
            Workspace(workspace), source, output, request, models=tuple(model or ()), folds=folds
        )
    except CasesFailed as failed:
        if failed.predicted is not None and not as_json:
            typer.echo(_show_predicted(failed.predicted, output))
        raise
    shown = _show_predicted(written, output)
    if written.shard is not None:
        emit_shard(written.shard, shown if written.files else "", written.facts, as_json=as_json)
        return
    emit(written.facts, shown, as_json=as_json)


def _show_predicted(written: "Predicted", output: Path) -> str:
    new, skipped = counted(written.new, "case"), written.skipped
    done = f", {skipped} skipped as finished" if skipped else ""
    kept = f" Corrected, and kept: {first_few(written.corrected, 5)}." if written.corrected else ""
    table = f"\nLesions: {written.lesions}" if written.lesions else ""
    segs = counted(len(written.segmentations), "DICOM segmentation")
    table += f"\nBeside them: {segs}" if written.segmentations else ""
    drawn = f"\nPreviews: {written.previews[0]}" if written.previews else ""
    if len(written.previews) > 1:
        drawn += f" and {len(written.previews) - 1} more"
    return f"{written.model}: {new} predicted{done}.{kept}\nWritten: {output}{table}{drawn}"


# Longer than 60 lines, because every option of the command is a parameter with its help.
def evaluate(
    prediction: Annotated[
        list[Path],
        typer.Option(
            "--prediction",
            "-p",
            metavar="PRED",
            help="Folder of predicted label maps, or one file. Given twice, the two are compared "
            "case by case, by the Dice or by --metrics.",
        ),
    ],
    reference: Annotated[
        Path,
        typer.Option(
            "--reference",
            "-r",
            metavar="REF",
            help="Folder of reference label maps, or one file; or a dataset (its folder or name).",
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            metavar="DATASET",
            help="Dataset that defines the labels, as REF does if it is one. [default: REF if it "
            "is a dataset, else one label_N for each value N]",
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Metric to compute: dice, iou, recall, precision, ravd, volume, assd, mad, mssd, "
            "hd95, nsd or lesions. mssd may be called hd. Give several as dice,hd. [default: all]",
            rich_help_panel=_METRICS,
        ),
    ] = None,
    chaos: Annotated[
        bool,
        typer.Option(
            "--chaos",
            help="Also compute the score of the CHAOS challenge: of liver, kidneys and spleen, by "
            "the names of the labels.",
            rich_help_panel=_METRICS,
        ),
    ] = False,
    lesion_labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Label whose connected components are lesions. Give several as cyst,hemangioma: "
            "they are taken for classes of lesions. [default: labels named like lesions]",
            rich_help_panel=_METRICS,
        ),
    ] = None,
    lesion_overlap: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="A lesion is found if more than this share of its voxels is covered.",
            rich_help_panel=_METRICS,
        ),
    ] = 0.0,
    subset: Annotated[
        bool,
        typer.Option(
            "--subset",
            help="Score the predictions that are there, and leave out references without one. "
            "[default: refuse that]",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for scores.json and scores.csv, for volumes.csv and .png, and for "
            "lesion_scores.csv if there are lesions; for a comparison, comparison.json and .csv. "
            "[default: PRED; for one file CASE_scores.json and CASE_scores.csv beside it]",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace existing scores even if they contain cases, labels or metrics that the "
            "new ones lack. [default: refuse that]",
        ),
    ] = False,
    shard: ShardOption = None,
    dask: DaskOption = None,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Score predictions per case and label, or compare two of them.

    The metrics are overlap, surface distances, volumes and detected lesions. For distances, what
    lies beyond the image's edge counts as inside, as in CHAOS; a label that is missing in the
    prediction is as far away as the image's diagonal. Intervals come from resampling patients.
    """
    import msgspec

    from autoliver.evaluation.results import Scores
    from autoliver.pipeline.comparison import evaluate_all
    from autoliver.pipeline.evaluation import EvaluateRequest
    from autoliver.shards import Sharded
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = EvaluateRequest(
        dataset=dataset,
        metrics=tuple(metrics or ()),
        chaos=chaos,
        lesion_labels=tuple(lesion_labels or ()),
        lesion_overlap=lesion_overlap,
        output=output,
        subset=subset,
        overwrite=overwrite,
        shard=shard_of(shard, dask=dask, workspace=workspace),
        machine=machine_of(workers=workers, memory_gb=memory_gb),
    )
    found = evaluate_all(Workspace(workspace), prediction, reference, request)
    if isinstance(found, Sharded):
        emit_shard(found, as_json=as_json)
        return
    for warning in found.warnings:
        say(f"Warning: {warning}")
    if isinstance(found, Scores):
        text = _show_scores(found, request, prediction[0])
    else:
        text = _show_comparison(found, Path(str(output)))
    emit(msgspec.to_builtins(found), text, as_json=as_json)


def _show_scores(scores: "Scores", request: "EvaluateRequest", prediction: Path) -> str:
    from autoliver.evaluation.agreement_report import agreement_table
    from autoliver.evaluation.lesion_report import lesion_tables
    from autoliver.evaluation.tables import chaos_table, interval_table, table

    shown = (table, interval_table, agreement_table, chaos_table, lesion_tables)
    tables = filter(None, (each(scores) for each in shown))
    as_json, as_csv = request.files(prediction)
    text = "\n\n".join(tables)
    text += f"\nWritten: {as_json}\nAll metrics of every case: {as_csv}"
    if (lesions := request.lesion_file(prediction)).exists():
        text += f"\nEvery lesion: {lesions}"
    if (volumes := request.volume_files(prediction)[1]).exists():
        text += f"\nHow volumes agree: {volumes}"
    if (picture := request.reliability_file(prediction)).exists():
        text += f"\nHow often classes are right: {picture}"
    return text


def _show_comparison(found: "Comparison", output: Path) -> str:
    from autoliver.evaluation.comparison import comparison_table
    from autoliver.pipeline.comparison import CSV_FILE, JSON_FILE

    files = f"Written: {output / JSON_FILE}\nEvery case: {output / CSV_FILE}"
    return f"{comparison_table(found)}\n\n{files}"
