"""`predict --exact`, and what predict.json says and refuses, on small untrained models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SaveFold
from torch import Tensor, nn

from autoliver.errors import ArtifactError, OptionError
from autoliver.inference import fastest
from autoliver.inference.fastest import Fastest
from autoliver.inference.options import PredictOptions
from autoliver.inference.outputs import arithmetic, outputs
from autoliver.inference.predict import PreparedCase
from autoliver.inference.record import Prediction
from autoliver.io.files import read_image, read_label, write_image
from autoliver.io.volume import Geometry, Volume
from autoliver.machine import Machine
from autoliver.models.files import FoldModel
from autoliver.models.selection import Chosen, CleaningRule, Selection, Temperature
from autoliver.pipeline.folder import CasesFailed, Predicted, predict_folder
from autoliver.pipeline.prediction import PredictRequest
from autoliver.workspace import Workspace

GEOMETRY = Geometry(shape_zyx=(9, 8, 8), spacing_mm=(2.0, 2.0, 2.0))
ASKED = PredictRequest(mirror=False, machine=Machine(device="cpu"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two MR images."""
    for number in range(2):
        array = np.random.default_rng(number).uniform(0, 500, (1, *GEOMETRY.shape_zyx))
        write_image(tmp_path / f"in/case_{number}.nii.gz", array.astype(np.float32), GEOMETRY)
    return tmp_path / "in"


@pytest.fixture
def run(save: SaveFold) -> Path:
    """A run of two folds."""
    save("fold_0", seed=0, mirror_axes=(0, 1, 2))
    return save("fold_1", seed=1, mirror_axes=(0, 1, 2)).parent


def predict(
    images: Path, output: Path, model: Path, request: PredictRequest = ASKED, **more: Any
) -> Predicted:
    work = Workspace(output.parent / "w")
    return predict_folder(work, images, output, request, models=(str(model),), **more)


class Killed(BaseException):
    """What no code catches."""


@pytest.mark.parametrize("named", [True, False])
def test_a_kill_around_the_moment_in_which_a_label_map_gets_its_name(
    named: bool, images: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has its name is recorded, and what has none is predicted."""
    request = replace(ASKED, exact=True)
    predict(images, tmp_path / "whole", run, request)
    rename = Path.replace

    def kill(path: Path, target: Path) -> Path:
        hit = target.name == "case_1.nii.gz"
        if hit and not named:
            raise Killed
        renamed = rename(path, target)
        if hit:
            raise Killed
        return renamed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            predict(images, tmp_path / "out", run, request)
    assert (tmp_path / "out/case_1.nii.gz").exists() == named
    done = predict(images, tmp_path / "out", run, request)
    assert (done.new, done.skipped) == ((0, 2) if named else (1, 1))
    assert record_of(tmp_path / "out") == record_of(tmp_path / "whole")


def record_of(output: Path) -> Prediction:
    return Prediction.load(output / "predict.json")


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


class Wrong(nn.Module):
    """Swaps the labels of a network."""

    def __init__(self, network: nn.Module, _: object = None) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).flip(1)


@pytest.fixture
def misled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that takes a way with other results, after the first patches."""
    trial = fastest._Trial(name="wrong way", calls=1, seconds=0.0, build=Wrong)
    monkeypatch.setattr(fastest, "_trials", lambda _: (trial,))
    monkeypatch.setattr(fastest, "_agree", lambda *_, **__: True)
    monkeypatch.setattr(fastest, "_GAIN", float("inf"))


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*_: object) -> None:
        raise AssertionError("something is timed")

    monkeypatch.setattr(fastest, "_timed", timed)


def probabilities(folder: Path) -> list[bytes]:
    return [np.load(path)["probabilities"].tobytes() for path in sorted(folder.glob("*.npz"))]


