"""From a 2D network to 3D, against 3D from scratch, on real MR.

    python -m benchmarks.transfer.dimensions WORK --spacing 5 2.6 2.6 [--steps 600] [--tune 300]

A 2D network learns from the MR cases that may be learnt from (--steps). It is carried to 3D by
"center" and "mean" and scored before any training, and after a half and all of --tune steps; the
same 3D network is trained from scratch for as long. Each is a training of its own, with the whole
schedule of its recipe. The Dice is that of the five cases held back, and in 3D all have the same
plan and patches.
"""

from dataclasses import replace
from typing import Any

import autoliver
from benchmarks.transfer.study import TARGET, Rows, read_study, train_cases

PATCH = (24, 96, 96)
WAYS = ("center", "mean")


def main() -> None:
    study = read_study(__doc__ or "")
    rows = Rows(study, "dimensions")
    deep = replace(study, configuration="3d_fullres")
    for seed in study.seeds:
        target = study.target(len(train_cases(study.data / TARGET)), seed)
        if not (study.workspace / target.name / "plan.json").exists():
            autoliver.plan(
                target, preset=study.preset, spacing_mm=study.spacing_mm, workspace=study.workspace
            )
        flat = study.train(target, f"flat-s{seed}", steps=study.steps, seed=seed)
        rows.add("2D", seed, {"MR": study.dice(flat, TARGET)})
        given: dict[str, Any] = {"seed": seed, "patch": PATCH}
        for steps in (0, study.tune // 2, study.tune):
            for way in WAYS:
                tag = f"{way}-{steps}-s{seed}"
                model = deep.train(target, tag, steps=steps, pretrained=flat, inflate=way, **given)
                rows.add(f"3D by {way}, {steps} steps", seed, {"MR": deep.dice(model, TARGET)})
            if steps:
                tag = f"scratch-{steps}-s{seed}"
                model = deep.train(target, tag, steps=steps, like=flat, **given)
                rows.add(f"3D from scratch, {steps} steps", seed, {"MR": deep.dice(model, TARGET)})
    rows.show()


if __name__ == "__main__":
    main()
