"""Disturbs commands while they write, and counts what is bad about what comes of it.

    python -m benchmarks.crash [--only SCENARIO ...] [--kind KIND ...] [--count N]
                               [--folder DIR] [--output FILE.json] [--seed S]

Kills, full and read-only disks, failing disks, inputs that vanish or are cut, wrong clocks, and
two processes at once; see tests/crash/faults.py. Exit code 1 if anything was bad. Only Linux, with
a C compiler.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from crash.faults import KINDS, SCENARIOS, Laboratory


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=tuple(SCENARIOS), action="append", help="that command")
    parser.add_argument("--kind", choices=KINDS, action="append", help="that kind of fault")
    parser.add_argument("--count", type=int, default=3, help="faults per command and kind")
    parser.add_argument("--at", type=int, help="that operation alone")
    parser.add_argument("--folder", type=Path, help="where the workspace is made, and kept")
    parser.add_argument("--output", type=Path, help="a JSON file for all outcomes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    rows, tried, bad = [], Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        laboratory = Laboratory(folder.resolve())
        for name in given.only or SCENARIOS:
            scenario = SCENARIOS[name]
            begun = time.monotonic()
            try:
                reference = laboratory.reference(scenario)
            except AssertionError as error:
                print(f"{name}: cannot be run undisturbed: {error}", flush=True)
                bad[name, "none"] += 1
                continue
            print(
                f"{name}: {reference.operations} operations, {reference.reads} reads, "
                f"{reference.seconds:.1f} s ({time.monotonic() - begun:.0f} s for references)",
                flush=True,
            )
            for kind in given.kind or KINDS:
                faults = list(laboratory.faults(scenario, kind, given.count, rng))
                if given.at is not None:
                    faults = [type(fault)(kind, given.at, fault.error) for fault in faults[:1]]
                for fault in faults:
                    outcome = laboratory.judge(scenario, fault)
                    tried[name, kind] += 1
                    bad[name, kind] += bool(outcome.bad)
                    rows.append(asdict(outcome))
                    if outcome.bad:
                        print(f"  {name}: {fault} ({outcome.where}): {' | '.join(outcome.bad)}")
                        sys.stdout.flush()
                if given.output:
                    given.output.write_text(json.dumps(rows, indent=1))
        laboratory.close()
    print(_table(tried, bad))
    return int(any(bad.values()))


def _table(tried: Counter[tuple[str, str]], bad: Counter[tuple[str, str]]) -> str:
    """A table of commands by kinds: bad of tried."""
    kinds = [kind for kind in KINDS if any(each == kind for _, each in tried)]
    lines = ["| command | " + " | ".join(kinds) + " |", "|---" * (1 + len(kinds)) + "|"]
    for name in dict.fromkeys(name for name, _ in tried):
        cells = [f"{bad[name, kind]} of {tried[name, kind]}" for kind in kinds]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, f"{sum(bad.values())} bad of {sum(tried.values())}"])


if __name__ == "__main__":
    sys.exit(main())
