"""Reading dataset.json."""

from pathlib import Path

import pytest

from autoliver.datasets.description import read_raw
from autoliver.errors import DatasetError


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
