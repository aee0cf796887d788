"""`asyncflow replay`: a recorded workflow, run again faster, and what the engine made of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from asyncflow.backends.contract import Backend
from asyncflow.backends.noop import NoopBackend
from asyncflow.backends.registry import find_backend
from asyncflow.cli import work as bodies
from asyncflow.cli.display import Display, display
from asyncflow.cli.failure import INTERRUPTED, CommandLineError
from asyncflow.cli.summary import Measured, summary
from asyncflow.cli.tally import Tallies
from asyncflow.engine import WorkflowEngine
from asyncflow.errors import AsyncflowError
from asyncflow.future import TaskFuture
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


def replay_file(instance: str, backend: str, speed: float, work: str, workers: int | None) -> int:
    """Replay the file and print the measurements; 1 where a task failed, 130 where Ctrl-C ended it."""
    if not (math.isfinite(speed) and speed > 0):
        raise CommandLineError(f"--speed {speed:g} is not possible: a number above 0")
    asked = Replay(_read(instance), _make_backend(backend, workers), speed, work)
    console, tallies = Console(), Tallies()
    try:
        measured = asyncio.run(run_replay(asked, tallies, display(console)))
    except KeyboardInterrupt:
        raise CommandLineError(_interrupted(tallies), INTERRUPTED) from None
    except AsyncflowError as error:
        raise CommandLineError(str(error), 1) from error
    console.print(summary(measured))
    if tallies.error is not None:
        raise CommandLineError(f"{tallies.sum().failed} tasks failed, the first with {_first_line(tallies.error)}", 1)
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


def _interrupted(tallies: Tallies) -> str:
    whole = tallies.sum()
    return f"interrupted: {whole.done} of {whole.total} tasks had run, {whole.running} were running"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


async def run_replay(asked: Replay, tallies: Tallies, shown: Display) -> Measured:
    """Run the workflow to its end. When it is cancelled, `tallies` hold what had run."""
    flow = await WorkflowEngine.create(asked.backend)
    try:
        started = time.perf_counter()
        await _start_workers(flow, asked)
        return await _run(flow, asked, tallies, shown, time.perf_counter() - started)
    except BaseException:
        tallies.look()
        with _silence():
            bodies.hurry()
            await flow.shutdown(grace=0)
        raise
    finally:
        await flow.shutdown(grace=0)


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


async def _start_workers(flow: WorkflowEngine, asked: Replay) -> None:
    """Let every worker do something once: the first call of one that must be started waits for that."""
    start = flow.function_task(bodies.sleep)
    count = min(asked.backend.capabilities.total.cores, len(asked.workflow.tasks))
    await asyncio.gather(*(start(0.0, []) for _ in range(count)))


async def _run(flow: WorkflowEngine, asked: Replay, tallies: Tallies, shown: Display, startup: float) -> Measured:
    cores = asked.backend.capabilities.total.cores
    began = time.perf_counter()
    with shown:
        await _call_all(flow, asked, cores, tallies)
        await _watch(flow, tallies, shown)
        makespan = time.perf_counter() - began
    return Measured(
        workflow=asked.workflow,
        backend=asked.backend.name,
        cores=cores,
        speed=asked.speed,
        work=asked.work,
        runs=not isinstance(asked.backend, NoopBackend),
        shares_gil=asked.backend.capabilities.shares_memory,
        startup=startup,
        makespan=makespan,
        tally=tallies.sum(),
    )


async def _call_all(flow: WorkflowEngine, asked: Replay, cores: int, tallies: Tallies) -> None:
    tasks: dict[tuple[str, int], Task[Any]] = {}
    futures: dict[str, TaskFuture[Any]] = {}
    for number, recorded in enumerate(asked.workflow.tasks):
        if number % _BURST == _BURST - 1:
            await asyncio.sleep(0)
        shape = recorded.sort, min(recorded.cores, cores)
        if shape not in tasks:
            tasks[shape] = _task(flow, asked.work, *shape)
        futures[recorded.id] = _call(tasks[shape], recorded, futures, asked.speed)
        tallies.add(futures[recorded.id])


def _task(flow: WorkflowEngine, work: str, name: str, cores: int) -> Task[Any]:
    # One core is what a call has anyway, and what names resources goes through their ledger.
    description = {"cores_per_rank": cores} if cores > 1 else None
    return flow.function_task(name=name, task_description=description)(bodies.WORK[work])


def _call(
    task: Task[Any], recorded: RecordedTask, futures: dict[str, TaskFuture[Any]], speed: float
) -> TaskFuture[Any]:
    parents: Sequence[Any] = [futures[parent] for parent in recorded.parents]
    return task(recorded.runtime / speed, parents)


async def _watch(flow: WorkflowEngine, tallies: Tallies, shown: Display) -> None:
    """Show how far it is until all has ended."""
    drained = asyncio.ensure_future(flow.drain())
    try:
        while not drained.done():
            tallies.look()
            shown.show(tallies)
            # A hundredth of the time at most goes into looking.
            await asyncio.wait({drained}, timeout=max(shown.interval, 100 * tallies.cost))
    finally:
        drained.cancel()
    tallies.look()
    shown.show(tallies)
