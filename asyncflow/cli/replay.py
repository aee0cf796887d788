"""`asyncflow replay`: a recorded workflow, run again faster, and what the engine made of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from asyncflow.backends.contract import Backend
from asyncflow.backends.noop import NoopBackend
from asyncflow.backends.registry import find_backend
from asyncflow.cli import work as bodies
from asyncflow.cli.failure import INTERRUPTED, CommandLineError
from asyncflow.cli.summary import Measured, summary
from asyncflow.display.markup import one_line
from asyncflow.engine import WorkflowEngine
from asyncflow.errors import AsyncflowError
from asyncflow.future import TaskFuture
from asyncflow.graph import State
from asyncflow.task import Task
from asyncflow.wfformat import RecordedTask, RecordedWorkflow, parse_workflow

#: How many calls are made between two turns of the loop.
_BURST = 1000


@dataclass(frozen=True)
class Replay:
    """What is to be run, and how."""

    workflow: RecordedWorkflow
    backend: Backend
    #: By how much recorded runtimes are divided.
    speed: float
    #: A key of `work.WORK`.
    work: str


@dataclass
class Outcome:
    """What became of the tasks, by the end of the replay or when it was interrupted."""

    #: How many tasks were in which state; those that were not called by then are in none.
    states: Counter[State] = field(default_factory=Counter)
    #: What the first task that failed raised.
    error: BaseException | None = None

    def look(self, futures: Iterable[TaskFuture[Any]]) -> None:
        """Fill it; parents come before children, so that the first error is a task's own."""
        for future in futures:
            self.states[future.state] += 1
            if future.done() and not future.cancelled():
                # Asked of each: what nobody asks for is logged.
                error = future.exception()
                self.error = self.error or error


def replay_file(instance: str, backend: str, speed: float, work: str, workers: int | None) -> int:
    """Replay the file and print the measurements; 1 where a task failed, 130 where Ctrl-C ended it."""
    if not (math.isfinite(speed) and speed > 0):
        raise CommandLineError(f"--speed {speed:g} is not possible: a number above 0")
    asked = Replay(_read(instance), _make_backend(backend, workers), speed, work)
    outcome = Outcome()
    try:
        measured = asyncio.run(run_replay(asked, outcome))
    except KeyboardInterrupt:
        raise CommandLineError(_interrupted(asked, outcome), INTERRUPTED) from None
    except AsyncflowError as error:
        raise CommandLineError(str(error), 1) from error
    click.echo(f"\n{summary(measured, Console())}")
    if outcome.error is not None:
        failed = f"{outcome.states[State.FAILED]} of {len(asked.workflow.tasks)} tasks failed"
        raise CommandLineError(f"{failed}, the first with {one_line(outcome.error)}", 1)
    return 0


def _read(instance: str) -> RecordedWorkflow:
    try:
        return parse_workflow(Path(instance).read_bytes(), instance)
    except OSError as error:
        raise CommandLineError(f"cannot read {instance}: {error.strerror}") from error
    except AsyncflowError as error:
        raise CommandLineError(str(error)) from error


def _make_backend(name: str, workers: int | None) -> Backend:
    try:
        return _constructed(name, find_backend(name), workers)
    except AsyncflowError as error:
        raise CommandLineError(str(error)) from error
    except Exception as error:  # whatever a third party's module raises when it is imported
        raise CommandLineError(f"backend {name!r} cannot be used: {type(error).__name__}: {error}") from error


def _constructed(name: str, make: Callable[..., Backend], workers: int | None) -> Backend:
    if workers is None:
        return make()
    try:
        return make(workers=workers)
    except TypeError as error:
        if "workers" not in str(error):
            raise
        raise CommandLineError(f"backend {name!r} has no number of workers to choose; leave --workers out") from error


def _interrupted(asked: Replay, outcome: Outcome) -> str:
    states = outcome.states
    had_run = f"{states[State.DONE]} of {len(asked.workflow.tasks)} tasks had run"
    return f"interrupted: {had_run}, {states[State.RUNNING]} were running"


async def run_replay(asked: Replay, outcome: Outcome) -> Measured:
    """Run the workflow to its end, and fill `outcome`, also where the replay is cancelled."""
    flow = await WorkflowEngine.create(asked.backend, walltime=False)
    try:
        startup = await _start_workers(flow, asked)
        makespan = await _run(flow, asked, outcome)
    except BaseException:
        with _silence():
            bodies.hurry()
            await flow.shutdown(grace=0)
        raise
    finally:
        await flow.shutdown(grace=0)
    return _measured(asked, outcome, startup, makespan)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Whatever ends in a hurry is neither news nor a measurement."""
    log = logging.getLogger("asyncflow")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


async def _start_workers(flow: WorkflowEngine, asked: Replay) -> float:
    """Let every worker do something once, as the first call of one waits until it has started; seconds."""
    began = time.perf_counter()
    start = flow.function_task(bodies.sleep)
    count = min(asked.backend.capabilities.total.cores, len(asked.workflow.tasks))
    # Nobody sees this display: what one has shown as ended the next one leaves out.
    with flow.progress(io.StringIO()):
        await asyncio.gather(*(start(0.0, []) for _ in range(count)))
    return time.perf_counter() - began


async def _run(flow: WorkflowEngine, asked: Replay, outcome: Outcome) -> float:
    """Seconds from the first call to the end of the last task."""
    futures: dict[str, TaskFuture[Any]] = {}
    try:
        with flow.progress():
            began = time.perf_counter()
            await _call_all(flow, asked, futures)
            await flow.drain()
            return time.perf_counter() - began
    finally:
        outcome.look(futures.values())


def _measured(asked: Replay, outcome: Outcome, startup: float, makespan: float) -> Measured:
    return Measured(
        workflow=asked.workflow,
        backend=asked.backend.name,
        cores=asked.backend.capabilities.total.cores,
        speed=asked.speed,
        work=asked.work,
        runs=not isinstance(asked.backend, NoopBackend),
        shares_gil=asked.backend.capabilities.shares_memory,
        startup=startup,
        makespan=makespan,
        states=outcome.states,
    )


async def _call_all(flow: WorkflowEngine, asked: Replay, futures: dict[str, TaskFuture[Any]]) -> None:
    cores = asked.backend.capabilities.total.cores
    tasks: dict[tuple[str, int], Task[Any]] = {}
    for number, recorded in enumerate(asked.workflow.tasks):
        if number % _BURST == _BURST - 1:
            await asyncio.sleep(0)
        shape = recorded.sort, min(recorded.cores, cores)
        if shape not in tasks:
            tasks[shape] = _task(flow, asked.work, *shape)
        futures[recorded.id] = _call(tasks[shape], recorded, futures, asked.speed)


def _task(flow: WorkflowEngine, work: str, name: str, cores: int) -> Task[Any]:
    # One core is what a call has anyway, and what names resources goes through their ledger.
    description = {"cores_per_rank": cores} if cores > 1 else None
    return flow.function_task(name=name, task_description=description)(bodies.WORK[work])


def _call(
    task: Task[Any], recorded: RecordedTask, futures: dict[str, TaskFuture[Any]], speed: float
) -> TaskFuture[Any]:
    parents: Sequence[Any] = [futures[parent] for parent in recorded.parents]
    return task(recorded.runtime / speed, parents)
