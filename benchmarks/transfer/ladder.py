"""From CT alone to MR: one change at a time, on every MR case.

python -m benchmarks.transfer.ladder WORK --spacing 5 2.6 2.6 [--rungs 'default;gin'] [--seeds 0 1]

No MR case is trained on, so that all 15 are test cases. Each rung trains on 12 CT cases (2 are held
back, for the loss on CT), or on all 14 with --all-ct, and its label maps are scored as predicted,
after the largest component of each organ, and both with z cropped to the labelled slices, as the
literature on CHAOS does. Every score of every case is kept in WORK/ladder.jsonl; rungs that are
there already are not repeated.
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import autoliver
from autoliver.training.augment.appearance import APPEARANCES, Appearance, apply_palette
from autoliver.training.augment.palette import Recipe
from benchmarks.transfer.scoring import PROTOCOLS, mean_dice, score_case
from benchmarks.transfer.study import CT, SOURCE, TARGET, Study, all_cases, link, read_study
from benchmarks.transfer.study import test_cases as held_back

WITH_FAT = (-150.0, 250.0)


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One way from CT to MR.

    Attributes:
        augment: As for `train`.
        window_hu: As for `plan`; None for the planner's.
        slices: As for `plan`.
        train: Further options of `train`.
        predict: Further options of `predict`, for MR.
    """

    augment: str = "gin"
    window_hu: tuple[float, float] | None = WITH_FAT
    slices: int = 1
    train: dict[str, Any] = field(default_factory=dict)
    predict: dict[str, Any] = field(default_factory=dict)

    @property
    def trained_as(self) -> str:
        """The tag of its run: rungs that differ in prediction alone share one."""
        options = "".join(f"-{k}{v}" for k, v in sorted(self.train.items()))
        return re.sub(r"[^\w-]", "", f"{self.augment}{options}".replace(",", "_"))


# Regional remapping piece by piece; the product has the whole of it.
PIECES = {
    "regions": Recipe(cells=False, texture=False, labels=False),
    "regions-labels": Recipe(cells=False, texture=False),
    "regions-labels-cells": Recipe(texture=False),
}

for piece, recipe in PIECES.items():
    APPEARANCES[piece] = Appearance(apply=partial(apply_palette, recipe=recipe), share=0.5)

RUNGS = {
    "default": Rung(augment="default"),
    "gin": Rung(),
    "gin-ipa": Rung(augment="gin-ipa"),
    "bezier": Rung(augment="bezier"),
    "synthseg": Rung(augment="synthseg"),
    "gin, --match": Rung(predict={"match": True}),
    "gin-ipa, --match": Rung(augment="gin-ipa", predict={"match": True}),
    **{piece: Rung(augment=piece) for piece in PIECES},
    "palette": Rung(augment="palette"),
    "gin 0.6, palette 0.3": Rung(augment="gin:0.6,palette:0.3"),
    "gin 0.6, cells 0.3": Rung(augment="gin:0.6,regions-labels-cells:0.3"),
    "cross-modality": Rung(augment="cross-modality"),
    "gin, without fat": Rung(window_hu=None),
    "gin, 3 slices": Rung(slices=3),
    "gin, 5 slices": Rung(slices=5),
    "gin, 3D patches of 32 x 96 x 96": Rung(train={"patch": (32, 96, 96)}),
    "gin, 3D patches of 32 x 96 x 96, --match": Rung(
        train={"patch": (32, 96, 96)}, predict={"match": True}
    ),
    "gin, mirrored": Rung(train={"mirror": True}),
    "gin, foreground 0.1": Rung(train={"foreground": 0.1}),
    "gin, foreground 0.67": Rung(train={"foreground": 0.67}),
}


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rungs", default=";".join(RUNGS))
    parser.add_argument("--all-ct", action="store_true")
    given, rest = parser.parse_known_args(sys.argv[1:])
    study = read_study(__doc__ or "", [*rest, *([] if "--steps" in rest else ["--steps", "3000"])])
    results = Results(study.work / "ladder.jsonl")
    for seed in study.seeds:
        for name in given.rungs.split(";"):
            if not results.has(name, seed, all_ct=given.all_ct):
                cases = run(study, RUNGS[name], seed, all_ct=given.all_ct)
                results.add(name, seed, cases, all_ct=given.all_ct, steps=study.steps)
    results.show()


def run(study: Study, rung: Rung, seed: int, *, all_ct: bool) -> dict[str, list[dict[str, Any]]]:
    """Trains a rung unless that is done, and scores it: dataset -> scores of its cases."""
    window = "own" if rung.window_hu is None else "{:g}_{:g}".format(*rung.window_hu)
    neighbours = "" if rung.slices == 1 else f"-slices{rung.slices}"
    name = f"w{window}{neighbours}{'-all' if all_ct else ''}"
    work = study.work / name
    own = replace(
        study, work=work, window_hu=rung.window_hu, whole_source=all_ct, slices=rung.slices
    )
    own.prepare()
    tag = f"{rung.trained_as}-s{seed}"
    model = f"{CT}/{study.configuration}+{tag}"
    if not (own.workspace / CT / "runs" / Path(model).name / "fold_all/model.json").exists():
        own.train(CT, tag, steps=study.steps, seed=seed, augment=rung.augment, **rung.train)
    found = {TARGET: scores(own, model, TARGET, all_cases(study.data / TARGET), rung.predict)}
    if not all_ct:
        found[SOURCE] = scores(own, model, SOURCE, held_back(study.data / SOURCE), {})
    return found


