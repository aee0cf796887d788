"""What futures and engines look like in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from asyncflow.display.counts import Counts
from asyncflow.display.markup import COLOURS, Markup, badge, one_line, table, tag
from asyncflow.display.notebook import counts_table
from asyncflow.graph import State

if TYPE_CHECKING:
    from asyncflow.component import Component
    from asyncflow.lane import BackendState

_FAINT = "color:#7b8794"


def future_card(component: Component, error: BaseException | None) -> Markup:
    """One line: name, uid, state, workflow; and one for the error."""
    where = "" if component.workflow_id is None else f" in workflow {component.workflow_id}"
    first = tag("div", tag("b", component.name), " ", badge(component.state), _faint(f" {component.uid}{where}"))
    if error is None:
        return first
    return tag("div", first, tag("code", one_line(error), style=f"color:{COLOURS[State.FAILED]}"))


def engine_card(uid: str, closed: bool, backends: Iterable[BackendState], counts: Sequence[Counts]) -> Markup:
    """Backends with their workers, and the calls by name and state."""
    title = tag("div", tag("b", f"WorkflowEngine {uid}"), _faint(" closed" if closed else ""))
    return tag("div", title, _backends(list(backends)), counts_table(counts) if counts else "no calls yet")


def _backends(states: Sequence[BackendState]) -> Markup:
    rows = [[state.backend.name, state.capabilities.workers] for state in states]
    if not any(state.broken for state in states):
        return table(["backend", "workers"], rows)
    return table(
        ["backend", "workers", "broken"], [[*row, each.broken or ""] for row, each in zip(rows, states, strict=True)]
    )


def _faint(text: str) -> Markup:
    return tag("span", text, style=_FAINT)
