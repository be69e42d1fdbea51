"""What lists, indices and records cost when there are many cases, without any image work.

    python -m benchmarks.bookkeeping [--cases N ...] [--work DIR] [--output FILE.json]

The cases are faked: their images are empty files, their stored arrays a few bytes. Rows that happen
once per command are seconds for all cases; rows that happen after each case are milliseconds for
one case while all others are there. "growth" is the exponent between two sizes: 1 for what grows as
the number of cases. After each case, 0 is wanted: an exponent of 1 there is a square in total.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from autoliver.datasets.cases import Dataset, read_dataset
from autoliver.datasets.folds import make_folds
from autoliver.inference.lesions.measure import CaseLesions
from autoliver.inference.lesions.table import LesionFiles, LesionTable
from autoliver.inference.options import UsedModality
from autoliver.inference.record import (
    RECORD_FILE,
    DecidingOptions,
    InputFile,
    Prediction,
    WrittenFile,
    save_record,
)
from autoliver.io.volume import Geometry
from autoliver.preprocessing.case import CaseProperties
from autoliver.preprocessing.store import CaseFile, finished_cases

_AFTER = 5  # cases that are added to a record, for a mean
Rows = dict[str, tuple[float, str]]
T = TypeVar("T")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bookkeeping",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found: dict[int, Rows] = {}
    for count in sorted(arguments.cases):
        with tempfile.TemporaryDirectory(prefix="bookkeeping-", dir=arguments.work) as folder:
            found[count] = measure(Path(folder), count)
    show(found)
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measure(folder: Path, count: int) -> Rows:
    """Measures all rows with so many cases: name -> value and unit."""
    names = [f"case_{number:06}" for number in range(count)]
    return {**of_dataset(folder, names), **of_store(folder, names), **of_records(folder, names)}


def of_dataset(folder: Path, names: list[str]) -> Rows:
    source, index = folder / "Dataset001_Many", folder / "dataset.json"
    for part, tail in (("imagesTr", "_0000"), ("labelsTr", "")):
        (source / part).mkdir(parents=True)
        for name in names:
            (source / part / f"{name}{tail}.nii.gz").touch()
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": len(names),
        "file_ending": ".nii.gz",
    }
    (source / "dataset.json").write_text(json.dumps(description))
    dataset, listed = timed(lambda: read_dataset(source))
    _, saved = timed(lambda: dataset.save(index))
    _, loaded = timed(lambda: Dataset.load(index))
    _, folds = timed(lambda: make_folds(dataset.cases))
    return {
        "list a dataset": (listed, "s"),
        "write its index": (saved, "s"),
        "read its index": (loaded, "s"),
        "size of its index": (index.stat().st_size / 1e6, "MB"),
        "make five folds": (folds, "s"),
    }


def of_store(folder: Path, names: list[str]) -> Rows:
    store = folder / "store"
    store.mkdir()
    for name in names:
        files = [f"{name}{ending}" for ending in (".image.b2nd", ".label.b2nd", ".npz")]
        for file in files:
            (store / file).write_bytes(b"12345678")
        made = CaseFile(properties=properties(name), sizes=dict.fromkeys(files, 8))
        (store / f"{name}.json").write_bytes(made.to_bytes())  # without waiting for the disk
    done, seconds = timed(lambda: finished_cases(store))
    if len(done) != len(names):
        raise SystemExit(f"{len(done)} of {len(names)} faked cases count as finished")
    return {"find what is preprocessed": (seconds, "s")}


def properties(name: str) -> CaseProperties:
    """Those of a small scan."""
    return CaseProperties(
        name=name,
        modality="CT",
        geometry=Geometry(shape_zyx=(8, 8, 8), spacing_mm=(1.0, 1.0, 1.0)),
        transpose_forward=(0, 1, 2),
        box=((0, 8), (0, 8), (0, 8)),
        shape_zyx=(8, 8, 8),
        spacing_mm=(1.0, 1.0, 1.0),
    )


def of_records(folder: Path, names: list[str]) -> Rows:
    out = folder / "out"
    out.mkdir()
    path, maps = out / RECORD_FILE, [f"{name}.nii.gz" for name in names]
    image = (InputFile(name="image.nii.gz", size=10**8, mtime_ns=10**18, hash="0" * 32),)
    record = Prediction(
        model="Many",
        networks=(),
        cleaning=(),
        options=DecidingOptions(
            step=0.5, mirror=True, folds=None, roi=None, modality=None, exact=False
        ),
        label_maps=tuple(maps),
        inputs=dict.fromkeys(maps, image),
        voxels=dict.fromkeys(maps, "0" * 32),
        written={name: (WrittenFile(name=name, size=10**5, hash="0" * 64),) for name in maps},
        modalities=dict.fromkeys(maps, UsedModality()),
    )
    record.save(path)
    table = LesionFiles.beside(path, RECORD_FILE)
    without = CaseLesions()
    LesionTable(classes=("tumour",), voted=False, cases=dict.fromkeys(names, without)).save(
        table.json
    )
    (out / maps[0]).touch()

    def note() -> None:
        nonlocal record
        for number in range(_AFTER):
            record = record.with_case(
                maps[0], image, f"{number:032}", [out / maps[0]], UsedModality()
            )
            save_record(path, record)

    def tell() -> None:
        for number in range(_AFTER):
            table.add(names[0], CaseLesions(removed_without_organ=number))

    (_, noted), (_, told) = timed(note), timed(tell)
    return {
        "size of predict.json": (path.stat().st_size / 1e6, "MB"),
        "predict.json after each case": (noted / _AFTER * 1000, "ms"),
        "lesions.json after each case": (told / _AFTER * 1000, "ms"),
    }


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """The result of a call, and its seconds of processor time: other programs do not count."""
    begun = time.process_time()
    return work(), time.process_time() - begun


def show(found: dict[int, Rows]) -> None:
    """Prints the table."""
    counts = list(found)
    print(f"load before: {os.getloadavg()[0]:.1f}; seconds of processor time")
    print(f"| work | {' | '.join(f'{count:,} cases' for count in counts)} | growth |")
    print(f"|---|{'---|' * (len(counts) + 1)}")
    for name in found[counts[0]]:
        values = [found[count][name][0] for count in counts]
        shown = [f"{value:.3g} {found[counts[0]][name][1]}" for value in values]
        growth = "-"
        if len(counts) > 1 and min(values[0], values[-1]) > 0:
            growth = f"{math.log(values[-1] / values[0]) / math.log(counts[-1] / counts[0]):.2f}"
        print(f"| {name} | {' | '.join(shown)} | {growth} |")


if __name__ == "__main__":
    sys.exit(main())
