"""Writes a label map as a DICOM segmentation (SEG) of the series that it was made from.

highdicom writes the file. What is decided here is which segments it has, what it says of them and
its identifiers: these depend on the content alone, so that the same label map gives the same file.
"""

import contextlib
import importlib.util
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import replacing
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.io.dicom.codes import Coding, Colour, SegmentCodes, SegType, code_labels
from autoliver.io.dicom.planes import BAD_VALUE, open_dataset
from autoliver.io.dicom.series import Series
from autoliver.io.dicom.source import Sources, source_images
from autoliver.values import counted, first_few

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom import Dataset

Kind = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]
Array = npt.NDArray[Any]

# Bytes of a short text (LO). DICOM counts letters, but some readers count bytes.
_LONGEST = 64
_MOST_SEGMENTS = 65535
MANUFACTURER = "autoliver"
# What of an image may have a date, the last first.
_DATED = ("Content", "Acquisition", "Series", "Study")
_MOST_BYTES = 2**32 - 2
# Added to the number of the series, so that viewers list segmentations behind images.
_SERIES_NUMBER = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """Who has drawn a label map.

    Attributes:
        name: Name of the model; for label maps that people have drawn, of the program.
        version: Its version.
        kind: "AUTOMATIC" for predictions, "SEMIAUTOMATIC" for corrected ones, "MANUAL" for drawn
            ones.
    """

    name: str
    version: str
    kind: Kind = "AUTOMATIC"


@dataclass(frozen=True, kw_only=True, slots=True)
class SegOptions:
    """What a segmentation says besides its voxels.

    Attributes:
        labels: Name -> values of the labels. Labels that share values overlap; "labelmap" cannot
            hold that, so there each voxel belongs to the label with the fewest values.
        algorithm: Who has drawn it.
        codes: Codes of labels, where their names do not say them.
        seg_type: "binary" has a mask for each segment, "labelmap" (DICOM 2024c) one map for all.
    """

    labels: Mapping[str, Sequence[int]]
    algorithm: Algorithm
    codes: Mapping[str, SegmentCodes] = field(default_factory=dict)
    seg_type: SegType = "binary"


class _Segment(NamedTuple):
    """A label that a label map holds."""

    name: str
    values: tuple[int, ...]
    coding: Coding


def needs_highdicom(what: str) -> None:
    """Refuses what cannot be done without the package that writes DICOM.

    Args:
        what: The option that needs it, for the message.

    Raises:
        OptionError: highdicom is missing.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise OptionError(
            f"{what} needs the package highdicom.",
            hint="Install it with: pip install 'autoliver[dicom]'",
        )


def write_seg(path: Path, array_zyx: Array, series: Series, options: SegOptions) -> bool:
    """Writes a label map as one DICOM-SEG file, atomically, unless the same file is there.

    Each label with a voxel becomes a segment; all its slices are stored, empty ones too. Labels
    without a voxel are left out.

    Args:
        path: The file; its folder is created if it is missing.
        array_zyx: The label map (z, y, x) on the grid of the series.
        series: The series; its files are read again, without their pixels.
        options: What it says besides.

    Returns:
        Whether there is a file: nothing is written for a label map without a label, since
        viewers do not open a file without segments.

    Raises:
        DatasetError: The label map is not on the grid of the series, or holds values that are no
            label; or files of the series have changed, or say what no segmentation can refer to.
        AutoliverError: There are more segments or voxels than a file can hold.
    """
    if array_zyx.shape != series.geometry.shape_zyx:
        raise DatasetError(
            f"{path.name}: the label map has {_size(array_zyx.shape)} voxels (z, y, x), its series "
            f"{_size(series.geometry.shape_zyx)}.",
            hint="Give the series that the label map was drawn on.",
        )
    segments = _segments(path, array_zyx, options)
    if not segments:
        return False
    _check_size(path, array_zyx, len(segments), options.seg_type)
    with _in_words(path, series):
        source = source_images(series)
        content = _content(array_zyx, source, segments, options)
        if _held(path) == _uid("instance", content):
            return True
        seg = _segmentation(array_zyx, series, source, segments, options, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        seg.save_as(beside)
    return True


@contextlib.contextmanager
def _in_words(path: Path, series: Series) -> Iterator[None]:
    """Turns what highdicom raises for headers that it cannot use into a `DatasetError`.

    It also warns of names of patients and the like, which are as in the images.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (*BAD_VALUE, LookupError) as error:
        raise DatasetError(
            f"{path.name}: no segmentation can refer to the DICOM series "
            f"{series.description or series.uid}, whose headers break the standard: "
            f"{str(error).rstrip('.')} ({type(error).__name__}).",
            hint="Correct the headers, or write the label map as NIfTI.",
        ) from error


