"""The record of how a folder of predictions was made: predict.json beside the label maps.

It is written before the first label map. So a folder cannot silently mix cases of two models, or
cases predicted with different options.
"""

import contextlib
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
import numpy.typing as npt

from autoliver.artifacts import (
    Artifact,
    Fault,
    Record,
    digest,
    file_sha256,
    grown,
    save_growing,
    unfit,
    within,
)
from autoliver.commands import remove
from autoliver.datasets.cases import Labels, contradictions
from autoliver.datasets.layouts import RECORD_FILE as RECORD_FILE
from autoliver.errors import ArtifactError, OptionError
from autoliver.inference.options import (
    AS_IT_IS,
    LEAST_STEP,
    MOST_STEP,
    ModalityChoice,
    PredictOptions,
    UsedModality,
    UsedRegion,
)
from autoliver.io.detached import data_files
from autoliver.io.header import split_ending
from autoliver.locks import one_at_a_time
from autoliver.models.files import MODEL_FILE, FoldModel, ModelFiles, Place, load_infos
from autoliver.models.selection import MOST_TEMPERATURE, CleaningRule
from autoliver.system import entries
from autoliver.values import name_problem

if TYPE_CHECKING:
    from autoliver.inference.model import Member, Model
    from autoliver.inference.predict import PredictJob

# Folder, beside the label maps, of those that were not as predicted when they had to give way.
REPLACED = "replaced"

# Bytes that the name of a file may have on a disk.
_LONGEST_FILE = 255


class UsedNetwork(Record, frozen=True, kw_only=True):
    """A network that was used for a prediction.

    Attributes:
        part: The role of the network: "member" predicts the label map, "first stage" is the
            low-resolution stage of a cascade, "region" finds the region to predict in.
        run: Name of the folder of its run.
        fold: "0" to "4", or "all".
        weights_sha256: Checksum of its weights.
        ways: Maps each device to the ways of computing that were used on it, in order of first use.
            Without `exact`, ways after the first are chosen by timing.
    """

    part: Literal["member", "first stage", "region"]
    run: str
    fold: str
    weights_sha256: str
    ways: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)


class InputFile(Record, frozen=True, kw_only=True):
    """An image that a label map was made from.

    Attributes:
        name: Its file name.
        size: Size in bytes.
        mtime_ns: Time of its last modification, in nanoseconds.
        hash: Hash of the content, in hex digits; empty if it changed while it was predicted.
    """

    name: str
    size: int
    mtime_ns: int
    hash: str = ""


class WrittenFile(Record, frozen=True, kw_only=True):
    """A file that was written for a case.

    Attributes:
        name: Its file name.
        size: Size in bytes.
        hash: Hash of the content of a label map, in hex digits; empty for other files.
    """

    name: str
    size: int
    hash: str = ""


class DecidingOptions(Record, frozen=True, kw_only=True):
    """The options that decide what a label map holds; see `PredictOptions`.

    Attributes:
        step: Distance between neighbouring windows as a share of the patch.
        mirror: Whether predictions are averaged over flips.
        folds: The folds that were requested; None for all finished or selected ones.
        roi: "auto" or the model that finds the region to predict in; None to predict everywhere.
        modality: The modality by which each case is normalised; None to normalise as planned.
        exact: Whether the networks run unchanged in float32, with nothing chosen by timing.
        match: Whether cases of another modality were matched to the training images.
        lesions: Folder of the label maps whose lesions got a class; None if lesions were found.
    """

    step: float
    mirror: bool
    folds: str | None
    roi: str | None
    modality: ModalityChoice | None
    exact: bool
    match: bool = False
    lesions: str | None = None


