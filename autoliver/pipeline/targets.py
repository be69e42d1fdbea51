"""Where the label maps of `predict` go, and which of them are there already.

A label map is finished if a record (`inference/record.py`) names it and it is as it was written, or
as somebody has corrected it. A file that no record names is somebody else's and is never replaced
unasked.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from autoliver.datasets.cases import Modality
from autoliver.datasets.names import dataset_of, is_dataset
from autoliver.errors import DatasetError, OptionError
from autoliver.inference.predict import PredictJob, make_jobs
from autoliver.inference.record import (
    RECORD_FILE,
    REPLACED,
    Prediction,
    is_changed,
    own_record,
    own_records,
    read_record,
    voxel_hash,
)
from autoliver.inference.shard_records import record_of, records_of_shards
from autoliver.io.dicom.series import Series
from autoliver.io.files import read_header, read_label
from autoliver.io.header import UnreadableImage, label_ending, split_ending
from autoliver.pipeline.dicom.staging import LABELS
from autoliver.pipeline.evaluation import EvaluateRequest
from autoliver.pipeline.prediction import PredictRequest, is_complete
from autoliver.shards import Shard
from autoliver.system import entries, in_words, refuse_special
from autoliver.values import counted

_log = logging.getLogger(__name__)
# Endings of files that nobody gives to a folder.
_NO_FOLDER = (".json", ".csv", ".txt", ".npz", ".npy", ".dcm", ".zip", ".gz", ".html", ".pdf")
_WITH_GRID = (".nii.gz", ".nii", ".nrrd", ".mha")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The cases that -i names.

    Attributes:
        sources: The folders of cases or files that it names.
        files: Maps each case to its image files.
        dicom: Maps the cases that are DICOM series to the modality that they state; their image
            files are made of the series.
        series: Maps these cases to their series.
    """

    sources: Sequence[Path]
    files: dict[str, tuple[Path, ...]]
    dicom: Mapping[str, Modality | None] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The cases to predict with the files to write.

    Attributes:
        jobs: The cases.
        record: The file of the record that they are to be noted in.
        shard: The shard whose cases these are; None for all cases.
    """

    jobs: Sequence[PredictJob]
    record: Path
    shard: Shard | None = None

    @cached_property
    def own_records(self) -> list[Path]:
        """Further records: of label maps that were once the only output, and for a shard of all."""
        found = own_records(self.jobs, self.record)
        return found if self.shard is None else [*found, self.record.with_name(RECORD_FILE)]

    @cached_property
    def shards(self) -> list[Path]:
        """The records that shards have left, but for that of this one."""
        found = records_of_shards(self.record.parent)
        return [path for path in found if path != self.record]

    @property
    def all_records(self) -> set[str]:
        """The names of all records that these label maps may be noted in, there or not."""
        return {RECORD_FILE, self.record.name, *(own_record(job.output).name for job in self.jobs)}

    @cached_property
    def known(self) -> dict[str, Prediction]:
        """Maps the file names of label maps to the record that names them.

        Raises:
            ArtifactError: A record is damaged.
        """
        found: dict[str, Prediction] = {}
        # What shards have predicted is newer than the record of all.
        last = (self.record, *self.shards) if self.shard is None else (*self.shards, self.record)
        for record in map(read_record, (*self.own_records, *last)):
            found |= {} if record is None else dict.fromkeys(record.label_maps, record)
        return found


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What has to be done for the cases of a folder.

    Attributes:
        todo: The cases to predict.
        outdated: Names of those among them whose label map is there, but is damaged or was made
            from another image.
        corrected: File names of the label maps that are there and that somebody has corrected.
        set_aside: Files that give way to predictions, but hold what somebody may want: they are not
            known to be as they were predicted, or they are scores of what is replaced.
        kept: Maps the names of cases that would have to be predicted again to the reason why their
            label map stays all the same.
    """

    todo: list[PredictJob] = field(default_factory=list)
    outdated: set[str] = field(default_factory=set)
    corrected: list[str] = field(default_factory=list)
    set_aside: list[Path] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def find_targets(
    inputs: Inputs,
    output: Path,
    *,
    overwrite: bool,
    taken: Sequence[Path] = (),
    lesions: Mapping[str, Path] | None = None,
    shard: Shard | None = None,
) -> Targets:
    """Decides which files to write.

    Args:
        inputs: The cases.
        output: Folder for the label maps; or a file, for the label map of a single case.
        overwrite: Whether label maps that are there may be replaced.
        taken: Folders of the workspace, which hold other things.
        lesions: Maps cases to label maps of their lesions, if these are given.
        shard: The shard whose cases these are; None for all cases.

    Raises:
        OptionError: The output cannot take the label maps, or they would replace files that were
            not predicted there.
        ArtifactError: A record is damaged.
    """
    sources, cases, dicom = inputs.sources, inputs.files, inputs.dicom
    modalities = {name: found for name, found in dicom.items() if found is not None}
    to_a_file = bool(split_ending(output.name)[1]) and not output.is_dir()
    _refuse_place(sources, output, taken, to_a_file=to_a_file)
    if not to_a_file:
        jobs = make_jobs(
            cases,
            output,
            modalities=modalities,
            lesions=lesions,
            endings=dict.fromkeys(dicom, LABELS),
        )
        record = record_of(output, shard)
        targets, folder = Targets(jobs=jobs, record=record, shard=shard), output
    elif shard is not None:
        raise OptionError(
            f"--shard {shard}: shards need a folder, and -o {output} is a file.",
            hint="Name a folder with -o.",
        )
    else:
        if len(cases) != 1 or (not dicom and any(source.is_dir() for source in sources)):
            raise OptionError(
                f"-o {output}: one file, but -i names {counted(len(cases), 'case')}.",
                hint="Name a folder with -o.",
            )
        ((name, images),) = cases.items()
        job = PredictJob(
            name=name,
            images=images,
            output=output,
            modality=modalities.get(name),
            lesions=(lesions or {}).get(name),
        )
        targets, folder = _one_target(job), output.parent
    _refuse_foreign(targets, folder, output, overwrite=overwrite)
    return targets


