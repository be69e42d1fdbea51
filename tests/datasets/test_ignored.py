import json
from pathlib import Path
from typing import Any

import pytest

from autoliver.datasets.cases import read_dataset
from autoliver.datasets.ignored import ignored_keys, refuse_ignored
from autoliver.errors import DatasetError

NNUNET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2}}
DECATHLON = {
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "liver"},
    "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in "ab"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cases with a label and one, c, without."""
    folder = tmp_path / "Dataset001_Keys"
    for name in ("imagesTr/a", "imagesTr/b", "imagesTr/c", "labelsTr/a", "labelsTr/b"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.nii.gz").touch()
    return folder


def describe(folder: Path, raw: dict[str, Any], **keys: Any) -> None:
    (folder / "dataset.json").write_text(json.dumps(raw | keys))


REFUSED = [
    ({"lesion_classes": {"b": {"1": "HCC"}}}, "lesion_classes: b: lesion '1' is 'HCC'"),
    (
        {"lesion_classes": {"a": {"2": "cyst"}, "c": {"1": "HCC"}}},
        "lesion_classes: a: lesion '2' is 'cyst' (and 1 more cases)",
    ),
]
HEEDED = [
    {"annotated": {"a": {"liver": "real"}}},
    {"annotated": {"c": {"liver": "none"}}},  # it has no label map to train on
    {"annotated": {"b": {"liver": "real", "tumour": "none"}, "a": {"tumour": "absent"}}},
    {"annotated": {"a": {"tumour": "pseudo"}}},
    {"origin": {"a": "real"}},
    {"origin": {"a": "pseudo", "c": "synthetic"}},
    {"sources": {"a": "LiTS", "b": "CHAOS"}},
    {"lesion_classes": {"a": {}}},
    {"patients": {"a": "anna", "b": 7}, "modality": "CT", "file_ending": ".nii.gz"},
    {"numTraining": 3, "name": "x", "test": [], "tensorImageSize": "3D", "license": "x"},
    {"overwrite_image_reader_writer": "SimpleITKIO"},
]


@pytest.mark.parametrize(("keys", "words"), REFUSED)
def test_keys_without_effect_are_refused_by_name(
    folder: Path, keys: dict[str, Any], words: str
) -> None:
    describe(folder, NNUNET, **keys)
    with pytest.raises(DatasetError) as caught:
        refuse_ignored(read_dataset(folder))
    assert words in caught.value.problem
    assert caught.value.problem.startswith(f"{folder / 'dataset.json'}: ")
    assert caught.value.hint.endswith(f": autoliver convert lesion-classes {folder} OUT")


def test_classes_beside_label_maps_that_hold_them_are_refused_as_needless(folder: Path) -> None:
    labels = {"background": 0, "liver": 1, "cyst": 2, "type B": 3}
    keys = {"lesion_classes": {"b": {"1": "HCC"}}, "lesion_class_names": ["cyst", "type B"]}
    describe(folder, NNUNET, labels=labels, **keys)
    with pytest.raises(DatasetError) as caught:
        refuse_ignored(read_dataset(folder))
    assert "The label maps hold classes of lesions" in caught.value.hint


@pytest.mark.parametrize("keys", HEEDED, ids=str)
def test_keys_with_their_effect_pass_in_silence(
    folder: Path, keys: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    describe(folder, NNUNET, **keys)
    refuse_ignored(read_dataset(folder))
    assert caplog.messages == []


MR = {"channel_names": {"0": "T1"}}
TABLE = {n: {"images": [f"imagesTr/{n}.nii.gz"], "label": f"labelsTr/{n}.nii.gz"} for n in "ab"}


@pytest.mark.parametrize(
    ("raw", "keys", "words"),
    [
        # Each case is normalised by its own modality, unless the channel's name says otherwise.
        (NNUNET, {"modality": {"a": "MR"}}, ""),
        (NNUNET | MR, {"modality": {"a": "CT"}}, ""),
        (
            NNUNET | {"channel_names": {"0": "zscore"}},
            {"modality": {"a": "CT", "b": "MR"}},
            "modality: images of several modalities (1 CT, 1 MR) are normalised alike",
        ),
        (NNUNET, {"modality": "MR"}, "modality: MR does not change that images are normalised"),
        (NNUNET | MR, {"modality": "CT"}, ""),  # decides where the channel's name says nothing
        (
            NNUNET,
            {"regions_class_order": [1, 2]},
            "regions_class_order: is not used: it orders regions",
        ),
        (
            NNUNET,
            {"labels": {"background": 0, "w": [1, 2], "t": 2}, "regions_class_order": [1, 2]},
            "",
        ),
        (NNUNET, {"training": DECATHLON["training"]}, "training: is not read; the cases are those"),
        (DECATHLON, {}, ""),
        (
            DECATHLON,
            {"training": [{**entry, "fold": 0} for entry in DECATHLON["training"]]},
            "training: 'fold' in its entries is not read; only image and label are.",
        ),
        (NNUNET, {"dataset": TABLE}, ""),
        (
            NNUNET,
            {"dataset": {"a": {**TABLE["a"], "weight": 2}}},
            "dataset: 'weight' in its entries is not read",
        ),
        (NNUNET, {"overwrite_image_reader_writer": "Tiff3DIO"}, "Tiff3DIO is not used"),
        (NNUNET, {"validation": []}, "validation: is not read"),
    ],
)
def test_keys_that_do_less_than_they_promise_are_said(
    folder: Path,
    raw: dict[str, Any],
    keys: dict[str, Any],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    describe(folder, raw, **keys)
    dataset = read_dataset(folder)
    refuse_ignored(dataset)
    assert [m.removeprefix(f"{folder / 'dataset.json'}: ") for m in caplog.messages] == list(
        ignored_keys(dataset)
    )
    assert len(caplog.messages) == bool(words)
    assert words in "".join(caplog.messages)
