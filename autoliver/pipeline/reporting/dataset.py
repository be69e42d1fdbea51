"""What a page says of a dataset or of an imported model: facts, plan, runs, provenance."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from autoliver.artifacts import Artifact, read_json
from autoliver.commands import command
from autoliver.datasets.cases import Case, Dataset, name_inside
from autoliver.datasets.known import read_planned
from autoliver.datasets.pool import Pool, read_pool
from autoliver.errors import ArtifactError, AutoliverError, DatasetError
from autoliver.evaluation.report.outliers import Outlier, by_dice
from autoliver.evaluation.report.page import Commands, Part, Section, Table
from autoliver.evaluation.report.tables import (
    facts_table,
    findings_table,
    numbers_of,
    plan_tables,
    texts,
)
from autoliver.evaluation.results import by_mean_dice
from autoliver.models.files import FoldFolder
from autoliver.models.selection import SELECTION_FILE
from autoliver.pipeline.reporting.runs import (
    Run,
    comparison_section,
    curves_section,
    repeat_words,
    runs_of,
    runs_table,
    score_sections,
    shown_scores,
    transfer_section,
)
from autoliver.pipeline.reporting.shown import (
    Chapter,
    MapFile,
    Shown,
    chosen,
)
from autoliver.planning.options import asked_of, option_words
from autoliver.planning.plan import Fingerprint, Plan
from autoliver.planning.verify import Verification
from autoliver.system import entries
from autoliver.values import counted, first_few
from autoliver.workspace import DatasetFolder, Workspace

A = TypeVar("A", bound=Artifact)

_MOST_CASES_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the workspace holds of a dataset; None for what is missing or damaged."""

    folder: DatasetFolder
    dataset: Dataset | None
    place: str
    cases: dict[str, Case]
    verification: Verification | None
    fingerprint: Fingerprint | None
    plan: Plan | None
    problems: tuple[str, ...]


def folder_of(workspace: Workspace, name: str | None) -> DatasetFolder:
    """Returns the folder in the workspace of a planned dataset, or of an imported model.

    Args:
        workspace: The workspace.
        name: Path or name of a dataset, or name of an imported model; None for the only dataset.

    Raises:
        DatasetError: There is no such dataset, or it was not planned.
    """
    if name is not None and not Path(name).is_dir():
        models = [
            folder for folder in workspace.trained(name) if folder.path.parent != workspace.root
        ]
        if models and not any(f.path.parent == workspace.root for f in workspace.trained(name)):
            return DatasetFolder(models[0].path)
        folder = workspace.folder(name)
    else:
        folder = DatasetFolder(workspace.root / workspace.read(name).name)
    if not folder.dataset.exists():
        raise DatasetError(
            f"{folder.name} was not planned in the workspace {workspace.root.absolute()}.",
            hint=f"Plan it first: {command('plan', str(name), workspace=workspace.root)}",
        )
    return folder


def dataset_chapter(workspace: Workspace, folder: DatasetFolder) -> Chapter:
    """Returns what a page says of a planned dataset or of an imported model.

    What is missing or damaged is left out; the page says what is damaged.

    Args:
        workspace: The workspace.
        folder: As from `folder_of`.
    """
    known = _known(workspace, folder)
    runs = runs_of(folder)
    shown = _shown(known, runs)
    links = {each.name: each.anchor for each in shown}
    sections = [_facts(known, links), *_plans(known, runs)]
    sections += [section for run in runs if (section := curves_section(run)) is not None]
    best = shown_scores(folder, runs)
    sections += score_sections(runs, best, links)
    sections += [section for run in runs if (section := transfer_section(run, runs)) is not None]
    if (compared := comparison_section(folder, runs)) is not None:
        sections.append(compared)
    return Chapter(
        sections=tuple(sections), shown=shown, last=(_provenance(workspace, known, runs),)
    )


