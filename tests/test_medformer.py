"""MedFormer through all commands, and what it refuses, on phantoms at the smallest size."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from safetensors.numpy import load_file
from small_trainings import PATCH, make_task, stop_after, timeless

from autoliver.errors import ModelError, OptionError
from autoliver.io.files import read_label
from autoliver.networks.spec import MedFormerSpec
from autoliver.planning.plan import Plan, PlanOptions
from autoliver.planning.presets import preset_row
from autoliver.planning.topology import pool_topology
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.fold import FoldTask
from autoliver.training.loop import train_fold

CT, MR = "Dataset001_PhantomCT", "Dataset002_PhantomMR"
STEPS = ("--epochs", 2, "--iterations", 2, "--batch-size", 2, "--deterministic")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, a plan of MedFormer for the first, and a trained fold of it."""
    folder = tmp_path_factory.mktemp("medformer")
    ct = PhantomOptions(contrast="CT", shape_zyx=(10, 32, 32), spacing_mm=(12.0, 7.0, 7.0))
    mr = PhantomOptions(contrast="T2", shape_zyx=(10, 32, 32), spacing_mm=(12.0, 7.0, 7.0))
    write_phantom_dataset(folder / "data", name=CT, cases=5, seed=1, options=ct)
    write_phantom_dataset(folder / "data", name=MR, cases=2, seed=2, options=mr, test_cases=1)
    # A label that the source has not, so that the heads differ.
    description = folder / "data" / MR / "dataset.json"
    description.write_text(description.read_text().replace('"spleen"', '"milt"'))
    workspace = folder / "workspace"
    run("plan", folder / "data" / CT, "--preset", "tiny", "--arch", "medformer", "-w", workspace)
    run("train", CT, "2d", "--fold", 0, *STEPS, "-w", workspace)
    return folder


def fold(place: Path, name: str, run_name: str, number: int | str = 0) -> Path:
    return place / "workspace" / name / "runs" / run_name / f"fold_{number}"


def test_the_plan_says_its_network_and_keeps_it(place: Path) -> None:
    path = place / "workspace" / CT / "plan.json"
    plan = Plan.load(path)
    assert (plan.arch, plan.preset) == ("medformer", "tiny")
    assert plan.asked is not None
    assert plan.asked.arch == "medformer"
    for name, axes in (("2d", 2), ("3d_fullres", 3)):
        network = plan.configurations[name].network  # type: ignore[index]
        assert isinstance(network, MedFormerSpec)
        assert network.dimension == axes
        assert network.features == (8, 8, 16, 32, 40)
    assert "8 tokens" in plan.configurations["2d"].reasons["topology"]
    run("plan", CT, "-w", place / "workspace")
    assert Plan.load(path).configurations == plan.configurations


def test_it_learns_in_three_dimensions(place: Path) -> None:
    steps = ("--epochs", 1, "--iterations", 2, "--batch-size", 2)
    run("train", CT, "3d_fullres", "--fold", 0, *steps, "-w", place / "workspace")
    made = fold(place, CT, "3d_fullres")
    assert (made / "validation/scores.json").is_file()
    kernel = load_file(made / "weights.safetensors")["encoder.0.enter.weight"]
    assert kernel.shape[:2] == (8, 1)


def test_a_training_that_was_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    def task(folder: Path) -> FoldTask:
        folder.mkdir()
        options = {"epochs": 2, "iterations": 2, "schedule": "nnunet", "ema": 0.999}
        small = make_task(folder, **options)
        topology = pool_topology((1.0, 1.0), PATCH)
        network = preset_row("tiny", "medformer").network(
            topology, in_channels=1, out_channels=small.labels.out_channels
        )
        return replace(small, configuration=small.configuration.replace(network=network))

    whole = train_fold(task(tmp_path / "whole"))
    broken = task(tmp_path / "broken")
    for _ in range(4):
        again = train_fold(broken, stop=stop_after(1))
    assert again.finished
    assert timeless(again.logs) == timeless(whole.logs)
    for name, value in whole.weights.items():
        assert torch.equal(again.weights[name], value), name


def test_parts_stay_frozen_and_heads_go_to_other_labels(place: Path) -> None:
    source = ("--pretrained", "PhantomCT/2d/fold_0", "--freeze", "encoder,fusion")
    words = ("train", place / "data" / MR, "2d", "--fold", "all", *source, *STEPS)
    run(*words, "-w", place / "workspace")
    run_folder = place / "workspace" / MR / "runs/2d@PhantomCT"
    before = load_file(fold(place, CT, "2d") / "weights.safetensors")
    tuned = load_file(run_folder / "fold_all/weights.safetensors")
    for name, value in tuned.items():
        frozen = name.startswith(("encoder.", "fusion."))
        same = before[name].shape == value.shape and np.array_equal(before[name], value)
        assert same == frozen, name
    heads = json.loads((run_folder / "transfer.json").read_text())["table"]["labels"]
    assert heads["liver"] == "liver"
    assert heads["milt"] == ""
    table = json.loads((run_folder / "transfer.json").read_text())["table"]["weights"]
    assert {w["action"] for w in table if not w["name"].startswith("heads.")} == {"loaded"}


def test_it_predicts_the_same_from_its_file(place: Path) -> None:
    images = ("-i", place / "data" / MR / "imagesTs", "--exact", "--modality", "MR")
    model = f"{CT}/2d"
    run("predict", *images, "-o", place / "by_name", "-m", model, "-w", place / "workspace")
    file = place / "medformer.autoliver"
    run("export", model, file, "-w", place / "workspace")
    run("import", file, "--name", "OurMedFormer", "-w", place / "other")
    run("predict", *images, "-o", place / "by_file", "-m", "OurMedFormer", "-w", place / "other")
    (one,) = (place / "by_name").glob("*.nii.gz")
    labels = [read_label(place / name / one.name).array for name in ("by_name", "by_file")]
    assert np.array_equal(*labels)


def test_nnunet_cannot_have_it(place: Path) -> None:
    target = place / "nnunet"
    words = ("export", f"{CT}/2d", target, "--format", "nnunet")
    with pytest.raises(ModelError, match="nnU-Net has no network of kind 'medformer'"):
        run(*words, "-w", place / "workspace")
    assert not target.exists()


def test_weights_of_a_unet_are_refused(place: Path) -> None:
    run("plan", place / "data" / MR, "--preset", "tiny", "-w", place / "unet")
    source = ("--pretrained", fold(place, CT, "2d"), "--own-plan")
    with pytest.raises(ModelError, match="source's network is medformer 8-8-16-32-40"):
        run("train", MR, "2d", "--fold", "all", *source, *STEPS, "-w", place / "unet")


@pytest.mark.parametrize("preset", ["M", "L", "XL"])
def test_presets_that_it_has_not_are_refused(preset: str) -> None:
    with pytest.raises(OptionError, match=f"--preset {preset} is not one of --arch medformer"):
        PlanOptions(preset=preset, arch="medformer")  # type: ignore[arg-type]