class Prediction(Artifact, frozen=True, kw_only=True):
    """The model and options that the label maps of a folder were predicted with.

    Attributes:
        model: The model's name.
        networks: All networks of the model, member by member.
        cleaning: The cleaning rules that were applied to the label maps.
        options: The options that decide the result.
        labels: Names and values of the labels; None in records of earlier versions.
        label_maps: File names of the label maps that were predicted or are about to be. A case is
            finished once its file exists.
        inputs: Maps label maps that are finished to the images that they were made from; those of
            earlier versions are missing.
        voxels: Maps them to the `voxel_hash` of what was predicted, by which a correction is told.
        written: Maps them to the files that were written: the label map and, if asked for, the
            probabilities, the map of uncertainty and the preview.
        modalities: Maps them to the modality by which their images were normalised.
        finders: For a model that predicts in regions, the models that find them: name -> digest.
        regions: Maps label maps to the regions that they were predicted in; empty without them.
        notes: What whoever reads the label maps should know of the model, in sentences.
        temperature: Temperature of the probabilities of lesions' classes, in the table of lesions.
    """

    KIND: ClassVar[str] = "prediction"

    model: str
    networks: tuple[UsedNetwork, ...]
    cleaning: tuple[CleaningRule, ...]
    options: DecidingOptions
    labels: Labels | None = None
    label_maps: tuple[str, ...] = ()
    inputs: dict[str, tuple[InputFile, ...]] = msgspec.field(default_factory=dict)
    voxels: dict[str, str] = msgspec.field(default_factory=dict)
    written: dict[str, tuple[WrittenFile, ...]] = msgspec.field(default_factory=dict)
    modalities: dict[str, UsedModality] = msgspec.field(default_factory=dict)
    finders: dict[str, str] = msgspec.field(default_factory=dict)
    regions: dict[str, tuple[UsedRegion, ...]] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    temperature: float = 1.0

    def faults(self) -> Iterator[Fault]:
        """Yields names of files that lead elsewhere, rules' and labels', and numbers' bounds."""
        if self.labels is not None:
            yield from within("labels", self.labels.faults())
        for number, rule in enumerate(self.cleaning):
            yield from within(f"cleaning[{number}]", rule.faults())
        files = [file.name for group in self.written.values() for file in group]
        for name in (*self.label_maps, *self.inputs, *self.voxels, *self.written, *files):
            if name_problem(name, longest=_LONGEST_FILE):
                yield "label_maps", unfit(name, name_problem(name, longest=_LONGEST_FILE))
        if len(set(self.label_maps)) < len(self.label_maps):
            yield "label_maps", unfit(list(self.label_maps), "each once")
        if not LEAST_STEP <= self.options.step <= MOST_STEP:
            yield "options.step", unfit(self.options.step, f"{LEAST_STEP} to {MOST_STEP}")
        if not 0 < self.temperature <= MOST_TEMPERATURE:
            yield "temperature", unfit(self.temperature, f"above 0, at most {MOST_TEMPERATURE:g}")

    @property
    def folds(self) -> str:
        """The folds of the members, separated by commas."""
        return ", ".join(dict.fromkeys(n.fold for n in self.networks if n.part == "member"))

    @property
    def way(self) -> str:
        """A digest of all that `differences` compares, as hex digits."""
        options = self.options.replace(folds=None)
        weights = [self._weights(region=False), self._weights(region=True)]
        heat = [] if self.temperature == 1.0 else [self.temperature]
        return digest([weights, self.cleaning, options, *self._finders, *heat])

    def differences(self, other: "Prediction") -> list[str]:
        """Describes in words what the other prediction does differently; empty if nothing.

        Paths and devices are not compared.
        """
        found = []
        if self._weights(region=False) != other._weights(region=False):
            if self.model != other.model:
                found.append(f"{self.model}, not {other.model}")
            elif self.folds != other.folds:
                found.append(f"folds {self.folds} of {self.model}, not {other.folds}")
            else:
                found.append(f"other weights of {self.model}")
        if self._weights(region=True) != other._weights(region=True):
            then, now = (each.options.roi or "off" for each in (self, other))
            found.append(
                "other weights for --roi" if then == now else f"--roi {then}, not --roi {now}"
            )
        if self._finders != other._finders:
            found.append(f"--roi-from {' and '.join(self.finders) or 'nothing'}, as it was then")
        if self.cleaning != other.cleaning:
            found.append("other cleaning rules")
        if self.temperature != other.temperature:
            then, now = (f"{each.temperature:g}" for each in (self, other))
            found.append(f"temperature {then} for classes of lesions, not {now}")
        for name in ("step", "mirror", "modality", "exact", "match", "lesions"):
            then, now = (_flag(name, getattr(each.options, name)) for each in (self, other))
            if then != now:
                found.append(f"{then}, not {now}")
        return found

    def with_ways(self, model: "Model", *, exact: bool) -> "Prediction":
        """Adds the ways of computing that the networks of the loaded model have used so far."""
        networks = []
        for used, (member, index) in zip(self.networks, _loaded(model), strict=True):
            device = _device(member)
            ways = _union(used.ways.get(device, ()), _ways(member, index, exact=exact))
            networks.append(used.replace(ways={**used.ways, device: ways}))
        return self.replace(networks=tuple(networks))

    def with_case(
        self,
        name: str,
        made_from: tuple[InputFile, ...],
        predicted: str,
        files: Sequence[Path],
        modality: UsedModality,
        regions: tuple[UsedRegion, ...] = (),
    ) -> "Prediction":
        """Adds a label map that is finished.

        Args:
            name: Its file name.
            made_from: The images.
            predicted: The `voxel_hash` of its labels.
            files: The files that were written for the case, the label map first, which may not
                have its name yet.
            modality: The modality by which the images were normalised.
            regions: The regions that it was predicted in.
        """
        written = [WrittenFile(name=path.name, size=path.stat().st_size) for path in files]
        written[0] = written[0].replace(name=name, hash=file_sha256(files[0]))
        return self.replace(
            inputs={**self.inputs, name: made_from},
            voxels={**self.voxels, name: predicted},
            written={**self.written, name: tuple(written)},
            modalities={**self.modalities, name: modality},
            regions={**self.regions, **({name: regions} if regions else {})},
        )

    def with_further(self, name: str, file: Path) -> "Prediction":
        """Adds a file that was written for a finished label map, or replaces what is known of it.

        Args:
            name: The file name of the label map; nothing is known of one that is not recorded.
            file: The file.
        """
        if name not in self.written:
            return self
        kept = [each for each in self.written[name] if each.name != file.name]
        new = WrittenFile(name=file.name, size=file.stat().st_size)
        return self.replace(written={**self.written, name: (*kept, new)})

    def is_as_written(self, label_map: Path) -> bool:
        """Whether a label map is the file that was written; False if that is not recorded."""
        files = self.written.get(label_map.name, ())
        # Most changes show in the size, so that the content need not be read.
        return (
            bool(files)
            and files[0].size == label_map.stat().st_size
            and files[0].hash == file_sha256(label_map)
        )

    @property
    def _finders(self) -> list[str]:
        """What decides the regions, whatever the models are called; empty without regions."""
        return sorted(self.finders.values())

    def _weights(self, *, region: bool) -> list[tuple[str, str]]:
        wanted = (each for each in self.networks if (each.part == "region") == region)
        return [(each.part, each.weights_sha256) for each in wanted]


