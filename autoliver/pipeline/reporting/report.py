"""report: one page of HTML about a dataset, or about predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoliver.artifacts import brief, write_bytes
from autoliver.errors import OptionError
from autoliver.evaluation.report.page import Cell, Page, Section, Table, check_size
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.pipeline.reporting.dataset import dataset_chapter, folder_of
from autoliver.pipeline.reporting.folders import PredictionSources
from autoliver.pipeline.reporting.predictions import predictions_chapter
from autoliver.pipeline.reporting.shown import Chapter, Shown, fitted
from autoliver.values import check_types, shortened
from autoliver.workspace import Workspace

REPORT_FILE = "report.html"
_NAME = 40  # characters of a folder in the title
_ENDING = ".html"
# What is in the head of every page, and how far it is looked for.
_MARK, _HEAD = b'content="autoliver report"', 4096


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """A request to `report`.

    Attributes:
        dataset: Path or name of a planned dataset, or name of an imported model; None for the only
            dataset, or for none if there are predictions.
        predictions: Folders of predicted label maps: none, one, or two to compare.
        images: Folders of their images.
        reference: Folder of reference label maps, or the folder or name of a dataset.
        output: The file to write; None for report.html in the workspace's folder of the dataset or,
            without one, in the only folder of predictions.
        machine: The processes and memory that may be used.
    """

    dataset: str | None = None
    predictions: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    reference: Path | None = None
    output: Path | None = None
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses values that do not belong together.

        Raises:
            OptionError: Images or a reference are given without predictions.
        """
        check_types(self)
        if not self.predictions and (self.images or self.reference is not None):
            what = "--images" if self.images else "--reference"
            raise OptionError(
                f"{what} belongs to predictions, and none are given.",
                hint="Give their folder with --prediction as well.",
            )


@dataclass(frozen=True, kw_only=True)
class Reported:
    """The result of `report`.

    Attributes:
        path: The page.
        size: Its size in bytes.
        outliers: Names of the cases to look at first.
        cases: Number of cases that have a part of the page of their own.
    """

    path: Path
    size: int
    outliers: tuple[str, ...]
    cases: int

    __repr__ = brief


def _refuse_place(output: Path) -> None:
    """Refuses to write a page over anything but a page.

    Raises:
        OptionError: The file has another ending, or is none that `report` has written.
    """
    if output.suffix.lower() != _ENDING:
        raise OptionError(
            f"--output {output}: a report is a page of HTML.",
            hint=f"Name a file that ends with {_ENDING}, e.g. {output.with_suffix(_ENDING)}",
        )
    if output.exists() and not (output.is_file() and _MARK in output.read_bytes()[:_HEAD]):
        raise OptionError(
            f"--output {output}: there is something else than a report.",
            hint="Choose another name.",
        )


def report(workspace: Workspace, request: ReportRequest) -> Reported:
    """Writes a page of HTML about a dataset, about predictions, or about both.

    It is one file of at most 5 MB that needs no network. All numbers are those of the artefacts.
    Nothing else is written.

    Args:
        workspace: The workspace.
        request: What to report on.

    Raises:
        DatasetError: There is no such dataset, or a folder has no label maps.
        OptionError: There is no place for the page.
        AutoliverError: The page would be too large even without slices.
    """
    if request.output is not None:
        _refuse_place(request.output)
    chapters: list[Chapter] = []
    titles: list[str] = []
    output = request.output
    if request.dataset is not None or not request.predictions:
        folder = folder_of(workspace, request.dataset)
        chapters.append(dataset_chapter(workspace, folder))
        titles.append(folder.name)
        output = output or folder.path / REPORT_FILE
    if request.predictions:
        sources = PredictionSources(
            folders=request.predictions,
            images=request.images,
            reference=request.reference,
            machine=request.machine,
        )
        chapters.append(predictions_chapter(workspace, sources))
        names = (shortened(path.resolve().name, _NAME) for path in request.predictions)
        titles = titles or [" against ".join(names)]
        if output is None and len(request.predictions) == 1:
            output = request.predictions[0] / REPORT_FILE
    if output is None:
        raise OptionError(
            "--output is missing: a comparison belongs to neither of the two predictions.",
            hint=f"Name the file with --output, e.g. --output {REPORT_FILE}",
        )
    # Outliers first, whichever chapter they belong to.
    every = (each for chapter in chapters for each in chapter.shown)
    shown = sorted(every, key=lambda each: not each.reasons)
    page = Page(
        title=f"Report on {titles[0]}",
        notes=tuple(note for chapter in chapters for note in chapter.notes),
        sections=(
            *_first(shown),
            *(section for chapter in chapters for section in chapter.sections),
        ),
        last=tuple(section for chapter in chapters for section in chapter.last),
    )
    content = fitted(page, shown, limits=request.machine.limits)
    check_size(content)
    write_bytes(output, content)
    return Reported(
        path=output,
        size=len(content),
        outliers=tuple(each.name for each in shown if each.reasons),
        cases=len(shown),
    )


def _first(shown: Sequence[Shown]) -> list[Section]:
    """The outliers, each a click away from its slices; nothing where there are none."""
    rows = tuple(
        (Cell(each.name, link=each.anchor), Cell(" ".join(each.reasons)))
        for each in shown
        if each.reasons
    )
    if not rows:
        return []
    table = Table(caption="Unlike the others, or worst", head=("case", "why"), rows=rows)
    return [Section(anchor="first", title="Look first at", parts=(table,))]
