"""Label maps of DICOM series from the segmentations and structure sets that lie beside them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autoliver.io.dicom.drawn import files_about, is_drawn, labels_of, references
from autoliver.io.dicom.planes import open_dataset
from autoliver.io.dicom.series import Series
from autoliver.io.dicom.walk import dicom_files
from autoliver.io.files import write_label

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawings:
    """What is drawn on series.

    Attributes:
        files: Case -> the files that are about its series; cases without one are missing.
        values: Name of each label -> its value, as far as label maps were written. Names that
            differ in capitals alone are one label.
    """

    files: dict[str, list[Path]]
    values: dict[str, int] = field(default_factory=lambda: {"background": 0})

    def write(self, path: Path, case: str, series: Series) -> None:
        """Writes the label map of a case.

        Raises:
            DatasetError: A file is damaged, or drawn on another grid.
            MachineError: The system refuses to read or to write.
        """
        found = labels_of(series, self.files[case])
        if found is None:
            raise ValueError(f"nothing is drawn on {case}")
        for note in found.notes:
            _log.warning("%s: %s", case, note)
        known = {name.casefold(): name for name in self.values}
        numbers = np.zeros(len(found.values) + 1, dtype=np.uint16)
        for name, value in found.values.items():
            label = known.setdefault(name.casefold(), name)
            numbers[value] = self.values.setdefault(label, len(self.values))
        write_label(path, numbers[found.volume.array[0]], series.geometry)


def find_drawings(source: Path, cases: Mapping[str, Series]) -> Drawings:
    """Finds the SEG and RTSTRUCT files in a folder and below it that are about series.

    Raises:
        DatasetError: A file is damaged.
        MachineError: The system refuses to read a file.
    """
    files = dicom_files(source) if source.is_dir() else ()
    tags = ["SOPClassUID"]
    drawn = [
        path
        for path in files
        if is_drawn(str(open_dataset(path, stop_before_pixels=True, specific_tags=tags).get(*tags)))
    ]
    referring = {path: references(path) for path in drawn}
    about = {name: files_about(series, referring) for name, series in cases.items()}
    return Drawings(files={name: found for name, found in about.items() if found})
