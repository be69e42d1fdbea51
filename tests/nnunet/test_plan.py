import json
from pathlib import Path

import pytest

from autoliver.datasets.description import read_description
from autoliver.errors import ModelError
from autoliver.nnunet.plan import plan_from_nnunet, read_plans

ORACLE = Path(__file__).parents[3] / "shared/oracle/planner"


@pytest.fixture
def convert(tmp_path, plans, head):
    def convert(configuration="3d_fullres"):
        (tmp_path / "dataset.json").write_text(json.dumps(head))
        description = read_description(tmp_path)
        return plan_from_nnunet(plans, description, configuration=configuration, where="plans.json")

    return convert


def test_every_decision_arrives(convert):
    plan, name = convert()
    assert name == "3d_fullres"
    assert (plan.dataset, plan.preset, plan.modality) == ("Dataset007_Toy", "L", "MR")
    assert plan.channel_names == ("T1", "T2")
    assert plan.labels.values == {"background": (0,), "liver": (1,), "tumour": (2,)}
    assert (plan.transpose_forward, plan.transpose_backward) == ((1, 2, 0), (2, 0, 1))
    assert [stats.mean for stats in plan.intensities] == [100.0, 7.5]
    (configuration,) = plan.configurations.values()
    assert configuration.spacing_mm == (3.0, 1.5, 1.5)
    assert configuration.patch_shape == (8, 16, 16)
    assert configuration.median_shape == (30.0, 40.5, 40.0)
    assert configuration.normalization == ("zscore", "zscore")
    assert configuration.mask_norm == (True, True)
    assert configuration.batch_dice
    network = configuration.network
    assert (network.kind, network.in_channels, network.out_channels) == ("resenc", 2, 3)
    assert network.blocks_encoder == (1, 2, 1)
    assert network.blocks_decoder == (1, 2)  # deepest last here, first there


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("2d", "2d"),
        ("3d_lowres", "3d_lowres"),
        ("3d_cascade_fullres", "3d_cascade"),
        ("3d_fullres_bs4", "3d_fullres"),
    ],
)
def test_configurations_inherit_and_keep_their_kind(convert, theirs, ours):
    plan, name = convert(theirs)
    assert name == ours
    configuration = plan.configurations[ours]
    assert configuration.batch_size == (4 if theirs == "3d_fullres_bs4" else 2)
    assert configuration.spacing_mm[-1] == (3.0 if ours == "3d_lowres" else 1.5)
    cascade = ours == "3d_cascade"
    assert configuration.previous_stage == ("3d_lowres" if cascade else None)
    assert configuration.network.in_channels == (4 if cascade else 2)


def test_regions_and_the_ignored_value(convert, head):
    head["labels"] = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3, "ignore": 4}
    head["regions_class_order"] = [1, 2, 3]
    plan, _ = convert("3d_cascade_fullres")
    assert plan.labels.has_regions
    assert list(plan.labels.foreground) == ["whole", "core", "tip"]
    assert (plan.labels.regions_class_order, plan.labels.ignore) == ((1, 2, 3), 4)
    network = plan.configurations["3d_cascade"].network
    assert (network.in_channels, network.out_channels) == (2 + 3, 3)


def test_all_normalisations(convert, plans):
    schemes = {
        "CTNormalization": "ct",
        "ZScoreNormalization": "zscore",
        "NoNormalization": "none",
        "RescaleTo01Normalization": "rescale01",
        "RGBTo01Normalization": "rgb",
    }
    for theirs, ours in schemes.items():
        plans["configurations"]["3d_fullres"]["normalization_schemes"] = [theirs, "NoNormalization"]
        (configuration,) = convert()[0].configurations.values()
        assert configuration.normalization == (ours, "none")


@pytest.mark.parametrize(("lowest", "modality"), [(-50.0, "CT"), (0.0, "other")])
def test_ct_is_called_ct_only_where_its_values_can_be_hounsfield_units(
    convert, plans, head, lowest, modality
):
    head["channel_names"] = {"0": "CT", "1": "CT"}
    for stats in plans["foreground_intensity_properties_per_channel"].values():
        stats["min"] = lowest
    assert convert()[0].modality == modality


def test_the_layout_before_2_4_describes_the_same_network(convert, plans):
    today = convert("2d")[0]
    configuration = plans["configurations"]["2d"]
    arguments = configuration.pop("architecture")["arch_kwargs"]
    arguments["features_per_stage"] = [4, 8, 10]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 10,
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [2, 1],
        "pool_op_kernel_sizes": arguments["strides"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
    }
    plans["foreground_intensity_properties_by_modality"] = plans.pop(
        "foreground_intensity_properties_per_channel"
    )
    before = convert("2d")[0]
    expected = today.configurations["2d"].network.replace(features=(4, 8, 10))
    assert before.configurations["2d"].network == expected
    assert before.intensities == today.intensities


