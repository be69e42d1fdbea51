"""What corrected label maps mean and what their images are: labels, channels, modality."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoliver.datasets.cases import Labels, Modality
from autoliver.datasets.description import CHANNEL_OF, modality_in, modality_of
from autoliver.errors import DatasetError, OptionError
from autoliver.inference.record import RECORD_FILE, Prediction, refuse_other_labels
from autoliver.inference.seen import as_trained
from autoliver.io.dicom.codes import SegmentCodes
from autoliver.io.header import PICTURES
from autoliver.models.files import FoldFolder, FoldModel
from autoliver.pipeline.run.source import find_plan
from autoliver.planning.modality import Judgement, judge
from autoliver.planning.names import ModalityName
from autoliver.planning.plan import Plan
from autoliver.planning.ranges import CaseRange, SeenImages
from autoliver.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """The model or dataset that says what label values and channels mean.

    Attributes:
        name: What it is called, for messages.
        labels: The labels.
        codes: Their codes for DICOM, as in `Dataset`.
        channel_names: The name of each channel.
        modality: The modality of its own images.
        seen: What its own images look like; None if that is not known.
        pretrained: The value of `--pretrained` that starts from it; empty if it is no model.
        configuration: The configuration that such a training has; empty if it is no model.
    """

    name: str
    labels: Labels
    codes: dict[str, SegmentCodes]
    channel_names: tuple[str, ...]
    modality: Modality
    seen: SeenImages | None = None
    pretrained: str = ""
    configuration: str = ""


def find_label_source(
    workspace: Workspace, folder: Path, record: Prediction | None, like: str | None
) -> LabelSource:
    """Finds what label maps mean: by `--like`, or else by the model that predicted them.

    Args:
        workspace: The workspace in which names are looked up.
        folder: The folder of the corrected label maps, for messages.
        record: The predict.json beside them; None if there is none.
        like: Name or path of a model or a dataset; None for the model of the record.

    Raises:
        DatasetError: It is not said, or there is no such model or dataset.
    """
    if like is not None:
        named = _named(workspace, like)
        refuse_other_labels(folder, named.labels, whose=f"--like {like}")
        return named
    if record is None:
        raise DatasetError(
            f"{folder}: there is no {RECORD_FILE}, which would say with which model these label "
            "maps were predicted, so that the names of their labels are not known.",
            hint="Copy it there from the folder that predict wrote, or name the model or a dataset "
            "with the same labels with --like.",
        )
    found = _recorded(workspace, record)
    if found is None:
        raise DatasetError(
            f"{folder / RECORD_FILE}: {record.model} predicted these label maps. The workspace "
            f"{workspace.root.absolute()} has no model with these weights.",
            hint="Choose its workspace with -w, or name the model, its file or a dataset with the "
            "same labels with --like.",
        )
    return found


def _named(workspace: Workspace, like: str) -> LabelSource:
    found = find_plan(workspace, like)
    if found is not None:
        return _of_plan(like, found[1], pretrained=like)
    if not workspace.knows(like):
        models = [model.name for model in workspace.models]
        raise DatasetError(
            f"--like {like}: there is no such dataset or model (workspace "
            f"{workspace.root.absolute()}).",
            hint=workspace.meant(like, more=models) or "Give the path of a dataset or a model.",
        )
    dataset = workspace.read(like)
    kinds = {case.modality for case in dataset.cases}
    source = LabelSource(
        name=dataset.name,
        labels=dataset.labels,
        codes=dataset.codes,
        channel_names=dataset.channel_names,
        modality=kinds.pop() if len(kinds) == 1 else "other",
    )
    runs = [run for folder in workspace.trained(dataset.name) for run in folder.runs]
    if not runs:
        return source
    seen = FoldModel.load(FoldFolder(runs[0].finished[0]).model).plan.seen
    return replace(source, seen=seen, pretrained=runs[0].name, configuration=runs[0].configuration)


def _recorded(workspace: Workspace, record: Prediction) -> LabelSource | None:
    """The model of the workspace that has the weights of the first network of a record."""
    used = next(network for network in record.networks if network.part == "member")
    for folder in workspace.all_trained:
        for run in folder.runs:
            path = FoldFolder(run.fold(used.fold)).model
            if run.path.name != used.run or not path.exists():
                continue
            info = FoldModel.load(path)
            if info.weights_sha256 == used.weights_sha256:
                return _of_plan(run.name, info.plan, pretrained=run.name)
    return None


def _of_plan(name: str, plan: Plan, *, pretrained: str) -> LabelSource:
    return LabelSource(
        name=name,
        labels=plan.labels,
        codes=plan.codes,
        channel_names=plan.channel_names,
        modality=plan.modality,
        seen=plan.seen,
        pretrained=pretrained,
        configuration=next(iter(plan.configurations)),
    )


def judge_modality(
    source: LabelSource, ranges: Sequence[CaseRange], endings: set[str], *, folder: str
) -> Judgement:
    """Decides what the images are by their values.

    Args:
        source: Where their labels come from; images like its own are of its modality.
        ranges: What is known of the images; at least one.
        endings: The endings of their files, in small letters.
        folder: Name of the folder of the new dataset, which decides where values do not.
    """
    if source.modality == modality_of(source.channel_names) == "other":
        return Judgement(modality="other", why=f"as in {source.name}")
    if endings <= set(PICTURES):
        kind = ", ".join(sorted(endings))
        why = f"as in {source.name}: grey values of {kind} files tell no modality"
        return Judgement(modality=source.modality, why=why)
    if source.seen is not None and all(_as_seen(case, source, source.seen) for case in ranges):
        why = f"values like those that {source.name} was trained on"
        return Judgement(modality=source.modality, why=why)
    return judge(ranges, named=modality_in(folder))


def _as_seen(case: CaseRange, source: LabelSource, seen: SeenImages) -> bool:
    ct = source.modality == "CT"
    return len(case.channels) == len(seen.channels) and all(
        as_trained(channel, known, ct=ct)
        for channel, known in zip(case.channels, seen.channels, strict=True)
    )


def channel_names_for(source: LabelSource, modality: ModalityName) -> tuple[str, ...]:
    """Names the channels so that they are normalised by the modality of the images.

    `plan` and nnU-Net take a channel of the name CT for CT, whatever else dataset.json says. So the
    channel of MR images must not keep the name that it has in a model of CT.

    Raises:
        OptionError: Several channels are of another modality, so that new names are not clear.
    """
    names = source.channel_names
    if modality_of(names) == modality:
        return names
    telling = [index for index, name in enumerate(names) if modality_of([name]) != "other"]
    telling = telling or ([0] if len(names) == 1 else [])
    if len(telling) > 1:
        raise OptionError(
            f"The images are {modality}, but the channels of {source.name} are {', '.join(names)}.",
            hint="Name a dataset or model whose channels are those of the images with --like.",
        )
    new = CHANNEL_OF[modality]
    return tuple(new if index in telling else name for index, name in enumerate(names))
