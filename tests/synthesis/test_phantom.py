import dataclasses
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy import ndimage

from autoliver.errors import OptionError
from autoliver.io.files import read_image, read_label
from autoliver.synthesis.phantom import (
    PHANTOM_LABELS,
    TISSUE_MEANS,
    Contrast,
    Phantom,
    PhantomOptions,
    make_phantom,
    write_phantom_dataset,
)
from autoliver.synthesis.phantom_anatomy import (
    AIR,
    KIDNEY,
    LIVER,
    SPLEEN,
    TISSUES,
    TUMOUR,
    VESSEL,
    paint_anatomy,
    rotation_matrix,
    sample_anatomy,
)
from autoliver.synthesis.phantom_solids import (
    Blob,
    Capsule,
    Column,
    Grid,
    Layer,
    Solid,
    paint_layers,
)

ADULT = PhantomOptions(
    shape_zyx=(56, 80, 96), spacing_mm=(5.0, 4.0, 4.0), scale=1.0, lesions=(1, 4), oblique=False
)
SMALL = PhantomOptions(shape_zyx=(16, 40, 40))
CONTRASTS: tuple[Contrast, ...] = ("CT", "T1", "T2")


@pytest.fixture(scope="module")
def adults() -> list[Phantom]:
    return [make_phantom(np.random.default_rng(seed), ADULT) for seed in range(6)]


def scan(seed: int, options: PhantomOptions) -> Phantom:
    return make_phantom(np.random.default_rng(seed), options)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_equal_seeds_give_equal_scans_and_other_seeds_others(contrast: Contrast) -> None:
    options = SMALL.replace(contrast=contrast)
    first, again, other = scan(3, options), scan(3, options), scan(4, options)
    for name in ("image", "label", "tissue"):
        one, two = getattr(first, name), getattr(again, name)
        np.testing.assert_array_equal(one.array, two.array)
        assert one.geometry == two.geometry == first.image.geometry
    assert not np.array_equal(first.label.array, other.label.array)
    assert first.image.array.dtype == np.float32
    assert first.label.array.dtype == first.tissue.array.dtype == np.uint8


def test_one_seed_is_one_patient_in_every_contrast() -> None:
    options = ADULT.replace(shape_zyx=(20, 32, 40), spacing_mm=(12.0, 10.0, 10.0))
    labels = [scan(5, options.replace(contrast=c)).label.array for c in CONTRASTS]
    np.testing.assert_array_equal(labels[0], labels[1])
    np.testing.assert_array_equal(labels[0], labels[2])


def test_every_label_has_a_plausible_volume(adults: list[Phantom]) -> None:
    voxel_ml = math.prod(ADULT.spacing_mm or ()) / 1000
    for phantom in adults:
        ml = np.bincount(phantom.label.array.ravel(), minlength=6) * voxel_ml
        assert len(ml) == 6
        assert 800 < ml[1] + ml[2] < 2500
        assert 1 < ml[2] < 400
        assert 80 < ml[3] < 400
        assert 60 < ml[4] < 300
        assert 60 < ml[5] < 300


def test_organs_lie_on_their_sides(adults: list[Phantom]) -> None:
    for phantom in adults:
        label = phantom.label.array[0]
        geometry = phantom.label.geometry
        # Without obliqueness x runs to the patient's left along the last axis; the spine is the
        # midline.
        spine = np.argwhere(phantom.tissue.array[0] == TISSUES["bone"]).mean(axis=0)
        z, y, x = np.transpose([np.argwhere(label == value).mean(axis=0) for value in range(1, 6)])
        liver, _, spleen, right, left = x
        assert geometry.direction == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
        assert liver < spine[2] < spleen
        assert right + 5 < spine[2] < left - 5
        assert all(y < spine[1])
        assert z[3] < z[0]
        assert z[4] < z[2]


def test_organs_are_inside_the_body_and_labels_match_tissues(adults: list[Phantom]) -> None:
    for phantom in adults:
        label, tissue = phantom.label.array[0], phantom.tissue.array[0]
        body = tissue != AIR
        assert ndimage.label(body)[1] == 1
        in_plane = np.zeros((3, 3, 3), bool)
        in_plane[1] = True
        skin = body & ~ndimage.binary_erosion(body, in_plane)
        assert not label[skin].any()
        holds = {1: {LIVER, VESSEL}, 2: {TUMOUR}, 3: {SPLEEN}, 4: {KIDNEY}, 5: {KIDNEY}}
        for value, tissues in holds.items():
            assert set(np.unique(tissue[label == value]).tolist()) <= tissues
        assert not np.isin(tissue[label == 0], [LIVER, SPLEEN, KIDNEY, TUMOUR]).any()
        assert (tissue[label == 1] == VESSEL).any()
        # Lesions sit in the liver: all that touches one belongs to it, mostly.
        rim = ndimage.binary_dilation(label == 2) & (label != 2)
        assert (label[rim] == 1).mean() > 0.5


