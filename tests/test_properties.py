"""Random graphs with random failures, cancellations and lost workers: what always holds.

Every task runs at most once per attempt and only after its dependencies; every future ends, and as it should; every
item handed to a backend is accounted for; the engine is empty at the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncflow import DependencyFailureError, State, Task, TaskFuture, WorkerLostError, WorkflowEngine
from asyncflow.backends import ProcessBackend, ThreadBackend, WorkItem
from asyncflow.testing.fakes import FakeBackend
from tests.support.batching import forced_batching
from tests.support.faked import NEVER, identity, turns

# --- over a backend that runs nothing --------------------------------------------------------------------------------


@dataclass
class Call:
    """A call as the test knows it."""

    future: TaskFuture[Any]
    needs: list[Call]
    retries: int
    max_losses: int
    block: bool = False
    #: Attempts handed over, failed ones, and losses of which the task is guilty or not.
    attempts: int = 0
    failures: int = 0
    guilty: int = 0
    innocent: int = 0
    cancelled: bool = False

    def check_end(self) -> None:
        """Whether its future ended as what happened to it demands."""
        assert self.future.done()
        ends = [need.future.state for need in self.needs]
        assert self.attempts <= 1 + self.failures + self.guilty + self.innocent
        if self.future.cancelled():
            assert self.future.state is State.CANCELLED
            assert self.cancelled or State.CANCELLED in ends
        elif (error := self.future.exception()) is None:
            assert self.future.state is State.DONE
            assert set(ends) <= {State.DONE}
            assert self.future.result() == self.future.uid
            assert self.failures <= self.retries
            assert self.guilty <= self.max_losses
        else:
            assert self.future.state is State.FAILED
            if isinstance(error, DependencyFailureError):
                assert State.FAILED in ends
                assert self.attempts == 0
            elif isinstance(error, WorkerLostError):
                assert self.guilty == self.max_losses + 1 == error.losses
            else:
                assert self.failures == self.retries + 1


class CheckingBackend(FakeBackend):
    """Notes whatever is handed over and should not be."""

    def __init__(self, calls: dict[str, Call], ends_cancelled: bool) -> None:
        super().__init__(workers=2, ends_cancelled=ends_cancelled)
        self._calls = calls
        self._seen: set[tuple[str, int]] = set()
        self.wrong: list[str] = []

    def submit(self, items: Sequence[WorkItem]) -> None:
        for item in items:
            call = self._calls[item.uid]
            call.attempts += 1
            if (item.uid, item.attempt) in self._seen or item.attempt != call.attempts:
                self.wrong.append(f"{item!r} is attempt {call.attempts}")
            self._seen.add((item.uid, item.attempt))
            if any(need.future.state is not State.DONE for need in call.needs):
                self.wrong.append(f"{item!r} before its dependencies")
            elif item.args[0] != [need.future.uid for need in call.needs]:
                self.wrong.append(f"{item!r} got {item.args}")
            if any(other.uid == item.uid and not other.cancelled for other in self.items):
                self.wrong.append(f"{item!r} beside another attempt")
            if call.future.done():
                self.wrong.append(f"{item!r} after its end")
        super().submit(items)


class World:
    """An engine, what was called on it, and what may happen to it."""

    def __init__(self, flow: WorkflowEngine, backend: CheckingBackend, calls: dict[str, Call]) -> None:
        self.flow = flow
        self.backend = backend
        self.calls = calls
        self._tasks: dict[tuple[int, ...], Task[Any]] = {}

        async def block(needs: list[str], uid: list[str]) -> str:
            await turns(2)
            return uid[0]

        self._block = flow.block(block)

    def _task(self, retries: int, max_losses: int, priority: int) -> Task[Any]:
        options = retries, max_losses, priority
        if options not in self._tasks:
            delay = 1e-6 * priority  # none at all, or as good as none, by way of a timer
            self._tasks[options] = self.flow.function_task(
                retries=retries, max_losses=max_losses, priority=priority, retry_delay=delay
            )(identity)
        return self._tasks[options]

    def call(self, which: int, how: int) -> None:
        """Depends on some of the last six calls that may end well, at times on others too; one in eight is a block."""
        ends = (State.FAILED, State.CANCELLED)
        recent = [call for call in self.calls.values() if how % 11 == 0 or call.future.state not in ends][-6:]
        needs = [call for place, call in enumerate(recent) if (which & how) >> place & 1]
        arguments = [need.future for need in needs]
        workflow = f"wf-{how % 3}"
        if how % 8 == 7:
            uid: list[str] = []
            future = self._block(arguments, uid, workflow_id=workflow)
            uid.append(future.uid)
            self.calls[future.uid] = Call(future, needs, 0, 0, block=True)
        else:
            retries, max_losses = how % 3, how // 3 % 3
            future = self._task(retries, max_losses, how % 2)(arguments, workflow_id=workflow)
            self.calls[future.uid] = Call(future, needs, retries, max_losses)

    def _chosen(self, which: int) -> tuple[WorkItem, Call, bool] | None:
        """An item, its call, and whether the engine still cares for it."""
        if not self.backend.items:
            return None
        item = self.backend.items[which % len(self.backend.items)]
        call = self.calls[item.uid]
        return item, call, not item.cancelled

    def begin(self, which: int, _: int) -> None:
        chosen = self._chosen(which)
        if chosen is not None and not self.backend.begun(chosen[0]):
            self.backend.begin(chosen[0])

    def finish(self, which: int, _: int) -> None:
        chosen = self._chosen(which)
        if chosen is not None:
            self.backend.finish(chosen[0], chosen[0].uid)

    def fail(self, which: int, _: int) -> None:
        chosen = self._chosen(which)
        if chosen is not None:
            item, call, current = chosen
            call.failures += current
            self.backend.fail(item, ValueError(item.uid))

    def lose(self, which: int, how: int) -> None:
        chosen = self._chosen(which)
        if chosen is not None:
            item, call, current = chosen
            guilty = self.backend.begun(item) and how % 2 == 0
            call.guilty += current and guilty
            call.innocent += current and not guilty
            self.backend.lose(item, alone=how % 2 == 0)

    def cancel(self, which: int, _: int) -> None:
        calls = list(self.calls.values())
        if calls:
            call = calls[which % len(calls)]
            call.cancelled |= call.future.cancel()

    def cancel_workflow(self, which: int, how: int) -> None:
        """Rarely: it ends a third of everything."""
        if how % 8:
            return
        workflow = f"wf-{which % 3}"
        for call in self.calls.values():
            call.cancelled |= call.future.workflow_id == workflow and not call.future.done()
        self.flow.cancel(workflow)

    async def end_all(self) -> None:
        """Let everything end that is still on its way."""
        while any(not call.future.done() for call in self.calls.values()) or self.backend.items:
            for item in self.backend.items:
                if item.cancelled:
                    self.backend.end_cancelled(item)
                else:
                    self.backend.finish(item, item.uid)
            await turns(3)
            self.flow._scheduler.validate()


#: Weighted: most of what happens is calls and good ends.
EVENTS: list[Callable[[World, int, int], None]] = [
    *[World.call] * 4,
    *[World.begin] * 3,
    *[World.finish] * 2,
    World.fail,
    *[World.lose] * 2,
    World.cancel,
    World.cancel_workflow,
]


async def happen(events: list[tuple[int, int, int, int]], ends_cancelled: bool) -> World:
    """Let events happen, with some turns of the loop after each; check after every one."""
    calls: dict[str, Call] = {}
    backend = CheckingBackend(calls, ends_cancelled)
    async with WorkflowEngine.create(backend, block_warning=None, history=5) as flow:
        world = World(flow, backend, calls)
        for event, which, how, pause in events:
            EVENTS[event](world, which, how)
            flow._scheduler.validate()
            await turns(pause)
            flow._scheduler.validate()
        await asyncio.wait_for(world.end_all(), NEVER)
        await asyncio.wait_for(flow.drain(), NEVER)
        assert backend.wrong == []
        for call in calls.values():
            call.check_end()
        assert flow._scheduler.out() == 0
        assert len(flow._scheduler.unfinished) == 0
        assert len(flow.components) == min(5, len(calls))
    assert len(backend.submitted) == sum(call.attempts for call in calls.values())
    return world


_EVENT = st.tuples(st.integers(0, len(EVENTS) - 1), st.integers(0, 63), st.integers(0, 63), st.integers(0, 3))
#: Long ones are where things meet, short ones what a failure is shown with.
_EVENTS = st.lists(_EVENT, max_size=10) | st.lists(_EVENT, min_size=50, max_size=120)


@settings(deadline=None, max_examples=300)
@given(_EVENTS, st.booleans())
def test_whatever_happens_every_task_ends_as_it_should(
    events: list[tuple[int, int, int, int]], ends_cancelled: bool
) -> None:
    asyncio.run(happen(events, ends_cancelled))


@pytest.mark.soak
@settings(deadline=None, max_examples=20_000)
@given(_EVENTS, st.booleans())
def test_whatever_happens_in_the_long_run(events: list[tuple[int, int, int, int]], ends_cancelled: bool) -> None:
    asyncio.run(happen(events, ends_cancelled))


def test_the_tests_above_see_something_happen() -> None:
    ends: Counter[State] = Counter()
    errors: Counter[type] = Counter()
    for seed in range(20):
        draw = random.Random(seed).randrange
        events = [(draw(len(EVENTS)), draw(64), draw(64), draw(4)) for _ in range(200)]
        for call in asyncio.run(happen(events, bool(seed % 2))).calls.values():
            ends[call.future.state] += 1
            if call.future.state is State.FAILED:
                errors[type(call.future.exception())] += 1
    assert set(ends) == {State.DONE, State.FAILED, State.CANCELLED}
    assert {DependencyFailureError, ValueError, WorkerLostError} <= set(errors)


@settings(deadline=None, max_examples=50)
@given(_EVENTS, st.booleans(), st.booleans())
def test_a_shutdown_at_any_moment_ends_every_future(
    events: list[tuple[int, int, int, int]], ends_cancelled: bool, breaks: bool
) -> None:
    async def stopped() -> None:
        calls: dict[str, Call] = {}
        backend = CheckingBackend(calls, ends_cancelled)
        flow = await WorkflowEngine.create(backend, block_warning=None)
        world = World(flow, backend, calls)
        for event, which, how, pause in events:
            EVENTS[event](world, which, how)
            await turns(pause)
        if breaks:
            backend.break_down("on purpose")
            await turns(2)
            flow._scheduler.validate()
        await asyncio.wait_for(flow.shutdown(), NEVER)
        await turns(2)
        assert all(call.future.done() for call in calls.values())
        assert len(flow._scheduler.unfinished) == 0
        assert flow._scheduler.out() == 0
        for call in calls.values():
            if not call.future.cancelled():
                call.future.exception()

    asyncio.run(stopped())


# --- over real workers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A task that a real worker runs: what it waits for, and how its attempts end."""

    needs: list[int]
    is_async: bool
    #: How each attempt ends: "fail", or "die" with its worker; further ones end well.
    ends: list[str]
    retries: int
    #: Whether it is cancelled soon after the call.
    cancelled: bool

    @property
    def fails(self) -> bool:
        """Whether its failures are more than its retries."""
        return self.ends.count("fail") > self.retries


