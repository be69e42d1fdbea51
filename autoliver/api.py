"""autoliver as a library: one function for each command.

Large dependencies are imported when a function is called, so `import autoliver` is fast. Options
have the names of the commands' options with underscores: `--batch-size 4` is `batch_size=4`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from autoliver.arguments import (
    as_arguments,
    channels_of,
    checked,
    dataset_name,
    name_of,
    once,
    path_of,
    paths_of,
    spacing_of,
    taken,
    workspace_at,
)
from autoliver.commands import DEFAULT_WORKSPACE as WORKSPACE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from autoliver.evaluation.comparison import Comparison
    from autoliver.evaluation.results import Scores
    from autoliver.inference.model import Model
    from autoliver.inference.options import PredictOptions
    from autoliver.pipeline.adoption.adopt import Adopted
    from autoliver.pipeline.checkup.findings import Checkup
    from autoliver.pipeline.clean import Cleaned
    from autoliver.pipeline.conversion.result import Converted
    from autoliver.pipeline.folder import Predicted
    from autoliver.pipeline.mending.mend import Repaired
    from autoliver.pipeline.models import Moved
    from autoliver.pipeline.pooling.pool import Pooled
    from autoliver.pipeline.pseudo.pseudolabel import Pseudolabelled
    from autoliver.pipeline.reporting.report import Reported
    from autoliver.pipeline.run.job import FoldResult
    from autoliver.pipeline.selection import Selected
    from autoliver.pipeline.status import WorkspaceStatus
    from autoliver.planning.plan import Plan
    from autoliver.planning.verify import Verification


@checked
def verify(
    dataset: str | Path, *, workspace: str | Path = WORKSPACE, **options: Any
) -> "Verification":
    """Checks a dataset's files, geometry, values and labels, like `autoliver verify`.

    Args:
        dataset: Folder, or name of a planned dataset.
        workspace: The workspace folder, which all results are written to.
        **options: workers and memory_gb.

    Returns:
        The findings; `.errors` are those because of which `plan` would refuse the dataset.

    Raises:
        AutoliverError: The dataset cannot be read at all.
    """
    with as_arguments():
        from autoliver.pipeline.data import verify_dataset

        machine = taken(options, {}, of=verify)["machine"]
        return verify_dataset(workspace_at(workspace), dataset_name(dataset), machine=machine)[2]


@checked
def mend(
    dataset: str | Path,
    output: str | Path,
    *,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Repaired":
    """Writes a dataset with repaired copies of files with errors, like `autoliver verify --fix`.

    Args:
        dataset: Folder, or name of a planned dataset.
        output: Folder of the new dataset; it must be new.
        workspace: The workspace folder.
        **options: workers and memory_gb; `values`, what values in label files mean, such as
            ["7=0"]; `leave_out=True` leaves out the cases that cannot be repaired.

    Returns:
        What was repaired, file by file; its `folder` is None if there was no error.

    Raises:
        AutoliverError: The dataset cannot be read, or some of its errors cannot be repaired.
    """
    with as_arguments():
        from autoliver.pipeline.mending.mend import MendRequest
        from autoliver.pipeline.mending.mend import mend as mend_dataset

        given = taken(options, {n: n for n in ("values", "leave_out")}, of=mend)
        machine = given.pop("machine")
        return mend_dataset(
            *(workspace_at(workspace), dataset_name(dataset), path_of("output", output)),
            request=MendRequest(**given),
            machine=machine,
        )


@checked
def plan(
    dataset: str | Path,
    *,
    like: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    fresh: bool = False,
    **options: Any,
) -> "Plan":
    """Inspects a dataset and decides spacing, patches and networks, like `autoliver plan`.

    Args:
        dataset: Folder, or name of a planned dataset.
        like: Dataset or model whose networks the plan takes over; None for networks of its own.
        workspace: The workspace folder, which all results are written to.
        fresh: Whether to discard the options of the previous plan.
        **options: preset="tiny", arch="medformer", encoder="efficientnet_b0", z_strides="all",
            slices=3, vram (GB), spacing (z, y, x in mm), window (low, high in HU), batch_cap and
            keep_axes; modality ("CT", "MR" or "other") for a folder without dataset.json; with
            `like` only spacing, which may be a word such as "target" as well; workers and
            memory_gb. Options that are not given keep their value in the previous plan, or else
            take their default.

    Returns:
        The plan, which is also written to the workspace.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.replan import PlanRequest, replan
        from autoliver.values import check_flag

        names = {
            **{name: name for name in ("preset", "arch", "encoder", "z_strides")},
            **{name: name for name in ("batch_cap", "keep_axes", "slices")},
            **{"vram": "vram_gb", "vram_gb": "vram_gb", "spacing": "spacing_mm"},
            **{"spacing_mm": "spacing_mm", "window": "window_hu", "window_hu": "window_hu"},
            **{"like_spacing": "spacing", "modality": "modality"},
        }
        given = taken(options, names, of=plan)
        machine = given.pop("machine")
        if like is not None and isinstance(given.get("spacing_mm"), str):
            given["spacing"] = given.pop("spacing_mm")
        modality = given.pop("modality", None)
        source = None if like is None else name_of("--like", like)
        check_flag("--fresh", fresh)
        request = PlanRequest(
            changes=given, modality=modality, like=source, fresh=fresh, machine=machine
        )
        return replan(workspace_at(workspace), dataset_name(dataset), request).planned.plan


