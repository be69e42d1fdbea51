"""nnU-Net 2.8.1's side of what is measured inside a process, by its public functions."""

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.clock import Clock, serve

_PLANNERS = {
    "default": "ExperimentPlanner",
    "M": "nnUNetPlannerResEncM",
    "L": "nnUNetPlannerResEncL",
}
# What its planner writes into every plan.
_RESAMPLING = {"order_z": 0, "force_separate_z": None}


def cubic(clock: Clock, **arguments: Any) -> None:
    _resample(clock, order=3, is_seg=False, **arguments)


def labels(clock: Clock, **arguments: Any) -> None:
    _resample(clock, order=1, is_seg=True, **arguments)


def fingerprint(clock: Clock, *, name: str, threads: int, **_: Any) -> dict[str, Any]:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )

    extractor = DatasetFingerprintExtractor(name, num_processes=threads)
    with clock:
        found = extractor.run(overwrite_existing=True)
    return {
        "spacings": [[float(v) for v in spacing] for spacing in found["spacings"]],
        "shapes": [[int(v) for v in shape] for shape in found["shapes_after_crop"]],
        "intensities": list(found["foreground_intensity_properties_per_channel"].values()),
    }


def plan(
    clock: Clock, *, folder: str, tasks: list[str], presets: list[str], threads: int
) -> dict[str, Any]:
    import nnunetv2.experiment_planning.experiment_planners as planners
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    del threads
    decisions, slowest = {}, 0.0
    for task in tasks:
        # A number of its own: the task may also be there with its images.
        name = f"Dataset9{task[8:]}"
        raw, preprocessed = Path(nnUNet_raw) / name, Path(nnUNet_preprocessed) / name
        raw.mkdir(parents=True, exist_ok=True)
        preprocessed.mkdir(parents=True, exist_ok=True)
        head = json.loads((Path(folder) / task / "dataset.json").read_text())
        # So that it neither lists nor opens images.
        head["dataset"] = {"case": {"images": ["case.nii.gz"], "label": "case.nii.gz"}}
        head["overwrite_image_reader_writer"] = "SimpleITKIO"
        (raw / "dataset.json").write_text(json.dumps(head))
        shutil.copy(Path(folder) / task / "dataset_fingerprint.json", preprocessed)
        for preset in presets:
            found = recursive_find_python_class(
                planners.__path__[0], _PLANNERS[preset], planners.__name__
            )
            before = clock.seconds
            with clock:
                made = found(name).plan_experiment()
            slowest = max(slowest, clock.seconds - before)
            for key, each in made["configurations"].items():
                if "inherits_from" not in each:
                    decisions[f"{task} {preset} {key}"] = [
                        [int(v) for v in each["patch_size"]],
                        each["batch_size"],
                        each["architecture"]["arch_kwargs"]["strides"],
                    ]
    return {"decisions": decisions, "slowest seconds": slowest}


def augment(
    clock: Clock, *, image: str, label: str, patch: list[int], count: int, **_: Any
) -> None:
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1)
    np.random.seed(0)  # noqa: NPY002 - what batchgeneratorsv2 draws from
    torch.manual_seed(0)
    limit = 30.0 / 360 * 2 * np.pi
    transforms = nnUNetTrainer.get_training_transforms(
        patch_size=patch,
        rotation_for_DA=(-limit, limit),
        # The target at lower resolutions is left out on both sides.
        deep_supervision_scales=None,
        mirror_axes=(0, 1, 2),
        do_dummy_2d_data_aug=False,
        use_mask_for_norm=[False],
    )
    images, targets = torch.from_numpy(np.load(image)), torch.from_numpy(np.load(label))
    for number in range(count):
        index = number % len(images)
        image_patch, label_patch = images[index].clone(), targets[index].clone()
        with clock:
            transforms(image=image_patch, segmentation=label_patch)


def export(clock: Clock, *, logits: str, shape: list[int], output: str, **other: Any) -> None:
    import numpy as np
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape,
    )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    array = np.load(logits)
    plans = PlansManager(_minimal_plans(other["network_mm"]))
    values = {f"label {value}": value for value in range(1, len(array))}
    head = {"labels": {"background": 0, **values}, "channel_names": {"0": "CT"}}
    properties = {
        "spacing": other["spacing_mm"],
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, size] for size in shape],
    }
    configuration, manager = plans.get_configuration("3d_fullres"), plans.get_label_manager(head)
    with clock:
        result = convert_predicted_logits_to_segmentation_with_correct_shape(
            array, plans, configuration, manager, properties, num_threads_torch=other["threads"]
        )
    np.save(output, result)


