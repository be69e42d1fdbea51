"""A model that knows what its training images look like never refuses them, and notices others."""

import numpy as np
import pytest

from autoliver.inference.modality import seen_modality
from autoliver.inference.seen import as_trained, warn_if_far
from autoliver.io.volume import Geometry
from autoliver.planning.ranges import CaseRange, channel_range, seen_images

SHAPE = (12, 20, 20)
SPACING = (3.0, 1.0, 1.0)


def ct(seed):
    rng = np.random.default_rng(seed)
    image = rng.normal(-1000, 10, SHAPE)
    image[2:-2, 3:-3, 3:-3] = rng.normal(50, 80, (8, 14, 14))
    image[5:7, 8:11, 8:11] = rng.uniform(300, 1200, (2, 3, 3))
    return np.round(np.clip(image, -1024, 3071)).astype(np.float32)


def mr(seed, noise=0.0):
    rng = np.random.default_rng(seed + 50)
    image = np.zeros(SHAPE)
    image[2:-2, 3:-3, 3:-3] = rng.uniform(100, 900, (8, 14, 14)) * rng.uniform(0.7, 1.4)
    return (image + noise * rng.normal(0, 1, SHAPE)).astype(np.float32)


def as_bytes(seed):
    return np.round(np.clip((ct(seed) + 160) / 400, 0, 1) * 255).astype(np.float32)


# What a model was trained on, by its modality and how images are made.
TRAINED = {
    "CT": ("CT", ct),
    "CT + 1024": ("CT", lambda n: ct(n) + 1024),
    "CT 0 to 255": ("CT", as_bytes),
    "CT 0 to 1": ("CT", lambda n: as_bytes(n) / 255),
    "CT clipped": ("CT", lambda n: np.clip(ct(n), -125, 275)),
    "CT, half of it + 1024": ("CT", lambda n: ct(n) + 1024 * (n % 2)),
    "MR": ("MR", mr),
    "MR, noise 5": ("MR", lambda n: mr(n, 5)),
    "MR, noise 25": ("MR", lambda n: mr(n, 25)),
    "MR, noise 100": ("MR", lambda n: mr(n, 100)),
    "MR, noise 400": ("MR", lambda n: mr(n, 400)),
    "MR, some with noise": ("MR", lambda n: mr(n, 60 * (n % 2))),
    "ADC": ("MR", lambda n: mr(n, 10) * 1e-6),
    "phase": ("MR", lambda n: np.random.default_rng(n).uniform(-4096, 4095, SHAPE)),
}


def seen_of(make):
    cases = [
        CaseRange(name=f"c{n}", spacing_mm=SPACING, shape=SHAPE, channels=(channel_range(make(n)),))
        for n in range(6)
    ]
    return seen_images(cases)


def planned(plan, modality, make):
    scheme = "ct" if modality == "CT" else "zscore"
    own = {
        name: configuration.replace(normalization=(scheme,), mask_norm=(False,))
        for name, configuration in plan.configurations.items()
    }
    stats = plan.intensities[0].replace(mean=100, percentile_00_5=40)
    return plan.replace(
        modality=modality,
        configurations=own,
        channel_names=("image",),
        intensities=(stats,),
        seen=seen_of(make),
    )


@pytest.mark.parametrize("name", TRAINED)
def test_the_images_of_the_training_are_never_another_modality(plan, name):
    modality, make = TRAINED[name]
    own = planned(plan, modality, make)
    for n in range(6):
        found, why = seen_modality(make(n)[None], own, own.configurations["2d"])
        assert found in (None, modality), why


