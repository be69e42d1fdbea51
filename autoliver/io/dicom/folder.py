"""A folder with the slices of one DICOM series, at any depth, is an image like a file."""

from pathlib import Path

from autoliver.commands import command
from autoliver.errors import DatasetError
from autoliver.io.dicom.group import find_series
from autoliver.io.dicom.planes import open_dataset
from autoliver.io.dicom.read import read_series
from autoliver.io.dicom.series import Series
from autoliver.io.dicom.walk import dicom_files
from autoliver.io.header import Header, OpenedFile
from autoliver.values import counted, first_few

_SHOWN = 3


def open_folder(folder: Path) -> OpenedFile:
    """Opens the only series of a folder; localizers and segmentations beside it are left out.

    Raises:
        DatasetError: It holds no series, several, or one that makes no volume.
        MachineError: The system refuses to read a file.
    """
    series = series_of_folder(folder)
    header = Header(
        geometry=series.geometry,
        channels=1,
        pixel_type="DICOM",
        integer=True,
        note=" ".join(series.notes).removesuffix("."),
    )
    return OpenedFile(header, lambda: read_series(series).array)


def series_of_folder(folder: Path) -> Series:
    """Returns the only series of a folder; raises as `open_folder` does."""
    found = find_series(dicom_files(folder))
    refused = [each for each in found.refused if not each.localizer]
    if len(found.series) == 1 and not refused:
        return found.series[0]
    if len(found.series) + len(refused) > 1:
        every = [(each.number, each.description) for each in found.series]
        every += [(each.number, each.description) for each in refused]
        named = [" ".join(filter(None, [str(number or ""), said])) for number, said in every]
        convert = command("convert", "dicom", str(folder), "OUT", options=["--series", "N"])
        raise DatasetError(
            f"{folder}: {counted(len(every), 'DICOM series', 'DICOM series')} "
            f"({first_few(named, _SHOWN)}), expected one, which is the image of the case.",
            hint=f"Keep one series in it. Or make an image of the one that you want: {convert}",
        )
    what = refused[0].problem if refused else "no DICOM series that is an image of slices"
    raise DatasetError(
        f"{folder}: {what}.",
        hint="Fetch the whole series again from where it comes from, or resample it elsewhere to "
        "slices at equal distances and save it as .nii.gz.",
    )


def modality_of_folder(folder: Path) -> str:
    """Returns the tag Modality of the first DICOM file in a folder or below it; else empty."""
    for file in dicom_files(folder):
        tags = ["Modality"]
        return str(open_dataset(file, stop_before_pixels=True, specific_tags=tags).get(*tags))
    return ""
