"""What went wrong in a run, put together by what it followed from. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from asyncflow.graph import State
from asyncflow.report.run import Failure, Run, Task
from asyncflow.report.words import one_line, readable
from asyncflow.telemetry import names

#: A task name, what went wrong, and whether the worker was lost.
Kind = tuple[str, str]


@dataclass(frozen=True)
class Troubles:
    """All that did not end well; tasks in the order of their ends."""

    #: Tasks that failed by themselves.
    failed: tuple[Task, ...]
    #: How many tasks did not run because of one that failed or was cancelled, by its uid.
    followers: Counter[str]
    #: Attempts that failed and were followed by another, by task name and error.
    retried: Counter[Kind]
    #: Of these, tasks that ended well in the end.
    recovered: int
    #: Cancelled tasks, by task name and reason.
    cancelled: Counter[Kind]
    #: Tasks that had not ended when the file did, by name and state.
    unfinished: Counter[Kind]


def troubles(run: Run) -> Troubles:
    """Sort out what went wrong."""
    failed: list[Task] = []
    followers: Counter[str] = Counter()
    retried: Counter[Kind] = Counter()
    cancelled: Counter[Kind] = Counter()
    unfinished: Counter[Kind] = Counter()
    recovered = 0
    for task in run.tasks.values():
        earlier = [each.failure for each in task.attempts[:-1] if each.failure is not None]
        retried.update((task.name, what(each)) for each in earlier)
        if task.state is State.DONE:
            recovered += bool(earlier)
        elif task.state is State.FAILED and follows(task.failure):
            followers[str(task.failure and task.failure.root_cause)] += 1
        elif task.state is State.FAILED:
            failed.append(task)
        elif task.state is State.CANCELLED:
            cancelled[task.name, one_line(task.failure.message if task.failure else "") or "no reason told"] += 1
        else:
            unfinished[task.name, str(task.state).lower()] += 1
    failed.sort(key=lambda task: task.ended or 0.0)
    return Troubles(tuple(failed), followers, retried, recovered, cancelled, unfinished)


def follows(failure: Failure | None) -> bool:
    """Whether a task failed only because another one had."""
    return failure is not None and failure.root_cause is not None and failure.result in ("", names.SKIP)


def what(failure: Failure) -> str:
    """An error in a few words: its class, and where it is a program's, the exit code."""
    words = "worker lost" if failure.lost else one_line(failure.type, 100) or "error"
    return words if failure.exit_code is None else f"{words}, exit code {failure.exit_code}"


def message(failure: Failure) -> str:
    """What it says, without the stderr that some errors repeat at the end of their messages."""
    said, stderr = readable(failure.message).strip(), readable(failure.stderr).strip()
    if stderr and said.endswith(stderr):
        said = said[: -len(stderr)].rstrip().removesuffix("its stderr ended with:").rstrip("; ")
    return said
