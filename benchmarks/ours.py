"""Autoliver's side of what is measured inside a process; run by `benchmarks.measure`.

Libraries are imported before the clock starts, as on nnU-Net's side.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.clock import Clock, serve


def cubic(clock: Clock, *, image: str, shape: list[int], output: str, **other: Any) -> None:
    import numpy as np
    import scipy.ndimage  # noqa: F401

    from autoliver.preprocessing.resample import resample_image, separate_axis

    array = np.load(image)
    axis = separate_axis(other["spacing_mm"], other["target_mm"])
    with clock:
        result = resample_image(array, tuple(shape), separate_axis=axis)
    np.save(output, result)


def labels(clock: Clock, *, image: str, shape: list[int], output: str, **other: Any) -> None:
    import numpy as np

    from autoliver.preprocessing.resample import resample_labels, separate_axis

    array = np.load(image)
    axis = separate_axis(other["spacing_mm"], other["target_mm"])
    with clock:
        result = resample_labels(array, tuple(shape), separate_axis=axis)
    np.save(output, result)


def fingerprint(clock: Clock, *, dataset: str, threads: int) -> dict[str, Any]:
    import msgspec

    from autoliver.datasets.cases import read_dataset
    from autoliver.needs import read_need
    from autoliver.parallel import CasePool, Limits
    from autoliver.planning.fingerprint import make_fingerprint

    source = read_dataset(Path(dataset))
    limits = Limits(workers=0 if threads > 1 else 1)
    pool = CasePool(what="fingerprint", limits=limits, need=read_need, light=True)
    with clock:
        found = make_fingerprint(source, executor=pool)
    return {
        "spacings": [case.spacing_mm for case in found.cases],
        "shapes": [case.shape_after_crop for case in found.cases],
        "intensities": [msgspec.to_builtins(each) for each in found.intensities],
    }


def plan(
    clock: Clock, *, folder: str, tasks: list[str], presets: list[str], threads: int
) -> dict[str, Any]:
    from autoliver.planning.plan import PlanOptions
    from autoliver.planning.planner import make_plan

    del threads
    decisions, slowest = {}, 0.0
    for task in tasks:
        dataset, found = _golden(Path(folder) / task)
        for preset in presets:
            options = PlanOptions(preset=preset, batch_cap=preset == "default")
            before = clock.seconds
            with clock:
                made = make_plan(dataset, found, options)
            slowest = max(slowest, clock.seconds - before)
            for name, each in made.configurations.items():
                if name != "3d_cascade":
                    decided = (each.patch_shape, each.batch_size, each.network.strides)
                    decisions[f"{task} {preset} {name}"] = decided
    return {"decisions": decisions, "slowest seconds": slowest}


def augment(
    clock: Clock, *, image: str, label: str, patch: list[int], count: int, **_: Any
) -> None:
    import numpy as np
    import torch

    from autoliver.training.augment.batch import augment_batch, default_augment_spec

    torch.set_num_threads(1)
    spec = default_augment_spec(patch)
    images, targets = torch.from_numpy(np.load(image)), torch.from_numpy(np.load(label))
    generator = torch.Generator().manual_seed(0)
    with clock:
        for _number in range(0, count, len(images)):
            augment_batch(images, targets, patch_shape=patch, spec=spec, generator=generator)


def export(clock: Clock, *, logits: str, shape: list[int], output: str, **other: Any) -> None:
    import numpy as np
    import scipy.ndimage  # noqa: F401

    from autoliver.datasets.cases import Labels
    from autoliver.io.volume import Geometry
    from autoliver.preprocessing.case import CaseProperties, backward_logits

    array = np.load(logits)
    properties = CaseProperties(
        name="case",
        modality="CT",
        geometry=Geometry(shape_zyx=tuple(shape), spacing_mm=tuple(other["spacing_mm"])),
        transpose_forward=(0, 1, 2),
        box=tuple((0, size) for size in shape),
        shape_zyx=array.shape[1:],
        spacing_mm=tuple(other["network_mm"]),
    )
    values = {f"label {value}": (value,) for value in range(1, len(array))}
    names = Labels(values={"background": (0,), **values})
    with clock:
        result = backward_logits(array, properties, labels=names)
    np.save(output, result)


def make_model(_: Clock, *, trained: str, fold: str, results: str, **other: Any) -> None:
    """The same trained weights for both sides: our fold folder and nnU-Net's results folder."""
    import torch

    from autoliver.models.files import MODEL_FILE, WEIGHTS_FILE, FoldModel, save_fold
    from autoliver.networks.checkpoint import load_weights
    from autoliver.nnunet.names import to_nnunet

    info = FoldModel.load(Path(trained) / MODEL_FILE)
    configuration = info.plan.configurations["3d_fullres"]
    weights, spec = load_weights(Path(trained) / WEIGHTS_FILE)
    Path(fold).mkdir(parents=True, exist_ok=True)
    # Mirrored whether the short training did so or not: it is the work that counts.
    save_fold(Path(fold), weights, info.replace(mirror_axes=(0, 1, 2)))
    if not other["plans"]:
        return
    plans = json.loads(Path(other["plans"]).read_text())
    theirs = plans["configurations"]["3d_fullres"]
    theirs["architecture"]["arch_kwargs"]["features_per_stage"] = spec.features
    theirs["patch_size"] = configuration.patch_shape
    target = Path(results)
    (target / "fold_all").mkdir(parents=True, exist_ok=True)
    (target / "plans.json").write_text(json.dumps(plans))
    (target / "dataset.json").write_text(Path(other["dataset_json"]).read_text())
    checkpoint = {
        "network_weights": to_nnunet(weights, spec),
        "init_args": {"configuration": "3d_fullres"},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, target / "fold_all/checkpoint_final.pth")


