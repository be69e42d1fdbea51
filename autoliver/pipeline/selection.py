"""Selects the runs that predict together and the cleaning rules, and records the reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.artifacts import brief
from autoliver.commands import command
from autoliver.datasets.cases import Case, Dataset, Labels, unscored_labels
from autoliver.datasets.changes import without_added
from autoliver.datasets.contents import seen_cases
from autoliver.datasets.folds import Folds
from autoliver.datasets.layouts import RELIABILITY_FILE
from autoliver.errors import ModelError, OptionError
from autoliver.locks import only_one
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.models.files import FoldFolder, FoldModel, fold_of
from autoliver.needs import clean_need
from autoliver.parallel import case_bar
from autoliver.pipeline.data import as_planned, current_folds
from autoliver.pipeline.evaluation import predict_held_out, score_held_out
from autoliver.pipeline.pairs import FoldPairs, run_digest
from autoliver.pipeline.prediction import PredictRequest
from autoliver.planning.names import CONFIGURATION_NAMES
from autoliver.training.options import TrainingOptions
from autoliver.values import check_flag, check_texts, counted, flag_of, meant, set_field
from autoliver.workspace import DatasetFolder, RunFolder, Workspace

if TYPE_CHECKING:
    from autoliver.evaluation.cleaning import Trial
    from autoliver.evaluation.results import CaseScores
    from autoliver.evaluation.select import Candidate, Choice
    from autoliver.models.selection import Selection
    from autoliver.pipeline.temperature import Learnt


@dataclass(frozen=True, kw_only=True)
class SelectRequest:
    """A request to `select`.

    Attributes:
        runs: Names of the runs to compare; empty for all finished runs.
        accept_changes: Whether to leave out cases that were added since the dataset was planned.
        machine: The device, processes and memory that may be used.
    """

    runs: tuple[str, ...] = ()
    accept_changes: bool = False
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses invalid values; a single run may be given as a text.

        Raises:
            OptionError: A value is invalid; the message names the option and the value.
        """
        set_field(self, "runs", check_texts("runs", self.runs))
        check_flag(flag_of("accept_changes"), self.accept_changes)


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The result of `select`.

    Attributes:
        path: The file that the selection was written to.
        selection: The members and cleaning rules that predict from now on.
        candidates: The runs and pairs of runs that were compared, single runs first.
        trials: The cleaning rules that were tried.
        left_out: Sentences that name the runs and folds that could not be compared, each with the
            reason.
        reliability: A picture of how often classes of lesions are right; None if that is not known.
    """

    path: Path
    selection: "Selection"
    candidates: "tuple[Candidate, ...]"
    trials: "tuple[Trial, ...]"
    left_out: tuple[str, ...]
    reliability: Path | None = None

    __repr__ = brief


def select(workspace: Workspace, name: str | None, request: SelectRequest) -> Selected:
    """Compares finished runs and their pairs out of fold, learns cleaning rules, writes model.json.

    Label maps of pairs are kept in the dataset's `selection/`. So an interrupted selection can be
    resumed, and a selection with further runs only computes what is new.

    Args:
        workspace: The workspace.
        name: Path or name of the dataset; None for the only one.
        request: What to compare.

    Raises:
        DatasetError: There is no such dataset.
        ModelError: No run can be scored on cases it has not seen, or the runs share no fold.
        OptionError: There is no finished run of a given name.
        AutoliverError: Another process compares the runs of this dataset.
    """
    contest = _Contest.of(workspace, name, request)
    with only_one(contest.folder.comparing, "its runs are being compared"):
        return _select(contest)


def _select(contest: "_Contest") -> Selected:
    from autoliver.evaluation.select import choose
    from autoliver.models.selection import Chosen, Selection

    candidates = contest.candidates()
    choice = choose(candidates)
    if choice is None:
        raise ModelError(
            f"{contest.folder.name}: no held-out case of folds {_names(contest.folds)} defines a "
            "Dice: neither the label maps nor the predictions contain a label.",
            hint="Train further folds.",
        )
    winners = [run for run in contest.runs if run.path.name in choice.candidate.runs]
    trials = contest.learn(winners)
    learnt = contest.temperature(winners)
    classes = (str(learnt.temperature),) if learnt is not None else ()
    selection = Selection(
        made_from=contest.made_from(),
        dataset=contest.folder.name,
        members=tuple(Chosen(run=run.path.name, folds=_numbered(run)) for run in winners),
        cleaning=tuple(trial.rule for trial in trials if trial.kept),
        scores={c.name: c.dice for c in candidates if c.dice is not None},
        why=(*contest.left_out, contest.basis, *choice.why, *_why(choice, trials), *classes),
        temperature=None if learnt is None else learnt.temperature,
    )
    path = contest.folder.trained.selection
    picture = path.with_name(RELIABILITY_FILE)
    if learnt is None:
        picture.unlink(missing_ok=True)
    drawn = None if learnt is None else learnt.draw(picture)
    selection.save(path)
    return Selected(
        path=path,
        selection=selection,
        candidates=candidates,
        trials=trials,
        left_out=contest.left_out,
        reliability=drawn,
    )


@dataclass(frozen=True, kw_only=True)
class _Contest:
    """The runs and folds that are compared.

    Attributes:
        folder: The dataset's folder in the workspace.
        dataset: The dataset.
        splits: The folds of the dataset.
        runs: Runs that can be compared, simpler configurations first.
        folds: Folds that are finished in all of these runs.
        left_out: Sentences about runs and folds that cannot be compared, with the reasons.
        request: How to predict.
    """

    folder: DatasetFolder
    dataset: Dataset
    splits: Folds
    runs: tuple[RunFolder, ...]
    folds: tuple[int, ...]
    left_out: tuple[str, ...]
    request: PredictRequest

    @classmethod
    def of(cls, workspace: Workspace, name: str | None, request: SelectRequest) -> "_Contest":
        dataset = workspace.source(name)
        folder = workspace.folder_for(dataset)
        if request.accept_changes:
            dataset = as_planned(folder, dataset)
        splits = current_folds(folder, dataset)
        wanted, others = _alike(_wanted(folder, request.runs), folder)
        scored, left_out = _scored_folds(wanted, dataset, splits)
        left_out += others
        if not scored:
            raise ModelError(
                " ".join([f"{dataset.name}: no run can be scored.", *left_out]),
                hint=_to_score(folder, dataset, request.runs),
            )
        return cls(
            folder=folder,
            dataset=dataset,
            splits=splits,
            runs=tuple(scored),
            folds=_common_folds(dataset.name, scored, workspace.root),
            left_out=tuple(left_out),
            request=PredictRequest(modality=None, machine=request.machine),
        )

    def held_out(self, fold: int) -> tuple[Case, ...]:
        names = set(self.splits.splits[fold].validation)
        return tuple(case for case in self.dataset.labelled if case.name in names)

    @property
    def labels(self) -> Labels:
        """The labels of all runs."""
        first = FoldModel.load(FoldFolder(self.runs[0].fold(self.folds[0])).model).plan.labels
        return first if first.exclusive else self.dataset.labels

    @property
    def _given(self) -> bool:
        """Whether the runs only tell the class of given lesions, which pairs of them do not get."""
        return TrainingOptions.load(self.runs[0].options, mend=self.runs[0].mend).task == "classify"

    @property
    def basis(self) -> str:
        cases = sum(len(self.held_out(fold)) for fold in self.folds)
        by_all = ", which all runs have finished" if len(self.runs) > 1 else ""
        word = "fold" if len(self.folds) == 1 else "folds"
        held_out = counted(cases, "held-out case")
        return f"Scored on {held_out} of {word} {_names(self.folds)}{by_all}."

    def made_from(self) -> dict[str, str]:
        runs = {run.path.name: run_digest(run, self.folds) for run in self.runs}
        return {"dataset": self.dataset.digest(), "folds": self.splits.digest(), **runs}

    def candidates(self) -> "tuple[Candidate, ...]":
        """Scores every run and every pair of runs."""
        from autoliver.evaluation.select import make_candidate
        from autoliver.pipeline.temperature import classes_of

        cases: dict[tuple[str, ...], list[CaseScores]] = {}
        for run in self.runs:
            for fold in self.folds:
                scores = score_held_out(
                    run,
                    fold,
                    self.held_out(fold),
                    labels=self.labels,
                    request=self._as_trained(run),
                )
                cases.setdefault((run.path.name,), []).extend(scores.cases)
        if len(self.runs) > 1 and not self._given:
            for fold in self.folds:
                for pair, scores in self._pairs(fold).scores().items():
                    cases.setdefault(pair, []).extend(scores.cases)
        classes = classes_of(self.runs, self.folds)
        return tuple(make_candidate(runs, found, classes) for runs, found in cases.items())

    def temperature(self, winners: Sequence[RunFolder]) -> "Learnt | None":
        """Learns the temperature of lesions' classes; None if the winners tell none apart."""
        from autoliver.pipeline.temperature import classes_of, learn_temperature

        if not classes_of(winners, self.folds):
            return None
        first, names = FoldFolder(winners[0].fold(self.folds[0])), [r.path.name for r in winners]
        if len(winners) == 1:
            tables = [FoldFolder(winners[0].fold(fold)).lesions for fold in self.folds]
        else:
            tables = [self._pairs(fold).lesions(names) for fold in self.folds]
        return learn_temperature(
            FoldModel.load(first.model),
            [case for fold in self.folds for case in self.held_out(fold)],
            tables,
            self._label_maps(winners),
            machine=self.request.machine,
        )

    def learn(self, winners: Sequence[RunFolder]) -> "tuple[Trial, ...]":
        """Tries cleaning rules on the out-of-fold label maps of the winning run or pair."""
        from autoliver.evaluation.cleaning import learn_rules

        if self._given:  # a rule would remove what was given
            return ()
        pairs = self._label_maps(winners)
        machine = self.request.machine
        return learn_rules(
            pairs,
            labels=self.labels,
            unscored=unscored_labels(self.dataset.cases),
            executor=machine.pool("try rules", need=clean_need, light=True),
            progress=case_bar("try cleaning rules", len(pairs)),
        )

    def _label_maps(self, winners: Sequence[RunFolder]) -> dict[str, tuple[Path, Path]]:
        """Maps each held-out case to the label map of the winning run or pair, and the true one."""
        pairs: dict[str, tuple[Path, Path]] = {}
        for fold in self.folds:
            if len(winners) == 1:
                request = self._as_trained(winners[0])
                pairs |= predict_held_out(winners[0], fold, self.held_out(fold), request)
            else:
                pairs |= self._pairs(fold).label_maps([run.path.name for run in winners])
        return pairs

    def _as_trained(self, *runs: RunFolder) -> PredictRequest:
        """Returns how to predict with runs: exactly if one was trained with --deterministic."""
        exact = any(TrainingOptions.load(run.options, mend=run.mend).deterministic for run in runs)
        return replace(self.request, exact=exact)

    def _pairs(self, fold: int) -> FoldPairs:
        return FoldPairs(
            folder=self.folder,
            dataset=self.dataset.digest(),
            runs=self.runs,
            fold=fold,
            cases=self.held_out(fold),
            labels=self.labels,
            request=self._as_trained(*self.runs),
        )


