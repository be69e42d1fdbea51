"""Regions of interest, from the command line to the model and its predictions."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import run, told

import autoliver
from autoliver.datasets.cases import Dataset
from autoliver.datasets.folds import Folds
from autoliver.errors import ArtifactError, AutoliverError, ModelError, OptionError
from autoliver.evaluation.results import Scores
from autoliver.models.files import FoldModel, model_digest
from autoliver.networks.checkpoint import load_weights
from autoliver.pipeline.data import Planned
from autoliver.pipeline.run.cascade import FirstStage
from autoliver.pipeline.run.region import refuse_region, region_for
from autoliver.pipeline.run.request import TrainRequest
from autoliver.planning.plan import Plan
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.workspace import DatasetFolder, RunFolder, Workspace

NAME = "Dataset001_Phantom"
SHORT = ("--fold", 0, "--epochs", 1, "--iterations", 2)
ROI = ("--roi", "liver", "--roi-from", f"{NAME}/2d")
TRUTH = ("--roi", "liver", "--roi-truth")
SPACING = (16.0, 7.0, 7.0)


@dataclass(frozen=True)
class Place:
    """Data and a workspace in which a model finds livers, and others look near them."""

    data: Path
    workspace: Path

    def fold(self, run_name: str) -> Path:
        return self.workspace / NAME / "runs" / run_name / "fold_0"

    def model(self, run_name: str) -> FoldModel:
        return FoldModel.load(self.fold(run_name) / "model.json")

    def boxes(self) -> dict[str, list[list[int]] | None]:
        (path,) = (self.workspace / NAME / "regions").iterdir()
        return json.loads(path.read_text())["boxes"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The model that finds livers is trained, and 2d+roi within its regions."""
    data, workspace = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("workspace")
    options = PhantomOptions(contrast="CT", shape_zyx=(8, 36, 36), spacing_mm=SPACING)
    write_phantom_dataset(data, name=NAME, cases=5, seed=1, options=options)
    run("plan", data / NAME, "--preset", "tiny", "-w", workspace)
    run("train", NAME, "2d", "--fold", 0, "--epochs", 2, "--iterations", 40, "-w", workspace)
    run("train", NAME, "2d", *SHORT, *ROI, "--tag", "roi", "-w", workspace)
    return Place(data, workspace)


@pytest.fixture
def own(place: Place, tmp_path: Path) -> Place:
    """A copy that a test may change."""
    return Place(place.data, Path(shutil.copytree(place.workspace, tmp_path / "workspace")))


