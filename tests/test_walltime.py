"""The end of the time: what is still begun, what is stopped, what futures end with, and how a script ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncflow import DependencyFailureError, ExecutableError, State, TaskFuture, WorkflowEngine
from asyncflow import walltime as module
from asyncflow.backends.allocation import Allocation
from asyncflow.errors import InvalidOptionError, WalltimeReached
from asyncflow.testing.fakes import FakeBackend
from asyncflow.testing.leaks import descendants
from asyncflow.walltime import Stage, walltime_of
from tests.support.command_line import COMMAND, all_gone, command_line, start_command_line
from tests.support.faked import fail, faked, finish, identity, item_of, soon, turns
from tests.support.scripts import environment
from tests.support.slurm import SlurmCluster, needs_slurm


def named(flow: WorkflowEngine, name: str, **options: Any) -> Callable[..., TaskFuture[Any]]:
    return flow.function_task(name=name, **options)(identity)


async def reached(future: asyncio.Future[Any]) -> WalltimeReached:
    """What a future ends with."""
    with pytest.raises(WalltimeReached) as caught:
        await soon(future)
    return caught.value


@asynccontextmanager
async def draining(
    calls: int = 0, *, begun: int = 0, workers: int = 2, seconds: float = 1000.0, ends_cancelled: bool = True
) -> AsyncIterator[tuple[WorkflowEngine, FakeBackend, list[TaskFuture[Any]]]]:
    """An engine with so many calls, some of which had begun when it was told to end."""
    async with faked(workers=workers, ends_cancelled=ends_cancelled) as (flow, backend):
        futures = [flow.function_task(identity)(number) for number in range(calls)]
        for future in futures[:begun]:
            backend.begin(await item_of(backend, future))
        flow.end_within(seconds)
        await until(lambda: flow._walltime.stage is not Stage.OPEN)
        yield flow, backend, futures


async def until(true: Callable[[], bool]) -> None:
    """Wait for what is announced to nobody."""

    async def look() -> None:
        while not true():  # noqa: ASYNC110  # nothing sets an event
            await asyncio.sleep(0.001)

    await soon(look())


# --- the drain -------------------------------------------------------------------------------------------------------


async def test_what_runs_ends_and_nothing_more_is_begun() -> None:
    async with draining(5, begun=2) as (_, backend, futures):
        handed_over = len(backend.submitted)
        assert handed_over == 4, "some wait behind others"
        assert {*backend.cancelled} == {*backend.submitted[2:]}, "what had not begun is taken back"
        for future, item in zip(futures[:2], backend.submitted, strict=False):
            backend.finish(item, "done")
            assert await soon(future) == "done"
        errors = [await reached(future) for future in futures[2:]]
        assert len(backend.submitted) == handed_over
        [error] = set(errors)
        assert (error.done, error.unfinished, error.stopped, error.too_long) == (2, 3, 0, {})
        assert [future.state for future in futures] == [State.DONE] * 2 + [State.CANCELLED] * 3
        assert not any(future.cancelled() for future in futures)


async def test_futures_end_only_when_what_runs_has_ended() -> None:
    async with draining(3, begun=1) as (flow, backend, futures):
        gathered = asyncio.gather(*futures)
        backend.finish(await item_of(backend, futures[0]))
        assert not futures[1].done()
        await reached(gathered)
        assert flow._walltime.stage is Stage.OVER


async def test_what_runs_at_the_end_is_stopped() -> None:
    async with draining(3, begun=2, seconds=0.2, ends_cancelled=False) as (_, backend, futures):
        error = (await reached(futures[0]), await reached(futures[2]))[0]
        assert (error.done, error.unfinished, error.stopped) == (0, 3, 2)
        running = backend.items[:2]
        assert backend.cancelled[-2:] == running[::-1]
        for item in backend.items:
            backend.end_cancelled(item)


async def test_it_begins_by_itself_some_time_before_the_end() -> None:
    began = time.time()
    async with faked(walltime=0.4, walltime_margin=0.3) as (flow, backend):
        future = named(flow, "long")()
        backend.begin(await item_of(backend, future))
        error = await reached(future)
        assert began + 0.4 <= error.ends
        assert backend.cancelled == backend.submitted


async def test_a_margin_longer_than_the_walltime_drains_at_once() -> None:
    async with faked(walltime=1000, walltime_margin=2000) as (flow, backend):
        await reached(named(flow, "late")())
        assert backend.cancelled == backend.submitted


async def test_a_call_after_the_end_ends_like_those_before() -> None:
    async with draining(1, begun=1) as (flow, backend, futures):
        late = named(flow, "late")()
        backend.finish(await item_of(backend, futures[0]))
        error = await reached(late)
        later = [named(flow, "later")(), named(flow, "later")(late), named(flow, "later")([futures[0]])]
        assert [await reached(future) for future in later] == [error] * 3
        assert len(backend.submitted) == 1


async def test_dependents_end_with_the_same_error_whatever_they_depend_on() -> None:
    async with draining(1, begun=1) as (flow, backend, futures), faked() as (other, theirs):
        chain = [futures[0]]
        for _ in range(3):
            chain.append(named(flow, "step")(chain[-1]))
        strange = named(other, "of another engine")(chain[-1])
        backend.finish(await item_of(backend, futures[0]))
        # The second in the chain became ready, the others never did.
        assert len({await reached(future) for future in [*chain[1:], strange]}) == 1
        assert theirs.submitted == []


async def test_the_engine_that_had_nothing_left_to_do_did_not_run_out_of_time() -> None:
    backend = FakeBackend()
    async with WorkflowEngine.create(backend) as flow:
        assert await finish(backend, named(flow, "only")(), 7) == 7
        flow.end_within(0.0)
        await until(lambda: flow._walltime.stage is Stage.OVER)
    assert flow._walltime.error is None


async def test_a_worker_thread_ends_the_drain() -> None:
    """There the engine's loop is not what hands tasks over."""
    release = threading.Event()
    with pytest.raises(WalltimeReached) as caught:  # noqa: PT012  # leaving is what raises
        async with WorkflowEngine.create() as flow:

            @flow.function_task
            def wait(number: int, *_: Any) -> int:
                release.wait()
                return number

            running = wait(0)
            after = wait(1, running)
            await until(lambda: running.state is State.RUNNING)
            flow.end_within(1000)
            await until(lambda: flow._walltime.stage is Stage.DRAINING)
            release.set()
            assert await soon(running) == 0
            await reached(after)
    assert caught.value.done == 1