def change(plans, path, value):
    *folders, last = path.split("/")
    for key in folders:
        plans = plans[key]
    plans[last] = value


FULL = "configurations/3d_fullres"
NET = f"{FULL}/architecture/arch_kwargs"


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (f"{FULL}/architecture/network_class_name", "a.b.Primus", "a.b.Primus"),
        (f"{NET}/norm_op", "torch.nn.modules.batchnorm.BatchNorm3d", "norm_op"),
        (f"{NET}/nonlin", "torch.nn.ReLU", "nonlin"),
        (f"{NET}/nonlin_kwargs", {"negative_slope": 0.2}, "nonlin_kwargs"),
        (f"{NET}/dropout_op", "torch.nn.Dropout3d", "dropout_op"),
        (f"{NET}/conv_bias", False, "conv_bias"),
        (f"{NET}/attention", True, "attention"),
        (f"{NET}/strides", [[1, 1, 1]], "cannot be built"),
        (f"{FULL}/architecture", {}, "network_class_name"),
        (f"{FULL}/resampling_fn_data", "resample_torch_fornnunet", "resampling_fn_data"),
        (f"{FULL}/resampling_fn_data_kwargs/order", 1, "order is 1, expected 3"),
        (f"{FULL}/resampling_fn_seg_kwargs/order_z", 1, "order_z is 1, expected 0"),
        (f"{FULL}/resampling_fn_probabilities_kwargs/force_separate_z", True, "force_separate_z"),
        (f"{FULL}/resampling_fn_probabilities_kwargs", {"order": 1}, "is missing"),
        (f"{FULL}/resampling_fn_data_kwargs/memefficient_seg_resampling", False, "unknown setting"),
        (f"{FULL}/normalization_schemes", ["MyNorm", "MyNorm"], "MyNorm"),
        (f"{FULL}/normalization_schemes", ["CTNormalization"], "each of the 2 channels"),
        (f"{FULL}/preprocessor_name", "MyPreprocessor", "MyPreprocessor"),
        (f"{FULL}/spacing", [1.0, 1.0], "do not match"),
        (f"{FULL}/patch_size", "big", "patch_size"),
        (f"{FULL}/patch_size", [0, 0, 0], "patch_size"),
        (f"{FULL}/patch_size", [31, 33, 35], "expected multiples of"),
        (f"{FULL}/spacing", [-1.0, 1.0, 1.0], "spacing"),
        (f"{FULL}/spacing", [1e9, 1.0, 1.0], "spacing"),
        (f"{FULL}/batch_size", 0, "batch_size"),
        ("foreground_intensity_properties_per_channel/1/mean", float("inf"), "1e+30"),
        (f"{FULL}/inherits_from", "3d_fullres_bs4", "circle"),
        (f"{FULL}/inherits_from", "3d_other", "3d_other"),
        ("transpose_backward", [0, 1, 2], "transpose_forward"),
        ("image_reader_writer", "NibabelIOWithReorient", "NibabelIOWithReorient"),
        ("label_manager", "MyLabels", "MyLabels"),
        ("foreground_intensity_properties_per_channel/1", {}, "channel 1 lack mean"),
    ],
)
def test_what_cannot_be_done_is_named(convert, plans, path, value, named):
    change(plans, path, value)
    with pytest.raises(ModelError, match=r"plans\.json") as error:
        convert()
    assert named in error.value.problem
    assert error.value.hint


def test_labels_with_a_gap_are_refused(convert, head):
    head["labels"]["tumour"] = 5
    with pytest.raises(ModelError, match=r"\[0, 1, 5\]"):
        convert()


def test_plans_that_are_none(tmp_path):
    path = tmp_path / "plans.json"
    with pytest.raises(ModelError, match="no such file"):
        read_plans(path)
    for text, problem in (
        ("{", "not valid JSON"),
        ("[]", "not a plans file"),
        ("{}", "not a plans file"),
    ):
        path.write_text(text)
        with pytest.raises(ModelError, match=problem):
            read_plans(path)


@pytest.mark.skipif(not ORACLE.is_dir(), reason=f"no plans under {ORACLE}")
def test_real_plans_of_nnunet():
    count = 0
    for path in sorted(ORACLE.glob("*/plans_*.json")):
        raw, description = read_plans(path), read_description(path.parent)
        for name, own in raw["configurations"].items():
            plan, ours = plan_from_nnunet(raw, description, configuration=name, where=str(path))
            configuration = plan.configurations[ours]
            theirs = raw["configurations"]["3d_fullres"] | own if "cascade" in name else own
            arguments = theirs["architecture"]["arch_kwargs"]
            assert list(configuration.patch_shape) == theirs["patch_size"]
            assert list(configuration.spacing_mm) == theirs["spacing"]
            assert list(configuration.network.features) == arguments["features_per_stage"]
            count += 1
    assert count >= 50