def _to_score(folder: DatasetFolder, dataset: Dataset, runs: Sequence[str]) -> str:
    """Hints at what makes runs that can be scored, where there is none."""
    name, workspace = dataset.name, folder.path.parent
    before = Dataset.load(folder.dataset) if folder.trained.runs else dataset
    if len(before.cases) < len(dataset.cases) and without_added(before, dataset) is not None:
        select = command(
            *("select", name, *runs), options=["--accept-changes"], workspace=workspace
        )
        return f"Leave out the cases that were added after planning: {select}"
    train = command("train", name, "3d_fullres", options=["--fold", "0"], workspace=workspace)
    return f"Train a fold that holds out cases: {train}"


def _wanted(folder: DatasetFolder, names: Sequence[str]) -> list[RunFolder]:
    """Returns the named finished runs, or all without names; simpler configurations first.

    Raises:
        OptionError: There is no finished run of a given name.
    """
    order: dict[str, int] = {name: place for place, name in enumerate(CONFIGURATION_NAMES)}
    runs = sorted(
        folder.trained.runs,
        key=lambda run: (order.get(run.configuration, len(order)), run.path.name),
    )
    known = {run.path.name: run for run in runs}
    for name in names:
        if name not in known:
            raise OptionError(
                f"{folder.name} has no finished run '{name}'.",
                hint=f"{meant(name, known)} Finished runs: {', '.join(known) or 'none'}.".lstrip(),
            )
    return [run for run in runs if not names or run.path.name in names]


