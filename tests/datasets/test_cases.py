import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from autoliver.datasets.cases import (
    CaseFacts,
    Dataset,
    describe_plain,
    find_case_images,
    read_dataset,
)
from autoliver.errors import DatasetError

SHARED = Path(__file__).parents[2] / "../shared/data"
CT = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "tumour": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def describe(folder: Path, raw: dict[str, Any], **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    raw = {k: v for k, v in (raw | changes).items() if v is not None}
    (folder / "dataset.json").write_text(json.dumps(raw))


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(path))


def problem(folder: Path) -> str:
    with pytest.raises(DatasetError) as error:
        read_dataset(folder)
    assert error.value.hint
    return f"{error.value.problem} | {error.value.hint}"


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset003_LiTS"
    describe(folder, CT)
    touch(folder, "imagesTr/b_0000.nii.gz", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    return folder


# --- nnU-Net v2


def test_nnunet_layout(ct: Path) -> None:
    dataset = read_dataset(ct)
    assert (dataset.name, dataset.short_name, dataset.layout) == (ct.name, "LiTS", "nnunet")
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert dataset.cases[0].images == (str(ct / "imagesTr/a_0000.nii.gz"),)
    assert dataset.cases[0].label == str(ct / "labelsTr/a.nii.gz")
    assert dataset.labelled == (dataset.cases[0],)
    assert (dataset.cases[0].modality, dataset.cases[0].patient) == ("CT", "a")
    assert dataset.labels.values == {"background": (0,), "liver": (1,), "tumour": (2,)}
    assert dataset.file_ending == ".nii.gz"


def test_dataset_survives_its_file_and_pickling(ct: Path, tmp_path: Path) -> None:
    dataset = read_dataset(str(ct))
    dataset.save(tmp_path / "dataset.json")
    assert Dataset.load(tmp_path / "dataset.json") == dataset
    assert pickle.loads(pickle.dumps(dataset)) == dataset


def test_folder_may_be_given_relatively(ct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ct)
    assert read_dataset(".") == read_dataset(ct) == read_dataset(Path("imagesTr/.."))


def test_channels_are_in_order(tmp_path: Path) -> None:
    describe(tmp_path, CT, channel_names={"1": "T2", "0": "T1"})
    touch(tmp_path, "imagesTr/a_0001.nii.gz", "imagesTr/a_0000.nii.gz")
    dataset = read_dataset(tmp_path)
    assert dataset.channel_names == ("T1", "T2")
    assert [Path(p).name for p in dataset.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert dataset.cases[0].modality == "MR"


def test_one_channel_needs_no_number(tmp_path: Path) -> None:
    describe(tmp_path, CT)
    touch(tmp_path, *(f"imagesTr/{n}.nii.gz" for n in ("a", "liver_0041", "x_0000", "y_0000")))
    touch(tmp_path, "labelsTr/x_0000.nii.gz")
    names = [case.name for case in read_dataset(tmp_path).cases]
    assert names == ["a", "liver_0041", "x_0000", "y"]


def test_label_ending_may_differ_and_hidden_files_are_passed_over(ct: Path) -> None:
    touch(ct, "labelsTr/b.nrrd", "imagesTr/._a_0000.nii.gz", "imagesTr/notes.txt")
    assert read_dataset(ct).cases[1].label == str(ct / "labelsTr/b.nrrd")


def test_file_ending_chooses_among_types(ct: Path) -> None:
    touch(ct, "imagesTr/a_0000.png", "labelsTr/a.png")
    assert Path(read_dataset(ct).cases[0].images[0]).name == "a_0000.nii.gz"
    assert Path(str(read_dataset(ct).cases[0].label)).name == "a.nii.gz"


def test_regions_keep_their_order_and_ignore_is_set_apart(ct: Path) -> None:
    labels = {"whole": [1, 2, 3], "background": 0, "edge": [3], "core": [2], "ignore": 4}
    describe(ct, CT, labels=labels, regions_class_order=[1, 3, 2])
    found = read_dataset(ct).labels
    assert list(found.values.items()) == [
        *(("background", (0,)), ("whole", (1, 2, 3)), ("edge", (3,)), ("core", (2,))),
    ]
    assert (found.ignore, found.regions_class_order) == (4, (1, 3, 2))
    assert found.allowed == {0, 1, 2, 3, 4}
    assert found.out_channels == 3


def test_plain_labels_are_in_the_order_of_their_values(ct: Path) -> None:
    describe(ct, CT, labels={"tumour": 2, "liver": 1, "background": 0})
    assert list(read_dataset(ct).labels.values) == ["background", "liver", "tumour"]


def test_path_table(ct: Path, tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/p.nii.gz", "elsewhere/q.mha")
    table = {
        "p": {"images": ["../elsewhere/p.nii.gz"], "label": str(tmp_path / "elsewhere/q.mha")},
        "c": {"images": [str(ct / "imagesTr/a_0000.nii.gz")]},
    }
    describe(ct, CT, dataset=table)
    dataset = read_dataset(ct)
    assert [case.name for case in dataset.cases] == ["c", "p"]
    assert dataset.cases[1].images == (str(tmp_path / "elsewhere/p.nii.gz"),)
    assert dataset.cases[1].label == str(tmp_path / "elsewhere/q.mha")
    assert dataset.cases[0].label is None
    (tmp_path / "elsewhere/q.mha").unlink()
    assert "p: " in problem(ct)
    assert "q.mha is listed" in problem(ct)


def test_optional_keys(ct: Path) -> None:
    describe(
        ct,
        CT,
        modality={"b": "MR"},
        patients={"a": "anna", "b": 7},
        origin={"b": "synthetic"},
        annotated={"a": {"tumour": "absent"}},
        lesion_classes={"a": {"1": "HCC"}},
    )
    a, b = read_dataset(ct).cases
    assert (a.modality, a.patient, a.origin, a.annotated) == (
        *("CT", "anna", "real"),
        {"tumour": "absent"},
    )
    assert (a.lesion_classes, b.lesion_classes) == ({"1": "HCC"}, {})
    assert (b.modality, b.patient, b.origin, b.annotated) == ("MR", "7", "synthetic", {})
    assert a.facts == CaseFacts(
        name="a",
        patient="anna",
        modality="CT",
        annotated={"tumour": "absent"},
        lesion_classes={"1": "HCC"},
    )
    assert b.facts == CaseFacts(name="b", patient="7", modality="MR", origin="synthetic")


@pytest.mark.parametrize(
    ("channels", "modality", "expected"),
    [
        (["CT"], None, "CT"),
        (["portal-venous ct"], None, "CT"),
        (["MRI"], None, "MR"),
        (["T1"], None, "MR"),
        (["t2w_spir"], None, "MR"),
        (["FLAIR"], None, "MR"),
        (["R", "G", "B"], None, "other"),
        (["noNorm"], None, "other"),
        (["noNorm"], "MR", "MR"),
        (["MRI"], "CT", "CT"),
    ],
)
def test_modality(channels: list[str], modality: str | None, expected: str, tmp_path: Path) -> None:
    names = {str(i): name for i, name in enumerate(channels)}
    describe(tmp_path, CT, channel_names=names, modality=modality)
    touch(tmp_path, *(f"imagesTr/a_{i:04d}.nii.gz" for i in range(len(channels))))
    assert read_dataset(tmp_path).cases[0].modality == expected


# --- what can be wrong


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channel_names": None, "channels": {"0": "CT"}}, "'channels'. | Did you mean 'channel_n"),
        ({"labels": None, "label": {"background": 0}}, "'label'. | Did you mean 'labels'"),
        ({"patient": {"a": "b"}}, "Did you mean 'patients'"),
        ({"channel_names": None}, "channel_names"),
        ({"channel_names": {"1": "CT"}}, "channel_names"),
        ({"channel_names": ["CT"]}, "channel_names"),
        ({"labels": None}, "labels"),
        ({"labels": {"liver": 1}}, '"background": 0, found None'),
        ({"labels": {"background": 1, "liver": 0}}, '"background": 0, found 1'),
        ({"labels": {"background": 0}}, "no label other than the background"),
        ({"labels": {"background": 0, "liver": "1"}}, "liver: expected a number"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "two names"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, "regions_class_order"),
        (
            {"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": ["a", "b"]},
            "regions_class_order",
        ),
        ({"labels": {"background": 0, "a": 2, "ignore": 1}}, "ignore"),
        ({"file_ending": ".npy"}, "file_ending"),
        ({"file_ending": ".mha"}, "no file ends with .mha, which dataset.json gives"),
        ({"numTraining": "two"}, "num_training: Expected `int | null`"),
        ({"patients": {"A": "b"}}, "patients: there is no case 'A'"),
        ({"annotated": {"a": {"tumor": "none"}}}, "no label 'tumor'"),
        (
            {"lesion_class_names": ["liver", "HCC"]},
            "lesion_class_names: there is no label 'HCC', but other classes are labels",
        ),
        ({"lesion_class_names": ["HCC", "hcc"]}, "lesion_class_names: 'HCC' and 'hcc' differ in"),
        ({"lesion_class_names": ["HCC", " "]}, "lesion_class_names: a name is empty"),
        ({"lesion_class_names": "HCC"}, "lesion_class_names: Expected"),
        ({"lesion_classes": {"A": {"1": "HCC"}}}, "lesion_classes: there is no case 'A'"),
        (
            {"annotated": {"a": {"tumour": "maybe"}}},
            "annotated: a: tumour: 'maybe' is none of real, pseudo, absent, none",
        ),
        ({"origin": {"a": "fake"}}, "origin: a: 'fake' is none of real, synthetic, pseudo"),
        ({"lesion_classes": {"c": {"1": "HCC"}}}, "lesion_classes: there is no case 'c'"),
        ({"lesion_classes": {"a": "HCC"}}, "lesion_classes[...]: Expected `object`, got `str`"),
        ({"lesion_classes": {"a": {"1": 2}}}, "Expected `str`, got `int`"),
        ({"dataset": {"a": ["x"]}}, "dataset: a: expected"),
        (
            {"dataset": {"a": {"images": ["x", "y"]}}},
            "x is listed in dataset.json but does not exist",
        ),
    ],
)
def test_mistakes_in_dataset_json(changes: dict[str, Any], words: str, ct: Path) -> None:
    describe(ct, CT, **changes)
    text = problem(ct)
    assert words in text
    assert str(ct) in text or text.startswith("a: ")


@pytest.mark.parametrize("key", ["dataset_id", "name", "original", "author", "regions"])
def test_foreign_keys_do_no_harm(key: str, ct: Path) -> None:
    describe(ct, CT, **{key: "x"})
    assert read_dataset(ct).cases


def test_broken_json(ct: Path) -> None:
    (ct / "dataset.json").write_text('{"labels": ')
    assert "not valid JSON" in problem(ct)
    (ct / "dataset.json").write_text("[]")
    assert "found list" in problem(ct)


def test_missing_folder_and_foreign_folder(tmp_path: Path) -> None:
    assert "no such folder" in problem(tmp_path / "nowhere")
    assert "no dataset.json" in problem(tmp_path)


def test_no_images(tmp_path: Path) -> None:
    describe(tmp_path, CT)
    assert "imagesTr: no images, there is no such folder" in problem(tmp_path)
    (tmp_path / "imagesTr").mkdir()
    assert "imagesTr: no images" in problem(tmp_path)


def test_missing_channel_names_case_and_file(tmp_path: Path) -> None:
    describe(tmp_path, CT, channel_names={"0": "T1", "1": "T2"})
    touch(tmp_path, *(f"imagesTr/{n}.nii.gz" for n in ("a_0000", "a_0001", "b_0000")))
    text = problem(tmp_path)
    assert text.startswith("b: channel 1 of 2 is missing")
    assert str(tmp_path / "imagesTr/b_0001.nii.gz") in text


def test_too_many_channels(ct: Path) -> None:
    touch(ct, "imagesTr/a_0001.nii.gz")
    assert "a: 2 channels" in problem(ct)


def test_label_without_image(ct: Path) -> None:
    touch(ct, "labelsTr/c.nii.gz")
    text = problem(ct)
    assert text.startswith("c: ")
    assert "label without an image" in text


def test_same_image_in_two_types(tmp_path: Path) -> None:
    describe(tmp_path, CT, file_ending=None)
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0000.nrrd")
    assert "one image in two file types" in problem(tmp_path)


# --- Decathlon


def msd(folder: Path, **changes: Any) -> None:
    describe(
        folder,
        {
            "name": "LIVER",
            "tensorImageSize": "3D",
            "modality": {"0": "CT"},
            "labels": {"0": "Background", "2": "cancer", "1": "liver"},
            "numTraining": 2,
            "training": [
                {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"}
                for n in ("liver_10", "liver_2")
            ],
        },
        **changes,
    )
    touch(folder, *(f"{k}Tr/liver_{n}.nii.gz" for k in ("images", "labels") for n in (2, 10)))
    touch(folder, "imagesTr/._liver_2.nii.gz", "labelsTr/._liver_2.nii.gz")


@pytest.mark.parametrize("training", [False, True])
def test_decathlon_layout(training: bool, tmp_path: Path) -> None:
    msd(tmp_path, **({} if training else {"training": None}))
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "msd"
    assert [case.name for case in dataset.cases] == ["liver_10", "liver_2"]
    assert dataset.cases[1].images == (str(tmp_path / "imagesTr/liver_2.nii.gz"),)
    assert dataset.cases[1].label == str(tmp_path / "labelsTr/liver_2.nii.gz")
    assert list(dataset.labels.values) == ["background", "liver", "cancer"]
    assert (dataset.channel_names, dataset.cases[0].modality) == (("CT",), "CT")


def test_decathlon_4d_images(tmp_path: Path) -> None:
    msd(tmp_path, modality={"0": "FLAIR", "1": "T1w"}, training=None)
    for n in (2, 10):
        save(tmp_path / f"imagesTr/liver_{n}.nii.gz", np.zeros((2, 3, 4, 5), np.float32))
    dataset = read_dataset(tmp_path)
    assert dataset.channel_names == ("FLAIR", "T1w")
    assert dataset.cases[0].images == (str(tmp_path / "imagesTr/liver_10.nii.gz"),)


def test_decathlon_list_of_nnunet_v1_and_of_missing_files(tmp_path: Path) -> None:
    msd(tmp_path, modality={"0": "T1", "1": "T2"})
    for n in (2, 10):
        (tmp_path / f"imagesTr/liver_{n}.nii.gz").unlink()
        touch(tmp_path, *(f"imagesTr/liver_{n}_000{c}.nii.gz" for c in (1, 0)))
    images = read_dataset(tmp_path).cases[0].images
    assert [Path(p).name for p in images] == ["liver_10_0000.nii.gz", "liver_10_0001.nii.gz"]
    (tmp_path / "labelsTr/liver_2.nii.gz").unlink()
    assert problem(tmp_path).startswith("liver_2: ")


# --- a plain pair of folders


def test_plain_pair(tmp_path: Path) -> None:
    folder = tmp_path / "AbdomenMR"
    touch(folder, "images/b.nii.gz", "images/a.nii.gz", "images/c.nii.gz")
    save(folder / "labels/a.nrrd", np.array([[[0, 1], [0, 255]]], np.uint8))
    save(folder / "labels/b.nii.gz", np.array([[[0, 1], [0, 7]]], np.float32))
    dataset = read_dataset(folder)
    assert dataset.layout == "plain"
    assert [case.name for case in dataset.labelled] == ["a", "b"]
    assert dataset.labels.values == {
        "background": (0,),
        **{f"label_{v}": (v,) for v in (1, 7, 255)},
    }
    assert (dataset.channel_names, dataset.cases[0].modality) == (("MRI",), "MR")

    raw = describe_plain(dataset)
    assert raw["numTraining"] == 2
    (folder / "dataset.json").write_text(json.dumps(raw))
    assert read_dataset(folder) == dataset
    (folder / "labels/b.nii.gz").write_bytes(b"not read any more")
    assert read_dataset(folder).labels == dataset.labels


def test_plain_pair_without_a_telling_name(tmp_path: Path) -> None:
    save(tmp_path / "images/a_0000.png", np.zeros((4, 5), np.uint8))
    save(tmp_path / "labels/a.png", np.eye(4, 5, dtype=np.uint8))
    dataset = read_dataset(tmp_path)
    assert (dataset.channel_names, dataset.cases[0].modality) == (("image",), "other")
    assert (dataset.cases[0].name, dataset.file_ending) == ("a", ".png")


def test_plain_pair_with_wrong_labels(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz")
    assert "no label values other than background" in problem(tmp_path)
    save(tmp_path / "labels/a.nii.gz", np.arange(600, dtype=np.int16).reshape(6, 10, 10))
    assert "from 0 to 599" in problem(tmp_path)
    save(tmp_path / "labels/a.nii.gz", np.full((3, 4, 5), 0.5, np.float32))
    assert "not whole numbers" in problem(tmp_path)


# --- images to predict on


def names(cases: dict[str, tuple[Path, ...]]) -> dict[str, list[str]]:
    return {case: [path.name for path in paths] for case, paths in cases.items()}


def test_predicting_takes_numbered_and_plain_names_of_any_type(tmp_path: Path) -> None:
    touch(tmp_path, "b_0000.nii.gz", "a.nrrd", "c_0007.mha", "._a.nrrd", "x.json")
    found = find_case_images(tmp_path, channels=1, file_ending=".nii.gz")
    assert names(found) == {"a": ["a.nrrd"], "b": ["b_0000.nii.gz"], "c_0007": ["c_0007.mha"]}
    assert list(found) == ["a", "b", "c_0007"]


def test_predicting_several_channels(tmp_path: Path) -> None:
    touch(tmp_path, "b_0001.nii.gz", "b_0000.nrrd")
    save(tmp_path / "a.nii.gz", np.zeros((2, 3, 4, 5), np.float32))
    found = find_case_images(tmp_path, channels=2, file_ending=None)
    assert names(found) == {"a": ["a.nii.gz"], "b": ["b_0000.nrrd", "b_0001.nii.gz"]}
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"b: channel 2 of 3 is missing.*b_0002"):
        find_case_images(tmp_path, channels=3, file_ending=None)


def test_predicting_names_a_case_in_one_file_that_lacks_channels(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.float32))
    with pytest.raises(DatasetError, match=r"a: .*holds 1 channel.*a_0001"):
        find_case_images(tmp_path, channels=2, file_ending=None)


def test_predicting_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "ab_0000.nii.gz", "b.nii.gz")
    one = find_case_images(tmp_path / "b.nii.gz", channels=1, file_ending=None)
    assert names(one) == {"b": ["b.nii.gz"]}
    one = find_case_images(str(tmp_path / "a_0000.nii.gz"), channels=1, file_ending=None)
    assert names(one) == {"a": ["a_0000.nii.gz"]}
    two = find_case_images(tmp_path / "a_0001.nii.gz", channels=2, file_ending=None)
    assert names(two) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}
    touch(tmp_path, "notes.txt")
    with pytest.raises(DatasetError, match="not an image"):
        find_case_images(tmp_path / "notes.txt", channels=1, file_ending=None)


