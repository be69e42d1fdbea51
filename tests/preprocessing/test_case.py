import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.transform import resize

from autoliver.datasets.cases import Labels
from autoliver.errors import DatasetError
from autoliver.io.volume import Geometry, Volume
from autoliver.networks.spec import UNetSpec
from autoliver.planning.plan import Configuration, IntensityStats, Plan
from autoliver.preprocessing.case import (
    ANNOTATED,
    CaseProperties,
    backward_logits,
    class_locations,
    forward,
    forward_labels,
    one_hot,
    resampled_shape,
)

STATS = IntensityStats(
    mean=50.0,
    median=50.0,
    std=25.0,
    min=-90.0,
    max=200.0,
    percentile_00_5=-20.0,
    percentile_99_5=150.0,
)
LABELS = Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)})
REGIONS = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
)
TURNED = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
DATA = Path(__file__).parents[2] / "../shared/data"


def make_plan(*, spacing_mm=(1.0, 1.0, 1.0), transpose=(0, 1, 2), labels=LABELS, **settings):
    network = UNetSpec(
        in_channels=1,
        out_channels=3,
        features=(4, 8),
        strides=((1, 1, 1), (2, 2, 2)),
        kernels=((3, 3, 3), (3, 3, 3)),
        blocks_encoder=(2, 2),
        blocks_decoder=(2,),
    )
    configuration = Configuration(
        spacing_mm=spacing_mm,
        median_shape=(32.0,) * len(spacing_mm),
        patch_shape=(32,) * len(spacing_mm),
        batch_size=2,
        batch_dice=False,
        network=network,
        **{"normalization": ("zscore",), "mask_norm": (False,)} | settings,
    )
    backward = tuple(int(axis) for axis in np.argsort(transpose))
    return Plan(
        dataset="Dataset999_Test",
        preset="default",
        vram_gb=8.0,
        channel_names=("MR",) * len(configuration.normalization),
        modality="MR",
        labels=labels,
        file_ending=".nii.gz",
        transpose_forward=transpose,
        transpose_backward=backward,
        intensities=(STATS,) * len(configuration.normalization),
        configurations={"3d_fullres": configuration},
    )


def make_case(shape=(26, 40, 36), spacing_mm=(3.0, 1.2, 1.1), channels=1, margin=4):
    """A body with a liver and a tumour in it, zeros around it, oblique."""
    rng = np.random.default_rng(0)
    z, y, x = np.indices(shape)
    inside = np.zeros(shape, bool)
    inside[2:-1, margin:-3, 5:-margin] = True
    image = rng.normal(100, 20, (channels, *shape)).astype(np.float32) * inside
    radius = [n / 4 for n in shape]
    ball = sum(((c - n / 2) / r) ** 2 for c, n, r in zip((z, y, x), shape, radius, strict=True))
    label = np.where(ball < 0.3, 2, np.where(ball < 1, 1, 0)).astype(np.uint8)[None]
    geometry = Geometry(
        shape_zyx=shape, spacing_mm=spacing_mm, origin_xyz=(-7.0, 3.0, 11.0), direction=TURNED
    )
    return Volume(array=image, geometry=geometry), Volume(array=label, geometry=geometry)


def run(image, label, plan, name="case_1"):
    configuration = plan.configurations["3d_fullres"]
    return forward(image, label, plan=plan, configuration=configuration, name=name)


def dice(a, b, value):
    return 2 * np.sum((a == value) & (b == value)) / (np.sum(a == value) + np.sum(b == value))


