"""Label maps that exist already as DICOM segmentations of the series that they lie on."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from autoliver.datasets.cases import Labels
from autoliver.datasets.description import read_description
from autoliver.datasets.names import dataset_of
from autoliver.errors import DatasetError, OptionError
from autoliver.io.dicom.codes import SegmentCodes, SegType
from autoliver.io.dicom.seg import Algorithm, SegOptions, needs_highdicom, uncoded, write_seg
from autoliver.io.dicom.series import Series
from autoliver.io.files import read_label
from autoliver.locks import only_writing
from autoliver.parallel import case_bar
from autoliver.pipeline.adoption.source import find_label_source
from autoliver.pipeline.conversion.dicom import find_volumes, masks_of
from autoliver.pipeline.conversion.result import Converted, Failed, check_output, refuse
from autoliver.pipeline.dicom.segmentations import ENDING, drawn_on
from autoliver.values import first_few
from autoliver.workspace import Workspace

if TYPE_CHECKING:
    from autoliver.inference.record import Prediction

_log = logging.getLogger(__name__)
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """Which label maps become segmentations.

    Attributes:
        labels: Folder with a label map of each case, on the grid of its series; None if not said.
        wanted: Which series are taken, as for `find_dicom`.
        like: Model or dataset that says what the labels are; None for the predict.json beside the
            label maps, or the dataset that they belong to.
        seg_type: As for `write_seg`.
    """

    labels: Path | None
    wanted: Sequence[str] = ()
    like: str | None = None
    seg_type: SegType = "binary"


@dataclass(frozen=True, kw_only=True)
class _Meaning:
    """What the values of label maps mean, and who has drawn them."""

    labels: Labels
    codes: dict[str, SegmentCodes]
    record: "Prediction | None"

    def algorithm(self, label_map: Path) -> Algorithm:
        """Who has drawn a label map: the model as it is there, or a person as far as is known."""
        from autoliver.inference.record import voxel_hash

        own = version("autoliver")
        if self.record is None:
            return Algorithm(name="autoliver", version=own, kind="MANUAL")
        predicted = self.record.voxels.get(label_map.name)
        same = predicted == voxel_hash(read_label(label_map).array[0])
        return Algorithm(
            name=self.record.model,
            version=f"{own}, {self.record.way}",
            kind="AUTOMATIC" if same else "SEMIAUTOMATIC",
        )


def segment_series(
    workspace: Workspace, source: Path, output: Path, request: SegmentRequest
) -> Converted:
    """Writes OUT/CASE.dcm for each series that has a label map; all of them or none.

    Args:
        workspace: The workspace in which models and datasets are looked up.
        source: The folder of the series.
        output: The new folder.
        request: The label maps, and what they mean.

    Raises:
        DatasetError: There is no series or label map, one does not lie on its series or holds other
            values, or it is not known what they mean.
        OptionError: The output exists already, label maps are not named, or highdicom is missing.
        MachineError: The output cannot be written.
    """
    if request.labels is None:
        raise OptionError(
            "dicom-seg: it is not said where the label maps are.",
            hint="Name their folder with --labels; they are named like the cases, CASE.nii.gz.",
        )
    needs_highdicom("dicom-seg")
    source, output = source.absolute(), output.absolute()
    check_output(source, output)
    series = find_volumes(source, request.wanted)
    masks = masks_of(request.labels, series)
    means = _meaning(workspace, request.labels, request.like)
    if said := uncoded(means.labels.foreground, means.codes):
        _log.warning("%s", said)
    with only_writing(output) as beside:
        beside.mkdir(parents=True)
        empty = _write(beside, masks, series, means, request.seg_type)
    values = means.labels.foreground
    return Converted(
        folder=output,
        kind="DICOM segmentations",
        cases=len(masks) - len(empty),
        patients=len({series[name].study_uid or name for name in masks}),
        unlabelled=tuple(name for name in series if name not in masks),
        passed_over=(),
        rewritten=0,
        labels={n: list(v) if len(v) > 1 else v[0] for n, v in values.items()},
        note=f"No file, since without a label: {first_few(empty, _SHOWN)}." if empty else "",
        next_command="",
    )


def _write(
    folder: Path,
    masks: Mapping[str, Path],
    series: Mapping[str, Series],
    means: _Meaning,
    seg_type: SegType,
) -> list[str]:
    """Writes the segmentations; returns the cases without any label, which get none.

    Raises:
        DatasetError: Some label maps do not fit; the error names the first ones.
    """
    failed: dict[str, Failed] = {}
    empty: list[str] = []
    for name, mask in case_bar("convert", len(masks))(masks.items()):
        how = SegOptions(
            labels=means.labels.foreground,
            algorithm=means.algorithm(mask),
            codes=means.codes,
            seg_type=seg_type,
        )
        try:
            array = drawn_on(mask, series[name])
            if not write_seg(folder / f"{name}{ENDING}", array, series[name], how):
                empty.append(name)
        except DatasetError as error:
            problem = f"{name}: {error.problem.removesuffix('.')}"
            failed[name] = Failed(problem=problem, hint=error.hint)
    refuse(failed)
    return empty


def _meaning(workspace: Workspace, folder: Path, like: str | None) -> _Meaning:
    """What label maps mean: by --like, their predict.json, or the dataset that they belong to.

    Raises:
        DatasetError: None of these says it.
    """
    from autoliver.inference.record import RECORD_FILE, read_record

    hint = "Copy it again from the folder that predict wrote; or remove it, and use --like."
    record = read_record(folder / RECORD_FILE, hint=hint)
    dataset = dataset_of(folder)
    if like is None and record is None and dataset and (dataset / "dataset.json").is_file():
        stated = read_description(dataset)
        labels = msgspec.convert(stated.labels, Labels, from_attributes=True)
        return _Meaning(labels=labels, codes=stated.codes, record=None)
    source = find_label_source(workspace, folder, record, like)
    return _Meaning(labels=source.labels, codes=source.codes, record=record)
