"""CHAOS (Kavur et al. 2021): CT of healthy livers, and MR of healthy abdomens in two sequences.

Each is a dataset of its own: they have other patients or other channels. The phases of T1-DUAL are
two channels of one case, since they are drawn once. Slices of images are in the order of their
instance numbers, and those of label maps in that of the numbers in their names. Which end comes
first was published in no document; programs that read the CT differ in it. So this order is checked
by the intensities, which also show label maps that are upside down.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from autoliver.errors import DatasetError
from autoliver.io.slices import series_files, slice_files
from autoliver.pipeline.conversion.kind import Found, Kind, Layer, folders_in

_DICOM, _GROUND = "DICOM_anon", "Ground"
_DEPTH = 3  # of CHAOS_Train_Sets/Train_Sets/MR/1 below the source
_CT_VALUES = {0: 0, 1: 1, 255: 1}
_LABELS = {"background": 0, "liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4}
# First and last value of each label, as the organisers give them.
_MR_RANGES = ((55, 70), (110, 135), (175, 200), (240, 255))
_MR_VALUES = {0: 0} | {
    value: label
    for label, (first, last) in enumerate(_MR_RANGES, 1)
    for value in range(first, last + 1)
}
_PHASES = ("InPhase", "OutPhase")


def _find_ct(source: Path) -> Iterator[Found]:
    for folder in _patients(source):
        if (folder / _DICOM).is_dir() or (folder / _GROUND).is_dir():
            yield _found(f"CT_{folder.name}", folder, (folder / _DICOM,), _CT_VALUES, folder.name)


def _find_mr(source: Path, *, sequence: str, phases: tuple[str, ...]) -> Iterator[Found]:
    for patient in _patients(source):
        folder = patient / sequence
        if folder.is_dir():
            name = f"{sequence[:2]}_{patient.name}"
            images = tuple(folder / _DICOM / phase for phase in phases)
            yield _found(name, folder, images, _MR_VALUES, patient.name)


def _patients(source: Path) -> Iterator[Path]:
    """The folders with numbers for names, of train sets and of test sets."""
    for folder in (source, *folders_in(source, depth=_DEPTH)):
        if folder.name.isdecimal():
            yield folder


def _found(
    name: str, folder: Path, images: tuple[Path, ...], values: dict[int, int], patient: str
) -> Found:
    for image in images:
        if not series_files(image):
            raise DatasetError(
                f"{name}: there is no DICOM series: expected files in {image}.",
                hint="Add the files, or move the case out of the folder.",
            )
    ground = folder / _GROUND
    labelled = bool(slice_files(ground))
    return Found(
        name=name,
        images=tuple(map(str, images)),
        layers=(Layer(path=str(ground), values=values),) if labelled else (),
        patient=patient,
    )


_PARTS = {
    "ct": Kind(
        title="CHAOS CT",
        layout="Train_Sets/CT/1/DICOM_anon/i0000,0000b.dcm",
        description={"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}},
        find=_find_ct,
    ),
    "t1-dual": Kind(
        title="CHAOS T1-DUAL",
        layout="Train_Sets/MR/1/T1DUAL/DICOM_anon/InPhase/IMG-0004-00001.dcm",
        description={
            "channel_names": {"0": "T1 in phase", "1": "T1 out of phase"},
            "labels": _LABELS,
        },
        find=partial(_find_mr, sequence="T1DUAL", phases=_PHASES),
    ),
    "t2-spir": Kind(
        title="CHAOS T2-SPIR",
        layout="Train_Sets/MR/1/T2SPIR/DICOM_anon/IMG-0002-00001.dcm",
        description={"channel_names": {"0": "T2"}, "labels": _LABELS},
        find=partial(_find_mr, sequence="T2SPIR", phases=("",)),
    ),
}


def _find(source: Path) -> Iterator[Found]:
    for part in _PARTS.values():
        yield from part.find(source)


CHAOS = Kind(
    title="CHAOS",
    layout="Train_Sets/CT/1/DICOM_anon/i0000,0000b.dcm with Train_Sets/CT/1/Ground/liver_GT_000.png"
    ", or Train_Sets/MR/1/T2SPIR/DICOM_anon",
    description={},
    find=_find,
    parts=_PARTS,
)
