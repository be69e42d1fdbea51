import csv
import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from autoliver.datasets.cases import Labels
from autoliver.errors import DatasetError, OptionError
from autoliver.evaluation import metrics, results, score, tables
from autoliver.evaluation.pairs import find_pairs
from autoliver.evaluation.results import ALL_METRICS, COLUMNS
from autoliver.io import files
from autoliver.io.volume import Geometry, Volume

SHAPE = (6, 10, 12)
GEOMETRY = Geometry(shape_zyx=SHAPE, spacing_mm=(3.0, 1.5, 0.7))
LABELS = Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)})
REGIONS = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
)
EVERYTHING = results.MetricOptions()
GOLDEN = Path(__file__).parents[2] / "../shared/oracle/chaos_metrics"


def volume(array, geometry=GEOMETRY):
    return Volume(array=np.asarray(array, dtype=np.uint8)[None], geometry=geometry)


def label_map(**boxes):
    array = np.zeros(SHAPE, dtype=np.uint8)
    for name, corner in boxes.items():
        value = int(name.removeprefix("v"))
        z, y, x = corner
        array[z : z + 2, y : y + 3, x : x + 3] = value
    return array


def compare(prediction, reference, labels=LABELS, options=EVERYTHING):
    return score.score_case(
        volume(prediction), volume(reference), labels=labels, options=options, name="case_1"
    )


def write_folder(folder, arrays, ending=".nii.gz", geometry=GEOMETRY):
    folder.mkdir()
    for name, array in arrays.items():
        files.write_label(folder / f"{name}{ending}", np.asarray(array, dtype=np.uint8), geometry)
    return folder


@pytest.fixture
def folders(tmp_path):
    moved, exact = label_map(v1=(1, 2, 3)), label_map(v1=(1, 2, 2), v2=(4, 6, 7))
    predictions = write_folder(
        tmp_path / "predictions", {"a": moved, "b": exact, "c.1": 0 * exact}, ".nrrd"
    )
    references = write_folder(
        tmp_path / "references", {"a": label_map(v1=(1, 2, 2)), "b": exact, "c.1": exact}
    )
    (predictions / "summary.json").write_text("{}")
    (references / "._a.nii.gz").write_text("macOS")
    return predictions, references


def test_scores_of_a_case_are_those_of_its_masks():
    rng = np.random.default_rng(0)
    prediction, reference = rng.integers(0, 3, (2, *SHAPE))
    case = compare(prediction, reference)
    for value, label in ((1, "liver"), (2, "tumour")):
        ours, theirs = prediction == value, reference == value
        found = metrics.surface_distances(ours, theirs, spacing_mm=GEOMETRY.spacing_mm)
        scores = case.labels[label]
        assert scores.dice == 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        assert scores.iou == (ours & theirs).sum() / (ours | theirs).sum()
        assert scores.ravd_percent == 100 * abs(ours.sum() - theirs.sum()) / theirs.sum()
        assert scores.assd_mm == metrics.assd(found)
        assert scores.mad_mm == metrics.mad(found)
        assert scores.mssd_mm == metrics.mssd(found)
        assert scores.hd95_mm == metrics.hd95(found)
        assert scores.nsd == metrics.nsd(found, tolerance_mm=2.0)
        assert (scores.voxels, scores.reference_voxels) == (ours.sum(), theirs.sum())
        assert scores.volume_ml == pytest.approx(ours.sum() * 3.15e-3)
        assert scores.volume_difference_ml == pytest.approx(
            (int(ours.sum()) - int(theirs.sum())) * 3.15e-3
        )


def test_a_region_is_the_union_of_its_values():
    prediction, reference = label_map(v1=(1, 2, 2)), label_map(v2=(1, 2, 2))
    case = compare(prediction, reference, REGIONS)
    assert case.labels["liver"].dice == 1.0
    assert case.labels["tumour"].dice == 0.0
    assert compare(prediction, reference).labels["liver"].dice == 0.0


def test_ignored_voxels_count_in_neither():
    labels = LABELS.replace(ignore=3)
    reference = label_map(v1=(1, 2, 2), v3=(3, 6, 6))
    prediction = label_map(v1=(1, 2, 2), v2=(3, 6, 6))
    case = compare(prediction, reference, labels)
    assert case.labels["liver"].dice == 1.0
    assert case.labels["tumour"].voxels == 0
    assert case.labels["tumour"].dice is None
    assert case.warnings == ()


