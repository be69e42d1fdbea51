"""The temperature of lesions' classes: learnt by `select`, exported, and applied by `predict`."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.datasets.cases import Labels
from autoliver.evaluation.results import Scores
from autoliver.inference.lesions.calibration import calibrated
from autoliver.inference.lesions.measure import CaseLesions, LesionLabels, measure
from autoliver.inference.lesions.table import LesionTable
from autoliver.io.files import read_label, write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.models.files import FoldFolder, FoldModel, ModelFiles, save_fold
from autoliver.models.selection import Chosen, Selection
from autoliver.networks.checkpoint import load_network

NAME = "Dataset912_Les"
GRID = Geometry(shape_zyx=(6, 32, 32), spacing_mm=(5.0, 2.0, 2.0))
LABELS = {"background": 0, "liver": 1, "cyst": 2, "metastasis": 3}
NAMES = ("cyst", "metastasis")
CASES = tuple(f"c{n}" for n in range(6))
# The classes are right in 3 of 4 lesions, and said to be 97 % certain.
SURE, WRONG_EVERY = 0.97, 4


def lesions_of(case: str) -> Iterator[tuple[int, tuple[slice, slice, slice], int, int]]:
    """Number, place, true and predicted class of 9 lesions, no two of which have one size."""
    for n in range(9):
        y, x = divmod(n, 3)
        place = (slice(1, 3), slice(2 + 9 * y, 7 + 9 * y), slice(2 + 9 * x, 4 + 9 * x + n % 5))
        true = 2 + (n + int(case[1:])) % 2
        wrong = (n + 3 * int(case[1:])) % WRONG_EVERY == 0
        yield n, place, true, 5 - true if wrong else true


def label_map(case: str, *, predicted: bool) -> np.ndarray:
    array = np.ones(GRID.shape_zyx, np.uint8)
    for _, place, true, ours in lesions_of(case):
        array[place] = ours if predicted else true
    return array


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and folds 0 and 1 of a run that tells two classes of lesions apart."""
    root = tmp_path_factory.mktemp("temperature")
    rng = np.random.default_rng(0)
    for case in CASES:
        truth = label_map(case, predicted=False)
        image = (100 * truth + rng.normal(0, 20, truth.shape)).astype(np.float32)
        write_image(root / NAME / f"imagesTr/{case}_0000.nii.gz", image[None], GRID)
        write_label(root / NAME / f"labelsTr/{case}.nii.gz", truth, GRID)
    stated = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": len(CASES)}
    text = json.dumps({**stated, "file_ending": ".nii.gz"})
    (root / NAME / "dataset.json").write_text(text)
    run("plan", root / NAME, "--preset", "tiny", "-w", root / "w")
    short = ("--epochs", 1, "--iterations", 1, "--task", "joint", "-w", root / "w")
    # With this seed both networks together find lesions.
    for fold in (0, 1):
        run("train", NAME, "2d", "--fold", fold, "--seed", 5, *short)
    return root


def folds(root: Path) -> list[FoldFolder]:
    return [FoldFolder(path) for path in sorted((root / "w" / NAME).glob("runs/*/fold_*"))]


def biased(root: Path) -> Path:
    """Lets all folds predict lesions."""
    for fold in folds(root):
        network = load_network(fold.weights, device=torch.device("cpu"))
        bias = torch.tensor([0.0, 1.0, 3.0, 2.5])
        weights = {
            name: bias.clone() if name.endswith("bias") and tensor.shape == (4,) else tensor
            for name, tensor in network.state_dict().items()
        }
        save_fold(fold.path, weights, FoldModel.load(fold.model))
    return root


