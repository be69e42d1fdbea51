"""One class for each connected lesion, on hand-made maps."""

import numpy as np
import pytest

from autoliver.datasets.cases import Labels
from autoliver.errors import ModelError
from autoliver.inference.lesions.vote import VoteOptions, means_of, vote

LABELS = Labels(
    values={
        "background": (0,),
        "liver": (1,),
        "cyst": (2,),
        "hemangioma": (3,),
        "metastasis": (4,),
    }
)
CLASSES = ("cyst", "hemangioma", "metastasis")
OPTIONS = VoteOptions.of(LABELS, CLASSES, model="M")


def row(text: str) -> np.ndarray:
    """A label map (1, 1, x) from one digit for each voxel."""
    return np.array([[[*map(int, text)]]], np.uint8)


def softmax_like(columns: list[tuple[float, ...]]) -> np.ndarray:
    """Probabilities (5, 1, 1, x)."""
    return np.array(columns, np.float32).T[:, None, None]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("0122210", "0122210"),  # nothing to decide
        ("0123310", "0133310"),  # most voxels
        ("1232310033221", "1222210022221"),  # ties: the lowest value, in each lesion
        ("1443320144", "1333330144"),  # two lesions; the liver between them stays
        ("1111", "1111"),
        ("0000", "0000"),
    ],
)
def test_without_probabilities_most_voxels_decide(before: str, after: str) -> None:
    label_map = row(before)
    voted = vote(label_map, OPTIONS)
    assert np.array_equal(voted.segmentation, row(after))
    assert np.array_equal(label_map, row(before))
    assert (voted.segmentation is label_map) == (before == after)


def test_the_shares_of_voxels_stand_for_probabilities() -> None:
    voted = vote(row("1223001333"), OPTIONS)
    assert voted.classes == ("cyst", "hemangioma")
    assert voted.probabilities == pytest.approx(np.array([[2 / 3, 1 / 3, 0], [0, 1, 0]]))


def test_the_highest_mean_probability_decides_against_most_voxels() -> None:
    # Two voxels are a little more probably cyst, the third is surely a metastasis.
    chances = softmax_like(
        [
            (1, 0, 0, 0, 0),
            (0.1, 0, 0.5, 0, 0.4),
            (0.1, 0, 0.5, 0, 0.4),
            (0.0, 0, 0.0, 0, 1.0),
            (0, 1, 0, 0, 0),
        ]
    )
    voted = vote(row("02241"), OPTIONS, means_of(chances))
    assert np.array_equal(voted.segmentation, row("04441"))
    assert voted.classes == ("metastasis",)
    # Means 1/3, 0, 0.6, scaled to add up to 1.
    expected = np.array([[1 / 3, 0, 0.6]]) / (1 / 3 + 0.6)
    assert voted.probabilities == pytest.approx(expected)


@pytest.mark.parametrize(
    ("label_map", "chances", "winner"),
    [
        # Equal means: most voxels, then the lowest value.
        ("1334", [(0, 0, 0, 0.5, 0.5)] * 3, "hemangioma"),
        ("1344", [(0, 0, 0, 0.5, 0.5)] * 3, "metastasis"),
        ("1434", [(0, 0, 0.25, 0.25, 0.25)] * 3, "metastasis"),
        ("1023", [(0, 0, 0.5, 0.5, 0)] * 3, "cyst"),
    ],
)
def test_ties(label_map: str, chances: list[tuple[float, ...]], winner: str) -> None:
    voted = vote(row(label_map), OPTIONS, means_of(softmax_like([(0, 1, 0, 0, 0), *chances])))
    assert voted.classes == (winner,)


def test_lesions_are_connected_through_corners_and_across_slices() -> None:
    label_map = np.zeros((3, 3, 3), np.uint8)
    label_map[0, 0, 0], label_map[1, 1, 1], label_map[2, 2, 2] = 2, 4, 4
    label_map[0, 2, 2] = 1
    voted = vote(label_map, OPTIONS)
    assert voted.classes == ("metastasis",)
    assert [voted.segmentation[n, n, n] for n in range(3)] == [4, 4, 4]
    assert voted.segmentation[0, 2, 2] == 1


@pytest.mark.parametrize("needs", [True, False])
def test_no_lesion_of_a_case_without_liver(needs: bool) -> None:
    voted = vote(row("0220304"), OPTIONS.replace(needs_organ=needs))
    if needs:
        assert not voted.segmentation.any()
        assert (voted.removed, voted.classes, voted.probabilities.shape) == (3, (), (0, 3))
        assert not voted.found.numbers.any()
    else:
        assert np.array_equal(voted.segmentation, row("0220304"))
        assert (voted.removed, len(voted.classes)) == (0, 3)


def test_one_voxel_of_liver_is_a_liver_and_labels_without_one_need_none() -> None:
    assert vote(row("0220100"), OPTIONS).removed == 0
    alone = Labels(values={"background": (0,), "cyst": (1,), "metastasis": (2,)})
    options = VoteOptions.of(alone, ("cyst", "metastasis"), model="M")
    assert options.organ == ()
    assert vote(row("0112"), options).removed == 0


def test_tumours_of_the_liver_are_no_liver_nor_is_a_region_s_share_of_lesions() -> None:
    values = {"background": (0,), "liver": (1, 2, 3), "liver tumour": (2,), "cyst": (3,)}
    labels = Labels(values=values, regions_class_order=(1, 2, 3))
    options = VoteOptions.of(labels, ("liver tumour", "cyst"), model="M")
    assert options.organ == (1,)
    assert options.rows == {"liver tumour": 1, "cyst": 2}  # no row for the background
    assert options.classes == {"liver tumour": 2, "cyst": 3}
    chances = np.array([[0.9, 0.9, 0.9], [0.6, 0.6, 0.0], [0.5, 0.5, 1.0]])[:, None, None]
    voted = vote(row("223"), options.replace(organ=()), means_of(chances))
    assert voted.classes == ("cyst",)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("cyst", "angioma"), "class of lesions angioma is not one of its labels, liver, cyst"),
        (("cyst", "malignant"), "malignant is a region of the values 3, 4"),
    ],
)
def test_classes_without_a_value_of_their_own_are_refused(classes, words) -> None:
    values = {"background": (0,), "liver": (1, 2, 3, 4), "cyst": (2,), "malignant": (3, 4)}
    with pytest.raises(ModelError, match=words):
        VoteOptions.of(Labels(values=values, regions_class_order=(1, 2, 3)), classes, model="M")


def test_rows_of_the_output_are_in_the_order_of_values() -> None:
    labels = Labels(values={"background": (0,), "b": (2,), "a": (1,)})
    assert [labels.rows.index(name) for name in ("background", "a", "b")] == [0, 1, 2]
