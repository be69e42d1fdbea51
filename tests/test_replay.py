"""Replayed cases and mixed weights, through the commands a user types."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run, told
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.datasets.cases import Dataset
from autoliver.datasets.contents import image_key
from autoliver.datasets.folds import Folds
from autoliver.errors import ArtifactError, AutoliverError, OptionError
from autoliver.models.files import FoldModel
from autoliver.networks.checkpoint import load_weights
from autoliver.pipeline.run.keep import choose_share
from autoliver.pipeline.run.source_scores import SourceScores
from autoliver.planning.plan import Plan
from autoliver.preprocessing.store import finished_cases
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.options import TrainingOptions

CT, MR = "Dataset001_PhantomCT", "Dataset002_PhantomMR"
SHORT = ("--epochs", 1, "--iterations", 2)
TUNED = ("2d", "--fold", 0, "--pretrained", "PhantomCT")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five CT phantoms and three MR phantoms."""
    folder = tmp_path_factory.mktemp("data")
    ct = PhantomOptions(contrast="CT", shape_zyx=(8, 36, 36), spacing_mm=(16.0, 7.0, 7.0))
    mr = PhantomOptions(contrast="T2", shape_zyx=(8, 36, 36), spacing_mm=(16.0, 7.0, 7.0))
    write_phantom_dataset(folder, name=CT, cases=5, seed=1, options=ct)
    write_phantom_dataset(folder, name=MR, cases=3, seed=2, options=mr)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace where fold 0 of CT is trained, and the MR set is planned like it."""
    workspace = tmp_path_factory.mktemp("workspace")
    run("plan", data / CT, "--preset", "tiny", "-w", workspace)
    run("train", CT, "2d", "--fold", 0, "--epochs", 1, "--iterations", 10, "-w", workspace)
    run("plan", data / MR, "--preset", "tiny", "-w", workspace)
    run("plan", MR, "--like", "PhantomCT", "-w", workspace)
    return workspace


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "workspace"))


def keys(workspace: Path, name: str, part: str, fold: int = 0) -> set[str]:
    """The keys of the training or validation cases of a fold of a dataset."""
    dataset = Dataset.load(workspace / name / "dataset.json")
    names = getattr(Folds.load(workspace / name / "folds.json").splits[fold], part)
    return {image_key(case) for case in dataset.cases if case.name in names}


def test_replay_and_mixing_from_the_command_line_to_the_model(own: Path) -> None:
    text = told("train", MR, *TUNED, *SHORT, "--replay", "1", "-w", own)
    assert "Replays PhantomCT in 50 % of the patches (liver, " in text
    folder = own / MR / "runs/2d@PhantomCT/fold_0"
    model = FoldModel.load(folder / "model.json")
    assert (model.replay, model.replay_share, model.keep_source) == (CT, 0.5, None)
    # What the weights have seen: the cases of both, and none that either fold holds out.
    assert set(model.trained_on) == keys(own, MR, "train") | keys(own, CT, "train")
    seen = {*model.trained_on, *model.seen_before}
    assert not seen & (keys(own, MR, "validation") | keys(own, CT, "validation"))
    # The source's own store was read, and no other one was made.
    stores = list((own / CT / "store").iterdir())
    assert len(stores) == 1
    # The source's held-out case is scored before and after.
    scores = SourceScores.load(folder / "source/scores.json")
    held_out = Folds.load(own / CT / "folds.json").splits[0].validation
    assert scores.dataset == CT
    assert set(scores.cases) == set(scores.before) == set(held_out)
    before = json.loads((own / CT / "runs/2d/fold_0/validation/scores.json").read_text())
    (case,) = before["cases"]
    assert scores.mean_before == {n: s["dice"] for n, s in case["labels"].items()}

    # Begun with these options, the run goes on with them and refuses others.
    options = TrainingOptions.load(folder.parent / "options.json")
    assert (options.replay, options.replay_share) == (CT, 0.5)
    written = (folder / "weights.safetensors").stat().st_mtime_ns
    result = run("train", MR, *TUNED, "-w", own)
    assert result["folds"][0]["source"]["dataset"] == CT  # type: ignore[index]
    assert (folder / "weights.safetensors").stat().st_mtime_ns == written
    with pytest.raises(OptionError, match=r"started with --replay-share 0\.5, not --replay-share"):
        run("train", MR, *TUNED, "--replay", "1", "--replay-share", 0.25, "-w", own)
    run("train", MR, *TUNED, *SHORT, "--tag", "plain", "-w", own)
    with pytest.raises(OptionError, match="started with no replayed cases, not --replay"):
        run("train", MR, *TUNED, "--tag", "plain", "--replay", "1", "-w", own)

    # The same training, mixed: weights as computed one by one.
    mixed = told(
        *("train", MR, *TUNED, *SHORT, "--replay", "1", "--keep-source", 0.7),
        *("--tag", "mixed", "-w", own),
    )
    assert "Replays" in mixed
    other = folder.parent.with_name("2d@PhantomCT+mixed") / "fold_0"
    assert FoldModel.load(other / "model.json").keep_source == 0.7
    source, tuned, found = (
        load_weights(path)[0]
        for path in (
            own / CT / "runs/2d/fold_0/weights.safetensors",
            folder / "weights.safetensors",
            other / "weights.safetensors",
        )
    )
    changed = 0
    for name, weight in found.items():
        expected = 0.3 * source[name].numpy() + 0.7 * tuned[name].numpy()
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-4, atol=1e-5)
        changed += int((weight != tuned[name]).sum())
    assert changed > 0


def test_auto_chooses_by_held_out_cases_and_the_table_shows_both(own: Path) -> None:
    result = CliRunner().invoke(
        app,
        [
            *("train", MR, *map(str, TUNED), *map(str, SHORT), "--keep-source", "auto"),
            *("--compare-scratch", "-w", str(own)),
        ],
    )
    assert result.exit_code == 0, (result.output, result.exception)
    folder = own / MR / "runs/2d@PhantomCT/fold_0"
    share = FoldModel.load(folder / "model.json").keep_source
    assert f"fold 0 {share:.3g}" in result.stdout
    assert f"{share:g} is kept" in (folder / "train.log").read_text()
    assert not (folder / "keep-source").exists()
    lines = result.stdout.splitlines()
    start = lines.index(f"1 unseen case of {CT}:")
    assert lines[start + 1].split() == ["Dice", "source", "now", "from", "scratch"]
    assert max(map(len, lines[start:-1])) <= 80
    twin = TrainingOptions.load(folder.parents[1] / "2d@PhantomCT+scratch/options.json")
    assert (twin.replay, twin.keep_source, twin.pretrained) == (None, None, None)


def test_python_takes_the_same_options(own: Path) -> None:
    (result,) = autoliver.train(
        *(MR, "2d"),
        **{"folds": 0, "pretrained": "PhantomCT", "epochs": 1, "iterations": 2, "tag": "python"},
        **{"replay": "PhantomCT", "replay_share": 0.3, "keep_source": 1, "workspace": own},
    )
    model = FoldModel.load(result.folder / "model.json")
    assert (model.replay, model.replay_share, model.keep_source) == (CT, 0.3, 1.0)
    assert result.source is not None


def test_a_source_that_was_trained_on_all_has_no_unseen_cases(own: Path) -> None:
    run("train", CT, "2d", "--fold", "all", "-w", own)
    text = told("train", MR, *TUNED, *SHORT, "-w", own)
    assert "no unseen cases of PhantomCT/2d/fold_all to score: it was trained on every" in text
    assert not (own / MR / "runs/2d@PhantomCT/fold_0/source").exists()


def test_stored_cases_are_replayed_though_their_images_are_gone(
    own: Path, data: Path, tmp_path: Path
) -> None:
    """And those that are not stored are an error that says so, before anything is begun."""
    ct = Path(shutil.copytree(data / CT, tmp_path / CT))
    kept = own / CT / "dataset.json"
    kept.write_text(kept.read_text().replace(str(data / CT), str(ct)))
    description = json.loads(kept.read_text())
    description["from_workspace"] = ""
    kept.write_text(json.dumps(description))
    shutil.rmtree(ct)
    text = told("train", MR, *TUNED, *SHORT, "--replay", "PhantomCT", "-w", own)
    assert f"Unseen cases of {CT} are not scored." in text
    (store,) = (own / CT / "store").iterdir()
    name = next(name for name in finished_cases(store) if name in _trained(own))
    (store / f"{name}.json").unlink()
    with pytest.raises(AutoliverError, match=rf"1 case \({name}\) must be preprocessed") as caught:
        run("train", MR, *TUNED, *SHORT, "--replay", "PhantomCT", "--tag", "gone", "-w", own)
    assert "--keep-source" in caught.value.hint


def _trained(workspace: Path) -> tuple[str, ...]:
    return Folds.load(workspace / CT / "folds.json").splits[0].train


def test_what_the_target_holds_out_is_never_replayed(own: Path, data: Path, tmp_path: Path) -> None:
    """The other dataset has the very images that the target's fold holds out."""
    other = Path(shutil.copytree(data / MR, tmp_path / "Dataset009_Pool"))
    run("plan", other, "--preset", "tiny", "-w", own)
    run("train", MR, "2d", "--fold", 1, *SHORT, "--replay", "Pool", "-w", own)
    model = FoldModel.load(own / MR / "runs/2d/fold_1/model.json")
    assert model.replay == "Dataset009_Pool"
    assert not set(model.trained_on) & keys(own, MR, "validation", 1)