def plans(ends: list[str], least: int, most: int) -> st.SearchStrategy[list[Plan]]:
    """Graphs in which every task waits for tasks before it."""
    shape = st.tuples(
        st.lists(st.integers(1, 5), max_size=3, unique=True),
        st.booleans(),
        st.lists(st.sampled_from(ends), max_size=2),
        st.integers(0, 2),
        st.integers(0, 9).map(lambda number: number == 0),
    )

    def made(rows: list[Any]) -> list[Plan]:
        return [Plan([index - back for back in backs if back <= index], *rest) for index, (backs, *rest) in rows]

    return st.lists(shape, min_size=least, max_size=most).map(lambda rows: made(list(enumerate(rows))))


def note(folder: str, line: str) -> int:
    """Leave a line in one piece; how often it is there now."""
    with open(Path(folder) / "trace", "a+b", buffering=0) as file:
        file.write(f"{line}\n".encode())
        file.seek(0)
        return file.read().decode().splitlines().count(line)


def run_plan(folder: str, number: int, ends: list[str], given: list[int]) -> int:
    """The body of every task."""
    attempt = note(folder, f"begin {number} after {sorted(given)}")
    end = ends[attempt - 1] if attempt <= len(ends) else "end"
    note(folder, f"{end} {number}")
    if end == "fail":
        raise ValueError(number)
    if end == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return number


