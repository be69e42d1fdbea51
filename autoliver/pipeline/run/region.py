"""What --roi names: the region of each case that a training draws its patches on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import msgspec

from autoliver.artifacts import Artifact, digest
from autoliver.datasets.cases import Case
from autoliver.datasets.contents import image_key, seen_cases
from autoliver.datasets.folds import Fold
from autoliver.errors import OptionError
from autoliver.machine import Machine
from autoliver.models.files import MODEL_FILE, FoldModel, Roi
from autoliver.pipeline.data import Planned
from autoliver.pipeline.prediction import PredictRequest, find_boxes, locate
from autoliver.pipeline.region import (
    Finder,
    find_finder_of,
    of_reference,
    region_name,
)
from autoliver.pipeline.run.begin import kept_options
from autoliver.pipeline.run.cascade import FirstStage
from autoliver.pipeline.run.request import Notify, TrainRequest
from autoliver.planning.plan import Configuration
from autoliver.preprocessing.crop import Bounds
from autoliver.preprocessing.region import grown_ends, outer_bounds
from autoliver.preprocessing.store import StoredCase
from autoliver.training.options import TrainingOptions, given_options
from autoliver.training.patches.region import JITTER_SHARE, PatchBox
from autoliver.values import counted, first_few
from autoliver.workspace import RunFolder, Workspace

_SHOWN = 3  # names of cases in a message
_FOLDER = "regions"


class CaseBoxes(Artifact, frozen=True, kw_only=True):
    """The boxes that one finder has found in cases.

    Attributes:
        label: The label that they are around.
        finder: Name of what found them.
        boxes: Digest of a case's files -> its box on the image's grid; None: not found.
    """

    KIND: ClassVar[str] = "boxes"

    label: str
    finder: str
    boxes: dict[str, Bounds | None] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunRegion:
    """The region that a run is trained on.

    Attributes:
        finder: What finds it.
        exact: Whether it is predicted in float32, with nothing chosen by timing.
    """

    finder: Finder
    exact: bool

    @property
    def roi(self) -> Roi:
        """The region, as model.json has it."""
        return self.finder.roi

    @property
    def made_from(self) -> dict[str, str]:
        """A digest of what finds it, which a run must keep."""
        return {"region's model": self.roi.key}

    def describe(self) -> str:
        """Says in a sentence what the patches of the training show."""
        roi = self.roi
        within = f"Patches lie within {roi.margin_mm:g} mm of the {roi.label}"
        if roi.truth:
            return (
                f"{within} of the reference labels (--roi-truth): the regions of held-out cases "
                "come from their reference labels, so that their scores are too good."
            )
        return f"{within} that {self.finder.name} finds; nothing further away is predicted."

    def patch_boxes(
        self, cases: Sequence[StoredCase], boxes: Mapping[str, Bounds | None]
    ) -> dict[str, PatchBox]:
        """Returns the boxes that patches of preprocessed cases lie on.

        Args:
            cases: The cases.
            boxes: Case -> its box on the image's grid; None: whole scan.
        """
        found = {}
        for case in cases:
            box = boxes[case.name]
            if box is not None:
                ends = grown_ends(box, self.roi.margin_mm, case.properties)
                z, y, x = (JITTER_SHARE * self.roi.margin_mm / mm for mm in case.spacing_mm)
                found[case.name] = PatchBox(bounds=outer_bounds(ends), jitter=(z, y, x))
        return found


def region_for(
    workspace: Workspace,
    planned: Planned,
    configuration: Configuration,
    request: TrainRequest,
    run: RunFolder,
    folds: Sequence[Fold],
) -> RunRegion | None:
    """Finds the region that a training asks for, or that its run keeps; None for whole scans.

    Args:
        workspace: The workspace.
        planned: The dataset and its plan.
        configuration: The configuration that is trained.
        request: The request to `train`.
        run: The run.
        folds: The folds that are trained.

    Raises:
        OptionError: A cascade is trained, or the reference has no such label.
        ModelError: There is no such model, or it does not fit.
    """
    options = kept_options(run, request, folds) or given_options(request.changes)
    if options.roi is None:
        return None
    if configuration.previous_stage is not None:
        raise OptionError(
            f"--roi {options.roi}: a cascade sees what its first stage finds in whole scans, so "
            "that a region of interest would tell it nothing new.",
            hint="Train 3d_fullres with --roi, or the cascade without.",
        )
    return RunRegion(finder=_finder(workspace, planned, options), exact=options.deterministic)


def refuse_region(stage: FirstStage) -> None:
    """Refuses a first stage of a cascade that predicts in a region.

    Raises:
        OptionError: It does.
    """
    for fold in stage.run.finished:
        roi = FoldModel.load(fold / MODEL_FILE).roi
        if roi is not None:
            raise OptionError(
                f"{stage.run.name} was trained with --roi {roi.label}; the first stage of a "
                "cascade has to see whole scans.",
                hint="Train it again without --roi (--fresh), or train 3d_fullres.",
            )


def _finder(workspace: Workspace, planned: Planned, options: TrainingOptions) -> Finder:
    label, margin = str(options.roi), options.roi_margin_mm
    if options.roi_truth:
        return of_reference(Roi(label=label, margin_mm=margin, truth=True), planned.plan.labels)
    text = str(options.roi_from)
    roi = Roi(label=label, margin_mm=margin, model=region_name(text))
    finder = find_finder_of(workspace, text, roi, planned.plan)
    return replace(finder, roi=roi.replace(digest=finder.digest))


def note_seen_by(region: RunRegion, planned: Planned, notify: Notify) -> None:
    """Notifies the user of cases that the finder was trained on: there it errs less."""
    if region.finder.files is None:
        return
    folds = [fold for member in region.finder.files.members for fold in member.folds]
    infos = [FoldModel.load(fold / MODEL_FILE) for fold in folds]
    keys = {key for info in infos for key in (*info.trained_on, *info.seen_before)}
    seen = sorted(seen_cases(planned.dataset, keys))
    if seen:
        notify(
            f"Note: {region.finder.name} was trained on {len(seen)} of the "
            f"{counted(len(planned.dataset.cases), 'case')} ({first_few(seen, _SHOWN)}): it errs "
            "less there than on new cases, and the scores of those that are held out may be too "
            "good."
        )


def find_regions(
    region: RunRegion,
    planned: Planned,
    names: Sequence[str],
    train: Sequence[str],
    *,
    machine: Machine,
    notify: Notify,
) -> dict[str, Bounds | None]:
    """Finds the region of each case; what was found before, in the same files, is reused.

    Args:
        region: The region.
        planned: The dataset and its plan.
        names: Names of the cases.
        train: Those of the training cases among them.
        machine: The device and memory that may be used.
        notify: Called with the cases in which nothing was found.

    Raises:
        OptionError: The label was found in no training case.
        AutoliverError: A case cannot be read.
    """
    wanted = set(names)
    cases = [case for case in planned.dataset.labelled if case.name in wanted]
    kind = digest([region.roi.key, region.exact])
    path = planned.folder.path / _FOLDER / f"{kind}.json"
    known = CaseBoxes(label=region.roi.label, finder=region.finder.name)
    if path.exists():
        known = CaseBoxes.load(path)
    todo = [case for case in cases if _key(region, case) not in known.boxes]
    if todo:
        known = _find(region, todo, known, path, machine)
    found = {case.name: known.boxes[_key(region, case)] for case in cases}
    missing = [name for name, box in found.items() if box is None]
    if all(found[name] is None for name in train):
        raise OptionError(
            f"--roi {region.roi.label}: {region.finder.name} finds none in any of "
            f"{counted(len(train), 'training case')}.",
            hint="Look at what it predicts (autoliver predict -i IN -o OUT -m MODEL), and name a "
            "model that finds the label in these images.",
        )
    if missing:
        notify(
            f"Note: {region.finder.name} shows no {region.roi.label} in "
            f"{first_few(missing, _SHOWN)}: {'its' if len(missing) == 1 else 'their'} whole scan "
            "is used."
        )
    return found


def _find(
    region: RunRegion, cases: Sequence[Case], known: CaseBoxes, path: Path, machine: Machine
) -> CaseBoxes:
    """Finds the regions of cases and writes them, one by one where that takes long."""
    from autoliver.inference.predict import PredictJob

    keys = {case.name: _key(region, case) for case in cases}
    jobs = [
        PredictJob(
            name=case.name,
            images=tuple(map(Path, case.images)),
            output=path.with_name(case.name),
            modality=case.modality,
        )
        for case in cases
    ]
    request = PredictRequest(modality=None, exact=region.exact, machine=machine)
    if region.finder.files is None:
        drawn = {case.name: Path(case.label) for case in cases if case.label}
        located = locate([region.finder], jobs, request, references=drawn)
        own = {keys[job.name]: job.boxes[region.roi.key] for job in located}
        known = known.replace(boxes={**known.boxes, **own})
        known.save(path)
        return known

    def note(name: str, box: Bounds | None) -> None:
        nonlocal known
        known = known.replace(boxes={**known.boxes, keys[name]: box})
        known.save(path)

    find_boxes(region.finder, jobs, request, on_box=note)
    return known


def _key(region: RunRegion, case: Case) -> str:
    """What a box of a case was made from: its image, and its label map if that is the finder."""
    if region.finder.files is not None:
        return image_key(case)
    return digest([content.hash for content in case.contents])
