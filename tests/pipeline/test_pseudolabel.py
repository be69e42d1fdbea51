"""Labels of a model: made, judged, joined with drawn ones, and kept as a dataset."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.datasets.cases import Case, Labels, read_dataset
from autoliver.errors import AutoliverError, DatasetError, OptionError, WrongValue
from autoliver.io.files import read_label, write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.pipeline.pseudo.compose import composed, label_of, probability_of
from autoliver.pipeline.pseudo.labelling import Labelling
from autoliver.pipeline.pseudo.request import PseudolabelRequest
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

SPACING = (2.0, 1.0, 1.0)
ML = 2e-3  # of a voxel
NESTED = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)},
    regions_class_order=(1, 2),
    ignore=3,
)


def empty() -> np.ndarray:
    return np.zeros((8, 12, 12), np.float32)


def block(value: float = 0.9) -> np.ndarray:
    """A liver of 4 x 6 x 6 voxels."""
    found = empty()
    found[2:6, 3:9, 3:9] = value
    return found


@pytest.mark.parametrize("largest", [True, False])
def test_pieces(largest: bool) -> None:
    probability = block()
    probability[0, 0, 0] = 0.8
    found, _, quality = label_of(
        probability, band=None, largest=largest, inner=empty() > 0, spacing_mm=SPACING
    )
    assert found.sum() == 144 + (not largest)
    assert quality.volume_ml == pytest.approx(found.sum() * ML)
    assert quality.pieces == 0  # both are below 0.5 ml
    assert quality.confidence == pytest.approx(0.9, abs=1e-3)
    assert quality.outside is None


def test_a_drawn_tumour_belongs_to_the_liver_with_a_rim() -> None:
    probability = block()
    probability[3:5, 5:7, 5:7] = 0.1  # left out by a model of healthy livers
    probability[3, 3:5, 11] = 0.0
    inner = empty() > 0
    inner[3:5, 5:7, 5:7] = True  # inside
    inner[3, 5, 9:11] = True  # at the border, outside of what was found
    found, _, quality = label_of(
        probability, band=None, largest=True, inner=inner, spacing_mm=SPACING
    )
    assert found[2:6, 3:9, 3:9].all()
    assert found[inner].all()
    assert found[3, 5, 11]
    assert found[3, 4, 10]
    assert quality.outside == 1.0  # the hole and the piece outside
    assert quality.confidence == pytest.approx((136 * 0.9 + 0.0) / (found & ~inner).sum(), abs=0.02)


def test_holes_are_filled_only_where_something_is_drawn() -> None:
    probability = block()
    probability[3:5, 5:7, 5:7] = 0.1
    found, _, _ = label_of(
        probability, band=None, largest=True, inner=empty() > 0, spacing_mm=SPACING
    )
    assert not found[3, 5, 5]


def test_the_uncertain_band_hangs_together_with_the_label() -> None:
    probability = block()
    probability[2:6, 3:9, 9] = 0.4  # beside it
    probability[2:6, 3:9, 8] = 0.6  # in it
    probability[0, 0, 0] = 0.4  # far away
    _, uncertain, quality = label_of(
        probability, band=(0.3, 0.7), largest=True, inner=empty() > 0, spacing_mm=SPACING
    )
    expected = empty() > 0
    expected[2:6, 3:9, 8:10] = True
    assert np.array_equal(uncertain, expected)
    assert quality.band_ml == pytest.approx(48 * ML)
    h = lambda p: -(p * np.log2(p) + (1 - p) * np.log2(1 - p))  # noqa: E731
    mean = (120 * h(0.9) + 24 * h(0.6) + 24 * h(0.4)) / 168
    assert quality.entropy == pytest.approx(mean, rel=1e-3)


def test_nothing_found() -> None:
    found, uncertain, quality = label_of(
        empty(), band=(0.3, 0.7), largest=True, inner=empty() > 0, spacing_mm=SPACING
    )
    assert not found.any() and not uncertain.any()  # noqa: PT018
    assert (quality.volume_ml, quality.confidence, quality.pieces) == (0, 0, 0)


@pytest.mark.parametrize("regions", [True, False])
def test_the_rows_of_a_head(regions: bool) -> None:
    values = {"background": (0,), "liver": (1, 2) if regions else (1,), "tumour": (2,)}
    labels = Labels(values=values, regions_class_order=(1, 2) if regions else None)
    rows = np.random.default_rng(0).dirichlet([1, 1, 1], size=(2, 3, 4)).transpose(3, 0, 1, 2)
    rows = rows[1:] if regions else rows
    liver, tumour = rows[-2], rows[-1]
    both = probability_of(rows, labels, ["liver", "tumour"])
    expected = np.maximum(liver, tumour) if regions else liver + tumour
    assert np.allclose(both, expected)
    assert np.allclose(probability_of(rows, labels, ["tumour"]), tumour)


@pytest.mark.parametrize(
    ("drawn", "inside", "uncertain", "expected"),
    [
        (0, False, False, 0),
        (0, True, False, 1),
        (0, True, True, 3),
        (0, False, True, 3),
        (2, False, False, 2),
        (2, True, False, 2),
        (2, True, True, 2),
        (1, False, False, 0),  # a liver that people drew is not what is asked for
        (1, True, False, 1),
        (1, True, True, 3),
    ],
)
def test_the_truth_table_of_composition(
    drawn: int, inside: bool, uncertain: bool, expected: int
) -> None:
    one = (1, 1, 1)
    given = {"liver": (np.full(one, inside), np.full(one, uncertain))}
    found = composed(np.full(one, drawn, np.uint8), given, NESTED, real=["tumour"], shape_zyx=one)
    assert found.item() == expected
    if drawn == 0:
        found = composed(None, given, NESTED, real=["tumour"], shape_zyx=one)
        assert found.item() == expected


# From here on with a model.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CT dataset, a model of it, and a second dataset with tumours alone."""
    place = tmp_path_factory.mktemp("pseudo")
    options = PhantomOptions(shape_zyx=(16, 48, 48), spacing_mm=(10.0, 6.0, 6.0), lesions=(1, 2))
    for name, seed in (("Dataset001_CT", 1), ("Dataset002_Tumours", 5)):
        write_phantom_dataset(place, name=name, cases=3, seed=seed, options=options)
    work = ("-w", place / "ws")
    run("plan", place / "Dataset001_CT", "--preset", "tiny", *work)
    run(*("train", "CT", "2d", "--fold", "all", "--epochs", "3", "--iterations", "40"), *work,
        "--device", "cpu")  # fmt: skip
    folder = place / "Dataset002_Tumours"
    described = json.loads((folder / "dataset.json").read_text())
    tumour = described["labels"]["tumour"]
    for path in (folder / "labelsTr").iterdir():
        label = read_label(path)
        write_label(path, (label.array[0] == tumour).astype("u1"), label.geometry)
    described["labels"] = {"background": 0, "tumour": 1}
    (folder / "dataset.json").write_text(json.dumps(described))
    next(iter(sorted((folder / "labelsTr").iterdir()))).unlink()  # a case without a label map
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "place"))