def _scored_folds(
    runs: Sequence[RunFolder], dataset: Dataset, splits: Folds
) -> tuple[dict[RunFolder, set[int]], list[str]]:
    """Finds the finished folds of each run that can be scored on held-out cases.

    Returns:
        Maps each run to its folds; and sentences that say what is left out and why.
    """
    scored: dict[RunFolder, set[int]] = {}
    left_out = []
    now = {"dataset": dataset.digest(), "folds": splits.digest()}
    for run in runs:
        begun = TrainingOptions.load(run.options, mend=run.mend).made_from
        changed = [what for what, digest in now.items() if begun.get(what) != digest]
        if changed:
            left_out.append(
                f"{run.path.name} is left out: the {changed[0]} changed since it was started; "
                "train it again with --fresh."
            )
            continue
        folds = {int(name) for name in _numbered(run)}
        folds = {fold for fold in folds if splits.splits[fold].validation}
        leaking = {fold for fold in folds if not _apart(run, fold)}
        if leaking:
            left_out.append(
                f"{run.path.name}, fold {_names(sorted(leaking))}, is left out: the same fold of "
                "its low-resolution stage is not finished."
            )
        known = {fold: _seen(run, fold, dataset, splits) for fold in sorted(folds - leaking)}
        for fold, cases in known.items():
            if cases:
                left_out.append(
                    f"{run.path.name}, fold {fold}, is left out: the weights it started from had "
                    f"seen {len(cases)} of its held-out cases ({cases[0]}), so its scores are too "
                    "good."
                )
                leaking.add(fold)
        if folds - leaking:
            scored[run] = folds - leaking
        elif not folds:
            left_out.append(
                f"{run.path.name} is left out: only its fold all is finished, which holds out no "
                "cases to be scored on."
            )
    return scored, left_out


