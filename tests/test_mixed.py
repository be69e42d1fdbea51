"""CT and MR in one dataset: each case is normalised by its own modality."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run

from autoliver.datasets.cases import Case, groups_of
from autoliver.errors import DatasetError
from autoliver.evaluation.results import Scores
from autoliver.evaluation.tables import table
from autoliver.inference.record import read_record
from autoliver.io.files import read_image, read_label, write_image, write_label
from autoliver.planning.plan import Plan
from autoliver.preprocessing.store import read_case
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset007_Both"
GRID = PhantomOptions(shape_zyx=(12, 32, 32), spacing_mm=(10.0, 6.0, 6.0))
CONTRAST = {"CT": "CT", "MR": "T2"}
SHORT = ("--epochs", "1", "--iterations", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three CT and three MR phantoms, planned, and a fold of it that is trained."""
    place = tmp_path_factory.mktemp("mixed")
    modality = {}
    both = place / NAME
    for kind in ("CT", "MR"):
        options = PhantomOptions(
            contrast=CONTRAST[kind], shape_zyx=(12, 32, 32), spacing_mm=(10, 6, 6)
        )
        one = write_phantom_dataset(place, name=f"Dataset001_{kind}", cases=3, seed=1,
                                    options=options)  # fmt: skip
        for folder in ("imagesTr", "labelsTr"):
            (both / folder).mkdir(parents=True, exist_ok=True)
            for file in (Path(one) / folder).iterdir():
                shutil.copy(file, both / folder / f"{kind}{file.name}")
                modality[f"{kind}{file.name.split('.')[0].removesuffix('_0000')}"] = kind
        description = json.loads((Path(one) / "dataset.json").read_text())
    description |= {"channel_names": {"0": "image"}, "modality": modality, "numTraining": 6}
    (both / "dataset.json").write_text(json.dumps(description))
    run("plan", both, "--preset", "tiny", "-w", place / "ws")
    run("train", NAME, "2d", "--fold", "0", *SHORT, "-w", place / "ws")
    return place


def test_the_plan_says_how_each_is_normalised(place: Path) -> None:
    plan = Plan.load(place / "ws" / NAME / "plan.json")
    assert (plan.modality, plan.mixed) == ("CT", True)
    assert plan.configurations["2d"].normalization == ("ct",)
    # Only the voxels of CT count: those of MR are no HU.
    images = place / NAME
    values = []
    for path in sorted((images / "labelsTr").glob("CT*")):
        label = read_label(path).array[0]
        image = read_image([images / "imagesTr" / path.name.replace(".nii", "_0000.nii")])
        values.append(image.array[0][label > 0])
    (stats,) = plan.intensities
    assert stats.mean == pytest.approx(np.concatenate(values).mean(), rel=0.05)
    reasons = [*plan.reasons.values(), *plan.configurations["2d"].reasons.values()]
    assert any("MR cases: each is shifted by its own mean" in reason for reason in reasons)


def test_each_case_is_stored_on_its_own_scale(place: Path) -> None:
    plan = Plan.load(place / "ws" / NAME / "plan.json")
    stores = [path for path in (place / "ws" / NAME / "store").iterdir() if path.is_dir()]
    (stats,) = plan.intensities
    low = (stats.percentile_00_5 - stats.mean) / stats.std
    names = {p.name.split(".")[0] for p in stores[0].glob("*T*.b2nd")} | {
        p.name.split(".")[0] for p in stores[0].glob("MR*.b2nd")
    }
    seen = {"CT": 0, "MR": 0}
    for name in sorted({n.removesuffix("_seg") for n in names}):
        image = np.asarray(read_case(stores[0], name).image[:])
        if name.startswith("CT"):
            seen["CT"] += 1
            assert image.min() >= low - 0.2  # clipped to the window, and resampled
        else:
            seen["MR"] += 1
            assert abs(image.mean()) < 0.2 and image.std() == pytest.approx(1, abs=0.2)  # noqa: PT018
    assert seen == {"CT": 3, "MR": 3}


