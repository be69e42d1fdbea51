"""Prediction, scores and pages."""

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
    from autoliver.pipeline.folder import Predicted
    from autoliver.pipeline.reporting.report import Reported
    from autoliver.shards import Sharded


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
            exact=True; shard="3/8" for a part of the cases; threads; memory_gb.

    Returns:
        The model's name, the label maps, and how many cases were predicted and skipped.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.datasets.folds import folds_text
        from autoliver.pipeline.folder import predict_folder
        from autoliver.pipeline.prediction import PredictRequest
        from autoliver.shards import Shard

        own = {field.name: field.name for field in fields(PredictRequest)} | {"model": "model"}
        del own["machine"]
        given = taken(options, own, of=predict, machine=("device", "threads"))
        once(("models", "model"), models, given.get("model"))
        named = given.pop("model", models)
        if given.get("shard") is not None:
            given["shard"] = Shard.of(given["shard"])
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
    shard: None = None,
    **options: Any,
) -> "Scores": ...


@overload
def evaluate(
    prediction: tuple[str | Path, str | Path] | list[str] | list[Path],
    reference: str | Path,
    *,
    dataset: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    shard: None = None,
    **options: Any,
) -> "Comparison": ...


@overload
def evaluate(
    prediction: str | Path,
    reference: str | Path,
    *,
    dataset: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    shard: str,
    **options: Any,
) -> "Sharded": ...


@checked
def evaluate(
    prediction: str | Path | tuple[str | Path, str | Path] | list[str] | list[Path],
    reference: str | Path,
    *,
    dataset: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    shard: str | None = None,
    **options: Any,
) -> "Scores | Comparison | Sharded":
    """Scores a folder of label maps against reference label maps, like `autoliver evaluate`.

    Args:
        prediction: Folder of predicted label maps; or two of them, to compare them case by case.
        reference: Folder of reference label maps, or the folder or name of a dataset.
        dataset: Dataset that names the labels; None for that of the reference, if it is one, else
            to name them by their values.
        workspace: Folder in which the dataset is looked up.
        shard: The part of the cases to score, such as "3/8"; None to write the scores.
        **options: metrics ("dice" or several), chaos, lesion_labels ("cyst" or several),
            lesion_overlap (0 to 1), output (folder for the scores), subset, overwrite, workers and
            memory_gb.

    Returns:
        The scores, which are also written to the output folder; or the comparison of two folders;
        or what the shard has done.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.comparison import evaluate_all
        from autoliver.pipeline.evaluation import EvaluateRequest
        from autoliver.shards import Shard

        names = {name: name for name in ("metrics", "chaos", "output", "subset", "overwrite")}
        names |= {name: name for name in ("lesion_labels", "lesion_overlap")}
        given = taken(options, names, of=evaluate)
        if given.get("output") is not None:
            given["output"] = path_of("output", given["output"])
        known = None if dataset is None else name_of("--dataset", dataset)
        part = None if shard is None else Shard.of(shard)
        request = EvaluateRequest(dataset=known, shard=part, **given)
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
