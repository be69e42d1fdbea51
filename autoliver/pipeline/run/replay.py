"""Finds what `--replay` names, and brings its cases to the plan of the run that replays them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoliver.artifacts import digest
from autoliver.commands import command
from autoliver.datasets.cases import Case, CaseFacts, Dataset, Labels
from autoliver.datasets.contents import image_key
from autoliver.datasets.folds import Fold, Folds
from autoliver.datasets.lesion_classes import LESION, with_one_lesion
from autoliver.datasets.lesions import lesion_classes
from autoliver.errors import DatasetError, OptionError
from autoliver.machine import Machine
from autoliver.pipeline.data import (
    Planned,
    check_unchanged,
    current_folds,
    plan_command,
    preprocess,
)
from autoliver.pipeline.run.begin import kept_options
from autoliver.pipeline.run.request import TrainRequest
from autoliver.pipeline.run.source import safe
from autoliver.pipeline.translation.synthesizer import SYNTHESIZER_FILE, Synthesizer
from autoliver.planning.names import ConfigurationName
from autoliver.planning.options import asked_of, option_words
from autoliver.planning.plan import Configuration, IntensityStats, Plan
from autoliver.preprocessing.store import finished_cases, known_places, read_case, store_key
from autoliver.training.patches.replay import ReplayedCase, replayed_case
from autoliver.transfer.table import Transfer
from autoliver.values import counted, first_few
from autoliver.workspace import RunFolder, Workspace

_SHOWN = 3  # names in one message


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A dataset whose cases are replayed by the training of another one.

    Attributes:
        planned: The dataset as it was planned, with the plan that its cases are preprocessed by:
            spacing and axes are the run's, channels, normalisation and labels its own.
        configuration: The configuration of the run.
        folds: The folds of the dataset.
        fold: The fold whose training cases are replayed; None: the fold of the run's number.
        values: Value of its label maps -> value of the run's; None for voxels that do not count.
        seen: The `image_key` of each case that the translation has seen which made its images;
            None: its images are synthetic, and nothing beside them says what made them.
    """

    planned: Planned
    configuration: ConfigurationName
    folds: Folds
    fold: Fold | None
    values: Mapping[int, int | None]
    seen: tuple[str, ...] | None = ()

    @property
    def dataset(self) -> Dataset:
        """The dataset as it was planned."""
        return self.planned.dataset

    @property
    def store_key(self) -> str:
        """The key of the store of its preprocessed cases."""
        return store_key(self.planned.plan, self.configuration)

    @property
    def made_from(self) -> dict[str, str]:
        """Digests of what a run replays, and the store that it reads."""
        parts = [self.dataset.digest(), self.folds.digest(), self.fold, sorted(self._pairs)]
        return {"replay": digest(parts), "replayed store": self.store_key}

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return [(value, -1 if new is None else new) for value, new in self.values.items()]

    def ct_scale(self, run: Plan) -> tuple[IntensityStats, ...]:
        """The scale on which a network of another modality has seen its CT; empty otherwise."""
        own = self.planned.plan
        return own.intensities if own.modality == "CT" and run.modality != "CT" else ()

    def cases(self, fold: Fold, held_out: Sequence[Case]) -> list[Case]:
        """The cases that a fold of the run replays.

        They are the training cases of the dataset's own fold, so that those it holds out stay
        unseen; an image that the run holds out is not among them.

        Args:
            fold: The fold of the run.
            held_out: The cases that the fold of the run holds out. Synthetic images of their
                patients are not replayed either.
        """
        own = source_fold(self.fold if self.fold is not None else fold, self.folds)
        names = set(self.folds.split(own, [c.name for c in self.dataset.labelled]).train)
        cases = [case for case in self.dataset.labelled if case.name in names]
        keys = {image_key(case) for case in held_out}
        patients = {case.patient for case in held_out}
        return [
            case
            for case in cases
            if image_key(case) not in keys
            and not (case.origin == "synthetic" and case.patient in patients)
        ]

    def stored(self, cases: Sequence[Case], labels: Labels) -> list[ReplayedCase]:
        """Opens preprocessed cases, with the values of the run's labels.

        Args:
            cases: The cases, from `cases`. Those whose labels are not all annotated are left out
                unless the run's labels are independent of each other.
            labels: The labels of the run, from `with_ignored`.

        Raises:
            ArtifactError: A case is missing or damaged.
            DatasetError: No voxel of the cases counts.
        """
        store, short = self.planned.folder.store(self.store_key), self.dataset.short_name
        own = self.planned.plan.labels
        facts = {case.name: self._facts(case, labels) for case in cases}
        found = [
            replayed_case(
                replace(known_places(read_case(store, name, case), own), facts=facts[name]),
                self.values,
                labels,
                name=f"{short}/{name}",
            )
            for name, case in ((case.name, case.facts) for case in cases)
            if _can_be_learnt(facts[name], labels)
        ]
        counting = [case for case in found if case is not None]
        if not counting:
            raise DatasetError(
                f"--replay {self.dataset.name}: none of {counted(len(cases), 'case')} to replay "
                "shows a label that the run has.",
                hint="Replay another dataset, or leave --replay out.",
            )
        return counting

    def facts(self, labels: Labels) -> list[CaseFacts]:
        """The facts about the cases that can be replayed, with the states of the run's labels."""
        found = [self._facts(case, labels) for case in self.dataset.labelled]
        return [facts for facts in found if _can_be_learnt(facts, labels)]

    def _facts(self, case: Case, labels: Labels) -> CaseFacts:
        """The facts about a case, with the states of the run's labels."""
        from autoliver.transfer.labels import match_labels

        names = match_labels(self.planned.plan.labels, labels)
        states = {n: case.annotated[s] for n, s in names.items() if s in case.annotated}
        return case.facts.replace(annotated=states)

    def describe(self, run: Plan, share: float) -> str:
        """Says in a few sentences what is replayed, and what of it does not count.

        Args:
            run: The plan of the run.
            share: Share of the patches that are replayed.
        """
        from autoliver.transfer.labels import match_labels

        own, short = self.planned.plan.labels, self.dataset.short_name
        names = match_labels(own, run.labels)
        common = [name for name, found in names.items() if found]
        text = f"Replays {short} in {100 * share:.3g} % of the patches ({', '.join(common)})."
        missing = [name for name, found in names.items() if not found]
        if self.values[0] is None:
            text += (
                f" Its background does not count, since {first_few(missing, _SHOWN)} may lie "
                "there, for which it has no label."
            )
        gone = [
            name
            for name, values in own.foreground.items()
            if all(self.values[value] is None for value in values)
        ]
        if gone:
            text += f" Voxels of its {first_few(gone, _SHOWN)} do not count."
        known = [self._facts(case, run.labels) for case in self.dataset.labelled]
        if partial := [case.name for case in known if not _can_be_learnt(case, run.labels)]:
            text += (
                f" Not replayed: {counted(len(partial), 'case')} in which not all of these labels "
                f"are annotated, such as {partial[0]}."
            )
        return text