def _known(workspace: Workspace, folder: DatasetFolder) -> _Known:
    problems: list[str] = []

    def load(kind: type[A], path: Path) -> A | None:
        try:
            return kind.load(path) if path.exists() else None
        except ArtifactError as error:
            problems.append(error.problem)
            return None

    dataset = load(Dataset, folder.dataset)
    place, cases = "", {}
    if dataset is not None:
        cases, place = {case.name: case for case in dataset.cases}, dataset.folder
        try:
            now = read_planned(workspace.root, folder.dataset)
            place = now.folder
            cases = {name: _moved(case, dataset.folder, place) for name, case in cases.items()}
            cases |= {case.name: case for case in now.cases if case.name in cases}
        except AutoliverError as error:
            problems.append(error.problem)
    return _Known(
        folder=folder,
        dataset=dataset,
        place=place,
        cases=cases,
        verification=load(Verification, folder.verify),
        fingerprint=load(Fingerprint, folder.fingerprint),
        plan=load(Plan, folder.plan),
        problems=tuple(problems),
    )


def _moved(case: Case, before: str, now: str) -> Case:
    """A case that is not in the dataset's folder any more, with the paths that it should have."""
    paths = [str(Path(now) / name_inside(Path(before), path)) for path in case.images]
    return case.replace(images=tuple(paths))


def _shown(known: _Known, runs: Sequence[Run]) -> tuple[Shown, ...]:
    """The cases to show: those that were held out, or those that `verify` has findings of."""
    best = shown_scores(known.folder, runs)
    if best is None:
        return _shown_references(known)
    cases = {case.name: case for _, scores, _ in best.folds for case in scores.cases}
    places = {case.name: place for _, scores, place in best.folds for case in scores.cases}
    order = [case.name for case in by_mean_dice(cases.values())]
    found = chosen(by_dice(list(cases.values())), order, prefix="case")
    shown = []
    for name, (anchor, reasons) in found.items():
        case, scored = known.cases.get(name), cases[name]
        maps = [MapFile(title="reference", style="reference", path=Path(scored.reference))]
        if case is not None and case.label is not None:
            maps = [MapFile(title="reference", style="reference", path=Path(case.label))]
        predicted = places[name] / Path(scored.prediction).name
        maps.append(MapFile(title="prediction", style="prediction", path=predicted))
        labels = best.folds[0][1].labels
        shown.append(
            Shown(
                anchor=anchor,
                name=name,
                of=f"{best.name}, {best.fold_of(name)}",
                reasons=reasons,
                table=numbers_of(scored),
                images=() if case is None else tuple(map(Path, case.images)),
                maps=tuple(maps),
                labels=labels,
                is_ct=None if case is None else case.modality == "CT",
            )
        )
    return tuple(shown)


def _shown_references(known: _Known) -> tuple[Shown, ...]:
    """Labelled cases with findings, or else the first ones; there is no prediction to show."""
    if known.dataset is None:
        return ()
    findings: dict[str, list[str]] = {}
    for each in known.verification.findings if known.verification is not None else ():
        if each.case is not None and each.severity != "note":
            findings.setdefault(each.case, []).append(each.problem)
    labelled = {name: case for name, case in known.cases.items() if case.label is not None}
    outliers = [Outlier(case=n, reasons=tuple(f)) for n, f in findings.items() if n in labelled]
    found = chosen(outliers[:8], list(labelled)[:4], prefix="case")
    return tuple(
        Shown(
            anchor=anchor,
            name=name,
            of="reference alone",
            reasons=reasons,
            images=tuple(map(Path, labelled[name].images)),
            maps=(
                MapFile(title="reference", style="reference", path=Path(str(labelled[name].label))),
            ),
            labels=known.dataset.labels,
            is_ct=labelled[name].modality == "CT",
        )
        for name, (anchor, reasons) in found.items()
    )


