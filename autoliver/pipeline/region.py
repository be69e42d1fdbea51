"""The models that find the regions of interest that other models predict in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.commands import DEFAULT_WORKSPACE, command
from autoliver.datasets.cases import Labels
from autoliver.datasets.lesions import is_lesion
from autoliver.errors import AutoliverError, ModelError, OptionError
from autoliver.models.archive import ENDING
from autoliver.models.files import MODEL_FILE, FoldModel, ModelFiles, Roi, load_infos, model_digest
from autoliver.training.options import TrainingOptions
from autoliver.transfer.labels import match_labels
from autoliver.workspace import MODELS, ModelFolder, RunFolder, Workspace

if TYPE_CHECKING:
    from autoliver.planning.plan import Plan


# Of folds that were trained with --roi-truth.
OF_TRUTH = (
    "The regions of held-out cases came from their reference labels (--roi-truth): the scores are "
    "too good."
)


@dataclass(frozen=True, kw_only=True)
class Finder:
    """What finds a region in a case.

    Attributes:
        roi: The region.
        name: Name of the model that finds it; "the reference label" without one.
        files: The model; None: the reference label maps of the cases.
        values: The values of its label maps that belong to the region.
        digest: `model_digest` of the model; empty without one.
    """

    roi: Roi
    name: str
    files: ModelFiles | None
    values: tuple[int, ...]
    digest: str = ""


def region_name(text: str) -> str:
    """The name under which a model that finds a region is looked up later.

    Args:
        text: The model as it was given: a name, or the path of a file or folder.
    """
    path = Path(text)
    if path.is_file():
        return path.name.removesuffix(ENDING)
    if not is_place(text):
        return text
    run = RunFolder(path.resolve())
    return run.name if run.finished else run.path.name


def is_place(text: str) -> bool:
    """Whether a model is given by the path of a file or folder rather than by its name."""
    path = Path(text)
    folder = path.resolve()  # so that "." has a name
    return path.is_file() or bool(RunFolder(folder).finished or ModelFolder(folder).runs)


def region_values(labels: Labels, label: str, *, classes: Sequence[str] = ()) -> tuple[int, ...]:
    """Returns the values of the label that a region is around; empty if there is no such label.

    Names are matched as in a transfer. Lesions count as part of an organ: one at its rim is not to
    be left out. Lesions of other organs are no matter, since only one component counts.

    Args:
        labels: The labels of the model that finds it, or of the reference.
        label: The label that is wanted.
        classes: Further labels that are lesions.
    """
    wanted = Labels(values={"background": (0,), label: (1,)})
    found = match_labels(labels, wanted)[label]
    if not found:
        return ()
    lesions = {*filter(is_lesion, labels.foreground), *classes}
    names = {found} if found in lesions else {found, *lesions}
    return tuple(sorted({value for name in names for value in labels.values[name]}))


def find_finder_of(workspace: Workspace, text: str, roi: Roi, plan: "Plan") -> Finder:
    """Looks up the model that finds a region, and checks that it fits the one that needs it.

    Args:
        workspace: The workspace in which it is looked up.
        text: The model, as for `predict -m`.
        roi: The region.
        plan: The plan of the model that needs it.

    Raises:
        ModelError: There is no such model; or it lacks the label, takes other images, or predicts
            in a region itself.
    """
    files = workspace.model_to_predict(text)
    info = _first(files)
    said = f"--roi-from {text}"
    if info.needs_lesions:
        raise ModelError(
            f"{said}: it only tells the class of given lesions, and finds no {roi.label}.",
            hint="Name a model that segments it.",
        )
    values = region_values(info.plan.labels, roi.label, classes=info.lesion_classes)
    if not values:
        raise ModelError(
            f"{said}: it has no label {roi.label}; its labels are "
            f"{', '.join(info.plan.labels.foreground)}.",
            hint="Name one of them with --roi, or a model that finds the label.",
        )
    theirs, own = info.plan.channel_names, plan.channel_names
    if len(theirs) != len(own) or [n.lower() for n in theirs] != [n.lower() for n in own]:
        raise ModelError(
            f"{said}: it takes the channels {', '.join(theirs)}, not {', '.join(own)}.",
            hint="Name a model of the same channels.",
        )
    if plan.is_foreign(info.plan.modality) and not (info.plan.mixed or plan.mixed):
        raise ModelError(
            f"{said}: it was trained on {info.plan.modality}; the images are {plan.modality}.",
            hint=f"Name a model of {plan.modality}.",
        )
    if info.roi is not None:
        raise ModelError(
            f"{said}: it predicts in a region itself, which another model has to find.",
            hint=f"Name a model of whole scans, such as {info.roi.model or 'one without --roi'}.",
        )
    return Finder(
        roi=roi, name=region_name(text), files=files, values=values, digest=model_digest(files)
    )


def find_finders(
    workspace: Workspace, files: ModelFiles, roi_from: str | None, *, referred: bool = False
) -> tuple[Finder, ...]:
    """Finds what finds the regions that the members of a model predict in; empty for most models.

    Args:
        workspace: The workspace in which models are looked up.
        files: The model.
        roi_from: The model that the user names; None for the one that each member was trained with.
        referred: Whether the reference label maps of the cases are known.

    Raises:
        ModelError: A model is missing, or does not fit.
        OptionError: The user names one, but no member predicts in a region.
    """
    found: dict[str, Finder] = {}
    for member in files.members:
        info = load_infos(member.folds, name=files.name)[0]
        roi = info.roi
        if roi is None or roi.key in found:
            continue
        if roi_from is not None:
            found[roi.key] = find_finder_of(workspace, roi_from, roi, info.plan)
        elif not roi.truth:
            found[roi.key] = _trained_with(workspace, member.folds[0], files.name, roi, info.plan)
        elif referred:
            found[roi.key] = of_reference(roi, info.plan.labels)
        else:
            raise ModelError(
                f"{files.name} was trained on the regions of reference labels (--roi-truth), which "
                f"new cases do not have: something has to find the {roi.label}.",
                hint=f"Name a model that does: {_again(files.name, workspace)}",
            )
    if roi_from is not None and not found:
        raise OptionError(
            f"--roi-from {roi_from}: {files.name} was trained on whole scans, not on a region.",
            hint="Leave it out. To predict only near what a coarse model finds: --roi MODEL.",
        )
    return tuple(found.values())


def of_reference(roi: Roi, labels: Labels) -> Finder:
    """Returns the finder that reads the region from reference label maps.

    Raises:
        OptionError: They have no such label.
    """
    values = region_values(labels, roi.label)
    if not values:
        raise OptionError(
            f"--roi {roi.label} --roi-truth: the dataset has no label {roi.label}; its labels are "
            f"{', '.join(labels.foreground)}.",
            hint="Name one of them with --roi, or a model that finds the label with --roi-from.",
        )
    return Finder(roi=roi, name="the reference label", files=None, values=values)


def home_of(files: ModelFiles) -> Workspace:
    """Returns the workspace that a model lies in; the usual one for a model in a file."""
    place = files.members[0].folds[0]
    if isinstance(place, Path):
        for parent in place.resolve().parents:
            if parent.name == "runs":
                root = parent.parents[1]
                return Workspace(root.parent if root.name == MODELS else root)
    return Workspace(DEFAULT_WORKSPACE)


def regions_of(files: ModelFiles) -> tuple[Roi, ...]:
    """Returns the regions that the members of a model predict in, each once."""
    infos = (FoldModel.load(member.folds[0] / MODEL_FILE) for member in files.members)
    return tuple(dict.fromkeys(info.roi for info in infos if info.roi is not None))


def truth_notes(files: ModelFiles) -> tuple[str, ...]:
    """Says which members were trained on the regions of reference labels."""
    infos = [(m, FoldModel.load(m.folds[0] / MODEL_FILE)) for m in files.members]
    return tuple(
        f"{member.folds[0].parent.name} was trained on the regions of reference labels "
        "(--roi-truth)."
        for member, info in infos
        if info.roi is not None and info.roi.truth
    )


def _trained_with(workspace: Workspace, fold: object, name: str, roi: Roi, plan: "Plan") -> Finder:
    """Looks up the model that a region was found with in training.

    Raises:
        ModelError: It is missing, or has other weights by now.
    """
    known = [roi.model]
    if isinstance(fold, Path):  # of a run here, which says where the model was
        options = RunFolder(fold.parent).options
        asked = TrainingOptions.load(options).roi_from if options.exists() else None
        known += [asked] if asked and asked != roi.model else []
    changed = False
    for text in known:
        try:
            finder = find_finder_of(workspace, text, roi, plan)
        except AutoliverError:
            continue
        if finder.digest == roi.digest:
            return finder
        changed = True
    why = (
        "has other weights or cleaning rules by now"
        if changed
        else f"is not in {workspace.root.absolute()}"
    )
    raise ModelError(
        f"{name} predicts near the {roi.label} alone. The model that finds it, {roi.model}, {why}; "
        "an exported file does not hold it.",
        hint=f"Import it under this name, or name one: {_again(name, workspace)}",
    )


def _again(name: str, workspace: Workspace) -> str:
    words = ["-i", "IN", "-o", "OUT", "-m", name.partition(" (")[0], "--roi-from", "MODEL"]
    return command("predict", options=words, workspace=workspace.root)


def _first(files: ModelFiles) -> FoldModel:
    return load_infos(files.members[0].folds, name=files.name)[0]
