"""Published data of abdomens as miniature trees: CHAOS, LiTS, MSD, DLDS, BTCV, AMOS.

Images are bright where a label is, so that a label map in the wrong place can be told.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry

SHAPE = (7, 20, 24)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0)
TILTED = (1.0, 0.0, 0.0, 0.0, 0.6, -0.8)
HEAD_FIRST = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # the normal points to the feet
GRID = Geometry(shape_zyx=SHAPE, spacing_mm=(3.0, 0.75, 0.7), origin_xyz=(-5.0, 9.0, 31.0))

Labels = npt.NDArray[np.uint8]


def organs(seed: int, count: int = 4, shape: tuple[int, int, int] = SHAPE) -> Labels:
    """A label map (z, y, x) with so many boxes, which no flip turns into itself."""
    label = np.zeros(shape, np.uint8)
    for value in range(1, count + 1):
        z, y, x = (seed + value) % 3, 1 + 4 * (value - 1), 2 + (value + seed) % 4
        label[z : z + 3, y : y + 3, x : x + 4 + value] = value
    return label


def grey(label: Labels, seed: int = 0) -> npt.NDArray[np.int16]:
    """Voxels that are bright by their label, on a background with a slope."""
    rng = np.random.default_rng(seed)
    slope = np.arange(label.shape[1])[None, :, None] + 5 * np.arange(label.shape[0])[:, None, None]
    return (slope + 400 * label.astype(np.int16) + rng.integers(0, 9, label.shape)).astype(np.int16)


def write_series(
    folder: Path,
    array: npt.NDArray[np.int16],
    names: Sequence[str],
    *,
    orientation: tuple[float, ...] = AXIAL,
    downwards: bool = False,
    modality: str = "CT",
    first_instance: int = 1,
    step: int = 1,
    placed: bool = True,
) -> None:
    """Writes slices as DICOM files in the order of instance numbers, each of its own series.

    Args:
        array: (n, y, x).
        downwards: Whether places go against the normal of the slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:]) * (-3.0 if downwards else 3.0)
    storage = CTImageStorage if modality == "CT" else MRImageStorage
    for index, (plane, name) in enumerate(zip(array, names, strict=True)):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = storage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(str(folder / name), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
        data.Modality, data.PatientID, data.SeriesNumber = modality, "anonymous", 1
        data.InstanceNumber = first_instance + step * index
        data.Rows, data.Columns = plane.shape
        data.PixelSpacing = [0.75, 0.7]
        if placed:
            data.ImagePositionPatient = [round(float(v), 6) for v in index * normal + (3, -7, 11)]
            data.ImageOrientationPatient = list(orientation)
            data.SliceThickness = 3.0
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        if modality == "CT":
            data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = plane.astype("<i2").tobytes()
        pydicom.dcmwrite(folder / name, data, enforce_file_format=True)


def write_pngs(folder: Path, array: npt.NDArray[np.uint8], names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for plane, name in zip(array, names, strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(plane)), str(folder / name))


def as_one_bit(source: Path) -> Path:
    """Saves the PNG files of a tree with one bit for each pixel."""
    for path in source.rglob("*.png"):
        with Image.open(path) as picture:
            one_bit = picture.point(bool, mode="1")
        one_bit.save(path)
    return source


def write_chaos_ct(
    source: Path,
    patients: Sequence[int] = (1, 5),
    *,
    orientation: tuple[float, ...] = AXIAL,
    downwards: bool = True,
    value: int = 255,
    drawn: slice = slice(None),
    padded: bool = True,
) -> Path:
    """Train_Sets/CT.

    Args:
        drawn: Which way the slices of label maps are numbered.
        padded: Whether numbers in names have zeros in front, so that text sorts them.
    """
    for patient in patients:
        folder = source / f"Train_Sets/CT/{patient}"
        label = organs(patient, 1)
        count, digits = len(label), 4 if padded else 1
        dicoms = [f"i{n:0{digits}d},0000b.dcm" for n in range(count)]
        write_series(
            folder / "DICOM_anon",
            (grey(label, patient) + 1024).astype(np.int16),
            dicoms,
            orientation=orientation,
            downwards=downwards,
        )
        pngs = [f"liver_GT_{n:03d}.png" for n in range(count)]
        write_pngs(folder / "Ground", (label * np.uint8(value))[drawn], pngs)
    return source


MR_VALUES = np.array([0, 63, 126, 189, 252], np.uint8)


def write_chaos_mr(
    source: Path,
    patients: Sequence[int] = (1, 2),
    *,
    orientation: tuple[float, ...] = AXIAL,
    downwards: bool = False,
) -> Path:
    """Train_Sets/MR: both sequences, T1-DUAL with the two phases numbered in turns."""
    for patient in patients:
        dual = source / f"Train_Sets/MR/{patient}/T1DUAL"
        label = organs(patient)
        count = len(label)
        names = [f"IMG-0004-{n:05d}" for n in range(1, 2 * count + 1)]
        for phase, first in (("InPhase", 1), ("OutPhase", 0)):
            write_series(
                dual / "DICOM_anon" / phase,
                grey(label, 7 + first),
                [f"{name}.dcm" for name in names[first::2]],
                orientation=orientation,
                downwards=downwards,
                modality="MR",
                first_instance=1 + first,
                step=2,
            )
        write_pngs(dual / "Ground", MR_VALUES[label], [f"{name}.png" for name in names[1::2]])
        spir = source / f"Train_Sets/MR/{patient}/T2SPIR"
        label = organs(patient + 1, shape=(5, 20, 24))
        names = [f"IMG-0002-{n:05d}" for n in range(1, 6)]
        write_series(
            spir / "DICOM_anon",
            grey(label, 9),
            [f"{name}.dcm" for name in names],
            orientation=orientation,
            downwards=downwards,
            modality="MR",
        )
        write_pngs(spir / "Ground", MR_VALUES[label], [f"{name}.png" for name in names])
    return source


def write_pair(image: Path, label: Path | None, seed: int, count: int) -> Labels:
    """An image, and its label map beside or elsewhere."""
    array = organs(seed, count)
    write_image(image, grey(array, seed)[None], GRID)
    if label is not None:
        write_label(label, array, GRID)
    return array


def write_lits(source: Path) -> Path:
    """Two batches with a volume each, and a test volume."""
    write_pair(source / "batch1/volume-0.nii", source / "batch1/segmentation-0.nii", 1, 2)
    write_pair(source / "batch2/volume-28.nii", source / "batch2/segmentation-28.nii", 2, 2)
    write_pair(source / "test/test-volume-3.nii", None, 3, 2)
    return source


def write_msd(source: Path) -> Path:
    """A task of the Decathlon, with the hidden files of its archives."""
    names = ("liver_0", "liver_11")
    for seed, name in enumerate(names):
        write_pair(source / f"imagesTr/{name}.nii.gz", source / f"labelsTr/{name}.nii.gz", seed, 2)
        (source / f"imagesTr/._{name}.nii.gz").write_bytes(b"\0\5\26\7")
    (source / "dataset.json").write_text(
        json.dumps(
            {
                "name": "LIVER",
                "modality": {"0": "CT"},
                "labels": {"0": "background", "1": "liver", "2": "cancer"},
                "numTraining": 2,
                "training": [
                    {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"}
                    for n in names
                ],
                "test": ["./imagesTs/liver_1.nii.gz"],
            }
        )
    )
    return source


def write_dlds(
    source: Path,
    *,
    orientation: tuple[float, ...] = AXIAL,
    downwards: bool = False,
    placed: bool = False,
) -> Path:
    """Two patients with two series each, of which one has no mask."""
    for number, (patient, series) in enumerate((("0001", 1), ("0001", 12), ("0002", 3))):
        folder = source / f"Segmentation/{patient}/{series}"
        label = organs(number, 1)
        names = [f"{n}.dicom" for n in range(1, len(label) + 1)]
        kept = {"orientation": orientation, "downwards": downwards, "modality": "MR"}
        write_series(folder / "images", grey(label, number), names, **kept)
        if (patient, series) != ("0001", 12):
            write_series(folder / "masks", label.astype(np.int16), names, placed=placed, **kept)
    return source


def write_btcv(source: Path) -> Path:
    for number in (1, 21):
        write_pair(
            source / f"img/img{number:04d}.nii.gz",
            source / f"label/label{number:04d}.nii.gz",
            number,
            5,
        )
    return source


def write_amos(source: Path) -> Path:
    for part, number in (("Tr", 1), ("Tr", 507), ("Va", 40), ("Ts", 600)):
        name = f"amos_{number:04d}.nii.gz"
        label = None if part == "Ts" else source / f"labels{part}" / name
        write_pair(source / f"images{part}" / name, label, number, 5)
    return source
