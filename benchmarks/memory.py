"""Measures the memory of every stage on one large case against what --memory-gb allows.

    python -m benchmarks.memory [--shape Z Y X] [--memory-gb GB] [--only STAGE ...] [--plain]

A CT-like case is generated slice by slice, with a label map, beside three small ones on the same
spacing. What is predicted is of the same size, with a small body in air, as windows of nothing but
air are computed only once. Each stage is a command in a process of its own. The peak is that of its
whole process tree (pages that processes share count once), and is given in GB and in units of the
image in float32.
Nothing may take more than --most-gb: a stage that does is ended, and said to be.
"""

import argparse
import gzip
import json
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Call, MeasureError, run

_GB = 2**30
_SPACING_MM = 0.5
_SMALL = (48, 64, 64)  # (z, y, x) of the cases that the model is trained with
_AIR, _TISSUE, _LIVER, _LESION = -1024, 40, 110, 60
_NOISE = 12.0
_NOISES = 8  # slices of noise that are drawn; every slice of the image is one of them, shifted
_INT16, _UINT8 = 4, 2  # codes of NIfTI
_LABELS = {"background": 0, "liver": 1, "spleen": 2}
_TRAIN = ["--epochs", "1", "--iterations", "2", "--batch-size", "2"]
_PREDICT = ["--no-mirror", "--step", "1", "--device", "cpu", "--overwrite"]

Slice = npt.NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where the stages work, and what they may use.

    Attributes:
        folder: Holds the datasets, the workspace and all results; removed afterwards.
        memory_gb: What --memory-gb says.
        most_gb: Stages that take more are ended.
        ending: ".nii.gz" or ".nii".
    """

    folder: Path
    memory_gb: float
    most_gb: float
    ending: str

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @property
    def big(self) -> Path:
        """The dataset of the large case."""
        return self.folder / "Dataset002_Big"

    @property
    def small(self) -> Path:
        """The dataset of the small cases."""
        return self.folder / "Dataset001_Small"


# Stage -> its command after `autoliver`, without --workspace and --memory-gb.
Stages = dict[str, Callable[[Bench], list[str]]]


def main() -> int:
    asked = _arguments()
    shape = (asked.shape[0], asked.shape[1], asked.shape[2])
    with tempfile.TemporaryDirectory(prefix="memory-", dir=asked.work) as folder:
        ending = ".nii" if asked.plain else ".nii.gz"
        bench = Bench(
            folder=Path(folder), memory_gb=asked.memory_gb, most_gb=asked.most_gb, ending=ending
        )
        _write_datasets(bench, shape)
        stages = asked.only or list(STAGES)
        if any(name in PREDICTIONS for name in stages):
            file = bench / f"new/new_0000{bench.ending}"
            file.parent.mkdir()
            write_case(file, None, shape_zyx=shape, seed=9, body=0.05)
            _train_small(bench)
        if "convert" in stages:
            _write_series(bench / "series", shape)
        rows = [_measure(bench, name, shape) for name in stages]
    if asked.output:
        asked.output.write_text(json.dumps(rows, indent=1))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(150, 512, 512), metavar="N")
    parser.add_argument("--memory-gb", type=float, default=8.0)
    parser.add_argument("--most-gb", type=float, default=12.0)
    parser.add_argument("--only", nargs="+", choices=list(STAGES), metavar="STAGE")
    parser.add_argument("--plain", action="store_true", help="do not compress the files")
    parser.add_argument("--work", type=Path, help="folder for all files")
    parser.add_argument("--output", type=Path, help="write all numbers as JSON")
    return parser.parse_args()


def _measure(bench: Bench, name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Runs a stage; prints and returns its peak, its time and how it ended."""
    image_gb = float(np.prod(shape)) * 4 / _GB
    call = _call(bench, name, STAGES[name](bench))
    ended = "done"
    try:
        measured = run(call)
    except MeasureError as error:
        measured, ended = error.measured, _reason(call.log)
    peak_gb = measured.peak_mb / 1024
    row = {
        "stage": name,
        "shape": list(shape),
        "memory_gb": bench.memory_gb,
        "peak_gb": round(peak_gb, 3),
        "images": round(peak_gb / image_gb, 2),
        "seconds": round(measured.seconds, 1),
        "ended": ended,
    }
    print(
        f"{name:16} {peak_gb:7.2f} GB of {bench.memory_gb:g}  {peak_gb / image_gb:6.2f} images  "
        f"{measured.seconds:7.1f} s  {ended}",
        flush=True,
    )
    return row


