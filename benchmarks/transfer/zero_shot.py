"""(a) Trained on CT alone, without and with changes of appearance: Dice on MR and on CT.

python -m benchmarks.transfer.zero_shot WORK [--augment 'gin;bezier'] [--seeds 0 1 2] [--steps 1500]
"""

import sys

from benchmarks.transfer.study import SOURCE, TARGET, Rows, read_study

AUGMENTS = (
    *("default", "inversion", "bezier", "randconv", "gin", "gin-ipa", "synthseg"),
    "cross-modality",
)


def main() -> None:
    arguments, augments = sys.argv[1:], AUGMENTS
    if "--augment" in arguments:
        at = arguments.index("--augment")
        augments = tuple(arguments[at + 1].split(";"))
        del arguments[at : at + 2]
    study = read_study(__doc__ or "", arguments)
    rows = Rows(study, "zero_shot")
    for seed in study.seeds:
        for augment in augments:
            model = study.train_source(augment, seed)
            dice = {"MR": study.dice(model, TARGET), "CT": study.dice(model, SOURCE)}
            rows.add(augment, seed, dice)
    rows.show()


if __name__ == "__main__":
    main()
