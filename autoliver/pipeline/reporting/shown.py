"""The cases that a page shows with slices, and as many of their slices as it may hold."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoliver.datasets.cases import Labels
from autoliver.errors import AutoliverError, DatasetError
from autoliver.evaluation.report.outliers import Outlier
from autoliver.evaluation.report.page import MOST_BYTES, CaseView, Page, Section, Table, render
from autoliver.evaluation.report.sprites import (
    FEW_SLICES,
    MOST_SLICES,
    Cut,
    Grey,
    LabelMap,
    Sprite,
    Style,
    make_sprite,
)
from autoliver.io.dicom.read import read_series
from autoliver.io.dicom.series import Series
from autoliver.io.files import read_header, read_image, read_label
from autoliver.io.grids import refuse_other_grid
from autoliver.io.volume import Geometry
from autoliver.needs import show_need
from autoliver.parallel import NO_LIMITS, Limits, case_bar, refuse_over_budget

_log = logging.getLogger(__name__)

MOST_CASES = 16  # with slices, outliers included
_TRIES = (MOST_SLICES, MOST_SLICES // 2, FEW_SLICES)
_SPARE = 20_000  # bytes for what is told of slices that are left out


@dataclass(frozen=True, kw_only=True, slots=True)
class MapFile:
    """A label map to outline.

    Attributes:
        title: What it is, for the legend.
        style: How its outlines are drawn.
        path: Its file.
    """

    title: str
    style: Style
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A case to show.

    Attributes:
        anchor: Anchor of its part of the page.
        name: Its name.
        of: What its prediction is of, such as a run; empty if that is clear.
        reasons: Why it is an outlier; empty if it is none.
        table: Its numbers; None if there are none.
        images: Its images; empty if they are not known.
        series: Its DICOM series, instead of images; None without one.
        maps: Its label maps, the reference first.
        labels: Names and values of the labels.
        is_ct: Whether the image is CT; None to go by its values.
    """

    anchor: str
    name: str
    of: str = ""
    reasons: tuple[str, ...] = ()
    table: Table | None = None
    images: tuple[Path, ...] = ()
    series: Series | None = None
    maps: tuple[MapFile, ...] = ()
    labels: Labels
    is_ct: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Chapter:
    """What a dataset or a folder of predictions adds to a page.

    Attributes:
        sections: Parts before the cases.
        shown: The cases to show, outliers first.
        last: Parts behind the cases.
        notes: Sentences below the title.
    """

    sections: tuple[Section, ...] = ()
    shown: tuple[Shown, ...] = ()
    last: tuple[Section, ...] = ()
    notes: tuple[str, ...] = field(default=())


def chosen(
    outliers: Sequence[Outlier], others: Sequence[str], *, prefix: str
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Chooses the cases to show.

    Args:
        outliers: The cases to look at first; all of them are shown.
        others: All cases, in the order in which they are added as long as there is room.
        prefix: Begins the anchors, and tells chapters of a page apart.

    Returns:
        Case -> its anchor, and the reasons why it is an outlier.
    """
    reasons = {each.case: each.reasons for each in outliers}
    names = list(dict.fromkeys([*reasons, *others]))[: max(MOST_CASES, len(reasons))]
    return {name: (f"{prefix}-{n}", reasons.get(name, ())) for n, name in enumerate(names)}


def anchors_of(found: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, str]:
    """Case -> anchor, of what `chosen` returns."""
    return {name: anchor for name, (anchor, _) in found.items()}


def fitted(
    page: Page,
    shown: Sequence[Shown],
    *,
    most_bytes: int = MOST_BYTES,
    limits: Limits = NO_LIMITS,
) -> bytes:
    """Returns a page with the slices of cases, as many as it may hold, as HTML.

    Cases come in order. Each has an equal share of what is left, and fewer slices if it needs more;
    cases for which too little is left have none, and the page says so. So it does of cases that
    need more memory than may be used, which are not read.

    Args:
        page: The page without cases.
        shown: The cases.
        most_bytes: The size that the page may have.
        limits: The memory that may be used.
    """
    views = [_view(each, lacking=_FULL) for each in shown]
    left = most_bytes - _SPARE - len(render(replace(page, cases=tuple(views))))
    for number, each in enumerate(case_bar("slices", len(shown))(shown)):
        share = left // (len(shown) - number)
        views[number], taken = _with_slices(each, share, left, limits)
        left -= taken
    return render(replace(page, cases=tuple(views)))


_FULL = f"with them, the page would be larger than {MOST_BYTES // 1_000_000} MB."


def _view(shown: Shown, *, sprite: Sprite | None = None, lacking: str = "") -> CaseView:
    return CaseView(
        anchor=shown.anchor,
        name=shown.name,
        of=shown.of,
        reasons=shown.reasons,
        table=shown.table,
        sprite=sprite,
        lacking=lacking,
    )


def _with_slices(shown: Shown, share: int, left: int, limits: Limits) -> tuple[CaseView, int]:
    """The case with as many slices as fit, and the bytes that they take."""
    if left < _SPARE:
        return _view(shown, lacking=_FULL), 0
    try:
        cut, grey = _read(shown, limits)
    except AutoliverError as error:
        known = shown.images or shown.series is not None
        _log.log(
            logging.WARNING if known else logging.INFO,
            "%s: no slices: %s",
            shown.name,
            error.problem,
        )
        return _view(shown, lacking=error.problem), 0
    taken = 0
    view = _view(shown, lacking=_FULL)
    for most in _TRIES:
        sprite = make_sprite(cut, grey, labels=shown.labels.foreground, most_slices=most)
        view = _view(shown, sprite=sprite)
        taken = _bytes_of(view)
        if taken <= share:
            return view, taken
    return (view, taken) if taken <= left else (_view(shown, lacking=_FULL), 0)


def _bytes_of(view: CaseView) -> int:
    bare = Page(title="", notes=(), sections=())
    return len(render(replace(bare, cases=(view,)))) - len(render(bare))


def _read(shown: Shown, limits: Limits) -> tuple[Cut, Grey]:
    """What is shown of the label maps of a case, and then of its image."""
    if not shown.images and shown.series is None:
        raise DatasetError("its image is not known.")
    source = shown.series or shown.images[0]
    need = show_need(shown.name, source, [each.path for each in shown.maps])
    refuse_over_budget([need], limits, "show its slices")
    grid = source.geometry if isinstance(source, Series) else read_header(source).geometry
    cut = Cut.of(_maps(shown, grid), grid, most=_TRIES)
    # The label maps as a whole are gone before the image comes.
    image = read_series(source) if isinstance(source, Series) else read_image([source])
    return cut, cut.grey(image.array[0], is_ct=shown.is_ct)


def _maps(shown: Shown, grid: Geometry) -> list[LabelMap]:
    maps = []
    for each in shown.maps:
        label = read_label(each.path)
        refuse_other_grid(label.geometry, grid, what=str(each.path))
        maps.append(LabelMap(title=each.title, style=each.style, array=label.array[0]))
    return maps
