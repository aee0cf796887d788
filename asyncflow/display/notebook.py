"""Progress in a notebook: one table that is redrawn in its place."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from asyncflow.display.counts import Counts, fold, segments
from asyncflow.display.lines import line
from asyncflow.display.markup import COLOURS, Markup, badge, table, tag
from asyncflow.graph import State

#: Rows of the table, and the width of its bars in pixels.
_ROWS = 25
_WIDTH = 240


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, or of anything else that shows HTML."""
    interactive = sys.modules.get("IPython.core.getipython")
    shell = interactive.get_ipython() if interactive is not None else None
    return getattr(shell, "kernel", None) is not None


def bar(counts: Counts) -> Markup:
    """A strip in the colours of the states."""
    parts = [
        tag("span", style=f"display:inline-block;height:10px;width:{cells}px;background:{COLOURS[state]}")
        for state, cells in segments(counts, _WIDTH).items()
    ]
    return tag("span", *parts, style=f"display:inline-block;width:{_WIDTH}px;white-space:nowrap;line-height:0")


def counts_table(counts: Sequence[Counts]) -> Markup:
    """A row for each task name."""

    def row(each: Counts) -> list[object]:
        states = each.by_state()
        numbers = [badge(state, states[state]) if state in states else "" for state in State]
        return [each.name, bar(each), f"{each.ended}/{each.calls}", *numbers]

    # Not the constants: words that say what the column counts.
    head = ["task", "", "ended", *(str(state).lower() for state in State)]
    return table(head, [row(each) for each in fold(counts, _ROWS)])


class NotebookView:
    """A live table below the cell."""

    interval = 0.5

    def __init__(self) -> None:
        self._handle: Any = None
        self._last: list[Counts] = []

    def show(self, counts: Sequence[Counts]) -> None:
        if self._handle is not None and self._last == list(counts):
            return
        self._last = list(counts)
        # The text is for what shows no HTML: a terminal's client, a notebook turned into plain text.
        bundle = {"text/html": str(counts_table(counts)), "text/plain": line(counts)}
        if self._handle is None:
            display = importlib.import_module("IPython.display").display
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def close(self, counts: Sequence[Counts]) -> None:
        self.show(counts)
