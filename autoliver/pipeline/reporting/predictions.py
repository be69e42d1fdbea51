"""What a page says of a folder of predictions, with or without a reference, or of two of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from autoliver.commands import command
from autoliver.datasets.cases import Dataset, Labels, groups_of
from autoliver.datasets.layouts import by_stem, label_files
from autoliver.errors import OptionError
from autoliver.evaluation.comparison import compare_scores
from autoliver.evaluation.pairs import find_pairs
from autoliver.evaluation.report.outliers import MOST, Outlier, by_dice, by_difference, by_values
from autoliver.evaluation.report.page import Cell, Figure, Part, Section, Table
from autoliver.evaluation.report.plots import Point, strips
from autoliver.evaluation.report.sprites import Style
from autoliver.evaluation.report.tables import (
    case_table,
    comparison_table,
    lesion_parts,
    number,
    numbers_of,
    strip_figures,
    summary_table,
)
from autoliver.evaluation.results import COLUMNS, CaseScores, Scores, by_mean_dice
from autoliver.io.dicom.series import Series
from autoliver.models.files import SCORES_FILE
from autoliver.parallel import Limits, case_bar
from autoliver.pipeline.comparison import shared
from autoliver.pipeline.dicom.cases import modality_of
from autoliver.pipeline.evaluation import EvaluateRequest, Task, score, task_of
from autoliver.pipeline.reporting.folders import (
    PredictedFolder,
    PredictionSources,
    Source,
    changed_since,
    dataset_at,
    images_of,
    labels_of,
    made_section,
    model_labels,
    read_folder,
    refuse_large,
    refuse_other_images,
    sizes_of,
    uncertainty_of,
)
from autoliver.pipeline.reporting.shown import (
    Chapter,
    MapFile,
    Shown,
    anchors_of,
    chosen,
)
from autoliver.values import first_few
from autoliver.workspace import Workspace

_FEW = 5  # names in one sentence
# What a label has of a unit, and with how many decimals.
_SIZES, _DECIMALS = {"ml": "volume", "pixels": "area"}, {"ml": 1, "pixels": 0}
_METRICS = ("dice", "hd95", "nsd", "volume", "recall", "precision", "lesions")


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """What all cases that are shown share: their folder, their images and the labels."""

    folder: PredictedFolder
    images: Mapping[str, Source]
    labels: Labels


def predictions_chapter(workspace: Workspace, sources: PredictionSources) -> Chapter:
    """Returns what a page says of one folder of predictions, or of two that it compares.

    Nothing is written. Scores are those of scores.json in the folder, if it was evaluated with the
    same reference; otherwise they are computed as `evaluate` does.

    Raises:
        DatasetError: A folder has no label maps, or a file cannot be read.
        OptionError: More than two folders are given, or one twice.
    """
    folders = [read_folder(path) for path in sources.folders]
    dataset = dataset_at(workspace, sources.reference)
    images = images_of(sources.images, dataset)
    refuse_other_images(sources, folders, images)
    match folders:
        case [only]:
            return _one(workspace, only, sources, images, dataset)
        case [first, second]:
            if first.path.resolve() == second.path.resolve():
                raise OptionError(
                    f"--prediction: {first.path} is given twice.", hint="Give two that differ."
                )
            return _two(workspace, (first, second), sources, images, dataset)
    raise OptionError(
        f"--prediction is given {len(folders)} times; it may be given once or twice.",
        hint="Give one folder, or two to compare them.",
    )


def _one(
    workspace: Workspace,
    folder: PredictedFolder,
    sources: PredictionSources,
    images: Mapping[str, Source],
    dataset: Dataset | None,
) -> Chapter:
    scores, note = _scores(workspace, folder, sources, dataset)
    if scores is None:
        return _unscored(folder, images, note, sources.machine.limits)
    cases = {case.name: case for case in scores.cases}
    found = chosen(
        by_dice(scores.cases),
        [case.name for case in by_mean_dice(scores.cases)],
        prefix="predicted",
    )
    links, labels = anchors_of(found), list(scores.labels.foreground)
    of = _Sources(folder=folder, images=images, labels=scores.labels)
    shown = tuple(
        _show(name, how, _pair(cases[name], folder), of=of, table=numbers_of(cases[name]))
        for name, how in found.items()
    )
    named = {"": scores}
    section = Section(
        anchor="scores",
        title=f"Scores of {folder.path.name}",
        notes=(note, *scores.warnings),
        parts=(
            summary_table(scores),
            *strip_figures(scores.cases, links, {}, labels=labels, of=folder.path.name),
            case_table(scores.cases, links, {}, labels=labels),
            *lesion_parts(named),
        ),
    )
    return Chapter(sections=(made_section(folder), section), shown=shown)


def _show(
    name: str,
    chosen_as: tuple[str, tuple[str, ...]],
    maps: tuple[MapFile, ...],
    *,
    of: _Sources,
    table: Table | None = None,
) -> Shown:
    anchor, reasons = chosen_as
    image, is_ct = of.images.get(name), of.folder.modality(name)
    series = image if isinstance(image, Series) else None
    if is_ct is None and series is not None and (modality := modality_of(series)) is not None:
        is_ct = modality == "CT"
    return Shown(
        anchor=anchor,
        name=name,
        reasons=reasons,
        table=table,
        images=(image,) if isinstance(image, Path) else (),
        series=series,
        maps=maps,
        labels=of.labels,
        is_ct=is_ct,
    )


def _pair(case: CaseScores, folder: PredictedFolder) -> tuple[MapFile, ...]:
    # The folder may have been moved since it was scored.
    return (
        MapFile(title="reference", style="reference", path=Path(case.reference)),
        MapFile(title="prediction", style="prediction", path=folder.scored(case)),
    )


def _scores(
    workspace: Workspace,
    folder: PredictedFolder,
    sources: PredictionSources,
    dataset: Dataset | None,
) -> tuple[Scores | None, str]:
    """The scores of a folder, and where they are from; None without any, and why."""
    kept, old = folder.path / SCORES_FILE, ""
    if kept.exists():
        scores = Scores.load(kept)
        if sources.reference is None or _is_of(scores, sources.reference, dataset):
            changed = changed_since(scores, kept, folder)
            if not changed:
                return scores, f"From {SCORES_FILE} of {folder.path}."
            old = f"{SCORES_FILE} of {folder.path} is not of {first_few(changed, _FEW)} as now."
    if sources.reference is None:
        return None, f"{old} So it is left out: give the reference with -r." if old else ""
    request = EvaluateRequest(metrics=_METRICS, subset=True, machine=sources.machine)
    own, _ = model_labels([folder])
    path = folder.path
    task = task_of(workspace, path, sources.reference, request, output=path, model=own)
    scores = score(task, request)
    if task.dataset is not None:
        scores = scores.grouped(groups_of(task.dataset.cases))
    keep = command("evaluate", options=["-p", str(folder.path), "-r", str(sources.reference)])
    return scores, f"{old} Computed for this page. To keep them as {SCORES_FILE}: {keep}".strip()


def _is_of(scores: Scores, reference: Path, dataset: Dataset | None) -> bool:
    """Whether scores were computed with these references."""
    if dataset is not None:
        files = {str(Path(case.label).resolve()) for case in dataset.labelled if case.label}
        return all(str(Path(case.reference).resolve()) in files for case in scores.cases)
    place = reference.resolve()
    return all(Path(case.reference).resolve().parent == place for case in scores.cases)


def _unscored(
    folder: PredictedFolder, images: Mapping[str, Source], note: str, limits: Limits
) -> Chapter:
    """Volumes and uncertainty, and the cases in which they are unlike those of the others."""
    refuse_large(folder, limits)
    labels, _ = labels_of([folder])
    sizes: dict[str, dict[str, dict[str, float]]] = {}
    for name, path in case_bar("volumes", len(folder.maps))(folder.maps.items()):
        unit, of_labels = sizes_of(path, labels)
        sizes.setdefault(unit, {})[name] = of_labels
    spread = {
        name: {"all labels": value}
        for name, path in folder.maps.items()
        if (value := uncertainty_of(path)) is not None
    }
    unlike: dict[str, tuple[str, ...]] = {}
    for found in (
        *(
            by_values(
                s, _SIZES[unit], unit=f" {unit}", decimals=_DECIMALS[unit], where_present=True
            )
            for unit, s in sizes.items()
        ),
        by_values(spread, "mean uncertainty", unit="", decimals=3, low=False),
    ):
        for name, reasons in found.items():
            unlike[name] = (*unlike.get(name, ()), *reasons)
    order = sorted(unlike, key=lambda name: (-len(unlike[name]), name))[:MOST]
    outliers = [Outlier(case=name, reasons=unlike[name]) for name in order]
    found_cases = chosen(outliers, list(folder.maps), prefix="predicted")
    links = anchors_of(found_cases)
    of = _Sources(folder=folder, images=images, labels=labels)
    shown = tuple(
        _show(
            name,
            how,
            (MapFile(title="prediction", style="prediction", path=folder.maps[name]),),
            of=of,
        )
        for name, how in found_cases.items()
    )
    section = Section(
        anchor="volumes",
        title=" and ".join(f"{_SIZES[unit].capitalize()}s" for unit in sizes),
        notes=(f"Unlike the others: {first_few(order, MOST)}.",) if order else (),
        parts=tuple(
            part
            for unit, each in sizes.items()
            for part in (_size_table(each, spread, links, unit), _size_strips(each, links, unit))
        ),
        warnings=(note,) if note else (),
    )
    return Chapter(sections=(made_section(folder), section), shown=shown)


def _size_table(
    volumes: Mapping[str, Mapping[str, float]],
    spread: Mapping[str, Mapping[str, float]],
    links: Mapping[str, str],
    unit: str,
) -> Table:
    labels = list(dict.fromkeys(label for of in volumes.values() for label in of))
    rows = tuple(
        (
            Cell(name, link=links.get(name, "")),
            *([number(spread.get(name, {}).get("all labels"), 3)] if spread else []),
            *(number(of.get(label), _DECIMALS[unit]) for label in labels),
        )
        for name, of in volumes.items()
    )
    sized = (f"{label} {unit}" for label in labels)
    head = ("case", *(["mean uncertainty"] if spread else []), *sized)
    caption = f"{_SIZES[unit].capitalize()} of every case"
    return Table(caption=caption, head=head, rows=rows, folded=len(rows) > 30)


def _size_strips(
    volumes: Mapping[str, Mapping[str, float]], links: Mapping[str, str], unit: str
) -> Figure:
    labels = list(dict.fromkeys(label for of in volumes.values() for label in of))
    rows = {
        label: [
            Point(of[label], 0, links.get(name, "")) for name, of in volumes.items() if label in of
        ]
        for label in labels
    }
    title = f"{_SIZES[unit].capitalize()}s by label and case"
    svg = strips(rows, groups=(), label=f"{_SIZES[unit]} {unit}", title=title)
    return Figure(svg=svg, caption=f"{title}. A point leads to its case.")


def _two(
    workspace: Workspace,
    folders: tuple[PredictedFolder, PredictedFolder],
    sources: PredictionSources,
    images: Mapping[str, Source],
    dataset: Dataset | None,
) -> Chapter:
    first, second = folders
    made = (made_section(first, "A"), made_section(second, "B"))
    if sources.reference is None:
        section, found, numbers, labels = _agreement(folders, sources)
    else:
        section, found, numbers, labels = _differences(workspace, folders, sources, dataset)
    references = _references(sources, dataset)
    of = _Sources(folder=first, images=images, labels=labels)
    styles: tuple[tuple[str, Style, Mapping[str, Path]], ...] = (
        ("reference", "reference", references),
        ("A", "prediction", first.maps),
        ("B", "second", second.maps),
    )
    shown = tuple(
        _show(
            name,
            how,
            tuple(
                MapFile(title=title, style=style, path=files[name])
                for title, style, files in styles
                if name in files
            ),
            of=of,
            table=numbers.get(name),
        )
        for name, how in found.items()
    )
    return Chapter(sections=(*made, section), shown=shown)


_Found = tuple[Section, dict[str, tuple[str, tuple[str, ...]]], dict[str, Table], Labels]
_Both = tuple[PredictedFolder, PredictedFolder]


def _references(sources: PredictionSources, dataset: Dataset | None) -> dict[str, Path]:
    if dataset is not None:
        return {case.name: Path(case.label) for case in dataset.labelled if case.label}
    if sources.reference is None:
        return {}
    return by_stem(label_files(sources.reference), prefer=None)


def _differences(
    workspace: Workspace,
    folders: tuple[PredictedFolder, PredictedFolder],
    sources: PredictionSources,
    dataset: Dataset | None,
) -> _Found:
    """Both against the reference, case by case, as `evaluate` compares them."""
    reference = Path(str(sources.reference))
    paths = (folders[0].path, folders[1].path)
    request = EvaluateRequest(metrics=_METRICS, subset=True, machine=sources.machine)
    model, notes = (None, ()) if dataset else model_labels(folders)
    tasks = [
        task_of(workspace, path, reference, request, output=path, model=model) for path in paths
    ]
    tasks = shared(tasks, paths, subset=True)
    scores = [score(replace(task, labels=tasks[0].labels), request) for task in tasks]
    found = compare_scores(
        *scores, predictions=(str(paths[0]), str(paths[1])), reference=str(reference)
    )
    dice: dict[str, dict[str, float]] = {}
    numbers: dict[str, list[tuple[Cell, ...]]] = {}
    for row in found.cases:
        decimals = COLUMNS[row.metric].decimals
        if row.metric == "dice" and row.difference is not None:
            dice.setdefault(row.case, {})[row.label] = row.difference
        if row.metric in ("dice", "hd95_mm"):
            cells = (number(value, decimals) for value in (row.a, row.b, row.difference))
            what = f"{row.label}, {COLUMNS[row.metric].heading}"
            numbers.setdefault(row.case, []).append((Cell(what), *cells))
    chosen_cases = chosen(by_difference(dice), list(dice), prefix="compared")
    links = anchors_of(chosen_cases)
    section = Section(
        anchor="compared",
        title="A against B",
        notes=(f"Both were compared with {reference}.", *notes, *found.warnings),
        parts=(comparison_table(found), *_difference_parts(dice, links)),
    )
    head = ("label, metric", "A", "B", "B - A")
    tables = {
        name: Table(caption="A and B in this case", head=head, rows=tuple(rows))
        for name, rows in numbers.items()
    }
    return section, chosen_cases, tables, found.labels


def _agreement(folders: _Both, sources: PredictionSources) -> _Found:
    """How much A and B have in common, where there is no reference."""
    first, second = folders
    labels, notes = labels_of(folders)
    pairs = find_pairs(second.path, first.maps, subset=True)
    task = Task(pairs=pairs, labels=labels, dataset=None, warnings=())
    request = EvaluateRequest(metrics=("dice", "volume"), machine=sources.machine)
    scores = score(task, request)
    found = chosen(
        by_dice(scores.cases), [case.name for case in by_mean_dice(scores.cases)], prefix="compared"
    )
    links = anchors_of(found)
    section = Section(
        anchor="compared",
        title="A against B",
        notes=(
            "There is no reference: A stands in its place, so that the Dice is what both share.",
            *notes,
        ),
        parts=(
            summary_table(scores),
            *strip_figures(scores.cases, links, {}, labels=list(labels.foreground), of="A and B"),
            case_table(scores.cases, links, {}, labels=list(labels.foreground)),
        ),
    )
    return section, found, {case.name: numbers_of(case) for case in scores.cases}, labels


def _difference_parts(
    dice: Mapping[str, Mapping[str, float]], links: Mapping[str, str]
) -> list[Part]:
    """Every case's difference of the Dice, as a plot and as a table."""
    labels = list(dict.fromkeys(label for of in dice.values() for label in of))
    points = {
        label: [Point(of[label], 0, links.get(n, "")) for n, of in dice.items() if label in of]
        for label in labels
    }
    svg = strips(points, groups=(), label="Dice, B - A", title="Differences by label and case")
    rows = tuple(
        (
            Cell(name, link=links.get(name, "")),
            *(
                Cell("-") if (v := of.get(label)) is None else Cell(f"{v:+.3f}", v)
                for label in labels
            ),
        )
        for name, of in dice.items()
    )
    caption = "Dice of every case, B - A"
    return [
        Figure(
            svg=svg, caption="Differences of the Dice by label and case. A point leads to its case."
        ),
        Table(caption=caption, head=("case", *labels), rows=rows, folded=len(rows) > 30),
    ]
