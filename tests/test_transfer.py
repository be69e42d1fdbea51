"""Transfer from a CT set to an MR set, through the commands a user types."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run, told

from autoliver.errors import ArtifactError, DatasetError, ModelError, OptionError
from autoliver.io.files import read_label
from autoliver.models.files import FoldModel
from autoliver.networks.checkpoint import load_weights
from autoliver.planning.plan import Plan
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.options import TrainingOptions
from autoliver.transfer.table import Transfer

CT, MR = "Dataset001_PhantomCT", "Dataset002_PhantomMR"
SHORT = ("--epochs", 2, "--iterations", 3)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five CT phantoms, and three MR phantoms with thicker slices and two to test on."""
    folder = tmp_path_factory.mktemp("data")
    ct = PhantomOptions(contrast="CT", shape_zyx=(16, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
    mr = PhantomOptions(contrast="T2", shape_zyx=(8, 44, 44), spacing_mm=(18.0, 5.0, 5.0))
    write_phantom_dataset(folder, name=CT, cases=5, seed=1, options=ct)
    write_phantom_dataset(folder, name=MR, cases=3, seed=2, options=mr, test_cases=2)
    return folder


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace where 2d is trained on CT, and the MR set is not even planned."""
    workspace = tmp_path_factory.mktemp("workspace")
    run("plan", data / CT, "--preset", "tiny", "-w", workspace)
    run(
        *("train", CT, "2d", "--fold", "all", "--epochs", 4, "--iterations", 20),
        *("--augment", "gin", "-w", workspace),
    )
    return workspace


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "workspace"))


def test_no_step_of_fine_tuning_is_the_source_model(own, data, tmp_path):
    """Planned, preprocessed and mapped, the heads included: the very label maps of the source."""
    mr = data / MR
    run("train", mr, "2d", "--fold", "all", "--pretrained", "PhantomCT", "--epochs", 0, "-w", own)
    name = "2d@PhantomCT"
    run("predict", "-i", mr / "imagesTs", "-o", tmp_path / "ours", "-m", f"{MR}/{name}", "-w", own)
    run("predict", "-i", mr / "imagesTs", "-o", tmp_path / "source", "-m", CT, "-w", own)
    maps = sorted((tmp_path / "source").glob("*.nii.gz"))
    assert len(maps) == 2
    found = 0
    for path in maps:
        expected = read_label(path).array
        found += np.count_nonzero(expected)
        assert np.array_equal(read_label(tmp_path / "ours" / path.name).array, expected)
    assert found > 0
    folder = own / MR / "runs" / name
    transfer = Transfer.load(folder / "transfer.json")
    assert transfer.share == 1.0
    assert {weight.action for weight in transfer.table.weights} == {"loaded"}
    source = load_weights(own / CT / "runs/2d/fold_all/weights.safetensors")[0]
    ours = load_weights(folder / "fold_all/weights.safetensors")[0]
    assert all(np.array_equal(ours[k], source[k]) for k in source)


def test_one_command_plans_transfers_and_goes_on(own, data):
    """What is missing is made, said, and kept: the same command again does nothing more."""
    command = ("train", data / MR, "2d", "--fold", 0, "--pretrained", "PhantomCT", *SHORT)
    text = told(*command, "-w", own)
    assert "Starts from PhantomCT/2d/fold_all: a run of this workspace." in text
    assert "like PhantomCT, planned now" in text
    assert "100.0%  unchanged" in text
    assert "liver <- liver" in text
    plan = Plan.load(own / MR / "plan@PhantomCT.json")
    mine, theirs = (p.configurations["2d"] for p in (plan, Plan.load(own / CT / "plan.json")))
    assert mine.patch_shape == theirs.patch_shape
    assert (mine.normalization, theirs.normalization) == (("zscore",), ("ct",))
    folder = own / MR / "runs/2d@PhantomCT"
    options = TrainingOptions.load(folder / "options.json")
    assert options.pretrained == "PhantomCT/2d/fold_all"
    assert FoldModel.load(folder / "fold_0/model.json").plan.modality == "MR"
    before = (folder / "fold_0/weights.safetensors").stat().st_mtime_ns
    text = told(*command, "-w", own)
    assert "as planned before" in text
    assert (folder / "fold_0/weights.safetensors").stat().st_mtime_ns == before


def test_the_twin_from_scratch_has_the_same_plan_and_steps(own, data):
    result = run(
        *("train", data / MR, "2d", "--fold", 0, "--pretrained", "PhantomCT", *SHORT),
        *("--encoder-factor", 0.5, "--compare-scratch", "-w", own),
    )
    runs = own / MR / "runs"
    assert [fold["folder"] for fold in result["scratch"]] == [
        str(runs / "2d@PhantomCT+scratch" / "fold_0")
    ]
    both = [
        TrainingOptions.load(runs / r / "options.json")
        for r in ("2d@PhantomCT", "2d@PhantomCT+scratch")
    ]
    assert both[1].pretrained is None
    assert both[1].encoder_factor == 1.0
    assert both[0].steps == both[1].steps == 6
    plans = [
        FoldModel.load(Path(f["folder"]) / "model.json").plan
        for f in (*result["folds"], *result["scratch"])
    ]
    assert plans[0].source_intensities
    # Drawn weights know nothing of CT.
    assert plans[0].replace(source_intensities=()) == plans[1]
    assert not (runs / "2d@PhantomCT+scratch/transfer.json").exists()


def test_the_other_way_round_the_source_is_trained_on_the_target_s_plan(own, data):
    run("plan", data / MR, "--preset", "tiny", "-w", own)
    run("plan", CT, "--like", "PhantomMR", "-w", own)
    mr = Plan.load(own / MR / "plan.json").configurations
    ct = Plan.load(own / CT / "plan@PhantomMR.json").configurations
    for name, decided in mr.items():
        assert (ct[name].patch_shape, ct[name].spacing_mm) == (
            decided.patch_shape,
            decided.spacing_mm,
        )
        assert ct[name].normalization == ("ct",)
    run("train", CT, "2d", "--like", "PhantomMR", "--fold", "all", *SHORT, "-w", own)
    text = told("train", MR, "2d", "--pretrained", "PhantomCT", "--fold", 0, *SHORT, "-w", own)
    # Of two runs of 2d the one that was planned like the target.
    assert "Starts from PhantomCT/2d@PhantomMR/fold_all" in text
    like = Plan.load(own / MR / "plan@PhantomCT.json").configurations["2d"]
    assert like.network == mr["2d"].network


def test_imported_and_exported_models_are_sources_by_name_and_by_path(own, data, tmp_path):
    run("export", CT, tmp_path / "LiTS.autoliver", "-w", own)
    run("import", tmp_path / "LiTS.autoliver", "--name", "LiTS", "-w", own)
    text = told("train", data / MR, "2d", "--pretrained", "lits", "--fold", 0, *SHORT, "-w", own)
    assert "Starts from LiTS/2d/fold_all: an imported model." in text
    assert (own / MR / "runs/2d@LiTS/transfer.json").exists()
    places = {
        tmp_path / "LiTS.autoliver": "2d/fold_all",
        own / CT / "runs/2d": "2d/fold_all",
        own / CT / "runs/2d/fold_all": "2d/fold_all",
        own / CT / "runs/2d/fold_all/weights.safetensors": "2d/fold_all",
    }
    for number, (place, which) in enumerate(places.items()):
        command = ("train", MR, "2d", "--fold", 0, "--pretrained", place, "--epochs", 0)
        text = told(*command, "--tag", f"t{number}", "-w", own)
        assert f"PhantomCT/{which}: the path" in text


def test_weights_alone_need_new_heads(own, data, tmp_path):
    alone = tmp_path / "alone.safetensors"
    shutil.copy(own / CT / "runs/2d/fold_all/weights.safetensors", alone)
    command = ("train", data / MR, "2d", "--fold", 0, "--pretrained", alone, *SHORT, "-w", own)
    run("plan", data / MR, "--preset", "tiny", "-w", own)
    with pytest.raises(ModelError, match="the labels of these weights are not known"):
        run(*command)
    assert not (own / MR / "runs/2d@alone/fold_0").exists()
    run(*command, "--reset-heads")
    table = Transfer.load(own / MR / "runs/2d@alone/transfer.json").table
    network = FoldModel.load(own / MR / "runs/2d@alone/fold_0/model.json").decisions.network
    roles = {w.name: network.role(w.name) for w in table.weights}
    assert {w.action for w in table.weights if roles[w.name].head} == {"reset"}
    others = {w.action for w in table.weights if not roles[w.name].head}
    assert others <= {"loaded", "adapted", "reset"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ["2d", "--pretrained", "LiTZ"],
            ModelError,
            "LiTZ: there is no such file, trained dataset",
        ),
        (
            ["3d_fullres", "--pretrained", "PhantomCT"],
            ModelError,
            "it has no trained 3d_fullres, only",
        ),
        (
            ["2d", "--pretrained", "PhantomCT", "--inflate", "mean"],
            OptionError,
            "both PhantomCT/2d/fold_all and 2d are 2D",
        ),
        (
            ["2d", "--pretrained", "imagenet"],
            ModelError,
            "has no encoder that ImageNet weights fit",
        ),
        (
            ["2d", "--like", "Nothing"],
            DatasetError,
            "--like Nothing: there is no such dataset or model",
        ),
        (["2d", "--like", "PhantomCT", "--pretrained", "PhantomCT"], OptionError, "contradict"),
        (["2d", "--compare-scratch"], OptionError, "--compare-scratch trains a twin"),
    ],
)
def test_a_source_that_cannot_serve_is_refused(trained, data, arguments, error, message):
    before = sorted(trained.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        run("train", data / MR, *arguments, "--fold", 0, *SHORT, "-w", trained)
    assert caught.value.hint
    assert not [p for p in set(trained.rglob("*")) - set(before) if p.parent.name == "runs"]


def test_what_there_is_is_listed(trained, data):
    with pytest.raises(ModelError) as caught:
        run("train", data / MR, "2d", "--pretrained", "LiTZ", "-w", trained)
    assert f"{CT}/2d" in caught.value.hint


def test_a_run_begun_from_something_else_is_not_gone_on_with(own, data):
    command = ("train", data / MR, "2d", "--fold", 0, *SHORT, "-w", own)
    run(*command, "--like", "PhantomCT")
    with pytest.raises(OptionError, match="--pretrained") as caught:
        run(*command, "--pretrained", "PhantomCT")
    assert "--fresh" in caught.value.hint
    assert "--tag" in caught.value.hint
    run(*command, "--pretrained", "PhantomCT", "--tag", "tuned")
    # A source that was trained anew has other weights: the run goes on from those it has kept.
    retrain = ("train", CT, "2d", "--fold", "all", "--epochs", 1, "--iterations", 2, "--fresh")
    run(*retrain, "-w", own)
    words = told(*command, "--pretrained", "PhantomCT", "--tag", "tuned")
    assert "continues from PhantomCT/2d/fold_all, with which it was begun" in words


def test_a_source_that_knows_the_held_out_cases_is_told(own):
    command = ("train", CT, "2d", "--fold", 0, "--pretrained", "PhantomCT", *SHORT, "-w", own)
    text = told(*command)
    assert "fold 0: PhantomCT/2d/fold_all, or what it started from, was trained on 1 of the" in text


def test_a_window_without_fat_is_told_where_another_contrast_is_learnt(own):
    command = ("train", CT, "2d", "--fold", 0, *SHORT, "-w", own)
    assert "--window -150 250" in told(*command, "--augment", "gin", "--tag", "narrow")
    assert "--window" not in told(*command, "--tag", "plain")
    run("plan", CT, "--preset", "tiny", "--window", -150, 250, "-w", own)
    assert "--window" not in told(*command, "--augment", "gin", "--tag", "wide")


def test_no_common_label_is_refused_before_anything_is_trained(own, data, tmp_path):
    other = Path(shutil.copytree(data / MR, tmp_path / "Dataset009_Heart"))
    description = json.loads((other / "dataset.json").read_text())
    names = {f"atrium {value}": value for value in description["labels"].values() if value}
    description["labels"] = {"background": 0, **names}
    (other / "dataset.json").write_text(json.dumps(description))
    command = ("train", other, "2d", "--fold", 0, "--pretrained", "PhantomCT", *SHORT, "-w", own)
    with pytest.raises(ModelError, match="No label of the target") as caught:
        run(*command)
    assert "--reset-heads" in caught.value.hint
    run(*command, "--reset-heads")


def test_what_a_run_began_with_is_kept_whole(own, data):
    """Killed between weights and transfer.json, then begun as before: the right weights."""
    command = ("train", data / MR, "2d", "--fold", 0, *SHORT, "-w", own, "--pretrained")
    run(*command, "PhantomCT")
    folder = own / MR / "runs/2d@PhantomCT"
    expected = load_weights(folder / "start.safetensors")[0]
    (folder / "transfer.json").unlink()
    (folder / "start.safetensors").write_bytes(b"of another training")
    run(*command, "PhantomCT")
    found = load_weights(folder / "start.safetensors")[0]
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    # From scratch in the same place nothing of it stays.
    run("train", MR, "2d", "--fold", 0, *SHORT, "--like", "PhantomCT", "--fresh", "-w", own)
    assert not (folder / "transfer.json").exists()
    assert not (folder / "start.safetensors").exists()


def test_a_fold_a_dataset_s_folder_and_another_dataset_of_the_name(own, data, tmp_path):
    run("train", CT, "2d", "--fold", 1, *SHORT, "--tag", "cv", "-w", own)
    command = ("train", data / MR, "2d", "--fold", 0, "--epochs", 0, "-w", own, "--pretrained")
    assert "Starts from PhantomCT/2d+cv/fold_1" in told(*command, "PhantomCT/2d+cv", "--tag", "a")
    assert "from PhantomCT/2d/fold_all" in told(*command, "PhantomCT/2d/fold_all", "--tag", "b")
    assert "from PhantomCT/2d/fold_all" in told(*command, data / CT, "--tag", "c")
    with pytest.raises(ModelError, match="there is no fold_3") as caught:
        run(*command, "PhantomCT/2d/fold_3")
    assert "fold_all" in caught.value.hint
    other = Path(shutil.copytree(data / CT, tmp_path / "Dataset011_PhantomCT"))
    run("train", other, "2d", "--fold", "all", *SHORT, "-w", own)
    with pytest.raises(ModelError, match=f"may mean {CT} or Dataset011_PhantomCT"):
        run(*command, "PhantomCT")


def test_a_configuration_names_its_only_run_whatever_its_suffix(own, data):
    run("plan", data / MR, "--preset", "tiny", "-w", own)
    begin = ("train", MR, "2d", "--fold", "all", "--epochs", 0, "-w", own, "--pretrained")
    run(*begin, "PhantomCT/2d")
    deep = ("train", MR, "3d_fullres", "--fold", "all", "--epochs", 0, "-w", own, "--pretrained")
    assert "from PhantomMR/2d@PhantomCT/fold_all" in told(*deep, f"{MR}/2d")
    assert "from PhantomMR/2d@PhantomCT/fold_all" in told(*deep, f"{MR}/2d/fold_all", "--tag", "b")
    run("plan", CT, "--like", "PhantomMR/2d", "-w", own)
    run(*begin, "PhantomCT/2d", "--tag", "more")
    for command in (
        (*deep, f"{MR}/2d", "--tag", "c"),
        ("plan", CT, "--like", f"{MR}/2d", "-w", own),
    ):
        with pytest.raises(ModelError, match="2 of its runs could be meant") as caught:
            run(*command)
        assert f"{MR}/2d@PhantomCT, {MR}/2d@PhantomCT+more" in caught.value.hint


def test_a_source_of_single_slices_is_told_where_the_plan_has_several(own, data):
    run("plan", data / MR, "--preset", "tiny", "--slices", 3, "-w", own)
    command = ("train", MR, "2d", "--fold", "all", "--epochs", 0, "--pretrained", "PhantomCT")
    said = "2d sees single slices as its source; your plan has 3: --own-plan keeps it"
    assert said in " ".join(told(*command, "-w", own).split())
    assert said not in " ".join(told(*command, "--own-plan", "--tag", "own", "-w", own).split())
    network = FoldModel.load(own / MR / "runs/2d@PhantomCT+own/fold_all/model.json").decisions
    assert network.slices == 3


def test_a_plan_that_follows_another_source_is_refused_with_a_command_that_works(own, data):
    """The source is planned anew after it was trained: its plan and its run's are two."""
    run("plan", CT, "--preset", "tiny", "--spacing", 8, 9, 9, "-w", own)
    run("plan", data / MR, "--preset", "tiny", "-w", own)
    run("plan", MR, "--like", "PhantomCT", "-w", own)
    command = ("train", MR, "2d", "--fold", 0, *SHORT, "--pretrained", "PhantomCT", "-w", own)
    with pytest.raises(ArtifactError, match="another PhantomCT") as caught:
        run(*command)
    words = caught.value.hint.partition("autoliver ")[2].partition(" (")[0].split()
    run(*words, "-w", own)
    run(*command)


def test_damaged_and_foreign_sources(own, data, tmp_path):
    command = ("train", data / MR, "2d", "--fold", 0, *SHORT, "-w", own, "--pretrained")
    text = tmp_path / "notes.txt"
    text.write_text("no model")
    with pytest.raises(ModelError, match="neither a trained model of autoliver nor one of nnU-Net"):
        run(*command, text)
    foreign = tmp_path / "checkpoint_final.pth"
    foreign.write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(ModelError, match="a checkpoint alone does not say"):
        run(*command, foreign)
    weights = own / CT / "runs/2d/fold_all/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged"):
        run(*command, "PhantomCT")
    assert not list((own / MR).glob("runs/*/fold_*"))
