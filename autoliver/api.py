"""autoliver as a library: what the commands do, as functions.

Everything heavy is imported when a function is called, so `import autoliver` stays light.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from autoliver.inference.model import Model
    from autoliver.inference.outputs import PredictOptions
    from autoliver.pipeline.prediction import Predicted
    from autoliver.pipeline.run.job import FoldResult
    from autoliver.pipeline.selection import Selected
    from autoliver.planning.plan import Plan

WORKSPACE = Path("autoliver-workspace")


def plan(
    dataset: str | Path,
    *,
    like: str | Path | None = None,
    workspace: str | Path = WORKSPACE,
    fresh: bool = False,
    **options: Any,
) -> "Plan":
    """Inspects a dataset and decides spacing, patches and networks, as `autoliver plan`.

    Args:
        dataset: Folder, or name of a planned dataset.
        like: Plan with the networks of this dataset or model.
        workspace: Folder for everything autoliver makes.
        fresh: Forget the options that the dataset was planned with before.
        **options: Fields of `autoliver.planning.plan.PlanOptions`, such as preset="tiny"; with
            `like` of `autoliver.planning.plan.LikeOptions`, such as spacing="target". Those that
            are not given are as in the plan before, or default.

    Raises:
        AutoliverError: What the command would print.
    """
    from autoliver.pipeline.replan import PlanRequest, replan
    from autoliver.workspace import Workspace

    source = None if like is None else str(like)
    request = PlanRequest(changes=options, like=source, fresh=fresh)
    return replan(Workspace(Path(workspace)), str(dataset), request).planned.plan


def train(
    dataset: str | Path,
    configuration: str,
    *,
    folds: "Sequence[int | str]" = (),
    workspace: str | Path = WORKSPACE,
    fresh: bool = False,
    **options: Any,
) -> "list[FoldResult]":
    """Trains folds of a configuration, as `autoliver train`; goes on where it stopped.

    Args:
        dataset: Folder, or name of a planned dataset.
        configuration: "2d", "3d_lowres", "3d_fullres" or "3d_cascade".
        folds: Numbers or "all"; empty: all of the cross-validation.
        workspace: Folder for everything autoliver makes.
        fresh: Start over.
        **options: Fields of `autoliver.training.options.TrainingOptions`, such as epochs=100, of
            `autoliver.pipeline.run.request.TrainRequest`, such as pretrained="LiTS", and of
            `autoliver.machine.Machine`, such as device="cuda:1", with workers and memory_gb.

    Returns:
        Of each fold its folder and the scores of its held-out cases.

    Raises:
        AutoliverError: What the command would print.
    """
    from autoliver.machine import Machine
    from autoliver.parallel import Limits
    from autoliver.pipeline.run.request import TrainRequest
    from autoliver.pipeline.run.train import train as train_folds
    from autoliver.workspace import Workspace, check_configuration

    of_request, of_machine = TrainRequest.__struct_fields__, Machine.__struct_fields__
    of_limits = {"workers", "memory_gb"}
    limits = Limits(**{name: value for name, value in options.items() if name in of_limits})
    machine = {name: value for name, value in options.items() if name in of_machine}
    others = {*of_machine, *of_limits, *of_request}
    request = TrainRequest(
        configuration=check_configuration(configuration),
        folds=tuple("all" if fold == "all" else int(fold) for fold in folds),
        fresh=fresh,
        changes={name: value for name, value in options.items() if name not in others},
        machine=Machine(**{"limits": limits, **machine}),
        **{name: value for name, value in options.items() if name in of_request},
    )
    return train_folds(Workspace(Path(workspace)), str(dataset), request)


def select(
    dataset: str | Path,
    *,
    runs: Sequence[str] = (),
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Selected":
    """Chooses the run or pair of runs, and the cleaning rules, that do best out of fold.

    As `autoliver select`; `predict` uses what was chosen.

    Args:
        dataset: Folder, or name of a planned dataset.
        runs: Names of the runs to compare; empty: all finished ones.
        workspace: Folder for everything autoliver makes.
        **options: Fields of `autoliver.pipeline.selection.SelectRequest`, such as device="cuda:1".

    Raises:
        AutoliverError: What the command would print.
    """
    from autoliver.pipeline.selection import SelectRequest
    from autoliver.pipeline.selection import select as select_runs
    from autoliver.workspace import Workspace

    request = SelectRequest(runs=tuple(runs), **options)
    return select_runs(Workspace(Path(workspace)), str(dataset), request)


def predict(
    source: str | Path,
    output: str | Path,
    *,
    models: Sequence[str] = (),
    folds: str | None = None,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Predicted":
    """Predicts a folder of cases or one file, as `autoliver predict`.

    Args:
        source: Folder of cases, or one file.
        output: Folder for the label maps.
        models: Names, folders or exported files, averaged; none: the workspace's only model.
        folds: "0,2" or "all" instead of all finished or selected folds.
        workspace: Where models are looked up.
        **options: Fields of `autoliver.pipeline.prediction.PredictRequest`, such as step=0.5.

    Raises:
        AutoliverError: What the command would print.
    """
    from autoliver.pipeline.prediction import PredictRequest, predict_folder
    from autoliver.workspace import Workspace

    return predict_folder(
        Workspace(Path(workspace)),
        Path(source),
        Path(output),
        PredictRequest(**options),
        models=models,
        folds=folds,
    )


@dataclass(frozen=True)
class Predictor:
    """A model that takes arrays.

    Attributes:
        model: The loaded model: its plan names channels and labels.
        options: How it predicts.
    """

    model: "Model"
    options: "PredictOptions"

    def __call__(
        self, array: "npt.NDArray[np.floating]", spacing_mm: Sequence[float]
    ) -> "npt.NDArray[np.integer]":
        """The label map of an image.

        Args:
            array: (z, y, x) or (channels, z, y, x), intensities as in the files (HU for CT).
            spacing_mm: Distance of voxel centres per axis, (z, y, x).

        Returns:
            (z, y, x) label values.

        Raises:
            DatasetError: The image does not fit the model.
        """
        import numpy as np

        from autoliver.inference.predict import predict_volume
        from autoliver.io.volume import Geometry, Volume

        channels = np.asarray(array, np.float32).reshape(-1, *array.shape[-3:])
        z, y, x = channels.shape[1:]
        spacing_z, spacing_y, spacing_x = (float(value) for value in spacing_mm)
        geometry = Geometry(shape_zyx=(z, y, x), spacing_mm=(spacing_z, spacing_y, spacing_x))
        image = Volume(array=channels, geometry=geometry)
        return predict_volume(self.model, image, self.options, name="image")


def load_model(
    model: str | Path | None = None,
    *,
    folds: str | None = None,
    workspace: str | Path = WORKSPACE,
    device: str = "auto",
    **options: Any,
) -> Predictor:
    """Loads a model once, to predict many arrays.

    Args:
        model: Its name, folder or exported file; None: the workspace's only one.
        folds: "0,2" or "all" instead of all finished or selected folds.
        workspace: Where it is looked up.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        **options: Fields of `autoliver.inference.outputs.PredictOptions`, such as mirror=False.

    Raises:
        ModelError: There is no such model, or it is damaged.
    """
    from autoliver.inference.model import load_model as load
    from autoliver.inference.outputs import PredictOptions
    from autoliver.networks.device import choose_device
    from autoliver.workspace import Workspace

    name = None if model is None else str(model)
    files = Workspace(Path(workspace)).model_to_predict(name, folds=folds)
    return Predictor(load(files, device=choose_device(device)), PredictOptions(**options))


def evaluate(
    prediction: str | Path,
    reference: str | Path,
    *,
    dataset: str | None = None,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> Any:
    """Scores a folder of label maps against the true ones, as `autoliver evaluate`.

    Args:
        prediction: Folder of label maps.
        reference: Folder of true label maps.
        dataset: Names the labels.
        workspace: Where the dataset is looked up.
        **options: Fields of `autoliver.pipeline.evaluation.EvaluateRequest`, such as chaos=True.

    Returns:
        `autoliver.evaluation.results.Scores`.

    Raises:
        AutoliverError: What the command would print.
    """
    from autoliver.pipeline.evaluation import EvaluateRequest
    from autoliver.pipeline.evaluation import evaluate as score
    from autoliver.workspace import Workspace

    request = EvaluateRequest(dataset=dataset, **options)
    return score(Workspace(Path(workspace)), Path(prediction), Path(reference), request)
