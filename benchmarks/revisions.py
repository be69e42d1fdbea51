"""Compares two checkouts of autoliver on rows of the benchmark, in alternation, without nnU-Net.

    git worktree add ../before COMMIT
    python -m benchmarks.revisions ../before [--only ROW ...] [--repeats N] [--quick]

A change that is not meant to alter speed shows ratios near 1. Each side plans and preprocesses in a
folder of its own. Exit code 1 where a row failed.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.__main__ import ROWS, line
from benchmarks.measure import MeasureError, alternate, median
from benchmarks.row import Bench, Skip

_SHARED = Path(__file__).parents[2] / "shared"
_DEFAULT = (
    *("cubic", "cubic-3d", "labels", "fingerprint", "plan", "preprocess-ct", "preprocess-mr"),
    *("augmentation", "export"),
)
_HEAD = ("row", "before s", "now s", "now/before", "CPU now/before", "memory now/before")


def main() -> int:
    arguments = _arguments()
    print(line(_HEAD), line(["---"] * len(_HEAD)), sep="\n", flush=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="revisions-") as folder:
        now = Bench(
            folder=Path(folder) / "now",
            shared=arguments.shared,
            peer_folder=None,
            threads=len(os.sched_getaffinity(0)),
            quick=arguments.quick,
        )
        before = dataclasses.replace(
            now, folder=Path(folder) / "before", checkout=arguments.before.resolve()
        )
        for name in arguments.only:
            try:
                calls = {"before": ROWS[name](before).ours, "now": ROWS[name](now).ours}
                runs = alternate(calls, arguments.repeats)
            except (Skip, MeasureError) as error:
                failed |= isinstance(error, MeasureError)
                print(line([name, str(error), *[""] * (len(_HEAD) - 2)]), flush=True)
                continue
            one, two = median(runs["before"]), median(runs["now"])
            ratios = (
                two.seconds / one.seconds,
                two.cpu_seconds / one.cpu_seconds,
                two.peak_mb / one.peak_mb,
            )
            times = (f"{one.seconds:.2f}", f"{two.seconds:.2f}")
            print(line([name, *times, *(f"{ratio:.2f}" for ratio in ratios)]), flush=True)
    return int(failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.revisions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), metavar="ROW", default=_DEFAULT)
    parser.add_argument("--shared", type=Path, default=_SHARED, help="real data, golden values")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--quick", action="store_true", help="small inputs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
