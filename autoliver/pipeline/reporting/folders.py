"""Folders of predictions as they lie on disk: label maps, images, labels, volumes."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoliver.datasets.cases import Dataset, Labels
from autoliver.datasets.layouts import (
    UNCERTAINTY,
    by_stem,
    image_files,
    is_uncertainty,
    label_files,
)
from autoliver.errors import ArtifactError, DatasetError, OptionError
from autoliver.evaluation.report.page import Section, Table
from autoliver.evaluation.report.tables import texts
from autoliver.evaluation.results import CaseScores, Scores
from autoliver.evaluation.score import discover_labels
from autoliver.inference.record import (
    RECORD_FILE,
    Prediction,
    read_record,
    refuse_other_labels,
)
from autoliver.io.dicom.series import Series
from autoliver.io.files import read_image, read_label
from autoliver.io.grids import compare_grids
from autoliver.io.header import split_ending
from autoliver.io.volume import is_flat
from autoliver.machine import Machine
from autoliver.needs import score_need, show_need
from autoliver.parallel import Limits, refuse_over_budget
from autoliver.pipeline.dicom.cases import find_dicom
from autoliver.pipeline.evaluation import renamed_labels
from autoliver.values import counted, first_few
from autoliver.workspace import Workspace

_FEW = 5  # names in one sentence

# What an image is read from.
Source = Path | Series


@dataclass(frozen=True, kw_only=True)
class PredictionSources:
    """Where predictions and what belongs to them are.

    Attributes:
        folders: One or two folders of predicted label maps.
        images: Folders of their images; empty if these are not given.
        reference: Folder of reference label maps, or the folder or name of a dataset; None for no
            reference.
        machine: The processes and memory that may be used.
    """

    folders: tuple[Path, ...]
    images: tuple[Path, ...]
    reference: Path | None
    machine: Machine


@dataclass(frozen=True, kw_only=True)
class PredictedFolder:
    """A folder of predictions: its label maps by case, and the record of how they were made."""

    path: Path
    maps: dict[str, Path]
    record: Prediction | None

    def modality(self, case: str) -> bool | None:
        """Whether a case is CT; None if the record does not say so."""
        if self.record is None:
            return None
        used = self.record.modalities.get(self.maps[case].name) if case in self.maps else None
        return None if used is None or used.modality is None else used.modality == "CT"

    def scored(self, case: CaseScores) -> Path:
        """The label map of a scored case, also if the folder was moved since."""
        return self.path / Path(case.prediction).name


def read_folder(path: Path) -> PredictedFolder:
    """Finds the label maps of a folder, and what it was predicted with.

    Raises:
        DatasetError: There is no such folder, or no label map in it.
    """
    if not path.is_dir():
        raise DatasetError(
            f"{path}: there is no such folder.", hint="Give a folder of predicted label maps."
        )
    record: Prediction | None = None
    with contextlib.suppress(ArtifactError):  # label maps may be shown without it
        record = read_record(path / RECORD_FILE)
    if record is not None:
        files = [path / name for name in record.label_maps if (path / name).exists()]
        maps = {split_ending(file.name)[0]: file for file in sorted(files)}
    else:
        maps = by_stem(label_files(path), prefer=None)
        maps = {name: file for name, file in maps.items() if not is_uncertainty(name, maps)}
    if not maps:
        raise DatasetError(f"{path}: no label maps.", hint="Give the folder that predict wrote.")
    return PredictedFolder(path=path, maps=maps, record=record)


def dataset_at(workspace: Workspace, reference: Path | None) -> Dataset | None:
    """The dataset that the reference is; None if it is a folder of label maps, or none."""
    if reference is None or (reference.is_dir() and label_files(reference)):
        return None
    return workspace.read(str(reference))


def images_of(sources: Sequence[Path], dataset: Dataset | None) -> dict[str, Source]:
    """Finds the image of each case.

    Args:
        sources: Folders of images or of DICOM series, or single ones of these.
        dataset: A dataset, whose cases have images as well; None for none.

    Returns:
        Case -> its image file, of several channels the first, or its series, named as by `predict`.

    Raises:
        DatasetError: There is no image.
    """
    found: dict[str, Source] = {}
    if dataset is not None:
        found = {case.name: Path(case.images[0]) for case in dataset.cases}
    for source in sources:
        files = image_files(source) if source.is_dir() else []
        if not files and (cases := find_dicom(source)) is not None:
            found |= cases.series
            continue
        files = [source] if source.is_file() else files
        if not files:
            raise DatasetError(
                f"{source}: no images.", hint="Give the folder of the images with -i."
            )
        for stem, file in by_stem(files, prefer=None).items():
            found[stem] = file
            if stem.endswith("_0000"):
                found.setdefault(stem.removesuffix("_0000"), file)
    return found


def refuse_other_images(
    sources: PredictionSources, folders: Sequence[PredictedFolder], images: Mapping[str, Source]
) -> None:
    """Refuses images that were given of which none is of a case.

    Raises:
        OptionError: There is none.
    """
    cases = sorted({name for folder in folders for name in folder.maps})
    if sources.images and not set(cases) & set(images):
        given = ", ".join(map(str, sources.images))
        raise OptionError(
            f"--images {given}: none is of a case of the predictions: "
            f"{first_few(sorted(images), _FEW)}, expected {first_few(cases, _FEW)}.",
            hint="Give the folder of the images that were predicted, with their names.",
        )


def model_labels(folders: Sequence[PredictedFolder]) -> tuple[Labels | None, tuple[str, ...]]:
    """Returns by which labels all folders are read: those of the first model that is known.

    Returns:
        The labels, None if no model is known; and notes on labels that are named otherwise in
        another folder.

    Raises:
        OptionError: The models gave other values to a label.
    """
    known = [
        (folder.path, folder.record.labels)
        for folder in folders
        if folder.record is not None and folder.record.labels is not None
    ]
    if not known:
        return None, ()
    (first, labels), *others = known
    notes: tuple[str, ...] = ()
    for path, theirs in others:
        hint = "Report on each folder by itself."
        refuse_other_labels(path, labels, whose=f"-p {first}", hint=hint)
        notes += renamed_labels(theirs, str(path), labels, whose=f"-p {first}")
    return labels, notes


def labels_of(folders: Sequence[PredictedFolder]) -> tuple[Labels, tuple[str, ...]]:
    """As `model_labels`, with one label for each value of the label maps if no model is known."""
    labels, notes = model_labels(folders)
    files = [file for folder in folders for file in folder.maps.values()]
    return labels or discover_labels(files), notes


def sizes_of(path: Path, labels: Labels) -> tuple[str, dict[str, float]]:
    """Returns "ml" and label -> volume; of a 2D file, which has none, "pixels" and their number."""
    label = read_label(path)
    flat = is_flat(label.geometry)
    each = 1.0 if flat else float(np.prod(label.geometry.spacing_mm)) / 1000
    counts = np.zeros(int(label.array.max()) + 1, np.int64)
    for plane in label.array[0]:  # one by one, as their values are counted in eight bytes each
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    sizes = {
        name: float(sum(counts[v] for v in values if v < len(counts))) * each
        for name, values in labels.foreground.items()
    }
    return "pixels" if flat else "ml", sizes


def changed_since(scores: Scores, path: Path, folder: PredictedFolder) -> list[str]:
    """Names of cases that are not as they were when their scores were written.

    A label map or its reference was written or put there later, or the label map is gone.

    Args:
        scores: The scores.
        path: Their file.
        folder: The label maps.
    """
    written = _placed_ns(path)
    files = {name: [file] for name, file in folder.maps.items()}
    files |= {case.name: [folder.scored(case), Path(case.reference)] for case in scores.cases}
    gone = {case.name for case in scores.cases if not folder.scored(case).exists()}
    return [
        name
        for name in sorted(files)
        if name in gone or max(map(_placed_ns, files[name])) > written
    ]


def _placed_ns(path: Path) -> int:
    """When a file got its content or its place, in ns; the former alone may be copied along."""
    if not path.exists():
        return 0
    state = path.stat()
    return max(state.st_mtime_ns, state.st_ctime_ns)


def refuse_large(folder: PredictedFolder, limits: Limits) -> None:
    """Refuses label maps that are too large for `sizes_of` and `uncertainty_of`.

    Raises:
        OptionError: Naming the largest one and the numbers.
    """
    needs = [
        score_need(path) if beside is None else show_need(path.name, beside, [path])
        for path in folder.maps.values()
        for beside in [_uncertainty_file(path)]
    ]
    refuse_over_budget(needs, limits, "measure volumes")


def _uncertainty_file(path: Path) -> Path | None:
    """The map of uncertainty beside a label map; None without one."""
    stem, ending = split_ending(path.name)
    beside = path.with_name(f"{stem}{UNCERTAINTY}{ending}")
    return beside if beside.exists() else None


def uncertainty_of(path: Path) -> float | None:
    """The mean uncertainty of the voxels that are labelled; None without a map of it."""
    beside = _uncertainty_file(path)
    if beside is None:
        return None
    label, values = read_label(path), read_image([beside])
    differences = compare_grids(label.geometry, values.geometry)
    if any(not each.rounding for each in differences):
        return None
    total, count = 0.0, 0
    for plane, found in zip(label.array[0], values.array[0], strict=True):
        inside = found[plane > 0]
        total, count = total + float(inside.sum(dtype=np.float64)), count + inside.size
    return total / count if count else None


def made_section(folder: PredictedFolder, what: str = "") -> Section:
    """How the label maps of a folder were made, as its predict.json says."""
    record = folder.record
    title = f"Predictions {what}".strip()
    lead = f"{counted(len(folder.maps), 'label map')} in {folder.path}."
    anchor = f"made{what}"
    if record is None:
        note = f"There is no {RECORD_FILE}, which would say how they were made."
        return Section(anchor=anchor, title=title, notes=(lead, note))
    options = record.options
    rows = {
        "model": record.model,
        "folds": record.folds,
        "cleaning": "; ".join(map(str, record.cleaning)) or "none",
        "step": f"{options.step:g}",
        "mirrored": "yes" if options.mirror else "no",
        "exact": "yes" if options.exact else "no",
        "region": options.roi or "whole scans",
        "normalised as": ", ".join(
            sorted({used.modality or "planned" for used in record.modalities.values()})
        ),
    }
    networks = tuple(
        texts(f"{used.run}, fold {used.fold}", used.part, used.weights_sha256[:12])
        for used in record.networks
    )
    missing = [name for name in record.label_maps if not (folder.path / name).exists()]
    warnings = (
        (f"{counted(len(missing), 'case')} not predicted yet: {first_few(missing, _FEW)}.",)
        if missing
        else ()
    )
    return Section(
        anchor=anchor,
        title=title,
        notes=(lead, *record.notes),
        warnings=warnings,
        parts=(
            Table(
                caption=f"From {RECORD_FILE}",
                head=("what", "value"),
                rows=tuple(texts(*row) for row in rows.items() if row[1]),
            ),
            Table(caption="Networks", head=("network", "part", "weights"), rows=networks),
        ),
    )