def seen_before(source: Transfer | None, replay: Replay | None) -> tuple[str, ...]:
    """The `image_key` of each case that was seen before a training, by weights or a translation.

    Args:
        source: The weights that it starts from.
        replay: What it replays.
    """
    return (*(source.seen if source else ()), *((replay.seen if replay else None) or ()))


def _can_be_learnt(case: CaseFacts, labels: Labels) -> bool:
    """Whether a case tells all labels, or a training of these labels can leave some out."""
    return labels.has_regions or not {"none", "pseudo"} & set(case.annotated.values())


def source_fold(fold: Fold, folds: Folds) -> Fold:
    """The fold of a dataset that belongs to a fold of another one; "all" if there is none."""
    return fold if fold != "all" and fold < len(folds.splits) else "all"


def fold_named(pretrained: str | None, dataset: Dataset) -> Fold | None:
    """The fold of a dataset that a training started from; None if it started from another model.

    Args:
        pretrained: The name of the fold, NAME/RUN/fold_N; None for random weights.
        dataset: The dataset.
    """
    name, _, rest = (pretrained or "").partition("/")
    if name != safe(dataset.short_name):
        return None
    fold = rest.rpartition("fold_")[2]
    return int(fold) if fold.isdigit() else "all"


def replayed_name(workspace: Workspace, asked: str, *, option: str = "--replay") -> str:
    """Returns the full name of the dataset that `--replay` names.

    Args:
        workspace: The workspace.
        asked: The name that was given.
        option: The option that it was given with.

    Raises:
        DatasetError: No such dataset was planned, or several could be meant.
    """
    path = Path(asked)
    name = path.resolve().name if path.is_dir() else asked
    known = [folder.name for folder in workspace.datasets]
    if path.is_dir() and name not in known:
        raise DatasetError(
            f"{option} {asked}: this dataset has not been planned.",
            hint=f"Plan it first: {command('plan', asked, workspace=workspace.root)}",
        )
    imported = [model.name for model in workspace.models]
    try:
        return workspace.source(asked).name if path.is_dir() else workspace.folder(name).name
    except DatasetError as error:
        if name.partition("/")[0].casefold() in (model.casefold() for model in imported):
            raise DatasetError(
                f"{option} {asked}: an imported model has no cases that could be replayed.",
                hint="Plan the dataset that it was trained on (autoliver plan PATH) and name that; "
                "or keep its weights in part, without cases, with --keep-source auto.",
            ) from None
        raise DatasetError(f"{option} {asked}: {error.problem}", hint=error.hint) from None


