"""An objective is added by one row of `OBJECTIVES`: this file adds one and changes nothing else."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from small_trainings import PATCH, make_task, stop_after, timeless
from torch import Tensor

from autoliver.datasets.cases import CaseFacts, Labels, read_dataset
from autoliver.errors import OptionError
from autoliver.networks.build import build_network
from autoliver.networks.checkpoint import load_training_state
from autoliver.planning.plan import Configuration
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.distributed import Group
from autoliver.training.fold import open_patches
from autoliver.training.loop import train_fold
from autoliver.training.objectives.choice import OBJECTIVES, Options
from autoliver.training.objectives.objective import (
    Objective,
    Scores,
    Shown,
    Tally,
    counts_of,
)

pytestmark = pytest.mark.usefixtures("one_thread", "toy")

SEEN: list[CaseFacts] = []


@dataclass(frozen=True)
class Eager:
    """Segmentation that also counts predicted foreground; the more there is, the better."""

    segmentation: Objective
    watched: str = "share"

    @property
    def names(self) -> tuple[str, ...]:
        return self.segmentation.names

    @property
    def lengths(self) -> Mapping[str, int]:
        return {**self.segmentation.lengths, "foreground": 1, "voxels": 1}

    def loss(self, outputs: list[Tensor], batch: Shown, group: Group) -> tuple[Tensor, Tally]:
        SEEN.extend(batch.cases)
        loss, tally = self.segmentation.loss(outputs, batch, group)
        found = outputs[0].argmax(1) > 0
        own = {"foreground": found.sum()[None], "voxels": torch.tensor([found.numel()])}
        return loss, Tally(counts={**tally.counts, **counts_of(own, group).counts})

    def scores(self, tally: Tally) -> Scores:
        ((foreground,), (voxels,)) = (tally.counts[name] for name in ("foreground", "voxels"))
        further = {"foreground": float(foreground), "share": foreground / voxels}
        return self.segmentation.scores(tally).replace(further=further)


def make_eager(labels: Labels, configuration: Configuration, options: Options) -> Eager:
    return Eager(OBJECTIVES["dice-ce"](labels, configuration, options))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    monkeypatch.setitem(OBJECTIVES, "eager", make_eager)


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]


def test_its_count_and_score_are_in_the_log_beside_what_is_always_there(tmp_path: Path) -> None:
    settings = {"epochs": 2, "iterations": 5}
    task = make_task(tmp_path / "toy", loss="eager", **settings)
    trained = train_fold(task)
    plain = train_fold(make_task(tmp_path / "plain", **settings))
    assert "scores" not in (tmp_path / "plain/progress.jsonl").read_text()
    for own, other in zip(timeless(trained.logs), timeless(plain.logs), strict=True):
        assert own.replace(scores=other.scores) == other
    scores = written(task.folder)[-1]["scores"]
    assert scores["watched"] == "share"
    assert 0 < scores["train"]["foreground"] < 5 * 2 * 16 * 16
    # What the last network finds in the held-out patches, counted by hand.
    spec = task.configuration.network
    network = build_network(spec, deep_supervision=False, generator=torch.Generator())
    network.load_state_dict({n: w for n, w in trained.weights.items() if n in network.state_dict()})
    (batch,) = open_patches(task)[1].batches(range(1), patch_shape=PATCH, spec=None)
    with torch.no_grad():
        found = int((network.eval()(batch.image).argmax(1) > 0).sum())
    assert scores["validation"] == {"foreground": found, "share": found / (2 * 16 * 16)}


def test_the_sums_of_half_an_epoch_survive_a_stop(tmp_path: Path) -> None:
    settings = {"epochs": 2, "iterations": 4, "loss": "eager"}
    whole = train_fold(make_task(tmp_path / "whole", **settings))
    task = make_task(tmp_path / "broken", **settings)
    for step in (3, 3):
        train_fold(task, stop=stop_after(step))
        counts = load_training_state(task.files.resume)["counts"]
        assert counts["voxels"][0] > 0
    assert counts["voxels"] == [2 * 2 * 16 * 16]  # two steps of the second epoch
    assert 0 < counts["foreground"][0] < counts["voxels"][0]
    assert timeless(train_fold(task).logs) == timeless(whole.logs)


def turn(scores: list[float], patience: int) -> int:
    """The epoch after which a training with these scores comes to its end early; 0: none."""
    mean = best = scores[0]
    waited = 0
    for number, score in enumerate(scores[1:], start=2):
        mean = 0.9 * mean + 0.1 * score
        waited = 0 if mean > best else waited + 1
        best = max(best, mean)
        if waited == patience:
            return number
    return 0


def test_its_score_decides_on_patience(tmp_path: Path) -> None:
    settings = {"epochs": 40, "iterations": 4, "patience": 3, "schedule": "short"}
    ends = {}
    for loss in ("eager", "dice-ce"):
        train_fold(make_task(tmp_path / loss, loss=loss, **settings))
        logs = written(tmp_path / loss)
        dice = [sum(d or 0.0 for d in log["validation_dice"]) / 2 for log in logs]
        share = [log["scores"]["validation"]["share"] for log in logs if "scores" in log]
        ends[loss] = turn(share or dice, 3)
        # Five epochs more, on which the rate falls.
        assert len(logs) == (ends[loss] + 5 if ends[loss] else 40)
    assert 0 < ends["eager"] < 30
    assert ends["eager"] != ends["dice-ce"]


def test_without_held_out_cases_the_training_loss_is_watched(tmp_path: Path) -> None:
    settings = {"epochs": 2, "iterations": 2, "loss": "eager", "patience": 1}
    task = make_task(tmp_path, held_out=0, **settings)
    log = train_fold(task).logs[-1]
    assert log.watched == -(log.train_loss or 0.0)
    assert written(task.folder)[-1]["scores"]["validation"] is None


def test_it_trains_by_the_command(tmp_path: Path) -> None:
    options = PhantomOptions(contrast="CT", shape_zyx=(12, 40, 40), spacing_mm=(8.0, 5.0, 5.0))
    name = "Dataset001_Phantom"
    source = write_phantom_dataset(tmp_path, name=name, cases=5, seed=1, options=options)
    work = tmp_path / "work"
    run("plan", source, "--preset", "tiny", "-w", work)
    given = ("--epochs", 1, "--iterations", 2, "--fold", 0, "-w", work)
    with pytest.raises(OptionError, match=r"--loss is 'eagre'.*focal-tversky, eager") as caught:
        run("train", name, "2d", "--loss", "eagre", *given)
    assert caught.value.hint == "Did you mean eager?"
    assert not (work / name / "runs/2d").exists()
    run("train", name, "2d", "--loss", "eager", *given)
    # It sees what the dataset knows of each case.
    cases = {case.name: case.facts for case in read_dataset(source).cases}
    assert {facts.modality for facts in cases.values()} == {"CT"}
    assert SEEN
    assert all(facts == cases[facts.name] for facts in SEEN)
    fold = work / name / "runs/2d/fold_0"
    (log,) = written(fold)
    assert log["scores"]["watched"] == "share"
    assert log["scores"]["train"]["foreground"] > 0
    assert (fold / "weights.safetensors").exists()
    assert (fold / "validation/scores.json").exists()
