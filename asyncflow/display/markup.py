"""What all HTML of the library is made of: escaped text, colours of states, tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from asyncflow.graph import State

#: Legible on white and on black, and told apart by those who do not tell red from green: they differ in lightness.
COLOURS = {
    State.PENDING: "#9aa5b1",
    State.RUNNING: "#3b82f6",
    State.DONE: "#16a34a",
    State.FAILED: "#dc2626",
    State.CANCELLED: "#c2852d",
}
#: Characters of an error's line.
_LONGEST = 300


class Markup(str):
    """HTML that is safe as it is."""

    __slots__ = ()


def safe(text: object) -> Markup:
    """Any text as HTML; what is `Markup` already stays as it is."""
    return text if isinstance(text, Markup) else Markup(escape(str(text)))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element; contents and attributes are escaped, unless they are `Markup`. `text_anchor` is `text-anchor`."""
    inside = "".join(safe(each) for each in content)
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{safe(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>{inside}</{name}>")


def badge(state: State, text: object = None) -> Markup:
    """A state's name, or another text, in its colour."""
    return tag("b", state if text is None else text, style=f"color:{COLOURS[state]}")


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """The first column is text, the others are numbers or marks."""
    left, right = ("text-align:left;padding:2px 12px 2px 4px", "text-align:right;padding:2px 8px")
    styles = [left, *[right] * (len(head) - 1)]
    above = tag("tr", *(tag("th", cell, style=style) for cell, style in zip(head, styles, strict=True)))
    below = [
        tag("tr", *(tag("td", cell, style=style) for cell, style in zip(row, styles, strict=True))) for row in rows
    ]
    # Notebooks shade every second row and centre what is not told where to stand.
    return tag("table", tag("thead", above), tag("tbody", *below), style="border-collapse:collapse;margin:4px 0")


def one_line(error: BaseException) -> str:
    """The type of an error and the first line that it says something in, cut where it is very long."""
    said = str(error).strip().partition("\n")[0]
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