def _content(
    array: Array, source: Sources, segments: Sequence[_Segment], options: SegOptions
) -> str:
    """All that a segmentation says, as a text; its identifiers are made of it."""
    voxels = blake2b(array.astype("<i4").tobytes()).hexdigest()
    algorithm, seg_type = options.algorithm, options.seg_type
    return repr([source.uids, voxels, segments, algorithm, seg_type, version("autoliver")])


def _held(path: Path) -> str:
    """The identifier of the segmentation that a file holds; empty if there is none."""
    tags = ["SOPInstanceUID"]
    try:
        return str(open_dataset(path, stop_before_pixels=True, specific_tags=tags).get(*tags))
    except AutoliverError:
        return ""


def uncoded(
    labels: Mapping[str, Sequence[int]], codes: Mapping[str, SegmentCodes] | None = None
) -> str:
    """A sentence on the labels whose meaning is not known; empty if there are none."""
    names = [name for name, coding in code_labels(labels, codes).items() if not coding.known]
    if not names:
        return ""
    return (
        f"{first_few(names, 5)}: no code is known for {'it' if len(names) == 1 else 'them'}, so "
        "the DICOM segments are coded as tissue and keep the name. "
        'Codes can be given in dataset.json ("codes").'
    )


def _segments(path: Path, array: Array, options: SegOptions) -> list[_Segment]:
    """The labels that a label map holds.

    Raises:
        DatasetError: It holds other values.
    """
    labels = options.labels
    codings = code_labels(labels, options.codes)
    held = {int(value) for value in np.unique(array)} - {0}
    known = {value for values in labels.values() for value in values}
    if held - known:
        raise DatasetError(
            f"{path.name}: the label map holds {first_few(sorted(held - known), 5)}; the "
            f"labels are {', '.join(_numbered(labels))}.",
            hint="Give the dataset or the model whose labels it holds.",
        )
    found = [
        _Segment(name, tuple(values), codings[name])
        for name, values in labels.items()
        if held.intersection(values) - {0}
    ]
    if len(found) > _MOST_SEGMENTS:
        raise AutoliverError(
            f"{path.name}: {len(found)} segments; a DICOM file holds {_MOST_SEGMENTS}.",
            hint="Write the label map as NIfTI.",
        )
    return found


def _numbered(labels: Mapping[str, Sequence[int]]) -> list[str]:
    shown = [f"{name} ({'+'.join(map(str, values))})" for name, values in labels.items()]
    return shown[:10] + (["..."] if len(shown) > 10 else [])


def _check_size(path: Path, array: Array, segments: int, seg_type: SegType) -> None:
    voxel = segments / 8 if seg_type == "binary" else 1 if segments < 256 else 2
    if array.size * voxel > _MOST_BYTES:
        raise AutoliverError(
            f"{path.name}: {counted(segments, 'segment')} of {_size(array.shape)} voxels take "
            f"{array.size * voxel / 2**30:.0f} GB; a DICOM file holds 4 GB.",
            hint="Write it with --seg-type labelmap." if seg_type == "binary" else "",
        )


def _segmentation(
    array: Array,
    series: Series,
    source: Sources,
    segments: Sequence[_Segment],
    options: SegOptions,
    content: str,
) -> "Segmentation":
    import highdicom
    from pydicom.uid import ExplicitVRLittleEndian

    algorithm, seg_type = options.algorithm, options.seg_type
    description = f"{algorithm.name}: {series.description}" if series.description else ""
    seg = highdicom.seg.Segmentation(
        source_images=source.datasets,
        pixel_array=_painted(array, segments, seg_type),
        segmentation_type=seg_type.upper(),
        segment_descriptions=_descriptions(
            segments, source.datasets[0].SeriesInstanceUID, algorithm
        ),
        series_instance_uid=_uid("series", content),
        series_number=_SERIES_NUMBER + max(series.number or 0, 0),
        sop_instance_uid=_uid("instance", content),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=version("autoliver"),
        device_serial_number=_short(algorithm.version),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        plane_positions=source.positions,
        omit_empty_frames=False,
        content_label="SEGMENTATION",
        content_description=_short(algorithm.name),
        series_description=_short(description or algorithm.name),
        specific_character_set="ISO_IR 192",
    )
    _fix(seg, source.datasets[0], content)
    return seg


