"""Held-out cases that are too large to be predicted: said before a training, refused after it."""

import shlex
from pathlib import Path

import pytest
from commands import run, told

from autoliver import needs
from autoliver.errors import OptionError
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset001_Phantom"
TRAIN = ("train", NAME, "2d", "--fold", 0, "--epochs", 1, "--iterations", 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a dataset that is planned."""
    place = tmp_path_factory.mktemp("place")
    options = PhantomOptions(contrast="CT", shape_zyx=(12, 32, 32), spacing_mm=(6.0, 5.0, 5.0))
    data = write_phantom_dataset(place / "data", name=NAME, cases=5, seed=1, options=options)
    run("plan", data, "--preset", "tiny", "-w", place / "w")
    return place / "w"


def test_a_validation_that_does_not_fit_leaves_the_model(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As if a prediction took 9.2 GB, though patches and preprocessing take what they do.
    image_gb = 12 * 32 * 32 * 4 / 2**30
    monkeypatch.setattr(needs, "_LABEL_MAP", 9.2 / image_gb)
    with pytest.raises(OptionError) as caught:
        run(*TRAIN, "-w", place, "--memory-gb", 8)
    problem, (_, again) = caught.value.problem, caught.value.hint.splitlines()
    assert problem.startswith("Fold 0 is trained and kept, but not validated. ")
    assert ": to validate it needs about 9.2 GB, --memory-gb allows 8.0 GB." in problem
    assert [r.message for r in caplog.records if "but not validated afterwards" in r.message]
    fold = place / NAME / "runs/2d/fold_0"
    weights = (fold / "weights.safetensors").stat().st_mtime_ns
    assert not list((fold / "validation").glob("*.nii.gz"))
    assert again.endswith("--memory-gb 10")
    words = shlex.split(again)
    assert words[0] == "autoliver"
    (result,) = run(*words[1:])["folds"]  # type: ignore[misc]
    assert result["dice"] is not None
    assert (fold / "weights.safetensors").stat().st_mtime_ns == weights
    # What is predicted is not predicted again, so that it takes nothing more.
    (fold / "validation/scores.json").unlink()
    assert "not validated" not in told(*TRAIN, "-w", place, "--memory-gb", 8)