def predict(_: Clock, *, fold: str, images: str, output: str, device: str, **__: Any) -> Any:
    """The whole process is timed: no clock."""
    from autoliver.datasets.cases import find_case_images
    from autoliver.machine import Machine
    from autoliver.models.files import MemberFiles, ModelFiles
    from autoliver.pipeline.prediction import PredictRequest
    from autoliver.pipeline.prediction import predict as predict_cases

    cases = find_case_images(Path(images), channels=1, file_ending=None)
    files = ModelFiles(name="benchmark", members=(MemberFiles(folds=(Path(fold),)),))
    predict_cases(files, cases, Path(output), PredictRequest(machine=Machine(device=device)))
    return _gpu_memory()


def predict_bright(
    _: Clock, *, image: str, output: str, near: bool, threads: int, **grids: Any
) -> dict[str, Any]:
    """The whole process is timed; reports how many windows were visited."""
    import torch

    from autoliver.inference.outputs import PredictOptions
    from autoliver.inference.predict import Listener, make_jobs, predict_jobs
    from benchmarks.bright import bright_model

    torch.set_num_threads(threads)
    windows = []

    def on_windows(_name: str, number: int) -> Any:
        windows.append(number)
        return lambda: None

    jobs = make_jobs({"body": sorted(Path(image).iterdir())}, Path(output))
    model = bright_model(near=near, **grids)
    predict_jobs(model, jobs, PredictOptions(), listener=Listener(on_windows=on_windows))
    return {"windows": windows[-1], "coarse windows": sum(windows[:-1])}


def train(
    _: Clock, *, dataset: str, workspace: str, epochs: int, iterations: int, **other: Any
) -> dict[str, Any]:
    """Epochs of fold 0; the median epoch after the first is reported."""
    from statistics import median

    from autoliver.datasets.folds import make_folds
    from autoliver.machine import Machine
    from autoliver.networks.device import choose_device
    from autoliver.pipeline.data import planned_dataset, preprocess
    from autoliver.preprocessing.store import read_case
    from autoliver.training.fold import FoldTask
    from autoliver.training.loop import train_fold
    from autoliver.training.options import TrainingOptions
    from autoliver.workspace import Workspace

    planned = planned_dataset(Workspace(Path(workspace)), dataset)
    store = preprocess(planned, ["3d_fullres"])["3d_fullres"]
    split = make_folds(planned.dataset.labelled)[0]
    task = FoldTask(
        configuration=planned.plan.configurations["3d_fullres"],
        labels=planned.plan.labels,
        train=[read_case(store, name) for name in split.train],
        validation=[read_case(store, name) for name in split.validation],
        options=TrainingOptions(epochs=epochs, iterations=iterations, schedule="nnunet"),
        folder=Path(other["output"]),
        device=choose_device(other["device"]),
        title="benchmark",
        machine=Machine(cache=other["cache"]),
        network_gb=planned.plan.vram_gb,
    )
    task.folder.mkdir(parents=True, exist_ok=True)
    logs = train_fold(task).logs[1:]
    return {
        "seconds": median(log.seconds for log in logs),
        "data wait": median(log.data_wait for log in logs),
        **_gpu_memory(),
    }


def _gpu_memory() -> dict[str, float]:
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"gpu_mb": torch.cuda.max_memory_reserved() / 2**20}


def _golden(folder: Path) -> tuple[Any, Any]:
    """Dataset and fingerprint of nnU-Net's files."""
    import msgspec

    from autoliver.datasets.cases import Case, Dataset, Labels
    from autoliver.planning.plan import CaseFingerprint, Fingerprint, IntensityStats

    head = json.loads((folder / "dataset.json").read_text())
    raw = json.loads((folder / "dataset_fingerprint.json").read_text())
    intensities = raw["foreground_intensity_properties_per_channel"]
    grids = zip(raw["spacings"], raw["shapes_after_crop"], strict=True)
    cases = tuple(
        CaseFingerprint(
            name=f"case_{i:04d}",
            spacing_mm=tuple(spacing),
            shape=tuple(shape),
            shape_after_crop=tuple(shape),
        )
        for i, (spacing, shape) in enumerate(grids)
    )
    dataset = Dataset(
        name=folder.name,
        folder=str(folder),
        channel_names=tuple(head["channel_names"].values()),
        labels=Labels(values={name: (value,) for name, value in head["labels"].items()}),
        cases=tuple(
            Case(name=c.name, images=(c.name,), label=c.name, patient=c.name) for c in cases
        ),
    )
    found = Fingerprint(
        cases=cases,
        median_relative_size_after_cropping=raw["median_relative_size_after_cropping"],
        intensities=tuple(
            msgspec.convert(intensities[key], IntensityStats) for key in sorted(intensities)
        ),
    )
    return dataset, found


if __name__ == "__main__":
    serve(
        {
            function.__name__: function
            for function in (
                *(cubic, labels, fingerprint, plan, augment),
                *(export, make_model, predict, predict_bright, train),
            )
        }
    )