def test_prediction_decides_case_by_case_and_says_so(place: Path, tmp_path: Path) -> None:
    shown = run(
        *("predict", "-i", place / NAME / "imagesTr", "-o", tmp_path / "out", "-m", NAME),
        *("-w", place / "ws", "--device", "cpu", "--exact"),
    )
    assert shown["predicted"] == 6
    record = read_record(tmp_path / "out/predict.json")
    assert record is not None
    assert {n: used.modality for n, used in record.modalities.items()} == {
        n: n[:2] for n in record.label_maps
    }
    for name, used in record.modalities.items():
        assert used.why
        own = "its own mean" in used.how
        assert own == name.startswith("MR")
        assert (used.how == "normalised as planned for CT") == name.startswith("CT")
        assert used.why.startswith("lowest value" if name.startswith("CT") else "no negative")
    # The held-out cases were predicted the same way, by the modality that dataset.json gives.
    held_out = place / "ws" / NAME / "runs/2d/fold_0/validation"
    files = sorted(held_out.glob("*.nii.gz"))
    assert files
    for file in files:
        one, other = read_label(file).array, read_label(tmp_path / "out" / file.name).array
        assert np.array_equal(one, other)


def test_a_case_that_may_be_either_is_not_guessed(place: Path, tmp_path: Path) -> None:
    source = next((place / NAME / "imagesTr").glob("MR*"))
    image = read_image([source])
    write_image(tmp_path / "in/odd.nii.gz", image.array - 30.0, image.geometry)
    command = ("predict", "-i", tmp_path / "in", "-o", tmp_path / "out", "-m", NAME, "-w",
               place / "ws", "--device", "cpu")  # fmt: skip
    with pytest.raises(DatasetError, match=r"odd: .*was trained on both CT and MR") as caught:
        run(*command)
    assert "--modality CT or --modality MR" in caught.value.hint
    assert run(*command, "--modality", "MR")["predicted"] == 1


def test_scores_by_modality(place: Path, tmp_path: Path) -> None:
    held_out = place / "ws" / NAME / "runs/2d/fold_0/validation/scores.json"
    names = [case.name[:2] for case in Scores.load(held_out).cases]
    assert set(Scores.load(held_out).groups) == (set(names) if len(set(names)) > 1 else set())
    shutil.copytree(place / NAME / "labelsTr", tmp_path / "p")
    worse = next((tmp_path / "p").glob("MR*"))
    found = read_label(worse)
    write_label(worse, np.zeros_like(found.array[0]), found.geometry)
    run("evaluate", "-p", tmp_path / "p", "-r", place / NAME / "labelsTr", "-d", place / NAME)
    scores = Scores.load(tmp_path / "p/scores.json")
    assert list(scores.groups) == ["CT", "MR"]
    for group, labels in scores.groups.items():
        own = [case for case in scores.cases if case.name.startswith(group)]
        for name, summary in labels.items():
            values = [d for case in own if (d := case.labels[name].dice) is not None]
            mean = summary.metrics["dice"].mean if values else None
            assert mean == (pytest.approx(np.mean(values)) if values else None)
    assert scores.groups["CT"]["liver"].metrics["dice"].mean == 1
    assert scores.groups["MR"]["liver"].metrics["dice"].mean < 1
    shown = table(scores)
    assert "MR: liver" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("cases", "groups"),
    [
        ("aCT aCT", {}),
        ("aCT bCT", {"a": "0", "b": "1"}),
        ("aCT aMR", {"CT": "0", "MR": "1"}),
        ("aCT bMR", {"CT": "0", "MR": "1"}),  # the sources are the modalities
        ("aCT bCT bCT", {"a": "0", "b": "12"}),
        ("aCT bCT bMR", {"CT": "01", "MR": "2", "a": "0", "b": "12"}),
        ("aCT other", {"CT": "0", "other": "1"}),
    ],
)
def test_groups_of_cases(cases: str, groups: dict[str, str]) -> None:
    made = [
        Case(name=str(i), patient=str(i), images=(), source="" if c == "other" else c[0],
             modality="other" if c == "other" else c[1:])  # type: ignore[arg-type]
        for i, c in enumerate(cases.split())
    ]  # fmt: skip
    assert groups_of(made) == {name: tuple(members) for name, members in groups.items()}