def _reason(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error")] or lines[-1:]
    return errors[-1] if errors else "ended"


def _call(bench: Bench, name: str, command: list[str]) -> Call:
    limits = ["--memory-gb", f"{bench.memory_gb:g}"]
    return Call(
        command=(
            *("nice", "-n", "5", sys.executable, "-m", "autoliver"),
            *(*command, "--workspace", str(bench / "work"), *limits),
        ),
        settings={"OMP_NUM_THREADS": "1"},
        log=bench / f"logs/{name}.txt",
        most_mb=bench.most_gb * 1024,
    )


def _train_small(bench: Bench) -> None:
    """Makes the models that the large case is predicted with."""
    plan = ["plan", str(bench.small), "--preset", "tiny"]
    run(_call(bench, "small-plan", plan))
    for configuration in ("2d", "3d_fullres"):
        train = ["train", "Small", configuration, "--fold", "all", "--device", "cpu", *_TRAIN]
        run(_call(bench, f"small-{configuration}", train))


def _predict(configuration: str, *options: str) -> Callable[[Bench], list[str]]:
    def command(bench: Bench) -> list[str]:
        return [
            *("predict", "-i", str(bench / "new")),
            *("-o", str(bench / f"out-{configuration}"), "-m", f"Small/{configuration}"),
            *(*_PREDICT, *options),
        ]

    return command


PREDICTIONS: Stages = {
    "predict-2d": _predict("2d"),
    "predict-3d": _predict("3d_fullres", "--preview"),
    "uncertainty": _predict("3d_fullres", "--uncertainty"),
    "probabilities": _predict("3d_fullres", "--probabilities"),
}
STAGES: Stages = {
    "verify": lambda bench: ["verify", str(bench.big)],
    "plan": lambda bench: ["plan", str(bench.big), "--preset", "tiny"],
    "preprocess": lambda _: ["preprocess", "Big", "3d_fullres"],
    "preprocess-2d": lambda _: ["preprocess", "Big", "2d"],
    "train": lambda _: ["train", "Big", "3d_fullres", "--fold", "all", "--device", "cpu", *_TRAIN],
    **PREDICTIONS,
    "evaluate": lambda bench: [
        *("evaluate", "-p", str(bench / "found"), "-r", str(bench.big / "labelsTr")),
        *("-d", str(bench.big), "--subset", "-o", str(bench / "scores")),
    ],
    "report": lambda bench: [
        *("report", "-p", str(bench / "found"), "-i", str(bench / "images")),
        *("-r", str(bench.big / "labelsTr"), "-o", str(bench / "report.html")),
    ],
    "report-alone": lambda bench: [
        *("report", "-p", str(bench / "found"), "-i", str(bench / "images")),
        *("-o", str(bench / "alone.html")),
    ],
    "adopt": lambda bench: [
        *("adopt", "-i", str(bench / "images"), "-p", str(bench / "found")),
        *("--like", str(bench.big), "--link", str(bench / "Dataset003_Adopted")),
    ],
    "pool": lambda bench: [
        *("pool", str(bench / "Dataset004_Pool"), "--add", str(bench.small)),
        *("--add", str(bench.big), "--drop-duplicates"),
    ],
    "convert": lambda bench: [
        *("convert", "dicom", str(bench / "series"), str(bench / "Dataset005_Series")),
    ],
}


def _write_datasets(bench: Bench, shape: tuple[int, int, int]) -> None:
    for folder, large in ((bench.small, None), (bench.big, shape)):
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True)
        cases = {f"small_{n}": _SMALL for n in range(3)}
        if large:
            cases["big"] = large
        for number, (name, size) in enumerate(cases.items()):
            write_case(
                folder / "imagesTr" / f"{name}_0000{bench.ending}",
                folder / "labelsTr" / f"{name}{bench.ending}",
                shape_zyx=size,
                seed=number,
            )
        description = {
            "channel_names": {"0": "CT"},
            "labels": _LABELS,
            "numTraining": len(cases),
            "file_ending": bench.ending,
        }
        (folder / "dataset.json").write_text(json.dumps(description))
    # The large case alone, with its label map as what was predicted.
    for part, source in (("images", "imagesTr/big_0000"), ("found", "labelsTr/big")):
        (bench / part).mkdir()
        file = bench.big / f"{source}{bench.ending}"
        (bench / part / file.name).hardlink_to(file)


