"""Reading dataset.json."""

import json
import re
from pathlib import Path

import pytest

from autoliver.datasets.description import read_description, read_raw
from autoliver.errors import DatasetError


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["liver", ""], "a name is empty"),
        (["liver", "  "], "a name is empty"),
        (["liver", "Liver"], "'liver' and 'Liver' differ in capitals alone"),
        (["tumour", "liver", "LIVER "], "'liver' and 'LIVER ' differ in capitals alone"),
    ],
)
def test_names_of_labels_tell_them_apart(names: list[str], problem: str, tmp_path: Path) -> None:
    labels = {"background": 0, **{name: i for i, name in enumerate(names, 1)}}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=problem):
        read_description(tmp_path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"labels": {"background": 0, "liver": 1}, "labels": {"background": 0}}', "labels"),
        ('{"labels": {"background": 0, "liver": 1, "liver": 2}}', "liver"),
        ('{"channel_names": {"0": "CT", "0": "MR"}}', "0"),
    ],
)
def test_a_key_that_is_there_twice(text: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=f"the key '{key}' is there twice") as caught:
        read_raw(path)
    assert "only the last would count" in caught.value.hint


def described(folder: Path, codes: object) -> Path:
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "fold": 2},
        "file_ending": ".nii.gz",
        "codes": codes,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_codes_of_labels(tmp_path: Path) -> None:
    fold = {"type": ["A1", "99LAB", "Fold"], "region": ["10200004", "SCT", "Liver"]}
    codes = read_description(described(tmp_path, {"fold": fold})).codes["fold"]
    assert codes.type == ("A1", "99LAB", "Fold")
    assert codes.region is not None
    assert codes.region.meaning == "Liver"
    assert codes.category.meaning == "Anatomical Structure"


@pytest.mark.parametrize(
    ("codes", "problem", "hint"),
    [
        ({"folds": {"type": ["A1", "99LAB", "Fold"]}}, "there is no label 'folds'", "mean fold"),
        ({"spleen": {"type": ["A1", "99LAB", "x"]}}, "there is no label", "Give codes"),
        ({"fold": {"type": ["", "99LAB", "Fold"]}}, "the value must have 1 to 64", '"type": \\['),
        ({"fold": {"type": ["A1", "Fold"]}}, "Expected `array`", "text editor"),
        ({"fold": {"region": ["A1", "99LAB", "Fold"]}}, "missing required field `type`", "text"),
        ({"fold": {"typ": ["A1", "99LAB", "Fold"]}}, "unknown field `typ`", "text"),
        ({"fold": ["A1", "99LAB", "Fold"]}, "Expected `object`, got `array`", "text editor"),
        (["fold"], "Expected `object`, got `array`", "text editor"),
    ],
)
def test_codes_that_cannot_be_used(codes: object, problem: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=problem) as caught:
        read_description(described(tmp_path, codes))
    assert re.search(hint, caught.value.hint)