def test_liver_is_one_piece_and_touches_another_organ(adults: list[Phantom]) -> None:
    touching = 0
    for phantom in adults:
        label = phantom.label.array[0]
        liver = np.isin(label, (1, 2))
        parts, count = ndimage.label(liver)
        assert np.bincount(parts.ravel())[1:].max() > 0.98 * liver.sum(), count
        touching += bool(label[ndimage.binary_dilation(liver) & ~liver].any())
    assert touching > len(adults) // 2


def test_asked_number_of_lesions(adults: list[Phantom]) -> None:
    assert not (scan(0, ADULT.replace(lesions=(0, 0))).label.array == 2).any()
    for seed in range(3):
        layers = sample_anatomy(np.random.default_rng(seed), lesions=(3, 3))
        assert sum(layer.label == 2 for layer in layers) == 3
    for phantom in adults:
        assert 1 <= ndimage.label(phantom.label.array[0] == 2)[1] <= 4


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_tissue_means_are_near_the_table(contrast: Contrast) -> None:
    options = ADULT.replace(contrast=contrast)
    found: dict[str, list[float]] = {name: [] for name in TISSUES}
    for seed in range(4):
        phantom = scan(seed, options)
        tissue, image = phantom.tissue.array[0], phantom.image.array[0]
        for name, value in TISSUES.items():
            # Away from borders, where blur mixes tissues; thin ones have nothing else.
            core = ndimage.binary_erosion(tissue == value)
            if core.sum() >= 8:
                found[name].append(float(image[core].mean()))
    table = dict(zip(TISSUES, TISSUE_MEANS[contrast], strict=True))
    if contrast == "CT":
        for name, means in found.items():
            assert all(abs(mean - table[name]) < 8 + 10 for mean in means), name
        return
    # MR has no unit: the ratio to muscle, averaged over cases, is what the table fixes.
    muscle = np.array(found["muscle"])
    for name in ("liver", "spleen", "kidney", "stomach"):
        ratio = float(np.median(np.array(found[name]) / muscle))
        assert ratio == pytest.approx(table[name] / table["muscle"], rel=0.35), name


def test_ct_noise_and_number_format() -> None:
    phantom = scan(1, ADULT.replace(contrast="CT"))
    image, tissue = phantom.image.array[0], phantom.tissue.array[0]
    np.testing.assert_array_equal(image, np.rint(image))
    assert image.min() >= -1024
    assert image.max() < 1200
    core = ndimage.binary_erosion(tissue == LIVER, iterations=2)
    # Noise 12 HU and a texture of 6 HU that the blur has lowered a little.
    assert 12 < image[core].std() < 14.5


@pytest.mark.parametrize("contrast", ["T1", "T2"])
def test_mr_is_not_negative_and_shaded(contrast: Contrast) -> None:
    phantom = scan(2, ADULT.replace(contrast=contrast))
    image = phantom.image.array[0]
    assert image.min() >= 0
    assert image.max() < 32768
    assert image[phantom.tissue.array[0] == AIR].mean() > 0
    fat = phantom.tissue.array[0] == TISSUES["fat"]
    halves = [image[:, :, part][fat[:, :, part]].mean() for part in (slice(48), slice(48, None))]
    assert abs(halves[0] / halves[1] - 1) > 0.01


def test_oblique_directions_are_rotations() -> None:
    seen = set()
    for seed in range(5):
        direction = np.reshape(scan(seed, SMALL).image.geometry.direction, (3, 3))
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(direction) == pytest.approx(1)
        assert 0.01 < np.abs(direction - np.eye(3)).max() < 0.25
        seen.add(direction.tobytes())
    assert len(seen) == 5
    straight = scan(0, SMALL.replace(oblique=False)).image.geometry.direction
    assert straight == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def test_oblique_grid_shows_the_same_patient_in_the_same_place() -> None:
    places = []
    for oblique in (False, True):
        phantom = scan(6, ADULT.replace(oblique=oblique))
        geometry = phantom.label.geometry
        index_xyz = np.argwhere(phantom.label.array[0] == 3)[:, ::-1]
        steps = np.reshape(geometry.direction, (3, 3)) * geometry.spacing_mm[::-1]
        places.append((index_xyz @ steps.T + geometry.origin_xyz).mean(axis=0))
    np.testing.assert_allclose(places[0], places[1], atol=1.5)


