"""nnU-Net 2.8.1's side of `benchmarks/parity/nnunet_models.py`: plans, trains, predicts.

    python -m benchmarks.peer.models WHAT ARGUMENTS.json

Its own functions throughout; what is changed is the plan, the optimiser and the number of steps.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any


def plan(*, number: int, planner: str, edits: dict[str, dict[str, Any]]) -> None:
    """Fingerprint, plan, then each configuration with its edits, then preprocessing."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.paths import nnUNet_preprocessed

    api.extract_fingerprints([number], num_processes=1, check_dataset_integrity=False)
    name = api.plan_experiments([number], planner)
    (folder,) = Path(nnUNet_preprocessed).glob(f"Dataset{number:03d}_*")
    path = folder / f"{name}.json"
    plans = json.loads(path.read_text())
    for configuration, changes in edits.items():
        known = plans["configurations"].setdefault(configuration, {})
        network = changes.pop("network", {})
        known |= changes
        if network:
            known["architecture"]["arch_kwargs"] |= network
    plans["configurations"] = {key: plans["configurations"][key] for key in edits}
    path.write_text(json.dumps(plans))
    # The cascade trains on what was preprocessed for full resolution.
    own = [key for key, each in plans["configurations"].items() if "data_identifier" in each]
    api.preprocess([number], name, own, num_processes=[1] * len(own))


def train(
    *, number: int, plans: str, configuration: str, fold: int | str, steps: int, validate: bool
) -> None:
    """Trains a fold for a few steps; all patches show foreground, so that masks are not empty."""
    import torch
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    (folder,) = Path(nnUNet_preprocessed).glob(f"Dataset{number:03d}_*")
    head = json.loads((folder / "dataset.json").read_text())
    trainer = nnUNetTrainer(
        {**json.loads((folder / f"{plans}.json").read_text()), "continue_training": False},
        configuration,
        fold,
        head,
        device=torch.device("cpu"),
    )

    def quick_optimiser() -> Any:
        weights = trainer.network.parameters()
        optimiser = torch.optim.AdamW(weights, lr=3e-3)
        return optimiser, PolyLRScheduler(optimiser, 3e-3, trainer.num_epochs)

    trainer.configure_optimizers = quick_optimiser
    trainer.num_epochs, trainer.num_iterations_per_epoch = 2, steps // 2
    trainer.num_val_iterations_per_epoch = 1
    trainer.oversample_foreground_percent = 1.0
    trainer.run_training()
    if validate:
        trainer.perform_actual_validation()


def predict_float32(
    *, model: str, folds: list[str], images: str, output: str, previous: str | None
) -> None:
    """As its command, except that sums over windows are kept in float32 rather than float16."""
    import nnunetv2.inference.predict_from_raw_data as inference
    import torch

    torch.set_num_threads(1)
    exact = functools.lru_cache(functools.partial(inference.compute_gaussian, dtype=torch.float32))
    inference.compute_gaussian = exact
    torch.half = torch.float32  # the name by which the sums are allocated
    predictor = inference.nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, folds)
    predictor.predict_from_files(
        images,
        output,
        save_probabilities=True,
        num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
        folder_with_segs_from_prev_stage=previous,
    )


if __name__ == "__main__":
    steps = {"plan": plan, "train": train, "predict_float32": predict_float32}
    steps[sys.argv[1]](**json.loads(Path(sys.argv[2]).read_text()))
