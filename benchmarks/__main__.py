"""Runs autoliver and nnU-Net 2.8.1 on the same work by turns and prints what came out.

    python -m benchmarks [--only ROW ...] [--peer DIR] [--quick] [--output FILE.json]

nnU-Net has an environment of its own, made by ../shared/tools/peer-nnunet. Exit code 1 where a row
failed; a missed target is no failure.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import rows_arrays, rows_datasets, rows_roi
from benchmarks.measure import Measured, alternate, median
from benchmarks.row import Bench, Row, Skip

_SHARED = Path(__file__).parents[2] / "shared"
ROWS: dict[str, Callable[[Bench], Row]] = {
    "cubic": rows_arrays.cubic,
    "cubic-3d": rows_arrays.cubic_3d,
    "labels": rows_arrays.labels,
    "fingerprint": rows_datasets.fingerprint,
    "plan": rows_arrays.plan,
    "preprocess-ct": rows_datasets.preprocess_ct,
    "preprocess-mr": rows_datasets.preprocess_mr,
    "augmentation": rows_arrays.augmentation,
    "export": rows_arrays.export,
    "scores": rows_arrays.scores,
    "predict": rows_datasets.predict,
    "roi": rows_roi.roi,
    "help": rows_datasets.help_command,
    "plan-again": rows_datasets.plan_again,
}
_HEAD = (
    *("row", "work", "ours s", "nnU-Net s", "speed", "cpu", "ours MB", "nnU-Net MB"),
    # Cores that other programs kept busy: during our runs, during nnU-Net's.
    *("others", "targets"),
)
_SHOWN_FAR = 4  # digits of ratios and differences


def main() -> int:
    arguments = read_arguments(ROWS)
    # Children inherit it, whatever they believe the number of cores to be.
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=arguments.work) as folder:
        bench = Bench(
            folder=Path(folder),
            shared=arguments.shared,
            peer_folder=None if arguments.no_peer else arguments.peer,
            threads=len(cores),
            quick=arguments.quick,
        )
        rows = {name: ROWS[name] for name in arguments.only or ROWS}
        return report(bench, rows, repeats=arguments.repeats, output=arguments.output)


def read_arguments(
    rows: Mapping[str, object], *, what: str | None = __doc__, device: str | None = None
) -> argparse.Namespace:
    """The command line; with `device` as its default, there is an option for it."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=what, formatter_class=how
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(rows), metavar="ROW", help=", ".join(rows)
    )
    parser.add_argument("--peer", type=Path, default=Path("/tmp/peer"))
    parser.add_argument("--no-peer", action="store_true", help="measure our side alone")
    parser.add_argument("--shared", type=Path, default=_SHARED, help="real data, golden values")
    parser.add_argument("--work", type=Path, help="where the temporary folder is made")
    parser.add_argument("--threads", type=int, default=2, help="cores for each side")
    parser.add_argument("--repeats", type=int, help="rounds; default 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="small inputs")
    if device is not None:
        parser.add_argument("--device", default=device)
    parser.add_argument("--output", type=Path, help="JSON")
    arguments = parser.parse_args()
    # As Ctrl-C: what is running is stopped, the temporary folder removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    arguments.repeats = arguments.repeats or (1 if arguments.quick else 3)
    if not arguments.no_peer and not (arguments.peer / "bin/python").exists():
        parser.error(
            f"{arguments.peer}: no nnU-Net environment there; make it with "
            f"'{arguments.shared}/tools/peer-nnunet {arguments.peer}', or pass --no-peer"
        )
    return arguments


def report(
    bench: Bench,
    rows: Mapping[str, Callable[[Bench], Row]],
    *,
    repeats: int,
    output: Path | None,
) -> int:
    """Measures rows one by one, prints each as it is done; 1 where one failed, else 0."""
    print(line(_HEAD), line(["---"] * len(_HEAD)), sep="\n", flush=True)
    results = []
    for name, make in rows.items():
        results.append({"row": name, **_result(bench, make, repeats)})
        print(line(cells(results[-1])), flush=True)
        if output is not None:
            text = json.dumps(_whole(bench, results), indent=1)
            output.write_text(text + "\n")
    return int(any("error" in result for result in results))


def _result(bench: Bench, make: Callable[[Bench], Row], repeats: int) -> dict[str, Any]:
    try:
        return measure(make(bench), repeats)
    except Skip as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # noqa: BLE001 - one row's failure must not cost the others
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".replace("\n", " ")}


def measure(row: Row, repeats: int) -> dict[str, Any]:
    """Both sides by turns: medians, ratios, differences and which targets are met."""
    calls = {"ours": row.ours} | ({} if row.peer is None else {"peer": row.peer})
    runs = alternate(calls, min(repeats, row.repeats))
    ours = median(runs["ours"])
    peer = median(runs["peer"]) if "peer" in runs else None
    numbers = row.numbers(ours, peer)
    return {
        "work": row.work,
        "ours": _figures(ours, runs["ours"]),
        "peer": None if peer is None else _figures(peer, runs["peer"]),
        "numbers": numbers,
        "targets": {str(target): target.met(numbers) for target in row.targets},
    }


def _figures(middle: Measured, runs: Sequence[Measured]) -> dict[str, Any]:
    return {
        "seconds": round(middle.seconds, 4),
        "cpu_seconds": round(middle.cpu_seconds, 4),
        "peak_mb": round(middle.peak_mb, 1),
        "others": round(middle.others, 2),
        "each_seconds": [round(one.seconds, 4) for one in runs],
    }


def _whole(bench: Bench, results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "command": ["python", "-m", "benchmarks", *sys.argv[1:]],
        "threads": bench.threads,
        "quick": bench.quick,
        "load_average": os.getloadavg(),
        "rows": results,
    }


def cells(result: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    if "work" not in result:
        why = result.get("skipped") or result.get("error", "")
        state = "skipped" if "skipped" in result else "FAILED"
        return [result["row"], f"{state}: {why}", *[""] * (len(_HEAD) - 2)]
    ours, peer, numbers = result["ours"], result["peer"] or {}, result["numbers"]
    met = {True: "met", False: "MISSED", None: "not measured"}
    wanted = []
    for target, state in result["targets"].items():
        found = numbers.get(target.rsplit(" ", 2)[0])
        shown = "" if found is None else f", is {found:.{_SHOWN_FAR}g}"
        wanted.append(f"{target}: {met[state]}{shown}")
    return [
        result["row"],
        result["work"],
        f"{ours['seconds']:.2f}",
        f"{peer['seconds']:.2f}" if peer else "-",
        f"{numbers['speed']:.1f}x" if peer else "-",
        f"{numbers['cpu']:.1f}x" if peer else "-",
        f"{ours['peak_mb']:.0f}",
        f"{peer['peak_mb']:.0f}" if peer else "-",
        f"{ours['others']:.1f}" + (f", {peer['others']:.1f}" if peer else ""),
        "; ".join(wanted),
    ]


def line(values: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(values)} |"


if __name__ == "__main__":
    sys.exit(main())