def check_synthetic(workspace: Workspace, asked: str) -> None:
    """Refuses a dataset for `--synthetic` whose cases are not synthetic.

    Raises:
        DatasetError: No such dataset was planned.
        OptionError: It has real cases.
    """
    name = replayed_name(workspace, asked, option="--synthetic")
    real = [
        c.name for c in Dataset.load(workspace.folder(name).dataset).cases if c.origin == "real"
    ]
    if real:
        raise OptionError(
            f"--synthetic {asked}: it has {counted(len(real), 'real case')} "
            f"({first_few(real, _SHOWN)}).",
            hint="Name a dataset of translated images, or give --replay for real cases.",
        )


def replay_for(
    workspace: Workspace,
    planned: Planned,
    request: TrainRequest,
    run: RunFolder,
    folds: Sequence[Fold],
) -> Replay | None:
    """Finds the dataset that a training replays: the one that is given, or that its run keeps.

    Args:
        workspace: The workspace.
        planned: The dataset that is trained, with the plan of the run.
        request: The request to `train`, with the full names of both datasets in its `changes`.
        run: The run.
        folds: The folds that are trained.

    Returns:
        The dataset; None if none is replayed.

    Raises:
        AutoliverError: As for `find_replay`.
    """
    changes, kept = request.changes, kept_options(run, request, folds)
    name = changes.get("replay", None if kept is None else kept.replay)
    if name is None:
        return None
    pretrained = changes["pretrained"]
    return find_replay(workspace, name, planned, request.configuration, pretrained=pretrained)


def find_replay(
    workspace: Workspace,
    name: str,
    run: Planned,
    wanted: ConfigurationName,
    *,
    pretrained: str | None,
) -> Replay:
    """Finds the dataset that a run replays, and checks that it can be replayed.

    Args:
        workspace: The workspace.
        name: Full name of the dataset, from `replayed_name`.
        run: The dataset that is trained, with the plan of the run.
        wanted: The configuration that is trained.
        pretrained: The fold that the run starts from, NAME/RUN/fold_N; None for random weights.

    Raises:
        OptionError: The dataset cannot be replayed; the message says what differs.
        ArtifactError: A file of the workspace is damaged.
    """
    from autoliver.transfer.labels import map_values, match_labels

    folder = workspace.folder(name)
    if name == run.dataset.name:
        raise OptionError(
            f"--replay {name} is the dataset that is trained itself.",
            hint="Name the dataset that the weights come from.",
        )
    if not folder.plan.exists():
        raise OptionError(
            f"--replay {name}: this dataset has no plan.",
            hint=f"Plan it first: {command('plan', name, workspace=workspace.root)}",
        )
    theirs, dataset = Plan.load(folder.plan), Dataset.load(folder.dataset)
    theirs = theirs.replace(labels=_alike(dataset, theirs.labels, run.plan.labels))
    decided = run.plan.configurations[wanted]
    _check_fits(theirs, run.plan, decided)
    values = map_values(theirs.labels, run.plan.labels)
    if not any(values.values()):
        common = any(match_labels(theirs.labels, run.plan.labels).values())
        why = "tells what a voxel is by" if common else "is one of"
        raise OptionError(
            f"--replay {name}: none of its labels ({', '.join(theirs.labels.foreground)}) {why} "
            f"the labels of {run.dataset.name} ({', '.join(run.plan.labels.foreground)}).",
            hint="Labels are matched by name: rename them in dataset.json, or replay another "
            "dataset.",
        )
    folds = Folds.load(folder.folds) if folder.folds.exists() else current_folds(folder, dataset)
    return Replay(
        planned=Planned(
            folder=folder, dataset=dataset, plan=_plan_for(theirs, run.plan, wanted, decided)
        ),
        configuration=wanted,
        folds=folds,
        fold=fold_named(pretrained, dataset),
        values=values,
        seen=_seen_by_translation(dataset),
    )


def _seen_by_translation(dataset: Dataset) -> tuple[str, ...] | None:
    """The cases that the translation has seen which made a dataset; see `Replay.seen`."""
    path = Path(dataset.folder) / SYNTHESIZER_FILE
    if path.is_file():
        return Synthesizer.load(path).seen
    return None if any(case.origin == "synthetic" for case in dataset.cases) else ()


def _alike(dataset: Dataset, theirs: Labels, run: Labels) -> Labels:
    """A dataset's labels, with its classes of lesions as one label if the run knows only that."""
    classes = lesion_classes(theirs.foreground, dataset.lesion_class_names)
    if not classes or LESION not in run.foreground or theirs.has_regions or LESION in theirs.values:
        return theirs
    return theirs if classes.keys() & run.foreground.keys() else with_one_lesion(theirs, [*classes])


