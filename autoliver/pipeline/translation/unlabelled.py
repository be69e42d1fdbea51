"""Images without labels as the target of a translation: found, looked at and planned."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Case, Dataset, Labels, read_dataset
from autoliver.datasets.contents import FileIndex, identify
from autoliver.datasets.description import CHANNEL_OF, modality_in
from autoliver.datasets.layouts import Files, commonest_ending, label_files, paired_files
from autoliver.errors import DatasetError, OptionError
from autoliver.io.files import read_image
from autoliver.io.header import split_ending
from autoliver.io.orientation import axis_codes
from autoliver.machine import Machine
from autoliver.needs import read_need
from autoliver.parallel import case_bar
from autoliver.pipeline.data import Planned, planned_dataset
from autoliver.pipeline.describe import told
from autoliver.planning.fingerprint import CaseSummary, fingerprint_case, summarise
from autoliver.planning.modality import judge
from autoliver.planning.names import ModalityName
from autoliver.planning.outliers import without_impossible
from autoliver.planning.plan import PlanOptions
from autoliver.planning.planner import make_plan
from autoliver.planning.ranges import CaseRange, channel_range, seen_images
from autoliver.preprocessing.store import StoredArray, StoredCase
from autoliver.synthesis.translation.body import Slices, body_mask, slices_with_body
from autoliver.workspace import DatasetFolder, Workspace

_DRAWS = 100_000  # voxels of the body of each case, for the intensities of the plan
_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))


@dataclass(frozen=True, kw_only=True)
class Target:
    """What `--to` names, and how it is to be planned.

    Attributes:
        name: Name or path of a dataset, or of images without labels.
        modality: What images without dataset.json are; None to decide it by their values.
        spacing_mm: Spacing (z, y, x) of images without labels; None for the median of them.
    """

    name: str
    modality: ModalityName | None
    spacing_mm: tuple[float, float, float] | None


def find_target(
    workspace: Workspace, target: Target, source: Planned, place: Path, *, machine: Machine
) -> Planned:
    """Finds the images that a translation imitates.

    Args:
        workspace: The workspace.
        target: What is named.
        source: The dataset with labels.
        place: The folder in which images without labels are kept once they are preprocessed.
        machine: The processes and memory that may be used.

    Returns:
        The dataset with its plan; or, where cases lack labels, one that is planned for this
        translation alone. Without any label, the labels are those of the source.

    Raises:
        DatasetError: There are no images, or they cannot be used.
        OptionError: An option is for images without labels, and the target has labels.
    """
    dataset = _lacking_labels(workspace, target.name)
    if dataset is None:
        planned = planned_dataset(workspace, target.name, machine=machine)
        told(planned.dataset, target.modality)
        if target.spacing_mm is not None:
            raise OptionError(
                f"--spacing: {planned.dataset.name} has a plan, which says the spacing.",
                hint="Leave it out, or plan the dataset with another --spacing.",
            )
        return planned
    if not dataset.labelled:
        dataset = dataset.replace(labels=source.plan.labels)
    dataset, _ = identify(told(dataset, target.modality), FileIndex())
    return _planned(dataset, target, DatasetFolder(place), machine=machine)


def _lacking_labels(workspace: Workspace, name: str) -> Dataset | None:
    """The images that a name or path means; None if it is a dataset with a label for each."""
    path = Path(name)
    if not path.exists():
        return _unless_labelled(workspace.read(name))
    if (path / "dataset.json").exists():
        return _unless_labelled(read_dataset(path))
    for images, labels in _FOLDERS:
        if (path / images).is_dir():
            return None if label_files(path / labels) else _of_images(path / images, path)
    return _of_images(path, path.parent if path.name in dict(_FOLDERS) else path)


def _unless_labelled(dataset: Dataset) -> Dataset | None:
    return dataset if lacks_labels(dataset) else None


def lacks_labels(dataset: Dataset) -> bool:
    """Whether any case of a dataset has no label, so that it cannot be planned as it is."""
    return len(dataset.labelled) < len(dataset.cases)


def _of_images(images: Path, named: Path) -> Dataset:
    """A dataset of the images of a folder, one channel each."""
    named, images = named.resolve(), images.absolute()
    files: Files = {split_ending(images.name)[0]: ((images,), None)}
    if not images.is_file():
        files = paired_files(images, images / "labels", ending=None, channels=1)
    cases = [
        Case(name=name, images=tuple(map(str, found)), patient=name)
        for name, (found, _) in sorted(files.items())
    ]
    return Dataset(
        name=named.name,
        folder=str(images),
        layout="plain",
        channel_names=(CHANNEL_OF["other"],),
        labels=Labels(values={"background": (0,)}),
        file_ending=commonest_ending(path for found, _ in files.values() for path in found),
        cases=tuple(cases),
    )


def _planned(
    dataset: Dataset, target: Target, folder: DatasetFolder, *, machine: Machine
) -> Planned:
    """Plans images without labels: what is learnt of labels is left to the source."""
    look = functools.partial(_look, channels=len(dataset.channel_names))
    pool = machine.pool("look at images", need=read_need, light=True)
    bar = case_bar(pool.what, len(dataset.cases))
    looks = list(bar(pool.map(look, dataset.cases)))
    ranges = [each.range for each in looks]
    described = (Path(dataset.folder) / "dataset.json").exists()
    if not described and target.modality is None:
        judged = judge(ranges, named=modality_in(dataset.name))
        if judged.modality is None:
            raise DatasetError(
                f"--to {target.name}: are these CT or MR? {judged.why}.",
                hint="Say it with --modality MR.",
            )
        dataset = told(dataset, judged.modality)
    fingerprint = summarise([each.summary for each in looks])
    fingerprint = fingerprint.replace(seen=seen_images(ranges))
    plan = make_plan(dataset, fingerprint, PlanOptions(spacing_mm=target.spacing_mm))
    return Planned(folder=folder, dataset=dataset, plan=plan)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What is known of an image."""

    summary: CaseSummary
    range: CaseRange


