"""Corrected predictions become a dataset: what fits is kept as it is, what does not is named."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from commands import run
from small_models import SaveFold

import autoliver
from autoliver.artifacts import file_sha256
from autoliver.datasets.cases import Labels, read_dataset
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.io.dicom.codes import Concept, SegmentCodes
from autoliver.io.files import read_image, read_label, write_image, write_label
from autoliver.io.grids import compare_grids
from autoliver.io.orientation import reorientation_to
from autoliver.io.volume import Geometry
from autoliver.machine import Machine
from autoliver.pipeline.adoption.adopt import Adopted, AdoptRequest, adopt
from autoliver.pipeline.adoption.record import Adoption
from autoliver.pipeline.folder import predict_folder
from autoliver.pipeline.prediction import PredictRequest
from autoliver.planning.plan import Plan
from autoliver.planning.verify import verify
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.workspace import Workspace

GRID = Geometry(shape_zyx=(9, 8, 10), spacing_mm=(2.0, 1.5, 1.0), origin_xyz=(5.0, 6.0, 7.0))
RNG = np.random.default_rng(0)


def image(*, ct: bool = False) -> np.ndarray:
    array = RNG.uniform(0, 500, (1, *GRID.shape_zyx)).astype("float32")
    return array * 4 - 1000 if ct else array


def labels() -> np.ndarray:
    """No two of its flips and permutations are equal."""
    found = np.zeros(GRID.shape_zyx, np.uint8)
    found[1:4, 2:4, 1:8] = 1
    found[2, 3, 2] = 2
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three MR images."""
    for number in range(3):
        write_image(tmp_path / f"in/case_{number}_0000.nii.gz", image(), GRID)
    return tmp_path / "in"


@pytest.fixture
def corrected(tmp_path: Path) -> Path:
    """Their label maps."""
    for number in range(3):
        write_label(tmp_path / f"corrected/case_{number}.nii.gz", labels(), GRID)
    return tmp_path / "corrected"


@pytest.fixture
def model(save: SaveFold) -> Path:
    """An MR model with liver and tumour."""
    return save("fold_0").parent


@pytest.fixture
def ct_model(save: SaveFold) -> Path:
    return save("fold_0", modality="CT", channel_names=("CT",)).parent


def adopted(images: Path, corrected: Path, like: Path | None, **options: object) -> Adopted:
    place = images.parent
    request = AdoptRequest(like=None if like is None else str(like), **options)  # type: ignore[arg-type]
    return adopt(Workspace(place / "w"), images, corrected, place / "out", request)


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def shifted(path: Path) -> None:
    write_label(path, labels(), GRID.replace(origin_xyz=(5.0, 6.0, 9.0)))


def resampled(path: Path) -> None:
    grid = GRID.replace(shape_zyx=(18, 8, 10), spacing_mm=(1.0, 1.5, 1.0))
    write_label(path, labels().repeat(2, axis=0), grid)


def cropped(path: Path) -> None:
    write_label(path, labels()[1:], GRID.replace(shape_zyx=(8, 8, 10), origin_xyz=(5.0, 6.0, 9.0)))


def placeless(path: Path) -> None:
    write_label(path, labels(), Geometry(shape_zyx=GRID.shape_zyx, spacing_mm=(1.0, 1.0, 1.0)))