def test_default_grids_are_those_of_each_modality() -> None:
    for contrast, slices in (("CT", (2.0, 5.0)), ("T1", (3.2, 8.0))):
        options = PhantomOptions(contrast=contrast)
        grids = [scan(seed, options).image.geometry for seed in range(3)]
        for grid in grids:
            assert grid.shape_zyx == ((40, 96, 96) if contrast == "CT" else (24, 96, 96))
            assert slices[0] <= grid.spacing_mm[0] <= slices[1]
            assert 1.5 <= grid.spacing_mm[1] == grid.spacing_mm[2] <= 2.5
        assert len({grid.spacing_mm for grid in grids}) == 3


def test_every_organ_is_on_default_scans() -> None:
    for contrast in ("CT", "T2"):
        for seed in range(4):
            label = scan(seed, PhantomOptions(contrast=contrast, lesions=(1, 4))).label.array
            assert np.bincount(label.ravel(), minlength=6).min() > 5


def test_slices_vary_only_when_asked() -> None:
    fixed = {scan(s, SMALL).image.geometry.shape_zyx for s in range(4)}
    varied = {scan(s, SMALL.replace(shape_jitter=0.3)).image.geometry.shape_zyx for s in range(4)}
    assert fixed == {(16, 40, 40)}
    assert len(varied) > 1
    assert all(11 <= z <= 21 and (y, x) == (40, 40) for z, y, x in varied)


def test_the_bias_field_is_as_strong_as_asked() -> None:
    options = PhantomOptions(contrast="T2", shape_zyx=(24, 64, 64))
    even = scan(3, options.replace(bias=0.0))
    body = even.tissue.array[0] != TISSUES["air"]

    def unevenness(bias: float) -> float:
        """Spread of the logarithm of the sensitivity in the body; noise is averaged out."""
        smooth = [
            ndimage.gaussian_filter(each.image.array[0], 4)[body]
            for each in (scan(3, options.replace(bias=bias)), even)
        ]
        return float(np.log(smooth[0] / smooth[1]).std())

    weak, strong = unevenness(0.1), unevenness(0.25)
    assert 0.03 < weak < 0.15
    assert 2 < strong / weak < 3
    usual = scan(3, PhantomOptions(contrast="T2")).image.array
    stated = scan(3, PhantomOptions(contrast="T2", bias=0.25)).image.array
    np.testing.assert_array_equal(usual, stated)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape_zyx": (2, 32, 32)},
        {"spacing_mm": (0.0, 1.0, 1.0)},
        {"scale": -1.0},
        {"lesions": (3, 1)},
        {"shape_jitter": 1.0},
        {"bias": -0.1},
        {"bias": float("inf")},
    ],
)
def test_impossible_options_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        make_phantom(np.random.default_rng(0), PhantomOptions().replace(**wrong))


def test_dataset_folder_is_readable_and_complete(tmp_path: Path) -> None:
    folder = write_phantom_dataset(
        tmp_path, name="Dataset001_Toy", cases=2, seed=11, options=SMALL, test_cases=1
    )
    assert folder == tmp_path / "Dataset001_Toy"
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [
        "dataset.json",
        "imagesTr/Toy_000_0000.nii.gz",
        "imagesTr/Toy_001_0000.nii.gz",
        "imagesTs/Toy_002_0000.nii.gz",
        "labelsTr/Toy_000.nii.gz",
        "labelsTr/Toy_001.nii.gz",
        "labelsTs/Toy_002.nii.gz",
    ]
    described = msgspec.json.decode((folder / "dataset.json").read_bytes())
    assert described == {
        "channel_names": {"0": "CT"},
        "labels": {name: values[0] for name, values in PHANTOM_LABELS.values.items()},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "modality": "CT",
    }
    expected = make_phantom(np.random.default_rng([11, 1]), SMALL)
    image = read_image([folder / "imagesTr/Toy_001_0000.nii.gz"])
    label = read_label(folder / "labelsTr/Toy_001.nii.gz")
    np.testing.assert_array_equal(image.array, expected.image.array)
    np.testing.assert_array_equal(label.array, expected.label.array)
    for volume in (image, label):
        assert volume.geometry.spacing_mm == pytest.approx(expected.image.geometry.spacing_mm)
        assert volume.geometry.direction == pytest.approx(
            expected.image.geometry.direction, abs=1e-6
        )
        assert volume.geometry.origin_xyz == pytest.approx(
            expected.image.geometry.origin_xyz, abs=1e-3
        )


def test_a_case_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    few = write_phantom_dataset(tmp_path / "a", name="P", cases=1, seed=2, options=SMALL)
    more = write_phantom_dataset(tmp_path / "b", name="P", cases=2, seed=2, options=SMALL)
    one, two = (read_image([f / "imagesTr/P_000_0000.nii.gz"]).array for f in (few, more))
    np.testing.assert_array_equal(one, two)


def test_mixed_modalities_are_noted_per_case(tmp_path: Path) -> None:
    options = [SMALL, SMALL.replace(contrast="T2")]
    folder = write_phantom_dataset(tmp_path, name="Mixed", cases=3, seed=0, options=options)
    described = msgspec.json.decode((folder / "dataset.json").read_bytes())
    assert described["channel_names"] == {"0": "MR"}
    assert described["modality"] == {"Mixed_000": "CT", "Mixed_001": "MR", "Mixed_002": "CT"}


