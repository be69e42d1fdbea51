"""(d) Dice on MR against steps, each a training of its own: from scratch and fine-tuned.

python -m benchmarks.transfer.steps WORK [--seeds 0 1 2] [--tune 300]
"""

from benchmarks.transfer.study import SOURCE, TARGET, Rows, read_study

CASES = 2
SHARES = (0.0, 0.1, 0.3, 1.0, 3.0)
SOURCES = ("default", "gin")


def main() -> None:
    study = read_study(__doc__ or "")
    rows = Rows(study, "steps")
    for seed in study.seeds:
        target = study.target(CASES, seed)
        sources = {augment: study.train_source(augment, seed) for augment in SOURCES}
        for share in SHARES:
            steps = round(share * study.tune)
            end = "" if share == 1.0 else f"-{steps}"  # as few_cases.py names it
            for augment, source in sources.items():
                tag = f"from-{augment}-s{seed}{end}"
                model = study.train(target, tag, steps=steps, seed=seed, pretrained=source)
                dice = {"MR": study.dice(model, TARGET), "CT": study.dice(model, SOURCE)}
                rows.add(f"{steps} steps, from {augment}", seed, dice)
            if steps:
                model = study.train(
                    target,
                    f"scratch-s{seed}{end}",
                    steps=steps,
                    seed=seed,
                    like=sources["default"],
                )
                rows.add(f"{steps} steps, scratch", seed, {"MR": study.dice(model, TARGET)})
    rows.show()


if __name__ == "__main__":
    main()
