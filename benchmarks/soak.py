"""Small jobs of every command, again and again in one workspace: does anything grow?

    python -m benchmarks.soak WORK [--hours H] [--rounds N] [--output FILE.json]

All jobs run in this process, through `autoliver`'s functions, so that memory which one of them
keeps adds up. After each round it counts the memory of this process, its open files, threads and
children, the files in the workspace and in the folder of temporary files, and the locks it holds.
Whatever else than memory differs from the second round to the last, is growth: exit code 1. Memory
is reported as the median of its slopes over all pairs of rounds after the first few (Theil-Sen).
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import autoliver
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.values import counted

_CT, _MR = "Dataset001_SoakCT", "Dataset002_SoakMR"
_CASES = 6
_SHORT = {"epochs": 1, "iterations": 3, "device": "cpu"}
_WARM = 5  # rounds after which memory is looked at


@dataclass(frozen=True, kw_only=True)
class Held:
    """What this process and its folders hold after a round.

    Attributes:
        seconds: What the round took.
        memory_kb: Resident memory of this process.
        open_files: Names of what this process has open, sorted.
        threads: Threads of this process.
        children: Processes that it began and that still run.
        locks: Locks on files that this process holds.
        files: Files in the workspace and beside it, by name, sorted.
        temporary: Files in the folder of temporary files.
    """

    seconds: float
    memory_kb: int
    open_files: list[str]
    threads: int
    children: int
    locks: int
    files: list[str]
    temporary: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=10**9, help="end after so many")
    parser.add_argument("--output", type=Path, help="a JSON file with every round")
    given = parser.parse_args()

    def say(number: int, held: Held) -> None:
        print(
            f"round {number}: {held.seconds:.0f} s, {held.memory_kb / 1024:.0f} MB,"
            f" {counted(len(held.open_files), 'open file')}, {counted(held.threads, 'thread')},"
            f" {counted(len(held.files), 'file')}",
            flush=True,
        )

    rounds = soak(given.work, hours=given.hours, rounds=given.rounds, say=say)
    if given.output:
        given.output.write_text(json.dumps([asdict(each) for each in rounds]))
    grown = growth(rounds)
    print(f"{counted(len(rounds), 'round')} in {sum(r.seconds for r in rounds) / 3600:.2f} h")
    print(f"memory: {memory_slope_kb(rounds):+.1f} kB a round after the first {_WARM}")
    print("\n".join(grown) or "nothing else grew")
    return int(bool(grown))


def soak(
    work: Path, *, hours: float, rounds: int, say: Callable[[int, Held], object]
) -> list[Held]:
    """Runs all jobs again and again.

    Args:
        work: A new folder for everything.
        hours: No round begins after this time.
        rounds: The most rounds.
        say: Is told the number of a round that ended, and what is held.
    """
    work.mkdir(parents=True)
    tempfile.tempdir = str(work / "temporary")
    (work / "temporary").mkdir()
    _write_phantoms(work / "data")
    found: list[Held] = []
    until = time.monotonic() + 3600 * hours
    while len(found) < rounds and (not found or time.monotonic() < until):
        begun = time.monotonic()
        one_round(work)
        found.append(_held(work, time.monotonic() - begun))
        say(len(found), found[-1])
    return found


def one_round(work: Path) -> None:
    """Runs every command on small phantoms; what the round before wrote is replaced."""
    workspace, out = work / "workspace", work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    data = {name: work / "data" / name for name in (_CT, _MR)}
    common: dict[str, Any] = {"workspace": workspace}
    for source in data.values():
        autoliver.verify(source, **common)
        autoliver.plan(source, preset="tiny", fresh=True, **common)
    training: dict[str, Any] = {**common, **_SHORT, "fresh": True}
    autoliver.train(_CT, "2d", folds=(0, 1), workers=2, **training)
    autoliver.train(_CT, "3d_fullres", folds="all", workers=0, **training)
    autoliver.train(_MR, "2d", folds="all", pretrained=_CT + "/2d", **training)
    autoliver.select(_CT, runs=("2d",), **common)
    images = data[_MR] / "imagesTr"
    autoliver.predict(
        images,
        out / "predicted",
        models=f"{_CT}/2d",
        folds="0,1",
        modality="MR",
        probabilities=True,
        uncertainty=True,
        preview=True,
        **common,
    )
    autoliver.evaluate(out / "predicted", data[_MR] / "labelsTr", dataset=_MR, **common)
    autoliver.report(_CT, **common)
    autoliver.report(prediction=out / "predicted", images=images, **common)
    autoliver.export(f"{_CT}/2d", out / "model.autoliver", folds="0,1", **common)
    autoliver.import_model(out / "model.autoliver", name="Again", overwrite=True, **common)
    autoliver.load_model("Again", device="cpu", **common)
    autoliver.adopt(images, out / "predicted", out / "Dataset003_Adopted", modality="MR", **common)
    autoliver.pool(out / "Dataset004_Pooled", [str(source) for source in data.values()], **common)
    autoliver.synthesize_fit(
        _CT,
        _MR,
        "soak",
        model="cyclegan",
        epochs=1,
        iterations=2,
        batch_size=1,
        patch=(32, 32),
        fresh=True,
        device="cpu",
        **common,
    )
    autoliver.synthesize_apply(
        "soak",
        out / "Dataset005_Synthetic",
        judge=f"{_MR}/2d@SoakCT",
        qc_min_dice=0.0,
        device="cpu",
        **common,
    )
    autoliver.status(**common)
    autoliver.clean(yes=True, **common)


def growth(rounds: list[Held]) -> list[str]:
    """Says in words what there is more of after the last round than after the second."""
    if len(rounds) < 3:
        return []
    before, after = rounds[1], rounds[-1]
    told = []
    for name in ("files", "temporary", "open_files"):
        had, has = getattr(before, name), getattr(after, name)
        more = [each for each in has if each not in had]
        if len(has) > len(had) or (name == "files" and more):
            told.append(f"{name}: {len(had)} -> {len(has)}, new: {', '.join(more[:5])}")
    for name in ("threads", "children", "locks"):
        had, has = getattr(before, name), getattr(after, name)
        if has > had:
            told.append(f"{name}: {had} -> {has}")
    return told


def memory_slope_kb(rounds: list[Held]) -> float:
    """The median slope of the resident memory over all pairs of rounds after the first few."""
    late = [each.memory_kb for each in rounds[_WARM:]]
    slopes = [(b - a) / (j - i) for (i, a), (j, b) in combinations(enumerate(late), 2)]
    return statistics.median(slopes) if slopes else 0.0


def _write_phantoms(data: Path) -> None:
    for seed, (name, contrast) in enumerate(((_CT, "CT"), (_MR, "T2"))):
        options = PhantomOptions(
            contrast=contrast,  # type: ignore[arg-type]
            shape_zyx=(8, 40, 44),
            spacing_mm=(8.0, 4.0, 4.0),
        )
        write_phantom_dataset(data, name=name, cases=_CASES, seed=seed, options=(options,))


def _held(work: Path, seconds: float) -> Held:
    gc.collect()
    own = Path("/proc/self")
    status = dict(
        line.split(":", 1) for line in (own / "status").read_text().splitlines() if ":" in line
    )
    opened = []
    for link in (own / "fd").iterdir():
        try:
            opened.append(str(link.readlink()).partition(":[")[0])
        except OSError:  # the listing of the folder itself
            continue
    tasks = [task / "children" for task in (own / "task").iterdir()]
    locks = Path("/proc/locks").read_text().splitlines()
    return Held(
        seconds=seconds,
        memory_kb=int(status["VmRSS"].split()[0]),
        open_files=sorted(opened),
        threads=int(status["Threads"]),
        children=sum(len(task.read_text().split()) for task in tasks),
        locks=sum(line.split()[4] == str(os.getpid()) for line in locks if "->" not in line),
        files=[name for top in ("workspace", "out") for name in _names(work / top)],
        temporary=_names(work / "temporary"),
    )


def _names(folder: Path) -> list[str]:
    """The names of all files in a folder, sorted, with the folder's own."""
    found = (path for path in folder.rglob("*") if not path.is_dir())
    return sorted(str(path.relative_to(folder.parent)) for path in found)


if __name__ == "__main__":
    sys.exit(main())
