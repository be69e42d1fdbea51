"""Keys of dataset.json that have no effect stop whatever plans or trains, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run

from autoliver.errors import DatasetError
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME, OTHER = "Dataset001_Keys", "Dataset002_Other"
SHORT = ("--fold", "0", "--epochs", "1", "--iterations", "1")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets of three small phantoms; the workspace has a trained run of the second."""
    place = tmp_path_factory.mktemp("known")
    options = PhantomOptions(contrast="CT", shape_zyx=(12, 32, 32), spacing_mm=(10.0, 6.0, 6.0))
    for name in (NAME, OTHER):
        write_phantom_dataset(place, name=name, cases=3, seed=1, options=options)
        run("plan", place / name, "--preset", "tiny", "-w", place / "workspace")
    run("train", OTHER, "2d", *SHORT, "-w", place / "workspace")
    return place


@pytest.fixture
def place(known: Path, tmp_path: Path) -> Path:
    """A copy in which the first dataset says what has no effect."""
    place = Path(shutil.copytree(known, tmp_path / "place"))
    describe(place / NAME, {"lesion_classes": {"Keys_001": {"1": "HCC"}}})
    return place


def describe(folder: Path, keys: dict[str, object]) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize(
    "words",
    [
        ("plan", NAME),
        ("plan", NAME, "--like", OTHER),
        ("plan", OTHER, "--like", NAME),
        ("preprocess", NAME),
        ("train", NAME, "2d"),
        ("train", NAME, "2d", "--like", OTHER),
        ("train", NAME, "2d", "--pretrained", OTHER),
        ("train", NAME, "2d", "--pretrained", OTHER, "--own-plan"),
    ],
    ids=" ".join,
)
def test_every_way_to_plan_or_train_refuses(
    place: Path, words: tuple[str, ...], *, planned: bool
) -> None:
    if not planned:
        shutil.rmtree(place / "workspace" / NAME)
    arguments = [str(place / word) if word in (NAME, OTHER) else word for word in words]
    if "--pretrained" in words:
        arguments[arguments.index("--pretrained") + 1] = OTHER
    before = runs(place)
    with pytest.raises(DatasetError, match="lesion_classes: Keys_001: lesion '1' is 'HCC'"):
        run(*arguments, "-w", place / "workspace")
    assert runs(place) == before


def runs(place: Path) -> list[Path]:
    return sorted((place / "workspace").glob("*/runs/*")) + sorted(
        (place / "workspace").glob("*/plan*.json")
    )


@pytest.mark.parametrize(
    "command",
    [
        lambda place: run("verify", place / NAME, "-w", place / "workspace"),
        lambda place: run(
            *("evaluate", "-p", place / NAME / "labelsTr", "-r", place / NAME / "labelsTr"),
            *("-d", place / NAME, "-o", place / "scores", "-w", place / "workspace"),
        ),
        lambda place: run(
            *("predict", "-i", place / NAME / "imagesTr", "-o", place / "out"),
            *("-w", place / "workspace"),
        ),
    ],
    ids=["verify", "evaluate", "predict"],
)
def test_what_does_not_train_works(place: Path, command: Callable[[Path], object]) -> None:
    assert command(place)


@pytest.mark.parametrize("words", [("plan",), ("preprocess",), ("train", "2d", *SHORT)], ids=str)
@pytest.mark.parametrize("planned", [True, False])
def test_a_key_that_does_less_than_it_promises_is_said_once(
    known: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    words: tuple[str, ...],
    *,
    planned,
) -> None:
    place = Path(shutil.copytree(known, tmp_path / "place"))
    if not planned:
        shutil.rmtree(place / "workspace" / OTHER)
    describe(place / OTHER, {"validation": ["Other_001"]})
    run(words[0], place / OTHER, *words[1:], "-w", place / "workspace")
    assert sum("validation: is not read" in message for message in caplog.messages) == 1
