"""Writes folders as nnU-Net v1 leaves them, with random weights.

The format was compared with what nnU-Net 1.7.1 itself writes (benchmarks/parity/nnunet_v1.py).
"""

import json
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

TRAINER = "nnUNetTrainerV2"
CASCADE = "nnUNetTrainerV2CascadeFullRes"


def stage(axes: int = 3, *, spacing: tuple[float, ...] = (3.0, 1.5, 1.5)) -> dict[str, Any]:
    """One stage: two poolings, the first of them within slices, where kernels are flat."""
    flat = [1, 2, 2][-axes:]
    return {
        "batch_size": 2,
        "num_pool_per_axis": [1, 2, 2][-axes:],
        "patch_size": np.array([8, 16, 16][-axes:]),
        "median_patient_size_in_voxels": np.array([20, 40, 40]),
        "current_spacing": np.array(spacing),
        "original_spacing": np.array(spacing),
        "do_dummy_2D_data_aug": False,
        "pool_op_kernel_sizes": [flat, [2] * axes],
        "conv_kernel_sizes": [[1, 3, 3][-axes:], [3] * axes, [3] * axes],
    }


def plans(stages: dict[int, dict[str, Any]], *, modality: str = "CT") -> dict[str, Any]:
    """The content of plans.pkl: one channel, two labels, four features."""
    stats = {"median": 100.5, "mean": np.float32(99.0), "sd": 40.0, "mn": -200.0, "mx": 400.0}
    stats |= {"percentile_99_5": 190.0, "percentile_00_5": -20.0}
    axes = len(stages[0]["patch_size"])
    measured = OrderedDict([(0, OrderedDict(stats))]) if modality == "CT" else None
    return {
        "num_stages": len(stages),
        "num_modalities": 1,
        "modalities": {0: modality},
        "normalization_schemes": OrderedDict([(0, "CT" if modality == "CT" else "nonCT")]),
        "dataset_properties": {
            "all_spacings": [np.array([3.0, 1.5, 1.5])],
            "intensityproperties": measured,
        },
        "num_classes": 2,
        "all_classes": np.array([1, 2]),
        "base_num_features": 4,
        "use_mask_for_norm": OrderedDict([(0, False)]),
        "transpose_forward": [1, 2, 0],
        "transpose_backward": [2, 0, 1],
        "data_identifier": "nnUNetData_plans_v2.1",
        "plans_per_stage": stages,
        "preprocessor_name": "PreprocessorFor2D" if axes == 2 else "GenericPreprocessor",
        "conv_per_stage": 2,
    }


