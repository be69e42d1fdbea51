"""Pages about predictions: what belongs together, what is out of date, and units."""

import os
from pathlib import Path

import numpy as np
import pytest
from dicom_series import save, slices, voxels
from pages import Page
from report_trees import GRID, label_of

import autoliver
from autoliver.datasets.cases import Labels
from autoliver.errors import DatasetError, OptionError
from autoliver.evaluation.report.sprites import MOST_PIECES, Cut, LabelMap, make_sprite
from autoliver.inference.record import DecidingOptions, Prediction
from autoliver.io.files import write_image, write_label
from autoliver.io.grids import refuse_other_grid
from autoliver.io.volume import Geometry
from autoliver.pipeline.dicom.cases import find_dicom
from autoliver.pipeline.reporting.report import ReportRequest, report
from autoliver.workspace import Workspace

OPTIONS = DecidingOptions(step=0.5, mirror=False, folds=None, roi=None, modality=None, exact=False)
FLAT = Geometry(shape_zyx=(1, 20, 30), spacing_mm=(999.0, 1.0, 1.0))


def predicted(folder: Path, labels: dict[str, int] | None, *, cases: int = 3) -> Path:
    """A folder of label maps with liver as 1 and the tumour as 2, whatever its record says."""
    for number in range(cases):
        write_label(folder / f"case_{number}.nii.gz", label_of(number), GRID)
    if labels is not None:
        values: dict[str, tuple[int, ...]] = {"background": (0,)}
        values |= {name: (value,) for name, value in labels.items()}
        Prediction(
            model=folder.name,
            networks=(),
            cleaning=(),
            options=OPTIONS,
            labels=Labels(values=values),
            label_maps=tuple(f"case_{number}.nii.gz" for number in range(cases)),
        ).save(folder / "predict.json")
    return folder


def page_of(**arguments: object) -> Page:
    return Page(autoliver.report(**arguments).path.read_bytes())  # type: ignore[arg-type]


@pytest.mark.parametrize("referred", [False, True])
@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"tumour": 1, "liver": 2}, "liver is 1.*predicted liver as 2|tumour is 2"),
        ({"Liver": 2}, "predicted Liver as 2"),
        ({"liver": 1, "lesion": 2}, ""),
        (None, ""),
    ],
)
def test_a_folder_is_never_read_by_labels_of_another_model(
    tmp_path: Path, other: dict[str, int] | None, words: str, referred: bool
) -> None:
    first = predicted(tmp_path / "A", {"liver": 1, "tumour": 2})
    both = (first, predicted(tmp_path / "B", other))
    truth = predicted(tmp_path / "truth", None) if referred else None
    output = tmp_path / "page.html"
    if words:
        with pytest.raises(OptionError, match=words) as caught:
            autoliver.report(prediction=both, reference=truth, output=output)
        assert caught.value.hint
        return
    page = page_of(prediction=both, reference=truth, output=output)
    assert ("lesion is scored as tumour" in page.text) == (other is not None)


def test_a_reference_is_never_read_by_other_labels_of_its_dataset(tmp_path: Path) -> None:
    truth = predicted(tmp_path / "data" / "labelsTr", None)
    write_image(tmp_path / "data" / "imagesTr" / "case_0_0000.nii.gz", label_of(0)[None], GRID)
    described = (
        '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1, "liver": 2}, '
        '"numTraining": 1, "file_ending": ".nii.gz"}'
    )
    (tmp_path / "data" / "dataset.json").write_text(described)
    maps = predicted(tmp_path / "out", {"liver": 1, "tumour": 2})
    with pytest.raises(OptionError, match="there liver is 1, but in data liver is 2") as caught:
        autoliver.report(prediction=maps, reference=truth)
    assert "labels were predicted" in caught.value.hint


def turned(axis: int) -> Geometry:
    direction = np.eye(3)
    direction[axis, axis] = -1
    found: Geometry = GRID.replace(direction=tuple(direction.ravel().tolist()))
    return found


@pytest.mark.parametrize(
    ("grid", "fits"),
    [
        (GRID, True),
        (GRID.replace(spacing_mm=(5.000001, 1.0, 1.5)), True),
        (GRID.replace(origin_xyz=(1e-4, 0.0, 0.0)), True),
        (turned(0), False),
        (turned(2), False),
        (GRID.replace(origin_xyz=(9.0, 0.0, 0.0)), False),
        (GRID.replace(spacing_mm=(4.0, 1.0, 1.5)), False),
    ],
)
def test_outlines_are_drawn_on_the_grid_of_the_image_alone(
    tmp_path: Path, grid: Geometry, fits: bool
) -> None:
    write_label(tmp_path / "out" / "c.nii.gz", label_of(0), grid)
    values = np.full((1, *GRID.shape_zyx), 0.3, np.float32)
    write_image(tmp_path / "out" / "c_uncertainty.nii.gz", values, GRID)
    write_image(tmp_path / "images" / "c_0000.nii.gz", label_of(0)[None], GRID)
    page = page_of(prediction=tmp_path / "out", images=tmp_path / "images")
    assert ("it has another grid than its image" in page.text) == (not fits)
    assert any(kind == "application/json" for kind, _ in page.scripts) == fits
    head = [text for text, _ in page.tables["Volume of every case"][0]]
    assert ("mean uncertainty" in head) == fits
    if not fits:
        with pytest.raises(DatasetError, match="has another grid"):
            refuse_other_grid(grid, GRID, what="c")


def correct(out: Path, _truth: Path) -> None:
    write_label(out / "case_1.nii.gz", np.roll(label_of(1), 9, axis=2), GRID)


