"""Labels cases with a model, and makes a dataset of those whose labels are plausible."""

import shutil
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.artifacts import as_json, brief, digest, write_bytes
from autoliver.commands import command
from autoliver.datasets.cases import Case, Dataset, Labels, read_dataset
from autoliver.datasets.lesions import is_lesion
from autoliver.datasets.names import refuse_inside_dataset
from autoliver.errors import DatasetError, OptionError
from autoliver.inference.options import PredictOptions
from autoliver.io.detached import data_files
from autoliver.machine import WHOLE_MACHINE
from autoliver.parallel import case_bar
from autoliver.pipeline.prediction import PredictRequest
from autoliver.pipeline.pseudo.kept import files_of, label_one, labelling_stage
from autoliver.pipeline.pseudo.labelling import Judged, Labelling, missing_in
from autoliver.pipeline.pseudo.request import PseudolabelRequest
from autoliver.pipeline.pseudo.write import description_of, table_of
from autoliver.pipeline.region import find_finders, home_of
from autoliver.shards import EVERY_CASE, InTurn, KeptCases, Sharded, ShardFolder
from autoliver.system import entries, in_words
from autoliver.values import counted, first_few, meant
from autoliver.workspace import Workspace

if TYPE_CHECKING:
    from autoliver.models.files import ModelFiles
    from autoliver.planning.plan import Plan

TABLE_FILE = "pseudolabels.csv"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Pseudolabelled:
    """The result of `pseudolabel`.

    Attributes:
        folder: The new dataset.
        model: Name of the model.
        cases: All cases, refused ones included.
        table: The table of all cases.
        next_command: The command that makes sense next.
    """

    folder: Path
    model: str
    cases: tuple[Judged, ...]
    table: Path
    next_command: str

    @property
    def facts(self) -> dict[str, object]:
        """The result as plain values, for --json."""
        return {
            "dataset": str(self.folder),
            "model": self.model,
            "kept": sum(not case.refused for case in self.cases),
            "refused": {case.case: case.refused for case in self.cases if case.refused},
            "table": str(self.table),
            "next": self.next_command,
        }

    __repr__ = brief


def pseudolabel(
    workspace: Workspace, name: str, model: str, output: Path, request: PseudolabelRequest
) -> Pseudolabelled | Sharded:
    """Makes a dataset in which a model has labelled the cases of another one.

    Images are referred to and not copied. Labels that people have drawn stay, and are painted over
    those of the model. The predictions are kept in the folder, so that an interrupted call goes on.

    Args:
        workspace: The workspace in which the dataset and the model are looked up.
        name: Path or name of the dataset; cases without a label map are labelled as well.
        model: Name or path of the model.
        output: Folder of the new dataset.
        request: What to label, and what to refuse.

    Returns:
        The new dataset; or what a shard has done, of whose cases no dataset is made yet.

    Raises:
        DatasetError: The model lacks a label, an image cannot be read, or every case is refused.
        OptionError: The output exists already, or holds predictions of another model.
        ModelError: There is no such model.
    """
    dataset = workspace.read(name)
    files = workspace.model_to_predict(model, folds=request.folds)
    trained = _plan_of(files)
    theirs = trained.labels
    known = {label.casefold(): label for label in dataset.labels.foreground}
    parts = {
        known.get(label.casefold(), label): _parts(label, theirs, files.name)
        for label in request.labels
    }
    if not any(missing_in(case, dataset.labels, list(parts)) for case in dataset.cases):
        raise DatasetError(
            f"{dataset.name}: people have drawn {' and '.join(parts)} in all of "
            f"{counted(len(dataset.cases), 'case')}.",
            hint="Nothing is left to a model. Where a label map is not complete, say so in "
            f'dataset.json: "annotated": {{"CASE": {{"{next(iter(parts))}": "none"}}}}.',
        )
    _check_new(output, overwrite=request.overwrite)
    labels = _joined(dataset, request, list(parts))
    shards = workspace.shards("pseudolabel", dataset.folder, output.resolve())
    # On whatever machine they are made, and by which shard, labels are the same.
    asked = replace(request, machine=WHOLE_MACHINE, shard=None)
    work = Labelling(
        theirs=theirs,
        parts=parts,
        own=dataset.labels,
        labels=labels,
        request=asked,
        output=output,
    )
    if request.shard is not None:
        return _label_shard(files, dataset, work, request, shards)
    with shards.finishing():
        probabilities = _predict(files, dataset, dataset.cases, output / "predicted", request)
        judged = _label_all(dataset, probabilities, work, shards)
        _write(dataset, trained, work, judged)
    return Pseudolabelled(
        folder=output,
        model=files.name,
        cases=tuple(judged),
        table=output / TABLE_FILE,
        next_command=command("plan", str(output), workspace=workspace.root),
    )


