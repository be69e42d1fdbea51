"""Adopts corrected predictions: all cases are checked, and then the dataset is written as one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from autoliver.artifacts import brief
from autoliver.commands import command
from autoliver.datasets.cases import Case
from autoliver.datasets.layouts import is_uncertainty, label_files
from autoliver.datasets.names import nearest, refuse_inside_dataset
from autoliver.errors import DatasetError, OptionError
from autoliver.inference.record import RECORD_FILE, Prediction, read_record
from autoliver.io.header import split_ending
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.parallel import case_bar
from autoliver.pipeline.adoption.corrected import (
    CorrectedCase,
    Examined,
    corrected_need,
    examine,
)
from autoliver.pipeline.adoption.record import Adoption
from autoliver.pipeline.adoption.source import (
    LabelSource,
    channel_names_for,
    find_label_source,
    judge_modality,
)
from autoliver.pipeline.adoption.write import adopted_case, image_names, write_dataset
from autoliver.pipeline.inputs import Failure, find_cases
from autoliver.planning.modality import Judgement
from autoliver.planning.names import ModalityName
from autoliver.system import entries
from autoliver.values import check_text, check_types, counted
from autoliver.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class AdoptRequest:
    """A request to `adopt`.

    Attributes:
        like: Model or dataset with the same labels and channels; None for the model that predicted.
        modality: What the images are; None to decide it by their values.
        link: Whether images are linked instead of copied.
        machine: The processes and memory that may be used.
    """

    like: str | None = None
    modality: ModalityName | None = None
    link: bool = False
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            OptionError: A value is invalid; the message names the option and the value.
        """
        check_types(self)
        if self.like is not None:
            check_text("--like", self.like, "the name of a dataset or model")


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """The result of `adopt`.

    Attributes:
        folder: The new dataset.
        channel_names: The names of its channels.
        adoption: Where it comes from, as in its adopted.json.
        empty: Cases whose label map holds nothing but background.
        left_out: Images that have no label map.
        renamed: Whether channels have other names than in the model, whose images are of another
            modality.
        next_command: The command that makes sense next.
    """

    folder: Path
    channel_names: tuple[str, ...]
    adoption: Adoption
    empty: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    renamed: bool = False
    next_command: str

    __repr__ = brief

    @property
    def facts(self) -> dict[str, object]:
        """The result as plain values, for --json."""
        return {
            "dataset": str(self.folder),
            "channel_names": list(self.channel_names),
            "empty": list(self.empty),
            "left_out": list(self.left_out),
            "next": self.next_command,
            **msgspec.to_builtins(self.adoption),
        }


def adopt(
    workspace: Workspace,
    images: Path | Sequence[Path],
    corrected: Path,
    output: Path,
    request: AdoptRequest | None = None,
) -> Adopted:
    """Makes a dataset in nnU-Net's layout of images and of label maps that a person has corrected.

    Images and label maps stay as they are. Nothing is written unless every case can be adopted.

    Args:
        workspace: The workspace in which models and datasets are looked up.
        images: Folder of images as for `predict`, or several of them.
        corrected: Folder of label maps, with the names that `predict` gives them; if predict.json
            lies beside them, the model is known by it. Images without a label map are left out.
        output: Folder of the new dataset.
        request: How to adopt; None for the defaults.

    Raises:
        DatasetError: Label maps do not fit their images, or hold other labels; the error lists
            every problem of every case. Or it is not known what the labels mean.
        OptionError: The output exists already.
        MachineError: The output cannot be written.
    """
    request = request or AdoptRequest()
    sources = (images,) if isinstance(images, Path) else tuple(images)
    _check_places(sources, corrected, output)
    record = read_record(
        corrected / RECORD_FILE,
        hint="Copy it again from the folder that predict wrote; or remove it, and name the model "
        "with --like.",
    )
    source = find_label_source(workspace, corrected, record, request.like)
    failures: list[Failure] = []
    cases = find_cases(sources, len(source.channel_names), failures)
    masks = _masks(corrected, cases, failures)
    predicted = {} if record is None else {_stem(n): h for n, h in record.voxels.items()}
    tasks = [
        CorrectedCase(
            case=_case(name, cases[name], mask),
            labels=source.labels,
            channels=len(source.channel_names),
            predicted=predicted.get(name, ""),
        )
        for name, mask in sorted(masks.items())
    ]
    pool = request.machine.pool("check", need=corrected_need, light=True)
    found = list(case_bar(pool.what, len(tasks))(pool.map(examine, tasks)))
    failures += _problems(tasks, found)
    judged = _modality(source, tasks, found, output.name, request, record)
    if judged.modality is None:
        failures.append(_undecided(judged))
    if failures or judged.modality is None:
        raise _refusal(failures)
    channels = channel_names_for(source, judged.modality)
    adoption = Adoption(
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        labels_from=source.name,
        model=None if record is None else record.model,
        weights_sha256=() if record is None else tuple(n.weights_sha256 for n in record.networks),
        modality=judged.modality,
        why=judged.why,
        linked=request.link,
        cases=tuple(adopted_case(t.case, e) for t, e in zip(tasks, found, strict=True)),
    )
    write_dataset(output, adoption, source=source, channel_names=channels)
    empty = [t.case.name for t, e in zip(tasks, found, strict=True) if e.empty]
    left_out = [name for name in cases if name not in masks]
    return Adopted(
        folder=output,
        channel_names=channels,
        adoption=adoption,
        empty=tuple(empty),
        left_out=tuple(left_out),
        renamed=channels != source.channel_names,
        next_command=_next_command(output, source, workspace),
    )


