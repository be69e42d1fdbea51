"""Plans, trains, transfers, predicts and exports with a package that has one more network.

Usage: python journey.py PACKAGE FOLDER
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from commands import run

import autoliver
from autoliver.errors import AutoliverError
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

CT, MR = "Dataset001_PhantomCT", "Dataset002_PhantomMR"


def refused(command: Callable[[], object]) -> str:
    """What an error says."""
    try:
        command()
    except AutoliverError as error:
        return f"{error.problem} {error.hint}"
    raise AssertionError("was not refused")


def main(package: Path, folder: Path) -> None:
    assert Path(autoliver.__file__).parent == package, autoliver.__file__
    data, workspace = folder / "data", folder / "workspace"
    ct = PhantomOptions(contrast="CT", shape_zyx=(10, 32, 32), spacing_mm=(12.0, 7.0, 7.0))
    mr = PhantomOptions(contrast="T2", shape_zyx=(10, 32, 32), spacing_mm=(12.0, 7.0, 7.0))
    write_phantom_dataset(data, name=CT, cases=5, seed=1, options=ct)
    write_phantom_dataset(data, name=MR, cases=2, seed=2, options=mr, test_cases=1)
    place = ("-w", workspace)
    steps = ("--epochs", 1, "--iterations", 4)

    run("plan", data / CT, "--preset", "toy", *place)
    run("train", CT, "2d", "--fold", 0, *steps, *place)
    source = ("--pretrained", "PhantomCT/2d/fold_0")
    run("train", data / MR, "2d", "--fold", "all", *source, "--freeze", "body", *steps, *place)

    images = ("-i", data / MR / "imagesTs")
    name = f"{MR}/2d@PhantomCT"
    run("predict", *images, "-o", folder / "by_name", "-m", name, *place)
    file = folder / "toy.autoliver"
    run("export", name, file, *place)
    run("predict", *images, "-o", folder / "by_file", "-m", file, "-w", folder / "empty")

    run("plan", data / MR, "--preset", "tiny", *place)
    command = ("train", MR, "2d", "--fold", "all", *source, *steps, *place)
    found = {
        "nnunet": lambda: run("export", name, folder / "nnunet", "--format", "nnunet", *place),
        "other network": lambda: run(*command, "--own-plan", "--tag", "own"),
        "part": lambda: run(*command, "--freeze", "body.1", "--tag", "part"),
        "factor": lambda: run(*command, "--encoder-factor", 0.1, "--tag", "factor"),
    }
    texts = {what: refused(command) for what, command in found.items()}
    (folder / "refused.json").write_text(json.dumps(texts))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
