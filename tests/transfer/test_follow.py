import pytest

from autoliver.datasets.cases import Labels
from autoliver.errors import OptionError
from autoliver.networks.spec import UNetSpec
from autoliver.planning.plan import Configuration, IntensityStats, LikeOptions, Plan
from autoliver.transfer.follow import (
    far_axes,
    like_digest,
    plan_like,
)

LITS = Labels(values={"background": (0,), "liver": (1,), "tumor": (2,)})
CHAOS = Labels(values={"background": (0,), "liver": (1,), "spleen": (2,), "kidney": (3,)})


def stats(mean):
    return IntensityStats(
        mean=mean,
        median=mean,
        std=39.4,
        min=-1000,
        max=2000,
        percentile_00_5=-17,
        percentile_99_5=201,
    )


def configuration(spacing, shape, *, channels=1, rows=3, features=(32, 64, 128), **changes):
    axes = len(spacing)
    return Configuration(
        spacing_mm=spacing,
        median_shape=shape,
        patch_shape=(64,) * axes,
        batch_size=2,
        batch_dice=False,
        normalization=("ct",) * channels,
        mask_norm=(False,) * channels,
        network=UNetSpec(
            in_channels=channels,
            out_channels=rows,
            features=features,
            strides=((1,) * axes, *((2,) * axes,) * 2),
            kernels=((3,) * axes,) * 3,
            blocks_encoder=(2, 2, 2),
            blocks_decoder=(2, 2),
        ),
    ).replace(**changes)


def plan(name, modality, labels, configurations, *, channels=("CT",), order=(0, 1, 2), mean=99.0):
    return Plan(
        dataset=name,
        preset="default",
        vram_gb=8.0,
        channel_names=channels,
        modality=modality,
        labels=labels,
        file_ending=".nii.gz",
        transpose_forward=order,
        transpose_backward=tuple(order.index(axis) for axis in range(3)),
        intensities=tuple(stats(mean) for _ in channels),
        configurations=configurations,
    )


CT = plan(
    "Dataset003_LiTS",
    "CT",
    LITS,
    {
        "2d": configuration((0.8, 0.8), (512.0, 512.0)),
        "3d_fullres": configuration((1.0, 0.8, 0.8), (400.0, 512.0, 512.0)),
    },
)


def mr(*, channels=("T2",), order=(0, 1, 2)):
    z_first = [7.7, 1.5, 1.5]
    shape = [36.0, 256.0, 250.0]
    scheme = {"normalization": ("zscore",) * len(channels), "mask_norm": (True,) * len(channels)}
    return plan(
        "Dataset102_MR",
        "MR",
        CHAOS,
        {
            "2d": configuration(
                (1.5, 1.5), (256.0, 250.0), channels=len(channels), rows=4, **scheme
            ),
            "3d_fullres": configuration(
                tuple(z_first[axis] for axis in order),
                tuple(shape[axis] for axis in order),
                channels=len(channels),
                rows=4,
                features=(8, 16, 32),
                **scheme,
            ),
        },
        channels=channels,
        order=order,
        mean=300.0,
    )


def test_the_network_is_the_source_s_and_everything_about_the_data_the_target_s():
    like = plan_like(mr(), CT, LikeOptions(spacing="source"))
    assert like.dataset == "Dataset102_MR"
    assert like.labels == CHAOS
    assert like.modality == "MR"
    assert like.intensities == mr().intensities
    for name, source in CT.configurations.items():
        made = like.configurations[name]
        made.network.check()
        assert made.network == source.network.replace(out_channels=4)
        assert (made.patch_shape, made.batch_size) == (source.patch_shape, source.batch_size)
        assert made.spacing_mm == source.spacing_mm
        assert made.normalization == ("zscore",)
        assert made.mask_norm == (True,)
    assert like.configurations["3d_fullres"].median_shape == (277.0, 480.0, 469.0)
    assert "Dataset003_LiTS" in like.configurations["3d_fullres"].reasons["spacing"]


def test_a_source_of_nnunet_v1_passes_its_order_on_and_not_what_it_averages():
    full = CT.configurations["3d_fullres"]
    late = full.replace(normalize_after_resampling=True, average="probabilities")
    source = CT.replace(configurations={"3d_fullres": late})
    made = plan_like(mr(), source, LikeOptions()).configurations["3d_fullres"]
    assert (made.normalize_after_resampling, made.average) == (True, "logits")


