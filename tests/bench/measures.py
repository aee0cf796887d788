"""The measurements themselves; each runs in a child process and returns what goes to the parent as JSON."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from tests.bench.contenders import WORKERS, Contender
from tests.bench.machine import resident
from tests.bench.patterns import build

if TYPE_CHECKING:
    from asyncflow import TaskFuture, WorkflowEngine

Reply = dict[str, float]


class WrongValues(Exception):
    """A contender ran a graph and did not return what it must: its time means nothing."""


async def graph(contender: Contender, pattern: str, tasks: int, iterations: int = 0) -> Reply:
    """Seconds from the first call to the values of all sinks in hand."""
    made = build(pattern, tasks)
    expected = made.expected()
    # Also takes the graph's own tuples of numbers off the collector's lists: it is not to run for the benchmark's sake.
    gc.collect()
    begun = time.perf_counter()
    values = await contender.run(made, iterations)
    seconds = time.perf_counter() - begun
    if values != expected:
        raise WrongValues(f"{pattern} of {tasks} tasks on {contender}")
    return {"seconds": seconds, "tasks": made.tasks, "edges": made.edges}


async def processor(contender: Any, pattern: str, tasks: int, iterations: int = 0) -> Reply:
    """As `graph`, with the processor time of all threads, until nothing is left to do for what has ended."""
    begun = time.process_time()
    reply = await graph(contender, pattern, tasks, iterations)
    await contender.settle()
    return {**reply, "processor": time.process_time() - begun}


def same(value: Any) -> Any:
    """A task that only passes on what it gets."""
    return value


async def array(contender: Contender, megabytes: int, trips: int) -> Reply:
    """Seconds of one trip of a NumPy array to a worker and back, one after the other."""
    import numpy as np

    sent = np.random.default_rng(8).random(megabytes * 10**6 // 8)
    begun = time.perf_counter()
    for _ in range(trips):
        back = await contender.call(same, sent)
    seconds = time.perf_counter() - begun
    if not np.array_equal(sent, back):
        raise WrongValues("an array came back changed")
    return {"seconds": seconds / trips}


def _held(gate: threading.Event) -> int:
    gate.wait()
    return 0


def _after(gate: int) -> int:
    return gate


def _settled() -> tuple[int, int]:
    """Bytes resident and objects alive, once all that is free is given back."""
    for _ in range(3):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        time.sleep(0.05)
    return resident(), len(gc.get_objects())


async def _pend(flow: WorkflowEngine, tasks: int) -> float:
    """Let `tasks` calls wait for one, then let them go and forget them; bytes that each took while it waited."""
    held, after = flow.function_task(_held), flow.function_task(_after)
    gate = threading.Event()
    before = resident()
    gated = held(gate)
    futures: list[TaskFuture[int]] = [after(gated) for _ in range(tasks)]
    await asyncio.sleep(0.2)
    taken = resident() - before
    gate.set()
    await flow.drain()
    if any(future.result() for future in futures):
        raise WrongValues("a gated task")
    return taken / tasks


async def memory(_contender: Contender, tasks: int) -> Reply:
    """Bytes a task, of this engine on threads: `pending` while all wait for one, `kept` when all futures are gone.

    `kept` is what two rounds added, `again` what the second alone did: what is not given back but used again shows
    in the first only. `objects` are those alive that the garbage collector knows, per task. The user's list, 8 bytes
    a future, counts.
    """
    from asyncflow import WorkflowEngine
    from asyncflow.backends.threads import ThreadBackend

    async with WorkflowEngine.create(ThreadBackend(WORKERS)) as flow:
        await _pend(flow, 20_000)  # fills the history, which keeps the last 10,000
        start, objects = _settled()
        pending = await _pend(flow, tasks)
        first, _ = _settled()
        await _pend(flow, tasks)
        second, objects_left = _settled()
    return {
        "pending": pending,
        "kept": (second - start) / tasks,
        "again": (second - first) / tasks,
        "objects": (objects_left - objects) / tasks,
    }


MEASURES: dict[str, Callable[..., Coroutine[Any, Any, Reply]]] = {
    "graph": graph,
    "processor": processor,
    "array": array,
    "memory": memory,
}
