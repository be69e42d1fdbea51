import numpy as np
import pytest

from autoliver.datasets.cases import Labels
from autoliver.errors import DatasetError
from autoliver.networks.spec import UNetSpec
from autoliver.planning.plan import Configuration, IntensityStats, Plan
from autoliver.preprocessing.normalize import hides_fat, normalize

STATS = IntensityStats(
    mean=80.0,
    median=82.0,
    std=20.0,
    min=-30.0,
    max=300.0,
    percentile_00_5=0.0,
    percentile_99_5=160.0,
)


def run(values, scheme, *, mask=None, stats=STATS):
    image = np.asarray(values, dtype=np.float32).reshape(1, 1, 1, -1)
    inside = np.ones(image.shape[1:], bool) if mask is None else np.reshape(mask, image.shape[1:])
    result = normalize(
        image,
        schemes=(scheme,),
        mask_norm=(mask is not None,),
        intensities=(stats,),
        mask=inside,
        where="case_1",
    )
    assert result.dtype == np.float32
    return result.ravel()


def test_ct_is_clipped_and_scaled_by_the_dataset():
    result = run([-1000, 0, 80, 100, 160, 900], "ct")

    np.testing.assert_allclose(result, [-4, -4, 0, 1, 4, 4])


def test_zscore_goes_by_the_image():
    values = np.array([1.0, 2.0, 3.0, 6.0])

    result = run(values, "zscore")

    np.testing.assert_allclose(result, (values - 3) / np.sqrt(3.5), rtol=1e-6)


def test_zscore_in_a_mask_leaves_the_rest_at_zero():
    result = run([0, 0, 2, 4], "zscore", mask=[False, False, True, True])

    np.testing.assert_allclose(result, [0, 0, -1, 1])


@pytest.mark.parametrize("mask", [None, [False] * 3, [True, True, False]])
def test_constant_and_empty_images_give_zeros(mask):
    np.testing.assert_array_equal(run([0, 0, 0], "zscore", mask=mask), 0)
    np.testing.assert_array_equal(run([7, 7, 7], "rescale01"), 0)


def test_rescaled_to_the_unit_interval():
    np.testing.assert_allclose(run([-5, 0, 15], "rescale01"), [0, 0.25, 1])


def test_rgb_is_divided_by_255():
    np.testing.assert_allclose(run([0, 51, 255], "rgb"), [0, 0.2, 1], rtol=1e-6)


def test_rgb_out_of_range_is_the_users_to_mend():
    with pytest.raises(DatasetError, match=r"case_1, channel 0: values from -3 to 40"):
        run([-3, 40], "rgb")


def test_no_normalisation_only_converts():
    np.testing.assert_array_equal(run([1, 200], "none"), [1, 200])


def test_channels_have_schemes_of_their_own_and_the_input_stays():
    image = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 6)).astype(np.float32)
    kept = image.copy()

    result = normalize(
        image,
        schemes=("ct", "zscore", "none"),
        mask_norm=(False, False, False),
        intensities=(STATS,) * 3,
        mask=np.ones((4, 5, 6), dtype=bool),
    )

    np.testing.assert_allclose(result[0], (image[0].clip(0, 160) - 80) / 20, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result[1], (image[1] - image[1].mean()) / image[1].std(), atol=1e-5)
    np.testing.assert_array_equal(result[2], image[2])
    np.testing.assert_array_equal(image, kept)


def test_fat_is_hidden_by_a_window_of_ct_alone():
    options = {"dataset": "D", "preset": "tiny", "vram_gb": 1.0, "modality": "CT"}
    narrow = STATS
    wide = STATS.replace(percentile_00_5=-150.0)
    decided = Configuration(
        spacing_mm=(1.0, 1.0),
        median_shape=(64.0, 64.0),
        patch_shape=(64, 64),
        batch_size=2,
        batch_dice=True,
        normalization=("ct", "zscore"),
        mask_norm=(False, False),
        network=UNetSpec(
            in_channels=2,
            out_channels=2,
            features=(4,),
            strides=((1, 1),),
            kernels=((3, 3),),
            blocks_encoder=(1,),
            blocks_decoder=(),
        ),
    )
    plan = Plan(
        **options,
        channel_names=("CT", "PET"),
        labels=Labels(values={"background": (0,), "liver": (1,)}),
        file_ending=".nii.gz",
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        intensities=(wide, narrow),  # of PET no value is below zero
        configurations={"2d": decided},
    )
    assert not hides_fat(plan)
    assert hides_fat(plan.replace(intensities=(narrow, wide)))
    swapped = plan.replace(configurations={"2d": decided.replace(normalization=("none", "ct"))})
    assert hides_fat(swapped)
    assert not hides_fat(swapped.replace(modality="other"))


SCALES = (1e-30, 1e-25, 3e-12, 1e-9, 1e-6, 0.1, 1.0, 7.0, 1e6, 1e12, 1e19, 1e25, 1e30)


def mr(seed=0, size=4096):
    """MR without and with negative values, with a small and a large mean."""
    rng = np.random.default_rng(seed)
    return np.abs(rng.normal(300, 200, size)) - (0, 50, 400)[seed % 3]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [*SCALES, *(-scale for scale in SCALES)])
def test_zscore_does_not_depend_on_the_unit(scale, masked):
    for seed in range(3):
        values = mr(seed)
        mask = np.arange(values.size) % 3 > 0 if masked else None
        if masked:
            values[~mask] = 0
        expected = run(values, "zscore", mask=mask)
        result = run(values * scale, "zscore", mask=mask)
        np.testing.assert_allclose(result * np.sign(scale), expected, atol=1e-5)
        inside = result if mask is None else result[mask]
        np.testing.assert_allclose([inside.mean(), inside.std()], [0, 1], atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scheme", ["rescale01", "ct"])
def test_other_schemes_do_not_depend_on_the_unit_either(scheme, scale):
    values = mr(1)
    names = ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5")
    scaled = STATS.replace(**{name: getattr(STATS, name) * scale for name in names})

    result = run(values * scale, scheme, stats=scaled)

    np.testing.assert_allclose(result, run(values, scheme), atol=1e-5)


@pytest.mark.parametrize("scheme", ["zscore", "rescale01"])
@pytest.mark.parametrize("value", [0, 1e-45, 1e-30, 1e-9, 0.1, 1 / 3, 1000.1, -7.7, 1e25, 3.4e38])
def test_constant_images_are_zero_whatever_their_value(scheme, value):
    np.testing.assert_array_equal(run([value] * 1001, scheme), 0)


@pytest.mark.parametrize("scheme", ["zscore", "rescale01"])
def test_the_widest_range_there_is(scheme):
    most = float(np.finfo(np.float32).max)
    result = run([-most, most] * 50, scheme)
    np.testing.assert_allclose(np.unique(result), [-1 if scheme == "zscore" else 0, 1], rtol=1e-6)


def test_ordinary_images_keep_every_bit():
    for seed in range(6):
        values = mr(seed).astype(np.float32)
        values = np.round(values) if seed % 2 else values
        expected = (values - values.mean()) / max(float(values.std()), 1e-8)
        np.testing.assert_array_equal(run(values, "zscore"), expected)