def test_empty_masks():
    some, none = label_map(v1=(1, 2, 2)), label_map()
    both = compare(none, none).labels["liver"]
    assert both.volume_ml == 0.0
    assert [both.dice, both.iou, both.ravd_percent, both.assd_mm, both.nsd] == [None] * 5
    extra = compare(some, none).labels["liver"]
    assert (extra.dice, extra.iou, extra.nsd) == (0.0, 0.0, 0.0)
    assert [extra.ravd_percent, extra.assd_mm, extra.mssd_mm, extra.hd95_mm] == [None] * 4
    missed = compare(none, some).labels["liver"]
    diagonal = math.hypot(5 * 3.0, 9 * 1.5, 11 * 0.7)
    assert (missed.dice, missed.ravd_percent) == (0.0, 100.0)
    assert (
        missed.assd_mm
        == missed.mad_mm
        == missed.mssd_mm
        == missed.hd95_mm
        == pytest.approx(diagonal)
    )
    options = results.MetricOptions(missing_distance="nan")
    missed = compare(none, some, options=options).labels["liver"]
    assert (missed.assd_mm, missed.hd95_mm, missed.nsd) == (None, None, 0.0)


def test_only_what_was_asked_for_is_measured():
    case = compare(
        label_map(v2=(1, 2, 2)),
        label_map(v2=(1, 2, 3)),
        options=results.MetricOptions(metrics=("dice", "hd95")),
    )
    filled = {field for field in COLUMNS if getattr(case.labels["tumour"], field) is not None}
    assert filled == {"dice", "hd95_mm"}


def test_an_unknown_metric_is_refused():
    with pytest.raises(OptionError, match="no metric 'dise'") as error:
        results.MetricOptions(metrics=("dise",))
    assert "dice" in error.value.hint


def test_chaos_adds_its_score_and_what_it_needs():
    options = results.MetricOptions(metrics=("iou",), chaos=True)
    scores = compare(
        label_map(v1=(1, 2, 3)), label_map(v1=(1, 2, 2), v2=(4, 6, 7)), options=options
    )
    liver = scores.labels["liver"]
    values = (liver.dice, liver.ravd_percent, liver.assd_mm, liver.mssd_mm)
    assert liver.chaos == pytest.approx(
        (0 + 100 + (100 - 100 / 15 * values[2]) + (100 - 100 / 60 * values[3])) / 4
    )
    assert scores.labels["tumour"].chaos is None  # no organ of the challenge


def test_lesions_are_counted_in_labels_that_are_lesions():
    reference = label_map(v1=(0, 0, 0), v2=(4, 6, 7))
    reference[0, 8, 8] = 2
    prediction = label_map(v1=(0, 0, 0), v2=(4, 6, 8))
    case = compare(prediction, reference)
    assert case.labels["liver"].lesions is None
    tumour = case.labels["tumour"]
    assert (tumour.lesions.reference, tumour.lesions.detected) == (2, 1)
    assert (tumour.lesion_recall, tumour.lesion_precision) == (0.5, 1.0)
    chosen = results.MetricOptions(lesion_labels=("liver",))
    assert compare(prediction, reference, options=chosen).labels["liver"].lesion_recall == 1.0


def test_different_grids_are_refused():
    turned = GEOMETRY.replace(spacing_mm=(3.0, 1.5, 0.8))
    with pytest.raises(DatasetError, match=r"case_1.*spacing.*0\.8.*0\.7"):
        score.score_case(
            volume(label_map(), turned),
            volume(label_map()),
            labels=LABELS,
            options=EVERYTHING,
            name="case_1",
        )


def test_rounding_in_headers_is_no_other_grid():
    rounded = GEOMETRY.replace(origin_xyz=(0.001, 0.0, 0.0))
    case = score.score_case(
        volume(label_map(v1=(1, 2, 2)), rounded),
        volume(label_map(v1=(1, 2, 2))),
        labels=LABELS,
        options=EVERYTHING,
        name="case_1",
    )
    assert case.labels["liver"].dice == 1.0


