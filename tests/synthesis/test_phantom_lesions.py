import math

import numpy as np
import pytest
from scipy import ndimage

from autoliver.errors import OptionError
from autoliver.synthesis.phantom_lesions import (
    LESION_LABELS,
    LESION_VALUES,
    LesionClass,
    LesionOptions,
    LesionPhantom,
    draw_lesions,
    sample_lesion,
)
from autoliver.synthesis.phantom_solids import Bools, Floats

TOUCHING = np.ones((3, 3, 3))
SPACINGS = [(5.0, 1.3, 1.3), (2.0, 2.0, 2.0), (1.5, 4.0, 1.0)]
LEVEL, NOISE = 110.0, 15.0
MANY = LesionOptions(count=(4, 4))


def scan(spacing: tuple[float, float, float]) -> tuple[Floats, Bools]:
    """A round liver of 120 mm in dark surroundings, with white noise."""
    axes = [np.arange(-70, 70, mm) for mm in spacing]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    liver = z**2 + y**2 + x**2 < 60**2
    noise = np.random.default_rng(0).normal(0, NOISE, liver.shape)
    return (np.where(liver, LEVEL, -100) + noise).astype(np.float32), liver


def drawn(seed: int, spacing: tuple[float, float, float]) -> LesionPhantom:
    return draw_lesions(np.random.default_rng(seed), *scan(spacing), spacing, MANY)


def lesions_of(phantom: LesionPhantom) -> list[Bools]:
    parts, count = ndimage.label(phantom.label > 1, TOUCHING)
    return [parts == index for index in range(1, count + 1)]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_lesions_lie_in_the_liver_and_only_they_are_altered(
    spacing: tuple[float, float, float],
) -> None:
    image, liver = scan(spacing)
    phantom = draw_lesions(np.random.default_rng(1), image, liver, spacing, MANY)
    assert set(np.unique(phantom.label[~liver])) == {0}
    assert (phantom.label[liver] >= 1).all()
    assert not phantom.touched[~liver].any()
    assert phantom.touched[phantom.label > 1].all()
    assert (phantom.image[~phantom.touched] == image[~phantom.touched]).all()
    # The border's partial volume reaches a few millimetres at most, and a voxel or two.
    reach = ndimage.distance_transform_edt(phantom.label <= 1, sampling=spacing)
    assert reach[phantom.touched].max() <= 4 + 2 * max(spacing)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_lesions_are_apart_each_of_one_class_and_within_the_sizes(
    spacing: tuple[float, float, float],
) -> None:
    for seed in range(3):
        found = lesions_of(phantom := drawn(seed, spacing))
        assert len(found) == 4
        for lesion in found:
            assert len(np.unique(phantom.label[lesion])) == 1
            volume = lesion.sum() * math.prod(spacing)
            assert 5 <= (6 * volume / math.pi) ** (1 / 3) <= 40


def test_the_seed_decides() -> None:
    first, again, other = (drawn(seed, SPACINGS[0]) for seed in (3, 3, 4))
    assert (first.image == again.image).all()
    assert (first.label == again.label).all()
    assert (first.label != other.label).any()


def test_the_scan_given_is_not_altered() -> None:
    image, liver = scan(SPACINGS[1])
    before = image.copy()
    draw_lesions(np.random.default_rng(0), image, liver, SPACINGS[1], MANY)
    assert (image == before).all()


def test_numbers_of_lesions_vary_within_their_bounds() -> None:
    image, liver = scan((4.0, 4.0, 4.0))
    options = LesionOptions(count=(0, 2), diameter_mm=(10, 20))
    counts = {
        len(lesions_of(draw_lesions(rng, image, liver, (4.0, 4.0, 4.0), options)))
        for rng in map(np.random.default_rng, range(20))
    }
    assert counts == {0, 1, 2}


