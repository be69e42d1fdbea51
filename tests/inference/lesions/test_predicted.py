"""Lesions in what `predict` writes: tables for every model of lesions, one class for each."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import SaveFold
from three_images import ASKED, GRID, image
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.datasets.cases import Labels
from autoliver.errors import ArtifactError
from autoliver.inference.clean import components
from autoliver.inference.lesions.measure import LesionLabels, measure
from autoliver.inference.lesions.table import LesionTable
from autoliver.inference.model import Model, load_model
from autoliver.inference.options import PredictOptions
from autoliver.inference.predict import predict_volume
from autoliver.io.files import read_label, write_image
from autoliver.io.volume import Geometry, Volume
from autoliver.models.files import (
    MODEL_FILE,
    WEIGHTS_FILE,
    FoldModel,
    MemberFiles,
    ModelFiles,
    save_fold,
)
from autoliver.models.selection import CleaningRule
from autoliver.networks.checkpoint import load_network
from autoliver.pipeline.folder import CasesFailed, Predicted, predict_folder
from autoliver.pipeline.prediction import PredictRequest
from autoliver.workspace import Workspace

CLASSES = Labels(values={"background": (0,), "metastasis": (2,), "cyst": (1,)})
NAMES = ("metastasis", "cyst")
PLAIN = PredictOptions(mirror=False)


def predict(
    images: Path | list[Path], output: Path, run: Path, request: PredictRequest = ASKED
) -> Predicted:
    return predict_folder(
        Workspace(output.parent / "w"), images, output, request, models=(str(run),)
    )


def with_classes(fold: Path, names: Sequence[str] = NAMES) -> Path:
    """The fold as one that was trained to tell classes of lesions apart."""
    file = fold / MODEL_FILE
    FoldModel.load(file).replace(lesion_classes=tuple(names)).save(file)
    return fold


def biased(fold: Path, bias: tuple[float, float, float]) -> Path:
    """The fold with this bias of the last layer."""
    network = load_network(fold / WEIGHTS_FILE, device=torch.device("cpu"))
    weights = {
        name: torch.tensor(bias) if name.endswith("bias") and tensor.shape == (3,) else tensor
        for name, tensor in network.state_dict().items()
    }
    save_fold(fold, weights, FoldModel.load(fold / MODEL_FILE))
    return fold


def load(*members: Path, cleaning: tuple[CleaningRule, ...] = ()) -> Model:
    files = tuple(MemberFiles(folds=(fold,)) for fold in members)
    return load_model(
        ModelFiles(name="Toy", members=files, cleaning=cleaning), device=torch.device("cpu")
    )


def mixed(label_map: np.ndarray) -> int:
    """How many lesions of CLASSES have voxels of both classes."""
    found = components(label_map > 0)
    both = (np.unique(found.numbers[label_map[found.box] == value]) for value in (1, 2))
    return len(np.intersect1d(*both))


def a_case(shape: tuple[int, int, int] = (9, 14, 12)) -> Volume:
    grid = Geometry(shape_zyx=shape, spacing_mm=(3.0, 1.5, 1.7))
    array = np.random.default_rng(0).gamma(4.0, 25.0, (1, *shape)).astype(np.float32)
    return Volume(array=array, geometry=grid)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("regions", [False, True])
def test_a_model_with_classes_votes_on_each_lesion(
    configuration: str, members: int, regions: bool, save: SaveFold
) -> None:
    labels = CLASSES
    if regions:  # as many rows as the network has, the last one painted last
        values = {"background": (0,), "rest": (3,), "cyst": (1,), "metastasis": (2,)}
        labels = Labels(values=values, regions_class_order=(3, 1, 2))
    folds = [
        biased(
            save(f"fold_{n}", seed=n + 6, configuration=configuration, labels=labels),
            (-0.2, 0.0, 0.0),  # little background, so that lesions touch
        )
        for n in range(members)
    ]
    plain = predict_volume(load(*folds), a_case(), PLAIN, name="case")
    assert mixed(np.where(plain == 3, 0, plain)) > 0
    voting = load(*map(with_classes, folds))
    found = predict_volume(voting, a_case(), PLAIN, name="case")
    assert mixed(np.where(found == 3, 0, found)) == 0
    before, after = (plain > 0) & (plain < 3), (found > 0) & (found < 3)
    assert after[before].all()
    # Classes of a softmax are a lesion together where none of them is the most probable label.
    assert (after != before).any() != regions
    assert np.array_equal(found[~after], plain[~after])


@pytest.mark.parametrize("names", [(), ("cyst",)])
def test_with_fewer_than_two_classes_nothing_is_voted_on(names, save: SaveFold) -> None:
    fold = save("fold_0", labels=CLASSES)
    expected = predict_volume(load(fold), a_case(), PLAIN, name="case")
    assert np.array_equal(
        predict_volume(load(with_classes(fold, names)), a_case(), PLAIN, name="case"), expected
    )


def test_members_that_disagree_do_not_vote(save: SaveFold) -> None:
    one, other = (save(f"fold_{n}", labels=CLASSES) for n in range(2))
    assert load(with_classes(one), other).lesion_classes == ()
    assert load(one, with_classes(other)).lesion_classes == NAMES


def test_a_class_that_is_no_label_is_refused_when_the_model_is_loaded(save: SaveFold) -> None:
    with pytest.raises(ArtifactError, match=r"lesion_classes: found .*hemangioma"):
        load(with_classes(save("fold_0", labels=CLASSES), ("cyst", "hemangioma")))


def test_lesions_are_voted_on_before_they_are_cleaned(save: SaveFold) -> None:
    fold = with_classes(save("fold_0", labels=CLASSES))
    whole = predict_volume(load(fold), a_case(), PLAIN, name="case")
    rule = CleaningRule(labels=NAMES, keep="largest")
    cleaned = predict_volume(load(fold, cleaning=(rule,)), a_case(), PLAIN, name="case")
    found = components(whole > 0)
    largest = np.zeros(whole.shape, bool)
    largest[found.box] = found.numbers == found.voxels.argmax()
    assert np.array_equal(cleaned, np.where(largest, whole, 0))


def test_without_liver_there_are_no_lesions_and_that_is_said(
    save: SaveFold, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"background": (0,), "cyst": (1,), "metastasis": (2,), "liver": (3,)}
    # Four rows are one more than the network has; as regions there is none for the background.
    labels = Labels(values=values, regions_class_order=(1, 2, 3))
    fold = with_classes(save("fold_0", labels=labels))
    biased(fold, (0.0, 0.0, -100.0))  # the liver is nowhere
    with caplog.at_level(logging.WARNING):
        predict(images, tmp_path / "out", fold.parent)
    table = LesionTable.load(tmp_path / "out/lesions.json")
    for name, found in table.cases.items():
        assert found.lesions == ()
        assert found.removed_without_organ > 0
        assert f"{name}: no liver was found, so its" in caplog.text
        assert not read_label(tmp_path / f"out/{name}.nii.gz").array.any()
    assert len(table.cases) == 3
    assert len((tmp_path / "out/lesions.csv").read_text().splitlines()) == 1


def test_the_table_says_what_is_in_the_label_maps(
    images: Path, save: SaveFold, tmp_path: Path
) -> None:
    run = with_classes(save("fold_0", labels=CLASSES)).parent
    done = predict(images, tmp_path / "out", run)
    assert done.lesions == tmp_path / "out/lesions.csv"
    assert done.facts["lesions"] == str(done.lesions)
    table = LesionTable.load(tmp_path / "out/lesions.json")
    assert (table.classes, table.voted) == (NAMES, True)
    which = LesionLabels(labels=CLASSES, names=NAMES)
    for number in range(3):
        label = read_label(tmp_path / f"out/case_{number}.nii.gz")
        found = table.cases[f"case_{number}"].lesions
        measured = measure(label.array[0], GRID, which)
        assert tuple(lesion.replace(probabilities={}) for lesion in found) == measured
        for lesion in found:
            assert sum(lesion.probabilities.values()) == pytest.approx(1, abs=2e-5)
            assert lesion.probability == max(lesion.probabilities.values())
    assert done.lesions.read_bytes() == table.to_csv()


def test_a_model_of_one_lesion_label_gives_its_mean_probability(
    images: Path, run: Path, tmp_path: Path
) -> None:
    asked = replace(ASKED, probabilities=True)
    predict(images, tmp_path / "out", run, asked)
    table = LesionTable.load(tmp_path / "out/lesions.json")
    assert (table.classes, table.voted) == (("tumour",), False)
    label = read_label(tmp_path / "out/case_0.nii.gz").array[0]
    chances = np.load(tmp_path / "out/case_0.npz")["probabilities"][2]
    found = components(label == 2)
    lesions = table.cases["case_0"].lesions
    assert len(lesions) == len(found.voxels) - 1
    means = [chances[found.box][found.numbers == n + 1].mean() for n in range(len(lesions))]
    assert sorted(lesion.probability for lesion in lesions) == pytest.approx(
        sorted(means), abs=1e-4
    )


def test_a_model_without_lesions_writes_no_table(
    images: Path, save: SaveFold, tmp_path: Path
) -> None:
    labels = Labels(values={"background": (0,), "liver": (1,), "spleen": (2,)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/lesions.csv").write_text("mine")
    done = predict(images, tmp_path / "out", save("fold_0", labels=labels).parent)
    assert done.lesions is None
    assert not (tmp_path / "out/lesions.json").exists()
    assert (tmp_path / "out/lesions.csv").read_text() == "mine"


def test_rows_of_finished_cases_stay_when_a_folder_is_continued(
    images: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(images, tmp_path / "whole", run)
    expected = (tmp_path / "whole/lesions.csv").read_bytes()
    for number in (2, 0, 1):
        predict(images / f"case_{number}.nii.gz", out, run)
    assert (out / "lesions.csv").read_bytes() == expected
    assert (out / "lesions.json").read_bytes() == (tmp_path / "whole/lesions.json").read_bytes()
    assert predict(images, out, run).lesions == out / "lesions.csv"  # all skipped
    assert (out / "lesions.csv").read_bytes() == expected

    write_image(images / "case_1.nii.gz", image(7), GRID)  # predicted again, the others not
    assert predict(images, out, run).new == 1
    before, after = (LesionTable.load(tmp_path / f"{f}/lesions.json") for f in ("whole", "out"))
    same = [case for case in before.cases if before.cases[case] == after.cases[case]]
    assert same == ["case_0", "case_2"]


def test_the_command_names_the_table(images: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["predict", "-i", images, "-o", out, "-m", run, "--no-mirror", "--device", "cpu"]
    result = CliRunner().invoke(app, [*map(str, asked), "-w", str(tmp_path / "w")])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"Lesions: {out / 'lesions.csv'}"
    result = CliRunner().invoke(app, [*map(str, asked), "-w", str(tmp_path / "w"), "--json"])
    assert json.loads(result.stdout)["lesions"] == str(out / "lesions.csv")


def test_a_case_that_fails_has_no_rows(images: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(images, out, run)
    (images / "case_1.nii.gz").write_bytes(b"")
    with pytest.raises(CasesFailed) as caught:
        predict(images, out, run)
    assert set(LesionTable.load(out / "lesions.json").cases) == {"case_0", "case_2"}
    assert "case_1" not in (out / "lesions.csv").read_text()
    assert caught.value.predicted.lesions == out / "lesions.csv"


def test_another_model_begins_a_table_of_its_own(
    images: Path, run: Path, save: SaveFold, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(images, out, run)
    (images / "case_2.nii.gz").unlink()
    (out / "case_2.nii.gz").unlink()
    other = save("fold_0", seed=5, configuration="2d").parent
    predict(images, out, other, replace(ASKED, overwrite=True))
    assert set(LesionTable.load(out / "lesions.json").cases) == {"case_0", "case_1"}


def test_tables_of_somebody_else_are_kept_aside(images: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "lesions.csv").write_text("mine")
    predict(images, out, run)
    assert (out / "replaced/lesions.csv").read_text() == "mine"
    assert (out / "lesions.csv").read_text().startswith("case,lesion,class")
