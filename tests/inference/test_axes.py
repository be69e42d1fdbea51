"""The same patients stored in other orders of axes get the same label maps, voxel by voxel."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from small_models import plan, save

from autoliver.inference.ensemble import group_labels, mean_probabilities, uncertainty
from autoliver.inference.model import load_member, load_model
from autoliver.inference.outputs import PredictOptions, PreparedCase, outputs
from autoliver.inference.predict import predict_volume
from autoliver.io.orientation import axis_codes, reorientation, reorientation_to
from autoliver.io.volume import Geometry, Volume
from autoliver.models.files import MemberFiles, ModelFiles
from autoliver.preprocessing.case import forward, forward_labels
from autoliver.preprocessing.store import store_key

__all__ = ["plan", "save"]

torch.set_num_threads(1)
CPU = torch.device("cpu")
PLAIN = PredictOptions(mirror=False)
ORDERS = ["RAS", "PSR", "LIP", "SAR", "IRP", "ASL"]
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def make_image(channels=1):
    """An oblique, anisotropic scan in LPS with an empty rim that is cropped."""
    rng = np.random.default_rng(0)
    array = rng.gamma(4.0, 25.0, (channels, 9, 14, 12)).astype(np.float32)
    array[:, :2] = array[:, :, -3:] = 0
    grid = Geometry(
        shape_zyx=(9, 14, 12), spacing_mm=(3.0, 1.5, 1.7), origin_xyz=(5, 6, 7), direction=OBLIQUE
    )
    return Volume(array=array, geometry=grid)


def stored(image, order):
    turn = reorientation("LPS", order)
    return Volume(array=turn.array(image.array), geometry=turn.geometry(image.geometry))


def load(*members, finder=None):
    files = ModelFiles(name="Toy/3d", members=tuple(MemberFiles(folds=(m,)) for m in members))
    model = load_model(files, device=CPU)
    if finder is None:
        return model
    return dataclasses.replace(model, finder=load_member((finder,), name="finder", device=CPU))


def predicted(model, image):
    return predict_volume(model, image, PLAIN, name="case_1")


def check_equal(model):
    image = make_image()
    expected = predicted(model, image)
    assert len(np.unique(expected)) > 1
    for order in ORDERS:
        turn = reorientation("LPS", order)
        found = predicted(model, stored(image, order))
        assert np.array_equal(found, turn.array(expected)), order


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL"])
def test_any_order_is_predicted_as_the_model_s_own(save, configuration, transpose, codes):
    back = tuple(transpose.index(axis) for axis in range(3))
    settings = {"transpose_forward": transpose, "transpose_backward": back, "axis_codes": codes}
    check_equal(load(save("fold_0", configuration=configuration, **settings)))


def test_an_ensemble_of_one_order(save):
    one = save("fold_0", axis_codes="LPS")
    two = save(
        "fold_1",
        seed=3,
        axis_codes="LPS",
        transpose_forward=(2, 0, 1),
        transpose_backward=(1, 2, 0),
    )
    check_equal(load(one, two))


def test_an_ensemble_of_models_with_different_orders(save):
    one, two = save("fold_0", axis_codes="RAS"), save("fold_1", seed=3, axis_codes="PSR")
    model, image = load(one, two), make_image()
    whole, turn = image, reorientation("LPS", "SAR")
    found, turned = (
        outputs(model, PreparedCase.of(model, each, "a"), PLAIN)
        for each in (whole, stored(image, "SAR"))
    )
    labels = model.plan.labels
    both = mean_probabilities(found, labels=labels)
    # Each alone, brought to the input's grid by itself.
    alone = [mean_probabilities([each], labels=labels) for each in found]
    assert np.allclose(both, np.mean(alone, axis=0), atol=1e-5)
    assert np.allclose(mean_probabilities(turned, labels=labels), turn.array(both), atol=1e-5)
    group = group_labels(turned, [(0, 1)], labels=labels)[0]
    assert group.shape == turn.values((9, 14, 12))
    assert np.array_equal(group, turn.array(group_labels(found, [(0, 1)], labels=labels)[0]))


def test_uncertainty_lies_on_the_case_s_own_grid(save):
    model = load(save("fold_0", axis_codes="LPS"))
    options, turn = PredictOptions(mirror=False, uncertainty=True), reorientation("LPS", "PSR")
    maps = [
        uncertainty(
            outputs(model, PreparedCase.of(model, each, "a"), options), labels=model.plan.labels
        )
        for each in (make_image(), stored(make_image(), "PSR"))
    ]
    assert np.array_equal(maps[1], turn.array(maps[0]))


@pytest.mark.parametrize("finder", ["LPS", "RAS", "PSR"])
def test_the_region_to_look_in_is_the_same(save, finder):
    model = load(save("fold_0", axis_codes="LPS"), finder=save("fold_4", seed=5, axis_codes=finder))
    check_equal(model)


def test_a_cascade_sees_what_its_first_stage_found(plan):
    image = make_image()
    own = plan.replace(axis_codes="LPS")
    configuration = own.configurations["3d_fullres"]
    label = (image.array[0] > 100).astype(np.uint8)
    results = []
    for order in ("LPS", *ORDERS):
        case = forward(stored(image, order), None, plan=own, configuration=configuration, name="a")
        turned = reorientation("LPS", order).array(label)
        results.append((case.image, forward_labels(turned, case.properties)))
    for prepared, previous in results[1:]:
        assert np.array_equal(prepared, results[0][0])
        assert np.array_equal(previous, results[0][1])


def test_arrays_without_an_orientation_are_taken_as_they_are(save):
    image = make_image()
    unknown = dataclasses.replace(image, oriented=False)
    kept = predicted(load(save("fold_0")), image)
    assert np.array_equal(predicted(load(save("fold_1", axis_codes="RAS")), unknown), kept)
    assert not np.array_equal(predicted(load(save("fold_2", axis_codes="RAS")), image), kept)


@pytest.mark.parametrize(
    ("settings", "order", "warned"),
    [
        ({}, "LPS", False),
        ({}, "RAS", True),
        ({}, "PSR", True),
        ({"seen_axes": ("RAS", "PSR")}, "PSR", False),
        ({"seen_axes": ("RAS", "PSR")}, "LPS", True),
        ({"axis_codes": "LPS"}, "RAS", False),
    ],
)
def test_a_model_that_does_not_know_its_order_warns(save, caplog, settings, order, warned):
    model, image = load(save("fold_0", **settings)), stored(make_image(), order)
    assert axis_codes(image.geometry) == order
    with caplog.at_level(logging.WARNING):
        predicted(model, image)
    found = [r.getMessage() for r in caplog.records if "order" in r.getMessage()]
    assert len(found) == warned
    assert all("case_1" in text and order in text for text in found)


def test_doubtful_headers_are_shown(save, caplog):
    image = dataclasses.replace(make_image(), notes=("a.nii.gz: sform and qform differ.",))
    with caplog.at_level(logging.WARNING):
        predicted(load(save("fold_0", axis_codes="LPS")), image)
    assert "a.nii.gz: sform and qform differ." in caplog.text


def test_stores_of_other_orders_are_others(plan):
    keys = {store_key(plan.replace(axis_codes=codes), "3d_fullres") for codes in ("", "LPS", "RAS")}
    assert len(keys) == 3


def test_nothing_is_turned_without_codes():
    assert reorientation_to(make_image().geometry, "").axes == (0, 1, 2)
