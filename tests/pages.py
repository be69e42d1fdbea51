"""Reads what a page of HTML says."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """The tables, links, ids and scripts of a page.

    Attributes:
        tables: Caption -> rows of (text, number); the first row is the headings.
        ids: All ids.
        links: Targets of links.
        scripts: Content of every script, by its type.
        text: All text that is shown.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tables: dict[str, list[list[tuple[str, float | None]]]] = {}
        self.ids: list[str] = []
        self.links: list[str] = []
        self.scripts: list[tuple[str, str]] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self._caption = ""
        self._type = ""
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self._open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        self.links += [v for n, v in values.items() if tag == "a" and n.endswith("href")]
        self.sources += [
            v for n, v in values.items() if tag != "a" and n in ("src", "href", "xlink:href")
        ]
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if tag in ("td", "th"):
            number = values.get("data-value")
            cell = ("", None if number is None else float(number))
            self.tables[self._caption][-1].append(cell)
        if tag == "script":
            self.scripts.append((values.get("type", ""), ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._open[-1:]:
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
            return
        self.text += data
        if "caption" in self._open:
            self._caption += data
        if "td" in self._open or "th" in self._open:
            row = self.tables[self._caption][-1]
            row[-1] = (row[-1][0] + data, row[-1][1])

    def numbers(self, caption: str) -> dict[str, dict[str, float | None]]:
        """Heading of a row -> heading of a column -> number."""
        head, *rows = self.tables[caption]
        return {
            row[0][0]: {name[0]: cell[1] for name, cell in zip(head[1:], row[1:], strict=True)}
            for row in rows
        }