def _check_places(sources: Sequence[Path], corrected: Path, output: Path) -> None:
    refuse_inside_dataset(output)
    if output.is_symlink() or output.is_file() or entries(output):
        raise OptionError(
            f"{output}: it exists already, and a dataset is never added to or replaced.",
            hint="Choose a new folder.",
        )
    if not corrected.is_dir():
        raise DatasetError(
            f"{corrected}: there is no such folder.",
            hint="Give the folder of the corrected label maps.",
        )
    if any(source.is_dir() and source.samefile(corrected) for source in sources):
        raise OptionError(
            f"{corrected}: this is the folder of the images as well, where label maps would be "
            "taken for images.",
            hint="Put the corrected label maps into a folder of their own.",
        )


def _masks(
    corrected: Path, cases: Mapping[str, Sequence[Path]], failures: list[Failure]
) -> dict[str, Path]:
    """Finds the label map of each case; those of no image, or of one case twice, are failures."""
    files: dict[str, list[Path]] = {}
    for path in label_files(corrected):
        files.setdefault(_stem(path.name), []).append(path)
    failed = {failure.case for failure in failures}
    for name, paths in files.items():
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths)
            _fail(failures, name, f"{corrected} holds {both}.", "Keep the corrected one alone.")
        elif name not in cases and name not in failed and not is_uncertainty(name, cases):
            near = nearest(name.removesuffix("_0000"), cases)
            ending = split_ending(paths[0].name)[1]
            _fail(
                failures,
                name,
                f"{paths[0]} is a label map without an image.",
                f"Rename it to {near}{ending} if it is of that image, or move it out of the folder."
                if near
                else "Label maps are named like predict names them, CASE.nii.gz; rename it, or "
                "move it out of the folder.",
            )
    masks = {name: paths[0] for name, paths in files.items() if name in cases and len(paths) == 1}
    if not masks and not failures:
        raise DatasetError(
            f"{corrected}: there are no label maps.",
            hint="Give the folder of the corrected label maps.",
        )
    return masks


def _fail(failures: list[Failure], case: str, problem: str, hint: str) -> None:
    # Problems of single files begin with their paths, which often lack the name of the case.
    said = problem if problem.startswith(f"{case}: ") else f"{case}: {problem}"
    failures.append(Failure(case=case, problem=said, hint=hint))


def _case(name: str, images: Sequence[Path], mask: Path) -> Case:
    return Case(
        name=name,
        patient=name,
        images=tuple(str(image.absolute()) for image in images),
        label=str(mask.absolute()),
    )


def _problems(tasks: Sequence[CorrectedCase], found: Sequence[Examined]) -> list[Failure]:
    """What is wrong with single cases, and files that would have the same name in the dataset."""
    failures: list[Failure] = []
    taken: dict[str, Path] = {}
    for task, examined in zip(tasks, found, strict=True):
        for each in examined.problems:
            _fail(failures, task.case.name, each.problem, each.hint)
        for name, file in image_names(task.case).items():
            other = taken.setdefault(name.casefold(), file)
            if other != file:
                _fail(
                    failures,
                    task.case.name,
                    f"{other} and {file} would both be {name} in one folder.",
                    "Rename one of them, or save these images as .nii.gz.",
                )
    return failures


def _modality(
    source: LabelSource,
    tasks: Sequence[CorrectedCase],
    found: Sequence[Examined],
    folder: str,
    request: AdoptRequest,
    record: Prediction | None,
) -> Judgement:
    if request.modality is not None:
        return Judgement(modality=request.modality, why="as requested")
    ranges = [each.ranges for each in found if each.ranges is not None]
    if not ranges:  # then every case has a problem of its own
        return Judgement(modality=source.modality, why="")
    endings = {split_ending(image)[1].lower() for task in tasks for image in task.case.images}
    judged = judge_modality(source, ranges, endings, folder=folder)
    asked = None if record is None else record.options.modality
    if judged.modality is None and not judged.mixed and asked in ("CT", "MR"):
        return Judgement(modality=asked, why="as requested of predict")
    return judged


def _undecided(judged: Judgement) -> Failure:
    both = " If there are both, adopt them as two datasets." if judged.mixed else ""
    return Failure(
        case="",
        problem=f"Are these images CT or MR? {judged.why}.",
        hint=f"Say it with --modality CT, --modality MR or --modality other.{both}",
    )


def _refusal(failures: Sequence[Failure]) -> DatasetError:
    lines = [failure.problem for failure in failures]
    hints = dict.fromkeys(failure.hint for failure in failures if failure.hint)
    head = f"Nothing was written, for {counted(len(failures), 'problem')}:"
    error = DatasetError("\n".join([head, *lines]), hint="\n".join(hints))
    error.facts = {"problems": [asdict(failure) for failure in failures]}
    return error


def _next_command(output: Path, source: LabelSource, workspace: Workspace) -> str:
    return command(
        *("train", str(output), source.configuration or "3d_fullres"),
        options=["--pretrained", source.pretrained] if source.pretrained else [],
        workspace=workspace.root,
    )


def _stem(name: str) -> str:
    return split_ending(name)[0]