def mirrored(path: Path) -> None:
    """The array of an editor that lost the direction of an axis."""
    write_label(
        path, labels(), GRID.replace(direction=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    )


def unknown(path: Path) -> None:
    write_label(path, labels() * 3, GRID)


def negative(path: Path) -> None:
    write_image(path, -labels()[None].astype(np.int16), GRID)


def fractions(path: Path) -> None:
    write_image(path, labels()[None] * np.float32(0.5), GRID)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def probabilities(path: Path) -> None:
    write_image(path, np.stack([labels()] * 2).astype(np.float32), GRID)


def segments(path: Path) -> None:
    write_image(path.with_name("case_1.seg.nrrd"), np.stack([labels()] * 2), GRID)
    path.unlink()


def renumbered(path: Path) -> None:
    found = sitk.GetImageFromArray(labels())
    found.CopyInformation(sitk.ReadImage(path))
    for key, value in {"Name": "Tumour", "LabelValue": "1"}.items():
        found.SetMetaData(f"Segment0_{key}", value)
    sitk.WriteImage(found, path.with_name("case_1.seg.nrrd"))
    path.unlink()


def twice(path: Path) -> None:
    write_label(path.with_name("case_1.nrrd"), labels(), GRID)


def channel_name(path: Path) -> None:
    path.rename(path.with_name("case_1_0000.nii.gz"))


def other_name(path: Path) -> None:
    path.rename(path.with_name("Segmentation.nii.gz"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BAD: list[tuple[Callable[[Path], None], str, str]] = [
    (shifted, "origin", "without cropping or resampling"),
    (resampled, "size", "without cropping or resampling"),
    (cropped, "size", "without cropping or resampling"),
    (placeless, "spacing", "without cropping or resampling"),
    (mirrored, "origin", "without cropping or resampling"),
    (unknown, r"holds 3 \(41 voxels\), 6 \(1 voxels\); the labels are 0 background", "--like"),
    (negative, r"holds -2 \(1 voxels\), -1", "--like"),
    (fractions, "not whole numbers", "without interpolation"),
    (damaged, "cannot be read", "again"),
    (probabilities, "2 channels", "one grey image"),
    (segments, "2 channels", "In 3D Slicer"),
    (renumbered, "segment 'Tumour' has the value 1, expected 2", "numbered the segments anew"),
    (twice, r"holds case_1.nii.gz and case_1.nrrd", "Keep the corrected one"),
    (channel_name, "case_1_0000.nii.gz is a label map without an image", r"to case_1\.nii\.gz"),
    (other_name, "Segmentation.nii.gz is a label map without an image", "CASE.nii.gz"),
    (folder, "found a folder", ""),
]


def test_codes_of_the_model_stay(images: Path, corrected: Path, save: SaveFold) -> None:
    codes = {"Liver": SegmentCodes(type=Concept("1", "99LAB", "Liver"))}
    done = adopted(images, corrected, save("fold_0", codes=codes).parent)
    assert read_dataset(done.folder).codes == {"liver": codes["Liver"]}


@pytest.mark.parametrize(
    ("spoil", "problem", "hint"), BAD, ids=lambda one: getattr(one, "__name__", "")
)
def test_a_label_map_that_does_not_fit_is_named_and_nothing_is_written(
    spoil: Callable[[Path], None],
    problem: str,
    hint: str,
    images: Path,
    corrected: Path,
    model: Path,
) -> None:
    spoil(corrected / "case_1.nii.gz")
    with pytest.raises(DatasetError, match=problem) as caught:
        adopted(images, corrected, model)
    assert "Nothing was written, for 1 problem:" in caught.value.problem
    assert "case_0" not in caught.value.problem
    assert re.search(hint, caught.value.hint), caught.value.hint
    assert not (images.parent / "out").exists()
    assert not list(images.parent.glob(".*partial*"))


def test_all_problems_of_all_cases_are_listed_at_once(
    images: Path, corrected: Path, model: Path
) -> None:
    shifted(corrected / "case_0.nii.gz")
    unknown(corrected / "case_1.nii.gz")
    write_image(images / "case_1_0000.nii.gz", image() * np.nan, GRID)
    other_name(corrected / "case_2.nii.gz")
    with pytest.raises(DatasetError, match="4 problems:") as caught:
        adopted(images, corrected, model)
    assert len(caught.value.problem.splitlines()) == 5
    for words in ("origin", "NaN", "holds 3", "Segmentation"):
        assert words in caught.value.problem
    listed = caught.value.facts["problems"]
    assert [each["case"] for each in listed] == ["Segmentation", "case_0", "case_1", "case_1"]  # type: ignore[attr-defined]


def test_images_and_label_maps_are_copied_byte_by_byte_and_recorded(
    images: Path, corrected: Path, model: Path
) -> None:
    before = state(images), state(corrected)
    done = adopted(images, corrected, model)
    out = images.parent / "out"
    assert (state(images), state(corrected)) == before
    for number in range(3):
        for folder, name in (("imagesTr", f"case_{number}_0000"), ("labelsTr", f"case_{number}")):
            source = images if folder == "imagesTr" else corrected
            copy = out / folder / f"{name}.nii.gz"
            assert copy.read_bytes() == (source / copy.name).read_bytes()
            assert not copy.is_symlink()
    record = Adoption.load(out / "adopted.json")
    assert record == done.adoption
    case = record.cases[1]
    assert case.images[0].sha256 == file_sha256(images / "case_1_0000.nii.gz")
    assert case.label.source == str(corrected / "case_1.nii.gz")
    assert (case.label.rewritten, case.corrected, record.model) == ("", None, None)
    dataset = read_dataset(out)
    assert dataset.labels.values == {"background": (0,), "liver": (1,), "tumour": (2,)}
    assert dataset.channel_names == ("T1",)
    assert verify(dataset).findings == ()
    assert done.next_command.startswith(f"autoliver train {out} 3d_fullres --pretrained {model}")


@pytest.mark.usefixtures("corrected")
def test_images_are_linked_by_absolute_paths_if_asked(
    images: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    request = AdoptRequest(like=str(model), link=True)
    adopt(Workspace(Path("w")), Path("in"), Path("corrected"), Path("out"), request)
    link = images.parent / "out/imagesTr/case_0_0000.nii.gz"
    assert link.is_symlink()
    assert link.readlink() == images / "case_0_0000.nii.gz"
    assert verify(read_dataset("out")).findings == ()


@pytest.mark.parametrize("codes", ["RAS", "SPL", "PIR", "LAI"])
def test_another_order_of_axes_is_brought_to_the_images(
    codes: str, images: Path, corrected: Path, model: Path
) -> None:
    turn = reorientation_to(GRID, codes)
    path = corrected / "case_1.nii.gz"
    write_label(path, np.ascontiguousarray(turn.array(labels())), turn.geometry(GRID))
    done = adopted(images, corrected, model)
    found = read_label(images.parent / "out/labelsTr/case_1.nii.gz")
    assert np.array_equal(found.array[0], labels())
    assert compare_grids(found.geometry, GRID) == ()
    assert done.adoption.cases[1].label.rewritten == f"axes {codes} brought to the image's LPS"
    assert verify(read_dataset(images.parent / "out")).findings == ()


def test_rounding_is_accepted_and_an_empty_label_map_is_told(
    images: Path, corrected: Path, model: Path
) -> None:
    write_label(corrected / "case_0.nii.gz", labels(), GRID.replace(origin_xyz=(5.01, 6.0, 7.0)))
    write_label(corrected / "case_1.nii.gz", labels() * 0, GRID)
    (corrected / "case_2.nii.gz").unlink()
    write_label(corrected / "case_0_uncertainty.nii.gz", labels() * 9, GRID)
    done = adopted(images, corrected, model)
    assert (done.empty, done.left_out) == (("case_1",), ("case_2",))
    assert done.adoption.cases[0].label.rewritten == "rounding in its header"
    found = verify(read_dataset(images.parent / "out")).findings
    assert [each.code for each in found] == ["label_empty"]


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nrrd", ".mha", ".mhd", ".nii"])
def test_a_label_map_of_another_file_type_is_saved_in_that_of_the_image(
    ending: str, images: Path, corrected: Path, model: Path
) -> None:
    (corrected / "case_1.nii.gz").unlink()
    if ending == ".mhd":
        write_label(corrected.parent / "one.mha", labels(), GRID)
        sitk.WriteImage(sitk.ReadImage(corrected.parent / "one.mha"), corrected / "case_1.mhd")
    else:
        write_label(corrected / f"case_1{ending}", labels(), GRID)
    done = adopted(images, corrected, model)
    assert done.adoption.cases[1].label.rewritten == f"{ending} saved as .nii.gz"
    found = read_label(images.parent / "out/labelsTr/case_1.nii.gz")
    assert np.array_equal(found.array[0], labels())


def detached(images: Path, ending: str) -> Path:
    (images / "case_1_0000.nii.gz").unlink()
    path = images / f"Case.One{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(image()[0]), str(path))
    return path


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("ending", [".mhd", ".nhdr", ".hdr"])
def test_files_of_voxels_travel_with_their_headers(
    ending: str, link: bool, images: Path, corrected: Path, model: Path
) -> None:
    path = detached(images, ending)
    (corrected / "case_1.nii.gz").unlink()
    write_label(corrected / "Case.One.nii.gz", labels(), read_image([path]).geometry)
    done = adopted(images, corrected, model, link=link)
    out = images.parent / "out"
    copy = out / f"imagesTr/Case.One_0000{ending}"
    assert np.array_equal(read_image([copy]).array, read_image([path]).array)
    (case,) = (each for each in done.adoption.cases if each.name == "Case.One")
    assert len(case.images) == 2
    assert all((out / each.name).is_symlink() == link for each in case.images)
    assert not [f for f in verify(read_dataset(out)).findings if f.severity == "error"]


@pytest.mark.parametrize(
    "named", ["../raw/Case.One.raw", "Case.One%01d.raw 1 9 1", "{folder}/Case.One.raw"]
)
def test_a_header_whose_files_cannot_be_copied_is_refused(
    named: str, images: Path, corrected: Path, model: Path
) -> None:
    path = detached(images, ".mhd")
    (images.parent / "raw").mkdir()
    shutil.copy(images / "Case.One.raw", images.parent / "raw")
    text = path.read_text().replace("Case.One.raw", named.format(folder=images))
    path.write_text(text)
    write_label(corrected / "Case.One.nii.gz", labels(), GRID)
    with pytest.raises(DatasetError, match="cannot be copied") as caught:
        adopted(images, corrected, model)
    assert "Save the image as one file" in caught.value.hint


@pytest.mark.parametrize(
    ("model_is", "ct", "asked", "channel", "modality"),
    [
        ("MR", False, None, "T1", "MR"),
        ("MR", True, None, "CT", "CT"),
        ("CT", False, None, "MRI", "MR"),
        ("CT", True, None, "CT", "CT"),
        ("CT", False, "CT", "CT", "CT"),
        ("CT", False, "other", "image", "other"),
        ("other", False, None, "T1", "MR"),
        ("ultrasound", False, None, "ultrasound", "other"),
    ],
)
def test_the_channel_is_named_by_the_modality_of_the_images(
    model_is: str,
    ct: bool,
    asked: str | None,
    channel: str,
    modality: str,
    images: Path,
    corrected: Path,
    save: SaveFold,
) -> None:
    names = ({"CT": "CT", "ultrasound": "ultrasound"}.get(model_is, "T1"),)
    kind = "other" if model_is == "ultrasound" else model_is
    like = save("fold_0", modality=kind, channel_names=names).parent
    for path in images.iterdir():
        write_image(path, image(ct=ct), GRID)
    done = adopted(images, corrected, like, modality=asked)
    assert (done.adoption.modality, done.channel_names) == (modality, (channel,))
    kinds = {case.modality for case in read_dataset(images.parent / "out").cases}
    assert kinds == {modality}
    assert done.renamed == (channel != names[0])


def test_regions_and_ignored_voxels_stay_what_they_are(
    images: Path, corrected: Path, save: SaveFold, plan: Plan
) -> None:
    values = {"background": (0,), "organ": (1, 2), "tumour": (2,)}
    known = Labels(values=values, regions_class_order=(1, 2), ignore=3)
    own = {
        name: each.replace(network=each.network.replace(out_channels=2))
        for name, each in plan.configurations.items()
    }
    like = save("fold_0", labels=known, configurations=own).parent
    write_label(corrected / "case_1.nii.gz", labels() * 0 + 3, GRID)
    done = adopted(images, corrected, like)
    assert read_dataset(images.parent / "out").labels == known
    assert done.empty == ("case_1",)


def test_images_of_two_modalities_are_refused(
    images: Path, corrected: Path, ct_model: Path
) -> None:
    write_image(images / "case_1_0000.nii.gz", image(ct=True), GRID)
    with pytest.raises(DatasetError, match="CT or MR") as caught:
        adopted(images, corrected, ct_model)
    assert "case_1" in caught.value.problem
    assert "adopt them as two datasets" in caught.value.hint


def test_what_is_there_is_never_replaced(images: Path, corrected: Path, model: Path) -> None:
    out = images.parent / "out"
    out.mkdir()
    adopted(images, corrected, model)  # an empty folder is as good as none
    before = sorted(out.rglob("*"))
    with pytest.raises(OptionError, match="exists already"):
        adopted(images, corrected, model)
    assert sorted(out.rglob("*")) == before
    with pytest.raises(OptionError, match="folder of the images as well"):
        adopt(Workspace(images.parent / "w"), images, images, images.parent / "new")


def test_what_labels_mean_must_be_known(images: Path, corrected: Path) -> None:
    with pytest.raises(DatasetError, match=r"no predict\.json") as caught:
        adopted(images, corrected, None)
    assert "--like" in caught.value.hint
    with pytest.raises(DatasetError, match="no such dataset or model"):
        adopted(images, corrected, Path("Nothing"))


def test_a_model_that_is_gone_is_named(images: Path, model: Path) -> None:
    asked = PredictRequest(mirror=False, exact=True, machine=Machine(device="cpu"))
    place = Workspace(images.parent / "w")
    out = images.parent / "predicted"
    predict_folder(place, images, out, asked, models=(str(model),))
    with pytest.raises(DatasetError, match="has no model with these weights") as caught:
        adopted(images, out, None)
    assert "--like" in caught.value.hint
    # With the labels from elsewhere, the rest of the record still counts.
    write_label(out / "case_1.mha", labels(), GRID)
    (out / "case_1.nii.gz").unlink()
    done = adopted(images, out, model)
    assert [case.corrected for case in done.adoption.cases] == [False, True, False]
    assert done.adoption.model == "Dataset009_Toy/3d_fullres (fold_0)"
    assert len(done.adoption.weights_sha256) == 1


def test_from_a_ct_model_to_an_mr_model(tmp_path: Path) -> None:
    """The loop of docs/loop.md, with phantoms."""
    options = [
        PhantomOptions(contrast=contrast, shape_zyx=(12, 32, 32), spacing_mm=(8.0, 8.0, 8.0))
        for contrast in ("CT", "T1")
    ]
    ct = write_phantom_dataset(tmp_path, name="Dataset001_CT", cases=3, seed=1, options=options[0])
    mr = write_phantom_dataset(tmp_path, name="Dataset002_MR", cases=3, seed=2, options=options[1])
    place = ("-w", tmp_path / "w")
    short = ("--epochs", 1, "--iterations", 2, "--fold", "all")
    run("plan", ct, "--preset", "tiny", "--window", -150, 250, *place)
    run("train", "CT", "2d", *short, "--augment", "cross-modality", *place)
    done = run("predict", "-i", mr / "imagesTr", "-o", tmp_path / "out", "--no-mirror", *place)
    assert done["predicted"] == 3
    names = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    whole = read_label(tmp_path / "out" / names[0])
    truth = read_label(mr / "labelsTr" / names[0]).array[0]
    write_label(tmp_path / "out" / names[0], truth, whole.geometry)
    again = read_label(tmp_path / "out" / names[1])  # saved by an editor, but not changed
    write_image(tmp_path / "out" / names[1], again.array.astype(np.float32), again.geometry)
    new = tmp_path / "Dataset020_OurMR"
    told = run("adopt", "-i", mr / "imagesTr", "-p", tmp_path / "out", new, *place)
    assert [case["corrected"] for case in told["cases"]] == [True, False, False]  # type: ignore[attr-defined]
    assert (told["modality"], told["channel_names"]) == ("MR", ["MRI"])
    assert "--pretrained Dataset001_CT/2d" in str(told["next"])
    assert json.loads((new / "dataset.json").read_text())["labels"]["liver"] == 1
    assert run("verify", new, *place)["findings"] == []
    trained = run("train", new, "2d", "--pretrained", "Dataset001_CT/2d", *short, *place)
    assert not trained["folds"][0].get("failed")  # type: ignore[index]
    plan = json.loads((tmp_path / "w/Dataset020_OurMR/plan@CT.json").read_text())
    assert plan["configurations"]["2d"]["normalization"] == ["zscore"]


def test_the_library_does_the_same(images: Path, corrected: Path, model: Path) -> None:
    out = images.parent / "out"
    done = autoliver.adopt(images, corrected, out, like=model, workspace=images.parent / "w")
    assert done.folder == out
    assert len(repr(done)) < 1000
    with pytest.raises(AutoliverError, match="modality"):
        autoliver.adopt(images, corrected, out, modality="PET")


@pytest.mark.parametrize("moment", ["checked", "copied"])
def test_a_file_that_is_cut_short_meanwhile_is_not_adopted(
    moment: str, images: Path, corrected: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its voxels were checked, or after all cases were."""
    path = min(images.iterdir())

    def cutting(function: Callable[..., object]) -> Callable[..., object]:
        def cut(*given: object, **named: object) -> object:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            return function(*given, **named)

        return cut

    module = f"autoliver.pipeline.adoption.{'corrected' if moment == 'checked' else 'write'}"
    name = "read_label" if moment == "checked" else "_write_case"
    monkeypatch.setattr(f"{module}.{name}", cutting(getattr(sys.modules[module], name)))
    with pytest.raises(DatasetError, match=f"{path}: it was changed while it was read"):
        adopted(images, corrected, model)
    assert not (images.parent / "out").exists()