def test_another_spacing_of_the_run_has_a_store_that_clean_keeps(own: Path) -> None:
    run("plan", MR, "--like", "PhantomCT", "--spacing", 16, 9, 9, "-w", own)
    run("train", MR, *TUNED, *SHORT, "--replay", "PhantomCT", "-w", own)
    stores = {path.name for path in (own / CT / "store").iterdir()}
    assert len(stores) == 2
    plan = FoldModel.load(own / MR / "runs/2d@PhantomCT/fold_0/model.json").plan
    assert plan.source_intensities == Plan.load(own / CT / "plan.json").intensities
    text = CliRunner().invoke(app, ["clean", "-w", str(own), "--json"])
    found = [Path(each["path"]).name for each in json.loads(text.stdout)["leftovers"]]
    assert not stores & set(found)


def changed_copy(data: Path, folder: Path, **changes: object) -> Path:
    """A dataset of the MR phantoms with another dataset.json."""
    other = Path(shutil.copytree(data / MR, folder))
    path = other / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return other


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--replay", "LiTZ"], "--replay LiTZ: There is no folder and no planned", "PhantomCT"),
        (["--replay", "{mr}"], "is the dataset that is trained itself", "weights come from"),
        (["--replay", "{unplanned}"], "has not been planned", "autoliver plan"),
        (["--replay", "OurLiver"], "an imported model has no cases", "--keep-source"),
        (["--replay", "Heart"], "none of its labels .* is one of", "rename"),
        (["--replay", "Two"], "its channels are T1, T2; the run has MR", "channels"),
        (["--replay", "Kept"], "its axes in another order", "--keep-axes"),
        (["--replay", "PhantomCT", "--replay-share", "0"], "above 0 and below 1", "half"),
        (["--replay", "PhantomCT", "--replay-share", "1"], "above 0 and below 1", "half"),
        (["--replay", "PhantomCT", "--replay-share", "nan"], "above 0 and below 1", "half"),
        (["--replay-share", "0.3"], "none are replayed", "--replay"),
        (["--keep-source", "1.5"], "--keep-source is 1.5; it must be a number from 0 to 1", ""),
        (["--keep-source", "auto", "--fold", "all"], "fold all holds none out", "--fold 0"),
    ],
)
def test_what_cannot_be_replayed_or_kept_is_refused_with_what_to_do(
    words: list[str],
    message: str,
    hint: str,
    others: Path,
) -> None:
    named = {"mr": MR, "unplanned": others / "Dataset008_Unplanned"}
    asked = [word.format(**named) for word in words]
    before = sorted(others.rglob("*"))
    with pytest.raises(AutoliverError, match=message) as caught:
        run("train", MR, *TUNED, *SHORT, *asked, "-w", others / "ws")
    assert hint in caught.value.hint
    assert not [p for p in set(others.rglob("*")) - set(before) if p.name.startswith("fold_")]


