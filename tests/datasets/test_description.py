"""Reading dataset.json."""

import json
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