def overconfident(folders: Iterable[Path], *, only: int = len(CASES)) -> None:
    """Replaces what was predicted on held-out cases; further cases have no lesions."""
    left = only
    for folder in folders:
        scores = Scores.load(folder / "scores.json")
        scores.replace(cases=(), summary={}, mean={}).save(folder / "scores.json")
        if folder.name == "validation":
            (folder / "scores.json").unlink()
        table = LesionTable.load(folder / "lesions.json")
        values = Labels(values={name: (value,) for name, value in LABELS.items()})
        which = LesionLabels(labels=values, names=table.classes, voted=True)
        found = {}
        for case in table.cases:
            predicted = label_map(case, predicted=True)
            predicted = predicted if left > 0 else np.minimum(predicted, 1)
            left -= 1
            write_label(folder / f"{case}.nii.gz", predicted, GRID)
            measured = measure(predicted, GRID, which)
            chances = [
                {name: SURE if name == each.label else 1 - SURE for name in NAMES}
                for each in measured
            ]
            found[case] = CaseLesions(
                lesions=tuple(
                    each.replace(probabilities=own)
                    for each, own in zip(measured, chances, strict=True)
                )
            )
        table.replace(cases=found).save(folder / "lesions.json")


def validation(root: Path) -> list[Path]:
    return [fold.validation for fold in folds(root)]


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "own"))


def test_a_fold_keeps_the_lesions_of_its_held_out_cases(trained: Path) -> None:
    kept = []
    for fold in folds(trained):
        table = LesionTable.load(fold.lesions)
        assert (table.classes, table.voted, table.temperature) == (NAMES, True, 1.0)
        assert {f"{case}.nii.gz" for case in table.cases} == {
            path.name for path in fold.validation.glob("*.nii.gz")
        }
        kept += list(table.cases)
    assert len(kept) == len(set(kept)) >= 3


def test_the_temperature_of_overconfident_probabilities_is_learnt(own: Path) -> None:
    overconfident(validation(own))
    found = run("select", NAME, "-w", own / "w")
    cases = [case for fold in folds(own) for case in LesionTable.load(fold.lesions).cases]
    right = np.mean([true == ours for case in cases for _, _, true, ours in lesions_of(case)])
    learnt = found["temperature"]
    assert learnt["lesions"] == 9 * len(cases)
    # With one probability for all lesions, the likeliest temperature makes it the share that is
    # right.
    by_hand = np.log(SURE / (1 - SURE)) / np.log(right / (1 - right))
    assert learnt["value"] == pytest.approx(by_hand, rel=1e-3)
    assert learnt["error_before"] == pytest.approx(SURE - right)
    assert learnt["error_after"] == pytest.approx(0, abs=1e-3)
    said = (
        f"Lesion classes: temperature {by_hand:.2f} from {9 * len(cases)} out-of-fold lesions, "
        f"calibration error {SURE - right:.2f} -> 0.00."
    )
    assert found["why"][-1] == said
    assert found["candidates"][0]["lesion_accuracy"] == pytest.approx(right)
    assert Path(found["reliability"]).read_bytes()[:4] == b"\x89PNG"
    shown = CliRunner().invoke(app, ["select", NAME, "-w", str(own / "w")]).stdout
    assert said in " ".join(shown.split())
    assert "reliability.png" in shown
    assert "lesion accuracy" in shown
    assert f"{right:.4f}" in shown


def test_too_few_lesions_teach_no_temperature_and_that_is_said(own: Path) -> None:
    overconfident(validation(own), only=1)
    found = run("select", NAME, "-w", own / "w")
    learnt = found["temperature"]
    assert (learnt["value"], learnt["lesions"]) == (1.0, 9)
    assert found["why"][-1] == "Lesion classes: temperature 1, since it takes 20 lesions, found 9."
    overconfident(validation(own), only=0)
    found = run("select", NAME, "-w", own / "w")
    assert found["candidates"][0]["lesion_accuracy"] == 0
    assert found["temperature"]["lesions"] == 0
    assert found["reliability"] is None
    assert not (own / "w" / NAME / "reliability.png").exists()


def test_held_out_cases_of_earlier_versions_are_predicted_again(own: Path) -> None:
    fold = folds(own)[0]
    expected = LesionTable.load(fold.lesions).cases
    fold.lesions.unlink()
    run("select", NAME, "-w", own / "w")
    assert LesionTable.load(fold.lesions).cases == expected
    fold.lesions.write_text("{")
    run("select", NAME, "-w", own / "w")
    assert LesionTable.load(fold.lesions).cases == expected


