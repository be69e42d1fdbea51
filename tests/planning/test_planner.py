import pytest

from autoliver.datasets.cases import Case, Dataset, Labels
from autoliver.errors import DatasetError, OptionError
from autoliver.io.dicom.codes import Concept, SegmentCodes
from autoliver.planning.plan import CaseFingerprint, Fingerprint, IntensityStats, Plan, PlanOptions
from autoliver.planning.planner import make_plan

STATS = IntensityStats(
    mean=99.0,
    median=101.0,
    std=39.0,
    min=-500.0,
    max=900.0,
    percentile_00_5=-17,
    percentile_99_5=201,
)
LABELS = Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)})
# Median size of the Hippocampus task: fits whole, with memory to spare.
SMALL = [((1.0, 1.0, 1.0), (36, 50, 35))]
# A liver CT: far larger than any patch.
LARGE = [((1.0, 0.77, 0.77), (482, 512, 512))]
FLAT = [((999.0, 1.0, 1.0), (1, 300, 400))]


def dataset_of(channels=("MRI",), labels=LABELS, modality="other"):
    case = Case(name="a", images=("a",), label="a", patient="a", modality=modality)
    return Dataset(
        name="Dataset900_Test", folder="f", channel_names=channels, labels=labels, cases=(case,)
    )


def fingerprint_of(grids, *, channels=1, kept=0.9):
    cases = tuple(
        CaseFingerprint(name=f"{i:03d}", spacing_mm=spacing, shape=shape, shape_after_crop=shape)
        for i, (spacing, shape) in enumerate(grids)
    )
    return Fingerprint(
        cases=cases,
        median_relative_size_after_cropping=kept,
        intensities=(STATS,) * channels,
    )


def plan_of(grids, *, dataset=None, kept=0.9, **options):
    dataset = dataset or dataset_of()
    fingerprint = fingerprint_of(grids, channels=len(dataset.channel_names), kept=kept)
    return make_plan(dataset, fingerprint, PlanOptions(**options))


def test_small_images_need_no_low_resolution():
    plan = plan_of(SMALL * 260)
    assert list(plan.configurations) == ["2d", "3d_fullres"]
    full = plan.configurations["3d_fullres"]
    assert full.patch_shape == (40, 56, 40)
    assert full.spacing_mm == (1.0, 1.0, 1.0)
    assert full.network.features == (32, 64, 128, 256)
    assert full.network.out_channels == 3
    assert not full.batch_dice
    # 5 % of 260 cases of 36 x 50 x 35 voxels, in patches of 40 x 56 x 40: 9.14
    assert full.batch_size == 9
    assert "at most 5 % of the dataset" in full.reasons["batch"]
    assert "36 x 50 x 35" in full.reasons["patch"]
    assert plan.reasons["3d_lowres"].startswith("dropped: ")
    assert "40 x 56 x 40" in plan.reasons["3d_lowres"]


def test_one_case_plans():
    full = plan_of(SMALL).configurations["3d_fullres"]
    assert full.batch_size == 2
    assert "the one labelled case" in full.reasons["spacing"]


def test_large_images_get_a_cascade():
    plan = plan_of(LARGE * 131, dataset=dataset_of(("CT",)))
    low, full, cascade = (
        plan.configurations[name] for name in ("3d_lowres", "3d_fullres", "3d_cascade")
    )
    assert full.patch_shape == low.patch_shape == (128, 128, 128)
    covered = 128**3 / (low.median_shape[0] * low.median_shape[1] * low.median_shape[2])
    assert 0.25 <= covered < 0.28
    assert (low.batch_dice, full.batch_dice, cascade.batch_dice) == (False, True, True)
    assert cascade.previous_stage == "3d_lowres"
    # One CT channel, one-hot liver and tumour.
    assert cascade.network.in_channels == 3
    same = {"network", "previous_stage", "reasons"}
    for field in set(full.__struct_fields__) - same:
        assert getattr(cascade, field) == getattr(full, field)
    assert "3d_lowres" not in plan.reasons


def test_regions_share_values_in_cascade_and_drop_background():
    labels = Labels(
        values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
    )
    plan = plan_of(LARGE * 20, dataset=dataset_of(("CT",), labels))
    assert plan.configurations["3d_fullres"].network.out_channels == 2
    assert plan.configurations["3d_cascade"].network.in_channels == 3