def predict(_: Clock, *, model: str, images: str, output: str, **other: Any) -> dict[str, Any]:
    """What nnUNetv2_predict_from_modelfolder does, with as many threads as we have."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = torch.device(other["device"])
    torch.set_num_threads(other["threads"] if device.type == "cpu" else 1)
    predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, ("all",))
    predictor.predict_from_files(
        images, output, num_processes_preprocessing=3, num_processes_segmentation_export=3
    )
    return _gpu_memory()


def train(_: Clock, *, name: str, epochs: int, iterations: int, **other: Any) -> dict[str, Any]:
    """Epochs of fold 0; the median epoch after the first (which compiles) is reported."""
    from statistics import median
    from time import perf_counter

    import torch
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Waiting:
        """A loader that knows how long it was waited for."""

        def __init__(self, loader: Any) -> None:
            self.loader, self.seconds = loader, 0.0

        def __next__(self) -> Any:
            start = perf_counter()
            batch = next(self.loader)
            self.seconds += perf_counter() - start
            return batch

    class Trainer(nnUNetTrainer):
        waited: tuple[float, ...] = ()

        def on_train_start(self) -> None:
            super().on_train_start()
            self.dataloader_train = Waiting(self.dataloader_train)

        def on_train_epoch_end(self, train_outputs: list[Any]) -> None:
            self.waited += (self.dataloader_train.seconds,)
            self.dataloader_train.seconds = 0.0
            super().on_train_epoch_end(train_outputs)

        def on_train_end(self) -> None:
            self.dataloader_train = self.dataloader_train.loader
            super().on_train_end()

    folder = Path(nnUNet_preprocessed) / name
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    head = json.loads((folder / "dataset.json").read_text())
    device = torch.device(other["device"])
    torch.set_num_threads(other["threads"] if device.type == "cpu" else 1)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    plans["continue_training"] = False
    if other["features"]:
        network = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        network["features_per_stage"] = other["features"][: network["n_stages"]]
    trainer = Trainer(plans, "3d_fullres", 0, head, device)
    trainer.num_epochs = epochs
    trainer.num_iterations_per_epoch = iterations
    trainer.num_val_iterations_per_epoch = max(1, iterations // 5)
    trainer.run_training()
    starts, ends = (
        trainer.logger.get_value(f"epoch_{when}_timestamps", None) for when in ("start", "end")
    )
    seconds = [end - start for start, end in zip(starts, ends, strict=True)][1:]
    waits = [waited / each for waited, each in zip(trainer.waited[1:], seconds, strict=True)]
    return {"seconds": median(seconds), "data wait": median(waits), **_gpu_memory()}


def _gpu_memory() -> dict[str, float]:
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"gpu_mb": torch.cuda.max_memory_reserved() / 2**20}


def _resample(clock: Clock, *, image: str, shape: list[int], output: str, **other: Any) -> None:
    import numpy as np
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    array = np.load(image)
    how = {"is_seg": other["is_seg"], "order": other["order"], **_RESAMPLING}
    with clock:
        result = resample_data_or_seg_to_shape(
            array, shape, other["spacing_mm"], other["target_mm"], **how
        )
    np.save(output, result)


def _minimal_plans(spacing_mm: list[float]) -> dict[str, Any]:
    """As much of a plan as exporting needs."""
    configuration: dict[str, Any] = {
        "spacing": spacing_mm,
        # Only so that the plan counts as one of today's; no network is made.
        "architecture": {},
    }
    for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        name = f"resampling_fn_{kind}"
        configuration[name] = "resample_data_or_seg_to_shape"
        configuration[f"{name}_kwargs"] = {
            "is_seg": kind == "seg",
            "order": order,
            **_RESAMPLING,
        }
    return {
        "plans_name": "benchmark",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
    }


if __name__ == "__main__":
    serve(
        {
            function.__name__: function
            for function in (
                *(cubic, labels, fingerprint, plan, augment, export),
                *(predict, train),
            )
        }
    )