# --- what does not fit -----------------------------------------------------------------------------------------------


async def test_what_took_longer_than_what_is_left_is_not_begun() -> None:
    async with faked(workers=1, walltime=1000) as (flow, backend):
        long, short = named(flow, "long"), named(flow, "short")
        first = long()
        backend.finish(await item_of(backend, first), seconds=5000.0)
        await soon(first)
        held = [long(), long()]
        assert await finish(backend, short(), "in time") == "in time"
        assert [item.definition.name for item in backend.submitted] == ["long", "short"]
        # Nothing else is left to do: the engine does not sit out the rest.
        error = await reached(held[0])
        assert await reached(held[1]) is error
        assert error.too_long == {"long": 5000.0}
        assert "too long for what was left: 'long' takes 5e+03 s" in str(error)


async def test_the_mean_of_the_last_calls_counts() -> None:
    async with faked(workers=1, walltime=1000) as (flow, backend):
        task = named(flow, "either")
        for seconds in (1500.0, 300.0):
            backend.finish(await item_of(backend, future := task()), seconds=seconds)
            await soon(future)
            if seconds == 1500.0:
                flow._walltime.learn(future._component.binding.tally, 100.0)  # as if another had ended
        await finish(backend, task())


@pytest.mark.parametrize("timeout,begun", [(900, True), (995, False), (1001, True)])
async def test_a_timeout_counts_where_nothing_else_is_known(timeout: float, begun: bool) -> None:
    """Unless it is longer than the whole time: then the task could never be begun."""
    async with faked(walltime=1000) as (flow, backend):
        task = flow.function_task(name="limited", timeout=timeout)(identity)
        future = task()
        if begun:
            await finish(backend, future)
        else:
            assert (await reached(future)).too_long == {"limited": 995}
            assert backend.submitted == []


async def test_a_block_is_begun_whatever_it_took_before() -> None:
    async with faked(walltime=1000) as (flow, _):

        @flow.block(timeout=999)
        async def block() -> str:
            return "begun"

        assert await soon(block()) == "begun"