def call(place: Path, *options: object, out: str = "OUT") -> dict[str, object]:
    """Runs the command on the dataset of tumours."""
    words = (
        "pseudolabel",
        place / "Dataset002_Tumours",
        place / out,
        "-m",
        "CT",
        "--device",
        "cpu",
    )
    return run(*words, "-w", place / "ws", *options)


def test_the_new_dataset(place: Path) -> None:
    described = json.loads((place / "Dataset002_Tumours/dataset.json").read_text())
    described["codes"] = {"tumour": {"type": ["1", "99LAB", "Tumour"]}}
    (place / "Dataset002_Tumours/dataset.json").write_text(json.dumps(described))
    before = {p: p.read_bytes() for p in (place / "Dataset002_Tumours").rglob("*") if p.is_file()}
    done = call(place, "--volume", 50, 10000, "--min-confidence", 0.3)
    assert {p: p.read_bytes() for p in before} == before
    assert (done["kept"], done["refused"]) == (3, {})
    dataset, source = read_dataset(place / "OUT"), read_dataset(place / "Dataset002_Tumours")
    assert dataset.labels.values == {"background": (0,), "liver": (1, 2), "tumour": (2,)}
    assert dataset.labels.ignore == 3
    assert dataset.codes == source.codes != {}
    assert [case.images for case in dataset.cases] == [case.images for case in source.cases]
    first, *others = dataset.cases
    assert first.annotated == {"liver": "pseudo", "tumour": "none"}
    assert first.origin == "pseudo"
    for case, old in zip(others, source.cases[1:], strict=True):
        assert (case.annotated, case.origin) == ({"liver": "pseudo"}, "real")
        new, drawn = read_label(str(case.label)), read_label(str(old.label))
        assert np.array_equal(new.array == 2, drawn.array == 1)
        assert (new.array == 1).sum() > 100
        assert new.geometry == drawn.geometry
    with (place / "OUT/pseudolabels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [case.name for case in dataset.cases]
    assert {row["kept"] for row in rows} == {"True"}
    assert rows[0]["outside"] == ""
    assert float(rows[1]["outside"]) >= 0
    for case in dataset.cases:
        assert (place / f"OUT/pictures/{case.name}.png").stat().st_size > 5000
    with pytest.raises(OptionError, match="there is a dataset already"):
        call(place)


def test_what_is_not_plausible_is_left_out(place: Path) -> None:
    done = call(place, "--volume", 50, 10000, "--min-confidence", 0.3, out="first")
    with (place / "first/pseudolabels.csv").open() as file:
        volumes = {row["case"]: float(row["volume_ml"]) for row in csv.DictReader(file)}
    middle = sorted(volumes.values())[1]
    least = min(volumes, key=lambda name: volumes[name])
    done = call(place, "--volume", (min(volumes.values()) + middle) / 2, 10000,
                "--min-confidence", 0.3, out="second")  # fmt: skip
    refused = done["refused"]
    assert isinstance(refused, dict)
    assert list(refused) == [least]
    assert "expected" in refused[least]
    assert least not in [case.name for case in read_dataset(place / "second").cases]
    assert (place / f"second/pictures/{least}.png").exists()
    with pytest.raises(
        DatasetError, match=r"all of 3 cases were refused: .*mean probability"
    ) as caught:
        call(place, "--volume", 50, 10000, "--min-confidence", 1.0, out="third")
    assert "--min-confidence" in caught.value.hint
    assert not (place / "third/dataset.json").exists()
    # The predictions are still there, and need not be made again.
    before = (place / "third/predicted" / "predict.json").stat().st_mtime_ns
    files = {p: p.stat().st_mtime_ns for p in (place / "third/predicted").glob("*.npz")}
    call(place, "--volume", 50, 10000, "--min-confidence", 0.3, out="third")
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert before


def test_what_people_have_drawn_stays(place: Path) -> None:
    """A case with a drawn liver, one without, and one whose label map is said to lack it."""
    folder = place / "Dataset001_CT"
    first, second, third = (case.name for case in read_dataset(folder).cases)
    described = json.loads((folder / "dataset.json").read_text())
    whole = json.dumps(described)
    described["annotated"] = {second: {"liver": "none"}}
    (folder / "dataset.json").write_text(json.dumps(described))
    (folder / f"labelsTr/{third}.nii.gz").unlink()
    words = ("-m", "CT", "--device", "cpu", "-w", place / "ws", "--volume", 1, 10000,
             "--min-confidence", 0.1)  # fmt: skip
    run("pseudolabel", folder, place / "OUT", *words)
    dataset = read_dataset(place / "OUT")
    others = {"spleen": "none", "right_kidney": "none", "left_kidney": "none", "tumour": "none"}
    assert {case.name: case.annotated for case in dataset.cases} == {
        first: {},
        second: {"liver": "pseudo"},
        third: {"liver": "pseudo", **others},
    }
    old = {case.name: case.label for case in read_dataset(folder).cases}
    names = list(read_dataset(folder).labels.foreground)
    for case in dataset.cases[:2]:
        new, drawn = read_label(str(case.label)).array, read_label(str(old[case.name])).array
        for name in names if case.name == first else [n for n in names if n != "liver"]:
            mine = dataset.labels.values[name][0]
            theirs = read_dataset(folder).labels.values[name][0]
            assert np.array_equal(new == mine, drawn == theirs), name
    (folder / "dataset.json").write_text(whole)
    shutil.copy(old[first] or "", folder / f"labelsTr/{third}.nii.gz")
    with pytest.raises(DatasetError, match="people have drawn liver in all of 3 cases"):
        run("pseudolabel", folder, place / "OUT2", *words)


def test_the_labels_of_a_perfect_model_are_the_reference(place: Path) -> None:
    """Probabilities that are certain give the drawn label back, but for the rim of its tumours."""
    source = read_dataset(place / "Dataset001_CT")
    values = source.labels.values
    label = read_label(str(source.cases[0].label)).array[0]
    liver = np.isin(label, [values["liver"][0], values["tumour"][0]])
    found, uncertain, quality = label_of(
        liver.astype("f4"),
        band=(0.3, 0.7),
        largest=True,
        inner=np.zeros_like(liver),
        spacing_mm=(10.0, 6.0, 6.0),
    )
    assert np.array_equal(found, liver)
    assert not uncertain.any()
    assert (quality.confidence, quality.pieces) == (1.0, 1)


def test_a_folder_holds_one_dataset_from_end_to_end(place: Path) -> None:
    """Refused with --overwrite: nothing of the old dataset is left, and it cannot be planned."""
    call(place, "--volume", 50, 10000, "--min-confidence", 0.3)
    other = ("pseudolabel", place / "Dataset001_CT", place / "OUT", "-m", "CT", "--device", "cpu")
    for path in (place / "Dataset001_CT/labelsTr").iterdir():
        path.unlink()
    with pytest.raises(OptionError, match="there is a dataset already"):
        run(*other, "-w", place / "ws")
    with pytest.raises(DatasetError, match="all of 3 cases were refused"):
        run(*other, "-w", place / "ws", "--overwrite", "--min-confidence", 1.0)
    assert not (place / "OUT/dataset.json").exists()
    assert not (place / "OUT/labelsTr").exists()
    assert {p.name[:2] for p in (place / "OUT/pictures").iterdir()} == {"CT"}
    with pytest.raises(OptionError, match="begun for other images than those of Dataset002"):
        call(place)
    with pytest.raises(OptionError, match="was not made by pseudolabel"):
        call(place, "--overwrite", out="Dataset001_CT")


def test_a_liver_with_its_tumours_stays_as_drawn(tmp_path: Path) -> None:
    """A dataset as this command makes it gets a further label."""
    grid = Geometry(shape_zyx=(8, 12, 12), spacing_mm=SPACING)
    write_image(tmp_path / "in/a.nii.gz", np.zeros((1, 8, 12, 12), "f4"), grid)
    drawn = np.zeros((8, 12, 12), np.uint8)
    drawn[2:6, 3:9, 3:9], drawn[3:5, 4:6, 4:6], drawn[2, 3, 3] = 1, 2, 3
    write_label(tmp_path / "in/a_label.nii.gz", drawn, grid)
    spleen = empty()
    spleen[5:8, 6:12, 6:12] = 0.9
    np.savez(tmp_path / "p.npz", probabilities=np.stack([1 - spleen, spleen]))
    labels = Labels(
        values={"background": (0,), "spleen": (1,), "liver": (2, 3), "tumour": (3,)},
        regions_class_order=(1, 2, 3),
        ignore=4,
    )
    work = Labelling(
        theirs=Labels(values={"background": (0,), "spleen": (1,)}),
        parts={"spleen": ("spleen",)},
        own=NESTED,
        labels=labels,
        request=PseudolabelRequest(volume_ml=(0.0, 9.0)),
        output=tmp_path / "out",
    )
    case = Case(
        name="a",
        patient="a",
        images=(str(tmp_path / "in/a.nii.gz"),),
        label=str(tmp_path / "in/a_label.nii.gz"),
    )
    judged = work.label(case, tmp_path / "p.npz")
    assert judged.refused == ""
    found = read_label(tmp_path / "out/labelsTr/a.nii.gz").array[0]
    expected = np.where(spleen > 0.5, 1, 0)
    for value, new in ((1, 2), (2, 3), (3, 4)):  # what is ignored there is ignored here
        expected[drawn == value] = new
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("options", "kind", "problem"),
    [
        (("--label", "pancreas"), DatasetError, "has no such label"),
        (("--volume", 5, 1), WrongValue, "smaller one first"),
        (("--band", 0.6, 0.7), WrongValue, "around 0.5"),
        (("--folds", "3"), AutoliverError, "fold"),
    ],
)
def test_what_cannot_be_asked_for(
    options: tuple[object, ...],
    kind: type[AutoliverError],
    problem: str,
    trained: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(kind, match=problem):
        call(trained, *options, out=str(tmp_path / "OUT"))
    assert not (tmp_path / "OUT").exists()


def test_a_band_and_no_band_contradict_each_other(trained: Path, tmp_path: Path) -> None:
    words = ["pseudolabel", str(trained), str(tmp_path / "OUT"), "-m", "X", "--no-band"]
    result = CliRunner().invoke(app, [*words, "--band", "0.3", "0.7"])
    assert result.exit_code == 2
    assert "0.3 0.7 contradicts --no-band" in " ".join(result.stderr.replace("│", "").split())


def test_the_request_checks_itself() -> None:
    for wrong in ({"least_confidence": 2.0}, {"labels": ()}, {"most_outside": -1.0}):
        with pytest.raises(WrongValue):
            PseudolabelRequest(**wrong)  # type: ignore[arg-type]
