import pytest

from autoliver.datasets.cases import Labels
from autoliver.transfer.labels import map_rows, map_values, match_labels


def labels(*names, **regions):
    values = {"background": (0,), **{name: (i,) for i, name in enumerate(names, 1)}}
    if regions:
        values |= regions
        return Labels(values=values, regions_class_order=tuple(range(1, len(values))))
    return Labels(values=values)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (("liver", "tumor"), ("Liver", "tumour"), ("liver", "tumor")),
        (("liver", "tumor"), ("lesion", "liver"), ("tumor", "liver")),
        (("liver", "liver_tumor"), ("liver", "Tumour"), ("liver", "liver_tumor")),
        (
            ("kidney_right", "kidney_left"),
            ("rightKidney", "L kidney"),
            ("kidney_right", "kidney_left"),
        ),
        (("spleen",), ("liver", "splenic"), ("", "spleen")),
        (("liver",), ("tumor",), ("",)),
        (("tumor",), ("liver",), ("",)),
        (("label1", "label2"), ("label 2", "label3"), ("label2", "")),
    ],
)
def test_labels_are_matched_by_what_they_mean(source, target, expected):
    assert tuple(match_labels(labels(*source), labels(*target)).values()) == expected


def test_rows_come_in_the_order_of_the_head():
    backwards = Labels(values={"background": (0,), "tumor": (2,), "liver": (1,)})
    assert backwards.rows == ("background", "liver", "tumor")
    assert labels(liver=(1, 2), tumor=(2,)).rows == ("liver", "tumor")
    rows = map_rows(backwards, labels("tumor", "cyst", "liver")).rows
    assert rows == ({0: 1.0}, {2: 1.0}, None, {1: 1.0})


def test_classes_and_regions_are_converted():
    classes, regions = labels("liver", "tumor"), labels(liver=(1, 2), tumor=(2,))
    assert map_rows(classes, regions).rows == ({1: 1.0, 0: -1.0}, {2: 1.0, 0: -1.0})
    assert map_rows(regions, classes).rows == ({}, {0: 1.0}, {1: 1.0})
    assert map_rows(labels("a1"), labels("b2")).rows == (None, None)


LIVER = labels("liver")
BOTH = labels("liver", "tumour")
NESTED = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (BOTH, BOTH, {0: 0, 1: 1, 2: 2}),
        (BOTH, labels("Lesion", "Liver"), {0: 0, 1: 2, 2: 1}),
        # What the target lacks does not count.
        (BOTH, LIVER, {0: 0, 1: 1, 2: None}),
        # Neither does a background that may hold what the source lacks.
        (BOTH, labels("liver", "spleen"), {0: None, 1: 1, 2: None}),
        (BOTH, labels("heart"), {0: None, 1: None, 2: None}),
        (BOTH.replace(ignore=3), BOTH.replace(ignore=5), {0: 0, 1: 1, 2: 2, 3: None}),
        # A tumour lies in the region of the liver.
        (NESTED, LIVER, {0: 0, 1: 1, 2: 1}),
        (NESTED, BOTH, {0: 0, 1: 1, 2: 2}),
        (BOTH, NESTED, {0: 0, 1: 1, 2: 2}),
        (NESTED, NESTED, {0: 0, 1: 1, 2: 2}),
        # A liver may hold tumours that the source does not tell.
        (LIVER, NESTED, {0: 0, 1: None}),
    ],
)
def test_values_are_mapped_by_the_names_of_labels(source, target, expected):
    assert map_values(source, target) == expected