def _refuse_place(
    sources: Sequence[Path], output: Path, taken: Sequence[Path], *, to_a_file: bool
) -> None:
    """Refuses places that hold other things, or that cannot hold label maps.

    Raises:
        OptionError: The output is such a place.
    """
    _refuse_workspace(output, taken)
    if is_dataset(output):
        raise OptionError(
            f"-o {output}: this is the folder of a dataset.",
            hint=f"Choose a folder of its own with -o, e.g. {output / 'predictions'}",
        )
    if output.suffix.lower() in _NO_FOLDER and not to_a_file and not output.is_dir():
        raise OptionError(
            f"-o {output}: {output.suffix} cannot hold label maps, and looks like a file's ending.",
            hint="Name a folder with -o; or for a single image a file, such as "
            f"{output.with_suffix('.nii.gz')}.",
        )
    for source in sources:
        if source.is_dir() and output.resolve() == source.resolve():
            raise OptionError(
                f"-o {output}: this is the folder of the images (-i), where the label maps would "
                "be taken for images the next time.",
                hint="Choose another folder with -o, e.g. one inside it.",
            )
    if to_a_file:
        _check_ending(output)


def _check_ending(output: Path) -> None:
    """Refuses a file whose ending is in capitals, in which image files are read but not written."""
    stem, ending = split_ending(output.name)
    if ending != ending.lower():
        raise OptionError(
            f"-o {output}: label maps are written with endings in small letters, found {ending}.",
            hint=f"Choose {output.with_name(stem + label_ending(ending))}",
        )


def _refuse_workspace(output: Path, taken: Sequence[Path]) -> None:
    """Refuses the folders in which the workspace keeps datasets and models."""
    place = output.resolve()
    for folder in taken:
        if place.is_relative_to(folder.resolve()):
            raise OptionError(
                f"-o {output}: {folder} is where the workspace keeps {folder.name}.",
                hint="Choose a folder outside it with -o.",
            )