@pytest.mark.parametrize("spacing_z", [999.0, 1.0, 0.1])
def test_single_slices_get_2d_only(spacing_z):
    grids = [((spacing_z * factor, 1.0, 2.0), (1, 300, 400)) for factor in (0.2, 1, 3)]
    plan = plan_of(grids)
    assert list(plan.configurations) == ["2d"]
    assert plan.transpose_forward == (0, 1, 2)
    assert plan.configurations["2d"].spacing_mm == (1.0, 2.0)
    assert plan.configurations["2d"].median_shape == (300.0, 400.0)
    assert {"3d_fullres", "3d_lowres", "3d_cascade"} <= set(plan.reasons)


def test_coarsest_axis_comes_first():
    plan = plan_of([((0.8, 0.9, 4.0), (300, 280, 40))] * 30)
    assert plan.transpose_forward == (2, 0, 1)
    assert plan.transpose_backward == (1, 2, 0)
    assert plan.configurations["3d_fullres"].spacing_mm == (4.0, 0.8, 0.9)
    assert plan.configurations["2d"].spacing_mm == (0.8, 0.9)
    assert "Axis x comes first" in plan.reasons["transpose"]


def test_thick_slices_are_resampled_to_the_thinner_ones():
    grids = [((mm, 0.8, 0.8), (40, 400, 400)) for mm in (2.0, 5.0, 5.0, 5.0, 6.0)]
    full = plan_of(grids).configurations["3d_fullres"]
    # The 10th percentile lies 40 % of the way from 2.0 to 5.0 mm.
    assert full.spacing_mm == pytest.approx((3.2, 0.8, 0.8))
    assert "5.00 mm" in full.reasons["spacing"]
    # Many slices: thick as they are, their spacing is the median.
    grids = [((mm, 0.8, 0.8), (200, 400, 400)) for mm in (2.0, 5.0, 5.0, 5.0, 6.0)]
    assert plan_of(grids).configurations["3d_fullres"].spacing_mm == (5.0, 0.8, 0.8)


def test_target_spacing_can_be_asked_for():
    plan = plan_of(SMALL * 20, spacing_mm=(2.0, 1.0, 1.0))
    full = plan.configurations["3d_fullres"]
    assert full.spacing_mm == (2.0, 1.0, 1.0)
    assert full.median_shape == (18, 50, 35)
    assert "as asked for" in full.reasons["spacing"]


def test_more_memory_allows_larger_patches():
    sizes = []
    for vram_gb in (4, 8, 24):
        patch = plan_of(LARGE * 20, vram_gb=vram_gb).configurations["3d_fullres"].patch_shape
        sizes.append(patch[0] * patch[1] * patch[2])
    assert sizes[0] < sizes[1] < sizes[2]
    assert plan_of(SMALL, vram_gb=12).vram_gb == 12
    assert [plan_of(SMALL, preset=p).vram_gb for p in ("default", "M", "L", "XL")] == [8, 8, 24, 40]


def test_batch_cap_can_be_lifted():
    capped = plan_of(SMALL * 50, preset="L").configurations["3d_fullres"]
    lifted = plan_of(SMALL * 50, preset="L", batch_cap=False).configurations["3d_fullres"]
    assert (capped.batch_size, capped.patch_shape) == (2, lifted.patch_shape)
    # The whole dataset: 50 cases of 36 x 50 x 35 voxels in patches of 40 x 56 x 40.
    assert lifted.batch_size == round(50 * 36 * 50 * 35 / (40 * 56 * 40))


def test_tiny_shrinks_features_and_batch_only():
    for grids in (SMALL * 260, LARGE * 40):
        default = plan_of(grids).configurations
        tiny = plan_of(grids, preset="tiny").configurations
        assert set(tiny) == set(default)
        for name, ours in tiny.items():
            theirs = default[name]
            assert ours.patch_shape == theirs.patch_shape
            assert ours.network.strides == theirs.network.strides
            assert ours.batch_size == min(theirs.batch_size, 4)
            assert ours.network.features[:3] == (8, 16, 32)
            assert max(ours.network.features) <= 80
    assert plan_of(SMALL * 260, preset="tiny").configurations["3d_fullres"].batch_size == 4


def test_residual_presets():
    network = plan_of(LARGE * 20, preset="M").configurations["3d_fullres"].network
    assert network.kind == "resenc"
    assert network.blocks_encoder == (1, 3, 4, 6, 6, 6)
    assert network.blocks_decoder == (1, 1, 1, 1, 1)


def test_normalisation_goes_by_channel_names():
    names = ("CT", "T2", "noNorm", "rescale_to_0_1", "rgb_to_0_1", "zscore")
    full = plan_of(SMALL, dataset=dataset_of(names)).configurations["3d_fullres"]
    assert full.normalization == ("ct", "zscore", "none", "rescale01", "rgb", "zscore")
    assert full.mask_norm == (False,) * 6
    assert "-17 to 201" in full.reasons["normalization"]
    cropped = plan_of(SMALL, dataset=dataset_of(names), kept=0.74).configurations["3d_fullres"]
    assert cropped.mask_norm == (False, True, False, False, False, True)
    assert "74 %" in cropped.reasons["normalization"]