def correct_with_the_old_time(out: Path, truth: Path) -> None:
    before = (out / "case_1.nii.gz").stat()
    correct(out, truth)
    os.utime(out / "case_1.nii.gz", ns=(before.st_atime_ns, before.st_mtime_ns))


def correct_the_reference(_out: Path, truth: Path) -> None:
    write_label(truth / "case_1.nii.gz", np.roll(label_of(1), 9, axis=2), GRID)


def lose_one(out: Path, _truth: Path) -> None:
    (out / "case_1.nii.gz").unlink()


@pytest.mark.parametrize(
    "change", [correct, correct_with_the_old_time, correct_the_reference, lose_one]
)
def test_scores_of_other_label_maps_are_not_shown(tmp_path: Path, change: object) -> None:
    out, truth = predicted(tmp_path / "out", None), predicted(tmp_path / "truth", None)
    autoliver.evaluate(out, truth)
    caption = "Scores: mean (95 % interval by resampling patients)"
    kept = page_of(prediction=out)
    assert "From scores.json" in kept.text
    assert kept.numbers(caption)["label_1"]["Dice"] == 1.0
    change(out, truth)  # type: ignore[operator]
    alone = page_of(prediction=out)
    assert caption not in alone.tables
    assert "is not of case_1 as now" in alone.text
    again = page_of(prediction=out, reference=truth)
    assert "is not of case_1 as now" in again.text
    assert "Computed for this page" in again.text
    dice = again.numbers(caption)["label_1"]["Dice"] or 0
    assert dice == 1.0 if change is lose_one else dice < 0.9


def test_scores_go_along_with_a_folder_that_is_moved(tmp_path: Path) -> None:
    out, truth = predicted(tmp_path / "out", None), predicted(tmp_path / "truth", None)
    autoliver.evaluate(out, truth)
    write_image(tmp_path / "images" / "case_0_0000.nii.gz", label_of(0)[None], GRID)
    out.rename(tmp_path / "elsewhere")
    page = page_of(prediction=tmp_path / "elsewhere", images=tmp_path / "images")
    assert "From scores.json" in page.text
    assert [kind for kind, _ in page.scripts].count("application/json") == 1


def test_dicom_series_are_images_as_they_are_for_predict(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(tmp_path / "scans" / name, slices(voxels(5, 20, 24)))
    found = find_dicom(tmp_path / "scans")
    assert found is not None
    for name, series in found.series.items():
        label = np.zeros(series.geometry.shape_zyx, np.uint8)
        label[1:4, 4:15, 5:20] = 1
        write_label(tmp_path / "out" / f"{name}.nii.gz", label, series.geometry)
    page = page_of(prediction=tmp_path / "out", images=tmp_path / "scans")
    assert [kind for kind, _ in page.scripts].count("application/json") == 2
    one = page_of(prediction=tmp_path / "out", images=tmp_path / "scans" / "one")
    assert "its image is not known" in one.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no images"):
        autoliver.report(prediction=tmp_path / "out", images=tmp_path / "empty")


def test_images_of_other_cases_are_refused(tmp_path: Path) -> None:
    folder = predicted(tmp_path / "A", None)
    write_image(tmp_path / "in/other_0000.nii.gz", label_of(0)[None], GRID)
    with pytest.raises(OptionError, match=r"none is of a case .* other, .*expected case_0, case_1"):
        autoliver.report(prediction=folder, images=tmp_path / "in", output=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("damage", ["noise", "pipe"])
def test_an_image_that_cannot_be_read_is_told(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, image = predicted(tmp_path / "A", None), tmp_path / "in/case_1.nii.gz"
    image.parent.mkdir()
    if damage == "noise":
        image.write_bytes(bytes(range(256)) * 20)
    else:
        os.mkfifo(image)
    page = page_of(prediction=folder, images=tmp_path / "in", output=tmp_path / "page.html")
    assert str(image) in page.text
    assert f"case_1: no slices: {image}" in caplog.text


def test_a_flat_file_has_an_area_in_pixels(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(6):
        label = np.zeros((1, 20, 30), np.uint8)
        label[0, 4:12, 5 : 15 + (15 if number == 5 else 0)] = 1
        write_label(out / f"c{number}.png", label, FLAT)
    write_label(out / "volume.nii.gz", label_of(0), GRID)
    page = page_of(prediction=out)
    areas = page.numbers("Area of every case")
    assert areas["c0"] == {"label_1 pixels": 80.0, "label_2 pixels": 0.0}
    assert list(page.numbers("Volume of every case")) == ["volume"]
    why = {row[0][0]: row[1][0] for row in page.tables["Unlike the others, or worst"][1:]}
    assert why == {"c5": "label_1: area 200 pixels, while half of the cases have 80 to 80 pixels."}


@pytest.mark.parametrize("name", ["notes.json", "mine.html", "labelsTr/p0.nii.gz"])
def test_only_pages_are_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    with pytest.raises(OptionError, match="--output"):
        report(Workspace(tmp_path / "w"), ReportRequest(predictions=(tmp_path,), output=path))
    assert path.read_bytes() == b"mine"


def test_specks_are_not_outlined() -> None:
    noise = np.random.default_rng(0).random((1, 256, 256)) > 0.5
    organ = np.zeros((1, 256, 256), bool)
    organ[0, 60:120, 60:120] = True
    label = LabelMap(title="found", style="prediction", array=(noise | organ).astype(np.uint8))
    geometry = Geometry(shape_zyx=(1, 256, 256), spacing_mm=(5.0, 1.0, 1.0))
    cut = Cut.of([label], geometry)
    grey = cut.grey(np.zeros((1, 256, 256), np.float32), is_ct=False)
    sprite = make_sprite(cut, grey, labels={"liver": (1,)})
    (paths,) = sprite.layers
    assert paths.paths[0][0].count("M") <= 2 * MOST_PIECES