def _one_target(job: PredictJob) -> Targets:
    """Returns a case with the file that is named for its label map, and that of the record.

    Raises:
        OptionError: The file cannot take the label map.
    """
    output, images = job.output, job.images
    stem, ending = split_ending(output.name)
    like_image = label_ending(split_ending(images[0].name)[1])
    # Pictures do not say where in the body they are.
    if ending not in (*_WITH_GRID, like_image):
        better = label_ending(ending)
        better = better if better in (*_WITH_GRID, like_image) else like_image
        raise OptionError(
            f"-o {output}: {ending} cannot hold label maps of {images[0].name}.",
            hint=f"Choose {stem}{better}.",
        )
    if output.resolve() in {image.resolve() for image in images}:
        raise OptionError(
            f"-o {output}: this is the image itself.", hint="Choose another file with -o."
        )
    jobs = [job]
    shared = output.with_name(RECORD_FILE)  # of a folder that this case was predicted in before
    known = read_record(shared)
    if known is not None and output.name in known.label_maps:
        return Targets(jobs=jobs, record=shared)
    own = own_record(output)
    known = read_record(own)
    others = [] if known is None else [n for n in known.label_maps if n != output.name]
    others = [other for other in others if output.with_name(other).exists()]
    if others:
        raise OptionError(
            f"-o {output}: {own.name} beside it is the record of {others[0]}.",
            hint="Choose a file of another name with -o.",
        )
    return Targets(jobs=jobs, record=own)


