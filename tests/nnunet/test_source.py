"""What --pretrained finds: nnU-Net's folders and checkpoints, and models of the workspace."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.errors import ModelError
from autoliver.networks.checkpoint import load_weights
from autoliver.pipeline.run.source import find_plan, find_source, safe
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.transfer.table import Transfer
from autoliver.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def test_a_folder_and_a_checkpoint_of_nnunet(write, workspace, golden_state):
    folder = write("2d", "plain_2d", folds=(2, 0), inference_allowed_mirroring_axes=(0, 1))
    best = shutil.copy(
        folder / "fold_2/checkpoint_final.pth", folder / "fold_2/checkpoint_best.pth"
    )
    for path, fold in ((folder, "0"), (folder.parent, "0"), (Path(best), "2")):
        source = find_source(workspace, str(path), wanted="2d", target="MR")
        assert source.name == "Toy"
        assert source.fold == f"Toy/{folder.name}/fold_{fold}"
        assert "nnU-Net's" in source.where
        assert source.spec.dimension == 2
        first = source.read()["encoder.0.0.conv.weight"]
        theirs = golden_state("plain_2d")["encoder.stages.0.0.convs.0.conv.weight"]
        assert np.array_equal(first, theirs)
        plan = source.plan_for("2d")
        assert plan is not None
        assert plan.channel_names == ("T1", "T2")
        assert find_plan(workspace, str(path)) == ("Toy", plan)


def test_of_several_configurations_the_wanted_one(write, workspace):
    write("2d", "plain_2d", inference_allowed_mirroring_axes=(0, 1))
    folder = write("3d_fullres", "resenc_3d")
    found = find_source(workspace, str(folder.parent), wanted="3d_fullres", target="MR")
    assert found.spec.dimension == 3
    with pytest.raises(ModelError, match="2 trained configurations could be meant"):
        find_source(workspace, str(folder.parent), wanted="3d_lowres", target="MR")
    found = find_source(workspace, str(folder), wanted="2d", target="MR")
    assert found.spec.dimension == 3  # named in full: its depth is taken away


def test_a_checkpoint_alone_and_a_foreign_one(write, workspace, tmp_path):
    folder = write("2d", "plain_2d", inference_allowed_mirroring_axes=(0, 1))
    alone = shutil.copy(folder / "fold_0/checkpoint_final.pth", tmp_path / "checkpoint_final.pth")
    with pytest.raises(ModelError, match="it is not in a folder fold_N"):
        find_source(workspace, alone, wanted="2d", target="MR")
    (folder / "plans.json").unlink()
    path = folder / "fold_0/checkpoint_final.pth"
    with pytest.raises(ModelError, match=r"plans\.json is not in"):
        find_source(workspace, str(path), wanted="2d", target="MR")


def test_nnunet_s_weights_are_made_to_fit_the_target_s_own_plan(write, tmp_path):
    """Other depth, features and channels: T2 finds the column of T2, liver the row of liver."""
    folder = write("2d", "plain_2d", inference_allowed_mirroring_axes=(0, 1))
    options = PhantomOptions(contrast="T2", shape_zyx=(8, 40, 40), spacing_mm=(10.0, 6.0, 6.0))
    data = write_phantom_dataset(tmp_path, name="Dataset005_MR", cases=2, seed=3, options=options)
    description = json.loads((data / "dataset.json").read_text())
    description["channel_names"] = {"0": "T2"}
    (data / "dataset.json").write_text(json.dumps(description))
    place = ("-w", tmp_path / "workspace")
    commands = [
        ("plan", data, "--preset", "tiny", *place),
        (
            *("train", data, "2d", "--pretrained", folder, "--own-plan", "--fold", "all"),
            *("--epochs", 1, "--iterations", 2, *place),
        ),
    ]
    for command in commands:
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, result.output
    table = Transfer.load(tmp_path / "workspace/Dataset005_MR/runs/2d@Toy/transfer.json").table
    by_name = {weight.name: weight for weight in table.weights}
    assert "channels by name" in by_name["encoder.0.0.conv.weight"].how
    assert table.labels["liver"] == "liver"
    assert {weight.action for weight in table.weights} >= {"adapted", "reset"}
    assert "come from the source: the two networks differ considerably" in result.stderr


def test_a_2d_network_of_nnunet_starts_one_of_3d(write, tmp_path):
    """Its plan is followed in plane, and its encoder, decoder and heads are inflated."""
    folder = write("2d", "plain_2d", inference_allowed_mirroring_axes=(0, 1))
    options = PhantomOptions(contrast="T2", shape_zyx=(8, 40, 40), spacing_mm=(5.0, 6.0, 6.0))
    data = write_phantom_dataset(tmp_path, name="Dataset005_MR", cases=2, seed=3, options=options)
    command = ("train", data, "3d_fullres", "--pretrained", folder, "--fold", "all")
    steps = ("--epochs", 1, "--iterations", 2, "--batch-size", 2, "-w", tmp_path / "workspace")
    result = CliRunner().invoke(app, [str(word) for word in (*command, *steps)])
    assert result.exit_code == 0, result.output
    run = tmp_path / "workspace/Dataset005_MR/runs/3d_fullres@Toy"
    transfer = Transfer.load(run / "transfer.json")
    assert transfer.share == 1.0
    flat = find_source(Workspace(tmp_path), str(folder), wanted="2d", target="MR").read()[
        "encoder.1.0.conv.weight"
    ]
    deep = load_weights(run / "start.safetensors")[0]["encoder.1.0.conv.weight"]
    assert deep.shape[2] == 3
    assert np.allclose(deep.sum(2), flat, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"), [("LiTS", "LiTS"), ("my model/x", "my-model-x"), ("..", "source")]
)
def test_names_for_files(name, expected):
    assert safe(name) == expected