async def run_plan_async(folder: str, number: int, ends: list[str], given: list[int]) -> int:
    await asyncio.sleep(0)
    return run_plan(folder, number, ends, given)


async def carry_out(graph: list[Plan], backend: Any, folder: str) -> None:
    async with WorkflowEngine.create(backend, block_warning=None) as flow:
        futures: list[TaskFuture[int]] = []
        for number, plan in enumerate(graph):
            body: Any = run_plan_async if plan.is_async else run_plan
            task = flow.function_task(retries=plan.retries, max_losses=10)(body)
            futures.append(task(folder, number, plan.ends, [futures[need] for need in plan.needs]))
        cancelled = set()
        for number, plan in enumerate(graph):
            if plan.cancelled:
                await turns(2)
                if futures[number].cancel():
                    cancelled.add(number)
        await asyncio.wait_for(flow.drain(), NEVER)
        flow._scheduler.validate()
        check_futures(graph, futures, cancelled)
    assert flow._scheduler.out() == 0
    check_trace(graph, folder)


def check_futures(graph: list[Plan], futures: list[TaskFuture[int]], cancelled: set[int]) -> None:
    for number, (plan, future) in enumerate(zip(graph, futures, strict=True)):
        needs = [futures[need].state for need in plan.needs]
        if future.cancelled():
            assert number in cancelled or State.CANCELLED in needs
        elif (error := future.exception()) is None:
            assert set(needs) <= {State.DONE}
            assert not plan.fails
            assert future.result() == number
        elif isinstance(error, DependencyFailureError):
            assert State.FAILED in needs
        else:
            assert plan.fails
            assert error.args == (number,)