def test_predict_applies_the_temperature_to_probabilities_alone(own: Path) -> None:
    run("select", NAME, "-w", biased(own) / "w")
    overconfident(validation(own))
    run("select", NAME, "-w", own / "w")
    temperature = Selection.load(own / "w" / NAME / "model.json").temperature
    assert temperature is not None
    assert temperature.value > 1.5
    images, (run_name,) = own / NAME / "imagesTr", {fold.path.parent.name for fold in folds(own)}
    run("export", NAME, own / "model.autoliver", "-w", own / "w")
    run("import", own / "model.autoliver", "--name", "Other", "-w", own / "v")
    for model, workspace, out in (
        (f"{NAME}/{run_name}", "w", "plain"),
        (NAME, "w", "out"),
        ("Other", "v", "imported"),
    ):
        given = ("-i", images, "-o", own / out, "-m", model, "--no-mirror")
        run("predict", *given, "-w", own / workspace)
    tables = {n: LesionTable.load(own / n / "lesions.json") for n in ("plain", "out", "imported")}
    assert {n: table.temperature for n, table in tables.items()} == {
        "plain": 1.0,
        "out": temperature.value,
        "imported": temperature.value,
    }
    assert tables["out"].cases == tables["imported"].cases
    found = 0
    for case in CASES:
        maps = [read_label(own / n / f"{case}.nii.gz").array for n in ("plain", "out")]
        np.testing.assert_array_equal(*maps)
        for plain, hot in zip(
            tables["plain"].cases[case].lesions, tables["out"].cases[case].lesions, strict=True
        ):
            assert plain.label == hot.label
            before, after = ([[each.probabilities[n] for n in NAMES]] for each in (plain, hot))
            expected = calibrated(np.array(before), temperature.value)
            np.testing.assert_allclose(after, expected, atol=2e-5)
            found += 1
    assert found


def test_a_pair_names_lesions_as_predict_does_and_learns_a_temperature(own: Path) -> None:
    short = ("--epochs", 1, "--iterations", 1, "--task", "joint", "-w", own / "w")
    run("train", NAME, "2d", "--tag", "b", "--fold", 0, "--seed", 1, *short)
    found = run("select", NAME, "-w", biased(own) / "w")
    pair = own / "w" / NAME / "selection" / ",".join(found["candidates"][2]["runs"]) / "fold_0"
    table = LesionTable.load(pair / "lesions.json")
    models = [part for name in found["candidates"][2]["runs"] for part in ("-m", f"{NAME}/{name}")]
    for case in table.cases:
        image = own / NAME / f"imagesTr/{case}_0000.nii.gz"
        run("predict", "-i", image, "-o", own / "out", *models, "--folds", 0, "-w", own / "w")
        maps = [read_label(folder / f"{case}.nii.gz").array for folder in (own / "out", pair)]
        np.testing.assert_array_equal(*maps)
    assert LesionTable.load(own / "out/lesions.json").cases == table.cases
    assert any(each.lesions for each in table.cases.values())
    # A pair that is better than both of its runs.
    overconfident([pair])
    found = run("select", NAME, "-w", own / "w")
    assert len(found["members"]) == 2
    assert found["temperature"]["lesions"] == 9 * len(table.cases)


def test_files_of_earlier_versions_have_no_temperature(tmp_path: Path) -> None:
    selection = Selection(dataset="Toy", members=(Chosen(run="2d", folds=("0",)),))
    table = LesionTable(classes=NAMES, voted=True, temperature=1.5)
    for what in (selection, table):
        raw = json.loads(what.to_bytes())
        del raw["temperature"]
        (tmp_path / f"{what.KIND}.json").write_text(json.dumps(raw))
    read = Selection.load(tmp_path / "selection.json")
    assert ModelFiles(name="Toy", members=(), selection=read).temperature == 1.0
    assert ModelFiles(name="Toy", members=()).temperature == 1.0
    assert LesionTable.load(tmp_path / "lesions.json").temperature == 1.0