def grown(box: list[list[int]], margin_mm: float, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels (z, y, x) whose centres are within the margin of a box."""
    axes = [
        (np.arange(n) + 0.5 >= low - margin_mm / mm) & (np.arange(n) + 0.5 <= high + margin_mm / mm)
        for n, (low, high), mm in zip(shape, box, SPACING, strict=True)
    ]
    return axes[0][:, None, None] & axes[1][:, None] & axes[2]


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj).transpose(2, 1, 0)


def test_what_the_model_says_of_its_region(place: Place) -> None:
    roi = place.model("2d+roi").roi
    assert roi is not None
    assert (roi.label, roi.margin_mm, roi.model, roi.truth) == ("liver", 10.0, f"{NAME}/2d", False)
    finder = Workspace(place.workspace).model_to_predict(f"{NAME}/2d")
    assert roi.digest == model_digest(finder)
    assert place.model("2d").roi is None


def test_the_boxes_are_those_of_the_predicted_livers(place: Place, tmp_path: Path) -> None:
    images = place.data / NAME / "imagesTr"
    out = tmp_path / "out"
    run(
        "predict", "-i", images, "-o", out, "-m", f"{NAME}/2d", "--no-mirror", "-w", place.workspace
    )
    expected = []
    for path in sorted(out.glob("*.nii.gz")):
        found = voxels(path)
        mask = largest(np.isin(found, (1, 2)))  # liver and tumour
        spots = np.argwhere(mask)
        expected.append(
            [[int(a), int(b)] for a, b in zip(spots.min(0), spots.max(0) + 1, strict=True)]
        )
    assert sorted(map(str, place.boxes().values())) == sorted(map(str, expected))


def largest(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count
    return labels == 1 + int(np.argmax([(labels == n).sum() for n in range(1, count + 1)]))


def test_outside_of_the_region_is_background(place: Place, tmp_path: Path) -> None:
    images, out = place.data / NAME / "imagesTr", tmp_path / "out"
    given = ("-m", f"{NAME}/2d+roi", "--probabilities", "-w", place.workspace)
    run("predict", "-i", images, "-o", out, *given)
    record = json.loads((out / "predict.json").read_text())
    assert record["finders"] == {f"{NAME}/2d": place.model("2d+roi").roi.digest}
    assert len(record["regions"]) == 5
    some = False
    for name, (region,) in record["regions"].items():
        assert (region["label"], region["finder"]) == ("liver", f"{NAME}/2d")
        found = voxels(out / name)
        inside = grown(region["box"], 10.0, found.shape)
        assert not found[~inside].any()
        assert not inside.all()
        some = some or bool(found[inside].any())
        probabilities = np.load(out / name.replace(".nii.gz", ".npz"))["probabilities"]
        assert np.all(probabilities[0][~inside] > 0.999)
    assert some


def test_it_is_deterministic_and_goes_on_where_it_stopped(own: Place) -> None:
    given = ("2d", "--fold", 0, "--epochs", 2, "--iterations", 2, *ROI, "-w", own.workspace)
    weights = []
    for tag in ("a", "b"):
        run("train", NAME, *given, "--deterministic", "--tag", tag)
        weights.append(load_weights(own.fold(f"2d+{tag}") / "weights.safetensors")[0])
    assert all(np.array_equal(weights[0][k], weights[1][k]) for k in weights[0])
    # Extended in two parts, from the kept boxes: those of a and b were found once.
    assert len(list((own.workspace / NAME / "regions").iterdir())) == 2  # exact or not
    run("train", NAME, "2d", "--fold", 0, "--extend", 1, "--tag", "a", "-w", own.workspace)
    assert own.model("2d+a").epochs == 3
    assert own.model("2d+a").roi == own.model("2d+b").roi


def test_boxes_are_kept_and_found_again_for_changed_images_alone(own: Place) -> None:
    (path,) = (own.workspace / NAME / "regions").iterdir()
    kept = json.loads(path.read_text())
    moved = {key: [[0, 1], [0, 1], [0, 1]] for key in kept["boxes"]}
    path.write_text(json.dumps({**kept, "boxes": moved}))
    run("train", NAME, "2d", *SHORT, *ROI, "--tag", "again", "-w", own.workspace)
    assert own.boxes() == moved  # nothing was predicted
    fewer = dict(list(kept["boxes"].items())[1:])
    path.write_text(json.dumps({**kept, "boxes": fewer}))
    run("train", NAME, "2d", *SHORT, *ROI, "--tag", "more", "-w", own.workspace)
    assert own.boxes() == kept["boxes"]


def test_a_finder_that_has_seen_the_cases_is_named(own: Place) -> None:
    text = told(
        "train", NAME, "2d", *SHORT, *ROI, "--tag", "x", "--roi-margin-mm", 20, "-w", own.workspace
    )
    assert f"Patches lie within 20 mm of the liver that {NAME}/2d finds" in text
    assert f"{NAME}/2d was trained on 4 of the 5 cases" in text
    assert own.model("2d+x").roi.margin_mm == 20.0


def test_every_output_says_that_regions_were_those_of_the_reference(
    own: Place, tmp_path: Path
) -> None:
    text = told("train", NAME, "2d", *SHORT, *TRUTH, "--tag", "truth", "-w", own.workspace)
    assert "the regions of held-out cases come from their reference labels" in text
    assert own.model("2d+truth").roi.truth
    scores = Scores.load(own.fold("2d+truth") / "validation/scores.json")
    assert "regions of held-out cases came from their reference labels" in scores.warnings[0]
    # Held-out label maps are empty outside of the reference liver.
    (held_out,) = Folds.load(own.workspace / NAME / "folds.json").splits[0].validation
    found = voxels(own.fold("2d+truth") / "validation" / f"{held_out}.nii.gz")
    spots = np.argwhere(
        largest(np.isin(voxels(own.data / NAME / "labelsTr" / f"{held_out}.nii.gz"), (1, 2)))
    )
    box = [[a, b] for a, b in zip(spots.min(0), spots.max(0) + 1, strict=True)]
    assert not found[~grown(box, 10.0, found.shape)].any()
    run("select", NAME, "-w", own.workspace)
    pairs = list((own.workspace / NAME / "selection").rglob("scores.json"))
    assert len(pairs) == 3
    for path in pairs:
        warned = any("--roi-truth" in each for each in Scores.load(path).warnings)
        assert warned == ("truth" in str(path))
    # New cases have no reference.
    given = (
        "predict",
        "-i",
        own.data / NAME / "imagesTr",
        "-o",
        tmp_path / "out",
        "-m",
        f"{NAME}/2d+truth",
        "-w",
        own.workspace,
    )
    with pytest.raises(ModelError, match="--roi-truth") as caught:
        run(*given)
    assert "--roi-from MODEL" in caught.value.hint
    run(*given, "--roi-from", f"{NAME}/2d")
    record = json.loads((tmp_path / "out/predict.json").read_text())
    assert record["notes"] == [
        "2d+truth was trained on the regions of reference labels (--roi-truth)."
    ]


def test_a_case_without_liver_is_predicted_as_a_whole_and_named(
    place: Place, tmp_path: Path, caplog
) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    images.mkdir()
    image = nib.Nifti1Image(np.full((36, 36, 8), -1000, np.int16), np.diag([7.0, 7.0, 16.0, 1]))
    nib.save(image, images / "air.nii.gz")
    run("predict", "-i", images, "-o", out, "-m", f"{NAME}/2d+roi", "-w", place.workspace)
    assert f"air: {NAME}/2d shows no liver, so the whole scan is predicted." in caplog.text
    (region,) = json.loads((out / "predict.json").read_text())["regions"]["air.nii.gz"]
    assert region.get("box") is None
    assert (out / "air.nii.gz").exists()


def test_a_training_case_without_liver_is_shown_whole_and_none_at_all_is_refused(
    own: Place,
) -> None:
    (path,) = (own.workspace / NAME / "regions").iterdir()
    kept = json.loads(path.read_text())
    keys = list(kept["boxes"])
    path.write_text(json.dumps({**kept, "boxes": {**kept["boxes"], keys[0]: None}}))
    text = told("train", NAME, "2d", *SHORT, *ROI, "--tag", "x", "-w", own.workspace)
    assert "shows no liver in" in text
    assert "its whole scan is used" in text
    path.write_text(json.dumps({**kept, "boxes": dict.fromkeys(keys)}))
    with pytest.raises(OptionError, match="finds none in any of 4 training cases"):
        run("train", NAME, "2d", *SHORT, *ROI, "--tag", "y", "-w", own.workspace)


def test_an_exported_model_needs_its_finder(
    own: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, other = tmp_path / "roi.autoliver", tmp_path / "other"
    run("export", f"{NAME}/2d+roi", file, "-w", own.workspace)
    said = f"near the liver that {NAME}/2d finds, which the file does not hold"
    assert said in caplog.text
    given = ("-i", own.data / NAME / "imagesTr", "-m", file, "-w", other)
    with pytest.raises(ModelError, match="an exported file does not hold it") as caught:
        run("predict", "-o", tmp_path / "a", *given)
    assert "--roi-from MODEL" in caught.value.hint
    finder = tmp_path / "liver.autoliver"
    run("export", f"{NAME}/2d", finder, "-w", own.workspace)
    run("predict", "-o", tmp_path / "a", *given, "--roi-from", finder)
    run(
        "predict",
        "-o",
        tmp_path / "b",
        "-i",
        own.data / NAME / "imagesTr",
        "-m",
        f"{NAME}/2d+roi",
        "-w",
        own.workspace,
    )
    for path in (tmp_path / "b").glob("*.nii.gz"):
        assert np.array_equal(voxels(path), voxels(tmp_path / "a" / path.name))
    with pytest.raises(AutoliverError, match="which nnU-Net cannot do"):
        run("export", f"{NAME}/2d+roi", tmp_path / "nn", "--format", "nnunet", "-w", own.workspace)


def test_a_finder_that_was_trained_again_is_another_one(own: Place, tmp_path: Path) -> None:
    run("train", NAME, "2d", *SHORT, "--fresh", "-w", own.workspace)
    with pytest.raises(ModelError, match="has other weights or cleaning rules by now"):
        run(
            "predict",
            "-i",
            own.data / NAME / "imagesTr",
            "-o",
            tmp_path / "out",
            "-m",
            f"{NAME}/2d+roi",
            "-w",
            own.workspace,
        )
    with pytest.raises(ArtifactError, match="started with another region's model"):
        run("train", NAME, "2d", *SHORT, *ROI, "--tag", "roi", "-w", own.workspace)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--roi", "liver"), "does not say what finds this label"),
        (("--roi-from", f"{NAME}/2d"), "--roi is not given"),
        (("--roi-truth",), "--roi is not given"),
        (("--roi-margin-mm", 5), "--roi is not given"),
        ((*ROI, "--roi-truth"), "contradict each other"),
        ((*ROI, "--roi-margin-mm", -1), "--roi-margin-mm"),
        ((*ROI, "--roi-margin-mm", "nan"), "--roi-margin-mm"),
        ((*ROI, "--roi-margin-mm", 5000), "at most 200"),
        (("--roi", "heart", *ROI[2:]), "it has no label heart; its labels are liver, tumour"),
        (("--roi", "heart", "--roi-truth"), "the dataset has no label heart"),
        ((*ROI[:2], "--roi-from", "Nobody"), "no trained model 'Nobody'"),
        ((*ROI[:2], "--roi-from", f"{NAME}/2d+roi"), "it predicts in a region itself"),
    ],
)
def test_bad_input(place: Place, given, says) -> None:
    with pytest.raises(AutoliverError, match=says) as caught:
        run("train", NAME, "2d", *SHORT, *given, "--tag", "bad", "-w", place.workspace)
    assert caught.value.hint
    assert not RunFolder(place.fold("2d+bad").parent).options.exists()


def test_a_finder_of_other_images_is_refused(own: Place) -> None:
    path = own.fold("2d") / "model.json"
    model = own.model("2d")
    both = {
        name: each.replace(
            normalization=each.normalization * 2,
            mask_norm=each.mask_norm * 2,
            network=each.network.replace(in_channels=2),
        )
        for name, each in model.plan.configurations.items()
    }
    channels = {"channel_names": ("CT", "PET"), "intensities": model.plan.intensities * 2}
    for changes, says in (
        ({**channels, "configurations": both}, "it takes the channels CT, PET, not CT"),
        ({"modality": "MR"}, "it was trained on MR; the images are CT"),
    ):
        histograms = model.histograms * len(changes.get("channel_names", ("",)))
        model.replace(plan=model.plan.replace(**changes), histograms=histograms).save(path)
        with pytest.raises(ModelError, match=says):
            run("train", NAME, "2d", *SHORT, *ROI, "--tag", "bad", "-w", own.workspace)


def test_other_uses_of_a_region_are_refused(place: Place, tmp_path: Path) -> None:
    given = (
        "predict",
        "-i",
        place.data / NAME / "imagesTr",
        "-o",
        tmp_path / "out",
        "-w",
        place.workspace,
    )
    with pytest.raises(OptionError, match="was trained on whole scans"):
        run(*given, "-m", f"{NAME}/2d", "--roi-from", f"{NAME}/2d")
    with pytest.raises(OptionError, match="predicts in a region as it is"):
        run(*given, "-m", f"{NAME}/2d+roi", "--roi", f"{NAME}/2d")
    predictor = autoliver.load_model(f"{NAME}/2d+roi", workspace=place.workspace)
    with pytest.raises(ModelError, match="predicts near the liver alone"):
        predictor(np.zeros((8, 36, 36), np.float32), spacing_mm=SPACING)


def test_runs_with_and_without_a_region_predict_together(own: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(
        "predict",
        "-i",
        own.data / NAME / "imagesTr",
        "-o",
        out,
        "-m",
        f"{NAME}/2d",
        "-m",
        f"{NAME}/2d+roi",
        "-w",
        own.workspace,
    )
    assert len(list(out.glob("*.nii.gz"))) == 5
    run("select", NAME, "-w", own.workspace)


@pytest.mark.parametrize("kind", ["file", "run", "dataset"])
def test_a_finder_may_be_given_by_its_path(
    own: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file, run_folder = tmp_path / "finder.autoliver", own.fold("2d").parent
    run("export", f"{NAME}/2d", file, "-w", own.workspace)
    named = {"file": file, "run": run_folder, "dataset": f"{NAME}/2d"}[kind]
    # A name is not taken for a folder of raw data beside.
    monkeypatch.chdir(own.data)
    given = ("--roi", "liver", "--roi-from", named, "--tag", "x", "-w", own.workspace)
    run("train", NAME, "2d", *SHORT, *given)
    expected = "finder" if kind == "file" else f"{NAME}/2d"
    assert own.model("2d+x").roi.model == expected
    run(
        "predict",
        "-i",
        own.data / NAME / "imagesTr",
        "-o",
        tmp_path / "out",
        "-m",
        f"{NAME}/2d+x",
        "-w",
        own.workspace,
    )
    if kind == "file":  # the same model under another name goes on
        run(
            "predict",
            "-i",
            own.data / NAME / "imagesTr",
            "-o",
            tmp_path / "out",
            "-m",
            f"{NAME}/2d+x",
            "--roi-from",
            f"{NAME}/2d",
            "-w",
            own.workspace,
        )


def test_cascades_are_refused(place: Place) -> None:
    plan = Plan.load(place.workspace / NAME / "plan.json")
    configuration = plan.configurations["3d_fullres"].replace(previous_stage="3d_lowres")
    request = TrainRequest(
        configuration="3d_cascade", changes={"roi": "liver", "roi_from": f"{NAME}/2d"}
    )
    folder = DatasetFolder(place.workspace / NAME)
    planned = Planned(dataset=Dataset.load(folder.dataset), folder=folder, plan=plan)
    with pytest.raises(OptionError, match="a cascade sees what its first stage finds"):
        region_for(
            Workspace(place.workspace),
            planned,
            configuration,
            request,
            RunFolder(folder.path / "runs/3d_cascade"),
            [0],
        )
    low = RunFolder(place.fold("2d+roi").parent)
    with pytest.raises(OptionError, match="has to see whole scans"):
        refuse_region(FirstStage(run=low, found={}, digest=""))


def test_in_3d(own: Place, tmp_path: Path) -> None:
    run("train", NAME, "3d_fullres", *SHORT, *ROI, "-w", own.workspace)
    assert own.model("3d_fullres").roi.label == "liver"
    out = tmp_path / "out"
    run(
        "predict",
        "-i",
        own.data / NAME / "imagesTr",
        "-o",
        out,
        "-m",
        f"{NAME}/3d_fullres",
        "-w",
        own.workspace,
    )
    for name, (region,) in json.loads((out / "predict.json").read_text())["regions"].items():
        found = voxels(out / name)
        assert not found[~grown(region["box"], 10.0, found.shape)].any()