def test_classes_differ_in_core_and_rim_as_they_should() -> None:
    """Relative to the liver: cysts are darkest, hemangiomas have the brightest spots."""
    spacing = (2.0, 2.0, 2.0)
    core: dict[int, list[float]] = {value: [] for value in LESION_VALUES.values()}
    rim: dict[int, list[float]] = {value: [] for value in LESION_VALUES.values()}
    spots: dict[int, list[float]] = {value: [] for value in LESION_VALUES.values()}
    image, liver = scan(spacing)
    large = LesionOptions(count=(3, 3), diameter_mm=(20, 35))
    for seed in range(12):
        rng = np.random.default_rng([7, seed])
        phantom = draw_lesions(rng, image, liver, spacing, large)
        for lesion in lesions_of(phantom):
            depth = ndimage.distance_transform_edt(lesion, sampling=spacing)
            value = int(phantom.label[lesion][0])
            inside = phantom.image[lesion & (depth > 0.6 * depth.max())]
            outside = phantom.image[lesion & (depth < 0.35 * depth.max())]
            core[value].append(inside.mean() - LEVEL)
            rim[value].append(outside.mean() - inside.mean())
            spots[value].append(np.percentile(outside, 90) - LEVEL)
    cyst, hemangioma, metastasis = (LESION_VALUES[kind] for kind in LESION_VALUES)
    assert min(map(len, core.values())) >= 5
    assert np.mean(core[cyst]) < np.mean(core[metastasis]) < np.mean(core[hemangioma]) < 0
    assert np.mean(rim[cyst]) < np.mean(rim[metastasis])
    assert np.mean(spots[cyst]) < np.mean(spots[metastasis]) < np.mean(spots[hemangioma])
    assert np.mean(spots[hemangioma]) > NOISE


def test_noise_in_a_cyst_is_the_scans_own() -> None:
    image, liver = scan((2.0, 2.0, 2.0))
    deviations = []
    options = LesionOptions(count=(3, 3), diameter_mm=(20, 35))
    for seed in range(12):
        rng = np.random.default_rng([7, seed])
        phantom = draw_lesions(rng, image, liver, (2.0, 2.0, 2.0), options)
        cysts = phantom.label == LESION_VALUES["cyst"]
        inside = ndimage.binary_erosion(cysts, iterations=2)
        parts, count = ndimage.label(inside)
        deviations += [phantom.image[parts == n].std() for n in range(1, count + 1)]
    assert len(deviations) >= 3
    assert np.median(deviations) == pytest.approx(NOISE, rel=0.15)


@pytest.mark.parametrize("kind", LESION_VALUES)
@pytest.mark.parametrize("diameter_mm", [5.0, 17.0, 40.0])
def test_a_shape_has_the_volume_of_its_sphere(kind: LesionClass, diameter_mm: float) -> None:
    lesion = sample_lesion(np.random.default_rng(5), kind, diameter_mm)
    step = diameter_mm / 40
    axis = np.arange(-diameter_mm, diameter_mm, step, dtype=np.float32)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    volume = float(lesion.shape.contains(x, y, z).sum()) * step**3
    assert volume == pytest.approx(math.pi / 6 * diameter_mm**3, rel=0.03)


def test_a_scan_without_a_liver_has_no_lesion() -> None:
    image, liver = scan((4.0, 4.0, 4.0))
    empty = draw_lesions(np.random.default_rng(0), image, liver & False, (4.0, 4.0, 4.0), MANY)
    assert not empty.label.any()
    assert (empty.image == image).all()


def test_a_liver_without_room_has_no_lesion() -> None:
    image, liver = scan((4.0, 4.0, 4.0))
    thin = liver.copy()
    thin[:, :, np.flatnonzero(liver.any(axis=(0, 1)))[0] + 1 :] = False
    assert draw_lesions(np.random.default_rng(0), image, thin, (4.0, 4.0, 4.0)).label.max() <= 1


def test_values_are_those_of_the_labels() -> None:
    assert {kind: (value,) for kind, value in LESION_VALUES.items()} == {
        kind: LESION_LABELS.values[kind] for kind in LESION_VALUES
    }


@pytest.mark.parametrize(
    "options",
    [
        LesionOptions(count=(3, 2)),
        LesionOptions(count=(-1, 2)),
        LesionOptions(diameter_mm=(0, 4)),
        LesionOptions(diameter_mm=(9, 4)),
        LesionOptions(diameter_mm=(9, math.inf)),
    ],
)
def test_impossible_options_are_refused(options: LesionOptions) -> None:
    with pytest.raises(OptionError, match="not possible"):
        draw_lesions(np.random.default_rng(0), *scan((8.0, 8.0, 8.0)), (8.0, 8.0, 8.0), options)


def test_image_and_liver_of_two_shapes_are_refused() -> None:
    image, liver = scan((8.0, 8.0, 8.0))
    with pytest.raises(ValueError, match="differ in shape"):
        draw_lesions(np.random.default_rng(0), image[1:], liver, (8.0, 8.0, 8.0))