def describe(
    files: ModelFiles,
    options: PredictOptions,
    *,
    folds: str | None,
    roi: str | None,
    lesions: Path | None = None,
) -> Prediction:
    """Makes the record of a prediction that is about to begin; it names no label maps yet.

    Args:
        files: The model.
        options: How the model predicts.
        folds: The folds that were requested; None for all finished or selected ones.
        roi: "auto" or the model that finds the region to predict in; None to predict everywhere.
        lesions: Folder of the label maps whose lesions get a class; None to find lesions.

    Raises:
        ArtifactError: A model.json is missing or damaged.
        ModelError: The folds of a member do not fit together.
    """
    networks: list[UsedNetwork] = []
    for member in files.members:
        networks += _used(files, "member", member.folds)
        networks += _used(files, "first stage", member.previous)
    if files.finder is not None:
        networks += _used(files, "region", files.finder.folds)
    return Prediction(
        model=files.name,
        labels=FoldModel.load(files.members[0].folds[0] / MODEL_FILE).plan.labels,
        networks=tuple(networks),
        cleaning=files.cleaning,
        temperature=files.temperature,
        options=DecidingOptions(
            step=options.step,
            mirror=options.mirror,
            folds=folds,
            roi=roi,
            modality=options.modality,
            exact=options.exact,
            match=options.match,
            lesions=None if lesions is None else str(lesions.resolve()),
        ),
    )


