"""What a network of CT gets wrong in MR: outlines of the cases with the lowest Dice.

    python -m benchmarks.transfer.pictures PREDICTIONS REFERENCE_DATASET OUT.png [--cases 4]

PREDICTIONS is a folder of label maps, such as WORK/w-150_250/predictions/2d+gin-s0-matchTrue/
Dataset102_AbdomenMR of the ladder; REFERENCE_DATASET the dataset's folder. For each case the
slices with most false liver, most missed liver and most liver are shown.
"""

import argparse
from pathlib import Path

import numpy as np

from autoliver.evaluation.picture import Panel, Row, draw_outlines
from autoliver.io.files import read_image, read_label
from benchmarks.transfer.scoring import LIVER, ORGANS, PROTOCOLS, score_case
from benchmarks.transfer.study import all_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=4)
    given = parser.parse_args()
    labels = given.dataset / "labelsTr"
    pairs = {
        case: (given.predictions / f"{case}.nii.gz", labels / f"{case}.nii.gz")
        for case in all_cases(given.dataset)
    }
    dice = {c: score_case(*pair)["dice"][PROTOCOLS[0]]["liver"] for c, pair in pairs.items()}
    worst = sorted(dice, key=dice.__getitem__)[: given.cases]
    rows = [row(given.dataset, case, *pairs[case], dice[case]) for case in worst]
    outlined = [(value,) for value in ORGANS]
    draw_outlines(given.out, rows, outlined=outlined, title=f"Lowest Dice of {len(dice)} cases")
    print(given.out)


def row(dataset: Path, case: str, predicted: Path, reference: Path, dice: float) -> Row:
    """The slices of a case that say most about its errors."""
    image = read_image((dataset / "imagesTr" / f"{case}_0000.nii.gz",))
    found, truth = read_label(predicted).array[0], read_label(reference).array[0]
    false = (found == LIVER) & (truth != LIVER)
    missed = (truth == LIVER) & (found != LIVER)
    panels = []
    for mask, what in ((false, "most false"), (missed, "most missed"), (truth == LIVER, "most")):
        z = int(np.count_nonzero(mask, axis=(1, 2)).argmax())
        panels.append(
            Panel(
                image=image.array[0, z].astype(np.float32),
                reference=truth[z],
                prediction=found[z],
                spacing_mm=image.geometry.spacing_mm[1:],
                caption=f"slice {z}: {what} liver",
            )
        )
    return Row(title=f"{case}: liver {dice:.2f}", panels=tuple(panels))


if __name__ == "__main__":
    main()
