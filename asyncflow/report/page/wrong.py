"""What went wrong, with what it says. Pure."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from asyncflow.display.markup import Markup, tag
from asyncflow.report.failures import Kind, Troubles, message, what
from asyncflow.report.page.elements import MOST_ROWS, faint, join, left_out, said, section, table
from asyncflow.report.run import Failure, Run, Task
from asyncflow.report.words import duration, number, one_line, readable

#: Failures of one kind that are told in full, and how many of these are seen without unfolding.
MOST_ALIKE = 50
SHOWN_ALIKE = 3


def wrong(run: Run, troubles: Troubles) -> Markup:
    """Failures with what they say, then what was tried again, cancelled, or never ended."""
    parts: list[object] = []
    if troubles.failed:
        parts += _failed(run, troubles)
    if troubles.retried:
        words = f"Attempts that were tried again ({number(troubles.recovered, 'task')} ended well in the end)"
        parts += [tag("h3", words), _kinds(troubles.retried, "error")]
    if troubles.cancelled:
        parts += [tag("h3", "Cancelled"), _kinds(troubles.cancelled, "reason")]
    if troubles.unfinished:
        parts += [tag("h3", "Had not ended when the file did"), _kinds(troubles.unfinished, "state")]
    return section("wrong", "What went wrong", *(parts or [faint("Nothing: every task ended well, at the first try.")]))


def _failed(run: Run, troubles: Troubles) -> list[object]:
    skipped = sum(troubles.followers.values())
    because = f"; {number(skipped, 'other')} failed or did not run because of that" if skipped else ""
    about = faint(f"{number(len(troubles.failed), 'task')} failed{because}.")
    alike: dict[tuple[str, str, str], list[Task]] = {}
    for task in troubles.failed:
        failure = task.failure or Failure()
        alike.setdefault((task.name, what(failure), one_line(message(failure), 120)), []).append(task)
    ranked = sorted(alike.items(), key=lambda each: -len(each[1]))
    rows = [
        [said(name), said(error), said(first), number(len(tasks)), number(_after(troubles, tasks))]
        for (name, error, first), tasks in ranked
    ]
    columns = ["task", "error", "message", "failed", "others because of it"]
    told = [_alike(run, tasks, troubles, place == 0) for place, (_, tasks) in enumerate(ranked[:MOST_ROWS])]
    return [
        about,
        table(columns, rows, texts=3),
        tag("h3", "Each failure"),
        *told,
        left_out(len(ranked) - len(told), "kind"),
    ]


def _after(troubles: Troubles, tasks: Iterable[Task]) -> int:
    return sum(troubles.followers[task.uid] for task in tasks)


def _alike(run: Run, tasks: Sequence[Task], troubles: Troubles, is_first: bool) -> Markup:
    """Failures of a kind: the first in full, the others folded away."""
    ranked = sorted(tasks, key=lambda task: -troubles.followers[task.uid])
    told = [_failure(run, task, troubles, is_first and not place) for place, task in enumerate(ranked[:MOST_ALIKE])]
    if len(told) > SHOWN_ALIKE:
        folded = tag("summary", f"{number(len(tasks) - SHOWN_ALIKE, 'more', 'more')} like these")
        others = tag("div", *told[SHOWN_ALIKE:], left_out(len(tasks) - len(told), "failure"))
        told[SHOWN_ALIKE:] = [tag("details", folded, others)]
    return join(told)


def _failure(run: Run, task: Task, troubles: Troubles, is_first: bool) -> Markup:
    failure = task.failure or Failure()
    followers = troubles.followers[task.uid]
    first = one_line(message(failure), 140)
    because = f" · {number(followers, 'other')} failed or did not run because of it" if followers else ""
    summary = tag(
        "summary",
        tag("span", "✕ ", class_="mark"),
        tag("b", said(task.name)),
        " ",
        said(task.uid),
        " · ",
        said(what(failure)),
        *([": ", said(first)] if first else []),
        tag("span", because, class_="faint"),
    )
    inside = tag("div", *_told(run, task, failure))
    return tag("details", summary, inside, **({"open": ""} if is_first else {}))


def _told(run: Run, task: Task, failure: Failure) -> Iterator[Markup]:
    place = task.place
    where = [place.worker, place.host, place.backend] if place else [task.backend]
    facts = [
        f"attempt {task.attempts[-1].number}" if task.attempts else "never begun",
        f"{duration((task.ended or 0.0) - run.first)} after the first call",
        *(each for each in where if each),
        *([f"workflow {task.workflow}"] if task.workflow else []),
        *([f"exit code {failure.exit_code}"] if failure.exit_code is not None else []),
    ]
    yield tag("div", _dotted(facts), class_="faint")
    if message(failure):
        yield tag("pre", message(failure))
    if failure.command:
        yield tag("div", "command: ", tag("code", said(readable(shlex.join(failure.command)))))
    if failure.stderr:
        yield tag("div", "stderr, the last lines:")
        yield tag("pre", readable(failure.stderr))


def _dotted(facts: Sequence[str]) -> Markup:
    return Markup(" · ".join(said(each) for each in facts))


def _kinds(counts: Counter[Kind], column: str) -> Markup:
    rows = [[said(name), said(kind), number(count)] for (name, kind), count in counts.most_common()]
    return table(["task", column, "times"], rows, texts=2)
