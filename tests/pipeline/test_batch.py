"""Batches that memory cannot hold are refused before anything is made."""

import math
import re
import shlex
from pathlib import Path

import pytest
from commands import run
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.errors import OptionError
from autoliver.machine import Machine
from autoliver.parallel import Limits
from autoliver.pipeline.run.batch import least_patch_gb
from autoliver.planning.plan import Plan
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset001_Phantom"
SHORT = ("--fold", "all", "--epochs", 1, "--iterations", 1)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = PhantomOptions(contrast="CT", shape_zyx=(8, 40, 40), spacing_mm=(8.0, 5.0, 5.0))
    data = tmp_path_factory.mktemp("data")
    source = write_phantom_dataset(data, name=NAME, cases=5, seed=1, options=options)
    workspace = tmp_path_factory.mktemp("workspace")
    run("plan", source, "--preset", "tiny", "-w", workspace)
    return workspace


@pytest.mark.parametrize(
    ("options", "words", "fits"),
    [
        (("--batch-size", 2**31 - 1), "GB are free", True),
        (("--batch-size", 999_999, "--memory-gb", 1), "--memory-gb allows 1.0 GB", True),
        (("--batch-size", 9_999, "--patch", "400,400", "--memory-gb", 2), "400x400 voxels", True),
        (("--patch", "40000,40000", "--memory-gb", 2), "--patch 40000,40000", False),
        (("--patch", "40000,40000"), "No batch of such patches fits", False),
        (
            ("--fold", "0,1,2", "--jobs", 2, "--batch-size", 99_999, "--memory-gb", 1),
            "in each of 2 folds at a time",
            True,
        ),
    ],
)
def test_a_batch_that_cannot_fit_is_refused(
    options: tuple[object, ...], words: str, fits: bool, workspace: Path
) -> None:
    request = ("train", NAME, "2d", *SHORT, "--device", "cpu", "--tag", "big", *options)
    with pytest.raises(OptionError) as caught:
        run(*request, "-w", workspace)
    text = f"{caught.value.problem} {caught.value.hint}"
    assert words in text
    assert not (workspace / NAME / "runs/2d+big/options.json").exists()
    found = re.search(r"autoliver (train .*)", caught.value.hint)
    assert (found is not None) == fits
    if found is not None:  # the named batch passes the check, the next command is complete
        again = shlex.split(found[1])
        assert int(again[again.index("--batch-size") + 1]) >= 1
        for option, value in zip(options[::2], options[1::2], strict=True):
            given = again[again.index(str(option)) + 1]
            assert given == str(value) or option == "--batch-size"


def test_the_batch_that_is_named_trains(workspace: Path) -> None:
    options = ("--batch-size", 10**6, "--memory-gb", 0.2, "--device", "cpu", "--augment", "none")
    with pytest.raises(OptionError) as caught:
        run("train", NAME, "2d", *SHORT, *options, "-w", workspace)
    again = shlex.split(caught.value.hint.partition("autoliver ")[2])
    # phantoms of 40 voxels, so that this takes no second
    assert CliRunner().invoke(app, again).exit_code == 0


def test_a_finished_training_is_not_refused(workspace: Path) -> None:
    made = Plan.load(workspace / NAME / "plan.json").configurations["2d"]
    size = math.ceil(0.25 / least_patch_gb(made))
    command = ("train", NAME, "2d", *SHORT, "--tag", "done", "--device", "cpu", "-w", workspace)
    run(*command, "--batch-size", size, "--augment", "none")
    assert run(*command, "--memory-gb", 0.1)["folds"]
    with pytest.raises(OptionError, match="--batch-size") as caught:
        run(*command, "--fold", "all,0", "--memory-gb", 0.1)
    assert "Start over with a batch that fits" in caught.value.hint
    assert "--fresh" in caught.value.hint


def test_the_bound_grows_with_patch_channels_and_precision(workspace: Path) -> None:
    made = Plan.load(workspace / NAME / "plan.json").configurations["2d"]
    patch = least_patch_gb(made)
    wide = made.replace(patch_shape=tuple(2 * n for n in made.patch_shape))
    assert least_patch_gb(wide) == pytest.approx(4 * patch)
    assert 0.5 * patch < least_patch_gb(made, value_bytes=2) < patch


@pytest.mark.parametrize(
    ("workers", "memory_gb", "started"),
    [(2, 0.1, 2), (8, 0.1, 8), (2**31 - 1, 0.1, 8), (2**31 - 1, 2.0, 20), (12, 2.0, 12)],
)
def test_no_more_workers_than_memory_holds(workers: int, memory_gb: float, started: int) -> None:
    assert Machine(limits=Limits(workers=workers, memory_gb=memory_gb)).loaders == started
