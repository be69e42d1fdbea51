"""Few MR cases, with and without synthetic ones made from CT: the experiment of paper 3.

    python -m benchmarks.transfer.synthesis WORK --spacing 5 2.6 2.6 --window -150 250 \
        [--gan-steps 1500] [--features 12] [--blocks 3] [--judge-steps 1500] [--seeds 0]

The translation sees the CT cases and the MR cases that may be learnt from, and none of those that
are tested on. Three of these MR cases have labels. How well labels fit the synthetic images is told
by a network that has learnt all of them, which the others do not use. All trainings on MR have the
same number of steps; synthetic cases are drawn for half of the patches, or for all of them in the
first half of the training and for a quarter later. Rafiq et al. 2025; METHODS, paper 3.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

import autoliver
from autoliver.errors import DatasetError
from autoliver.pipeline.translation.apply import ApplyRequest, apply
from autoliver.pipeline.translation.fit import FitRequest, SynthesisFolder, fit
from autoliver.synthesis.translation.options import TranslationOptions
from autoliver.workspace import Workspace
from benchmarks.transfer.study import CT, SOURCE, TARGET, Rows, Study, arguments, read, train_cases

FEW = 3
_EPOCH = 100  # steps


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--gan-steps", type=int, default=1500)
    parser.add_argument("--features", type=int, default=12)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--gan-lr", type=float, default=8e-4)
    parser.add_argument("--models", nargs="+", default=["essnet", "cyclegan", "labels"])
    parser.add_argument("--judge-steps", type=int, default=1500)
    parser.add_argument("--sources", nargs="*", default=["default", "palette"], help="Of CT.")
    given = parser.parse_args()
    study = read(given)
    rows = Rows(study, "synthesis")
    for seed in study.seeds:
        every = study.target(len(train_cases(study.data / TARGET)), 0)
        few = study.target(FEW, seed)
        planned(study, every)
        judge = study.train(every, "judge", steps=given.judge_steps, seed=0, like=CT)
        rows.add("judge, all MR cases", seed, scores(study, judge))
        rows.add("fidelity of raw CT", seed, {"CT": raw_fidelity(study, judge)})
        real = study.train(few, f"real-{study.tune}-s{seed}", steps=study.tune, seed=seed, like=CT)
        rows.add(f"{FEW} MR cases", seed, scores(study, real))
        for model in given.models:
            options = TranslationOptions(
                model=model,
                features=given.features,
                blocks=given.blocks,
                epochs=max(1, given.gan_steps // _EPOCH),
                iterations=_EPOCH,
                lr=given.gan_lr,
                seed=seed,
            )
            translated(study, rows, every, few, judge, options)
        for augment in given.sources:
            rows.add(
                f"CT alone, {augment}",
                seed,
                scores(study, source := study.train_source(augment, seed)),
            )
            tag = f"tuned-{augment}-{study.tune}-s{seed}"
            tuned = study.train(few, tag, steps=study.tune, seed=seed, pretrained=source)
            rows.add(f"{FEW} MR cases, from CT with {augment}", seed, scores(study, tuned))
    rows.show()


def scores(study: Study, model: str) -> dict[str, dict[str, float]]:
    """Dice and IoU of the MR cases that are tested on: label, and `mean` -> value."""
    found = study.means(model, TARGET, ("dice", "iou"))
    return {
        column: {**found[metric], "mean": float(np.mean(list(found[metric].values())))}
        for column, metric in (("MR", "dice"), ("MR IoU", "iou"))
    }


def planned(study: Study, target: Path) -> None:
    """Plans the MR set at the spacing of CT."""
    if not (study.workspace / target.name / "plan.json").exists():
        autoliver.plan(
            target,
            preset=study.preset,
            spacing_mm=study.spacing_mm,
            workspace=study.workspace,
        )


def translated(
    study: Study, rows: Rows, every: Path, few: Path, judge: str, options: TranslationOptions
) -> None:
    """Learns a translation, and trains with what it makes."""
    workspace, seed = Workspace(study.workspace), options.seed
    name = f"{options.model}-{options.steps}-s{seed}"
    request = FitRequest(source=CT, target=every.name, name=name, options=options)
    folder = fit(workspace, request)
    model = options.model
    found = made(study, name, seed, 0.0, judge)
    rows.add(f"fidelity, {model}", seed, {"synthetic": fidelity(found)})
    if folder.segmentor.exists():
        rows.add(
            f"segmentor of {model}, no MR label", seed, scores(study, str(folder.segmentor.parent))
        )
    for least in (0.0, 0.5):
        try:
            done = made(study, name, seed, least, judge_of(folder, judge))
        except DatasetError as error:  # no case is good enough
            print(f"{model}, Dice of {least:g}, seed {seed}: {error.problem}")
            continue
        what = "every case" if least == 0 else f"Dice of {least:g}"
        epoch = max(1, study.tune // 12)
        first = {"replay_share": 0.25, "replay_warmup": round(study.tune / epoch) // 2}
        ways: dict[str, dict[str, Any]] = {"half": {}}
        if least > 0:
            ways["first"] = first
        for way, how in ways.items():
            run = study.train(
                few,
                f"{model}-{least:g}-{way}-{study.tune}-s{seed}",
                steps=study.tune,
                seed=seed,
                epoch=epoch,
                like=CT,
                replay=done.name,
                **how,
            )
            rows.add(f"{FEW} MR cases + {model}, {what}, {way}", seed, scores(study, run))


def judge_of(folder: SynthesisFolder, judge: str) -> str:
    """What filters: EssNet's own segmentor; CycleGAN has none."""
    return str(folder.segmentor.parent) if folder.segmentor.exists() else judge


