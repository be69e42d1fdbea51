"""Folders as nnU-Net v2 leaves them, with the golden weights of its own networks."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
NAME = "nnUNetTrainer__nnUNetPlans__{}"

Plans = dict[str, Any]


def resampling() -> dict[str, Any]:
    def keywords(order: int, *, labels: bool) -> dict[str, Any]:
        return {"is_seg": labels, "order": order, "order_z": 0, "force_separate_z": None}

    kinds = {"data": keywords(3, labels=False), "seg": keywords(1, labels=True)}
    kinds["probabilities"] = keywords(1, labels=False)
    return {
        key: value
        for kind, settings in kinds.items()
        for key, value in (
            (f"resampling_fn_{kind}", "resample_data_or_seg_to_shape"),
            (f"resampling_fn_{kind}_kwargs", settings),
        )
    }


def architecture(name: str) -> dict[str, Any]:
    """Of a golden network, as nnU-Net's planner writes it."""
    with np.load(GOLDEN / f"networks_{name}.npz") as file:
        spec = json.loads(str(file["spec"]))
    axes = len(spec["strides"][0])
    plain = spec["kind"] == "unet"
    kind = "PlainConvUNet" if plain else "ResidualEncoderUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": {
            "n_stages": len(spec["features"]),
            "features_per_stage": spec["features"],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": spec["kernels"],
            "strides": spec["strides"],
            "n_conv_per_stage" if plain else "n_blocks_per_stage": spec["blocks_encoder"],
            "n_conv_per_stage_decoder": spec["blocks_decoder"][::-1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(network: str, *, axes: int, channels: int) -> dict[str, Any]:
    return {
        "data_identifier": "nnUNetPlans",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 16, 16][-axes:],
        "median_image_size_in_voxels": [30.0, 40.5, 40.0][-axes:],
        "spacing": [3, 1.5, 1.5][-axes:],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [True] * channels,
        **resampling(),
        "architecture": architecture(network),
        "batch_dice": True,
    }


@pytest.fixture
def plans() -> Plans:
    """Two channels of MR; the golden networks have 2 inputs and 3 outputs, "plain_3d" 1 and 2."""
    stats = {"max": 900.5, "mean": 100, "median": 90.0, "min": 0.0, "std": 12.0}
    stats |= {"percentile_00_5": 3.0, "percentile_99_5": 300.0}
    full = configuration("resenc_3d", axes=3, channels=2)
    return {
        "dataset_name": "Dataset007_Toy",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [1, 2, 0],
        "transpose_backward": [2, 0, 1],
        "experiment_planner_used": "nnUNetPlannerResEncL",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": stats, "1": {**stats, "mean": 7.5}},
        "configurations": {
            "2d": configuration("plain_2d", axes=2, channels=2),
            "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [6, 3, 3], "next_stage": "x"},
            "3d_fullres": full,
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
            "3d_fullres_bs4": {"inherits_from": "3d_fullres", "batch_size": 4},
        },
    }


@pytest.fixture
def head() -> dict[str, Any]:
    return {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 9,
        "file_ending": ".nii.gz",
    }


def golden_state(name: str) -> "OrderedDict[str, torch.Tensor]":
    """nnU-Net's state dict of a golden network, duplicates included."""
    with np.load(GOLDEN / f"networks_{name}.npz") as file:
        aliases = json.loads(str(file["aliases"]))
        return OrderedDict(
            (key, torch.from_numpy(file[f"weights/{first}"])) for key, first in aliases
        )


def checkpoint(plans: Plans, head: dict[str, Any], network: str, **changes: Any) -> dict[str, Any]:
    """What nnU-Net's trainer saves, numpy numbers in its logs included."""
    return {
        "network_weights": golden_state(network),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float32(0.25), np.float64(-0.125)], "lrs": [0.01]},
        "_best_ema": np.float32(0.5),
        "current_epoch": 1000,
        "init_args": {
            "plans": plans,
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": head,
            "device": torch.device("cuda"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        **changes,
    }


@pytest.fixture(name="golden_state")
def golden_state_fixture() -> Callable[[str], "OrderedDict[str, torch.Tensor]"]:
    return golden_state


@pytest.fixture
def write(tmp_path: Path, plans: Plans, head: dict[str, Any]) -> Callable[..., Path]:
    """Writes a results folder: `write("3d_fullres", "resenc_3d", folds=(0, 1))` returns it."""

    def make(
        name: str = "3d_fullres",
        network: str = "resenc_3d",
        *,
        folds: tuple[int | str, ...] = (0,),
        file: str = "checkpoint_final.pth",
        **changes: Any,
    ) -> Path:
        folder = tmp_path / "results/Dataset007_Toy" / NAME.format(name)
        for fold in folds:
            (folder / f"fold_{fold}").mkdir(parents=True)
            content = checkpoint(plans, head, network)
            content["init_args"] |= {"configuration": name, "fold": fold}
            torch.save({**content, **changes}, folder / f"fold_{fold}" / file)
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(head))
        return folder

    return make
