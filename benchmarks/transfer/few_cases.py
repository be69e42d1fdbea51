"""(b) and (c) Few MR cases: from scratch, and fine-tuned from models of CT, at equal steps.

Of each model the Dice on MR held back, and (forgetting) on CT held back.

    python -m benchmarks.transfer.few_cases WORK [--seeds 0 1 2] [--tune 300]
"""

from benchmarks.transfer.study import SOURCE, TARGET, Rows, read_study

CASES = (1, 2, 4, 8)
SOURCES = ("default", "gin")


def main() -> None:
    study = read_study(__doc__ or "")
    rows = Rows(study, "few_cases")
    for seed in study.seeds:
        sources = {augment: study.train_source(augment, seed) for augment in SOURCES}
        for augment, source in sources.items():
            dice = {"MR": study.dice(source, TARGET), "CT": study.dice(source, SOURCE)}
            rows.add(f"0 cases, {augment}", seed, dice)
        for cases in CASES:
            target = study.target(cases, seed)
            model = study.train(
                target, f"scratch-s{seed}", steps=study.tune, seed=seed, like=sources["default"]
            )
            rows.add(f"{cases} cases, scratch", seed, {"MR": study.dice(model, TARGET)})
            for augment, source in sources.items():
                tag = f"from-{augment}-s{seed}"
                model = study.train(target, tag, steps=study.tune, seed=seed, pretrained=source)
                dice = {"MR": study.dice(model, TARGET), "CT": study.dice(model, SOURCE)}
                rows.add(f"{cases} cases, from {augment}", seed, dice)
    rows.show()


if __name__ == "__main__":
    main()
