import dataclasses

import numpy as np
import pytest
from scipy.special import expit, softmax
from skimage.transform import resize

from autoliver.datasets.cases import Labels
from autoliver.inference.clean import components
from autoliver.inference.ensemble import (
    Output,
    component_means,
    mean_labels,
    mean_probabilities,
    uncertainty,
)
from autoliver.inference.lesions.vote import means_of
from autoliver.io.orientation import Reorientation
from autoliver.io.volume import Geometry
from autoliver.preprocessing.case import CaseProperties

SHAPE = (12, 20, 18)
LABELS = Labels(values={"background": (0,), "liver": (1,), "tumour": (5,)})
REGIONS = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
)
# The crop in the input's order, and what each plan makes of it.
BOX = ((1, 11), (2, 18), (0, 18))


def properties(transpose, network_shape):
    return CaseProperties(
        name="case",
        modality="MR",
        geometry=Geometry(shape_zyx=SHAPE, spacing_mm=(1.5, 1.0, 1.0)),
        transpose_forward=transpose,
        box=tuple(BOX[axis] for axis in transpose),
        shape_zyx=network_shape,
        spacing_mm=(1.0, 1.0, 1.0),
    )


def made(rows, *, spread=False):
    """Two members with different grids and orders of axes."""
    rng = np.random.default_rng(0)
    members = []
    for transpose, shape in (((0, 1, 2), (15, 16, 18)), ((2, 0, 1), (9, 7, 11))):
        logits = rng.normal(size=(rows, *shape)).astype(np.float32) * 3
        own = softmax(logits, axis=0) if rows == 3 else expit(logits)
        members.append(
            Output(
                logits=logits,
                properties=properties(transpose, shape),
                spread=own.astype(np.float32) if spread else None,
            )
        )
    return members


def slow(output, array, activation):
    """scikit-image's resize of each row, then the transpose undone, then pasted."""
    order = np.argsort(output.properties.transpose_forward)
    crop = [stop - start for start, stop in output.properties.box]
    rows = [resize(row, crop, order=1, mode="edge", anti_aliasing=False) for row in array]
    values = activation(np.stack(rows)).transpose(0, *(order + 1))
    whole = np.zeros((len(array), *SHAPE))
    whole[(slice(None), *(slice(*ends) for ends in BOX))] = values
    return whole


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    monkeypatch.setattr("autoliver.preprocessing.case._SLAB_VOXELS", 1000)


def test_the_mean_of_probabilities_decides():
    members = made(3)
    expected = np.mean([slow(m, m.logits, lambda a: softmax(a, axis=0)) for m in members], axis=0)
    expected[0, ~expected.any(axis=0)] = 1

    np.testing.assert_allclose(mean_probabilities(members, labels=LABELS), expected, atol=2e-5)

    result = mean_labels(members, labels=LABELS)
    assert result.dtype == np.uint8
    assert np.mean(result != np.array([0, 1, 5])[expected.argmax(axis=0)]) < 1e-3
    assert set(np.unique(result)) == {0, 1, 5}


def test_classes_of_lesions_decide_together():
    members = made(3)
    both = np.mean([slow(m, m.logits, lambda a: softmax(a, axis=0)) for m in members], axis=0)
    expected = np.where(both[1] + both[2] > both[0], np.where(both[1] >= both[2], 1, 5), 0)
    found = mean_labels(members, labels=LABELS, classes=(1, 2))
    near = np.abs(both[1] + both[2] - both[0]) < 1e-4
    inside = tuple(slice(*side) for side in BOX)
    np.testing.assert_array_equal(found[inside][~near[inside]], expected[inside][~near[inside]])
    assert (found != mean_labels(members, labels=LABELS)).any()


def test_regions_are_averaged_and_painted_in_order():
    members = made(2)
    liver, tumour = np.mean([slow(m, m.logits, expit) for m in members], axis=0)

    np.testing.assert_allclose(
        mean_probabilities(members, labels=REGIONS), [liver, tumour], atol=2e-5
    )

    expected = np.where(tumour > 0.5, 2, np.where(liver > 0.5, 1, 0))
    assert np.mean(mean_labels(members, labels=REGIONS) != expected) < 1e-3


