"""A page as values, and as one HTML file that needs no other file and no network."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple

from autoliver.errors import AutoliverError
from autoliver.evaluation.picture import PREDICTION_COLOUR, REFERENCE_COLOUR, SECOND_COLOUR
from autoliver.evaluation.report.sprites import Sprite

# Larger pages are slow to open, and mail servers refuse them.
MOST_BYTES = 5_000_000


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: What is shown.
        value: The number behind it, as it is in the artefact; None if it is no number.
        link: Anchor of the part of the page that it leads to; empty for none.
    """

    text: str
    value: float | None = None
    link: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table; the first cell of a row is its heading.

    Attributes:
        caption: What it shows.
        head: Headings of the columns.
        rows: The cells, as many in each row as there are headings.
        folded: Whether its rows are shown only once it is opened, as those of long lists.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False

    @property
    def numbers(self) -> frozenset[int]:
        """The columns that hold numbers."""
        columns = enumerate(zip(*self.rows, strict=True)) if self.rows else ()
        return frozenset(
            index for index, cells in columns if any(cell.value is not None for cell in cells)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A plot.

    Attributes:
        svg: The plot as an `<svg>` element, made by `report.plots`; it is not escaped.
        caption: What it shows.
    """

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Commands:
    """Commands to copy.

    Attributes:
        lines: The commands.
        caption: What they do.
    """

    lines: tuple[str, ...]
    caption: str


Part = Table | Figure | Commands


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        anchor: Its anchor, unique in the page.
        title: Its heading.
        notes: Sentences below the heading.
        parts: What it holds, in order.
        warnings: Sentences that need attention.
    """

    anchor: str
    title: str
    notes: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseView:
    """A case that has a part of the page of its own, with its slices.

    Attributes:
        anchor: Its anchor, unique in the page.
        name: Its name.
        of: What its prediction is of, such as a run.
        reasons: Why it is an outlier; empty if it is none.
        table: Its numbers; None if there are none.
        sprite: Its slices; None if they are not in the page.
        lacking: Why they are not; empty if they are.
    """

    anchor: str
    name: str
    of: str = ""
    reasons: tuple[str, ...] = ()
    table: Table | None = None
    sprite: Sprite | None = None
    lacking: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The whole page.

    Attributes:
        title: Its title.
        notes: Sentences below the title.
        sections: The parts before the cases.
        cases: The cases, outliers first.
        last: The parts behind the cases.
    """

    title: str
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    cases: tuple[CaseView, ...] = ()
    last: tuple[Section, ...] = ()


def render(page: Page) -> bytes:
    """Returns the page as the content of an HTML file.

    Equal pages give equal bytes. All texts are escaped; the page forbids itself the network and
    every script but its own.
    """
    import jinja2
    from markupsafe import Markup

    sources = files("autoliver.evaluation.report") / "templates"
    css = (sources / "report.css").read_text(encoding="utf-8")
    for name, colour in _COLOURS.items():
        css = css.replace(name, colour)
    script = (sources / "report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update({"data": _data_url, "kind": lambda part: type(part).__name__})
    template = environment.from_string((sources / "report.html.j2").read_text(encoding="utf-8"))
    sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = template.render(
        page=page,
        css=Markup(css),
        script=Markup(script),
        script_hash=sha,
        svg=Markup,
        viewer=_viewer,
    )
    # A lone surrogate, from a file name that is not UTF-8, has no UTF-8 of its own.
    return text.encode("utf-8", "replace")


def check_size(content: bytes) -> None:
    """Refuses a page that is too large.

    Raises:
        AutoliverError: It has more than `MOST_BYTES`.
    """
    if len(content) > MOST_BYTES:
        raise AutoliverError(
            f"The report would have {len(content):,} bytes without any slices; it may have "
            f"{MOST_BYTES:,}.",
            hint="Report on fewer cases: give a folder with some of the predictions with -p.",
        )


_COLOURS = {
    "REFERENCE_COLOUR": REFERENCE_COLOUR,
    "PREDICTION_COLOUR": PREDICTION_COLOUR,
    "SECOND_COLOUR": SECOND_COLOUR,
}


def _data_url(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


def _viewer(sprite: Sprite) -> dict[str, Any]:
    """What the page's script needs to show the slices of a case."""
    return {
        "image": base64.b64encode(sprite.image).decode(),
        "width": sprite.tile[1],
        "height": sprite.tile[0],
        "columns": sprite.columns,
        "slices": sprite.slices,
        "first": sprite.first,
        "labels": sprite.labels,
        "layers": [
            {"style": layer.style, "paths": [_sparse(paths) for paths in layer.paths]}
            for layer in sprite.layers
        ],
    }


def _sparse(paths: Sequence[str]) -> dict[int, str]:
    """The outlines of the labels that are in a slice, by the label's number."""
    return {number: path for number, path in enumerate(paths) if path}