def own_record(label_map: Path) -> Path:
    """Returns the record of a label map that was named as the only output."""
    return label_map.with_name(f"{split_ending(label_map.name)[0]}_{RECORD_FILE}")


def own_records(jobs: "Iterable[PredictJob]", path: Path) -> list[Path]:
    """Returns the records, other than that of the folder, that lie beside label maps."""
    # A listing, since the name may be longer than the disk takes.
    there = set(entries(path.parent))
    own = (own_record(job.output) for job in jobs)
    return [file for file in own if file in there and file != path]


def read_record(path: Path, *, hint: str = "") -> Prediction | None:
    """Reads the record of earlier predictions; None if there is none.

    Args:
        path: The record's file.
        hint: What to do if it is damaged; empty for what `predict` may do.

    Raises:
        ArtifactError: It is damaged.
    """
    if not path.exists():
        return None
    again = (
        f"Remove it ({remove(path)}), and give the same command with --overwrite, which keeps the "
        f"present label maps in {path.parent / REPLACED}."
    )
    return Prediction.load(path, hint=hint or again)


def refuse_other_labels(
    predictions: Path,
    labels: Labels,
    *,
    whose: str,
    hint: str = "Name a dataset or model with the labels of the one that predicted.",
) -> None:
    """Refuses to read label maps by labels that have other values than those of their model.

    Args:
        predictions: A folder of label maps, or one of them; nothing is known of it if no record
            that can be read lies beside it.
        labels: Names and values by which they are to be read.
        whose: Where these come from, for the message: "-d LiTS".
        hint: What to do then.

    Raises:
        OptionError: A label of the same name has another value.
    """
    folder = predictions if predictions.is_dir() else predictions.parent
    places = [] if predictions.is_dir() else [own_record(predictions)]
    for place in (*places, folder / RECORD_FILE):
        with contextlib.suppress(ArtifactError):
            record = read_record(place)
            if record is None or record.labels is None:
                continue
            if found := contradictions(record.labels, labels):
                name = found[0]
                theirs = next(n for n in labels.values if n.casefold() == name.casefold())
                raise OptionError(
                    f"{whose}: there {theirs} is {_numbers(labels.values[theirs])}, but "
                    f"{place} says that {record.model} predicted {name} as "
                    f"{_numbers(record.labels.values[name])}.",
                    hint=hint,
                )
            if record.labels.exclusive and record.labels.values != labels.values:
                raise OptionError(
                    f"{whose}: {place} says that {record.model} predicted lesions of all classes "
                    f"as one label; the labels to score are {', '.join(labels.foreground)}.",
                    hint="Name the model for its labels, with -d.",
                )
            return


def _numbers(values: Sequence[int]) -> str:
    return "+".join(map(str, values))


def input_files(images: Sequence[Path]) -> tuple[InputFile, ...]:
    """Returns the state of images without their hashes, to be taken before they are read."""
    states = [(path, path.stat()) for path in _whole(images)]
    return tuple(
        InputFile(name=path.name, size=state.st_size, mtime_ns=state.st_mtime_ns)
        for path, state in states
    )


