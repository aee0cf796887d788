"""Where the time went, and the critical path. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from asyncflow.display.markup import Markup, tag
from asyncflow.graph import State
from asyncflow.report.analysis import Analysis
from asyncflow.report.chain import Step
from asyncflow.report.page import charts
from asyncflow.report.page.elements import faint, join, said, section, table
from asyncflow.report.run import Task
from asyncflow.report.spent import Activity, Totals
from asyncflow.report.words import duration, number, percent

#: The colours of the style sheet.
_KINDS = {
    Activity.WAITING: "waiting",
    Activity.ENGINE: "engine",
    Activity.BACKEND: "backend",
    Activity.RUNNING: "running",
    Activity.RETRYING: "retrying",
}
_STEP_KINDS = {
    Step.RUNNING: "running",
    Step.BACKEND: "backend",
    Step.ENGINE: "engine",
    Step.RETRYING: "retrying",
    Step.WAITING: "waiting",
    Step.UNCALLED: "other",
}
#: Names of the chain that are told.
_MOST_NAMES = 12


def time_spent(analysis: Analysis) -> Markup:
    """What the makespan went into; the time of all tasks, together and by name."""
    if not analysis.run.tasks:
        return section("time", "Where the time went", faint("Nothing was called."))
    return section(
        "time",
        "Where the time went",
        tag("h3", "The makespan"),
        _chain(analysis),
        tag("h3", "All tasks together, from call to end"),
        _stack(analysis.everything),
        tag("h3", "By task"),
        _names(analysis),
    )


def _chain(analysis: Analysis) -> Markup:
    """The makespan as one bar, and the names of the tasks that it followed."""
    names = [(name, sum(1 for _ in alike)) for name, alike in groupby(task.name for task in analysis.chain)]
    shown = [
        join([said(name), Markup(f" \N{MULTIPLICATION SIGN} {number(many)}" if many > 1 else "")])
        for name, many in names
    ]
    if len(shown) > _MOST_NAMES:
        left = len(shown) - _MOST_NAMES
        shown = [*shown[: _MOST_NAMES // 2], Markup(f"({left} more)"), *shown[-_MOST_NAMES // 2 :]]
    about = "From the task that ended last back to what it had waited for, and so on to the first call: "
    parts = [(kind, step.value, analysis.steps.get(step, 0.0)) for step, kind in _STEP_KINDS.items()]
    return join([faint(join([Markup(about), Markup(" → ".join(shown))])), _with_key(parts, analysis.run.makespan)])


def _stack(totals: Totals) -> Markup:
    return _with_key(
        [(_KINDS[each], each.value, totals.seconds.get(each, 0.0)) for each in Activity], totals.all_seconds
    )


def _with_key(parts: Sequence[tuple[str, str, float]], whole: float) -> Markup:
    titled = [(kind, f"{words}: {duration(seconds)}", seconds) for kind, words, seconds in parts]
    keys = [
        tag("li", charts.swatch(kind), words, " ", tag("b", duration(seconds)), f" ({percent(seconds, whole)})")
        for kind, words, seconds in parts
        if seconds > 0
    ]
    return join([charts.stack(titled, whole), tag("ul", *keys, class_="key")])


def _names(analysis: Analysis) -> Markup:
    rows = [_row(each) for each in analysis.names]
    columns = ["task", "calls", "failed", "running", "mean", "longest", "waiting", "engine", "backend", "retries"]
    return join(
        [
            faint("All calls of a task added up, in the colours of above. A block runs as long as what it calls."),
            table([*columns, ""], rows),
        ]
    )


def _row(each: Totals) -> list[object]:
    seconds = each.seconds
    failed = each.states[State.FAILED]
    parts = [(_KINDS[what_], f"{what_.value}: {duration(seconds[what_])}", seconds[what_]) for what_ in Activity]
    return [
        said(each.name),
        number(each.calls),
        tag("span", f"✕ {number(failed)}", class_="mark") if failed else "",
        duration(seconds[Activity.RUNNING]),
        duration(each.mean),
        duration(each.longest),
        duration(seconds[Activity.WAITING]),
        duration(seconds[Activity.ENGINE]),
        duration(seconds[Activity.BACKEND]),
        number(each.retries) if each.retries else "",
        charts.stack(parts, each.all_seconds),
    ]


def critical(analysis: Analysis) -> Markup:
    """The tasks of the path, one a row."""
    run, path = analysis.run, analysis.path
    if not path.tasks:
        return section("path", "Critical path", faint("Nothing ran."))
    rows: list[Sequence[object]] = []
    end = run.first
    for task in path.tasks:
        started = task.started or 0.0
        rows.append(
            [
                said(task.name),
                said(task.uid),
                _state(task),
                duration(started - run.first),
                duration(max(0.0, started - end)),
                duration(run.running(task)),
                percent(run.running(task), run.makespan),
            ]
        )
        end = run.end if task.ended is None else task.ended
    about = (
        "The chain of dependencies whose tasks ran longest: with any number of workers the run takes at least this "
        f"long. These {number(len(path.tasks), 'task')} ran for {duration(path.seconds)}; the makespan is "
        f"{duration(run.makespan)}."
    )
    columns = ["task", "uid", "", "begun after", "waited since the one before", "ran", "of the makespan"]
    return section("path", "Critical path", faint(about), table(columns, rows, texts=3))


def _state(task: Task) -> object:
    if task.state is State.FAILED:
        return tag("span", "✕ failed", class_="mark")
    return "" if task.state is State.DONE else str(task.state).lower()
