"""1000 steps of the tiny 3d_fullres network on real hippocampi: Dice on cases held back.

Every fourth case (by name, from the fourth on) is held back. Runs the commands a user would run and
prints one JSON object.

    python benchmarks/hippocampus.py ../shared/data/Dataset004_Hippocampus WORK_DIR [--seed N]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

NAME = "Dataset004_Hippocampus"
# 2.8.1, same network, batch, steps; cases held back (measured elsewhere on such a machine)
NNUNET = {"nnunet_own_recipe": 0.346, "nnunet_adamw_3e-3_poly": 0.861}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    held_back = split(arguments.dataset, arguments.work / "data")
    seconds = {}
    common = ["-w", str(arguments.work / "workspace")]
    commands = {
        "plan": ["plan", str(arguments.work / "data" / NAME), "--preset", "tiny"],
        "train": [
            *("train", NAME, "3d_fullres", "--fold", "all", "--iterations", "50"),
            *("--epochs", str(arguments.epochs), "--seed", str(arguments.seed)),
            *("--tag", f"seed{arguments.seed}"),
        ],
        "predict": [
            *("predict", "-i", str(arguments.work / "data/test/images"), "--overwrite"),
            *("-o", str(arguments.work / "out"), "-m", f"{NAME}/3d_fullres+seed{arguments.seed}"),
        ],
        "evaluate": [
            *("evaluate", "-p", str(arguments.work / "out"), "-d", NAME, "--json"),
            *("-r", str(arguments.work / "data/test/labels")),
        ],
    }
    output = ""
    for name, command in commands.items():
        start = time.monotonic()
        output = subprocess.run(
            [sys.executable, "-m", "autoliver", *command, *common],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        seconds[name] = round(time.monotonic() - start, 1)
    scores = json.loads(output)
    labels = {k: v["metrics"]["dice"]["mean"] for k, v in scores["summary"].items()}
    result = {
        "steps": 50 * arguments.epochs,
        "seed": arguments.seed,
        "held_back": held_back,
        "dice": {k: round(v, 4) for k, v in labels.items()},
        "mean_dice": round(scores["mean"]["dice"], 4),
        **NNUNET,
        "seconds": seconds,
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(result))


def split(source: Path, target: Path) -> int:
    """Links the training cases as a dataset and the held-out ones as two folders."""
    labels = sorted((source / "labelsTr").iterdir())
    held_back = labels[3::4]
    train, test = target / NAME, target / "test"
    for folder in (train / "imagesTr", train / "labelsTr", test / "images", test / "labels"):
        folder.mkdir(parents=True, exist_ok=True)
    for label in labels:
        image = source / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz")
        images, truths = ("images", "labels") if label in held_back else ("imagesTr", "labelsTr")
        folder = test if label in held_back else train
        for file, place in ((image, images), (label, truths)):
            link = folder / place / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(file.resolve())
    description = json.loads((source / "dataset.json").read_text())
    description["numTraining"] = len(labels) - len(held_back)
    (train / "dataset.json").unlink(missing_ok=True)
    (train / "dataset.json").write_text(json.dumps(description))
    return len(held_back)


if __name__ == "__main__":
    main()
