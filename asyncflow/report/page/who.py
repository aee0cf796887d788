"""Workflows, workers, and who held up the event loop. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from asyncflow.display.markup import Markup, tag
from asyncflow.graph import State
from asyncflow.report.page.elements import faint, said, section, table
from asyncflow.report.run import BLOCKS, Run, Task
from asyncflow.report.words import duration, number, percent


def workflows(run: Run) -> Markup:
    """One row each, in the order in which they began."""
    by_id: dict[str | None, list[Task]] = {}
    for task in run.tasks.values():
        if not task.is_block:
            by_id.setdefault(task.workflow, []).append(task)
    if not any(by_id):
        return Markup("")
    rows = [_workflow(run, uid, tasks) for uid, tasks in by_id.items()]
    columns = ["workflow", "tasks", "done", "failed", "cancelled", "begun after", "took", "running, all together"]
    return section("workflows", "Workflows", table(columns, rows))


def _workflow(run: Run, uid: str | None, tasks: Sequence[Task]) -> list[object]:
    states = Counter(task.state for task in tasks)
    begin = min(task.created for task in tasks)
    end = max(run.end if task.ended is None else task.ended for task in tasks)
    failed = states[State.FAILED]
    return [
        said(uid) if uid else tag("span", "(none)", class_="faint"),
        number(len(tasks)),
        number(states[State.DONE]),
        tag("span", f"✕ {number(failed)}", class_="mark") if failed else "",
        number(states[State.CANCELLED]) if states[State.CANCELLED] else "",
        duration(begin - run.first),
        duration(end - begin),
        duration(sum(run.running(task) for task in tasks)),
    ]


def workers(run: Run) -> Markup:
    """What each worker did; the least busy last."""
    busy: dict[tuple[str, str, str], float] = defaultdict(float)
    ran: Counter[tuple[str, str, str]] = Counter()
    lost: Counter[tuple[str, str, str]] = Counter()
    for task, attempt, started, ended in run.attempts():
        place = attempt.backend or task.backend or "?", attempt.host or "?", attempt.worker or "?"
        if place[0] != BLOCKS:
            busy[place] += ended - started
            ran[place] += 1
            lost[place] += bool(attempt.failure and attempt.failure.lost)
    rows = [
        [
            said(worker),
            said(host),
            said(backend),
            number(ran[backend, host, worker]),
            number(lost[backend, host, worker]) if lost[backend, host, worker] else "",
            duration(seconds),
            percent(min(seconds, run.makespan), run.makespan),
        ]
        for (backend, host, worker), seconds in sorted(busy.items(), key=lambda each: -each[1])
    ]
    columns = ["worker", "host", "backend", "attempts", "lost", "ran", "of the makespan"]
    return section("workers", "Workers", table(columns, rows, texts=3)) if rows else Markup("")


def held_up(run: Run) -> Markup:
    """Who held the engine's loop, and the events of the user's own."""
    parts: list[object] = []
    if run.loop_blocks:
        rows = [
            [said(each.who), said(each.where), duration(each.time - run.first), duration(each.seconds)]
            for each in sorted(run.loop_blocks, key=lambda each: -each.seconds)
        ]
        parts += [faint("While somebody holds the engine's event loop, blocks and whoever awaits a result wait.")]
        parts += [table(["who", "where", "after", "held for"], rows, texts=2)]
    if run.own_events:
        counted = [[said(kind), number(count)] for kind, count in run.own_events.most_common()]
        parts += [tag("h3", "Events of the program's own"), table(["event", "times"], counted)]
    return section("loop", "The event loop, and events of the program's own", *parts) if parts else Markup("")
