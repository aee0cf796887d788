"""What the sections of the page are made of. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncflow.display.markup import Markup, tag
from asyncflow.report.words import number, readable

#: Rows of a table; what is left out is counted below.
MOST_ROWS = 60


def said(text: str) -> Markup:
    """A text of the run's, which may be anything: as text, and without turning the text around it."""
    return tag("bdi", readable(text))


def join(parts: Iterable[Markup]) -> Markup:
    """Parts one after the other."""
    return Markup("".join(parts))


def section(name: str, title: str, *content: object) -> Markup:
    return tag("section", tag("h2", title), *content, id=name)


def table(head: Sequence[str], rows: Sequence[Sequence[object]], texts: int = 1) -> Markup:
    """The first `texts` columns are texts, the others numbers; what is beyond the limit is counted."""
    kinds = ["text"] * texts + ["number"] * (len(head) - texts)
    above = tag("tr", *(tag("th", cell, class_=kind, scope="col") for cell, kind in zip(head, kinds, strict=True)))
    below = [tag("tr", *(_cell(cell, kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows[:MOST_ROWS]]
    whole = tag("div", tag("table", tag("thead", above), tag("tbody", *below)), class_="wide")
    return join([whole, left_out(len(rows) - MOST_ROWS, "row")])


def _cell(cell: object, kind: str) -> Markup:
    return tag("td", cell, class_="bar" if isinstance(cell, Markup) and cell.startswith("<svg") else kind)


def left_out(count: int, what_: str) -> Markup:
    return tag("p", f"and {number(count, f'more {what_}')}, left out here", class_="faint") if count > 0 else Markup("")


def faint(text: object) -> Markup:
    return tag("p", text, class_="faint")
