"""Lesions with classes from training to tables: the four values of `train --task`."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from scipy import ndimage

import autoliver
from autoliver.datasets.cases import Labels
from autoliver.datasets.lesion_classes import find_lesion_classes
from autoliver.errors import AutoliverError, ModelError, OptionError
from autoliver.io.files import read_label, write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.models.files import FoldModel

GRID = Geometry(shape_zyx=(6, 48, 48), spacing_mm=(5.0, 2.0, 2.0))
NAMED, PLAIN = "Dataset921_Classes", "Dataset922_Plain"
CLASSES = ("cyst", "hemangioma", "metastasis")
HU = {2: 10, 3: 170, 4: 60}
TASKS = ("joint", "segment", "ynet", "classify")
SHORT = {"epochs": 1, "iterations": 3, "batch_size": 2, "patch": (32, 32), "device": "cpu"}


def write_case(folder: Path, name: str, number: int, *, classes: bool) -> None:
    """A liver with two lesions of different classes."""
    rng = np.random.default_rng(number)
    label = np.zeros(GRID.shape_zyx, np.uint8)
    label[:, 6:42, 6:42] = 1
    for corner, value in (((1, 10, 10), 2 + number % 3), ((2, 26, 24), 2 + (number + 1) % 3)):
        z, y, x = corner
        label[z : z + 2, y : y + 8, x : x + 8] = value
    image = np.select([label == v for v in (0, 1, *HU)], [-80, 110, *HU.values()])
    image = image + rng.normal(size=image.shape) * 8
    write_image(folder / f"imagesTr/{name}_0000.nii.gz", image[None].astype(np.int16), GRID)
    write_label(folder / f"labelsTr/{name}.nii.gz", label if classes else label.clip(max=2), GRID)


def write_dataset(folder: Path, *, classes: bool) -> Path:
    for number in range(5):
        write_case(folder, f"case_{number}", number + 10 * classes, classes=classes)
    lesions = CLASSES if classes else ("lesion",)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, **{n: i for i, n in enumerate(lesions, 2)}},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both datasets planned; each task trained for some steps, with one held-out fold."""
    root = tmp_path_factory.mktemp("tasks")
    for name in (NAMED, PLAIN):
        folder = write_dataset(root / name, classes=name == NAMED)
        autoliver.plan(folder, preset="tiny", workspace=root / "ws")
    for task in TASKS:
        train(root, NAMED, task=task, tag=task, folds=(0,))
    return root


def train(root: Path, dataset: str, **options: object) -> Path:
    given = {**SHORT, "workspace": root / "ws", "folds": ("all",), **options}
    return autoliver.train(root / dataset, "2d", **given)[0].folder


def model(place: Path, task: str) -> FoldModel:
    return FoldModel.load(place / "ws" / NAMED / "runs" / f"2d+{task}" / "fold_0/model.json")


def predict(place: Path, out: Path, task: str, **options: object) -> Path:
    given = {"models": [f"{NAMED}/2d+{task}"], "workspace": place / "ws", "device": "cpu"}
    autoliver.predict(place / NAMED / "imagesTr", out, **{**given, **options})
    return out


