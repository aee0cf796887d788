"""What the page's timeline is drawn from: columns of numbers, small enough for a browser. Pure.

Times are whole microseconds since the first call, -1 where there is none; texts stand in lists and are named by their
place there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from asyncflow.graph import State
from asyncflow.report.bars import RETRIED, STATES, Bar, bars_of, beginning, natural
from asyncflow.report.failures import message
from asyncflow.report.lanes import pack_by_group
from asyncflow.report.run import BLOCKS, Failure, Run, Task
from asyncflow.report.usage import Usage, busy_at_once
from asyncflow.report.words import readable

#: More bars than this are not drawn.
MOST_BARS = 150_000
#: Failures that are told in full.
MOST_STORIES = 2_000
#: Points of the line that shows the cores in use.
POINTS = 800

T = TypeVar("T")


class _Places(dict[T, int]):
    """Values, each once, by the order in which they came up."""

    def __missing__(self, value: T) -> int:
        self[value] = len(self)
        return self[value]


def most_telling(bars: Sequence[Bar], critical: Iterable[Task], most: int) -> list[Bar]:
    """At most `most` of them: those that did not end well and those of the critical path, then the longest."""
    if len(bars) <= most:
        return list(bars)
    path = {task.uid for task in critical}
    done = STATES.index(State.DONE)
    ranked = sorted(bars, key=lambda bar: (bar.look == done and bar.task.uid not in path, bar.begin - bar.end))
    return sorted(ranked[:most], key=beginning)


def timeline(run: Run, critical: Sequence[Task], used: Sequence[Usage]) -> dict[str, Any]:
    """All that the script of the page is given."""
    every = bars_of(run)
    bars = most_telling(every, critical, MOST_BARS)
    tasks = list({bar.task.uid: bar.task for bar in bars}.values())
    number = {task.uid: place for place, task in enumerate(tasks)}
    names: _Places[str] = _Places()
    workflows: _Places[str | None] = _Places()
    places: _Places[tuple[str, str, str]] = _Places()
    return {
        "began": run.session.began + run.first,
        "end": _micro(run, run.end),
        "cores": sum(each.cores for each in used),
        "busy": [round(each, 2) for each in busy_at_once([each.busy for each in used], run.first, run.end, POINTS)],
        "left_out": len(every) - len(bars),
        "task": _task_columns(run, tasks, number, names, workflows),
        "bar": _bar_columns(run, bars, number, places),
        "critical": [number[task.uid] for task in critical if task.uid in number],
        "failure": dict(_failures(tasks, number)),
        "retried": {place: _told(bar.attempt.failure) for place, bar in enumerate(bars) if bar.look == RETRIED},
        "rows": {
            "worker": _rows(bars, _worker_group, _in_order_of_workers(run)),
            "workflow": _rows(bars, lambda bar: ("", bar.task.workflow or "(no workflow)")),
            "name": _rows(bars, lambda bar: ("", bar.task.name)),
        },
        "names": [readable(each) for each in names],
        "workflows": [None if each is None else readable(each) for each in workflows],
        "places": [[readable(each) for each in place] for place in places],
    }


def _micro(run: Run, time: float | None) -> int:
    return -1 if time is None else max(0, round((time - run.first) * 1e6))


def _task_columns(
    run: Run, tasks: Sequence[Task], number: dict[str, int], names: _Places[str], workflows: _Places[str | None]
) -> dict[str, list[Any]]:
    return {
        "uid": [readable(task.uid) for task in tasks],
        "name": [names[task.name] for task in tasks],
        "workflow": [workflows[task.workflow] for task in tasks],
        "kind": [task.kind for task in tasks],
        "created": [_micro(run, task.created) for task in tasks],
        "resolved": [_micro(run, task.resolved) for task in tasks],
        "ended": [_micro(run, task.ended) for task in tasks],
        "state": [STATES.index(task.state) for task in tasks],
        "cores": [task.cores for task in tasks],
        "parent": [number.get(task.parent or "", -1) for task in tasks],
        "after": [[number[uid] for uid in task.depends_on if uid in number] for task in tasks],
    }


def _bar_columns(
    run: Run, bars: Sequence[Bar], number: dict[str, int], places: _Places[tuple[str, str, str]]
) -> dict[str, list[Any]]:
    return {
        "task": [number[bar.task.uid] for bar in bars],
        "attempt": [bar.attempt.number for bar in bars],
        "submitted": [_micro(run, bar.attempt.submitted) for bar in bars],
        "begin": [_micro(run, bar.begin) for bar in bars],
        "end": [_micro(run, bar.end) for bar in bars],
        "look": [bar.look for bar in bars],
        "place": [places[bar.place] for bar in bars],
    }


def _failures(tasks: Iterable[Task], number: dict[str, int]) -> Iterable[tuple[int, dict[str, Any]]]:
    failed = [task for task in tasks if task.failure is not None]
    return [(number[task.uid], _told(task.failure)) for task in failed[:MOST_STORIES]]


def _told(failure: Failure | None) -> dict[str, Any]:
    if failure is None:
        return {}
    return {
        "type": readable(failure.type),
        "message": message(failure),
        "exit_code": failure.exit_code,
        "stderr": readable(failure.stderr),
        "lost": failure.lost,
    }


# --- rows ------------------------------------------------------------------------------------------------------------

#: What stands above a group, and what the group is called.
_Group = tuple[str, str]


def _worker_group(bar: Bar) -> _Group:
    backend, host, worker = bar.place
    return " on ".join(filter(None, (backend, host))) or "(place unknown)", worker or "(worker unknown)"


def _in_order_of_workers(run: Run) -> Callable[[_Group], Any]:
    """Backends in the session's order and blocks last, then hosts and workers as people count."""
    order = {each.name: place for place, each in enumerate(run.session.backends)}

    def rank(group: _Group) -> Any:
        backend = group[0].partition(" on ")[0]
        return backend == BLOCKS, order.get(backend, len(order)), natural(group[0]), natural(group[1])

    return rank


def _rows(
    bars: Sequence[Bar], group_of: Callable[[Bar], _Group], order: Callable[[_Group], Any] | None = None
) -> dict[str, Any]:
    """In which row each bar stands, and which rows are whose; without `order` in that of the first bars."""
    groups = [group_of(bar) for bar in bars]
    within, heights = pack_by_group((group, bar.begin, bar.end) for group, bar in zip(groups, bars, strict=True))
    first: dict[_Group, int] = {}
    total = 0
    for group in heights if order is None else sorted(heights, key=order):
        first[group] = total
        total += heights[group]
    return {
        "row": [first[group] + row for group, row in zip(groups, within, strict=True)],
        "groups": [[readable(group[0]), readable(group[1]), place, heights[group]] for group, place in first.items()],
    }