async def test_near_the_end_nothing_waits_behind_others() -> None:
    async with faked(workers=2, walltime=1000) as (flow, backend):
        task = named(flow, "half")
        first = task()
        backend.finish(await item_of(backend, first), seconds=600.0)
        await soon(first)
        calls = [task() for _ in range(3)]
        await item_of(backend, calls[1])
        await turns(5)
        assert len(backend.items) == 2
        backend.finish(backend.items[0], seconds=600.0)
        await item_of(backend, calls[2])


async def test_a_program_that_may_still_call_something_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncflow.scheduler._WHILE", 0.0)
    async with faked(workers=1, walltime=1000) as (flow, backend):
        long = named(flow, "long")
        first = long()
        backend.finish(await item_of(backend, first), seconds=5000.0)
        release = asyncio.Event()

        @flow.block
        async def decide() -> Any:
            await release.wait()
            return await named(flow, "short")()

        deciding = decide()
        held = long()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not held.done()
        foreign = asyncio.get_running_loop().create_future()
        waiting = named(flow, "waiting")(foreign)
        release.set()
        assert await finish(backend, await _call_of(flow, "short"), 1) == 1
        assert await soon(deciding) == 1
        for _ in range(100):
            await asyncio.sleep(0)
        assert not held.done()
        foreign.set_result(2)
        assert await finish(backend, waiting, 3) == 3
        await reached(held)


async def _call_of(flow: WorkflowEngine, name: str) -> TaskFuture[Any]:
    def found() -> list[TaskFuture[Any]]:
        unfinished = flow._scheduler.unfinished.values()
        return [c.future for c in unfinished if c.name == name and c.future is not None]

    await until(lambda: bool(found()))
    return found()[0]


async def test_blocks_that_wait_for_what_is_held_back_hold_up_nothing() -> None:
    async with faked(workers=1, walltime=1000) as (flow, backend):
        long = named(flow, "long")
        first = long()
        backend.finish(await item_of(backend, first), seconds=5000.0)

        @flow.block
        async def inner() -> Any:
            return await long()

        @flow.block
        async def outer() -> Any:
            return await inner()

        await reached(outer())


# --- when it ends ----------------------------------------------------------------------------------------------------


class FakeAllocation:
    """An allocation whose end a test moves."""

    def __init__(self, *ends: float | Exception | None) -> None:
        self._ends = list(ends)
        self.threads: list[threading.Thread] = []

    def end_time(self) -> float | None:
        self.threads.append(threading.current_thread())
        end = self._ends.pop(0) if len(self._ends) > 1 else self._ends[0]
        if isinstance(end, Exception):
            raise end
        return end


def allocated(monkeypatch: pytest.MonkeyPatch, *ends: float | Exception | None) -> FakeAllocation:
    """Let this process be in an allocation; each look at its end finds the next of `ends`."""
    allocation = FakeAllocation(*ends)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setattr(Allocation, "current", lambda: allocation)
    monkeypatch.setattr(module, "_SOONEST", 0.01)
    monkeypatch.setattr(module, "_LATEST", 0.01)
    return allocation