def test_predicting_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="folder is empty"):
        find_case_images(tmp_path, channels=1, file_ending=None)
    touch(tmp_path, "imagesTs/a.nii.gz")
    with pytest.raises(DatasetError) as error:
        find_case_images(tmp_path, channels=1, file_ending=None)
    assert "imagesTs?" in error.value.hint
    with pytest.raises(DatasetError, match="no such folder"):
        find_case_images(tmp_path / "x", channels=1, file_ending=None)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize(
    ("folder", "cases", "channels", "modality"),
    [
        ("Dataset004_Hippocampus", 120, 1, "MR"),
        ("Dataset101_AbdomenCT", 14, 1, "CT"),
        ("Dataset104_BrainMR4", 1, 4, "MR"),
    ],
)
def test_real_datasets(folder: str, cases: int, channels: int, modality: str) -> None:
    dataset = read_dataset(SHARED / folder)
    assert len(dataset.labelled) == cases
    assert {len(case.images) for case in dataset.cases} == {channels}
    assert {case.modality for case in dataset.cases} == {modality}


@pytest.mark.parametrize(
    ("states", "independent"),
    [
        ({}, False),
        ({"a": {"tumour": "absent"}, "b": {"liver": "real"}}, False),
        ({"c": {"tumour": "none"}}, False),  # it has no label map
        ({"a": {"tumour": "none"}}, True),
        ({"b": {"liver": "pseudo"}}, True),
    ],
)
def test_labels_are_independent_if_not_all_are_annotated(
    tmp_path: Path, states: dict[str, dict[str, str]], independent: bool
) -> None:
    for name in ("imagesTr/a_0000", "imagesTr/b_0000", "imagesTr/c_0000", "labelsTr/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "labelsTr/b.nii.gz").touch()
    labels = {"background": 0, "tumour": 5, "liver": 2}
    raw = {"channel_names": {"0": "CT"}, "labels": labels, "annotated": states}
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    found = read_dataset(tmp_path).labels
    assert found.has_regions == independent
    assert found.regions_class_order == ((2, 5) if independent else None)
    assert found.out_channels == (2 if independent else 3)
    assert tuple(found.foreground) == ("liver", "tumour")


def test_sources_are_read(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    for name in ("imagesTr/a_0000", "imagesTr/b_0000", "labelsTr/a"):
        (tmp_path / f"{name}.nii.gz").touch()
    raw = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(raw | {"sources": {"a": "LiTS"}}))
    assert [case.facts.source for case in read_dataset(tmp_path).cases] == ["LiTS", ""]
