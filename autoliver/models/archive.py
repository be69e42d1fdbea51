"""Models as one file, which `export` writes, `import` unpacks and `predict` reads in place.

It is a zip without compression, since weights do not compress:

    manifest.json                             description; size and SHA-256 of all other files
    model.json                                the selection: members, folds, cleaning rules
    runs/<run>/fold_<k>/model.json            plan, configuration, labels
    runs/<run>/fold_<k>/weights.safetensors

All files but the manifest are those of a model's folder. Only the names of the training cases,
which may be names of patients, are left out unless requested. (Hashed names could be guessed.)
Only JSON and safetensors are ever read, and an entry that the manifest does not list is refused.
"""

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from autoliver.artifacts import Artifact, Fault, unfit, within, write_bytes
from autoliver.datasets.cases import Labels, Modality
from autoliver.errors import ArtifactError, ModelError
from autoliver.locks import only_writing
from autoliver.models.archive_zip import (
    AGAIN,
    MANIFEST_FILE,
    ArchivePlace,
    Entry,
    StoredFile,
    entry_info,
    entry_of,
    read_directory,
)
from autoliver.models.files import (
    MODEL_FILE,
    WEIGHTS_FILE,
    FoldModel,
    MemberFiles,
    ModelFiles,
    Place,
    check_members,
    check_previous,
    fold_folder_name,
    fold_of,
    load_infos,
)
from autoliver.models.selection import (
    SELECTION_FILE,
    Chosen,
    Selection,
    choose_folds,
    choose_previous,
)
from autoliver.values import name_problem

ENDING = ".autoliver"
# Words that --roi, --pretrained or --fold understand otherwise.
_KEYWORDS = ("auto", "off", "all", "cv", "imagenet")
_PART = r"[^/\\:\x00-\x1f.][^/\\:\x00-\x1f]*"
_ENTRY = re.compile(
    rf"{SELECTION_FILE}|runs/{_PART}/fold_{_PART}/({re.escape(MODEL_FILE)}|{WEIGHTS_FILE})"
)

A = TypeVar("A", bound=Artifact)


