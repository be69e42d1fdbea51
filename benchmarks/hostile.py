"""Runs every command on artefacts that are malformed or make no sense, and counts what happens.

    python -m benchmarks.hostile [--every N] [--only TEXT] [--folder DIR] [--output FILE.json]

Exit code 1 if any of them ends neither in a result nor in one error. What is tried is made by
tests/hostile/artefacts.py; `--every 20` tries each twentieth.
"""

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile.artefacts import PARTS, Arena, corpus


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="try each N-th alone")
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="try that part alone")
    parser.add_argument("--without", default="\0", help="leave out those whose name holds this")
    parser.add_argument("--only", default="", help="try those alone whose name holds this text")
    parser.add_argument("--folder", type=Path, help="where the workspace is made, and kept")
    parser.add_argument("--output", type=Path, help="a JSON file for all outcomes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        arena = Arena(given.folder or Path(scratch))
        mutants = [
            m
            for m in corpus(arena.root, given.part or tuple(PARTS))
            if given.only in str(m) and given.without not in str(m)
        ]
        random.Random(given.seed).shuffle(mutants)
        counts: Counter[str] = Counter()
        rows = []
        for number, mutant in enumerate(mutants[:: given.every]):
            outcome = arena.judge(mutant)
            counts[outcome.kind] += 1
            rows.append([str(mutant), outcome.kind, outcome.told, outcome.seconds, outcome.more_mb])
            if not outcome.good:
                last = outcome.told.strip().splitlines()[-1:] or [""]
                print(f"{outcome.kind}: {mutant}: {last[0][:200]}", flush=True)
            if number % 100 == 99:
                print(
                    f"  {number + 1} of {len(mutants[:: given.every])}: {dict(counts)}", flush=True
                )
            if given.output and number % 20 == 19:
                given.output.write_text(json.dumps(rows))
    print(f"{sum(counts.values())} tried: {dict(counts)}")
    if given.output:
        given.output.write_text(json.dumps(rows))
    return int(any(kind not in ("result", "refused") for kind in counts))


if __name__ == "__main__":
    sys.exit(main())
