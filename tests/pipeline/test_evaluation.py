"""References that are datasets: by folder and name, and what their values mean."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run

from autoliver.datasets.cases import read_dataset
from autoliver.errors import DatasetError, OptionError
from autoliver.evaluation.results import Scores
from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.workspace import Workspace

NAME = "Dataset901_CT"
LABELS = {"background": 0, "liver": 1, "tumour": 2}
GRID = Geometry(shape_zyx=(4, 8, 8), spacing_mm=(3.0, 2.0, 2.0))


def make(folder: Path, labels: dict[str, int]) -> Path:
    """Writes a dataset of one case with the values 1 and 2."""
    array = np.zeros(GRID.shape_zyx, np.uint8)
    array[1:3, 1:4, 1:7], array[1:3, 4:7, 1:7] = 1, 2
    write_image(folder / "imagesTr/a_0000.nii.gz", array[None].astype("f4"), GRID)
    write_label(folder / "labelsTr/a.nii.gz", array, GRID)
    keys = {"channel_names": {"0": "CT"}, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**keys, "labels": labels}))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A dataset that its workspace knows."""
    make(tmp_path / "data" / NAME, LABELS)
    workspace = Workspace(tmp_path / "ws")
    dataset = read_dataset(tmp_path / "data" / NAME)
    dataset.save(workspace.folder_for(dataset).dataset)
    return tmp_path


def evaluate(
    place: Path, reference: object, *more: object, prediction: Path | None = None
) -> Scores:
    """Scores the dataset's own label maps, or one of them."""
    given = (
        "-p",
        prediction or place / "data" / NAME / "labelsTr",
        "-o",
        place / "scores",
        "-w",
        place / "ws",
    )
    run("evaluate", *given, "-r", reference, *more)
    return Scores.load(place / "scores/scores.json")


@pytest.mark.parametrize("name", [NAME, "901", "ct", "Dataset901", f"data/{NAME}", "data/901"])
def test_a_reference_may_be_a_dataset_by_any_of_its_names(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert list(evaluate(place, name).summary) == ["liver", "tumour"]


def test_a_reference_may_be_a_dataset_without_a_description(place: Path) -> None:
    folder = place / "data" / NAME
    plain = folder.rename(place / "data" / "Plain")
    (plain / "dataset.json").unlink()
    for part in ("images", "labels"):
        (plain / f"{part}Tr").rename(plain / part)
    given = ("-p", plain / "labels", "-o", place / "scores", "-w", place / "ws")
    run("evaluate", *given, "-r", plain)
    assert len(Scores.load(place / "scores/scores.json").summary) == 2


@pytest.mark.parametrize(
    ("name", "problem", "hint"),
    [
        ("Dataset901_C", "no planned dataset", f"Did you mean {NAME}"),
        ("truth", "no planned dataset", NAME),
        ("truth.nii.gz", "there is no such folder", "Check the path"),
    ],
)
def test_a_reference_that_is_nothing_is_refused_with_what_is_there(
    name: str, problem: str, hint: str, place: Path
) -> None:
    with pytest.raises(DatasetError, match=problem) as caught:
        evaluate(place, name)
    assert hint in caught.value.hint


@pytest.mark.parametrize("option", ["-r", "-d"])
def test_a_folder_of_the_workspace_is_told_from_the_dataset(option: str, place: Path) -> None:
    kept = place / "ws" / NAME
    given = (kept,) if option == "-r" else (place / "data" / NAME / "labelsTr", "-d", kept)
    with pytest.raises(DatasetError, match="a folder of a workspace") as caught:
        evaluate(place, *given)
    assert str(place / "data" / NAME) in caught.value.hint


@pytest.mark.parametrize("reference", [f"data/{NAME}", f"data/{NAME}/labelsTr", "{}/a.nii.gz"])
@pytest.mark.parametrize(
    ("labels", "problem", "warning"),
    [
        ({"background": 0, "Liver": 1, "TUMOUR": 2}, "", ""),
        ({"background": 0, "liver": 1, "lesion": 2}, "", "tumour is scored as lesion"),
        (
            {"background": 0, "Anterior": 1, "Posterior": 2},
            "",
            "liver is scored as Anterior, tumour is scored as Posterior",
        ),
        ({"background": 0, "tumour": 1}, f"tumour is 1, but in {NAME} tumour is 2", ""),
    ],
)
def test_what_values_mean_is_compared_with_the_dataset_of_the_reference(
    reference: str, labels: dict[str, int], problem: str, warning: str, place: Path
) -> None:
    other = make(place / "data" / "Dataset902_Other", labels)
    given = place / reference.format(f"data/{NAME}/labelsTr")
    prediction = given if given.is_file() else None
    if problem:
        with pytest.raises(OptionError, match=problem) as caught:
            evaluate(place, given, "-d", other, prediction=prediction)
        assert "-d" in caught.value.hint
        return
    told = evaluate(place, given, "-d", other, prediction=prediction).warnings
    assert [each for each in told if "scored as" in each] == (
        [f"-d {other}: of {NAME}, {warning}."] if warning else []
    )


def test_labels_beside_a_damaged_description_are_scored(place: Path) -> None:
    other = make(place / "data" / "Dataset902_Other", LABELS)
    (place / "data" / NAME / "dataset.json").write_text("{")
    assert list(evaluate(place, place / "data" / NAME / "labelsTr", "-d", other).summary)