def test_a_dataset_needs_a_case(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="0 training cases"):
        write_phantom_dataset(tmp_path, name="None", cases=0, seed=0, options=SMALL)
    assert not list(tmp_path.iterdir())


def smooth_ball(**changes: object) -> Blob:
    ball = Blob(
        centre_mm=np.array([3.0, -2.0, 1.0]),
        axes_mm=np.array([10.0, 6.0, 8.0]),
        rotation=np.eye(3),
        waves=np.zeros((2, 3)),
        phases=np.full(2, math.pi / 2),
        roughness=0.0,
        lobe=np.array([1.0, 0.0, 0.0]),
    )
    return dataclasses.replace(ball, **changes)


def millimetre_grid() -> Grid:
    turned = rotation_matrix(np.array([0.1, -0.2, 0.15]))[:, ::-1]
    return Grid(
        shape_zyx=(50, 46, 44), matrix=turned, origin_mm=turned @ np.array([-25.0, -23.0, -22.0])
    )


@pytest.mark.parametrize(
    ("solid", "volume_ml"),
    [
        (smooth_ball(), 4 / 3 * math.pi * 480 / 1000),
        (
            smooth_ball(rotation=rotation_matrix(np.array([0.5, 0.4, 1.0]))),
            4 / 3 * math.pi * 480 / 1000,
        ),
        (
            Capsule(
                start_mm=np.array([-8.0, 0.0, 0.0]),
                end_mm=np.array([8.0, 5.0, 4.0]),
                radii_mm=(5.0, 5.0),
            ),
            (math.pi * 25 * math.sqrt(256 + 25 + 16) + 4 / 3 * math.pi * 125) / 1000,
        ),
    ],
)
def test_painted_volume_is_the_solids_own(solid: Solid, volume_ml: float) -> None:
    layer = Layer(solid=solid, tissue=7, label=2, over=(0,))
    tissue, label = paint_layers([layer], millimetre_grid())
    assert (tissue == 7).sum() / 1000 == pytest.approx(volume_ml, rel=0.03)
    np.testing.assert_array_equal(label == 2, tissue == 7)


@pytest.mark.parametrize(
    "solid",
    [
        smooth_ball(
            waves=np.array([[2.0, 1.0, -2.0], [0.5, 3.0, 1.0]]),
            phases=np.array([0.3, 2.0]),
            roughness=0.1,
            lobe_gain=0.6,
        ),
        Column(centre_mm=(2.0, 1.0), radii_mm=(9.0, 6.0), squareness=0.3, sway_mm=3, swell=0.1),
        Column(centre_mm=(0.0, 0.0), radii_mm=(9.0, 9.0), gap_mm=8.0, phase=1.0),
    ],
)
def test_painting_in_boxes_equals_asking_every_voxel(solid: Solid) -> None:
    grid = millimetre_grid()
    tissue, _ = paint_layers([Layer(solid=solid, tissue=1, over=(0,))], grid)
    index = np.indices(grid.shape_zyx).reshape(3, -1)
    x, y, z = (grid.matrix @ index + grid.origin_mm[:, None]).astype(np.float32)
    expected = solid.contains(x, y, z).reshape(grid.shape_zyx)
    assert (expected != (tissue == 1)).sum() <= 2
    assert 500 < expected.sum() < expected.size / 2


def test_layers_replace_only_what_they_may() -> None:
    first = Layer(solid=smooth_ball(), tissue=1, label=1, over=(0,))
    second = Layer(solid=smooth_ball(axes_mm=np.full(3, 20.0)), tissue=2, label=0, over=(0,))
    alone, _ = paint_layers([first], millimetre_grid())
    tissue, label = paint_layers([first, second], millimetre_grid())
    np.testing.assert_array_equal(tissue == 1, alone == 1)
    np.testing.assert_array_equal(label == 1, alone == 1)
    assert (tissue == 2).any()


def test_one_patient_has_one_size_on_every_grid() -> None:
    anatomy = sample_anatomy(np.random.default_rng(9), lesions=(2, 2))
    volumes = []
    for size, step_mm in ((48, 8.0), (96, 4.0)):
        corner = -step_mm * (size - 1) / 2
        grid = Grid(
            shape_zyx=(size, size, size),
            matrix=np.eye(3)[:, ::-1] * step_mm,
            origin_mm=np.full(3, corner),
        )
        tissue, label = paint_anatomy(anatomy, grid)
        assert tissue.max() < len(TISSUES)
        volumes.append(np.bincount(label.ravel(), minlength=6)[1:] * step_mm**3)
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.2)