@pytest.fixture(scope="module")
def others(trained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets that cannot be replayed, and a workspace that knows them."""
    folder = tmp_path_factory.mktemp("others")
    place = Path(shutil.copytree(trained, folder / "ws"))
    values = json.loads((data / MR / "dataset.json").read_text())["labels"].values()
    atria = {"background": 0, **{f"atrium {v}": v for v in values if v}}
    heart = changed_copy(data, folder / "Dataset003_Heart", labels=atria)
    two = changed_copy(data, folder / "Dataset004_Two", channel_names={"0": "T1", "1": "T2"})
    for path in sorted((two / "imagesTr").glob("*_0000.*")):
        shutil.copy(path, path.with_name(path.name.replace("_0000.", "_0001.")))
    kept = changed_copy(data, folder / "Dataset005_Kept")
    changed_copy(data, folder / "Dataset008_Unplanned")
    for source, *options in ((heart,), (two,), (kept, "--keep-axes")):
        run("plan", source, "--preset", "tiny", *options, "-w", place)
    run("export", CT, folder / "liver.autoliver", "-w", place)
    run("import", folder / "liver.autoliver", "--name", "OurLiver", "-w", place)
    return folder


def test_mixing_needs_weights_of_a_trained_model(trained: Path) -> None:
    with pytest.raises(OptionError, match=r"^--keep-source 0\.5 is for weights of a trained"):
        run("train", MR, "2d", "--keep-source", 0.5, "-w", trained)
    result = CliRunner().invoke(app, ["train", MR, "2d", "--keep-source", "most"])
    assert result.exit_code == 2
    assert "neither a number from 0 to 1 nor auto" in result.stderr


def test_a_replayed_dataset_that_has_changed_is_not_gone_on_with(own: Path) -> None:
    run("train", MR, *TUNED, *SHORT, "--replay", "PhantomCT", "-w", own)
    folds = own / CT / "folds.json"
    content = json.loads(folds.read_text())
    content["splits"][:2] = content["splits"][1::-1]
    folds.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="was started with another replay"):
        run("train", MR, *TUNED, "-w", own)


@pytest.mark.parametrize(
    ("dice", "chosen"),
    [
        ({0.5: 0.8, 0.6: 0.81, 0.7: 0.82, 1.0: 0.822}, 0.7),
        ({0.5: 0.818, 0.7: 0.82, 1.0: 0.822}, 0.5),
        ({0.5: 0.1, 0.9: 0.7, 1.0: 0.71}, 1.0),
        ({0.5: None, 0.9: 0.7, 1.0: 0.7}, 0.9),
        ({0.5: None, 1.0: None}, 1.0),
    ],
)
def test_the_smallest_share_that_is_as_good_is_chosen(
    dice: dict[float, float | None], chosen: float
) -> None:
    assert choose_share(dice) == chosen