def test_values_without_a_label_are_warned_about():
    case = compare(label_map(v255=(1, 2, 2)), label_map(v1=(1, 2, 2)))
    assert case.warnings == ("case_1: the prediction holds values that no label has: 255.",)


def test_folders_pair_by_name_across_endings(folders):
    scores = score.score_folder(*folders, labels=LABELS)
    assert [case.name for case in scores.cases] == ["a", "b", "c.1"]
    liver, tumour = scores.summary["liver"], scores.summary["tumour"]
    dices = [2 * 12 / 36, 1.0, 0.0]
    assert liver.metrics["dice"].mean == pytest.approx(np.mean(dices))
    assert liver.metrics["dice"].sd == pytest.approx(np.std(dices, ddof=1))
    assert (liver.cases, liver.n_empty, liver.n_false_positive, liver.n_missed) == (3, 0, 0, 1)
    assert (tumour.cases, tumour.n_empty, tumour.n_missed) == (3, 1, 1)
    assert tumour.metrics["dice"].n == 2
    assert scores.foreground_mean("dice") == pytest.approx((np.mean(dices) + 0.5) / 2)
    assert ["copies" in warning for warning in scores.warnings] == [True]


def test_an_executor_and_progress_change_nothing(folders):
    seen = []

    def progress(results):
        for result in results:
            seen.append(result.name)
            yield result

    plain = score.score_folder(*folders)
    with ThreadPoolExecutor(2) as executor:
        mapped = score.score_folder(*folders, executor=executor, progress=progress)
    assert mapped == plain
    assert seen == ["a", "b", "c.1"]
    assert pickle.loads(pickle.dumps(plain)) == plain


def test_labels_are_discovered_from_the_references(folders):
    scores = score.score_folder(*folders)
    assert scores.labels.values == {"background": (0,), "label_1": (1,), "label_2": (2,)}
    assert set(scores.summary) == {"label_1", "label_2"}


def test_references_without_any_label_are_refused(tmp_path):
    folder = write_folder(tmp_path / "r", {"a": label_map()})
    with pytest.raises(DatasetError, match="1 reference without any label"):
        score.score_folder(folder, folder)


def test_a_missing_prediction_is_named(folders):
    predictions, references = folders
    (predictions / "b.nrrd").unlink()
    with pytest.raises(DatasetError, match="1 of 3 references without a prediction: b"):
        score.score_folder(predictions, references, labels=LABELS)


def test_many_missing_predictions_are_counted(tmp_path):
    references = write_folder(tmp_path / "r", {f"case_{i}": label_map() for i in range(9)})
    predictions = write_folder(tmp_path / "p", {"case_0": label_map()})
    with pytest.raises(DatasetError, match=r"8 of 9 .* case_1, .* case_5 and 3 more\."):
        find_pairs(predictions, references)


def test_extra_predictions_are_a_warning(folders):
    predictions, references = folders
    (references / "a.nii.gz").unlink()
    scores = score.score_folder(predictions, references, labels=LABELS)
    assert len(scores.cases) == 2
    assert scores.warnings[0] == "Predictions without a reference were left out (1): a."
    assert "equal in every voxel, as copies are (1): b." in scores.warnings[1]


def test_a_subset_leaves_out_references_without_a_prediction(folders):
    predictions, references = folders
    (predictions / "b.nrrd").unlink()
    pairs = find_pairs(predictions, references, subset=True)
    scores = score.score_pairs(pairs, labels=LABELS)
    assert [case.name for case in scores.cases] == ["a", "c.1"]
    assert scores.warnings == ("1 of 3 references without a prediction were left out: b.",)
    for path in predictions.iterdir():
        path.rename(predictions / f"other_{path.name}")
    with pytest.raises(DatasetError, match="3 of 3 references without a prediction"):
        find_pairs(predictions, references, subset=True)


def test_folder_problems_are_told(folders, tmp_path):
    predictions, references = folders
    with pytest.raises(DatasetError, match="no such folder"):
        find_pairs(tmp_path / "nowhere", references)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no label files"):
        find_pairs(tmp_path / "empty", references)
    files.write_label(predictions / "a.nii.gz", label_map(), GEOMETRY)
    with pytest.raises(DatasetError, match=r"a\.nii\.gz and a\.nrrd both belong to case 'a'"):
        find_pairs(predictions, references)