def state_dict(about: dict[str, Any], number: int, *, further: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of Generic_UNet in its layout; the decoder has the next deeper kernels."""
    chosen = about["plans_per_stage"][number]
    strides, kernels = chosen["pool_op_kernel_sizes"], chosen["conv_kernel_sizes"]
    features = [about["base_num_features"] * 2**level for level in range(len(kernels))]
    draw = torch.Generator().manual_seed(number)
    weights: dict[str, torch.Tensor] = OrderedDict()

    def block(name: str, before: int, after: int, kernel: list[int]) -> None:
        weights[f"{name}.conv.weight"] = torch.randn(after, before, *kernel, generator=draw) / 10
        for part in ("conv.bias", "instnorm.weight", "instnorm.bias"):
            weights[f"{name}.{part}"] = torch.randn(after, generator=draw)

    bottom = len(strides)
    for level, (width, kernel) in enumerate(zip(features, kernels, strict=True)):
        before = features[level - 1] if level else about["num_modalities"] + further
        places = ("0.blocks.0", "1.blocks.0") if level == bottom else ("blocks.0", "blocks.1")
        for place, inside in zip(places, (before, width), strict=True):
            block(f"conv_blocks_context.{level}.{place}", inside, width, kernel)
    for up in range(bottom):
        level = bottom - 1 - up
        width, place = features[level], f"conv_blocks_localization.{up}"
        block(f"{place}.0.blocks.0", 2 * width, width, kernels[level + 1])
        block(f"{place}.1.blocks.0", width, width, kernels[level + 1])
        shape = (features[level + 1], width, *strides[level])
        weights[f"tu.{up}.weight"] = torch.randn(*shape, generator=draw) / 5
        ones = (1,) * len(kernels[0])
        heads = torch.randn(about["num_classes"] + 1, width, *ones, generator=draw)
        weights[f"seg_outputs.{up}.weight"] = heads
    return weights


@dataclass(frozen=True, kw_only=True)
class V1Model:
    """A results folder of nnU-Net v1 and what is in it."""

    results: Path
    about: dict[str, Any] = field(default_factory=lambda: plans({0: stage()}))
    task: str = "Task050_Own"
    old: bool = False

    def folder(self, configuration: str = "3d_fullres", trainer: str = TRAINER) -> Path:
        return self.results / configuration / self.task / f"{trainer}__nnUNetPlansv2.1"

    def write(
        self,
        configuration: str = "3d_fullres",
        *,
        number: int | None = 0,
        trainer: str = TRAINER,
        folds: tuple[str, ...] = ("fold_0",),
        weights: dict[str, torch.Tensor] | None = None,
    ) -> Path:
        """Writes one configuration and returns its folder."""
        folder = self.folder(configuration, trainer)
        further = self.about["num_classes"] if trainer == CASCADE else 0
        for fold in folds:
            (folder / fold).mkdir(parents=True)
            path = folder / fold / "model_final_checkpoint.model"
            content = {
                "epoch": 1000,
                "state_dict": weights or state_dict(self.about, number or 0, further=further),
                "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.01}]},
                "lr_scheduler_state_dict": None,
                "plot_stuff": ([np.float64(0.5)], [], [], [np.float64(0.25)]),
                "best_stuff": (None, None, np.float32(0.5)),
            }
            torch.save(content, path, _use_new_zipfile_serialization=not self.old)
            start = ("plans.pkl", 0, "", f"/data/{self.task}", False, number, True, True, True)
            info = OrderedDict(init=start, name=trainer, plans=self.about)
            info["class"] = f"<class 'nnunet.{trainer}'>"
            path.with_name(path.name + ".pkl").write_bytes(pickle.dumps(info, protocol=4))
        (folder / "plans.pkl").write_bytes(pickle.dumps(self.about, protocol=4))
        return folder

    def clean(self, folder: Path, classes: list[Any], sizes: str = "None") -> None:
        rules = {"for_which_classes": classes, "min_valid_object_sizes": sizes, "num_samples": 9}
        (folder / "postprocessing.json").write_text(json.dumps(rules))

    def with_plans(self, **changes: Any) -> "V1Model":
        return replace(self, about={**self.about, **changes})


def forward(weights: dict[str, torch.Tensor], strides: Any, x: torch.Tensor) -> torch.Tensor:
    """Logits of Generic_UNet, computed layer by layer from a state dict."""
    f = torch.nn.functional
    axes = x.ndim - 2
    conv = f.conv3d if axes == 3 else f.conv2d
    up = f.conv_transpose3d if axes == 3 else f.conv_transpose2d

    def block(name: str, x: torch.Tensor, stride: Any = 1) -> torch.Tensor:
        kernel = weights[f"{name}.conv.weight"]
        padding = tuple(size // 2 for size in kernel.shape[2:])
        x = conv(x, kernel, weights[f"{name}.conv.bias"], stride=stride, padding=padding)
        norm = weights[f"{name}.instnorm.weight"], weights[f"{name}.instnorm.bias"]
        return f.leaky_relu(f.instance_norm(x, weight=norm[0], bias=norm[1], eps=1e-5), 0.01)

    skips = []
    for level in range(len(strides)):
        x = block(f"conv_blocks_context.{level}.blocks.0", x, strides[level - 1] if level else 1)
        x = block(f"conv_blocks_context.{level}.blocks.1", x)
        skips.append(x)
    bottom = f"conv_blocks_context.{len(strides)}"
    x = block(f"{bottom}.1.blocks.0", block(f"{bottom}.0.blocks.0", x, strides[-1]))
    for u in range(len(strides)):
        x = up(x, weights[f"tu.{u}.weight"], stride=tuple(strides[-1 - u]))
        x = torch.cat([x, skips.pop()], dim=1)
        x = block(f"conv_blocks_localization.{u}.0.blocks.0", x)
        x = block(f"conv_blocks_localization.{u}.1.blocks.0", x)
    return conv(x, weights[f"seg_outputs.{len(strides) - 1}.weight"])