def check_trace(graph: list[Plan], folder: str) -> None:
    file = Path(folder) / "trace"
    lines = file.read_text().splitlines() if file.exists() else []
    deaths = sum(line.startswith("die") for line in lines)
    ended: set[int] = set()
    begun: Counter[int] = Counter()
    for line in lines:
        event, number = line.split(" ")[0], int(line.split(" ")[1])
        if event == "begin":
            begun[number] += 1
            assert set(graph[number].needs) <= ended
            assert line.endswith(f"after {sorted(graph[number].needs)}")
        elif event == "end":
            ended.add(number)
    for number, count in begun.items():
        # A coroutine may run again because another one on the same worker killed it; a function never.
        assert count <= 1 + len(graph[number].ends) + (deaths if graph[number].is_async else 0)


@settings(deadline=None, max_examples=40)
@given(plans(["fail"], 5, 25))
def test_real_threads_keep_the_promises(graph: list[Plan]) -> None:
    before = threading.active_count()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(carry_out(graph, ThreadBackend(2), folder))
    assert threading.active_count() == before


@settings(deadline=None, max_examples=40)
@given(plans(["fail"], 5, 25))
def test_real_threads_keep_the_promises_in_batches(graph: list[Plan]) -> None:
    with tempfile.TemporaryDirectory() as folder, forced_batching():
        asyncio.run(carry_out(graph, ThreadBackend(2), folder))


@pytest.mark.timeout(300)
@settings(deadline=None, max_examples=4)
@given(plans(["fail", "die"], 5, 12))
def test_real_processes_keep_the_promises_in_batches(graph: list[Plan]) -> None:
    with tempfile.TemporaryDirectory() as folder, forced_batching():
        asyncio.run(carry_out(graph, ProcessBackend(2), folder))


@pytest.mark.timeout(300)
@settings(deadline=None, max_examples=4)
@given(plans(["fail", "die"], 5, 12))
def test_real_processes_keep_the_promises_though_they_die(graph: list[Plan]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(carry_out(graph, ProcessBackend(2), folder))


@pytest.mark.soak
@settings(deadline=None, max_examples=1000)
@given(plans(["fail"], 5, 60))
def test_real_threads_keep_the_promises_in_the_long_run(graph: list[Plan]) -> None:
    with tempfile.TemporaryDirectory() as folder, forced_batching():
        asyncio.run(carry_out(graph, ThreadBackend(3), folder))


@pytest.mark.soak
@settings(deadline=None, max_examples=200)
@given(plans(["fail", "die"], 5, 40))
def test_real_processes_keep_the_promises_in_the_long_run(graph: list[Plan]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(carry_out(graph, ProcessBackend(2), folder))
