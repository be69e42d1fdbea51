"""From a trained 2D network to 3D and back, through the commands a user types."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import run, told
from torch import Tensor

from autoliver.errors import ModelError, OptionError
from autoliver.models.files import FoldModel
from autoliver.networks.checkpoint import load_weights
from autoliver.planning.plan import Plan
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.options import TrainingOptions
from autoliver.transfer.table import Transfer

NAME = "Dataset001_PhantomCT"
SHORT = ("--epochs", 1, "--iterations", 2)
COMMAND = ("train", NAME, "3d_fullres", "--fold", 0, "--pretrained", "PhantomCT/2d")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace where 2d is trained on five CT phantoms."""
    place = tmp_path_factory.mktemp("inflation")
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(place / "data", name=NAME, cases=5, seed=1, options=options)
    run("plan", place / "data" / NAME, "--preset", "tiny", "-w", place / "w")
    run("train", NAME, "2d", "--fold", "all", *SHORT, "-w", place / "w")
    return place / "w"


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "w"))


def weights_of(place: Path) -> dict[str, Tensor]:
    return load_weights(place)[0]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("way", ["mean", "center", "repeat", None])
def test_a_3d_training_starts_from_a_2d_network(own: Path, way: str | None) -> None:
    given = ("--inflate", way) if way else ()
    text = told(*COMMAND, *given, *SHORT, "-w", own)
    assert "Starts from PhantomCT/2d/fold_all: a run of this workspace." in text
    assert f"kernel 3x3 -> 3x3x3 by {way or 'mean'}" in text
    folder = own / NAME / "runs/3d_fullres@PhantomCT"
    transfer = Transfer.load(folder / "transfer.json")
    assert transfer.inflate == (way or "mean")  # the slices are 8 mm thick, the pixels 6 mm
    assert TrainingOptions.load(folder / "options.json").inflate == way
    assert transfer.table.labels["liver"] == "liver"
    assert transfer.share == 1.0  # the plan follows the 2D network
    source = weights_of(own / NAME / "runs/2d/fold_all/weights.safetensors")
    start = weights_of(folder / "start.safetensors")
    flat, deep = (each["encoder.0.1.conv.weight"] for each in (source, start))
    planes = {"center": [0 * flat, flat, 0 * flat], "repeat": [flat] * 3}
    expected = np.stack(planes.get(way or "mean", [flat / 3] * 3), 2)
    assert np.allclose(deep, expected)
    assert np.array_equal(start["heads.0.weight"][:, :, 0], source["heads.0.weight"])
    model = FoldModel.load(folder / "fold_0/model.json")
    assert model.decisions.dimension == 3
    assert model.ancestors == transfer.ancestors
    assert not equal(start, weights_of(folder / "fold_0/weights.safetensors"))


def test_the_plan_follows_the_2d_network_or_stays_the_dataset_s_own(own: Path) -> None:
    run("plan", NAME, "--like", f"{NAME}/2d", "-w", own)
    ours = Plan.load(own / NAME / "plan.json").configurations
    like = Plan.load(own / NAME / "plan@PhantomCT.json").configurations
    flat, deep = ours["2d"], like["3d_fullres"]
    assert like["2d"] == flat.replace(reasons=like["2d"].reasons)
    assert deep.spacing_mm == (ours["3d_fullres"].spacing_mm[0], *flat.spacing_mm)
    levels = len(deep.network.features)
    assert deep.network.features == flat.network.features[:levels]
    for part in ("strides", "kernels"):
        plane = tuple(values[1:] for values in getattr(deep.network, part))
        assert plane == getattr(flat.network, part)[:levels]
    assert "as planned before" in told(*COMMAND, *SHORT, "-w", own)
    run(*COMMAND, *SHORT, "--own-plan", "--tag", "own", "-w", own)
    model = FoldModel.load(own / NAME / "runs/3d_fullres@PhantomCT+own/fold_0/model.json")
    assert model.decisions.network == ours["3d_fullres"].network