def _label_shard(
    files: "ModelFiles",
    dataset: Dataset,
    work: Labelling,
    request: PseudolabelRequest,
    shards: ShardFolder,
) -> Sharded:
    """Predicts and labels the cases of a shard."""
    shard = request.shard or EVERY_CASE
    cases = shard.part(dataset.cases, lambda case: case.name)
    mapper = shards.kept(labelling_stage(work.output), InTurn())
    if cases:
        with shards.doing(shard):
            probabilities = _predict(files, dataset, cases, work.output / "predicted", request)
            items = [(case, probabilities[case.name]) for case in cases]
            bar = case_bar("label", len(items))
            deque(bar(mapper.map(partial(label_one, work=work), items)), maxlen=0)
    names = tuple(case.name for case in cases)
    return Sharded(shard=shard, cases=names, new=len(mapper.new), of=len(dataset.cases))


def _label_all(
    dataset: Dataset,
    probabilities: Mapping[str, Path],
    work: Labelling,
    shards: ShardFolder,
) -> list[Judged]:
    """Labels all cases; those stay that shards have labelled."""
    items = [(case, probabilities[case.name]) for case in dataset.cases]
    label = partial(label_one, work=work)
    mapper = shards.whole(labelling_stage(work.output), InTurn())
    done = mapper.finished(label, items) if isinstance(mapper, KeptCases) else set()
    _clear(work.output, keep=done)
    return list(case_bar("label", len(items))(mapper.map(label, items)))


def _write(dataset: Dataset, trained: "Plan", work: Labelling, judged: Sequence[Judged]) -> None:
    """Writes the table and the description of the new dataset.

    Raises:
        DatasetError: Every case is refused.
    """
    output, labels = work.output, work.labels
    table = output / TABLE_FILE
    write_bytes(table, table_of(judged).encode())
    kept = {each.case for each in judged if not each.refused}
    if not kept:
        raise DatasetError(
            f"{dataset.name}: all of {counted(len(judged), 'case')} were refused: "
            f"{first_few([f'{j.case} ({j.refused})' for j in judged], _SHOWN)}.",
            hint=f"Look at {output / 'pictures'} and {table}; allow more with --min-confidence, "
            "--volume or --max-outside, or choose another model.",
        )
    description = description_of(dataset, labels, kept, list(work.parts), trained.codes)
    write_bytes(output / "dataset.json", as_json(description))
    read_dataset(output)


def _clear(output: Path, *, keep: Collection[str]) -> None:
    """Removes what an earlier call has made of its predictions, the description first.

    Args:
        output: The folder.
        keep: Names of the cases whose files stay.
    """
    kept = {file for name in keep for file in files_of(output, name)}
    with in_words(output, verb="written"):
        (output / "dataset.json").unlink(missing_ok=True)
        for name in ("labelsTr", "pictures"):
            if not keep and (output / name).is_dir():
                shutil.rmtree(output / name)
            for file in entries(output / name):
                if file not in kept:
                    file.unlink()


def _plan_of(files: "ModelFiles") -> "Plan":
    from autoliver.models.files import MODEL_FILE, FoldModel

    return FoldModel.load(files.members[0].folds[0] / MODEL_FILE).plan


def _parts(label: str, theirs: Labels, model: str) -> tuple[str, ...]:
    """Returns the model's labels that count as a label; an organ includes its lesions."""
    known = {name.casefold(): name for name in theirs.foreground}
    found = known.get(label.casefold())
    if found is None:
        raise DatasetError(
            f"--label {label}: {model} has no such label, only {', '.join(theirs.foreground)}.",
            hint=meant(label, list(theirs.foreground)) or "Choose one of these, or another model.",
        )
    lesions = [name for name in theirs.foreground if is_lesion(name)]
    inside = lesions if found.casefold() == "liver" and not theirs.has_regions else []
    return (found, *inside)