class Manifest(Artifact, frozen=True, kw_only=True):
    """The description of an exported model and of the files in its archive.

    Attributes:
        name: The name under which the model is imported if none is given.
        dataset: Name of the dataset that the model was trained on.
        channel_names: One name per image channel.
        modality: The dataset's modality.
        labels: Names and values of the labels.
        training_cases: How many cases its folds were trained on; 0 if unknown.
        entries: All other files in the archive.
    """

    KIND: ClassVar[str] = "export"

    name: str
    dataset: str
    channel_names: tuple[str, ...]
    modality: Modality
    labels: Labels
    training_cases: int
    entries: tuple[Entry, ...]

    def faults(self) -> Iterator[Fault]:
        """Yields the labels', and channels and cases that cannot be."""
        yield from within("labels", self.labels.faults())
        if not self.channel_names:
            yield "channel_names", unfit([], "a name for each channel")
        if self.training_cases < 0:
            yield "training_cases", unfit(self.training_cases, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A model in one file, whose parts were checked to fit together.

    Attributes:
        root: The root folder of the archive.
        manifest: The manifest.
        selection: The model's members and cleaning rules.
    """

    root: ArchivePlace
    manifest: Manifest
    selection: Selection

    def files(self, folds: str | None = None) -> ModelFiles:
        """Returns the places of the model's folds in the archive, from which they can be loaded.

        Args:
            folds: Folds to use instead of the selected ones, e.g. "0,2" or "all"; None: the
                selected folds.

        Raises:
            ModelError: A requested fold is not in the archive.
        """
        return ModelFiles(
            name=f"{self.root.file.name} ({' + '.join(c.run for c in self.selection.members)})",
            members=tuple(
                self._member(chosen.run, folds or ",".join(chosen.folds))
                for chosen in self.selection.members
            ),
            cleaning=self.selection.cleaning,
            selection=self.selection,
        )

    def extract(self, folder: Path) -> None:
        """Writes all files but the manifest to a new folder and checks each against the manifest.

        Raises:
            ModelError: An entry is damaged.
            AutoliverError: The disk is full, read-only or not writable for this user.
        """
        check_weights(check_parts(self.files()))
        for entry in self.manifest.entries:
            write_bytes(folder / entry.name, (self.root / entry.name).read_bytes())

    def _member(self, run: str, folds: str | None) -> MemberFiles:
        place = self.root / "runs" / run
        name = f"{self.root.file.name}/{run}"
        names = choose_folds(self.finished(run), folds, name=name)
        chosen = tuple(place / fold_folder_name(fold) for fold in names)
        previous = _load(FoldModel, chosen[0] / MODEL_FILE).previous_run
        if previous is None:
            return MemberFiles(folds=chosen)
        same = choose_previous(self.finished(previous), names, name=name)
        low = place.parent / previous
        return MemberFiles(
            folds=chosen, previous=tuple(low / fold_folder_name(fold) for fold in same)
        )

    def finished(self, run: str) -> tuple[str, ...]:
        """Lists the folds of a run in the archive; empty if there is no such run."""
        pattern = re.compile(rf"runs/{re.escape(run)}/fold_([^/]+)/{re.escape(MODEL_FILE)}")
        found = (pattern.fullmatch(entry.name) for entry in self.manifest.entries)
        return tuple(sorted(match[1] for match in found if match))


def fit_for_name(name: str) -> bool:
    """Whether a model can have a name.

    It is a folder's name, does not lead out of the parent folder, and is no word that an option
    which names a model understands otherwise.
    """
    plain = re.fullmatch(_PART, name) is not None and name == name.strip()
    plain = plain and not name_problem(name)
    return plain and name.casefold() not in _KEYWORDS


def write_archive(path: Path, files: ModelFiles, *, case_names: bool = False) -> Manifest:
    """Writes a model as one file, atomically; the same model always gives the same bytes.

    Args:
        path: The file to write.
        files: The model, on disk or in another archive.
        case_names: Whether to keep the names of the training cases.

    Returns:
        The manifest that was written.

    Raises:
        ArtifactError: A model.json is missing or damaged.
        ModelError: Weights are damaged, the first stage of a cascade is missing, or the parts of
            the model do not fit together.
        AutoliverError: The disk is full, read-only or not writable for this user.
    """
    infos = check_parts(files)
    first = next(iter(infos.values()))
    selection = files.selection or Selection(dataset=first.plan.dataset, members=())
    chosen = tuple(
        Chosen(run=part.folds[0].parent.name, folds=tuple(map(fold_of, part.folds)))
        for part in files.members
    )
    selection = selection.replace(members=chosen, cleaning=files.cleaning)
    small = {SELECTION_FILE: selection.to_bytes()}
    weights: dict[str, Place] = {}
    for place, info in infos.items():
        at = _at(place)
        kept = info if case_names else info.replace(cases=())
        small[f"{at}/{MODEL_FILE}"] = kept.to_bytes()
        weights[f"{at}/{WEIGHTS_FILE}"] = place / WEIGHTS_FILE
    entries = [entry_of(at, content) for at, content in small.items()]
    for (at, place), info in zip(weights.items(), infos.values(), strict=True):
        entries.append(entry_of(at, _content(place)))
        _check_recorded(entries[-1], info, where=str(place))
    manifest = Manifest(
        name=_own_name(files.members[0].folds[0]) or first.plan.dataset,
        dataset=first.plan.dataset,
        channel_names=first.plan.channel_names,
        modality=first.plan.modality,
        labels=first.plan.labels,
        training_cases=len({case for info in infos.values() for case in info.cases}),
        entries=tuple(entries),
    )
    check_weights(infos)
    with only_writing(path) as beside, zipfile.ZipFile(beside, "x") as archive:
        for at, content in {MANIFEST_FILE: manifest.to_bytes(), **small}.items():
            archive.writestr(entry_info(at), content)
        for at, place in weights.items():
            archive.writestr(entry_info(at), _content(place))
        archive.close()
        open_archive(beside)  # checked before it gets its final name
    return manifest


def open_archive(file: Path) -> Archive:
    """Opens an exported model and checks it; weights are read, and checked, only when needed.

    Raises:
        ModelError: The file is missing, cut short, damaged, incomplete or not an exported model,
            or it has unsafe or unknown entries, such as paths that lead out of its folder.
    """
    sizes = read_directory(file)
    manifest = _load(Manifest, StoredFile(file, MANIFEST_FILE))
    _compare(file, sizes, manifest)
    root = ArchivePlace(file, "", {entry.name: entry for entry in manifest.entries})
    archive = Archive(
        root=root, manifest=manifest, selection=_load(Selection, root / SELECTION_FILE)
    )
    _check_whole(archive)
    return archive


def check_parts(files: ModelFiles) -> dict[Place, FoldModel]:
    """Checks that the parts of a model fit together.

    Returns:
        Folder -> description of every fold, including the first stages of cascades.

    Raises:
        ArtifactError: A model.json is missing or damaged.
        ModelError: The parts do not fit together, or the first stage of a cascade is missing.
    """
    infos: dict[Place, FoldModel] = {}
    plans = []
    for part in files.members:
        own = load_infos(part.folds, name=files.name)
        first = own[0]
        check_previous(part, first.plan, first.decisions, name=files.name)
        infos.update(zip(part.folds, own, strict=True))
        if part.previous:
            infos.update(
                zip(part.previous, load_infos(part.previous, name=files.name), strict=True)
            )
        plans.append(first.plan)
    check_members(files, plans)
    return infos


def check_weights(infos: Mapping[Place, FoldModel]) -> None:
    """Refuses weights that no fold could predict with, before others get them.

    Args:
        infos: Folder -> description of every fold.

    Raises:
        ModelError: Weights are missing or damaged, or do not fit their description.
    """
    from autoliver.networks.checkpoint import load_network

    for place, info in infos.items():
        network = info.decisions.network
        load_network(place / WEIGHTS_FILE, sha256=info.weights_sha256, expected=network)


def _at(place: Place) -> str:
    """Returns the path of a fold's folder inside an archive."""
    return f"runs/{place.parent.name}/{place.name}"


def _own_name(fold: Place) -> str:
    """Returns the name of the model folder that contains a fold, "" if there is none."""
    runs = fold.parent.parent
    return runs.parent.name if runs.name == "runs" else ""


def _content(place: Place) -> bytes:
    try:
        return place.read_bytes()
    except FileNotFoundError:
        raise ModelError(
            f"{place}: there is no such file.",
            hint="Copy it again from its source, or train the fold with --fresh.",
        ) from None


def _load(kind: type[A], place: ArchivePlace | StoredFile) -> A:
    try:
        return kind.load(place)
    except ArtifactError as error:
        raise ModelError(error.problem, hint=error.hint or AGAIN) from None


def _compare(file: Path, sizes: Mapping[str, int], manifest: Manifest) -> None:
    """Refuses an archive whose entries or their sizes differ from those in the manifest."""
    stated = {entry.name: entry.size for entry in manifest.entries}
    found = {name: size for name, size in sizes.items() if name != MANIFEST_FILE}
    for name in (*stated, *found):
        problem = ""
        if not _ENTRY.fullmatch(name):
            problem = f"holds '{name}', which has no place in a model"
        elif name not in found:
            problem = f"lacks '{name}', which its {MANIFEST_FILE} states"
        elif name not in stated:
            problem = f"holds '{name}', which its {MANIFEST_FILE} does not state"
        elif stated[name] != found[name]:
            problem = f"'{name}' has {found[name]} bytes, {MANIFEST_FILE} states {stated[name]}"
        if problem:
            raise ModelError(f"{file}: {problem}.", hint=AGAIN)


def _check_whole(archive: Archive) -> None:
    """Refuses an archive that lacks a part of its model or has surplus files."""
    root, there = archive.root, archive.root.entries
    if not archive.selection.members:
        raise ModelError(f"{root.file}: its model has no members.", hint=AGAIN)
    needed = [
        f"runs/{chosen.run}/fold_{fold}/{MODEL_FILE}"
        for chosen in archive.selection.members
        for fold in chosen.folds or ("all",)
    ]
    for at in there:
        if at.endswith(f"/{MODEL_FILE}"):
            info = _load(FoldModel, root / at)
            if info.configuration not in info.plan.configurations:
                raise ModelError(f"{root / at}: its plan lacks its configuration.", hint=AGAIN)
            needed.append(f"{at.removesuffix(MODEL_FILE)}{WEIGHTS_FILE}")
            if info.previous_run is not None and not archive.finished(info.previous_run):
                needed.append(f"runs/{info.previous_run}/fold_all/{MODEL_FILE}")
    missing = [at for at in needed if at not in there]
    if missing:
        raise ModelError(f"{root.file}: incomplete: it lacks {missing[0]}.", hint=AGAIN)
    used = check_parts(archive.files())
    for place, info in used.items():
        weights = f"{_at(place)}/{WEIGHTS_FILE}"
        _check_recorded(there[weights], info, where=str(root / weights))
    surplus = [at for at in there if "/" in at and (root / at).parent not in used]
    if surplus:
        raise ModelError(f"{root.file}: no member of its model uses {surplus[0]}.", hint=AGAIN)


def _check_recorded(entry: Entry, info: FoldModel, *, where: str) -> None:
    if entry.sha256 != info.weights_sha256:
        raise ModelError(
            f"{where}: damaged: its content is not what {MODEL_FILE} recorded.",
            hint="Copy it again from its source, or train the fold with --fresh.",
        )