def test_two_single_files_are_a_pair(folders):
    predictions, references = folders
    scores = score.score_folder(predictions / "b.nrrd", references / "c.1.nii.gz", labels=LABELS)
    assert [case.name for case in scores.cases] == ["c.1"]
    assert scores.foreground_mean("dice") == 1.0


def test_lesion_labels_must_exist(folders):
    options = results.MetricOptions(lesion_labels=("metastasis",))
    with pytest.raises(OptionError, match="no label 'metastasis'"):
        score.score_folder(*folders, labels=LABELS, options=options)


def test_saved_scores_are_strict_json_and_load_again(folders, tmp_path):
    scores = score.score_folder(*folders, labels=LABELS, options=results.MetricOptions(chaos=True))
    path = tmp_path / "scores.json"
    scores.save(path)
    assert results.Scores.load(path) == scores

    def refuse(constant):
        raise AssertionError(constant)

    raw = json.loads(path.read_text(), parse_constant=refuse)
    assert raw["kind"] == "scores"
    assert raw["cases"][0]["labels"]["tumour"]["dice"] is None


def test_csv_has_a_row_per_case_and_label(folders, tmp_path):
    scores = score.score_folder(*folders, labels=LABELS)
    results.write_csv(scores, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["case"], r["label"]) for r in rows] == [
        (case, label) for case in ("a", "b", "c.1") for label in ("liver", "tumour")
    ]
    assert float(rows[0]["dice"]) == pytest.approx(2 / 3)
    assert (rows[1]["dice"], rows[1]["assd_mm"], rows[1]["lesions_reference"]) == ("", "", "0")
    assert (rows[3]["lesions_detected"], rows[3]["lesion_recall"]) == ("1", "1.0")
    assert (rows[2]["voxels"], rows[2]["lesions_detected"]) == ("18", "")


def test_the_table_has_three_metrics_and_no_mean_of_volumes(folders):
    lines = tables.table(score.score_folder(*folders, labels=LABELS)).splitlines()
    assert (
        "  ".join(lines[0].split()) == "label  cases  empty  Dice  HD95  mm  volume  difference  ml"
    )
    assert lines[1].startswith("liver   3      0      0.556 +- 0.509  ")
    mean = lines[3].split()
    assert [mean[0], mean[1], mean[3]] == ["mean", "0.528", "-"]
    assert lines[0].index("Dice") == lines[1].index("0.556") == lines[3].index("0.528")
    scores = score.score_folder(*folders, labels=LABELS)
    assert "volume_ml" not in scores.mean
    assert "volume_difference_ml" not in scores.mean


@pytest.mark.parametrize("metrics", [("nsd",), ("volume", "iou"), ALL_METRICS])
def test_the_table_fits_80_columns_whatever_the_labels_and_metrics(folders, metrics):
    names = {"background": (0,), "a" * 90: (1,), "left hepatic vein, segment VIII": (2,)}
    options = results.MetricOptions(metrics=metrics)
    scores = score.score_folder(*folders, labels=Labels(values=names), options=options)
    lines = tables.table(scores).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.split()[-1] not in ("label", "cases") for line in lines)