def _alike(runs: Sequence[RunFolder], folder: DatasetFolder) -> tuple[list[RunFolder], list[str]]:
    """The runs that learn the same labels, as can be compared, and sentences about the others."""
    begun = {run: TrainingOptions.load(run.options, mend=run.mend) for run in runs}
    tasks = {run: options.task for run, options in begun.items()}
    # All other tasks learn the labels of the dataset.
    kinds = {
        run: (options.task, options.lesion_classes)
        if options.task in ("segment", "classify")
        else None
        for run, options in begun.items()
    }
    kept = None if None in kinds.values() else next(iter(kinds.values()), None)
    others = [
        f"{run.path.name} is left out: with --task {tasks[run]} its results are of another kind. "
        "By itself: "
        + command("select", folder.name, run.path.name, options=[], workspace=folder.path.parent)
        for run, kind in kinds.items()
        if kind != kept
    ]
    return [run for run, kind in kinds.items() if kind == kept], others


def _seen(run: RunFolder, fold: int, dataset: Dataset, splits: Folds) -> list[str]:
    """Returns the held-out cases of a fold that the weights it started from had seen."""
    before = FoldModel.load(FoldFolder(run.fold(fold)).model).seen_before
    return sorted(seen_cases(dataset, before) & set(splits.splits[fold].validation))


def _apart(run: RunFolder, fold: int) -> bool:
    """Whether no network of a fold, a first stage included, was trained on its held-out cases."""
    return all(fold_of(path) == str(fold) for path in run.member(str(fold)).previous)


def _common_folds(
    dataset: str, scored: Mapping[RunFolder, set[int]], workspace: Path
) -> tuple[int, ...]:
    common = set.intersection(*scored.values())
    if common:
        return tuple(sorted(common))
    has = "; ".join(f"{run.path.name} has {_names(sorted(f))}" for run, f in scored.items())
    most = max(scored, key=lambda run: len(scored[run]))
    other = next(run for run in scored if run != most)
    fold = str(min(scored[most]))
    train = f"Train fold {fold} of {other.path.name}"
    if not other.source:
        tag = ["--tag", other.tag] if other.tag else []
        train = command(
            *("train", dataset, other.configuration),
            options=["--fold", fold, *tag],
            workspace=workspace,
        )
    select = command("select", dataset, most.path.name, workspace=workspace)
    raise ModelError(
        f"{dataset}: the runs share no finished fold: {has}.",
        hint=f"Train one that they share ({train}), or name the runs to compare: {select}",
    )


def _why(choice: "Choice", trials: "Sequence[Trial]") -> list[str]:
    from autoliver.evaluation.cleaning import LEAST_CASES

    if not trials:
        return [f"Fewer than {LEAST_CASES} held-out cases: no cleaning rules are learnt."]
    found = [str(trial) for trial in trials if trial.kept]
    if not found:
        return ["No cleaning rule raises the Dice: none is kept."]
    labels = dict(choice.candidate.labels)
    for trial in trials:
        if trial.kept:
            labels |= trial.after
    means = [dice for dice in labels.values() if dice is not None]
    return [*found, f"Cleaned, the mean Dice is {sum(means) / len(means):.4f}."]


def _numbered(run: RunFolder) -> tuple[str, ...]:
    """Returns the names of the finished folds of the cross-validation."""
    return tuple(name for name in run.finished_names if name != "all")


def _names(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)
