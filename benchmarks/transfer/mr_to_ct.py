"""The other way round: from MR alone to CT, on every CT case.

    python -m benchmarks.transfer.mr_to_ct WORK --spacing 5 2.6 2.6 [--steps 1500] [--seeds 0]

All MR cases are learnt from, no CT case is. The scores are those of the ladder.
"""

import autoliver
from benchmarks.transfer.ladder import scores
from benchmarks.transfer.scoring import PROTOCOLS, mean_dice
from benchmarks.transfer.study import MR, SOURCE, TARGET, all_cases, read_study, table

WAYS = {"default": ("default", {}), "gin": ("gin", {}), "gin, --match": ("gin", {"match": True})}


def main() -> None:
    study = read_study(__doc__ or "")
    folder = study.work / "data" / MR
    table(study.data / TARGET, folder, all_cases(study.data / TARGET))
    if not (study.workspace / MR / "plan.json").exists():
        autoliver.plan(
            folder, preset=study.preset, spacing_mm=study.spacing_mm, workspace=study.workspace
        )
    print("| way | seed | CT liver | largest | mean of four | largest |\n|---|---|---|---|---|---|")
    for seed in study.seeds:
        for way, (augment, options) in WAYS.items():
            model = f"{MR}/{study.configuration}+{augment}-s{seed}"
            run = study.workspace / MR / "runs" / f"{study.configuration}+{augment}-s{seed}"
            if not (run / "fold_all/model.json").exists():
                study.train(MR, f"{augment}-s{seed}", steps=study.steps, seed=seed, augment=augment)
            cases = scores(study, model, SOURCE, all_cases(study.data / SOURCE), dict(options))
            first, second = (mean_dice(cases, protocol) for protocol in PROTOCOLS[:2])
            cells = [m[organ] for organ in ("liver", "mean") for m in (first, second)]
            print(f"| {way} | {seed} | " + " | ".join(f"{c:.3f}" for c in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