def test_the_way_binds_the_run(own: Path) -> None:
    run(*COMMAND, *SHORT, "--inflate", "center", "-w", own)
    with pytest.raises(OptionError, match="started with --inflate center, not --inflate mean"):
        run(*COMMAND, *SHORT, "--inflate", "mean", "-w", own)
    folder = own / NAME / "runs/3d_fullres@PhantomCT"
    kept = weights_of(folder / "start.safetensors")
    source = own / NAME / "runs/2d"
    aside = source.rename(own / "aside")
    run(*COMMAND, *SHORT, "--inflate", "center", "-w", own)  # what it began with is kept
    assert equal(weights_of(folder / "start.safetensors"), kept)
    aside.rename(source)
    run(*COMMAND, *SHORT, "--fresh", "--inflate", "mean", "-w", own)
    assert not equal(weights_of(folder / "start.safetensors"), kept)


def test_a_2d_network_is_taken_for_3d_only_if_it_is_named(own: Path) -> None:
    command = ("train", NAME, "3d_fullres", "--fold", 0, *SHORT, "-w", own, "--pretrained")
    with pytest.raises(ModelError, match="it has no trained 3d_fullres, only") as caught:
        run(*command, "PhantomCT")
    assert f"Inflate a 2D network: --pretrained {NAME}/2d" in caught.value.hint
    run("train", NAME, "3d_fullres", "--fold", "all", *SHORT, "-w", own)
    assert "Starts from PhantomCT/3d_fullres/fold_all" in told(*command, "PhantomCT", "--tag", "a")


def test_3d_to_2d_and_what_cannot_be(own: Path) -> None:
    run("train", NAME, "3d_fullres", "--fold", "all", *SHORT, "-w", own)
    command = ("train", NAME, "2d", "--fold", 0, *SHORT, "-w", own)
    command += ("--pretrained", "PhantomCT/3d_fullres")
    with pytest.raises(OptionError, match="--inflate repeat leads from 2D to 3D") as caught:
        run(*command, "--inflate", "repeat")
    assert "center" in caught.value.hint
    with pytest.raises(OptionError, match="both PhantomCT/2d/fold_all and 2d are 2D"):
        run(*command[:-1], "PhantomCT/2d", "--inflate", "mean")
    assert "kernel 3x3x3 -> 3x3 by sum" in told(*command)
    assert "kernel 3x3x3 -> 3x3 by center" in told(*command, "--inflate", "center", "--tag", "c")


def test_the_twin_from_scratch_and_a_model_without_a_step(own: Path) -> None:
    result = run(*COMMAND, *SHORT, "--inflate", "center", "--compare-scratch", "-w", own)
    twin = Path(result["scratch"][0]["folder"]).parent
    assert TrainingOptions.load(twin / "options.json").inflate is None
    assert not (twin / "transfer.json").exists()
    run(*COMMAND, "--epochs", 0, "--tag", "none", "-w", own)
    folder = own / NAME / "runs/3d_fullres@PhantomCT+none"
    model = FoldModel.load(folder / "fold_0/model.json")
    source = FoldModel.load(own / NAME / "runs/2d/fold_all/model.json")
    assert model.mirror_axes == tuple(axis + 1 for axis in source.mirror_axes)
    assert equal(
        weights_of(folder / "fold_0/weights.safetensors"), weights_of(folder / "start.safetensors")
    )


def test_a_training_that_was_killed_ends_with_the_same_bits(own: Path, tmp_path: Path) -> None:
    steps = ("--epochs", 8, "--iterations", 2, "--deterministic", "--keep-source", 0.5, "-w")
    broken = Path(shutil.copytree(own, tmp_path / "broken"))
    # All in processes of their own, with the same number of threads, on which bits depend.
    whole, words = (
        [sys.executable, "-m", "autoliver", *map(str, (*COMMAND, *steps, place))]
        for place in (own, broken)
    )
    subprocess.run(whole, check=True, capture_output=True)
    fold = NAME + "/runs/3d_fullres@PhantomCT/fold_0"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not (broken / fold / "resume.pt").exists():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / fold / "model.json").exists()
    subprocess.run(words, check=True, capture_output=True)
    assert equal(*(weights_of(w / fold / "weights.safetensors") for w in (own, broken)))
