"""Which labels are tumours that are counted, and which lie inside an organ."""

import pytest

from autoliver.datasets.lesions import is_lesion, is_tumour
from autoliver.evaluation.results import MetricOptions


@pytest.mark.parametrize(
    ("label", "tumour", "lesion"),
    [
        ("tumour", True, True),
        ("tumor", True, True),
        ("Liver Tumors", True, True),
        ("kidney_tumor", True, True),
        ("Lesion 2", True, True),
        ("pancreatic cancer", True, True),
        ("metastasis", True, True),
        ("Metastases", True, True),
        ("HCC", False, True),
        ("cyst", False, True),
        ("liver_cysts", False, True),
        ("hemangioma", False, True),
        ("haemangioma", False, True),
        ("cystic_duct", False, False),
        ("liver", False, False),
        ("vessel", False, False),
        ("mass", False, False),
        ("spleen", False, False),
    ],
)
def test_words_of_lesions(label: str, tumour: bool, lesion: bool) -> None:
    assert is_tumour(label) == tumour
    assert is_lesion(label) == lesion
    assert MetricOptions().counts_lesions(label) == tumour
