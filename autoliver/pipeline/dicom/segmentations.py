"""DICOM segmentations beside the label maps of DICOM series (`predict --format dicom-seg`).

They are made of the label maps as these lie on the disk. So a label map that was corrected gives a
corrected segmentation, and one that is missing is written without predicting again.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoliver.errors import AutoliverError, DatasetError, MachineError, OptionError
from autoliver.io.dicom.codes import SegmentCodes, SegType
from autoliver.io.dicom.planes import open_dataset
from autoliver.io.dicom.seg import MANUFACTURER, Algorithm, SegOptions, uncoded, write_seg
from autoliver.io.dicom.series import Series
from autoliver.io.files import read_label
from autoliver.io.grids import compare_grids
from autoliver.io.header import split_ending
from autoliver.pipeline.dicom.staging import LABELS
from autoliver.values import first_few

if TYPE_CHECKING:
    import numpy.typing as npt

    from autoliver.inference.predict import PredictJob
    from autoliver.inference.record import Prediction

_log = logging.getLogger(__name__)

ENDING = ".dcm"


def label_map_of(output: Path) -> Path:
    """Returns the label map beside a segmentation that -o names; any other output as it is."""
    if output.suffix.lower() == ENDING and not output.is_dir():
        return output.with_name(f"{output.stem}{LABELS}")
    return output


def segmentation_of(label_map: Path) -> Path:
    """Returns the segmentation beside a label map."""
    return label_map.with_name(f"{split_ending(label_map.name)[0]}{ENDING}")


def refuse_files(files: Mapping[str, Sequence[Path]]) -> None:
    """Refuses cases that are no DICOM series.

    Args:
        files: Case -> its image files, without DICOM series.

    Raises:
        OptionError: There are such cases.
    """
    if files:
        names = [images[0].name for images in files.values()]
        raise OptionError(
            f"--format dicom-seg: {first_few(names, 3)}: not DICOM, and a DICOM segmentation "
            "belongs to a DICOM series.",
            hint="Give the folder of the series with -i, or leave --format out.",
        )


def refuse_foreign(jobs: "Sequence[PredictJob]") -> None:
    """Refuses to replace DICOM files that are not segmentations of this program.

    Raises:
        OptionError: There is one where a segmentation would go.
    """
    for path in (segmentation_of(job.output) for job in jobs):
        if path.exists() and not _is_ours(path):
            raise OptionError(
                f"{path}: a file is already there that is no segmentation of autoliver.",
                hint="Choose another place with -o.",
            )


def write_segmentations(
    jobs: "Sequence[PredictJob]",
    series: Mapping[str, Series],
    record: "Prediction",
    *,
    codes: Mapping[str, SegmentCodes],
    corrected: Sequence[str],
    seg_type: SegType,
) -> tuple[tuple[Path, ...], dict[str, AutoliverError]]:
    """Writes the segmentations of all cases that have a label map, unless they are there.

    Args:
        jobs: The cases.
        series: Case -> its series.
        record: What predicted them.
        codes: Codes of labels, where their names do not say them.
        corrected: File names of label maps that have been corrected.
        seg_type: As for `write_seg`.

    Returns:
        The segmentations, and case -> why it has none.
    """
    labels = {} if record.labels is None else record.labels.foreground
    if said := uncoded(labels, codes):
        _log.warning("%s", said)
    written: list[Path] = []
    failed: dict[str, AutoliverError] = {}
    for job in (job for job in jobs if job.finished):
        path = segmentation_of(job.output)
        algorithm = Algorithm(
            name=record.model,
            version=f"{version('autoliver')}, {record.way}",
            kind="SEMIAUTOMATIC" if job.output.name in corrected else "AUTOMATIC",
        )
        how = SegOptions(labels=labels, algorithm=algorithm, codes=codes, seg_type=seg_type)
        own = series[job.name]
        try:
            if write_seg(path, drawn_on(job.output, own), own, how):
                written.append(path)
            else:
                path.unlink(missing_ok=True)
                _log.warning("%s: no label was found, so there is no segmentation.", job.name)
        except MachineError:
            raise
        except AutoliverError as error:
            failed[job.name] = error
    return tuple(written), failed


def drawn_on(label_map: Path, series: Series) -> "npt.NDArray[Any]":
    """Reads the label map of a series (z, y, x), which may have been saved by another program.

    Raises:
        DatasetError: It cannot be read, or is not on the grid of the series.
    """
    found = read_label(label_map)
    for difference in compare_grids(found.geometry, series.geometry):
        if not difference.rounding:
            own, expected = difference.values()
            raise DatasetError(
                f"{label_map}: its {difference.what} is {own}, that of the series {expected}.",
                hint="Save it on the grid of the series.",
            )
    array: npt.NDArray[Any] = found.array[0]
    return array


def _is_ours(path: Path) -> bool:
    tags = ["Modality", "Manufacturer"]
    try:
        found = open_dataset(path, stop_before_pixels=True, specific_tags=tags)
    except DatasetError:
        return False
    return (found.get("Modality"), found.get("Manufacturer")) == ("SEG", MANUFACTURER)
