"""What a replay measured, and the table that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from asyncflow.graph import State
from asyncflow.wfformat import RecordedWorkflow


@dataclass(frozen=True)
class Measured:
    """A replay that came to its end; times in seconds."""

    workflow: RecordedWorkflow
    backend: str
    #: Of the backend in all.
    cores: int
    speed: float
    work: str
    #: Whether the backend runs tasks at all.
    runs: bool
    #: Whether tasks run on threads of one process.
    shares_gil: bool
    #: Until every worker had been used once; no part of the makespan.
    startup: float
    #: From the first call to the end of the last task.
    makespan: float
    #: How many tasks ended in which state.
    states: Mapping[State, int]

    @property
    def critical_path(self) -> float:
        """The longest path, at this speed."""
        return self.workflow.critical_path() / self.speed if self.runs else 0.0

    @property
    def shared_work(self) -> float:
        """All work divided among all cores, at this speed."""
        return self.workflow.work(self.cores) / self.cores / self.speed if self.runs else 0.0

    @property
    def lower_bound(self) -> float:
        """What no schedule can go below."""
        return max(self.critical_path, self.shared_work)

    @property
    def efficiency(self) -> float:
        """1 at best."""
        return self.lower_bound / self.makespan

    @property
    def overhead(self) -> float:
        """Seconds for each task that the makespan lies above the lower bound."""
        return (self.makespan - self.lower_bound) / len(self.workflow.tasks)

    @property
    def capped(self) -> int:
        """How many tasks recorded more cores than there are."""
        return sum(task.cores > self.cores for task in self.workflow.tasks)


def summary(measured: Measured, console: Console) -> str:
    """The table of a replay with its footnotes, for the width and colours of `console`."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for title, value in _rows(measured):
        table.add_row(title, escape(value))
    with console.capture() as captured:
        console.print(table)
        for note in _notes(measured):
            console.print(Text(f"\n{note}"))
    # Rich fills up every line with blanks, in a file too.
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _rows(measured: Measured) -> Iterator[tuple[str, str]]:
    workflow, states = measured.workflow, measured.states
    ended = ", ".join(f"{states.get(state, 0)} {state.lower()}" for state in (State.DONE, State.FAILED))
    yield "workflow", f"{workflow.name} (WfFormat {workflow.version})"
    yield "tasks", f"{len(workflow.tasks)} ({ended})"
    yield "edges", str(workflow.edges)
    yield "backend", f"{measured.backend}, {measured.cores} cores, workers ready after {measured.startup:.3f} s"
    yield "work", f"{measured.work}, {measured.speed:g} times as fast as recorded"
    yield "makespan", f"{measured.makespan:.3f} s"
    if measured.runs:
        path, shared = f"critical path {measured.critical_path:.3f} s", f"work/cores {measured.shared_work:.3f} s"
        yield "lower bound", f"{measured.lower_bound:.3f} s ({path}, {shared})"
        yield "efficiency", f"{measured.efficiency:.1%}"
    yield "overhead", f"{measured.overhead * 1e6:,.0f} µs a task"


def _notes(measured: Measured) -> Iterator[str]:
    yield (
        "makespan: from the first call to the end of the last task, workers already started. efficiency = lower bound "
        "/ makespan. overhead = (makespan - lower bound) / tasks: all that the engine, the backend and the order of "
        "the tasks cost together; no order may reach the lower bound."
    )
    if not measured.runs:
        yield f"Backend {measured.backend!r} runs no task: the lower bound is 0, the makespan is the engine's alone."
    if measured.capped:
        yield f"{measured.capped} tasks recorded more cores than the {measured.cores} there are, and got these."
    if measured.work == "burn" and measured.shares_gil and measured.runs:
        yield "Threads of one process burn one core together (the GIL): backend 'processes' uses all of them."
    if measured.work == "burn" and any(task.cores > 1 for task in measured.workflow.tasks):
        yield "A task of several cores holds them all and burns one."