@checked
def train(
    dataset: str | Path,
    configuration: str,
    *,
    folds: "Sequence[int | str] | int | str" = (),
    workspace: str | Path = WORKSPACE,
    fresh: bool = False,
    **options: Any,
) -> "list[FoldResult]":
    """Trains folds of a configuration, like `autoliver train`; resumes interrupted folds.

    Args:
        dataset: Folder, or name of a planned dataset.
        configuration: "2d", "3d_lowres", "3d_fullres" or "3d_cascade".
        folds: A number, several numbers, "all" or "cv"; empty for all folds of the
            cross-validation.
        workspace: The workspace folder, which all results are written to.
        fresh: Whether to start over instead of resuming.
        **options: Fields of `autoliver.training.options.TrainingOptions`, such as epochs=100, of
            `autoliver.pipeline.run.request.TrainRequest`, such as pretrained="LiTS", and of
            `autoliver.machine.Machine`, such as device="cuda:1"; reset_heads, workers, memory_gb.

    Returns:
        For each fold its folder and the scores of its held-out cases.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.datasets.folds import check_folds
        from autoliver.machine import Machine
        from autoliver.pipeline.run.request import TrainRequest
        from autoliver.pipeline.run.train import train as train_folds
        from autoliver.training.options import TrainingOptions, given_options
        from autoliver.values import check_flag, flag_of
        from autoliver.workspace import check_configuration

        of_request = {*TrainRequest.__struct_fields__} - {"configuration", "changes", "machine"}
        of_machine = [name for name in Machine.__struct_fields__ if name != "limits"]
        of_run = {*TrainingOptions.__struct_fields__} - of_request - {"made_from", "extensions"}
        names = {"fold": "folds", "reset_heads": "reset_heads"}
        own = {name: name for name in (*of_request, *of_run)}
        given = taken(options, own | names, of=train, machine=of_machine)
        once(("folds", "fold"), folds, given.get("folds"))
        if check_flag("--reset-heads", given.pop("reset_heads", False)):
            given["heads"] = "reset"
        changed = {name: given.pop(name) for name in list(given) if name in of_run}
        if changed.get("replay") is not None:
            changed["replay"] = name_of("--replay", changed["replay"])
        checked = given_options(changed)
        for name in ("pretrained", "encoder_weights", "like"):
            if given.get(name) is not None:
                given[name] = name_of(flag_of(name), given[name])
        request = TrainRequest(
            configuration=check_configuration(configuration),
            folds=check_folds(given.pop("folds", folds)),
            fresh=fresh,
            changes={name: getattr(checked, name) for name in changed},
            **given,
        )
        return train_folds(workspace_at(workspace), dataset_name(dataset), request)


@checked
def select(
    dataset: str | Path,
    *,
    runs: Sequence[str] | str = (),
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Selected":
    """Selects the run or pair of runs, and the cleaning rules, with the best out-of-fold scores.

    It works like `autoliver select`. `predict` uses the selection.

    Args:
        dataset: Folder, or name of a planned dataset.
        runs: Names of the runs to compare; empty for all finished runs.
        workspace: The workspace folder, which all results are written to.
        **options: device="cuda:1", workers and memory_gb.

    Returns:
        The selection, and what was compared.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.selection import SelectRequest
        from autoliver.pipeline.selection import select as select_runs

        names = {"accept_changes": "accept_changes"}
        given = taken(options, names, of=select, machine=("device",))
        request = SelectRequest(runs=runs, **given)  # type: ignore[arg-type]
        return select_runs(workspace_at(workspace), dataset_name(dataset), request)