def scores(
    study: Study, model: str, dataset: str, cases: list[str], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Predicts and scores cases of SOURCE or TARGET."""
    images = study.work / "data" / f"every_{dataset}"
    for case in cases:
        link(study.data / dataset / "imagesTr" / f"{case}_0000.nii.gz", images)
    way = "".join(f"-{k}{v}" for k, v in sorted(options.items()))
    out = study.work / "predictions" / f"{Path(model).name}{way}" / dataset
    modality = "CT" if dataset == SOURCE else "MR"
    autoliver.predict(
        *(images, out),
        models=[model],
        workspace=study.workspace,
        device=study.device,
        modality=modality,
        **options,
    )
    truth = study.data / dataset / "labelsTr"
    return [
        {"case": case, **score_case(out / f"{case}.nii.gz", truth / f"{case}.nii.gz")}
        for case in cases
    ]


class Results:
    """All scores, one JSON line for each rung and seed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text().splitlines()]

    def has(self, rung: str, seed: int, *, all_ct: bool) -> bool:
        """Whether a rung is there already."""
        return (rung, seed, all_ct) in {(r["rung"], r["seed"], r["all_ct"]) for r in self.rows}

    def add(self, rung: str, seed: int, cases: dict[str, Any], *, all_ct: bool, steps: int) -> None:
        """Keeps one, and prints its means."""
        row = {"rung": rung, "seed": seed, "all_ct": all_ct, "steps": steps, "cases": cases}
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        means = {p: mean_dice(cases[TARGET], p) for p in PROTOCOLS[:2]}
        told = ", ".join(f"{p}: {m['liver']:.3f} ({m['mean']:.3f})" for p, m in means.items())
        print(f"{rung}, seed {seed}: MR {told}", flush=True)

    def show(self) -> None:
        """Tables of means over cases and seeds, with the spread over seeds in brackets."""
        groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        for row in self.rows:
            groups.setdefault((row["rung"], row["all_ct"]), []).append(row)
        for protocol in PROTOCOLS:
            print(f"\nMR, {protocol}:")
            print(
                "| way | liver | right kidney | left kidney | spleen | mean | worst liver | seeds |"
            )
            print("|---|---|---|---|---|---|---|---|")
            for (rung, all_ct), rows in groups.items():
                means = [mean_dice(row["cases"][TARGET], protocol) for row in rows]
                cells = [_spread([m[organ] for m in means]) for organ in means[0]]
                every = [c["dice"][protocol]["liver"] for r in rows for c in r["cases"][TARGET]]
                name = f"{rung}, all CT" if all_ct else rung
                print(f"| {name} | {' | '.join(cells)} | {min(every):.2f} | {len(rows)} |")
        self._show_ct(groups)
        self._show_false_liver(groups)

    def _show_ct(self, groups: dict[tuple[str, bool], list[dict[str, Any]]]) -> None:
        print("\nCT held back, as predicted:\n| way | liver | mean |\n|---|---|---|")
        for (rung, all_ct), rows in groups.items():
            if not all_ct:
                means = [mean_dice(row["cases"][SOURCE], PROTOCOLS[0]) for row in rows]
                cells = [_spread([m[organ] for m in means]) for organ in ("liver", "mean")]
                print(f"| {rung} | {' | '.join(cells)} |")

    def _show_false_liver(self, groups: dict[tuple[str, bool], list[dict[str, Any]]]) -> None:
        places = list(self.rows[0]["cases"][TARGET][0]["false_liver"])
        print("\nFalse liver on MR, of the reference's volume, and where it lies:")
        print("| way | false liver | " + " | ".join(places) + " |")
        print("|---|" + "---|" * (1 + len(places)))
        for (rung, all_ct), rows in groups.items():
            cases = [case for row in rows for case in row["cases"][TARGET]]
            volume = np.array([case["false_share"] for case in cases])
            total = max(volume.sum(), 1e-9)
            shares = [
                float(sum(v * c["false_liver"][place] for v, c in zip(volume, cases, strict=True)))
                / total
                for place in places
            ]
            name = f"{rung}, all CT" if all_ct else rung
            cells = [f"{volume.mean():.2f}", *(f"{100 * share:.0f} %" for share in shares)]
            print(f"| {name} | {' | '.join(cells)} |")


def _spread(values: list[float]) -> str:
    low_high = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{low_high}"


if __name__ == "__main__":
    main()