def lesions_of(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    array = read_label(path).array[0]
    numbers, count = ndimage.label(array >= 2, np.ones((3, 3, 3)))
    return array, numbers, count


def test_what_models_say_of_themselves(place):
    assert model(place, "joint").lesion_classes == CLASSES
    assert model(place, "joint").plan.labels.values == {
        **{"background": (0,), "liver": (1,), "cyst": (2,)},
        **{"hemangioma": (3,), "metastasis": (4,)},
    }
    assert model(place, "segment").lesion_classes == ()
    assert model(place, "segment").plan.labels.values == {
        **{"background": (0,), "liver": (1,), "lesion": (2, 3, 4)},
    }
    for task in TASKS:
        network = model(place, task).decisions.network
        assert network.out_channels == (3 if task == "segment" else 5)
        assert (network.classifier is not None) == (task in ("ynet", "classify"))
    assert [task for task in TASKS if model(place, task).needs_lesions] == ["classify"]


def test_all_tasks_share_one_store(place):
    assert len(list((place / "ws" / NAMED / "store").iterdir())) == 1


@pytest.mark.parametrize("task", ["joint", "ynet"])
def test_each_connected_lesion_has_one_class_and_a_row(place, tmp_path, task):
    out = predict(place, tmp_path, task)
    rows = list(csv.DictReader((out / "lesions.csv").read_text().splitlines()))
    found = 0
    for path in sorted(out.glob("*.nii.gz")):
        array, numbers, count = lesions_of(path)
        own = [row for row in rows if f"{row['case']}.nii.gz" == path.name]
        assert [row["lesion"] for row in own] == [str(n + 1) for n in range(count)]
        for number, row in enumerate(own, start=1):
            (value,) = np.unique(array[numbers == number])
            assert row["class"] == CLASSES[value - 2]
            chances = {name: float(row[f"probability_{name}"]) for name in CLASSES}
            assert sum(chances.values()) == pytest.approx(1, abs=1e-3)
            assert chances[row["class"]] == max(chances.values())  # rounded, two may be equal
        found += count
    if task == "joint":  # an untrained network finds something
        assert found


def test_one_label_for_lesions_of_all_classes(place, tmp_path):
    out = predict(place, tmp_path, "segment")
    values = {int(v) for path in out.glob("*.nii.gz") for v in np.unique(read_label(path).array)}
    assert values <= {0, 1, 2}
    scores = json.loads(
        (place / "ws" / NAMED / "runs/2d+segment/fold_0/validation/scores.json").read_text()
    )
    assert set(scores["summary"]) == {"liver", "lesion"}


@pytest.mark.parametrize("task", ["classify", "joint", "ynet"])
def test_given_lesions_get_a_class_and_no_other_is_found(place, tmp_path, task):
    out = predict(place, tmp_path / "out", task, lesions=place / NAMED / "labelsTr")
    for path in out.glob("*.nii.gz"):
        array, _, count = lesions_of(path)
        given, numbers, expected = lesions_of(place / NAMED / "labelsTr" / path.name)
        assert count == expected == 2
        np.testing.assert_array_equal(array >= 2, given >= 2)
        for number in (1, 2):
            assert len(np.unique(array[numbers == number])) == 1


def test_a_classifier_has_to_be_told_where_lesions_are(place, tmp_path):
    with pytest.raises(OptionError, match="only tells the class of lesions") as raised:
        predict(place, tmp_path, "classify")
    assert "lesions FOLDER" in raised.value.hint
    assert not any(tmp_path.iterdir())
    loaded = autoliver.load_model(f"{NAMED}/2d+classify", workspace=place / "ws", device="cpu")
    with pytest.raises(OptionError, match="only tells the class of lesions"):
        loaded(np.zeros((6, 48, 48), np.float32), (5.0, 2.0, 2.0))
    both = [f"{NAMED}/2d+joint", f"{NAMED}/2d+classify"]
    with pytest.raises(OptionError, match="only tells the class of lesions"):
        predict(place, tmp_path / "both", "joint", models=both)


def test_corrected_lesions_are_told_apart_again(place, tmp_path):
    given, out = tmp_path / "lesions", tmp_path / "out"
    for path in (place / NAMED / "labelsTr").iterdir():
        write_label(given / path.name, read_label(path).array[0], GRID)
    predict(place, out, "classify", lesions=given)
    array = read_label(given / "case_2.nii.gz").array[0].copy()
    array[2:] = np.minimum(array[2:], 1)
    write_label(given / "case_2.nii.gz", array, GRID)
    predict(place, out, "classify", lesions=given)
    found = lesions_of(out / "case_2.nii.gz")[0]
    np.testing.assert_array_equal(found >= 2, array >= 2)


def test_given_lesions_where_the_image_is_empty(place, tmp_path, caplog):
    images, given = tmp_path / "images", tmp_path / "lesions"
    image = np.zeros((1, *GRID.shape_zyx), np.int16)
    image[:, :, :, 24:] = 100
    write_image(images / "half_0000.nii.gz", image, GRID)
    label = np.zeros(GRID.shape_zyx, np.uint8)
    label[2, 4:8, 2:6] = label[2, 20:24, 20:28] = label[3, 40:44, 40:44] = 2
    write_label(given / "half.nii.gz", label, GRID)
    options = {"models": [f"{NAMED}/2d+joint"], "workspace": place / "ws", "device": "cpu"}
    autoliver.predict(images, tmp_path / "out", lesions=given, modality="CT", **options)
    np.testing.assert_array_equal(lesions_of(tmp_path / "out" / "half.nii.gz")[0] >= 2, label >= 2)
    assert "half: 1 given lesion lies where the image is empty" in caplog.text


def test_segmented_lesions_are_not_scored_as_the_first_class(place, tmp_path):
    out = predict(place, tmp_path, "segment")
    with pytest.raises(OptionError, match="lesions of all classes as one label"):
        autoliver.evaluate(out, place / NAMED / "labelsTr", dataset=NAMED, workspace=place / "ws")


def test_a_label_named_lesion_beside_the_classes_is_refused():
    labels = Labels(
        values={"background": (0,), "lesion": (2,), "cyst": (3,), "hemangioma": (4,), "x": (1,)}
    )
    with pytest.raises(OptionError, match="has a label 'lesion' beside"):
        find_lesion_classes(labels, ("cyst", "hemangioma"), where="D", wanted_by="--task ynet")


def test_select_of_segmented_lesions_scores_one_label(place):
    for tag in ("segment-a", "segment-b"):
        train(place, NAMED, task="segment", tag=tag, folds=(0,), seed=len(tag) + ord(tag[-1]))
    runs = ["2d+segment-a", "2d+segment-b"]
    found = autoliver.select(NAMED, runs=runs, workspace=place / "ws")
    assert {each.runs for each in found.candidates} == {(runs[0],), (runs[1],), tuple(runs)}
    assert all(set(each.labels) == {"liver", "lesion"} for each in found.candidates)


def test_select_of_classifiers_has_no_pairs(place):
    train(place, NAMED, task="classify", tag="classify-b", folds=(0,), seed=5)
    runs = ["2d+classify", "2d+classify-b"]
    found = autoliver.select(NAMED, runs=runs, workspace=place / "ws")
    assert {each.runs for each in found.candidates} == {(runs[0],), (runs[1],)}


def test_masks_without_the_values_of_classes_are_told(place, tmp_path, caplog):
    given = tmp_path / "lesions"
    for path in (place / NAMED / "labelsTr").iterdir():
        array = read_label(path).array[0]
        write_label(given / path.name, (array > 1).astype(np.uint8), GRID)
    out = predict(place, tmp_path / "out", "classify", lesions=given)
    assert not any((read_label(path).array > 1).any() for path in out.glob("*.nii.gz"))
    assert "its values are 0, 1, those of lesions 2 (cyst), 3 (hemangioma)" in caplog.text


def test_members_that_tell_other_classes_apart_are_refused(place, tmp_path):
    train(place, NAMED, task="joint", tag="pair", folds=(0,), lesion_classes="cyst,hemangioma")
    both = [f"{NAMED}/2d+joint", f"{NAMED}/2d+pair"]
    with pytest.raises(ModelError, match="other classes of lesions"):
        predict(place, tmp_path, "joint", models=both)


def test_classes_without_lesions_are_told(tmp_path, caplog):
    folder = write_dataset(tmp_path / "Dataset923_Few", classes=True)
    for path in (folder / "labelsTr").iterdir():
        array = read_label(path).array[0]
        write_label(path, np.where(array == 4, 1, array).astype(np.uint8), GRID)
    given = {**SHORT, "workspace": tmp_path / "ws", "folds": ("all",), "task": "classify"}
    autoliver.train(folder, "2d", preset="tiny", **given)
    assert "no training case has a lesion of the class metastasis" in caplog.text
    for path in (folder / "labelsTr").iterdir():
        write_label(path, read_label(path).array[0].clip(max=1), GRID)
    with pytest.raises(AutoliverError, match="has a lesion"):
        autoliver.train(folder, "2d", preset="tiny", **{**given, "workspace": tmp_path / "w2"})


def test_without_given_lesions_the_cases_are_predicted_again(place, tmp_path):
    predict(place, tmp_path / "out", "joint", lesions=place / NAMED / "labelsTr")
    again, plain = (predict(place, tmp_path / name, "joint") for name in ("out", "plain"))
    for path in plain.glob("*.nii.gz"):
        found = read_label(again / path.name).array
        np.testing.assert_array_equal(found, read_label(path).array)


def test_lesions_of_another_grid_and_missing_ones_are_named(place, tmp_path):
    folder = tmp_path / "lesions"
    for number in range(4):
        name = f"case_{number}.nii.gz"
        array = read_label(place / NAMED / "labelsTr" / name).array[0]
        far = GRID.replace(origin_xyz=(40.0, 0.0, 0.0)) if number == 2 else GRID
        write_label(folder / name, array, far)
    with pytest.raises(AutoliverError) as raised:
        predict(place, tmp_path / "out", "classify", lesions=folder)
    assert "case_4" in raised.value.problem
    assert "has no label map of its lesions" in raised.value.problem
    assert "another grid" in raised.value.problem
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == [
        f"case_{n}.nii.gz" for n in (0, 1, 3)
    ]


def test_lesions_for_a_model_without_classes_are_refused(place, tmp_path):
    with pytest.raises(OptionError, match="does not tell classes of lesions apart"):
        predict(place, tmp_path, "segment", lesions=place / NAMED / "labelsTr")
    with pytest.raises(OptionError, match="there is no such folder"):
        predict(place, tmp_path, "joint", lesions=tmp_path / "none")


@pytest.mark.parametrize("source", ["plain", "segment"])
def test_classes_begin_as_the_lesion_of_the_source(place, tmp_path, source):
    """The union of the classes is labelled as the source labels its lesion."""
    if source == "plain":
        trained = train(place, PLAIN, tag="source", iterations=20)
    else:
        trained = place / "ws" / NAMED / "runs/2d+segment/fold_0"
    begun = train(place, NAMED, task="joint", tag=f"of-{source}", epochs=0, pretrained=trained)
    images = place / NAMED / "imagesTr"
    maps = {}
    for name, folder in (("source", trained), ("begun", begun)):
        out = tmp_path / name
        autoliver.predict(images, out, models=[folder.parent], folds=folder.name[5:], device="cpu")
        maps[name] = [read_label(path).array for path in sorted(out.glob("*.nii.gz"))]
    for one, other in zip(maps["source"], maps["begun"], strict=True):
        np.testing.assert_array_equal(one >= 2, other >= 2)
        np.testing.assert_array_equal(one == 1, other == 1)


@pytest.mark.parametrize("task", ["ynet", "classify"])
def test_a_u_net_begins_networks_with_a_class_head(place, task):
    trained = place / "ws" / NAMED / "runs/2d+joint/fold_0"
    folder = train(place, NAMED, task=task, tag=f"{task}-begun", epochs=0, pretrained=trained)
    table = json.loads((folder.parent / "transfer.json").read_text())["table"]
    told = {each["name"]: each["action"] for each in table["weights"]}
    assert {a for n, a in told.items() if n.startswith("encoder")} == {"loaded"}
    assert {a for n, a in told.items() if n.startswith("classifier")} == {"reset"}
    again = train(place, NAMED, task=task, tag=f"{task}-again", epochs=0, pretrained=folder)
    table = json.loads((again.parent / "transfer.json").read_text())["table"]
    assert {each["action"] for each in table["weights"]} == {"loaded"}


def test_a_dataset_follows_the_network_but_not_the_task_of_its_source(place):
    trained = place / "ws" / NAMED / "runs/2d+ynet/fold_0"
    folder = train(place, PLAIN, tag="of-ynet", epochs=0, pretrained=trained)
    network = FoldModel.load(folder / "model.json").decisions.network
    assert network.classifier is None
    assert network.out_channels == 3


def test_a_run_goes_on_with_its_task(place):
    run_folder = place / "ws" / NAMED / "runs/2d+ynet"
    before = (run_folder / "fold_0/model.json").read_bytes()
    train(place, NAMED, task="ynet", tag="ynet", folds=(0,))
    assert (run_folder / "fold_0/model.json").read_bytes() == before
    with pytest.raises(OptionError, match="started with task ynet"):
        train(place, NAMED, task="joint", tag="ynet", folds=(0,))


@pytest.mark.parametrize(
    ("dataset", "options", "problem"),
    [
        (PLAIN, {"task": "joint"}, "at least two classes of lesions"),
        (NAMED, {"task": "joint", "lesion_classes": "cyst,hemangiom"}, "no label 'hemangiom'"),
        (NAMED, {"task": "joint", "lesion_classes": "cyst,cyst"}, "different labels"),
        (NAMED, {"lesion_classes": "cyst,hemangioma"}, "no task is given"),
        (NAMED, {"task": "joint", "cls_weight": 0.3}, "cls.weight"),
        (NAMED, {"task": "ynet", "cls_weight": 0.0}, "cls.weight"),
        (NAMED, {"task": "both"}, "task"),
        (NAMED, {"task": "classify", "class_weights": "balanced"}, "class.weights"),
        (NAMED, {"task": "classify", "loss": "focal-tversky"}, "one of segmentation"),
        (NAMED, {"roi": "liver", "roi_from": f"{NAMED}/2d+classify"}, "finds no liver"),
    ],
)
def test_options_that_make_no_sense(place, dataset, options, problem):
    with pytest.raises(AutoliverError, match=problem):
        train(place, dataset, tag="wrong", **options)
    assert not (place / "ws" / dataset / "runs/2d+wrong").exists()


def test_named_classes_are_told_apart_and_others_are_labels(place):
    folder = train(place, NAMED, task="ynet", tag="two", epochs=1, lesion_classes="metastasis,cyst")
    found = FoldModel.load(folder / "model.json")
    assert found.lesion_classes == ("cyst", "metastasis")
    assert found.decisions.network.classifier.rows == (2, 4)


def test_classes_of_any_name_are_scored_as_lesions(tmp_path):
    folder = write_dataset(tmp_path / "Dataset924_Any", classes=True)
    path = folder / "dataset.json"
    text = path.read_text()
    for number, name in enumerate(CLASSES):
        text = text.replace(name, f"grade {number}")
    path.write_text(text)
    names = tuple(f"grade {number}" for number in range(len(CLASSES)))
    given = {"task": "joint", "lesion_classes": ",".join(names), "preset": "tiny"}
    options = {**SHORT, **given, "workspace": tmp_path / "ws", "folds": (0,)}
    (result,) = autoliver.train(folder, "2d", **options)
    assert result.scores is not None
    assert result.scores.lesion_classes.classes == names
    assert result.scores.lesion_classes.of_reference.lesions == 2


def test_lesions_of_all_classes_are_replayed_as_one_label(place, caplog):
    caplog.set_level("INFO")
    autoliver.train(
        place / PLAIN,
        "2d",
        replay=NAMED,
        tag="replays",
        folds=("all",),
        workspace=place / "ws",
        **{**SHORT, "iterations": 1},
    )
    assert "Replays Classes in 50 % of the patches (liver, lesion)." in caplog.text
    assert "do not count" not in caplog.text


def test_select_compares_what_learns_the_same_labels(place):
    found = autoliver.select(NAMED, runs=[f"2d+{task}" for task in TASKS], workspace=place / "ws")
    assert {run for each in found.candidates for run in each.runs} == {"2d+joint", "2d+ynet"}
    for task in ("segment", "classify"):
        (told,) = (each for each in found.left_out if f"--task {task}" in each)
        assert f"autoliver select {NAMED} 2d+{task} -w" in told
    alone = autoliver.select(NAMED, runs=["2d+segment"], workspace=place / "ws")
    assert [each.runs for each in alone.candidates] == [("2d+segment",)]


def test_export_says_what_a_model_tells_of_lesions(place, tmp_path):
    for task in ("classify", "segment"):
        file = tmp_path / f"{task}.autoliver"
        facts = autoliver.export(f"{NAMED}/2d+{task}", file, workspace=place / "ws").facts
        assert facts.lesion_classes == (CLASSES if task == "classify" else ())
        assert facts.needs_lesions == (task == "classify")


@pytest.mark.parametrize("task", ["segment", "ynet", "classify"])
def test_nnunet_has_no_such_models(place, tmp_path, task):
    with pytest.raises(ModelError, match="nnU-Net"):
        autoliver.export(
            f"{NAMED}/2d+{task}", tmp_path / "out", format="nnunet", workspace=place / "ws"
        )
    assert not (tmp_path / "out").exists()


def test_an_exported_model_still_votes(place, tmp_path):
    file = tmp_path / "joint.zip"
    autoliver.export(f"{NAMED}/2d+joint", file, workspace=place / "ws")
    own, other = predict(place, tmp_path / "a", "joint"), tmp_path / "b"
    predict(place, other, "joint", models=[file])
    assert (own / "lesions.csv").read_text() == (other / "lesions.csv").read_text()


def test_the_command_line(place):
    words = ("train", NAMED, "2d", "--task", "ynet", "--cls-weight", 0.5, "--tag", "ynet")
    found = run(
        *(*words, "--fold", 0, "--epochs", 1, "--iterations", 3, "--batch-size", 2),
        *("--patch", "32,32", "--device", "cpu", "-w", place / "ws"),
    )
    assert found


@pytest.mark.parametrize("task", ["joint", "ynet", "classify"])
def test_tasks_in_3d(place, tmp_path, task):
    given = {**SHORT, "patch": (8, 32, 32), "workspace": place / "ws", "folds": (0,)}
    autoliver.train(place / NAMED, "3d_fullres", task=task, tag=task, **given)
    lesions = place / NAMED / "labelsTr"
    out = predict(place, tmp_path, task, models=[f"{NAMED}/3d_fullres+{task}"], lesions=lesions)
    for path in out.glob("*.nii.gz"):
        array, numbers, count = lesions_of(path)
        assert count == 2
        assert all(len(np.unique(array[numbers == n])) == 1 for n in (1, 2))
