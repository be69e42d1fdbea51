"""Puts pipes, devices, folders, links and odd names in the place of every path of every command.

    python -m benchmarks.hostile_paths [--only TEXT] [--every N] [--folder DIR] [--output FILE.json]

Exit code 1 if a command ends in a traceback, a hang, too much memory, several errors or as if
nothing were wrong, or changes what is not its own.
"""

import argparse
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile.paths import Paths, trials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="those alone whose name holds this text")
    parser.add_argument("--every", type=int, default=1, help="every Nth alone")
    parser.add_argument("--folder", type=Path, help="where the workspace is made, and kept")
    parser.add_argument("--output", type=Path, help="a JSON file for all outcomes")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chosen = [trial for trial in trials() if asked.only in trial.name]
    random.Random(asked.seed).shuffle(chosen)
    outcomes, start = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        paths = Paths(asked.folder or Path(scratch))
        for trial in chosen[:: asked.every]:
            one = paths.run(trial)
            outcomes.append(one)
            if not one.good:
                last = one.output.strip().splitlines()[-1:] or [""]
                print(f"{one.verdict} | {one.member} | {last[0][:200]}", flush=True)
        paths.close()
    kinds = Counter(one.verdict for one in outcomes)
    print(f"{len(outcomes)} runs, {time.monotonic() - start:.0f} s: {dict(kinds)}")
    if asked.output:
        asked.output.write_text(json.dumps([dataclasses.asdict(one) for one in outcomes], indent=1))
    return int(any(not one.good for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