def test_exact_predictions_are_equal_whatever_the_probe_would_choose(
    images: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = replace(ASKED, exact=True, probabilities=True)
    predict(images, tmp_path / "one", run, exact)
    with monkeypatch.context() as patch:
        trial = fastest._Trial(name="wrong way", calls=1, seconds=0.0, build=Wrong)
        patch.setattr(fastest, "_trials", lambda _: (trial,))
        patch.setattr(fastest, "_agree", lambda *_, **__: True)
        patch.setattr(fastest, "_GAIN", float("inf"))
        predict(images, tmp_path / "two", run, exact)
        # The probe does mislead who lets it.
        predict(images, tmp_path / "misled", run, replace(exact, exact=False))
    assert len(probabilities(tmp_path / "one")) == 2
    assert probabilities(tmp_path / "one") == probabilities(tmp_path / "two")
    assert probabilities(tmp_path / "one") != probabilities(tmp_path / "misled")
    for name in ("case_0.nii.gz", "case_1.nii.gz"):
        one, two = (read_label(tmp_path / folder / name).array for folder in ("one", "two"))
        assert np.array_equal(one, two)


@pytest.mark.usefixtures("no_clock")
def test_nothing_is_timed_for_an_exact_prediction(images: Path, run: Path, tmp_path: Path) -> None:
    assert predict(images, tmp_path / "out", run, replace(ASKED, exact=True)).new == 2
    with pytest.raises(AssertionError, match="something is timed"):
        predict(images, tmp_path / "other", run)


@pytest.mark.usefixtures("misled")
def test_a_model_that_was_misled_predicts_exactly_all_the_same(run: Path, images: Path) -> None:
    """The finder and a first stage compute exactly as well."""
    from autoliver.inference.model import load_model
    from autoliver.models.files import MemberFiles, ModelFiles

    folds = (run / "fold_0",)
    member = MemberFiles(folds=folds)
    files = ModelFiles(name="Toy", members=(member,), finder=MemberFiles(folds=(run / "fold_1",)))
    image = read_image([images / "case_0.nii.gz"])
    exact, fast = PredictOptions(mirror=False, exact=True), PredictOptions(mirror=False)

    def logits(options: PredictOptions, *, first: PredictOptions | None = None) -> bytes:
        model = load_model(files, device=torch.device("cpu"))
        for each in (*filter(None, [first]), options):
            case = PreparedCase.of(model, image, "case")
            (found,) = outputs(model, case, each)
        assert all(isinstance(network, Fastest) for network in model.members[0].networks)
        return found.logits.tobytes()

    assert logits(exact) == logits(exact, first=fast)
    assert logits(exact) != logits(fast, first=fast)


def test_the_switches_of_exact_arithmetic_hold_for_its_block_alone() -> None:
    def switches() -> tuple[bool, ...]:
        cudnn = torch.backends.cudnn
        return (
            torch.are_deterministic_algorithms_enabled(),
            *(cudnn.enabled, cudnn.deterministic, not cudnn.benchmark, not cudnn.allow_tf32),
            not torch.is_autocast_enabled("cuda"),
        )

    before = switches()
    assert not all(before)
    with arithmetic(torch.device("cuda"), exact=True):
        assert all(switches())
    assert switches() == before


@pytest.mark.gpu
def test_exact_predictions_on_a_gpu_are_those_of_float32(
    images: Path, run: Path, tmp_path: Path
) -> None:
    exact = replace(ASKED, exact=True, probabilities=True, machine=Machine(device="cuda"))
    for folder in ("one", "two"):
        predict(images, tmp_path / folder, run, exact)
    assert probabilities(tmp_path / "one") == probabilities(tmp_path / "two")
    predict(images, tmp_path / "cpu", run, replace(exact, machine=Machine(device="cpu")))
    for path in sorted((tmp_path / "one").glob("*.npz")):
        here, there = (np.load(tmp_path / f / path.name)["probabilities"] for f in ("one", "cpu"))
        np.testing.assert_allclose(here, there, atol=2e-5)
    (ways,) = {tuple(n.ways.items()) for n in record_of(tmp_path / "one").networks}
    ((device, names),) = ways
    assert device.startswith("cuda (")
    assert names == ("float32, as it is",)


def test_the_record_says_what_predicted_and_how(images: Path, run: Path, tmp_path: Path) -> None:
    predict(images, tmp_path / "out", run, replace(ASKED, step=0.7, modality="MR", exact=True))
    written = json.loads((tmp_path / "out/predict.json").read_text())
    assert written["kind"] == "prediction"
    assert written["autoliver"].startswith("0.")
    assert written["model"] == "Dataset009_Toy/3d_fullres (fold_0, fold_1)"
    assert written["options"] == {
        **{"step": 0.7, "mirror": False, "folds": None, "roi": None},
        **{"modality": "MR", "exact": True, "match": False, "lesions": None},
    }
    assert written["label_maps"] == ["case_0.nii.gz", "case_1.nii.gz"]
    sums = [FoldModel.load(run / f"fold_{n}/model.json").weights_sha256 for n in range(2)]
    assert [network["weights_sha256"] for network in written["networks"]] == sums
    assert [(n["part"], n["run"], n["fold"], n["ways"]) for n in written["networks"]] == [
        ("member", "3d_fullres", fold, {"cpu": ["float32, as it is"]}) for fold in ("0", "1")
    ]


@pytest.mark.usefixtures("misled")
def test_the_record_says_what_the_probe_chose(images: Path, run: Path, tmp_path: Path) -> None:
    predict(images, tmp_path / "out", run, folds="1")
    (network,) = record_of(tmp_path / "out").networks
    assert network.ways == {"cpu": ("float32, as it is", "float32, wrong way")}


def test_the_finder_is_recorded(images: Path, run: Path, tmp_path: Path, save: SaveFold) -> None:
    low = save("fold_all", seed=3, configuration="2d")
    asked = replace(ASKED, roi=str(low.parent))
    predict(images, tmp_path / "out", run, asked)
    record = record_of(tmp_path / "out")
    assert [(n.part, n.run) for n in record.networks][-1] == ("region", "2d")
    assert record.options.roi == str(low.parent)
    with pytest.raises(OptionError, match=f"--roi {low.parent}, not --roi off"):
        predict(images, tmp_path / "out", run)


def test_the_same_command_again_does_nothing(images: Path, run: Path, tmp_path: Path) -> None:
    predict(images, tmp_path / "out", run)
    before = state(tmp_path / "out")
    done = predict(images, tmp_path / "out", run)
    assert (done.new, done.skipped) == (0, 2)
    assert state(tmp_path / "out") == before


def test_further_cases_are_added(images: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(images / "case_1.nii.gz", out, run).new == 1
    assert record_of(out).label_maps == ("case_1.nii.gz",)
    done = predict(images, out, run)
    assert (done.new, done.skipped) == (1, 1)
    assert record_of(out).label_maps == ("case_0.nii.gz", "case_1.nii.gz")  # by name


CHANGES = [
    ({"step": 0.6}, {}, "with --step 0.5, not --step 0.6"),
    ({"mirror": True}, {}, "with --no-mirror, not --mirror"),
    ({"modality": "MR"}, {}, "with --modality auto, not --modality MR"),
    ({"exact": True}, {}, "with the fastest way, not --exact"),
    ({}, {"folds": "1"}, r"\(fold_0, fold_1\), not .* \(fold_1\)"),
]


@pytest.mark.parametrize(("changed", "more", "words"), CHANGES)
@pytest.mark.parametrize("further", [False, True])
def test_nothing_is_mixed(
    images: Path,
    run: Path,
    tmp_path: Path,
    changed: dict[str, Any],
    more: dict[str, Any],
    words: str,
    further: bool,
) -> None:
    """Neither with a case that is new nor with all of them finished."""
    out, asked = tmp_path / "out", replace(ASKED, **changed)
    predict(images / "case_0.nii.gz" if further else images, out, run)
    before = state(out)
    with pytest.raises(OptionError, match=words) as caught:
        predict(images, out, run, asked, **more)
    assert "--overwrite" in caught.value.hint
    assert "-o" in caught.value.hint
    assert state(out) == before
    predict(images, tmp_path / "other", run, asked, **more)
    predict(images, out, run, replace(asked, overwrite=True), **more)
    assert record_of(out) == record_of(tmp_path / "other")
    assert predict(images, out, run, asked, **more).new == 0


def test_label_maps_that_were_matched_are_others(images: Path, run: Path, tmp_path: Path) -> None:
    predict(images, tmp_path / "out", run)
    then = record_of(tmp_path / "out")
    now = then.replace(options=then.options.replace(match=True))
    assert then.differences(now) == ["no --match, not --match"]
    assert now.differences(then) == ["--match, not no --match"]


def test_a_model_trained_anew_is_another_one(
    images: Path, run: Path, tmp_path: Path, save: SaveFold
) -> None:
    predict(images, tmp_path / "out", run)
    save("fold_1", seed=5)
    with pytest.raises(OptionError, match="other weights of Dataset009_Toy/3d_fullres"):
        predict(images, tmp_path / "out", run)


def test_other_cleaning_rules_and_folds_of_a_selection_are_told(
    images: Path, run: Path, tmp_path: Path
) -> None:
    model = run.parent.parent
    selection = Selection(dataset="Toy", members=(Chosen(run="3d_fullres", folds=("0", "1")),))
    selection.save(model / "model.json")
    predict(images, tmp_path / "out", model)
    with pytest.raises(OptionError, match=r"folds 0, 1 of .*, not 1"):
        predict(images, tmp_path / "out", model, folds="1")
    rule = CleaningRule(labels=("liver",), keep="largest")
    selection.replace(cleaning=(rule,)).save(model / "model.json")
    with pytest.raises(OptionError, match="other cleaning rules"):
        predict(images, tmp_path / "out", model)
    selection.replace(temperature=Temperature(value=1.5)).save(model / "model.json")
    with pytest.raises(OptionError, match=r"temperature 1 for classes of lesions, not 1\.5"):
        predict(images, tmp_path / "out", model)


def test_overwriting_some_cases_does_not_mix_either(
    images: Path, run: Path, tmp_path: Path
) -> None:
    predict(images, tmp_path / "out", run)
    other = replace(ASKED, step=0.8, overwrite=True)
    with pytest.raises(OptionError, match=r"case_1\.nii\.gz would stay as predicted before"):
        predict(images / "case_0.nii.gz", tmp_path / "out", run, other)
    (tmp_path / "out/case_1.nii.gz").unlink()  # what is gone cannot be mixed
    predict(images / "case_0.nii.gz", tmp_path / "out", run, other)
    assert record_of(tmp_path / "out").label_maps == ("case_0.nii.gz",)


def test_what_is_asked_for_beside_a_finished_case_is_made(
    images: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(images, out, run)
    both = replace(ASKED, probabilities=True, uncertainty=True)
    assert predict(images, out, run, both).new == 2
    assert len(list(out.glob("*.npz"))) == len(list(out.glob("*_uncertainty.nii.gz"))) == 2
    assert predict(images, out, run, both).new == 0
    (out / "case_1_uncertainty.nii.gz").unlink()
    assert predict(images, out, run, replace(ASKED, probabilities=True)).new == 0
    assert predict(images, out, run, both).new == 1


def test_the_record_is_there_when_a_case_fails(images: Path, run: Path, tmp_path: Path) -> None:
    broken = read_image([images / "case_1.nii.gz"])
    array = broken.array.copy()
    array[0, 3, 3, 3] = np.nan
    image = Volume(array=array, geometry=broken.geometry)
    write_image(images / "case_1.nii.gz", image.array, image.geometry)
    with pytest.raises(CasesFailed, match="case_1: the image holds NaN"):
        predict(images, tmp_path / "out", run)
    assert (tmp_path / "out/case_0.nii.gz").exists()
    with pytest.raises(OptionError, match=r"case_0\.nii\.gz would stay"):
        predict(images, tmp_path / "out", run, replace(ASKED, step=0.9))


@pytest.mark.parametrize("recorded", [True, False])
def test_overwriting_that_is_interrupted_leaves_nothing_old(
    images: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    out, other = tmp_path / "out", replace(ASKED, step=0.8)
    predict(images, out, run)
    if not recorded:
        (out / "predict.json").unlink()

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("autoliver.pipeline.folder.predict_as_asked", stop)
        with pytest.raises(KeyboardInterrupt):
            predict(images, out, run, replace(other, overwrite=True))
    assert predict(images, out, run, other).new == 2
    # With nothing changed, what is there stays until its replacement is whole.
    with monkeypatch.context() as patch:
        patch.setattr("autoliver.pipeline.folder.predict_as_asked", stop)
        with pytest.raises(KeyboardInterrupt):
            predict(images, out, run, replace(other, overwrite=True))
    assert predict(images, out, run, other).skipped == 2


def test_a_damaged_record_is_told(images: Path, run: Path, tmp_path: Path) -> None:
    predict(images, tmp_path / "out", run)
    (tmp_path / "out/predict.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"predict\.json") as caught:
        predict(images, tmp_path / "out", run)
    assert "--overwrite" in caught.value.hint
