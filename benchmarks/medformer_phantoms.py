"""MedFormer tiny against the tiny U-Net on phantoms, trained for the same time: Dice held out.

    python -m benchmarks.medformer_phantoms WORK_DIR [--minutes 1.5] [--seeds 0 1]

Runs the commands a user would run, one training at a time, and prints a line of a table for each.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.progress import read_progress

_CASES = 15  # fold 0 of five holds out three
_SHAPE, _SPACING = (24, 64, 64), (5.0, 4.0, 4.0)
# Name -> options of plan, options of train.
NETWORKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unet": ((), ()),
    "medformer": (("--arch", "medformer"), ()),
    "medformer, lr 2e-3": (("--arch", "medformer"), ("--lr", "0.002")),
}


def autoliver(*words: object) -> None:
    """Runs a command."""
    command = [sys.executable, "-m", "autoliver", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--configuration", default="2d")
    arguments = parser.parse_args()
    name, configuration = "Dataset001_Phantom", arguments.configuration
    options = PhantomOptions(contrast="CT", shape_zyx=_SHAPE, spacing_mm=_SPACING)
    data = arguments.work / "data"
    if not data.exists():
        write_phantom_dataset(data, name=name, cases=_CASES, seed=1, options=options)
    print("| network | seed | steps | Dice of each label | mean Dice |")
    print("|---|---|---|---|---|")
    for seed in arguments.seeds:
        for network, (planned, trained) in NETWORKS.items():
            workspace = arguments.work / network.split(",")[0]
            if not workspace.exists():
                autoliver("plan", data / name, "--preset", "tiny", *planned, "-w", workspace)
                autoliver("preprocess", name, configuration, "-w", workspace)
            tag = f"lr{seed}" if trained else f"seed{seed}"
            autoliver(
                *("train", name, configuration, "--fold", "0", "--hours", arguments.minutes / 60),
                *("--epochs", 40, "--iterations", 100, "--seed", seed, *trained),
                *("--tag", tag, "--fresh", "-w", workspace),
            )
            fold = workspace / name / f"runs/{configuration}+{tag}/fold_0"
            scores = json.loads((fold / "validation/scores.json").read_text())
            steps = read_progress(fold / "progress.jsonl")[-1].step
            each = [row["metrics"]["dice"]["mean"] for row in scores["summary"].values()]
            labels = " ".join(f"{dice:.3f}" for dice in each)
            mean = f"{scores['mean']['dice']:.3f}"
            print(f"| {network} | {seed} | {steps} | {labels} | {mean} |", flush=True)


if __name__ == "__main__":
    main()