@pytest.mark.parametrize("name", [n for n in TRAINED if "half" not in n])
def test_nor_is_a_new_image_of_the_same_kind(plan, name):
    modality, make = TRAINED[name]
    own = planned(plan, modality, make)
    for n in range(6, 12):
        found, why = seen_modality(make(n)[None], own, own.configurations["2d"])
        assert found in (None, modality), why


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        *((name, ct(9), "CT") for name in TRAINED if name.startswith("MR")),
        *((name, np.clip(ct(9), -125, 275), "CT") for name in ("MR", "MR, noise 25")),
        ("ADC", ct(9), "CT"),
        ("phase", ct(9), "CT"),
        ("CT", mr(9), "MR"),
        ("CT clipped", mr(9), "MR"),
        ("CT 0 to 255", mr(9), "MR"),
        ("CT 0 to 1", mr(9), "MR"),
    ],
)
def test_the_other_modality_is_still_known(plan, name, image, expected):
    own = planned(plan, *TRAINED[name])
    found, why = seen_modality(image[None], own, own.configurations["2d"])
    assert found == expected, why


def test_noise_that_a_model_has_not_seen_does_not_make_mr_a_ct(plan):
    own = planned(plan, "MR", mr)
    found, why = seen_modality(mr(9, 55)[None], own, own.configurations["2d"])
    assert found is None
    assert "not conclusive" in why


@pytest.mark.parametrize("name", TRAINED)
def test_every_training_image_is_within_what_was_seen(name):
    modality, make = TRAINED[name]
    (seen,) = seen_of(make).channels
    assert all(as_trained(channel_range(make(n)), seen, ct=modality == "CT") for n in range(6))


@pytest.mark.parametrize(
    ("trained", "image", "spacing", "words"),
    [
        ("CT", ct(9), (300.0, 100.0, 100.0), ("spacing along z 300 mm", "size along x 2e+03 mm")),
        ("CT", ct(9), (0.003, 1.0, 1.0), ("spacing along z 0.003 mm",)),
        ("CT", ct(9)[:2], SPACING, ("size along z 6 mm, there 36 mm",)),
        ("CT 0 to 255", ct(9), SPACING, ("values -10", "there 0 to 255")),
        ("CT + 1024", ct(9), SPACING, ("values -10",)),
        ("CT", ct(9) * 10, SPACING, ("values -1.0",)),
        ("MR", mr(9) * 1e3, SPACING, ("values 0 to",)),
        ("MR", mr(9) / 1e3, SPACING, ("values 0 to",)),
        ("MR", mr(9) * 0 + 5, SPACING, ("values 5",)),
    ],
)
def test_a_case_far_from_the_training_is_named(trained, image, spacing, words, caplog):
    modality, make = TRAINED[trained]
    warn(modality, make, image, spacing)
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith("case_9: far from what Toy was trained on: ")
    assert all(word in text for word in words), text


@pytest.mark.parametrize("name", TRAINED)
def test_cases_like_those_of_the_training_are_passed_over(name, caplog):
    modality, make = TRAINED[name]
    for n in range(12):
        warn(modality, make, make(n), (4.0, 0.8, 0.8))
    assert not caplog.records


def warn(modality, make, image, spacing):
    warn_if_far(
        seen_of(make),
        [channel_range(image)],
        geometry=Geometry(shape_zyx=image.shape, spacing_mm=spacing),
        name="case_9",
        model="Toy",
        ct=[modality == "CT"],
    )


def test_a_picture_has_no_length_along_z(caplog):
    def picture(n, mm):
        channel = channel_range(mr(n)[6:7])
        shape, spacing = (1, *SHAPE[1:]), (999 * mm, mm, mm)
        return CaseRange(name=f"c{n}", spacing_mm=spacing, shape=shape, channels=(channel,))

    odd = picture(3, 400.0)
    warn_if_far(
        seen_images([picture(n, 4.0) for n in range(6)]),
        odd.channels,
        geometry=Geometry(shape_zyx=odd.shape, spacing_mm=odd.spacing_mm),
        name="case_9",
        model="Toy",
        ct=[False],
    )
    (record,) = caplog.records
    assert "spacing along y 400 mm, there 4 mm" in record.getMessage()
    assert "along z" not in record.getMessage()