def _check_new(output: Path, *, overwrite: bool) -> None:
    refuse_inside_dataset(output)
    there = [path.name for path in entries(output)]
    if not there or (overwrite and "predicted" in there):
        return
    if "predicted" not in there:
        raise OptionError(
            f"{output}: it exists already, and was not made by pseudolabel: it holds {there[0]}.",
            hint="Choose a new folder.",
        )
    if "dataset.json" in there:
        raise OptionError(
            f"{output}: there is a dataset already.",
            hint="Choose a new folder, or make it anew with --overwrite.",
        )


def _images_of(dataset: Dataset) -> str:
    """A digest of the names and sizes of all images."""
    sizes = [
        (case.name, [(file.name, file.stat().st_size) for file in _image_files(case)])
        for case in dataset.cases
    ]
    return digest(sizes)


def _image_files(case: Case) -> list[Path]:
    return [file for image in case.images for file in data_files(Path(image))]


def _joined(dataset: Dataset, request: PseudolabelRequest, given: Sequence[str]) -> Labels:
    """The labels of the new dataset: those of the model around those that are drawn."""
    drawn = {
        name: values
        for name, values in dataset.labels.foreground.items()
        if dataset.labelled and name.casefold() not in {each.casefold() for each in given}
    }
    # A liver with its lesions is what comes out; other regions would have to be told apart.
    unions = [n for n, v in drawn.items() if len(v) > 1 and n.casefold() != "liver"]
    if unions:
        raise DatasetError(
            f"{dataset.name}: its label {unions[0]} is a region of several values, which cannot be "
            "joined with the labels of a model.",
            hint="Give a dataset whose labels, but for the liver, have one value each.",
        )
    inside = [name for name in drawn if is_lesion(name)]
    values: dict[str, tuple[int, ...]] = {"background": (0,)}
    number = {name: i for i, name in enumerate([*given, *drawn], 1)}
    for name, own in number.items():
        inner = [number[each] for each in inside] if name.casefold() == "liver" else []
        values[name] = (own, *inner)
    ignored = dataset.labels.ignore is not None or request.band is not None
    nested = any(len(group) > 1 for group in values.values())
    return Labels(
        values=values,
        regions_class_order=tuple(number.values()) if nested else None,
        ignore=len(number) + 1 if ignored else None,
    )


def _predict(
    files: "ModelFiles",
    dataset: Dataset,
    wanted: Sequence[Case],
    folder: Path,
    request: PseudolabelRequest,
) -> dict[str, Path]:
    """Predicts cases with their probabilities; finished ones stay."""
    from autoliver.inference.predict import make_jobs
    from autoliver.inference.record import RECORD_FILE, describe, read_record
    from autoliver.pipeline.prediction import predict

    options = PredictOptions(modality=request.modality)
    now = describe(files, options, folds=request.folds, roi=None)
    home = home_of(files)
    finders = {each.name: each.digest for each in find_finders(home, files, None)}
    now = now.replace(made_from={"images": _images_of(dataset)}, finders=finders)
    then = read_record(folder / RECORD_FILE)
    if then is not None and not request.overwrite and then.made_from != now.made_from:
        raise OptionError(
            f"{folder}: it was begun for other images than those of {dataset.name}.",
            hint="Choose a new folder, or begin anew with --overwrite.",
        )
    if then is not None and not request.overwrite and (found := then.differences(now)):
        raise OptionError(
            f"{folder}: its predictions were made with {'; with '.join(found)}.",
            hint="Choose a new folder, or predict anew with --overwrite.",
        )
    if request.overwrite and folder.is_dir():
        shutil.rmtree(folder)
    now.save(folder / RECORD_FILE)
    cases = {case.name: [Path(image) for image in case.images] for case in wanted}
    asked = PredictRequest(probabilities=True, modality=request.modality, machine=request.machine)
    predict(files, cases, folder, asked)
    return {job.name: job.probabilities for job in make_jobs(cases, folder)}