def test_forward_transposes_crops_normalises_and_resamples_in_that_order():
    image, label = make_case()
    plan = make_plan(spacing_mm=(1.1, 1.0, 2.0), transpose=(2, 1, 0))

    case = run(image, label, plan)

    cropped = image.array[0].transpose(2, 1, 0)[5:-4, 4:-3, 2:-1]
    normal = (cropped - cropped.mean()) / cropped.std()
    shape = (27, round(33 * 1.2), round(23 * 3.0 / 2.0))
    expected = resize(
        normal.astype(np.float64), shape, 3, mode="edge", clip=True, anti_aliasing=False
    )
    assert case.image.dtype == np.float32
    np.testing.assert_allclose(case.image[0], expected, rtol=0, atol=1e-4)
    assert case.label.dtype == np.int16
    assert case.label.shape == case.image.shape
    assert case.properties == CaseProperties(
        name="case_1",
        modality="MR",
        geometry=image.geometry,
        transpose_forward=(2, 1, 0),
        box=((5, 32), (4, 37), (2, 25)),
        shape_zyx=(27, 40, 34),
        spacing_mm=(1.1, 1.0, 2.0),
    )
    assert case.properties.shape_after_crop == (27, 33, 23)
    assert case.properties.input_spacing_mm == (1.1, 1.2, 3.0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scheme", ["zscore", "ct"])
def test_a_plan_may_resample_before_it_normalises(scheme, masked):
    image, label = make_case()
    image.array[0, 2:12, 4:16, 5:15] = 0  # a corner of the body that does not count
    settings = {"normalization": (scheme,), "mask_norm": (masked,)}
    spacing = (1.5, 1.0, 1.0)
    late = make_plan(spacing_mm=spacing, normalize_after_resampling=True, **settings)

    case = run(image, None, late)

    cropped = image.array[0, 2:-1, 4:-3, 5:-4].astype(np.float64)
    shape = (46, 40, 30)
    values = resize(cropped, shape, 3, mode="edge", clip=True, anti_aliasing=False)
    counted = resize((cropped != 0).astype(float), shape, 1, mode="edge", anti_aliasing=False)
    mask = counted > 0.5 if masked else np.ones(shape, bool)
    values[~mask] = 0
    if scheme == "ct":
        expected = (values.clip(-20, 150) - 50) / 25
    else:
        expected = np.where(mask, (values - values[mask].mean()) / values[mask].std(), 0)
    sure = np.abs(counted - 0.5) > 1e-3
    np.testing.assert_allclose(case.image[0][sure], expected[sure], rtol=0, atol=2e-3)
    early = make_plan(spacing_mm=spacing, **settings)
    assert np.abs(run(image, None, early).image[0] - expected).max() > 0.05
    # The label is the same either way.
    labels = [run(image, label, plan).label for plan in (early, late)]
    np.testing.assert_array_equal(*labels)


def test_ct_values_come_from_the_plan_and_inputs_are_left_alone():
    image, label = make_case(spacing_mm=(1.0, 1.0, 1.0))
    kept = image.array.copy(), label.array.copy()

    case = run(image, label, make_plan(normalization=("ct",)))

    cropped = image.array[:, 2:-1, 4:-3, 5:-4]
    np.testing.assert_allclose(case.image, (cropped.clip(-20, 150) - 50) / 25, atol=1e-5)
    np.testing.assert_array_equal(image.array, kept[0])
    np.testing.assert_array_equal(label.array, kept[1])


def test_in_two_dimensions_the_slices_stay():
    image, label = make_case(spacing_mm=(3.0, 1.2, 1.1))

    case = run(image, label, make_plan(spacing_mm=(0.6, 0.55)))

    assert case.properties.spacing_mm == (3.0, 0.6, 0.55)
    assert case.image.shape == (1, 23, 66, 54)


def back_again(case, labels=LABELS):
    """The label map on the input's grid, of a network that is sure of the case's label."""
    values = np.array([value for (value,) in labels.values.values()]).reshape(-1, 1, 1, 1)
    sure = (np.maximum(case.label, 0) == values).astype(np.float32)
    return backward_logits(sure, case.properties, labels=labels)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_there_and_back_on_the_same_spacing_changes_nothing(transpose):
    image, label = make_case(spacing_mm=(2.0, 2.0, 2.0))
    case = run(image, label, make_plan(spacing_mm=(2.0, 2.0, 2.0), transpose=transpose))

    back = back_again(case)

    np.testing.assert_array_equal(back, label.array[0])


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("input_mm", [(3.0, 1.2, 1.1), (5.0, 0.9, 0.9), (1.0, 1.4, 0.7)])
def test_there_and_back_keeps_the_labels(transpose, input_mm):
    image, label = make_case(shape=(30, 56, 60), spacing_mm=input_mm)
    target = [min(1.0, max(0.7, input_mm[axis] * 0.8)) for axis in transpose]
    case = run(image, label, make_plan(spacing_mm=tuple(target), transpose=transpose))

    back = back_again(case)

    assert back.shape == label.array.shape[1:]
    assert dice(back, label.array[0], 1) > 0.97
    assert dice(back, label.array[0], 2) > 0.97


def forward_with_logits(transpose=(1, 2, 0), rows=3):
    image, label = make_case(shape=(30, 56, 60), spacing_mm=(4.0, 1.2, 1.1))
    case = run(image, label, make_plan(spacing_mm=(1.0, 1.0, 1.0), transpose=transpose))
    noise = np.random.default_rng(1).normal(size=(rows, *case.image.shape[1:]))
    logits = gaussian_filter(noise, (0, 2, 2, 2)).astype(np.float32) * 20
    return case, logits


def slow_backward(logits, properties):
    """Resampled whole in float64, pasted into minus infinity, and turned back."""
    spacing = properties.input_spacing_mm
    coarse = int(np.argmax(spacing))
    assert max(spacing) / min(spacing) > 3
    wanted = properties.shape_after_crop
    nearest = np.floor(
        (np.arange(wanted[coarse]) + 0.5) * logits.shape[1 + coarse] / wanted[coarse]
    ).astype(int)
    picked = logits.astype(np.float64).take(nearest, axis=1 + coarse)
    resized = np.stack([resize(row, wanted, 1, mode="edge", anti_aliasing=False) for row in picked])
    whole = np.full((len(logits), *properties.shape_before_crop), -np.inf)
    whole[:, *(slice(*ends) for ends in properties.box)] = resized
    inverse = np.argsort(properties.transpose_forward)
    return whole.transpose(0, *(inverse + 1))


def test_the_largest_class_wins_on_the_input_grid():
    case, logits = forward_with_logits()

    result = backward_logits(logits, case.properties, labels=LABELS)

    expected = slow_backward(logits, case.properties).argmax(axis=0)
    assert result.dtype == np.uint8
    assert result.shape == case.properties.geometry.shape_zyx
    assert set(np.unique(result)) == {0, 1, 2}
    assert np.mean(result != expected) < 1e-5


def test_slabs_give_what_the_whole_gives(monkeypatch):
    case, logits = forward_with_logits()
    whole = backward_logits(logits, case.properties, labels=LABELS)

    monkeypatch.setattr("autoliver.preprocessing.case._SLAB_VOXELS", 5000)

    np.testing.assert_array_equal(backward_logits(logits, case.properties, labels=LABELS), whole)


@pytest.mark.parametrize("share", [(0.2, 0.7), (0.0, 0.5), (0.4, 0.45)])
@pytest.mark.parametrize(("labels", "rows"), [(LABELS, 3), (REGIONS, 2)])
def test_logits_of_a_box_decide_what_depends_on_them_alone(labels, rows, share):
    case, logits = forward_with_logits(rows=rows)
    box = tuple(slice(*(round(s * n) for s in share)) for n in logits.shape[1:])
    outside = np.ones_like(logits)
    outside[:, *box] = 0

    result = backward_logits(logits[:, *box], case.properties, labels=labels, within=box)

    influenced = slow_backward(outside, case.properties).max(axis=0) > 1e-6
    whole = backward_logits(logits, case.properties, labels=labels)
    cropped = np.isneginf(slow_backward(outside, case.properties)).all(axis=0)
    expected = np.where(influenced | cropped, 0, whole)
    assert np.mean(result != expected) < 1e-5


def test_regions_are_painted_in_their_order():
    case, logits = forward_with_logits(rows=2)

    result = backward_logits(logits, case.properties, labels=REGIONS)

    liver, tumour = slow_backward(logits, case.properties) > 0
    expected = np.where(tumour, 2, np.where(liver, 1, 0))
    assert np.mean(result != expected) < 1e-5


def test_half_precision_logits_and_large_label_values_are_fine():
    labels = Labels(values={"background": (0,), "a": (1,), "b": (300,)})
    case, logits = forward_with_logits()

    result = backward_logits(logits.astype(np.float16), case.properties, labels=labels)

    expected = np.array([0, 1, 300])[slow_backward(logits, case.properties).argmax(axis=0)]
    assert result.dtype == np.uint16
    assert np.mean(result != expected) < 1e-3


def test_logits_are_read_only_even_where_the_grid_stays():
    image, label = make_case(spacing_mm=(2.0, 2.0, 2.0))
    case = run(image, label, make_plan(spacing_mm=(2.0, 2.0, 2.0)))
    logits = np.random.default_rng(0).normal(size=(3, *case.image.shape[1:])).astype(np.float32)
    logits.flags.writeable = False

    result = backward_logits(logits, case.properties, labels=LABELS)

    inside = tuple(slice(*ends) for ends in case.properties.box)
    np.testing.assert_array_equal(result[inside], logits.argmax(axis=0))


def test_logits_of_another_case_are_a_bug():
    case, logits = forward_with_logits()

    with pytest.raises(ValueError, match="expected logits of shape"):
        backward_logits(logits[:, 1:], case.properties, labels=LABELS)


def test_the_extent_in_mm_is_kept_and_no_axis_vanishes():
    assert resampled_shape((10, 11, 100), (3.0, 1.0, 0.7), (2.0, 2.0, 1.0)) == (15, 6, 70)
    assert resampled_shape((1, 5, 5), (1.0, 1.0, 1.0), (4.0, 1.0, 1.0)) == (1, 5, 5)


def test_an_image_of_zeros_and_an_empty_label_come_through():
    image, label = make_case()
    black = dataclasses.replace(image, array=np.zeros_like(image.array))
    empty = dataclasses.replace(label, array=np.zeros_like(label.array))

    case = run(black, empty, make_plan(mask_norm=(True,)))

    assert not case.image.any()
    assert not back_again(case).any()


def test_what_does_not_fit_together_is_named():
    image, label = make_case()
    other = Volume(
        array=label.array[:, 1:],
        geometry=label.geometry.replace(shape_zyx=label.array[:, 1:].shape[1:]),
    )
    with pytest.raises(DatasetError, match=r"case_1: image and label differ in size: .*25, 40, 36"):
        run(image, other, make_plan())
    with pytest.raises(DatasetError, match=r"case_1: 1 image channels; the plan expects 2"):
        run(image, label, make_plan(normalization=("ct", "ct"), mask_norm=(False, False)))
    huge = dataclasses.replace(label, array=label.array.astype(np.int32) * 40000)
    with pytest.raises(DatasetError, match="label value 80000"):
        run(image, huge, make_plan())


def test_locations_show_their_label():
    label = np.full((1, 30, 30, 30), -1, np.int16)
    label[0, 5:25, 5:25, 5:25] = 0
    label[0, 10:20, 10:20, 10:20] = 1
    label[0, 12, 12, 12] = 2
    labels = Labels(values={"background": (0,), "all": (1, 2), "rare": (2,), "absent": (7,)})

    found = class_locations(label, labels, rng=np.random.default_rng(0), limit=50)

    assert {value: len(places) for value, places in found.items()} == {1: 50, 2: 1, 7: 0}
    assert all(places.dtype == np.int32 for places in found.values())
    assert np.all(label[0][tuple(found[1].T)] == 1)
    assert len(np.unique(found[1], axis=0)) == 50
    np.testing.assert_array_equal(found[2], [[12, 12, 12]])


def test_large_labels_keep_one_voxel_in_a_hundred():
    label = np.ones((1, 40, 40, 40), np.int16)

    found = class_locations(label, LABELS, rng=np.random.default_rng(0), limit=10)

    assert len(found[1]) == 640
    spread = found[1].mean(axis=0)
    assert np.all(np.abs(spread - 19.5) < 3 * math.sqrt(40**2 / 12 / 640))


def test_locations_with_an_ignore_label_include_everything_annotated():
    label = np.full((1, 6, 6, 6), 3, np.int16)
    label[0, :2] = 0
    label[0, 0, 0, 0] = 1
    label[0, 1, 1, 1] = -1
    labels = Labels(values=LABELS.values, ignore=3)

    found = class_locations(label, labels, rng=np.random.default_rng(0))

    assert set(found) == {1, 2, ANNOTATED}
    assert len(found[ANNOTATED]) == 72
    assert found[ANNOTATED][:, 0].max() == 1


def test_the_same_seed_gives_the_same_locations():
    label = np.random.default_rng(0).integers(-1, 3, (1, 20, 20, 20)).astype(np.int16)

    one, two = (
        class_locations(label, LABELS, rng=np.random.default_rng(5), limit=20) for _ in range(2)
    )

    assert all(np.array_equal(one[value], two[value]) for value in one)


def test_preprocessed_values_are_frozen():
    case = run(*make_case(), make_plan())

    with pytest.raises(dataclasses.FrozenInstanceError):
        case.label = None


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 2, 0)])
def test_a_label_map_alone_follows_its_case(transpose):
    image, label = make_case()
    plan = make_plan(spacing_mm=(1.5, 1.5, 2.0), transpose=transpose)
    case = run(image, label, plan)
    alone = forward_labels(label.array[0], case.properties)
    np.testing.assert_array_equal(alone, np.maximum(case.label, 0))


def test_label_values_up_to_16_bits_come_through():
    image, label = make_case()
    values = np.array([0, 1, 65_535], np.uint16)
    large = dataclasses.replace(label, array=values[label.array])
    labels = Labels(values={"background": (0,), "liver": (1,), "tumour": (65_535,)})
    case = run(image, large, make_plan(spacing_mm=(3.0, 1.2, 1.1), labels=labels))
    assert case.label.dtype == np.int32
    assert set(np.unique(case.label)) >= {0, 1, 65_535}
    back = back_again(case, labels)
    np.testing.assert_array_equal(back, large.array[0])


def test_channels_of_a_first_stage_are_one_per_foreground_value():
    label = np.array([[[[-1, 0, 1], [2, 2, 0]]]], np.int16)
    channels = one_hot(label, REGIONS)
    assert channels.dtype == np.float32
    np.testing.assert_array_equal(channels[0], [[[0, 0, 1], [0, 0, 0]]])
    np.testing.assert_array_equal(channels[1], [[[0, 0, 0], [1, 1, 0]]])