def _refuse_foreign(targets: Targets, folder: Path, output: Path, *, overwrite: bool) -> None:
    """Refuses to replace what was not predicted there, or was predicted from another case."""
    known = targets.known
    there = set(entries(folder))
    foreign = [
        file.name
        for job in targets.jobs
        if job.output.name not in known
        for file in job.files
        if file in there
    ]
    _refuse_folders_of_a_dataset(folder, output, foreign)
    if overwrite:
        return
    if foreign:
        raise OptionError(
            f"-o {output}: {_listed(foreign)} already there, and no {RECORD_FILE} says that "
            f"{'this file was' if len(foreign) == 1 else 'these files were'} predicted.",
            hint="Choose another place with -o, or predict with --overwrite, which moves what is "
            f"there to {folder / REPLACED}.",
        )
    for job in (job for job in targets.jobs if job.finished):
        made_from = [file.name for file in known[job.output.name].inputs.get(job.output.name, ())]
        if made_from and not {file.name for file in job.inputs} <= set(made_from):
            raise OptionError(
                f"{job.output}: this is the label map of {made_from[0]}, not of "
                f"{job.images[0].name}.",
                hint="Choose another place with -o, or replace it with --overwrite.",
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more files" if len(names) > 2 else ""
    more = f" and {names[1]}" if len(names) == 2 else more
    return f"{names[0]}{more} {'is' if len(names) == 1 else 'are'}"


def _refuse_folders_of_a_dataset(folder: Path, output: Path, foreign: Sequence[str]) -> None:
    """Refuses the folders of a dataset, where label maps would be taken for the reference.

    That of the test cases' label maps may hold predictions if it holds nothing else.
    """
    dataset = dataset_of(folder)
    if dataset is None or (folder.resolve().name.lower() == "labelsts" and not foreign):
        return
    raise OptionError(
        f"-o {output}: {folder.name} belongs to the dataset {dataset}; label maps in it would be "
        "taken for data of the dataset.",
        hint=f"Choose another folder with -o, e.g. {dataset / 'predictions'}",
    )


def find_standing(targets: Targets, request: PredictRequest) -> Standing:
    """Finds out which cases are finished.

    Args:
        targets: The cases.
        request: How to predict.

    Returns:
        What has to be done. Of each label map that is not as it was written, a note is logged.
    """
    known = targets.known
    standing = Standing()
    there = set(entries(targets.record.parent))  # whatever it is
    for job in targets.jobs:
        record = known.get(job.output.name)
        if record is None or not job.finished:
            standing.todo.append(job)
            if record is None:
                standing.set_aside.extend(filter(there.__contains__, job.files))
        elif request.overwrite:
            standing.todo.append(job)
            if _has_another_image(job, record):
                standing.outdated.add(job.name)
            if not _is_as_predicted(job, record):
                standing.set_aside.extend(filter(there.__contains__, job.files))
        else:
            _judge(job, record, request, standing)
    replaced = (j for j in standing.todo if request.overwrite or j.name in standing.outdated)
    standing.set_aside.extend(_scores_of([job.output for job in replaced]))
    return standing


def _scores_of(label_maps: Sequence[Path]) -> list[Path]:
    """Returns the files with scores of label maps that are there, by themselves or as a folder."""
    replaced = [path for path in label_maps if path.is_file()]
    places = dict.fromkeys([*(path.parent for path in replaced), *replaced])
    # Listings, since a name may be longer than the disk takes.
    there = {file for folder in {path.parent for path in replaced} for file in entries(folder)}
    return [file for place in places for file in EvaluateRequest().files(place) if file in there]


def set_aside(files: Sequence[Path]) -> None:
    """Moves files that are about to be replaced to a folder beside them.

    Raises:
        MachineError: The system refuses to.
    """
    for file in files:
        refuse_special(file)
        kept = file.parent / REPLACED / file.name
        stem, ending = split_ending(file.name)
        number = 1
        while kept.exists():
            number += 1
            kept = kept.with_name(f"{stem}_{number}{ending or file.suffix}")
        with in_words(kept, verb="written"):
            kept.parent.mkdir(exist_ok=True)
            file.rename(kept)
    if files:
        more = f" and {counted(len(files) - 1, 'more file')}" if len(files) > 1 else ""
        _log.warning(
            "%s%s would have been replaced; kept in %s.", files[0], more, files[0].parent / REPLACED
        )


def _judge(
    job: PredictJob, record: Prediction, request: PredictRequest, standing: Standing
) -> None:
    """Decides on a case whose label map is there and is named by a record."""
    name = job.output.name
    reasons, corrected = [], False
    if _has_another_image(job, record):
        reasons.append("its image has changed since it was predicted")
    if not record.is_as_written(job.output):
        try:
            corrected = _is_corrected(job, record.voxels.get(name, ""))
            if corrected:
                standing.corrected.append(name)
        except UnreadableImage as error:
            reasons.append(error.problem.rstrip("."))
        except DatasetError as error:
            standing.kept[job.name] = error.problem
            return
    if not reasons and _has_all_files(job, record, request):
        return
    if corrected:
        why = reasons[0] if reasons else "more files are asked for"
        standing.kept[job.name] = (
            f"{job.name}: {why}, but {name} has been corrected, and to predict it again would "
            "replace it."
        )
        return
    if reasons:
        standing.outdated.add(job.name)
        _log.warning("%s: %s; it is predicted again.", job.name, "; ".join(reasons))
    standing.todo.append(job)


def _has_another_image(job: PredictJob, record: Prediction) -> bool:
    made_from = record.inputs.get(job.output.name)
    return made_from is not None and is_changed(made_from, job.inputs)


def _is_as_predicted(job: PredictJob, record: Prediction) -> bool:
    """Whether a label map holds the labels that were predicted; not if that is not known."""
    if record.is_as_written(job.output):
        return True
    predicted = record.voxels.get(job.output.name, "")
    try:
        return bool(predicted) and voxel_hash(read_label(job.output).array[0]) == predicted
    except UnreadableImage:  # nobody's work
        return True
    except DatasetError:
        return False


def _is_corrected(job: PredictJob, predicted: str) -> bool:
    """Whether a label map holds other labels than were predicted.

    Args:
        job: Its case.
        predicted: The `voxel_hash` of what was predicted; empty if that is not known.

    Raises:
        UnreadableImage: It is damaged.
        DatasetError: It is not a label map of the case's image.
    """
    label = read_label(job.output)
    found = label.geometry.shape_zyx
    expected = found
    with contextlib.suppress(DatasetError):  # whoever reads the image says what is wrong with it
        expected = read_header(job.images[0]).geometry.shape_zyx
    if found != expected:
        raise DatasetError(
            f"{job.output}: it has {' x '.join(map(str, found))} voxels (z, y, x), its image "
            f"{' x '.join(map(str, expected))}: it was not predicted from it."
        )
    return bool(predicted) and voxel_hash(label.array[0]) != predicted


def _has_all_files(job: PredictJob, record: Prediction, request: PredictRequest) -> bool:
    """Whether the requested files are there, as long as they were written."""
    if not is_complete(job, request):
        return False
    sizes = {file.name: file.size for file in record.written.get(job.output.name, ())[1:]}
    return all(
        sizes.get(file.name) in (None, file.stat().st_size)
        for file in job.further(
            probabilities=request.probabilities, uncertainty=request.uncertainty
        )
    )
