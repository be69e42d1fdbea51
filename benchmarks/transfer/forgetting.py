"""(c) What fine-tuning on MR leaves of CT: learning rate, freezing, and what the source saw.

python -m benchmarks.transfer.forgetting WORK [--seeds 0 1 2] [--tune 300] [--sources 'gin']
[--ways 'as it is;half of the patches replayed']
"""

import argparse
import sys
from typing import Any

from benchmarks.transfer.study import CT, SOURCE, TARGET, Rows, read_study

CASES = 2
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "a third of the rate": {"lr": 6e-4},
    "encoder frozen": {"freeze": "encoder"},
    "encoder at a tenth": {"encoder_factor": 0.1},
    "heads drawn anew": {"heads": "reset"},
    "the rate from scratch": {"lr": 6e-3},
    "half of the patches replayed": {"replay": CT},
    "mixed, 0.7 tuned": {"keep_source": 0.7},
    "replayed and mixed": {"replay": CT, "keep_source": 0.7},
}
SOURCES = ("default", "gin")


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--ways", default=";".join(WAYS))
    parser.add_argument("--sources", default=";".join(SOURCES))
    given, rest = parser.parse_known_args(sys.argv[1:])
    ways = given.ways.split(";")
    if unknown := [way for way in ways if way not in WAYS]:
        parser.error(f"--ways: {unknown[0]!r} is none of {'; '.join(WAYS)}")
    study = read_study(__doc__ or "", rest)
    rows = Rows(study, "forgetting")
    for seed in study.seeds:
        target = study.target(CASES, seed)
        for augment in given.sources.split(";"):
            source = study.train_source(augment, seed)
            dice = {"MR": study.dice(source, TARGET), "CT": study.dice(source, SOURCE)}
            rows.add(f"{augment}: not tuned", seed, dice)
            for number, (way, options) in enumerate(WAYS.items()):
                if way not in ways:
                    continue
                tag = f"from-{augment}-s{seed}" + (f"-way{number}" if number else "")
                model = study.train(
                    target, tag, steps=study.tune, seed=seed, pretrained=source, **options
                )
                dice = {"MR": study.dice(model, TARGET), "CT": study.dice(model, SOURCE)}
                rows.add(f"{augment}: {way}", seed, dice)
    rows.show()


if __name__ == "__main__":
    main()
