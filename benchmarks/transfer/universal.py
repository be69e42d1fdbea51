"""One network for CT and MR against one for each, at equal steps for each dataset.

    python -m benchmarks.transfer.universal WORK --spacing 5 2.6 2.6 --window -150 250 [--seeds 0]

The universal network is trained on a pool of the datasets, drawn equally often, for the steps of
both dedicated ones together. Once with all MR cases that may be learnt from, once with two.
"""

import autoliver
from benchmarks.transfer.study import CT, SOURCE, TARGET, Rows, Study, read_study, train_cases

FEW = 2


def main() -> None:
    study = read_study(__doc__ or "")
    rows = Rows(study, "universal")
    for seed in study.seeds:
        alone = study.train(CT, f"u{study.steps}-s{seed}", steps=study.steps, seed=seed)
        rows.add("CT alone", seed, {"CT": study.dice(alone, SOURCE)})
        for cases in (len(train_cases(study.data / TARGET)), FEW):
            target = study.target(cases, seed)
            model = study.train(
                target, f"u{study.steps}-s{seed}", steps=study.steps, seed=seed, like=CT
            )
            rows.add(f"{cases} MR cases alone", seed, {"MR": study.dice(model, TARGET)})
            model = universal(study, target.name, seed)
            dice = {"MR": study.dice(model, TARGET), "CT": study.dice(model, SOURCE)}
            rows.add(f"CT and {cases} MR cases", seed, dice)
    rows.show()


def universal(study: Study, target: str, seed: int) -> str:
    """Trains on CT and a set of MR cases; the folder of the run."""
    folder = study.work / "data" / f"Dataset{400 + seed}_{target.partition('_')[2]}AndCT"
    if not folder.exists():
        data = study.work / "data"
        autoliver.pool(folder, [str(data / CT), str(data / target)], workspace=study.workspace)
    if not (study.workspace / folder.name / "plan.json").exists():
        autoliver.plan(
            folder,
            preset=study.preset,
            spacing_mm=study.spacing_mm,
            window_hu=study.window_hu,
            workspace=study.workspace,
        )
    tag = f"u{study.steps}-s{seed}"
    return study.train(folder.name, tag, steps=2 * study.steps, seed=seed, sampler="balanced")


if __name__ == "__main__":
    main()