def test_an_ensemble_of_one_is_its_member():
    member = made(3)[0]
    alone = mean_probabilities([member], labels=LABELS)
    np.testing.assert_allclose(mean_probabilities([member] * 3, labels=LABELS), alone, atol=1e-6)
    np.testing.assert_array_equal(
        mean_labels([member], labels=LABELS), np.array([0, 1, 5])[alone.argmax(axis=0)]
    )


def test_uncertainty_is_the_entropy_of_the_mean():
    members = made(3, spread=True)
    mean = np.mean([slow(m, m.spread, lambda a: a) for m in members], axis=0)
    inside = mean.any(axis=0)
    expected = -np.sum(mean * np.log(np.clip(mean, 1e-12, 1)), axis=0) / np.log(3)

    result = uncertainty(members, labels=LABELS)

    np.testing.assert_allclose(result[inside], expected[inside], atol=1e-4)
    assert not result[~inside].any()
    assert result.max() <= 1 + 1e-6


def test_uncertainty_of_regions_is_that_of_the_least_sure():
    members = made(2, spread=True)
    mean = np.mean([slow(m, m.spread, lambda a: a) for m in members], axis=0)
    inside = mean.any(axis=0)
    mean = np.clip(mean, 1e-9, 1 - 1e-9)
    each = -(mean * np.log2(mean) + (1 - mean) * np.log2(1 - mean))
    np.testing.assert_allclose(
        uncertainty(members, labels=REGIONS)[inside], each.max(axis=0)[inside], atol=1e-4
    )


TURNS = {
    "usual": Reorientation(),
    "flipped": Reorientation(flips=(True, False, True)),
    "turned": Reorientation(axes=(1, 2, 0), flips=(False, True, False)),
}


def turned(members, turn):
    """The same members for a case whose file has its axes in another order."""
    geometry = turn.inverse.geometry(members[0].properties.geometry)
    own = [m.properties.replace(geometry=geometry, axis_codes="LPS") for m in members]
    assert own[0].reorientation == turn
    return [dataclasses.replace(m, properties=p) for m, p in zip(members, own, strict=True)]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(
    "how", ["classes", "regions", "one", "unchanged grid", "probabilities", "within"]
)
def test_means_of_components_are_those_of_all_probabilities(how, turn):
    labels = REGIONS if how == "regions" else LABELS
    members = made(labels.out_channels)
    if how == "one":
        members = members[1:]
    if how == "unchanged grid":
        shape = tuple(stop - start for start, stop in BOX)
        logits = np.random.default_rng(3).normal(size=(3, *shape)).astype(np.float32)
        members = [Output(logits=logits, properties=properties((0, 1, 2), shape))]
    if how == "probabilities":
        members = [
            dataclasses.replace(m, logits=softmax(m.logits, axis=0), average=how) for m in members
        ]
    if how == "within":
        box = (slice(2, 7), slice(1, 6), slice(3, 11))
        part = members[1].logits[:, *box].copy()
        members = [members[0], dataclasses.replace(members[1], logits=part, within=box)]
    members = turned(members, TURNS[turn])
    before = [member.logits.copy() for member in members]
    segmentation = mean_labels(members, labels=labels)
    found = components(segmentation == segmentation.max(), by_faces=True)
    assert len(found.voxels) > 10
    expected = means_of(mean_probabilities(members, labels=labels))(found)
    result = component_means(members, found, labels=labels)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    for member, logits in zip(members, before, strict=True):
        assert np.array_equal(member.logits, logits)


def test_no_components_have_no_means():
    none = components(np.zeros(SHAPE, bool))
    assert component_means(made(3), none, labels=LABELS).shape == (0, 3)


def test_members_that_crop_differently_are_a_bug():
    one, other = made(3)
    wrong = Output(
        logits=one.logits, properties=one.properties.replace(box=((0, 10), (2, 18), (0, 18)))
    )
    with pytest.raises(ValueError, match="crop"):
        mean_labels([wrong, other], labels=LABELS)