def prepare_replay(
    workspace: Workspace, replay: Replay, names: Collection[str], *, machine: Machine
) -> None:
    """Preprocesses cases that are to be replayed; those that are in the store need no images.

    Args:
        workspace: The workspace.
        replay: The dataset.
        names: The names of the cases.
        machine: The processes and memory that may be used.

    Raises:
        DatasetError: Cases are missing in the store, and so are their images.
        ArtifactError: The dataset has changed since it was planned.
    """
    planned, dataset = replay.planned, replay.dataset
    done = finished_cases(planned.folder.store(replay.store_key))
    cases = [case for case in dataset.labelled if case.name in names]
    missing = [case.name for case in cases if done.get(case.name) != case.files]
    if missing:
        planned = replace(planned, dataset=_as_it_is(workspace, planned, missing))
        cases = [case for case in planned.dataset.labelled if case.name in names]
    needed = planned.dataset.replace(cases=tuple(cases))
    preprocess(replace(planned, dataset=needed), [replay.configuration], machine=machine)


def _as_it_is(workspace: Workspace, planned: Planned, missing: Sequence[str]) -> Dataset:
    """Returns a dataset where its files are now; they are those that it was planned with."""
    name = planned.dataset.name
    mend = plan_command(planned.folder, planned.dataset, option_words(asked_of(planned.plan)))
    try:
        dataset = workspace.source(name)
    except DatasetError as error:
        raise DatasetError(
            f"--replay {name}: {counted(len(missing), 'case')} ({first_few(missing, _SHOWN)}) "
            f"must be preprocessed, but cannot be read. {error.problem}",
            hint="To keep part of the source's weights without its cases, give --keep-source auto "
            f"in its place. {error.hint}".strip(),
        ) from None
    now = replace(planned, dataset=dataset)
    check_unchanged(planned.plan, now, where=f"The plan of {name}", mend=mend)
    return dataset


def _check_fits(theirs: Plan, run: Plan, decided: Configuration) -> None:
    """Refuses a dataset whose images cannot be shown to the network of a run.

    Raises:
        OptionError: Channels, dimensions or axes differ; the message says what was found.
    """
    said = f"--replay {theirs.dataset}"
    if decided.previous_stage is not None:
        raise OptionError(
            f"{said}: a cascade learns from label maps of its own first stage, which there are "
            "none of for replayed cases.",
            hint="Replay while the first stage or 3d_fullres is trained, or leave --replay out.",
        )
    mine = {name.lower(): index for index, name in enumerate(run.channel_names)}
    places = [mine.get(name.lower(), i) for i, name in enumerate(theirs.channel_names)]
    if places != list(range(len(run.channel_names))):
        raise OptionError(
            f"{said}: its channels are {', '.join(theirs.channel_names)}; the run has "
            f"{', '.join(run.channel_names)}.",
            hint="Replay a dataset with as many channels, those of the same name at the same "
            "place, or leave --replay out.",
        )
    deepest = max(each.dimension for each in theirs.configurations.values())
    if decided.dimension > deepest:
        raise OptionError(
            f"{said}: its images are single slices; the run is {decided.dimension}D.",
            hint="Train 2d, or leave --replay out.",
        )
    axes = [(plan.axis_codes, plan.transpose_forward) for plan in (theirs, run)]
    if axes[0] != axes[1] and not (theirs.axis_codes and run.axis_codes):
        words = [f"{codes or 'as in the files'}, then {order}" for codes, order in axes]
        raise OptionError(
            f"{said}: its plan has its axes in another order ({words[0]}) than the run "
            f"({words[1]}).",
            hint="Plan both datasets with --keep-axes or both without, and train with a new --tag.",
        )


def _plan_for(theirs: Plan, run: Plan, name: ConfigurationName, decided: Configuration) -> Plan:
    """Returns the plan by which replayed cases are preprocessed for a run.

    With the spacing and the axes of its own plan it has that plan's store.
    """
    # Channels and their normalisation are the same in all configurations of a plan.
    own = theirs.configurations.get(name) or next(iter(theirs.configurations.values()))
    configuration = decided.replace(
        normalization=own.normalization,
        mask_norm=own.mask_norm,
        normalize_after_resampling=own.normalize_after_resampling,
    )
    return theirs.replace(
        axis_codes=run.axis_codes,
        transpose_forward=run.transpose_forward,
        transpose_backward=run.transpose_backward,
        intensities=_scale(theirs, run),
        configurations={name: configuration},
    )


def _scale(theirs: Plan, run: Plan) -> tuple[IntensityStats, ...]:
    """Returns the scale of CT that the network knows, or else the dataset's own."""
    known = run.intensities if run.modality == "CT" and run.like else run.source_intensities
    return known if theirs.modality == "CT" and known else theirs.intensities