@checked
def predict(
    source: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    models: Sequence[str | Path] | str | Path = (),
    folds: "Sequence[int | str] | int | str | None" = None,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Predicted":
    """Predicts a folder of cases or one file, like `autoliver predict`.

    Args:
        source: Folder of cases, or one file; or several of them.
        output: Folder for the label maps; or a file, for the label map of a single case.
        models: Names, folders or exported files of models, whose probabilities are averaged; empty
            for the only model of the workspace. May be passed as `model` instead.
        folds: "0,2", "all" or numbers; None for all finished or selected folds.
        workspace: Folder in which models are looked up.
        **options: Fields of `autoliver.pipeline.prediction.PredictRequest`, such as step=0.5 or
            exact=True; memory_gb.

    Returns:
        The model's name, the label maps, and how many cases were predicted and skipped.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.datasets.folds import folds_text
        from autoliver.pipeline.folder import predict_folder
        from autoliver.pipeline.prediction import PredictRequest

        own = {field.name: field.name for field in fields(PredictRequest)} | {"model": "model"}
        del own["machine"]
        given = taken(options, own, of=predict, machine=("device",))
        once(("models", "model"), models, given.get("model"))
        named = given.pop("model", models)
        if given.get("roi") == "off":
            given["roi"] = None
        request = PredictRequest(**given)
        return predict_folder(
            workspace_at(workspace),
            paths_of("source", source),
            path_of("output", output),
            request,
            models=() if named is None else named,
            folds=folds_text(folds),
        )


@dataclass(frozen=True)
class Predictor:
    """A loaded model that predicts arrays.

    Attributes:
        model: The loaded model; its plan names the channels and labels.
        options: How the model predicts.
    """

    model: "Model"
    options: "PredictOptions"

    def __repr__(self) -> str:
        """Names the model and what it labels; the networks are left out."""
        labels = ", ".join(self.model.plan.labels.values)
        return f"Predictor({self.model.name!r}, labels: {labels}, {self.options!r})"

    def __call__(
        self, array: "npt.NDArray[np.floating]", spacing_mm: Sequence[float]
    ) -> "npt.NDArray[np.integer]":
        """Predicts the label map of an image.

        Args:
            array: (z, y, x) or (channels, z, y, x), intensities as in the files (HU for CT).
            spacing_mm: Distance between voxel centres along each axis, (z, y, x).

        Returns:
            Label values (z, y, x).

        Raises:
            DatasetError: The image does not fit the model.
            OptionError: The array has other axes, or the spacing is invalid.
        """
        from autoliver.inference.predict import predict_volume
        from autoliver.io.volume import Geometry, Volume

        with as_arguments():
            channels, spacing = channels_of(array), spacing_of(spacing_mm)
            z, y, x = channels.shape[1:]
            geometry = Geometry(shape_zyx=(z, y, x), spacing_mm=spacing)
            image = Volume(array=channels, geometry=geometry, oriented=False)
            return predict_volume(self.model, image, self.options, name="image")


@checked
def load_model(
    model: str | Path | None = None,
    *,
    folds: "Sequence[int | str] | int | str | None" = None,
    workspace: str | Path = WORKSPACE,
    device: str = "auto",
    **options: Any,
) -> Predictor:
    """Loads a model once, to predict many arrays.

    Args:
        model: Name, folder or exported file of the model; None for the only model of the workspace.
        folds: "0,2", "all" or numbers; None for all finished or selected folds.
        workspace: Folder in which the model is looked up.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        **options: step, mirror, modality, match and exact, as for `predict`.

    Raises:
        ModelError: There is no such model, or it is damaged.
        OptionError: An option is unknown or invalid.
    """
    with as_arguments():
        from autoliver.datasets.folds import folds_text
        from autoliver.inference.model import load_model as load
        from autoliver.inference.options import PredictOptions
        from autoliver.machine import check_device_name
        from autoliver.networks.device import choose_device

        names = {name: name for name in ("step", "mirror", "modality", "exact", "match", "overlap")}
        given = taken(options, names, of=load_model, machine=None)
        how = PredictOptions(**given)
        check_device_name(device)
        name = None if model is None else name_of("--model", model)
        files = workspace_at(workspace).model_to_predict(name, folds=folds_text(folds))
        return Predictor(load(files, device=choose_device(device)), how)


@overload
def evaluate(
    prediction: str | Path,
    reference: str | Path,
    *,
    dataset: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Scores": ...


@overload
def evaluate(
    prediction: tuple[str | Path, str | Path] | list[str] | list[Path],
    reference: str | Path,
    *,
    dataset: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Comparison": ...


@checked
def evaluate(
    prediction: str | Path | tuple[str | Path, str | Path] | list[str] | list[Path],
    reference: str | Path,
    *,
    dataset: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Scores | Comparison":
    """Scores a folder of label maps against reference label maps, like `autoliver evaluate`.

    Args:
        prediction: Folder of predicted label maps; or two of them, to compare them case by case.
        reference: Folder of reference label maps, or the folder or name of a dataset.
        dataset: Dataset that names the labels; None for that of the reference, if it is one, else
            to name them by their values.
        workspace: Folder in which the dataset is looked up.
        **options: metrics ("dice" or several), chaos, lesion_labels ("cyst" or several),
            lesion_overlap (0 to 1), output (folder for the scores), subset, overwrite, workers and
            memory_gb.

    Returns:
        The scores, which are also written to the output folder; or the comparison of two folders.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.comparison import evaluate_all
        from autoliver.pipeline.evaluation import EvaluateRequest

        names = {name: name for name in ("metrics", "chaos", "output", "subset", "overwrite")}
        names |= {name: name for name in ("lesion_labels", "lesion_overlap")}
        given = taken(options, names, of=evaluate)
        if given.get("output") is not None:
            given["output"] = path_of("output", given["output"])
        known = None if dataset is None else name_of("--dataset", dataset)
        request = EvaluateRequest(dataset=known, **given)
        folders, truth = paths_of("prediction", prediction), path_of("reference", reference)
        return evaluate_all(workspace_at(workspace), folders, truth, request)


@checked
def report(
    dataset: str | Path | None = None,
    *,
    prediction: str | Path | Sequence[str | Path] = (),
    images: str | Path | Sequence[str | Path] = (),
    reference: str | Path | None = None,
    output: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Reported":
    """Writes a page of HTML about a dataset and its runs, or predictions, like `autoliver report`.

    Args:
        dataset: Folder or name of a planned dataset, or name of an imported model; None for the
            only dataset, or for none if there are predictions.
        prediction: Folder of predicted label maps, or two of them, to compare.
        images: Folder of their images, or several.
        reference: Folder of reference label maps, or the folder or name of a dataset.
        output: The page; None for report.html in the workspace's folder of the dataset, or in the
            folder of predictions.
        workspace: Folder in which the dataset is looked up.
        **options: workers and memory_gb.

    Returns:
        The page's path, and the cases to look at first.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.reporting.report import ReportRequest
        from autoliver.pipeline.reporting.report import report as make_page

        machine = taken(options, {}, of=report)["machine"]
        request = ReportRequest(
            dataset=None if dataset is None else dataset_name(dataset),
            predictions=tuple(paths_of("prediction", prediction)),
            images=tuple(paths_of("images", images)),
            reference=None if reference is None else path_of("reference", reference),
            output=None if output is None else path_of("output", output),
            machine=machine,
        )
        return make_page(workspace_at(workspace), request)


@checked
def convert(
    kind: str,
    source: str | Path,
    output: str | Path,
    *,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Converted":
    """Makes a dataset of data in another form by reference, like `autoliver convert`.

    Args:
        kind: What the data are, such as "camus" or "lld-mmri"; docs/convert.md lists the kinds.
        source: Folder of the data as they were published; of a dataset for "lesion-classes".
        output: Folder of the new dataset; it must be new.
        workspace: The workspace, for the next command.
        **options: workers and memory_gb; rater; part; for "lesion-classes" the CSV file of
            `classes`, and `label`; for "dicom" the folder of `labels`, and `series` (2 or "venous",
            or several).

    Returns:
        The new dataset, with the number of its cases and the names of those without a label map.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.conversion.convert import ConvertRequest
        from autoliver.pipeline.conversion.convert import convert as make_dataset

        names = ("rater", "part", "classes", "label", "labels", "series")
        given = taken(options, {name: name for name in names}, of=convert)
        machine = given.pop("machine")
        for name in ("classes", "labels"):
            if given.get(name) is not None:
                given[name] = path_of(name, given[name])
        request = ConvertRequest(**given)
        folder, place = path_of("source", source), path_of("output", output)
        return make_dataset(
            *(workspace_at(workspace), kind, folder, place), request=request, machine=machine
        )


@checked
def adopt(
    images: str | Path | Sequence[str | Path],
    corrected: str | Path,
    output: str | Path,
    *,
    like: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Adopted":
    """Makes a dataset of images and corrected predictions, like `autoliver adopt`.

    Args:
        images: Folder of images as for `predict`; or several.
        corrected: Folder of the corrected label maps.
        output: Folder of the new dataset; it must be new.
        like: Model or dataset that names labels and channels; None for the model that the
            predict.json beside the label maps names.
        workspace: Folder in which models and datasets are looked up.
        **options: modality ("CT", "MR" or "other"), link, workers and memory_gb.

    Returns:
        The new dataset, where each case comes from, and which images were left out.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.adoption.adopt import AdoptRequest
        from autoliver.pipeline.adoption.adopt import adopt as adopt_cases

        given = taken(options, {"modality": "modality", "link": "link"}, of=adopt)
        source = None if like is None else name_of("--like", like)
        request = AdoptRequest(like=source, **given)
        return adopt_cases(
            workspace_at(workspace),
            paths_of("images", images),
            path_of("corrected", corrected),
            path_of("output", output),
            request,
        )


@checked
def pool(
    output: str | Path,
    add: Sequence[str],
    *,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Pooled":
    """Makes one dataset of several by reference, like `autoliver pool`.

    Args:
        output: Folder of the new dataset; it must be new.
        add: The datasets, e.g. ["LiTS", "CHAOS:liver=real,tumour=absent"].
        workspace: Folder in which datasets are looked up.
        **options: inside (label -> the label that it lies in), drop_duplicates, overwrite, workers
            and memory_gb.

    Returns:
        The new dataset, with the labels and cases of each member.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.pooling.pool import PoolRequest
        from autoliver.pipeline.pooling.pool import pool as make_pool
        from autoliver.values import check_texts

        names = {name: name for name in ("inside", "drop_duplicates", "overwrite")}
        given = taken(options, names, of=pool)
        request = PoolRequest(add=check_texts("--add", add), **given)
        return make_pool(workspace_at(workspace), path_of("output", output), request)


@checked
def pseudolabel(
    dataset: str | Path,
    output: str | Path,
    *,
    model: str | Path,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Pseudolabelled":
    """Labels the cases of a dataset with a model, like `autoliver pseudolabel`.

    Args:
        dataset: Folder, or name of a planned dataset.
        output: Folder of the new dataset; it must be new.
        model: Name or path of the model.
        workspace: Folder in which the dataset and the model are looked up.
        **options: labels ("liver" or several), modality, folds, min_confidence, volume (low, high
            in ml), max_outside, band (low, high; None for none), largest, overwrite, device,
            workers and memory_gb.

    Returns:
        The new dataset, and the quality of the labels case by case.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.pseudo.pseudolabel import pseudolabel as label_cases
        from autoliver.pipeline.pseudo.request import PseudolabelRequest
        from autoliver.values import check_texts

        names = {name: name for name in ("labels", "folds", "band", "largest", "overwrite")}
        names["modality"] = "modality"
        names |= {"min_confidence": "least_confidence", "volume": "volume_ml"}
        names |= {"max_outside": "most_outside"}
        given = taken(options, names, of=pseudolabel, machine=("device",))
        if "labels" in given:
            given["labels"] = check_texts("--label", given["labels"])
        request = PseudolabelRequest(**given)
        return label_cases(
            workspace_at(workspace),
            dataset_name(dataset),
            name_of("--model", model),
            path_of("output", output),
            request,
        )


@checked
def export(
    model: str | Path,
    target: str | Path,
    *,
    folds: "Sequence[int | str] | int | str | None" = None,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Moved":
    """Writes a trained model to one file, like `autoliver export`.

    Args:
        model: Name, folder or exported file of the model.
        target: The file to write; for the format of nnU-Net, the folder nnUNet_results.
        folds: "0,2", "all" or numbers; None for all finished or selected folds.
        workspace: Folder in which the model is looked up.
        **options: format ("autoliver" or "nnunet"), with_case_names and overwrite.

    Returns:
        The name the model will have once imported, the file, and a description of the model.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.datasets.folds import folds_text
        from autoliver.pipeline.models import ExportRequest, export_model

        names = {name: name for name in ("format", "case_names", "overwrite")}
        names["with_case_names"] = "case_names"
        given = taken(options, names, of=export, machine=None)
        request = ExportRequest(folds=folds_text(folds), **given)
        name, file = name_of("model", model), path_of("target", target)
        return export_model(workspace_at(workspace), name, file, request)


@checked
def import_model(
    source: str | Path, *, workspace: str | Path = WORKSPACE, **options: Any
) -> "Moved":
    """Imports an exported model, or one of nnU-Net, into the workspace, like `autoliver import`.

    Args:
        source: A file written by `export`, or a model written by nnU-Net.
        workspace: Folder that the model is imported into.
        **options: name, overwrite and trust (run the code that a checkpoint of nnU-Net may
            contain).

    Returns:
        The name the model has now, its folder, and a description of the model.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.models import ImportRequest
        from autoliver.pipeline.models import import_model as put

        names = {name: name for name in ("name", "overwrite", "trust")}
        request = ImportRequest(**taken(options, names, of=import_model, machine=None))
        return put(workspace_at(workspace), path_of("source", source), request)


@checked
def clean(
    dataset: str | Path | None = None,
    *,
    yes: bool = False,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Cleaned":
    """Lists what a workspace holds that nothing uses, like `autoliver clean`, or removes it.

    Args:
        dataset: Folder, or name of a planned dataset; None for the whole workspace.
        yes: Whether to remove what is found.
        workspace: The workspace folder.
        **options: None so far; others than those above are refused.

    Returns:
        What was found, with sizes, and whether it was removed.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.clean import clean as clean_up
        from autoliver.values import check_flag

        taken(options, {}, of=clean, machine=None)
        name = None if dataset is None else dataset_name(dataset)
        return clean_up(workspace_at(workspace), name, yes=check_flag("--yes", yes))


@checked
def doctor(
    dataset: str | Path | None = None,
    *,
    probe: bool = True,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Checkup":
    """Says what this machine can do and what to change, like `autoliver doctor`.

    Args:
        dataset: Folder, or name of a planned dataset, to estimate the time that its trainings take;
            None for the machine alone.
        probe: Whether to time training steps, for about ten seconds with each network, and the
            disk.
        workspace: The workspace folder.
        **options: device.

    Returns:
        What was found, and estimates of times; `.will_fail` says whether anything will fail.

    Raises:
        AutoliverError: The command would end without looking, with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.checkup.doctor import doctor as examine
        from autoliver.values import check_flag

        on = taken(options, {"device": "device"}, of=doctor, machine=None).get("device", "auto")
        name = None if dataset is None else dataset_name(dataset)
        timed = check_flag("--probe", probe)
        return examine(workspace_at(workspace), name, probe=timed, device=on)


@checked
def status(
    dataset: str | Path | None = None,
    *,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "WorkspaceStatus":
    """Says what the runs of a workspace are doing, like `autoliver status`; it may be called often.

    Args:
        dataset: Folder, or name of a planned dataset; None for the whole workspace.
        workspace: The workspace folder.
        **options: None so far; others than those above are refused.

    Returns:
        The folds of all runs; `.at_work` says whether any process works on them.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.status import read_status

        taken(options, {}, of=status, machine=None)
        name = None if dataset is None else dataset_name(dataset)
        return read_status(workspace_at(workspace), name)