def write_case(
    image: Path,
    label: Path | None,
    *,
    shape_zyx: tuple[int, int, int],
    seed: int,
    body: float = 1.0,
) -> None:
    """Writes a CT-like image (int16) and its label map (uint8), slice by slice.

    A body of noise with a liver and a lesion lies in constant air, which fills half of the image.

    Args:
        image: The NIfTI file of the image; packed if it ends in .gz.
        label: The NIfTI file of its label map; None to write none.
        shape_zyx: Size.
        seed: Of the noise.
        body: Size of the body; 1: it reaches from the first to the last slice.
    """
    with ExitStack() as stack:
        files = [_opened(stack, path) for path in (image, label) if path]
        for file, kind in zip(files, (_INT16, _UINT8), strict=False):
            file.write(_header(shape_zyx, kind))
        for planes in _slices(shape_zyx, seed, body):
            for file, plane in zip(files, planes, strict=False):
                file.write(plane.tobytes())


def _slices(
    shape_zyx: tuple[int, int, int], seed: int, size: float
) -> Iterator[tuple[Slice, Slice]]:
    depth, height, width = shape_zyx
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, _NOISE, (_NOISES, height, width)).astype(np.int16)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] / size
    x = np.linspace(-1, 1, width, dtype=np.float32) / size
    body = (y / 0.7) ** 2 + (x / 0.9) ** 2 <= 1
    for z in np.linspace(-1, 1, depth) / size:
        where = ((x + 0.4) / 0.3) ** 2 + (y / 0.3) ** 2 + (z / 0.5) ** 2 <= 1
        inside = ((x + 0.4) / 0.08) ** 2 + (y / 0.08) ** 2 + (z / 0.1) ** 2 <= 1
        label = np.where(inside, 2, np.where(where, 1, 0)).astype(np.uint8)
        values = np.array([_TISSUE, _LIVER, _LESION], dtype=np.int16)[label]
        values += np.roll(noise[rng.integers(_NOISES)], int(rng.integers(height)), axis=0)
        values[~body if abs(z) <= 1 else ...] = _AIR
        yield values, label


def _write_series(folder: Path, shape_zyx: tuple[int, int, int]) -> None:
    """Writes the image as a DICOM series, one file a slice."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    series, study = generate_uid(), generate_uid()
    for z, (values, _) in enumerate(_slices(shape_zyx, seed=3, size=1.0)):
        data, data.file_meta = Dataset(), FileMetaDataset()
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "CT", series, study
        data.PatientID, data.SeriesNumber, data.InstanceNumber = "1", 1, z + 1
        data.ImagePositionPatient = [0.0, 0.0, z * _SPACING_MM]
        data.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        data.PixelSpacing, data.SliceThickness = [_SPACING_MM, _SPACING_MM], _SPACING_MM
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.Rows, data.Columns = shape_zyx[1:]
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.PixelData = values.astype("<i2").tobytes()
        data.save_as(folder / f"{z:04}.dcm", enforce_file_format=True)


def _opened(stack: ExitStack, path: Path) -> BinaryIO:
    file: BinaryIO = stack.enter_context(path.open("wb"))
    if path.suffix == ".gz":
        packed = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1)
        file = cast(BinaryIO, stack.enter_context(packed))
    return file


def _header(shape_zyx: tuple[int, int, int], kind: int) -> bytes:
    """A NIfTI-1 header of an image of a type, on an upright grid."""
    header = bytearray(352)
    depth, height, width = shape_zyx
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, width, height, depth, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, kind, 16 if kind == _INT16 else 8)
    struct.pack_into("<8f", header, 76, 1.0, *[_SPACING_MM] * 3, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)
    struct.pack_into("<B", header, 123, 2)  # millimetres
    struct.pack_into("<2h", header, 252, 0, 1)
    for row in range(3):
        values = [_SPACING_MM if column == row else 0.0 for column in range(4)]
        struct.pack_into("<4f", header, 280 + 16 * row, *values)
    header[344:348] = b"n+1\0"
    return bytes(header)


if __name__ == "__main__":
    sys.exit(main())