def _facts(known: _Known, links: dict[str, str]) -> Section:
    parts: list[Part] = []
    notes, warnings = [], list(known.problems)
    if known.dataset is None:
        notes.append("The model was imported: the dataset that it was trained on is not here.")
    else:
        parts.append(facts_table(known.dataset.replace(folder=known.place), known.fingerprint))
        gone = [
            name
            for name, case in known.cases.items()
            if not all(Path(image).exists() for image in case.images)
        ]
        if gone and not known.problems:
            listed = first_few(gone, _MOST_CASES_LISTED)
            warnings.append(f"Images of {counted(len(gone), 'case')} are gone: {listed}.")
        parts += _pool(known.place)
    if known.verification is not None:
        counts = (
            counted(len(known.verification.errors), "error"),
            counted(len(known.verification.warnings), "warning"),
        )
        notes.append(f"verify found {' and '.join(counts)}.")
        if (table := findings_table(known.verification.findings, links)) is not None:
            parts.append(table)
    return Section(
        anchor="dataset",
        title="Dataset",
        notes=tuple(notes),
        parts=tuple(parts),
        warnings=tuple(warnings),
    )


def _pool(place: str) -> list[Part]:
    pool: Pool | None = None
    with contextlib.suppress(AutoliverError):
        pool = read_pool(Path(place))
    if pool is None:
        return []
    cases = {name: sum(case.member == name for case in pool.cases) for name in pool.members}
    rows = tuple(texts(name, str(cases[name]), folder) for name, folder in pool.members.items())
    head = ("dataset", "cases", "folder")
    return [Table(caption="The pool's members", head=head, rows=rows)]


def _plans(known: _Known, runs: Sequence[Run]) -> list[Section]:
    plans = {"Plan": known.plan} if known.plan is not None else {}
    for path in entries(known.folder.path, "plan@*.json"):
        with contextlib.suppress(ArtifactError):
            plans[f"Plan like {path.stem.partition('@')[2]}"] = Plan.load(path)
    if not plans:
        for run in runs:
            for fold in run.folds[:1]:
                if fold.model is not None:
                    plans[f"Plan of {run.name}"] = fold.model.plan
    return [
        Section(
            anchor=f"plan-{number}",
            title=title,
            notes=(
                f"Preset {plan.preset}, {plan.vram_gb:g} GB of GPU memory; normalised as "
                f"{'CT and MR' if plan.mixed else plan.modality}.",
            ),
            parts=tuple(plan_tables(plan)),
        )
        for number, (title, plan) in enumerate(plans.items())
    ]


def _provenance(workspace: Workspace, known: _Known, runs: Sequence[Run]) -> Section:
    parts: list[Part] = []
    if runs:
        parts.append(runs_table(runs))
    files = [known.folder.verify, known.folder.fingerprint, known.folder.plan]
    files += [known.folder.path / SELECTION_FILE, *(run.folder.options for run in runs)]
    files += [FoldFolder(fold.path).model for run in runs for fold in run.folds]
    rows = [
        texts(str(path.relative_to(known.folder.path)), version)
        for path in files
        if (version := _version(path))
    ]
    if rows:
        head = ("file", "written by autoliver")
        parts.append(Table(caption="Versions", head=head, rows=tuple(rows), folded=True))
    if known.dataset is not None and known.plan is not None:
        lines = [
            command(
                *("plan", known.place),
                options=option_words(asked_of(known.plan)),
                workspace=workspace.root,
            )
        ]
        lines += [
            command(
                *("train", known.folder.name, run.folder.configuration),
                options=repeat_words(run),
                workspace=workspace.root,
            )
            for run in runs
        ]
        if known.folder.trained.selection.exists():
            lines.append(command("select", known.folder.name, workspace=workspace.root))
        parts.append(Commands(lines=tuple(lines), caption="To do the same again"))
    return Section(
        anchor="repeat",
        title="What was run, and how to repeat it",
        parts=tuple(parts),
        warnings=tuple(problem for run in runs for problem in run.problems),
    )


def _version(path: Path) -> str:
    """Which version wrote an artefact; empty if that is not known."""
    with contextlib.suppress(AutoliverError):
        raw = read_json(path) if path.exists() else None
        if isinstance(raw, dict):
            return str(raw.get("autoliver", ""))
    return ""