def _whole(images: Sequence[Path]) -> list[Path]:
    """Returns images that can be reached, with the files of their voxels."""
    found: list[Path] = []
    for image in images:
        with contextlib.suppress(OSError):  # whoever reads the image says what is wrong
            found += [file for file in data_files(image) if file.is_file()]
    return found


def with_hashes(files: Sequence[InputFile], images: Sequence[Path]) -> tuple[InputFile, ...]:
    """Adds the hashes of images that are still as they were before they were read."""
    same = tuple(files) == input_files(images)
    return tuple(
        file.replace(hash=file_sha256(path) if same else "")
        for file, path in zip(files, _whole(images), strict=False)
    )


def is_changed(then: Sequence[InputFile], images: Sequence[Path]) -> bool:
    """Whether images differ from those that a label map was made from.

    Of images of the same size and time, the content is not read again. Images that cannot be read
    at the moment are not known to have changed.
    """
    try:
        states = [image.stat() for image in images]
        if not all(stat.S_ISREG(state.st_mode) for state in states):
            return True
        now = input_files(images)
        if [file.name for file in then] != [file.name for file in now]:
            return True
        return any(
            not before.hash
            or before.size != after.size
            or (before.mtime_ns != after.mtime_ns and file_sha256(path) != before.hash)
            for before, after, path in zip(then, now, _whole(images), strict=True)
        )
    except OSError:
        return False


def voxel_hash(array_zyx: npt.NDArray[Any]) -> str:
    """Returns a hash of the labels (z, y, x) of a label map, whatever type and file hold them."""
    found = blake2b(repr(array_zyx.shape).encode(), digest_size=20)
    for plane in array_zyx:
        found.update(plane.astype("<i4", order="C").tobytes())
    return found.hexdigest()


def begin_record(
    path: Path,
    now: Prediction,
    label_maps: Sequence[str],
    *,
    replaced: Collection[str],
    corrected: Collection[str],
) -> Prediction:
    """Returns the record of a folder as it will be once further cases are predicted.

    Args:
        path: The record's file, beside the label maps.
        now: The record of the prediction that is about to begin.
        label_maps: File names of the label maps to predict.
        replaced: Those among them whose present content may be lost: the user says so, or it was
            made from another image. The others are only completed, e.g. by probabilities.
        corrected: File names of those that are known to have been corrected.

    Raises:
        ArtifactError: The folder's record is damaged.
        OptionError: Finished cases that stay were predicted with another model or other options.
    """
    then = read_record(path)
    stay = refuse_mixing(then, now, replaced=replaced, corrected=corrected, path=path)
    if then is None or not stay:
        return now.replace(label_maps=tuple(sorted(label_maps)))
    return then.replace(label_maps=tuple(sorted({*then.label_maps, *label_maps})))


def refuse_mixing(
    then: Prediction | None,
    now: Prediction,
    *,
    replaced: Collection[str],
    corrected: Collection[str],
    path: Path,
) -> list[str]:
    """Refuses to leave label maps that were predicted otherwise than those to come.

    Args:
        then: An earlier record; None if there is none.
        now: The record of the prediction that is about to begin.
        replaced: As for `begin_record`.
        corrected: As for `begin_record`.
        path: The file of the earlier record.

    Returns:
        File names of the label maps that the record names and that stay.

    Raises:
        OptionError: They were predicted with another model or other options.
    """
    if then is None:
        return []
    folder = path.parent
    stay = [n for n in then.label_maps if n not in replaced and (folder / n).exists()]
    differences = then.differences(now)
    if stay and differences and path.name != RECORD_FILE:
        raise OptionError(
            f"{folder / stay[0]}: it was predicted before, which was with "
            f"{'; with '.join(differences)}.",
            hint="Choose another place with -o, or replace it with --overwrite.",
        )
    if stay and differences:
        others = f" and {len(stay) - 1} more" if len(stay) > 1 else ""
        mended = [name for name in stay if name in corrected]
        note = f" Corrected since then: {', '.join(mended)}." if mended else ""
        kept = f", which keeps the corrected ones in {folder / REPLACED}" if mended else ""
        raise OptionError(
            f"{folder}: {stay[0]}{others} would stay as predicted before, which was with "
            f"{'; with '.join(differences)}.{note}",
            hint="Choose another folder with -o; or move what would stay away; or predict all of "
            f"it again, with all its images (-i) and --overwrite{kept}.",
        )
    return stay