def _fix(seg: "Dataset", source: "Dataset", content: str) -> None:
    """Replaces what differs from run to run: the time and random identifiers.

    The standard wants a date of the content. It is that of the images.
    """
    dated = [what for what in _DATED if source.get(f"{what}Date")]
    seg.ContentDate = source.get(f"{dated[0]}Date") if dated else "19000101"
    seg.ContentTime = (source.get(f"{dated[0]}Time") if dated else None) or "000000"
    seg.ContentCreatorName = ""  # may be empty, but not missing
    del seg.InstanceCreationDate, seg.InstanceCreationTime
    for equipment in seg.get("ContributingEquipmentSequence") or []:
        if "ContributionDateTime" in equipment:
            del equipment.ContributionDateTime
    organization = _uid("dimensions", content)
    seg.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in seg.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization


def _painted(array: Array, segments: Sequence[_Segment], seg_type: SegType) -> Array:
    """The numbers of the segments (z, y, x), or a mask for each if they overlap (z, y, x, s)."""
    values = [value for segment in segments for value in segment.values]
    if seg_type == "binary" and len(set(values)) < len(values):
        return np.stack([np.isin(array, segment.values) for segment in segments], axis=-1)
    numbers = np.zeros(int(array.max()) + 1, dtype=np.min_scalar_type(len(segments)))
    # Those of the fewest values last, over the labels that they are part of.
    order = sorted(range(len(segments)), key=lambda i: -len(segments[i].values))
    for index in order:
        inside = [value for value in segments[index].values if 0 < value < len(numbers)]
        numbers[inside] = index + 1
    return numbers[array]


def _descriptions(
    segments: Sequence[_Segment], series_uid: str, algorithm: Algorithm
) -> "list[SegmentDescription]":
    import highdicom
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes as standard

    identification = highdicom.AlgorithmIdentificationSequence(
        name=_short(algorithm.name),
        family=standard.cid7162.ArtificialIntelligence,
        version=_short(algorithm.version),
        source=MANUFACTURER,
    )
    found = []
    for number, (segment, label) in enumerate(
        zip(segments, _short_labels([s.name for s in segments]), strict=True), start=1
    ):
        codes = {name: CodedConcept(*code) for name, code in segment.coding.codes.concepts.items()}
        description = SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes["category"],
            segmented_property_type=codes["type"],
            algorithm_type=algorithm.kind,
            algorithm_identification=None if algorithm.kind == "MANUAL" else identification,
            tracking_id=segment.name,
            tracking_uid=_uid("tracking", series_uid, segment.name),
            anatomic_regions=[codes["region"]] if "region" in codes else None,
            display_color=CIELabColor(*_lab(segment.coding.rgb)),
        )
        description.SegmentDescription = segment.name
        if "modifier" in codes:
            (kind,) = description.SegmentedPropertyTypeCodeSequence
            kind.SegmentedPropertyTypeModifierCodeSequence = [codes["modifier"]]
        if "region" in codes and "region_modifier" in codes:
            (region,) = description.AnatomicRegionSequence
            region.AnatomicRegionModifierSequence = [codes["region_modifier"]]
        found.append(description)
    return found


def _lab(rgb: Colour) -> tuple[float, float, float]:
    """A colour, 0 to 255, as L*, a* and b*."""
    from skimage.color import rgb2lab

    lightness, a, b = (float(v) for v in rgb2lab(np.array(rgb, np.float64) / 255))
    return lightness, a, b


def _short_labels(names: Sequence[str]) -> list[str]:
    """Names as short as DICOM takes them; those that are cut to the same are numbered."""
    labels: dict[str, None] = {}
    for name in names:
        label, number = _short(name), 1
        while label in labels:
            number += 1
            label = _short(name, f" {number}")
        labels[label] = None
    return list(labels)


def _short(text: str, ending: str = "") -> str:
    """A text as DICOM takes it: at most 64 bytes, and no backslash, which would divide it."""
    text = text.replace("\\", "/").strip()
    if len(text.encode()) + len(ending) > _LONGEST:
        ending = f"...{ending}"
        text = text.encode()[: _LONGEST - len(ending)].decode(errors="ignore")
    return text + ending


def _uid(*what: str) -> str:
    """An identifier that the same content always gets: a UUID, below 2.25."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, repr(('autoliver', *what))).int}"


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