@pytest.mark.parametrize(
    ("channels", "said", "expected"),
    [(("CT",), "other", "CT"), (("T2",), "other", "other"), (("T2",), "MR", "MR")],
)
def test_modality(channels, said, expected):
    assert plan_of(SMALL, dataset=dataset_of(channels, modality=said)).modality == expected


@pytest.mark.parametrize(
    ("channel", "modality", "expected"),
    [
        ("abdomen", "CT", "ct"),
        ("abdomen", "MR", "zscore"),
        ("abdomen", "other", "zscore"),
        ("noNorm", "CT", "none"),
    ],
)
def test_a_stated_modality_decides_where_the_channel_s_name_does_not(channel, modality, expected):
    dataset = dataset_of(channels=(channel,), modality=modality)
    plan = plan_of(SMALL, dataset=dataset)
    assert plan.configurations["2d"].normalization == (expected,)


def test_every_decision_has_a_sentence():
    for grids in (SMALL, LARGE * 30, FLAT * 3):
        for preset in ("default", "M", "L", "XL", "tiny"):
            plan = plan_of(grids, preset=preset)
            sentences = list(plan.reasons.values())
            for configuration in plan.configurations.values():
                keys = ["spacing", "patch", "batch", "topology", "normalization", "batch_dice"]
                assert list(configuration.reasons)[:6] == keys
                sentences += configuration.reasons.values()
            assert all(sentence.endswith(".") for sentence in sentences)


def test_plan_survives_its_file(tmp_path):
    plan = plan_of(LARGE * 20, dataset=dataset_of(("CT",)))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert set(plan.made_from) == {"dataset", "fingerprint"}


def test_a_plan_keeps_what_it_was_asked():
    options = PlanOptions(preset="tiny", vram_gb=4.0, window_hu=(-150.0, 250.0))
    plan = make_plan(dataset_of(("CT",)), fingerprint_of(SMALL), options)
    assert plan.asked == options
    assert plan.replace(asked=None).digest() == plan.digest()


def test_no_cases_is_the_datasets_fault():
    with pytest.raises(DatasetError, match="no labelled case"):
        plan_of([])


def test_channels_must_be_named():
    with pytest.raises(DatasetError, match="names 2 channels, the images hold 1"):
        make_plan(dataset_of(("T1", "T2")), fingerprint_of(SMALL), PlanOptions())


@pytest.mark.parametrize(
    "options",
    [
        {"vram_gb": 0.0},
        {"vram_gb": float("nan")},
        {"vram_gb": 1e-6},
        {"spacing_mm": (1.0, 0.0, 1.0)},
        {"spacing_mm": (1.0, float("inf"), 1.0)},
    ],
)
def test_impossible_options(options):
    with pytest.raises(OptionError) as caught:
        plan_of(LARGE * 20, **options)
    assert caught.value.hint


def test_a_window_replaces_the_percentiles_of_ct_alone():
    both = dataset_of(("CT", "MRI"))
    fingerprint = fingerprint_of(SMALL, channels=2)
    plain, asked = (
        make_plan(both, fingerprint, PlanOptions(window_hu=window))
        for window in (None, (-150.0, 250.0))
    )
    ct = asked.intensities[0]
    assert (ct.percentile_00_5, ct.percentile_99_5) == (-150.0, 250.0)
    assert (ct.mean, ct.std) == (plain.intensities[0].mean, plain.intensities[0].std)
    assert asked.intensities[1] == plain.intensities[1]
    reason = asked.configurations["2d"].reasons["normalization"]
    assert "clipped to -150 to 250 (as asked for)" in reason
    with pytest.raises(OptionError, match="has no CT channel"):
        plan_of(SMALL, window_hu=(-150.0, 250.0))
    with pytest.raises(OptionError, match="--window 5 5"):
        make_plan(both, fingerprint, PlanOptions(window_hu=(5.0, 5.0)))


def test_codes_of_labels_go_with_the_plan_and_decide_nothing():
    codes = {"liver": SegmentCodes(type=Concept("A1", "99LAB", "Our liver"))}
    plain, coded = dataset_of(), dataset_of().replace(codes=codes)
    plan = plan_of(LARGE, dataset=coded)
    assert plan.codes == codes
    assert coded.digest() == plain.digest()
    assert plan.digest() == plan_of(LARGE, dataset=plain).digest()
