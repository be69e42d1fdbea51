"""Mixes the weights of a finished training with those of its source, as `--keep-source` asks."""

import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from autoliver.datasets.cases import unscored_labels
from autoliver.errors import OptionError
from autoliver.models.files import FoldFolder, FoldModel, MemberFiles, ModelFiles, save_fold
from autoliver.pipeline.prediction import PredictRequest, predict
from autoliver.workspace import RunFolder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from autoliver.datasets.cases import Case

# The shares of the tuned weights that are tried.
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# A smaller share keeps more of the source, so that this loss of Dice is accepted for it.
_AS_GOOD = 0.005


def choose_share(dice: Mapping[float, float | None]) -> float:
    """Returns the smallest share whose Dice is at most 0.005 below the best.

    Args:
        dice: Share of the tuned weights -> mean Dice; None where nothing could be scored.
    """
    known = {share: value for share, value in dice.items() if value is not None}
    if not known:
        return max(dice)
    best = max(known.values())
    return min(share for share, value in known.items() if value >= best - _AS_GOOD)


def check_held_out(fold: object, cases: int) -> None:
    """Refuses to choose a share by cases that there are none of.

    Raises:
        OptionError: The fold holds no case out.
    """
    if not cases:
        raise OptionError(
            f"--keep-source auto chooses by held-out cases, but fold {fold} holds none out.",
            hint="Give a share such as --keep-source 0.7, or a fold that holds cases out: "
            "--fold 0.",
        )


def try_shares(
    run: RunFolder,
    info: FoldModel,
    mixed: "Callable[[float], dict[str, Tensor]]",
    cases: "list[Case]",
    request: PredictRequest,
) -> dict[float, float | None]:
    """Predicts the held-out cases of a fold with each share of the tuned weights.

    Args:
        run: The run.
        info: The description of the fold.
        mixed: Gives the weights for a share.
        cases: The held-out cases.
        request: How to predict.

    Returns:
        Share -> mean Dice of the cases over the labels; None if no case has a label.
    """
    folder = FoldFolder(run.fold(info.fold)).trial
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return {share: _dice(run, folder, info, mixed(share), cases, request) for share in SHARES}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _dice(
    run: RunFolder,
    folder: "Path",
    info: FoldModel,
    weights: "dict[str, Tensor]",
    cases: "list[Case]",
    request: PredictRequest,
) -> float | None:
    from pathlib import Path

    from autoliver.evaluation.results import MetricOptions
    from autoliver.evaluation.score import score_files

    shutil.rmtree(folder, ignore_errors=True)
    save_fold(folder, weights, info)
    stage = run.first_stage(info.previous_run, [info.fold])
    model = ModelFiles(name=run.name, members=(MemberFiles(folds=(folder,), previous=stage),))
    images = {case.name: [Path(path) for path in case.images] for case in cases}
    drawn = {case.name: Path(case.label) for case in cases if case.label}
    there = FoldFolder(folder).validation
    written = predict(model, images, there, request, references=drawn)
    pairs = {case.name: (written[case.name], Path(case.label)) for case in cases if case.label}
    options = MetricOptions(metrics=("dice",))
    left_out = unscored_labels(cases)
    scores = score_files(pairs, labels=info.plan.labels, options=options, unscored=left_out)
    return scores.foreground_mean("dice")