def test_the_spacing_may_be_the_target_s_or_anything():
    own = plan_like(mr(), CT, LikeOptions(spacing="target")).configurations
    assert own["3d_fullres"].spacing_mm == (7.7, 1.5, 1.5)
    assert own["3d_fullres"].median_shape == (36.0, 256.0, 250.0)
    fixed = plan_like(
        mr(), CT, LikeOptions(spacing="fixed", spacing_mm=(3.0, 1.0, 2.0))
    ).configurations
    assert fixed["3d_fullres"].spacing_mm == (3.0, 1.0, 2.0)
    assert fixed["2d"].spacing_mm == (1.0, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": "fixed", "spacing_mm": (0, 1, 1)}, "--spacing 0 1 1: expected lengths"),
        ({"spacing": "fixed"}, "--like-spacing fixed lacks --spacing"),
        ({"spacing": "target", "spacing_mm": (1, 1, 1)}, "target and --spacing contradict"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(OptionError, match=message):
        LikeOptions(**options)


def test_by_default_slices_are_not_made_up():
    """The images' 7.7 mm instead of the source's 1 mm; in plane, 1.5 and 0.8 mm, the source's."""
    like = plan_like(mr(), CT, LikeOptions()).configurations
    assert like["3d_fullres"].spacing_mm == (7.7, 0.8, 0.8)
    assert like["3d_fullres"].median_shape == (36.0, 480.0, 469.0)
    assert "along z" in like["3d_fullres"].reasons["spacing"]
    assert like["2d"].spacing_mm == (0.8, 0.8)
    # The other way round nothing would be made up: the source's, and a warning.
    assert plan_like(CT, mr(), LikeOptions()).configurations["3d_fullres"].spacing_mm[0] == 7.7


def test_a_source_is_another_when_its_network_or_scale_is():
    spacing = configuration((1.5, 0.8, 0.8), (266.0, 512.0, 512.0))
    other = CT.replace(configurations={**CT.configurations, "3d_fullres": spacing})
    assert like_digest(other, "2d") == like_digest(CT, "2d")
    assert like_digest(other, "3d_fullres") != like_digest(CT, "3d_fullres")
    assert like_digest(CT.replace(intensities=(stats(50),)), "2d") != like_digest(CT, "2d")
    batch = CT.configurations["2d"].replace(batch_size=7, patch_shape=(32, 32))
    assert like_digest(CT.replace(configurations={"2d": batch}), "2d") == like_digest(CT, "2d")


def test_ct_keeps_the_source_s_window_for_ct_alone():
    other = plan("Dataset101_CT", "CT", LITS, CT.configurations, mean=50.0)
    assert plan_like(other, CT, LikeOptions()).intensities == CT.intensities
    assert plan_like(CT, mr(), LikeOptions()).intensities == CT.intensities
    assert plan_like(mr(), CT, LikeOptions()).intensities[0].mean == 300.0


def test_how_the_network_knows_ct_is_kept_for_ct_it_meets_again():
    like = plan_like(mr(), CT, LikeOptions())
    assert like.source_intensities == CT.intensities
    assert plan_like(mr(), like, LikeOptions()).source_intensities == CT.intensities
    assert plan_like(CT, mr(), LikeOptions()).source_intensities == ()
    assert plan_like(mr(channels=("T1", "T2")), CT, LikeOptions()).source_intensities == ()


def test_channels_and_cascades_follow_the_target():
    cascade = configuration((1.0, 0.8, 0.8), (400.0, 512.0, 512.0), previous_stage="3d_lowres")
    cascade = cascade.replace(network=cascade.network.replace(in_channels=3))
    source = CT.replace(configurations={**CT.configurations, "3d_cascade": cascade})
    like = plan_like(mr(channels=("T1", "T2")), source, LikeOptions()).configurations
    assert like["3d_fullres"].network.in_channels == 2
    assert like["3d_fullres"].normalization == ("zscore", "zscore")
    assert like["3d_cascade"].network.in_channels == 2 + 3


def test_a_target_with_slices_along_another_axis():
    turned = mr(order=(1, 0, 2))
    like = plan_like(turned, CT, LikeOptions(spacing="target"))  # the source is all but isotropic
    assert like.transpose_forward == (0, 1, 2)
    assert like.configurations["3d_fullres"].spacing_mm == (7.7, 1.5, 1.5)
    assert like.configurations["3d_fullres"].median_shape == (36.0, 256.0, 250.0)
    with pytest.raises(OptionError, match=r"slices along z, Dataset102_MR along y"):
        plan_like(turned, mr(), LikeOptions())


def test_spacings_far_apart_are_told():
    like = plan_like(mr(), CT, LikeOptions(spacing="source"))
    assert far_axes(like, mr()) == [
        "3d_fullres: along z the plan has 1 mm, the images 7.7 mm: most of it is interpolated."
    ]
    back = plan_like(CT, mr(), LikeOptions())
    assert far_axes(back, CT) == [
        "3d_fullres: along z the plan has 7.7 mm, the images 1 mm: detail is lost."
    ]


def flat_source(order=(0, 1, 2)):
    """A plan of 2D networks alone, of eight stages."""
    stages = 8
    spec = UNetSpec(
        in_channels=1,
        out_channels=3,
        features=tuple(min(512, 24 * 2**stage) for stage in range(stages)),
        strides=((1, 1), *((2, 2),) * (stages - 1)),
        kernels=((5, 5), *((3, 3),) * (stages - 1)),
        blocks_encoder=(3,) * stages,
        blocks_decoder=(1,) * (stages - 1),
    )
    slices = configuration((0.8, 0.8), (512.0, 512.0), network=spec)
    return plan("Dataset003_LiTS", "CT", LITS, {"2d": slices}, order=order)


def test_a_3d_network_follows_a_2d_one_in_plane():
    """Features, blocks and strides are the 2D network's; the depth is the planner's."""
    source = flat_source()
    like = plan_like(mr(), source, LikeOptions(), deepen=True).configurations
    flat, deep = source.configurations["2d"].network, like["3d_fullres"].network
    deep.check()
    levels = len(deep.features)
    assert 4 < levels < 8  # a patch of 3D is too small for all stages
    assert (deep.in_channels, deep.out_channels, deep.dimension) == (1, 4, 3)
    assert deep.features == flat.features[:levels]
    assert deep.blocks_encoder == (3,) * levels
    assert deep.blocks_decoder == (1,) * (levels - 1)
    # Slices of 7.7 mm are neither halved nor mixed before pixels are as large.
    depth = [values[0] for values in deep.strides]
    assert depth[:3] == [1, 1, 1]
    assert [values[0] for values in deep.kernels][:3] == [1, 1, 1]
    assert deep.kernels[0][1:] == (5, 5)
    assert {values[1:] for values in deep.strides[1:]} == {(2, 2)}
    made = like["3d_fullres"]
    assert made.spacing_mm == (7.7, 0.8, 0.8)
    assert made.median_shape == (36.0, 480.0, 469.0)
    assert all(n % s == 0 for n, s in zip(made.patch_shape, deep.total_stride, strict=True))
    assert made.batch_size == 2
    assert made.normalization == ("zscore",)
    assert "In plane as the 2D network of Dataset003_LiTS" in made.reasons["topology"]


def test_a_3d_network_follows_a_2d_one_only_if_asked_and_where_there_is_no_other():
    assert [*plan_like(mr(), flat_source(), LikeOptions()).configurations] == ["2d"]
    like = plan_like(mr(), CT, LikeOptions(), deepen=True).configurations["3d_fullres"]
    assert like == plan_like(mr(), CT, LikeOptions()).configurations["3d_fullres"]
    fixed = LikeOptions(spacing="fixed", spacing_mm=(5.0, 1.0, 2.0))
    asked = plan_like(mr(), flat_source(), fixed, deepen=True).configurations["3d_fullres"]
    assert asked.spacing_mm == (5.0, 1.0, 2.0)
    flat = plan_like(mr(), flat_source(), LikeOptions(), deepen=True)
    assert like_digest(flat_source(), "3d_fullres") == like_digest(flat_source(), "2d")
    assert (
        flat.configurations["2d"].network.features
        == flat_source().configurations["2d"].network.features
    )


def test_a_2d_network_of_slices_along_another_axis_is_not_followed():
    with pytest.raises(OptionError, match=r"slices along y, Dataset102_MR along z") as caught:
        plan_like(mr(), flat_source(order=(1, 0, 2)), LikeOptions(), deepen=True)
    assert "--own-plan" in caught.value.hint