def test_a_label_that_is_nowhere_is_counted_as_empty(folders):
    names = {"background": (0,), "liver": (1,), "spleen": (7,)}
    lines = tables.table(score.score_folder(*folders, labels=Labels(values=names))).splitlines()
    assert lines[0].split()[:4] == ["label", "cases", "empty", "Dice"]
    assert lines[2].split() == ["spleen", "3", "3", "-", "-", "0.0", "+-", "0.0"]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        *((text, f"'{text}") for text in ("=1+1", "+cmd", "-x", "@SUM(A1)")),
        *((text, "'=1") for text in ("\t=1", "\r=1", " =1")),
        ("a\r=1", "a =1"),
        *((text, text) for text in ("case_1", "-12.5", "+3", "a=b", "")),
    ],
)
def test_no_name_in_the_csv_is_a_formula(tmp_path, name, cell):
    case = compare(label_map(v1=(1, 2, 2)), label_map(v1=(1, 2, 2)))
    case = case.replace(name=name, labels={name: case.labels["liver"]})
    scores = results.Scores(labels=LABELS, options=EVERYTHING, cases=(case,), summary={}, mean={})
    results.write_csv(scores, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        row = list(csv.reader(file))[1]
    assert row[:2] == [cell, cell]
    assert float(row[4]) == 1.0


def test_a_single_case_has_no_deviation():
    case = compare(label_map(v1=(1, 2, 2)), label_map(v1=(1, 2, 2)))
    assert (
        results.summarize([case])["liver"].metrics["dice"]
        == results.summarize([case])["liver"].metrics["iou"]
    )
    assert results.summarize([case])["liver"].metrics["dice"].sd is None


def test_images_have_no_volume(tmp_path):
    flat = Geometry(shape_zyx=(1, 10, 12), spacing_mm=(1.0, 1.0, 1.0))
    mask = label_map(v1=(1, 2, 2))[1:2]
    references = write_folder(tmp_path / "r", {"a": mask}, ".png", flat)
    predictions = write_folder(tmp_path / "p", {"a": 0 * mask}, ".png", flat)
    liver = score.score_folder(predictions, references, labels=LABELS).cases[0].labels["liver"]
    assert liver.volume_ml is None
    assert liver.reference_voxels == 9
    assert liver.mssd_mm == pytest.approx(math.hypot(9, 11))


def test_the_hausdorff_distance_has_two_names():
    assert results.MetricOptions(metrics=("Mad, HD", "NSD")).metrics == ("mad", "mssd", "nsd")
    with pytest.raises(OptionError, match="no metric 'hdd'") as caught:
        results.MetricOptions(metrics=("mad,hdd",))
    assert caught.value.hint.startswith("Did you mean hd?")
    assert results.MetricOptions(metrics=("dice", "hd", "mssd", "mad")).metrics == (
        *("dice", "mssd", "mad"),
    )
    case = compare(
        label_map(v1=(1, 2, 2)),
        label_map(v1=(1, 2, 4)),
        options=results.MetricOptions(metrics=("hd", "mad")),
    )
    found = case.labels["liver"]
    assert found.mssd_mm is not None
    assert found.mad_mm is not None
    assert [found.dice, found.assd_mm, found.hd95_mm] == [None] * 3


def test_every_metric_has_a_column():
    assert {column.metric for column in COLUMNS.values()} == {*ALL_METRICS, "chaos"}


def test_the_official_chaos_example_from_its_files():
    if not GOLDEN.is_dir():
        pytest.skip(f"no reference data at {GOLDEN}")
    expected = json.loads((GOLDEN / "expected.json").read_text())
    scores = score.score_folder(
        GOLDEN / "segmentation.nii.gz",
        GOLDEN / "reference.nii.gz",
        labels=Labels(values={"background": (0,), "Liver": (1,)}),
        options=results.MetricOptions(chaos=True),
    )
    liver = scores.cases[0].labels["Liver"]
    for field in ("dice", "ravd_percent", "assd_mm", "mssd_mm"):
        assert getattr(liver, field) == pytest.approx(expected[field], abs=1e-6)
    assert liver.chaos == pytest.approx(expected["chaos_score"], abs=1e-3)


def test_labels_that_nobody_marked_are_not_scored(folders):
    pairs = find_pairs(*folders)
    left_out = {"a": {"tumour"}, "b": {"liver", "tumour"}, "c.1": {"tumour"}}
    scores = score.score_pairs(pairs, labels=LABELS, unscored=left_out)
    whole = score.score_pairs(pairs, labels=LABELS)
    assert {case.name: set(case.labels) for case in scores.cases} == {
        "a": {"liver"},
        "b": set(),
        "c.1": {"liver"},
    }
    assert scores.cases[0].labels["liver"] == whole.cases[0].labels["liver"]
    liver, tumour = scores.summary["liver"], scores.summary["tumour"]
    assert liver.metrics["dice"].mean == pytest.approx((2 * 12 / 36 + 0.0) / 2)
    assert (liver.cases, tumour.cases, tumour.metrics) == (2, 0, {})
    assert scores.foreground_mean("dice") == liver.metrics["dice"].mean
    row = next(line for line in tables.table(scores).splitlines() if line.startswith("tumour"))
    assert row.split() == ["tumour", "0", *["0"] * ("empty" in tables.table(scores)), *["n/a"] * 3]
    assert (
        "tumour is not scored in 3 cases, where it is not annotated"
        in scores.warnings[0] + (scores.warnings[1])
    )


def shapes() -> "dict[str, tuple[np.ndarray, np.ndarray]]":
    """Label maps (z, y, x) of two sides, by what is odd about them."""
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 3, (2, *SHAPE)).astype(np.uint8)
    liver = label_map(v1=(1, 2, 2), v2=(2, 3, 3))
    edge = np.zeros(SHAPE, np.uint8)
    edge[:, :4], edge[4:, 6:, 9:] = 1, 2
    full = np.ones(SHAPE, np.uint8)
    return {
        "noise": (noise[0], noise[1]),
        "apart": (label_map(v1=(0, 0, 0)), label_map(v1=(4, 7, 9))),
        "one in the other": (liver, np.roll(liver, 1, axis=2)),
        "at the edge": (edge, np.roll(edge, 2, axis=1)),
        "in a corner": (label_map(v2=(4, 7, 9)), label_map(v2=(3, 6, 8))),
        "full": (full, full),
        "full, and a part": (full, edge),
        "only predicted": (liver, 0 * liver),
        "missed": (0 * liver, liver),
        "nothing": (0 * liver, 0 * liver),
        "ignored": (noise[0], np.where(rng.random(SHAPE) < 0.2, 9, noise[1]).astype(np.uint8)),
    }


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.5, 0.7), (7.7, 0.31, 0.31)])
@pytest.mark.parametrize("what", shapes())
def test_labels_are_scored_where_they_are_as_on_the_whole_grid(what, spacing, labels):
    prediction, reference = shapes()[what]
    geometry = Geometry(shape_zyx=SHAPE, spacing_mm=spacing)
    labels = labels.replace(ignore=9)
    case = score.score_case(
        volume(prediction, geometry),
        volume(reference, geometry),
        labels=labels,
        options=results.MetricOptions(missing_distance="nan"),
        name="case",
    )
    for label, values in labels.foreground.items():
        ours, theirs = (np.isin(m, values) & (reference != 9) for m in (prediction, reference))
        found, expected = case.labels[label], by_distance_transform(ours, theirs, spacing)
        assert (found.voxels, found.reference_voxels) == (ours.sum(), theirs.sum())
        # The search and the transform round alike but for the order of squares.
        for field, value in expected.items():
            assert getattr(found, field) == (value and pytest.approx(value, rel=1e-13)), field