def _look(case: Case, *, channels: int) -> _Look:
    """Reads an image.

    Raises:
        DatasetError: It cannot be read, has other channels, or the same value everywhere.
    """
    image = read_image([Path(path) for path in case.images])
    if channels != 1 or len(image.array) != 1:
        raise DatasetError(
            f"{case.name}: {max(channels, len(image.array))} channels; a translation takes images "
            "with one.",
            hint="Make a folder with the images of one of the channels.",
        )
    values = without_impossible(image.array.astype(np.float32, copy=False), name=case.name)
    if values.min() == values.max():
        raise DatasetError(
            f"{case.name}: every voxel of {case.images[0]} is {float(values.min()):g}, so that "
            "there is nothing to imitate.",
            hint="Take this image out of the folder.",
        )
    spacing = image.geometry.spacing_mm
    summary = fingerprint_case(
        values, body_mask(values[0])[None], spacing_mm=spacing, name=case.name, draws=_DRAWS
    )
    summary = replace(summary, grid=summary.grid.replace(axis_codes=axis_codes(image.geometry)))
    ranges = CaseRange(
        name=case.name,
        spacing_mm=spacing,
        shape=cast(tuple[int, int, int], values.shape[1:]),
        channels=(channel_range(values[0]),),
    )
    return _Look(summary=summary, range=ranges)


@dataclass(frozen=True, slots=True)
class _NoLabel(StoredArray[np.signedinteger]):
    """Background everywhere, for patches of a case without labels, of which none is learnt."""

    def __getitem__(self, key: object) -> npt.NDArray[np.signedinteger]:
        """Returns a part of it."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)[key]  # type: ignore[call-overload,no-any-return]


def as_unlabelled(case: StoredCase) -> StoredCase:
    """A case that patches can be drawn of, although it has no labels."""
    shape = (1, *case.image.shape[1:])
    return replace(case, label=_NoLabel(Path(), shape, np.dtype(np.int16)))


def shown_slices(
    cases: Sequence[StoredCase], source: Sequence[StoredCase], labels: Labels
) -> dict[str, Slices]:
    """The slices of cases without labels that are learnt from.

    They are the slices that show enough of the body. Where that is more than the source's labels
    reach on average, with what is taken around them, those in the middle are taken: a scan of an
    organ is centred on it.

    Args:
        cases: The cases without labels.
        source: The cases of the source.
        labels: Its labels.

    Raises:
        DatasetError: A case does not show a body.
    """
    from autoliver.synthesis.translation.domains import labelled_slices

    ends = [(case, labelled_slices(case, labels)) for case in source]
    extents = [(e[1] - e[0]) * case.spacing_mm[0] for case, e in ends if e is not None]
    extent_mm = float(np.mean(extents)) if extents else math.inf
    found = {}
    for case in cases:
        many = extent_mm / case.spacing_mm[0]
        most = max(1, round(many)) if math.isfinite(many) else None
        shown = slices_with_body(body_mask(case.image[0]), most=most)
        if shown is None:
            raise DatasetError(
                f"{case.name}: nothing in it is brighter than the rest, so that no body is seen.",
                hint="Take this image out of the target.",
            )
        found[case.name] = shown
    return found
