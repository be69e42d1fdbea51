"""pipeline.models through its commands; here for the sake of small trained folds."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.errors import AutoliverError, ModelError, OptionError
from autoliver.io.files import write_image
from autoliver.io.volume import Geometry
from autoliver.models.files import FoldModel
from autoliver.models.selection import Chosen, CleaningRule, Selection
from autoliver.pipeline.models import kind_of
from autoliver.workspace import Workspace

torch.set_num_threads(1)
NAME = "Dataset009_Toy"


@pytest.fixture
def home(save, tmp_path: Path) -> Path:
    """A workspace with a 3D run of two folds, a 2D run, and what was selected of them."""
    for seed, name in enumerate(("fold_0", "fold_1")):
        save(name, seed=seed, mirror_axes=(0,))
    save("fold_all", seed=5, configuration="2d")
    (tmp_path / NAME / "dataset.json").write_text("{}")
    return tmp_path


@pytest.fixture
def selected(home: Path) -> Path:
    Selection(
        dataset=NAME,
        members=(
            Chosen(run="3d_fullres", folds=("0", "1")),
            Chosen(run="2d", folds=("all",)),
        ),
        cleaning=(CleaningRule(labels=("liver", "tumour"), keep="largest"),),
        why=("Both together were better.",),
    ).save(home / NAME / "model.json")
    return home


@pytest.fixture
def images(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).gamma(4.0, 25.0, (1, 9, 14, 12)).astype(np.float32)
    geometry = Geometry(shape_zyx=(9, 14, 12), spacing_mm=(3.0, 1.5, 1.7))
    write_image(tmp_path / "images/case_0000.nii.gz", array, geometry)
    return tmp_path / "images"


def predict(workspace: Path, images: Path, model: object, *options: object) -> dict[str, bytes]:
    """All that `predict` writes but its record, which names the model."""
    output = images.parent / f"out_{len(list(images.parent.glob('out_*')))}"
    wanted = ("--probabilities", "--device", "cpu", "-w", workspace, *options)
    run("predict", "-i", images, "-o", output, "-m", model, *wanted)
    (output / "predict.json").unlink()
    return {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.mark.parametrize("model", [NAME, f"{NAME}/3d_fullres"])
def test_a_model_predicts_the_same_wherever_it_goes(
    selected: Path, images: Path, tmp_path: Path, model: str
) -> None:
    expected = predict(selected, images, model)
    assert set(expected) == {"case.nii.gz", "case.npz", "lesions.csv", "lesions.json"}
    file, other = tmp_path / "toy.autoliver", tmp_path / "other"
    done = run("export", model, file, "-w", selected)
    assert (done["name"], done["path"], done["modality"]) == (NAME, str(file), "MR")
    before = set(tmp_path.rglob("*"))
    assert predict(other, images, file) == expected
    assert {p for p in set(tmp_path.rglob("*")) - before if "out_" not in str(p)} == set()
    renamed = file.rename(tmp_path / "mail.bin")
    done = run("import", renamed, "-w", other)
    assert done["path"] == str(other / "models" / NAME)
    assert done["cleaning"] == (
        ["liver + tumour: only the largest component"] if model == NAME else []
    )
    assert predict(other, images, "toy") == expected
    one = predict(selected, images, f"{NAME}/3d_fullres", "--folds", "1")
    assert predict(other, images, f"{NAME}/3d_fullres", "--folds", "1") == one
    if model == NAME:
        with pytest.raises(ModelError, match="fold 1 is not trained"):
            predict(other, images, renamed, "--folds", "1")
    else:
        assert predict(other, images, renamed, "--folds", "1") == one


def test_the_library_exports_and_imports(home: Path, images: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "toy.autoliver", tmp_path / "other"
    name = f"{NAME}/3d_fullres"
    moved = autoliver.export(name, file, folds=[1], workspace=home)
    assert (moved.name, moved.path) == (NAME, file)
    with pytest.raises(OptionError, match="already exists") as caught:
        autoliver.export(name, file, workspace=home)
    assert caught.value.hint == "Replace it with overwrite."
    assert autoliver.import_model(file, name="Toy", workspace=other).name == "Toy"
    assert predict(other, images, "Toy") == predict(home, images, name, "--folds", "1")
    # The same weights: what is finished stays, whatever the model is called.
    for workspace, model in ((home, name), (other, "Toy")):
        done = autoliver.predict(
            images, tmp_path / "out", model=model, folds=1, workspace=workspace, device="cpu"
        )
    assert (done.new, done.skipped) == (0, 1)


def test_some_folds_can_go_alone_and_an_imported_model_on(home: Path, tmp_path: Path) -> None:
    first, second, other = tmp_path / "a", tmp_path / "b", tmp_path / "other"
    done = run("export", f"{NAME}/3d_fullres", first, "--folds", "1", "-w", home)
    expected = {
        "run": "3d_fullres",
        "configuration": "3d_fullres",
        "folds": ["1"],
        "epochs": [1],
        "previous": False,
    }
    assert done["runs"] == [expected]
    assert run("import", first, "--name", "Friend", "-w", other)["name"] == "Friend"
    done = run("export", "friend", second, "-w", other)
    assert (done["name"], done["runs"]) == ("Friend", [expected])
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
        assert one.namelist() == two.namelist()
        for name in set(one.namelist()) - {"manifest.json"}:
            assert one.read(name) == two.read(name)


def test_people_are_told_what_it_is(selected: Path, tmp_path: Path) -> None:
    arguments = ["export", NAME, str(tmp_path / "toy.autoliver"), "-w", str(selected)]
    told = CliRunner().invoke(app, arguments).stdout
    for words in (
        "Dataset009_Toy, MR: T1",
        "liver 1; tumour 2",
        "3d_fullres, fold 0, 1, 1 epoch",
        "2d, fold all, 1 epoch",
        "liver + tumour: only the largest component",
    ):
        assert words in told
    arguments = ["import", str(tmp_path / "toy.autoliver"), "-w", str(tmp_path / "other")]
    lines = CliRunner().invoke(app, arguments).stdout.splitlines()
    assert lines[:-1] == told.splitlines()[:-1]
    place = f"-w {tmp_path / 'other'}"
    assert lines[-1].endswith(f"autoliver predict -i IN -o OUT -m Dataset009_Toy {place}")


def test_names_that_are_taken_or_unfit_are_refused(home: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "toy.autoliver", tmp_path / "other"
    run("export", f"{NAME}/2d", file, "-w", home)
    with pytest.raises(OptionError, match="has the dataset Dataset009_Toy") as caught:
        run("import", file, "-w", home)
    assert f"--name {NAME}-imported" in caught.value.hint
    for name in ("Toy", "toy", "9", "dataset9", "DATASET009_TOY"):
        with pytest.raises(OptionError, match=f"the dataset {NAME}, which is also known as {name}"):
            run("import", file, "--name", name, "-w", home)
    run("import", file, "--name", "Toy", "-w", other)
    for name in ("toy", "TOY", "Dataset001_Toy"):
        with pytest.raises(OptionError, match=f"the model Toy, which is also known as {name}"):
            run("import", file, "--name", name, "-w", other)
    with pytest.raises(OptionError, match="There is already a model Toy") as caught:
        run("import", file, "--name", "Toy", "-w", other)
    assert "--name" in caught.value.hint
    assert "--overwrite" in caught.value.hint
    run("export", f"{NAME}/3d_fullres", file, "--overwrite", "-w", home)
    run("import", file, "--name", "Toy", "--overwrite", "-w", other)
    assert {p.name for p in (other / "models/Toy/runs").iterdir()} == {"3d_fullres"}
    for name in ("../x", "a/b", "..", ".x", "a\\b", "x ", "auto", "OFF", "all"):
        with pytest.raises(OptionError, match="cannot be the name"):
            run("import", file, "--name", name, "-w", other)


def test_a_damaged_file_leaves_what_was_imported_before(home: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "toy.autoliver", tmp_path / "other"
    run("export", f"{NAME}/2d", file, "-w", home)
    run("import", file, "-w", other)
    before = {p: p.read_bytes() for p in other.rglob("*") if p.is_file()}
    content = file.read_bytes()
    at = content.index(b"safetensors", content.index(b"PK", 4)) + 2000  # among the weights
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(ModelError, match="damaged"):
        run("import", file, "--overwrite", "-w", other)
    assert {p: p.read_bytes() for p in other.rglob("*") if p.is_file()} == before
    assert not list((other / "models").glob(".*"))


def test_exports_replace_nothing_unasked(home: Path, tmp_path: Path) -> None:
    model = f"{NAME}/2d"
    with pytest.raises(OptionError, match="is a folder") as caught:
        run("export", model, tmp_path, "-w", home)
    assert caught.value.hint.endswith("model.autoliver")
    (tmp_path / "there").write_text("mine")
    with pytest.raises(OptionError, match="already exists"):
        run("export", model, tmp_path / "there", "-w", home)
    assert (tmp_path / "there").read_text() == "mine"
    with pytest.raises(OptionError, match="is a file"):
        run("export", model, tmp_path / "there", "--format", "nnunet", "-w", home)
    with pytest.raises(ModelError, match="no trained model 'Toy/x'"):
        run("export", "Toy/x", tmp_path / "new", "-w", home)


def test_what_is_no_model_is_told_apart(home: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "results/nnUNetTrainer__nnUNetPlans__2d"
    (foreign / "fold_0").mkdir(parents=True)
    (foreign / "fold_0/checkpoint_final.pth").touch()
    with zipfile.ZipFile(tmp_path / "theirs.zip", "w") as target:
        target.writestr("Dataset001_X/nnUNetTrainer__nnUNetPlans__2d/plans.json", "{}")
    (tmp_path / "text").write_text("no model")
    for path in (foreign, foreign.parent, tmp_path / "theirs.zip"):
        assert kind_of(path) == "nnunet"
    assert kind_of(tmp_path / "text") is None
    assert kind_of(tmp_path / NAME) is None
    for name in ("results", "theirs.zip", "text", NAME, "nowhere"):
        with pytest.raises(AutoliverError) as caught:
            run("import", tmp_path / name, "-w", tmp_path / "other")
        named = "Trainer__nnUNetPlans__2d: half-written" if name == "results" else name
        assert named in caught.value.problem
    with pytest.raises(ModelError, match="not a model that autoliver exported"):
        Workspace(home).model_to_predict(str(tmp_path / "text"))


def test_a_model_goes_to_nnunet_and_comes_back(
    selected: Path, images: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    run("export", NAME, results, "--format", "nnunet", "-w", selected)
    runs = sorted(path.name for path in (results / NAME).iterdir())
    assert runs == ["nnUNetTrainer__nnUNetPlans__2d", "nnUNetTrainer__nnUNetPlans__3d_fullres"]
    with pytest.raises(ModelError, match="already exists"):
        run("export", NAME, results, "--format", "nnunet", "-w", selected)
    other = tmp_path / "other"
    done = run("import", results / NAME, "--name", "Back", "-w", other)
    # nnU-Net does not say which configurations go together.
    assert [(r["run"], r["folds"]) for r in done["runs"]] == [("3d_fullres", ["0", "1"])]
    for name in ("3d_fullres", "2d"):
        for workspace, model in ((selected, f"{NAME}/{name}"), (other, f"Back/{name}")):
            target = tmp_path / model.replace("/", "_")
            run("predict", "-i", images, "-o", target, "-m", model, "-w", workspace)
        one, back = (tmp_path / f"{m}_{name}" for m in (NAME, "Back"))
        for path in sorted(one.glob("*.nii.gz")):
            assert path.read_bytes() == (back / path.name).read_bytes()
    with pytest.raises(OptionError, match="There is already a model Back"):
        run("import", results / NAME, "--name", "Back", "-w", other)
    single = results / NAME / runs[0]
    assert run("import", single, "-w", other)["name"] == NAME


def test_an_nnunet_import_that_fails_leaves_nothing(selected: Path, tmp_path: Path) -> None:
    results, other = tmp_path / "results", tmp_path / "other"
    run("export", f"{NAME}/2d", results, "--format", "nnunet", "-w", selected)
    checkpoint = next(results.rglob("checkpoint_final.pth"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-200])
    with pytest.raises(ModelError, match=r"checkpoint_final\.pth"):
        run("import", results / NAME, "-w", other)
    assert not (other / "models").exists() or not list((other / "models").iterdir())


@pytest.mark.parametrize("name", ["../../../x", "/tmp/x", "Dataset001_../../x", "a\\..\\b", ".."])
def test_a_dataset_of_any_name_is_exported_inside_the_folder(
    selected: Path, tmp_path: Path, name: str
) -> None:
    for path in selected.rglob("model.json"):
        if "runs" in path.parts:
            info = FoldModel.load(path)
            info.replace(plan=info.plan.replace(dataset=name)).save(path)
    before = set(tmp_path.rglob("*"))
    results = tmp_path / "a/b/c/nnUNet_results"
    run("export", f"{NAME}/2d", results, "--format", "nnunet", "-w", selected)
    new = set(tmp_path.rglob("*")) - before
    (folder,) = results.iterdir()
    assert folder.name.startswith("Dataset")
    assert all(path in results.parents or path.is_relative_to(results) for path in new)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Dataset003_Liver", None),
        ("Dataset12_short", "Dataset012_short"),
        ("Task07_Pan", "Dataset007_Pan"),
        ("Dataset9999_big", "Dataset998_big"),
        ("my livers", "Dataset998_my-livers"),
    ],
)
def test_a_new_name_for_nnunet_is_told_once(
    selected: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    expected: str | None,
) -> None:
    for path in selected.rglob("model.json"):
        if "runs" in path.parts:
            info = FoldModel.load(path)
            info.replace(plan=info.plan.replace(dataset=name)).save(path)
    results = tmp_path / "nnUNet_results"
    (results / "Dataset999_Other").mkdir(parents=True)
    run("export", f"{NAME}/2d", results, "--format", "nnunet", "-w", selected)
    assert (results / (expected or name)).is_dir()
    told = [text for text in caplog.messages if "exported as" in text]
    new = f"{name} is exported as {expected}: nnU-Net finds a dataset by a number of three digits."
    assert told == ([] if expected is None else [new])


def test_a_fold_whose_name_leads_out_is_refused(selected: Path, tmp_path: Path) -> None:
    path = selected / NAME / "runs/2d/fold_all/model.json"
    FoldModel.load(path).replace(fold="all/../../../../x").save(path)
    with pytest.raises(AutoliverError, match=r"fold: found .*without slashes"):
        run("export", f"{NAME}/2d", tmp_path / "out", "--format", "nnunet", "-w", selected)
    assert not (tmp_path / "out").exists()