def clear_outdated(
    path: Path, record: Prediction, jobs: "Iterable[PredictJob]", *, outdated: Collection[str]
) -> None:
    """Removes the files of cases to predict that were not predicted as the record says.

    They are about to be replaced. If they were still there after an interruption, they would count
    as finished; and probabilities that nobody asks for this time would stay, those of another
    model.

    Args:
        path: The record's file, as it was before.
        record: The record as it will be.
        jobs: The cases to predict.
        outdated: Names of cases whose label map is damaged or was made from another image.
    """
    then = read_record(path)
    alike = then is not None and not then.differences(record)
    there = {file for file in entries(path.parent) if file.is_file()}
    for job in jobs:
        known = then is not None and alike and job.output.name in then.label_maps
        if not known or job.name in outdated:
            for file in there.intersection(job.files):
                file.unlink()


def save_record(path: Path, record: Prediction) -> None:
    """Writes the record, merged with one that another process may have written meanwhile.

    Raises:
        ArtifactError: The existing record is damaged.
        AutoliverError: The file cannot be written: the disk is full or read-only, or permission is
            missing.
    """
    with one_at_a_time(path.parent):
        there = grown(Prediction, path) or read_record(path)
        if there is not None and not there.differences(record):
            record = record.replace(
                label_maps=tuple(sorted({*there.label_maps, *record.label_maps})),
                **{
                    # By name, so that it does not tell in which order cases were finished.
                    field: dict(sorted({**getattr(there, field), **getattr(record, field)}.items()))
                    for field in ("inputs", "voxels", "written", "modalities", "regions")
                },
            )
        if there == record:
            return
        save_growing(record, path)


def _used(
    files: ModelFiles, part: Literal["member", "first stage", "region"], folds: Sequence[Place]
) -> Iterator[UsedNetwork]:
    infos = load_infos(folds, name=files.name) if folds else []
    for fold, info in zip(folds, infos, strict=True):
        yield UsedNetwork(
            part=part, run=fold.parent.name, fold=info.fold, weights_sha256=info.weights_sha256
        )


def _loaded(model: "Model") -> Iterator[tuple["Member", int]]:
    """Yields the networks of a model in the order of `describe`, as member and index in it."""
    for member in model.members:
        for part in (member, member.previous):
            if part is not None:
                yield from ((part, index) for index in range(len(part.networks)))
    if model.finder is not None:
        yield from ((model.finder, index) for index in range(len(model.finder.networks)))


def _device(member: "Member") -> str:
    if member.device.type != "cuda":
        return str(member.device)
    import torch

    return f"{member.device} ({torch.cuda.get_device_name(member.device)})"


def _ways(member: "Member", index: int, *, exact: bool) -> tuple[str, ...]:
    precision = "float16" if member.device.type == "cuda" and not exact else "float32"
    # With `exact` the bare network is used, which does not record its ways.
    names = (AS_IT_IS,) if exact else getattr(member.networks[index], "ways", (AS_IT_IS,))
    return tuple(name if name == "bfloat16" else f"{precision}, {name}" for name in names)


def _union(some: Iterable[str], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*some, *more]))


def _flag(name: str, value: object) -> str:
    if name == "exact":
        return "--exact" if value else "the fastest way"
    if name in ("match", "lesions") and not value:
        return f"no --{name}"
    if name == "match":
        return "--match"
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value}"
