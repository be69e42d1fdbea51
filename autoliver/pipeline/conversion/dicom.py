"""DICOM series as image files: a folder of images, or a dataset if there are label maps."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoliver.artifacts import as_json, write_bytes
from autoliver.commands import command
from autoliver.datasets.cases import read_new
from autoliver.datasets.description import CHANNEL_OF
from autoliver.datasets.layouts import by_stem, label_files
from autoliver.errors import DatasetError, OptionError
from autoliver.io.dicom.read import read_series
from autoliver.io.dicom.series import Series
from autoliver.io.files import read_label, write_image, write_label
from autoliver.io.grids import compare_grids
from autoliver.locks import only_writing
from autoliver.machine import Machine
from autoliver.needs import series_need
from autoliver.parallel import case_bar, refuse_over_budget
from autoliver.pipeline.conversion.result import Converted, Failed, check_output, refuse
from autoliver.pipeline.dicom.cases import REFUSED, find_dicom, modality_of, patients_of
from autoliver.pipeline.dicom.drawings import find_drawings
from autoliver.values import counted, first_few
from autoliver.workspace import Workspace

_log = logging.getLogger(__name__)
_MOST_VALUES = 256
_SHOWN = 5


def convert_dicom(
    workspace: Workspace,
    source: Path,
    output: Path,
    *,
    labels: Path | None,
    wanted: Sequence[str],
    machine: Machine,
) -> Converted:
    """Writes each DICOM series of a folder as imagesTr/CASE_0000.nii.gz.

    Args:
        workspace: The workspace, for the next command.
        source: The folder of the series.
        output: The new folder.
        labels: Folder with a label map of each case, named like the case; series without one are
            left out. None: label maps are made of the SEG and RTSTRUCT files in the source; if
            there are none, images alone are written, without a dataset.json.
        wanted: Which series are taken, as for `find_dicom`.
        machine: The memory that may be used.

    Raises:
        DatasetError: There is no series, one makes no volume or cannot be read, or a label map does
            not fit its image.
        OptionError: The output exists already, there is no such series as is wanted, or one needs
            far more memory than may be used.
        MachineError: The output cannot be written.
    """
    source, output = source.absolute(), output.absolute()
    check_output(source, output)
    found = find_volumes(source, wanted)
    masks = None if labels is None else masks_of(labels, found)
    drawings = find_drawings(source, found if labels is None else {})
    known = drawings.files if masks is None else masks
    cases = {n: each for n, each in found.items() if n in known or not known}
    refuse_over_budget([series_need(*each) for each in cases.items()], machine.limits, "convert")
    patients = patients_of(cases)
    values: set[int] = set()
    with only_writing(output) as beside:
        for name, series in case_bar("convert", len(cases))(cases.items()):
            _write_image(beside, name, series)
            if masks is not None:
                values |= _write_label(beside, name, series, masks[name])
            elif known:
                drawings.write(beside / "labelsTr" / f"{name}.nii.gz", name, series)
        names = drawings.values if masks is None else _numbered(values, labels)
        if known:
            _describe(beside, output, cases, names, patients)
    _log_renaming(output, names, labels)
    return Converted(
        folder=output,
        kind="DICOM",
        cases=len(cases),
        patients=len(set(patients.values())),
        unlabelled=tuple(name for name in found if name not in cases),
        passed_over=(),
        rewritten=0,
        labels=names,  # type: ignore[arg-type]
        next_command=_next(output, bool(known), workspace),
    )


def find_volumes(source: Path, wanted: Sequence[str]) -> dict[str, Series]:
    """Finds the series of a folder by the names of their cases; all of them must be volumes.

    Raises:
        DatasetError: There is no folder or no series, or one makes no volume.
        OptionError: There is no such series as is wanted.
    """
    if not source.exists():
        raise DatasetError(f"{source}: there is no such folder.", hint="Check the path.")
    found = find_dicom(source, wanted)
    if found is None:
        raise DatasetError(
            f"{source}: there is no DICOM file in it or below it.",
            hint="Give the folder that holds the series.",
        )
    refuse(
        {n: Failed(problem=f"{n}: {no.problem}", hint=REFUSED) for n, no in found.refused.items()}
    )
    return found.series


def _numbered(values: set[int], labels: Path | None) -> dict[str, int]:
    """Names of labels of which the values alone are known.

    Raises:
        DatasetError: There is the background alone.
    """
    if not values - {0}:
        raise DatasetError(
            f"--labels {labels}: all voxels of its label maps are 0, the background.",
            hint="Name the folder in which labels are drawn.",
        )
    return {"background": 0, **{f"label_{value}": value for value in sorted(values - {0})}}


def _next(output: Path, labelled: bool, workspace: Workspace) -> str:
    if labelled:
        return command("plan", str(output), workspace=workspace.root)
    options = ["-i", str(output / "imagesTr"), "-o", "OUT"]
    return command("predict", options=options, workspace=workspace.root)


def _log_renaming(output: Path, names: dict[str, int], labels: Path | None) -> None:
    if labels is not None:
        _log.warning(
            "%s: labels are named by their values (%s); write their real names there.",
            *(output / "dataset.json", first_few([n for n in names if names[n]], _SHOWN)),
        )


def masks_of(folder: Path, series: dict[str, Series]) -> dict[str, Path]:
    """Finds the label map of each series in the folder that --labels names.

    Raises:
        OptionError: There is no such folder.
        DatasetError: No label map is named like a case.
    """
    if not folder.is_dir():
        raise OptionError(
            f"--labels {folder}: there is no such folder.",
            hint="Name a folder with a label map of each case.",
        )
    known = by_stem(label_files(folder), prefer=None)
    if not known.keys() & series.keys():
        raise DatasetError(
            f"--labels {folder}: no label map is named like a case; the cases are "
            f"{first_few(list(series), _SHOWN)}, the label maps {first_few(list(known), _SHOWN)}.",
            hint=f"Name them like the cases, e.g. {next(iter(series))}.nii.gz.",
        )
    return {name: known[name] for name in series if name in known}


def _write_image(folder: Path, name: str, series: Series) -> None:
    volume = read_series(series)
    for note in volume.notes[len(series.notes) :]:
        _log.warning("%s: %s", name, note)
    write_image(folder / "imagesTr" / f"{name}_0000.nii.gz", volume.array, volume.geometry)


def _write_label(folder: Path, name: str, series: Series, mask: Path) -> set[int]:
    """Copies the label map of a case, which must lie on the image's grid; returns its values."""
    label = read_label(mask)
    for difference in compare_grids(series.geometry, label.geometry):
        if not difference.rounding:
            image, other = difference.values()
            raise DatasetError(
                f"{name}: {mask} does not lie on the grid of the series: {difference.what} is "
                f"{other}, that of the series {image}.",
                hint="Convert the series first, and draw or resample the labels on its image.",
            )
    found = {int(value) for value in np.unique(label.array)}
    if min(found) < 0 or len(found) > _MOST_VALUES:
        raise DatasetError(
            f"{name}: {mask} holds {counted(len(found), 'value')} from {min(found)} to "
            f"{max(found)}, expected label numbers.",
            hint="Are images and labels mixed up?",
        )
    write_label(folder / "labelsTr" / f"{name}.nii.gz", label.array[0], series.geometry)
    return found


def _describe(
    folder: Path,
    output: Path,
    cases: dict[str, Series],
    names: dict[str, int],
    patients: dict[str, str],
) -> None:
    """Writes the dataset.json."""
    kinds = {name: modality_of(series) or "other" for name, series in cases.items()}
    mixed = len(set(kinds.values())) > 1
    first = next(iter(kinds.values()))
    description = {
        "channel_names": {"0": "image" if mixed else CHANNEL_OF[first]},
        "labels": names,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "patients": patients,
        "converted_by": "autoliver, as dicom",
        **({"modality": kinds} if mixed else {}),
    }
    write_bytes(folder / "dataset.json", as_json(description))
    read_new(folder, output)