def made(study: Study, name: str, seed: int, least: float, judge: str) -> Path:
    """The dataset of a translation, planned."""
    by = "own" if "segmentor" in judge else "judge"
    model = name.partition("-")[0]
    kind = ("essnet", "cyclegan", "labels", "cut").index(model)
    number = 400 + 100 * seed + 20 * kind + 10 * (by == "own") + round(10 * least)
    out = study.work / "data" / f"Dataset{number}_{name.replace('-', '')}{by}"
    if not out.exists():
        apply(Workspace(study.workspace), name, out, ApplyRequest(judge=judge, min_dice=least))
    if not (study.workspace / out.name / "plan.json").exists():
        autoliver.plan(
            out, preset=study.preset, spacing_mm=study.spacing_mm, workspace=study.workspace
        )
    return out


def fidelity(folder: Path) -> dict[str, float]:
    """Label -> mean Dice that the judge found."""
    rows = list(csv.DictReader((folder / "fidelity.csv").read_text().splitlines()))
    other = {"case", "mean_dice", "slices", "slices_below", "jumps", "real_jumps", "grey", "kept"}
    names = [name for name in rows[0] if name not in other]
    found = {n: float(np.mean([float(r[n]) for r in rows if r[n]])) for n in names}
    return {**found, "mean": float(np.mean(list(found.values())))}


def raw_fidelity(study: Study, judge: str) -> dict[str, float]:
    """What the judge finds in CT as it is."""
    out = study.work / "predictions" / "raw_ct"
    cases = train_cases(study.data / SOURCE)
    options: dict[str, Any] = {"workspace": study.workspace, "device": study.device}
    images = [study.data / SOURCE / "imagesTr" / f"{case}_0000.nii.gz" for case in cases]
    autoliver.predict(images, out, models=[judge], modality="CT", **options)
    scores = autoliver.evaluate(
        *(out, study.data / SOURCE / "labelsTr"),
        dataset=CT,
        workspace=study.workspace,
        metrics=("dice",),
        subset=True,
    )
    dice = {label: each.metrics["dice"].mean for label, each in scores.summary.items()}
    return {**dice, "mean": float(np.mean(list(dice.values())))}


if __name__ == "__main__":
    main()
