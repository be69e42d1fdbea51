"""What benchmarks/parity/nnunet_v1.py lets nnU-Net 1.7.1 do: `python -m benchmarks.peer.v1 FILE`.

It runs in the environment of nnU-Net v1. FILE is JSON: the task, changes of its plans, the runs to
train, and the images to predict. Networks are v1's own, trained by v1's own trainer for a few steps
on v1's own preprocessing of the images; what they learn is to tell ranges of grey values apart.
"""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
from nnunet.inference.predict import predict_from_folder
from nnunet.inference.pretrained_models.collect_pretrained_models import export_pretrained_model
from nnunet.paths import network_training_output_dir, preprocessing_output_dir
from nnunet.training.network_training.nnUNetTrainerV2 import nnUNetTrainerV2
from nnunet.training.network_training.nnUNetTrainerV2_CascadeFullRes import (
    nnUNetTrainerV2CascadeFullRes,
)


def edit_plans(task: str, edits: dict, axes: int) -> Path:
    """Fewer features; for a cascade a first stage of twice the spacing."""
    path = Path(preprocessing_output_dir) / task / f"nnUNetPlansv2.1_plans_{axes}D.pkl"
    plans = pickle.loads(path.read_bytes())
    plans["base_num_features"] = edits["features"]
    stage = dict(plans["plans_per_stage"][0])
    if "patch" in edits:
        stage["patch_size"] = np.array(edits["patch"][-axes:])
    plans["plans_per_stage"] = {0: stage}
    if edits.get("cascade") and axes == 3:
        low = {**stage, "current_spacing": np.array(stage["current_spacing"]) * 1.5}
        plans["plans_per_stage"] = {0: low, 1: stage}
        plans["num_stages"] = 2
    target = path.with_name("edited_" + path.name)
    target.write_bytes(pickle.dumps(plans))
    return target


def batches(trainer, cases: list, rng: np.random.Generator):
    """Random patches; the label is the range that the smoothed grey value lies in."""
    classes, shape = trainer.num_classes, [int(n) for n in trainer.patch_size]
    strides = np.cumprod([[1] * len(shape), *trainer.net_num_pool_op_kernel_sizes], axis=0)[:-1]
    while True:
        data = []
        for _ in range(2):
            case = cases[rng.integers(len(cases))]
            if len(shape) == 2:
                case = case[:, rng.integers(case.shape[1])]
            around = [
                (0, max(0, want - has)) for want, has in zip(shape, case.shape[1:], strict=True)
            ]
            case = np.pad(case, [(0, 0), *around])
            start = [
                rng.integers(has - want + 1)
                for want, has in zip(shape, case.shape[1:], strict=True)
            ]
            data.append(
                case[(slice(None), *(slice(s, s + n) for s, n in zip(start, shape, strict=True)))]
            )
        image = torch.from_numpy(np.stack(data)).float()
        label = torch.bucketize(image[:, :1], torch.linspace(-1, 1, classes - 1)).float()
        targets = [
            label[(slice(None),) * 2 + tuple(slice(None, None, s) for s in stride)]
            for stride in strides
        ]
        yield {"data": image, "target": targets}


def train(task: str, run: dict, images: list, steps: int) -> None:
    name = run["configuration"]
    cascade = "cascade" in name
    kind = nnUNetTrainerV2CascadeFullRes if cascade else nnUNetTrainerV2
    plans = edit_plans(task, run["edits"], 2 if name == "2d" else 3)
    base = Path(network_training_output_dir) / name / task / f"{kind.__name__}__nnUNetPlansv2.1"
    stage = {"3d_lowres": 0, "2d": 0}.get(name, 1 if run["edits"].get("cascade") else 0)
    for fold in run["folds"]:
        data = str(Path(preprocessing_output_dir) / task)
        trainer = kind(str(plans), fold, str(base), data, batch_dice=False, stage=stage, fp16=False)
        torch.manual_seed(fold)
        trainer.initialize(training=False)
        trainer.initialize_optimizer_and_scheduler()
        trainer.was_initialized = True
        cases = [trainer.preprocess_patient([str(path)])[0] for path in images]
        if cascade:
            more = trainer.num_classes - 1
            cases = [
                np.concatenate([case, (case > np.linspace(-1, 1, more)[:, None, None, None])])
                for case in cases
            ]
        stream = batches(trainer, cases, np.random.default_rng(fold))
        trainer.network.train()
        for _ in range(steps):
            loss = trainer.run_iteration(stream, True)
        print("trained", name, fold, "loss", float(loss))
        trainer.epoch = steps
        trainer.all_val_eval_metrics = [np.float64(0.5), np.mean([0.25, 0.5])]
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "model_final_checkpoint.model"))
        for file in ("debug.json", "progress.png"):  # the export asks for them
            (Path(trainer.output_folder) / file).write_text("{}")
        save_logits(trainer, Path(trainer.output_folder) / "logits.npz")
    (base / "plans.pkl").write_bytes(plans.read_bytes())
    rules = {"for_which_classes": run["rules"], "min_valid_object_sizes": "None"}
    (base / "postprocessing.json").write_text(json.dumps(rules))


def save_logits(trainer, path: Path) -> None:
    network = trainer.network.eval()
    network.do_ds = False
    shape = [int(n) for n in trainer.patch_size]
    image = torch.randn(1, trainer.num_input_channels, *shape, generator=torch.manual_seed(0))
    with torch.no_grad():
        np.savez(path, image=image.numpy(), logits=network(image).numpy())


def main() -> None:
    about = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    task = about["task"]
    for run in about["runs"]:
        train(task, run, about["train_images"], about["steps"])
        name = run["configuration"]
        trainer = "nnUNetTrainerV2" + ("CascadeFullRes" if "cascade" in name else "")
        model = Path(network_training_output_dir) / name / task / f"{trainer}__nnUNetPlansv2.1"
        out = Path(about["output"]) / name
        for flips in (False, True):
            place = out / "flips" if flips else out
            low = str(place).replace(name, "3d_lowres") if "cascade" in name else None
            predict_from_folder(
                str(model),
                about["test_images"],
                str(place),
                tuple(run["folds"]),
                True,
                1,
                1,
                low,
                0,
                1,
                flips,
                mixed_precision=False,
            )
    names = tuple(run["configuration"] for run in about["runs"])
    folds = tuple(about["runs"][0]["folds"])
    export_pretrained_model(task, about["zip"], names, folds=folds, strict=False)


if __name__ == "__main__":
    main()
