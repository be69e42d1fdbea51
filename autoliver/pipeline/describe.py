"""What a plain pair of folders without dataset.json is taken for, and the dataset.json it gets."""

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from autoliver.artifacts import write_bytes
from autoliver.commands import command
from autoliver.datasets.cases import Dataset, describe_plain, is_described, with_channel
from autoliver.datasets.description import CHANNEL_OF, modality_in
from autoliver.errors import AutoliverError, DatasetError, MachineError, OptionError
from autoliver.io.files import read_values
from autoliver.io.header import PICTURES
from autoliver.planning.findings import Finding
from autoliver.planning.modality import Judgement, judge, looks_like
from autoliver.planning.names import ModalityName
from autoliver.planning.ranges import CaseRange, channel_range

_log = logging.getLogger(__name__)


def told(dataset: Dataset, modality: ModalityName | None) -> Dataset:
    """Returns a dataset with the modality that the user says; unchanged if the user says none.

    Raises:
        OptionError: The dataset's dataset.json says another one.
    """
    if modality is None:
        return dataset
    name = CHANNEL_OF[modality]
    if not is_described(dataset):
        return with_channel(dataset, name)
    if {case.modality for case in dataset.cases} == {modality}:
        return dataset
    where = Path(dataset.folder) / "dataset.json"
    raise OptionError(
        f"--modality {modality}: {where} names the channels already: "
        f"{', '.join(dataset.channel_names)}.",
        hint=f'Leave --modality out, or write "channel_names": {{"0": "{name}"}} there.',
    )


def by_first_case(dataset: Dataset) -> Dataset:
    """Returns a dataset without dataset.json with the modality that its first image looks like."""
    if _pictures(dataset):
        return dataset
    images = dataset.cases[0].images
    try:
        arrays = [array for path in images for array in read_values(path).array]
        channels = [channel_range(array) for array in arrays]
    except (DatasetError, MachineError, ValueError):  # told when all cases are verified
        return dataset
    kind = looks_like(channels)[0]
    return dataset if kind is None else with_channel(dataset, CHANNEL_OF[kind])


def by_all_cases(dataset: Dataset, cases: Sequence[CaseRange]) -> Judgement:
    """Decides the modality of a dataset without dataset.json.

    Args:
        dataset: The dataset.
        cases: What is known of its images, of every case that could be read.
    """
    named = modality_in(dataset.name)
    if _pictures(dataset):
        kind = dataset.file_ending
        return Judgement(modality=named, why=f"grey values of {kind} files tell no modality")
    if not cases:
        return Judgement(modality=named, why="no image could be read")
    return judge(cases, named=named)


def finding(dataset: Dataset, judged: Judgement, *, workspace: Path) -> Finding:
    """Returns the finding that says what the images are taken for, or that this cannot be told.

    Args:
        dataset: The dataset, with the modality that was decided on.
        judged: The decision.
        workspace: The workspace, for the command in the hint.
    """
    images = Path(dataset.folder) / "images"
    if judged.modality is not None:
        problem = f"{images}: taken for {dataset.channel_names[0]}: {judged.why}."
        if judged.modality == "MR":
            problem += " CT stored with an offset or a window looks like this as well."
        return Finding(case=None, severity="note", code="modality", problem=problem)
    plan = command("plan", dataset.folder, options=["--modality", "CT"], workspace=workspace)
    both = " If there are both, make two datasets of them." if judged.mixed else ""
    return Finding(
        case=None,
        severity="error",
        code="modality",
        problem=f"{images}: are these CT or MR? {judged.why}.",
        hint="Say it with --modality CT, --modality MR or --modality other (each image is "
        f"normalised by its own mean and deviation).{both} For CT: {plan}",
    )


def describe(dataset: Dataset, why: str) -> None:
    """Writes the missing dataset.json of a plain pair of folders into the dataset's folder.

    Args:
        dataset: The dataset; nothing is written if it is described.
        why: The reason for the name of its channel; empty to say none.
    """
    if is_described(dataset):
        return
    path = Path(dataset.folder) / "dataset.json"
    text = msgspec.json.format(msgspec.json.encode(describe_plain(dataset)), indent=1)
    said = f"{why}\n" if why else ""
    try:
        write_bytes(path, text)
    except AutoliverError as error:
        # Every command then has to determine the labels again, which is slow but correct.
        _log.warning("%s%s", said, error.problem)
    else:
        _log.warning(
            "%s%s was written; check its channel and label names:\n%s", said, path, text.decode()
        )


def _pictures(dataset: Dataset) -> bool:
    return dataset.file_ending in PICTURES