async def test_the_end_is_that_of_the_allocation(monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    ends = time.time() + 0.3
    allocation = allocated(monkeypatch, None, ends)
    async with faked() as (flow, _):
        assert (await reached(named(flow, "endless")())).ends == ends
    assert threading.current_thread() not in allocation.threads


async def test_an_end_that_is_put_off_lets_more_be_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    later: list[float | None] = [now + 1000]
    allocation = allocated(monkeypatch, now + 1000)
    monkeypatch.setattr(allocation, "end_time", lambda: later[0])
    async with faked(workers=1) as (flow, backend):
        await until(lambda: flow._walltime.ends is not None)
        long = named(flow, "long")
        first = long()
        backend.finish(await item_of(backend, first), seconds=5000.0)
        held = [long(number) for number in range(2)]
        await until(lambda: len(flow._walltime.held) == 2)
        later[0] = now + 20_000
        await until(lambda: flow._walltime.held == [])
        await finish(backend, held[0])
        await finish(backend, held[1])


async def test_an_end_that_is_moved_nearer_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    allocated(monkeypatch, now + 1000, now)
    async with faked() as (flow, _):
        await reached(named(flow, "endless")())


async def test_an_end_that_cannot_be_read_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    allocation = allocated(monkeypatch, ValueError("no daemon answers"))
    async with faked() as (flow, backend):
        await until(lambda: bool(caplog.messages))
        assert await finish(backend, named(flow, "whatever")(), 1) == 1
    assert caplog.messages == ["the end of the walltime is not known: no daemon answers; walltime= says it"]
    assert len(allocation.threads) == 1


async def test_no_end_is_looked_for_where_there_is_none_or_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    allocation = allocated(monkeypatch, time.time())
    for walltime in (False, 1000):
        async with faked(walltime=walltime) as (flow, backend):
            await finish(backend, named(flow, "whatever")())
            assert (flow._scheduler.walltime is None) is (walltime is False)
    assert allocation.threads == []
    monkeypatch.delenv("SLURM_JOB_ID")
    async with faked() as (flow, _):
        assert flow._walltime._reader is None


async def test_a_job_that_has_ended_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id may be in the environment still."""
    allocated(monkeypatch, None)
    looked = threading.Event()

    def current() -> None:
        looked.set()

    monkeypatch.setattr(Allocation, "current", current)
    async with faked() as (flow, backend):
        await until(looked.is_set)
        await finish(backend, named(flow, "whatever")())
        assert flow._walltime.ends is None


async def test_an_engine_shut_down_while_it_looks_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    looks, answer = threading.Event(), threading.Event()

    class Slow:
        def end_time(self) -> float:
            looks.set()
            answer.wait()
            return 0.0

    allocated(monkeypatch)
    monkeypatch.setattr(Allocation, "current", Slow)
    async with faked() as (flow, _):
        await until(looks.is_set)
        shutdown = asyncio.ensure_future(flow.shutdown())
        await turns(5)
        answer.set()
        await soon(shutdown)


@pytest.mark.parametrize(
    "options",
    [{"walltime": True}, {"walltime": 0}, {"walltime": -1}, {"walltime": "1:00:00"}, {"walltime_margin": -1}],
)
def test_what_is_no_walltime_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=rf"{next(iter(options))}=.* is not possible: seconds"):
        WorkflowEngine.create(**options)


# --- ending on request -----------------------------------------------------------------------------------------------


async def test_a_nearer_end_is_never_put_off() -> None:
    async with faked(walltime=1000) as (flow, _):
        await until(lambda: flow._walltime.ends is not None)
        ends = flow._walltime.ends
        flow.end_within(5000)
        await until(lambda: flow._walltime.stage is not Stage.OPEN)
        assert flow._walltime.ends == ends
    async with draining(1, begun=1) as (flow, backend, futures):
        flow.end_within(0.1)
        assert (await reached(futures[0])).stopped == 1
        assert backend.cancelled == backend.submitted


async def test_any_thread_and_any_signal_may_ask_for_the_end() -> None:
    async with faked() as (flow, _):
        await asyncio.to_thread(flow.end_within, 0.1)
        await reached(named(flow, "late")())
    loop = asyncio.get_running_loop()
    async with faked() as (flow, _):
        loop.add_signal_handler(signal.SIGUSR1, flow.end_within, 0.1)
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            await reached(named(flow, "late")())
        finally:
            loop.remove_signal_handler(signal.SIGUSR1)
    flow.end_within(1)  # is over already
    await turns(2)


async def test_seconds_that_are_none_are_refused_at_once() -> None:
    async with faked() as (flow, _):
        with pytest.raises(InvalidOptionError, match=r"seconds=-1 is not possible"):
            flow.end_within(-1)


# --- blocks ----------------------------------------------------------------------------------------------------------


async def test_a_block_sees_it_raised_and_ends_with_it() -> None:
    async with faked() as (flow, backend):
        seen: list[BaseException] = []
        tries: list[int] = []

        @flow.block(retries=3)
        async def block() -> None:
            tries.append(1)
            try:
                await asyncio.gather(*map(flow.function_task(identity), range(3)))
            except WalltimeReached as error:
                seen.append(error)
                raise

        @flow.block(retries=3)
        async def wraps() -> None:
            tries.append(2)
            try:
                await flow.function_task(identity)()
            except WalltimeReached as error:
                raise RuntimeError("stage 2 is not complete") from error

        futures = [block(), wraps()]
        await backend.submitted_items(4)
        flow.end_within(1000)
        error = await reached(futures[0])
        assert seen == [error]
        assert futures[0].state is State.CANCELLED
        with pytest.raises(RuntimeError, match="stage 2 is not complete") as caught:
            await soon(futures[1])
        assert walltime_of(caught.value) is error
        assert tries == [1, 2]


async def test_a_block_may_save_what_it_has_before_the_engine_ends() -> None:
    saved: list[str] = []
    with pytest.raises(WalltimeReached):  # noqa: PT012  # leaving is what raises
        async with WorkflowEngine.create(FakeBackend()) as flow:

            @flow.block
            async def campaign() -> None:
                try:
                    await flow.function_task(identity)()
                except WalltimeReached:
                    await asyncio.sleep(0.01)
                    saved.append("checkpoint")
                    raise

            campaign()
            late = named(flow, "late")()
            await turns(3)
            flow.end_within(1000)
            await soon(late)
    assert saved == ["checkpoint"]


async def test_a_block_that_does_not_end_is_cancelled_in_time() -> None:
    async with faked() as (flow, backend):

        @flow.block
        async def deaf() -> None:
            with contextlib.suppress(WalltimeReached):
                await flow.function_task(identity)()
            await asyncio.Event().wait()

        @flow.block
        async def alone() -> None:
            await asyncio.Event().wait()

        futures = [deaf(), alone()]
        await backend.submitted_items(1)
        flow.end_within(0.2)
        assert len({await reached(future) for future in futures}) == 1
        assert [future.state for future in futures] == [State.CANCELLED] * 2


async def test_a_block_that_was_called_too_late_is_not_begun() -> None:
    async with draining(1, begun=1) as (flow, backend, futures):

        @flow.block
        async def late() -> None:
            raise AssertionError("this was begun")

        future = late()
        backend.finish(await item_of(backend, futures[0]))
        await reached(future)


# --- failures and losses at the end ----------------------------------------------------------------------------------


def killed() -> ExecutableError:
    return ExecutableError("program", ["program"], -signal.SIGTERM, "n1", "", "")


async def test_a_failure_in_the_drain_stays_one_and_is_not_tried_again() -> None:
    async with faked() as (flow, backend):
        once, again = named(flow, "once")(), flow.function_task(retries=2)(identity)()
        for future in (once, again):
            backend.begin(await item_of(backend, future))
        flow.end_within(1000)
        await until(lambda: flow._walltime.stage is Stage.DRAINING)
        await fail(backend, once, ValueError("wrong"))
        with pytest.raises(ValueError, match="wrong"):
            await once
        await fail(backend, again, ValueError("wrong"))
        await reached(again)
        assert len(backend.submitted) == 2


async def test_what_the_batch_system_ends_has_not_failed() -> None:
    """It sends TERM to programs and workers as well as to the engine."""
    async with faked(workers=3) as (flow, backend):
        program, lost, broken = (flow.function_task(max_losses=0)(identity)() for _ in range(3))
        for future in (program, lost, broken):
            backend.begin(await item_of(backend, future))
        after = named(flow, "after")(program)
        flow.end_within(1000)
        await until(lambda: flow._walltime.stage is Stage.DRAINING)
        await fail(backend, program, killed())
        backend.lose(await item_of(backend, lost))
        await turns(2)
        assert not program.done()
        backend.break_down("the cluster was closed")
        assert len({await reached(future) for future in (program, lost, broken, after)}) == 1


async def test_what_was_taken_back_and_began_all_the_same_changes_nothing() -> None:
    async with draining(4, begun=2, ends_cancelled=False) as (_, backend, futures):
        for item in backend.items:
            backend.finish(item, "late")
        assert [await soon(future) for future in futures[:2]] == ["late"] * 2
        for future in futures[2:]:
            await reached(future)


async def test_cancelling_goes_on_in_the_drain() -> None:
    async with draining(3, begun=1) as (_, backend, futures):
        assert futures[2].cancel()
        assert futures[0].cancel()
        await reached(futures[1])
        assert [future.cancelled() for future in futures] == [True, False, True]
        assert backend.items == []


async def test_random_graphs_end_at_any_moment() -> None:
    for seed in range(30):
        chance = random.Random(seed)
        async with faked(workers=2) as (flow, backend):
            calls: list[TaskFuture[Any]] = []

            async def block(*_: Any, flow: WorkflowEngine = flow) -> None:
                await flow.function_task(identity)()

            asked = chance.randrange(40)
            for number in range(60):
                if number == asked:
                    flow.end_within(chance.choice([0.0, 0.01, 0.05]))
                needs = chance.sample(calls, min(len(calls), chance.randrange(3)))
                kind = flow.block(block) if chance.random() < 0.2 else flow.function_task(retries=1)(identity)
                calls.append(kind(*needs))
                await turns(chance.randrange(2))
                _happen(backend, chance)
                flow._scheduler.validate()
            await soon(asyncio.wait(calls))
            flow._scheduler.validate()
            allowed = (WalltimeReached, ValueError, DependencyFailureError)
            for future in calls:
                assert not future.cancelled()
                assert future.exception() is None or isinstance(future.exception(), allowed)
            assert any(isinstance(future.exception(), WalltimeReached) for future in calls)


def _happen(backend: FakeBackend, chance: random.Random) -> None:
    """Let something begin or end."""
    for item in backend.items:
        if not backend.begun(item):
            backend.begin(item)
        elif chance.random() < 0.5:
            backend.finish(item)
        elif chance.random() < 0.2:
            backend.fail(item, ValueError("by chance"))


# --- leaving the engine ----------------------------------------------------------------------------------------------


async def test_leaving_the_engine_raises_it_even_where_it_was_caught() -> None:
    with pytest.raises(WalltimeReached) as caught:  # noqa: PT012  # leaving is what raises
        async with WorkflowEngine.create(FakeBackend()) as flow:
            flow.end_within(0.1)
            error = await reached(named(flow, "late")())
    assert caught.value is error
    assert flow.closed


async def test_leaving_the_engine_raises_it_where_nothing_was_awaited() -> None:
    with pytest.raises(WalltimeReached):  # noqa: PT012  # leaving is what raises
        async with WorkflowEngine.create(FakeBackend()) as flow:
            named(flow, "late")()
            flow.end_within(0.1)


async def test_leaving_the_engine_hides_no_other_error() -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  # leaving is what raises
        async with WorkflowEngine.create(FakeBackend()) as flow:
            flow.end_within(0.1)
            await reached(named(flow, "late")())
            raise ZeroDivisionError


async def test_nobody_is_told_of_futures_that_nobody_awaited(free_loop: None, caplog: pytest.LogCaptureFixture) -> None:
    async with draining(3):
        await asyncio.sleep(0)
    assert caplog.messages == []


async def test_mapping_keeps_what_was_done_and_raises() -> None:
    results: list[Any] = []
    async with faked(workers=1) as (flow, backend):
        mapped = flow.map(flow.function_task(identity), range(100), window=3)
        collected = asyncio.ensure_future(_first(mapped, results))
        [item, *_] = await backend.submitted_items(1)
        backend.begin(item)
        flow.end_within(1000)
        await until(lambda: flow._walltime.stage is Stage.DRAINING)
        backend.finish(item, "first")
        await reached(collected)
        assert results == ["first"]


async def _first(mapped: Any, results: list[Any]) -> None:
    async for result in mapped:
        results.append(result)  # noqa: PERF401  # to have those before the error


async def test_the_grace_of_shutting_down_is_no_longer_than_what_is_left() -> None:
    async with faked() as (flow, _):
        assert flow._walltime.grace(5.0) == 5.0
        flow.end_within(4)
        await until(lambda: flow._walltime.stage is Stage.DRAINING)
        assert flow._walltime.grace(5.0) <= 2.0
        assert flow._walltime.grace(0.5) == 0.5


# --- which errors it is ----------------------------------------------------------------------------------------------


class _Group(Exception):
    """As Python 3.11's."""

    def __init__(self, *exceptions: BaseException) -> None:
        self.exceptions = exceptions


def test_an_error_that_comes_from_it_counts_as_it() -> None:
    error = WalltimeReached(0.0, 1, 2)
    wrapped = RuntimeError()
    wrapped.__cause__ = error
    dependency = DependencyFailureError("plot", "task.2", [("step", "task.1")], error)
    for one in (error, wrapped, dependency, _Group(error, wrapped), _Group(_Group(error))):
        assert walltime_of(one) is error
    meanwhile = ValueError()
    meanwhile.__context__ = error
    circle = ValueError()
    circle.__cause__ = circle
    for other in (None, meanwhile, circle, _Group(error, ValueError()), _Group()):
        assert walltime_of(other) is None


def test_the_message_says_what_to_do() -> None:
    ends = time.mktime((2025, 11, 21, 16, 7, 33, 0, 0, -1))
    assert str(WalltimeReached(ends, 12, 88)) == (
        "the walltime ends at 2025-11-21 16:07:33: 12 calls done, 88 not done; "
        "submit the job again, or ask for more time"
    )
    error = WalltimeReached(ends, 12, 88, 4, {"relax": 754.21, "dock": 3.0})
    assert "88 not done (4 stopped while running); too long for what was left: " in str(error)
    assert "'relax' takes 754 s, 'dock' takes 3 s; submit" in str(error)
    assert str(error).count("\n") == 0


# --- the command line ------------------------------------------------------------------------------------------------

#: Many programs of which each lasts for ever, and a function that ends when it is told to.
PROGRAMS = """\
import asyncio
import sys
from pathlib import Path

from asyncflow import WorkflowEngine

async def main():
    async with WorkflowEngine.create(walltime=False) as flow:

        @flow.executable_task
        def last(number):
            return f"sleep 600.{number}"

        @flow.function_task
        def begin():
            Path("begun").touch()

        await begin()
        running = [last(number) for number in range(100)]
        while not any(future.state == "RUNNING" for future in running):
            await asyncio.sleep(0.01)
        print("runs", flush=True)
        await asyncio.gather(*running)

if __name__ == "__main__":
    asyncio.run(main())
"""


def saved(text: str, name: str = "script.py") -> str:
    Path(name).write_text(text)
    return name


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_term_ends_a_script_in_order(backend: str) -> None:
    before = set(descendants())
    with start_command_line("run", saved(PROGRAMS), "--backend", backend, "--grace", "2") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.terminate()
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 75, complaint
    assert complaint.startswith("asyncflow: the walltime ends at ")
    assert ": 1 calls done, 100 not done (" in complaint
    assert complaint.count("\n") == 1
    assert all_gone(before) == []


def test_term_for_the_whole_group_ends_a_script_in_the_same_order() -> None:
    """As SLURM sends it: workers and programs get it at the same moment, and die of it."""
    before = set(descendants())
    with start_command_line("run", saved(PROGRAMS), "--backend", "processes", "--grace", "2") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGTERM)
        for pid in set(descendants()) - before - {process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 75, complaint
    assert all_gone(before) == []


#: Announces itself and then does what no engine can stop.
STUCK = """\
import asyncio, time
import asyncflow

@asyncflow.function_task
def stuck():
    print("runs", flush=True)
    time.sleep(600)

async def main():
    await stuck()

asyncflow.run(main)
"""


def test_a_function_that_cannot_be_stopped_does_not_keep_the_script() -> None:
    with start_command_line("run", saved(STUCK), "--grace", "4") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.terminate()
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "0 calls done, 1 not done (1 stopped while running)" in complaint


def test_a_thread_that_keeps_python_from_exiting_does_not_keep_the_script() -> None:
    text = """\
import asyncio, concurrent.futures, time
from asyncflow import WorkflowEngine

async def main():
    async with WorkflowEngine.create(concurrent.futures.ThreadPoolExecutor(1), walltime=2) as flow:
        await flow.function_task(time.sleep)(600)

asyncio.run(main())
"""
    run = command_line("run", saved(text))
    assert run.returncode == 75, run.stderr


def test_a_script_that_does_not_end_is_ended() -> None:
    text = """\
import asyncio
from asyncflow import WorkflowEngine

async def main():
    async with WorkflowEngine.create():
        print("runs", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    with start_command_line("run", saved(text), "--grace", "0.5") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.terminate()
        _, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (75, "asyncflow: the script did not end within 0.5 s of TERM\n")


def test_a_second_term_ends_the_script_at_once() -> None:
    before = set(descendants())
    with start_command_line("run", saved(PROGRAMS), "--grace", "600") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        while process.poll() is None:  # one that comes right after the first is taken for its echo
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        process.communicate()
    assert process.returncode == -signal.SIGTERM
    assert all_gone(before, within=20) == []


def test_term_without_an_engine_leaves_the_script() -> None:
    text = """\
import time
try:
    print("runs", flush=True)
    time.sleep(600)
finally:
    print("cleans up")
"""
    with start_command_line("run", saved(text)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.terminate()
        printed, complaint = process.communicate(timeout=60)
    assert (process.returncode, printed) == (75, "cleans up\n")
    assert complaint == "asyncflow: ended by TERM while no engine was open\n"


def test_what_a_script_forks_dies_of_term_as_always() -> None:
    text = """\
import multiprocessing, time

def sleep():
    time.sleep(600)

child = multiprocessing.get_context("fork").Process(target=sleep)
child.start()
child.terminate()
child.join()
print(child.exitcode)
"""
    assert command_line("run", saved(text)).stdout == f"{-signal.SIGTERM}\n"


def test_a_handler_of_the_scripts_own_stays() -> None:
    text = """\
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert command_line("run", saved(text)).returncode == 3


def test_term_that_is_ignored_stays_ignored() -> None:
    script = saved("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nprint('still here')\n")
    command = " ".join([*COMMAND, "run", script])
    run = subprocess.run(["sh", "-c", f"trap '' TERM; exec {command}"], capture_output=True, env=environment())
    assert run.stdout == b"still here\n"


@pytest.mark.parametrize("caught", [False, True])
def test_the_end_of_the_walltime_is_exit_code_75(caught: bool) -> None:
    body = "await asyncio.gather(*map(wait, range(3)))"
    if caught:
        body = f"try:\n            {body}\n        except WalltimeReached:\n            print('saves')"
    text = f"""\
import asyncio
from asyncflow import WorkflowEngine
from asyncflow.errors import WalltimeReached

async def main():
    async with WorkflowEngine.create(walltime=0.5) as flow:

        @flow.function_task
        async def wait(number):
            await asyncio.sleep(600)

        {body}

asyncio.run(main())
"""
    run = command_line("run", saved(text))
    assert run.returncode == 75, run.stderr
    assert run.stdout == ("saves\n" if caught else "")
    assert run.stderr.startswith("asyncflow: the walltime ends at ")
    assert run.stderr.count("\n") == 1


# --- SLURM -----------------------------------------------------------------------------------------------------------

#: More programs than fit, none of which is left half done.
CAMPAIGN = """\
import asyncio
from pathlib import Path

from asyncflow import WorkflowEngine

async def main():
    async with WorkflowEngine.create({options}) as flow:

        @flow.executable_task(shell=True)
        def simulate(number):
            return f"touch begun.{{number}}; sleep {seconds}; touch ended.{{number}}"

        await asyncio.gather(*map(simulate, range(1000)))

asyncio.run(main())
"""


def submitted(slurm: SlurmCluster, before: str, options: str, seconds: float, grace: float) -> int:
    saved(CAMPAIGN.format(options=options, seconds=seconds), "campaign.py")
    run = f"exec {sys.executable} -m asyncflow run campaign.py --grace {grace}"
    return slurm.sbatch(f"{before}\n{run}\n", "--time=10", "--cpus-per-task=4")


def left_behind() -> set[str]:
    """Which programs had begun and not ended."""
    begun, ended = ({path.suffix for path in Path().glob(f"{what}.*")} for what in ("begun", "ended"))
    assert ended
    return begun - ended


@needs_slurm
def test_a_job_with_more_work_than_time_ends_by_itself_before_it_is_killed(slurm: SlurmCluster) -> None:
    # A limit is a minute at least, but it may be changed: within the 30 s that the job has, it is over.
    move = "scontrol update JobId=$SLURM_JOB_ID EndTime=$(date -d '+30 seconds' +%Y-%m-%dT%H:%M:%S)"
    job = submitted(slurm, move, "", seconds=0.5, grace=2)
    end = slurm.wait(job, within=90)
    assert end == ("FAILED", 75), slurm.output(job)  # TIMEOUT, had SLURM ended it
    said = slurm.output(job)
    assert said.count("\n") == 1
    assert said.startswith("asyncflow: the walltime ends at ")
    assert left_behind() == set(), "what ran had the time to end"


@needs_slurm
def test_a_job_that_gets_term_ends_in_order(slurm: SlurmCluster) -> None:
    job = submitted(slurm, "", "walltime=False", seconds=0.5, grace=2)
    slurm.wait_until_running(job)
    while not list(Path().glob("ended.*")):
        assert slurm.squeue(), slurm.output(job)
        time.sleep(0.05)  # the file system announces nothing
    slurm.scancel(job, options=("--full", "--signal=TERM"))
    assert slurm.wait(job) == ("FAILED", 75), slurm.output(job)
    assert "asyncflow: the walltime ends at " in slurm.output(job)