def by_distance_transform(ours, theirs, spacing):
    """The distances of two masks on the whole grid by scipy; None where they are undefined."""
    if not ours.any() or not theirs.any():
        return dict.fromkeys(("assd_mm", "mad_mm", "mssd_mm", "hd95_mm"))
    cross = ndimage.generate_binary_structure(3, 1)
    edges = []
    for mask in (ours, theirs):
        edge = mask & ~ndimage.binary_erosion(mask, cross, border_value=1)
        if mask.all():  # its border is then that of the image
            edge = ~np.pad(np.ones([n - 2 for n in SHAPE], bool), 1)
        edges.append(edge)
    one, two = (
        ndimage.distance_transform_edt(~other, sampling=spacing)[edge]
        for edge, other in (edges, edges[::-1])
    )
    both = np.concatenate([one, two])
    return {
        "assd_mm": both.mean(),
        "mad_mm": (one.mean() + two.mean()) / 2,
        "mssd_mm": both.max(),
        "hd95_mm": max(np.percentile(one, 95), np.percentile(two, 95)),
    }


@pytest.mark.parametrize("value", [3, 255, 65_535, 65_536, 2_000_000_000])
def test_values_may_be_of_any_size(value):
    array = label_map(v1=(1, 2, 2)).astype(np.int64) * value
    labels = Labels(values={"background": (0,), "liver": (value,)})
    volumes = [Volume(array=each[None], geometry=GEOMETRY) for each in (array, np.roll(array, 1))]
    found = score.score_case(*volumes, labels=labels, options=EVERYTHING, name="case")
    assert found.labels["liver"].dice == pytest.approx(2 / 3)
