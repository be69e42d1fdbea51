"""Runs five commands on every malformed image, label map, folder and name, and says what was bad.

    python -m benchmarks.hostile_images [--only TEXT] [--output FILE.json]

Exit code 1 if anything ended in a traceback, a hang, a signal, too much memory or a wrong result.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile.images import corpus
from hostile.runner import Runner


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="run members whose name holds this text")
    parser.add_argument("--every", type=int, default=1, help="run every Nth member")
    parser.add_argument("--start", type=int, default=0, help="leave out so many members")
    parser.add_argument("--output", type=Path, help="write all outcomes as JSON")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many minutes")
    asked = parser.parse_args()
    members = [each for each in corpus() if asked.only in each.name][asked.start :: asked.every]
    start, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        runner = Runner(Path(folder))
        for done, member in enumerate(members):
            if time.monotonic() - start > asked.minutes * 60:
                members = members[:done]
                break
            for one in runner.run(member):
                outcomes.append(one)
                if not one.good:
                    print(f"{one.member} | {one.command} | {one.verdict}", flush=True)
        runner.close()
    kinds = Counter(one.verdict for one in outcomes)
    print(f"{len(members)} inputs, {len(outcomes)} runs, {time.monotonic() - start:.0f} s")
    print(", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    bad = {one.member for one in outcomes if not one.good}
    slowest = max(outcomes, key=lambda one: one.seconds)
    largest = max(outcomes, key=lambda one: one.peak_kb)
    print(f"{len(bad)} inputs bad in {sum(not one.good for one in outcomes)} runs")
    print(f"slowest {slowest.seconds:.1f} s ({slowest.member}, {slowest.command})")
    print(f"largest {largest.peak_kb / 2**20:.2f} GB ({largest.member}, {largest.command})")
    if asked.output:
        asked.output.write_text(json.dumps([dataclasses.asdict(one) for one in outcomes], indent=1))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
