"""Ends: failures and what they take along, cancellation, retries, timeouts, lost workers, broken backends."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import math
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from asyncflow import (
    BackendLostError,
    DependencyFailureError,
    State,
    TaskExitError,
    TaskFuture,
    TaskTimeoutError,
    WorkerLostError,
    WorkflowEngine,
)
from asyncflow.backends import ProcessBackend, ThreadBackend, WorkItem
from asyncflow.backends.coroutines import CoroutineLoop
from asyncflow.errors import InvalidOptionError
from asyncflow.testing.fakes import FakeBackend
from tests.support.faked import fail, faked, finish, identity, item_of, soon, turns


def named(flow: WorkflowEngine, name: str) -> Callable[..., TaskFuture[Any]]:
    return flow.function_task(name=name)(identity)


async def failure(future: asyncio.Future[Any]) -> BaseException:
    """The error of a future that must fail."""
    await soon(asyncio.wait([future]))
    error = future.exception()
    assert error is not None
    return error


# --- a failure and what depends on it --------------------------------------------------------------------------------


async def test_a_failure_fails_the_dependents_root_cause_first() -> None:
    async with faked() as (flow, backend):
        load = named(flow, "load")()
        clean = named(flow, "clean")([load])
        train = named(flow, "train")(clean)
        root = ValueError("no such column\nand more")
        await fail(backend, load, root)

        assert await failure(load) is root
        error = await failure(train)
        assert isinstance(error, DependencyFailureError)
        assert error.root_cause is error.__cause__ is root
        assert error.failed_dependencies == ("clean",)
        assert (error.name, error.uid) == ("train", train.uid)
        assert str(error).splitlines() == [
            f"'load' ({load.uid}) failed with ValueError: no such column",
            f"  so 'clean' ({clean.uid}) did not run",
            f"  so 'train' ({train.uid}) did not run",
        ]
        assert [future.state for future in (load, clean, train)] == [State.FAILED] * 3
        assert len(backend.submitted) == 1


@pytest.mark.parametrize("length", [2, 4, 5, 6, 7, 50])
async def test_the_chain_of_a_failure_has_at_most_five_lines(length: int) -> None:
    async with faked() as (flow, backend):
        futures = [named(flow, "step 0")()]
        for number in range(1, length):
            futures.append(named(flow, f"step {number}")(futures[-1]))
        await fail(backend, futures[0], ValueError("broken"))
        error = await failure(futures[-1])
        for future in futures[:-1]:
            await failure(future)
        lines = str(error).splitlines()
        assert len(lines) == min(length, 5)
        assert lines[0] == f"'step 0' ({futures[0].uid}) failed with ValueError: broken"
        assert lines[-1] == f"  so 'step {length - 1}' ({futures[-1].uid}) did not run"
        assert ("  ..." in lines) == (length > 5)


async def test_a_failure_reaches_a_hundred_thousand_dependents() -> None:
    """Neither the stack nor the memory grows with the length of the chain."""
    async with faked(history=10) as (flow, backend):
        step = flow.function_task(identity)
        first = last = step()
        for _ in range(100_000):
            last = step(last)
        await fail(backend, first, ValueError("broken"))
        error = await failure(last)
        assert isinstance(error, DependencyFailureError)
        assert isinstance(error.root_cause, ValueError)
        assert await failure(first) is error.root_cause
        assert len(flow.components) == 10


async def test_a_task_with_several_failed_dependencies_names_the_first() -> None:
    async with faked() as (flow, backend):
        left, right = named(flow, "left")(), named(flow, "right")()
        both = named(flow, "both")(left, right)
        for future in (right, left):
            await fail(backend, future, ValueError(future.name))
        error = await failure(both)
        assert isinstance(error, DependencyFailureError)
        assert error.failed_dependencies == ("right",)
        for future in (left, right):
            assert str(await failure(future)) == future.name


async def test_a_failure_spares_what_does_not_depend_on_it() -> None:
    async with faked() as (flow, backend):
        bad, good = named(flow, "bad")(), named(flow, "good")()
        after = named(flow, "after")(good)
        await fail(backend, bad, ValueError("broken"))
        assert await finish(backend, good, 1) == 1
        assert await finish(backend, after, 2) == 2
        await failure(bad)


async def test_a_call_on_a_failed_dependency_fails_at_once() -> None:
    async with faked() as (flow, backend):
        first = named(flow, "first")()
        await fail(backend, first, ValueError("broken"))
        second = named(flow, "second")(first, key=[named(flow, "other")()])
        assert isinstance(second, TaskFuture)
        error = await failure(second)
        assert isinstance(error, DependencyFailureError)
        assert error.failed_dependencies == ("first",)
        await failure(first)


async def test_a_call_on_a_cancelled_dependency_is_cancelled_at_once() -> None:
    async with faked() as (flow, _):
        first = named(flow, "first")()
        first.cancel()
        second = named(flow, "second")(first)
        assert isinstance(second, TaskFuture)
        assert second.cancelled()


_EXITS = [SystemExit(3), KeyboardInterrupt(), GeneratorExit()]


@pytest.mark.parametrize(
    "kind,raised",
    [
        *(("def", error) for error in [*_EXITS, asyncio.CancelledError("mine"), StopIteration(1)]),
        *(("async def", error) for error in [*_EXITS, asyncio.CancelledError("mine")]),
        *(("block", error) for error in _EXITS),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_what_a_future_cannot_carry_comes_back_as_a_task_exit(kind: str, raised: BaseException) -> None:
    def leave() -> NoReturn:
        raise raised

    async def leave_async() -> NoReturn:
        raise raised

    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        future: TaskFuture[Any]
        if kind == "def":
            future = flow.function_task(leave)()
        else:
            future = (flow.function_task if kind == "async def" else flow.block)(leave_async)()
        error = await failure(future)
        assert isinstance(error, TaskExitError)
        assert error.raised == type(raised).__name__
        assert isinstance(error.__cause__, type(raised))
        assert error.code == (3 if isinstance(raised, SystemExit) else None)
        assert await soon(flow.function_task(identity)(1)) == 1, "worker and loop live on"


async def test_a_block_that_awaits_a_cancelled_task_is_cancelled() -> None:
    async with faked() as (flow, _):
        inner = named(flow, "inner")()

        @flow.block
        async def outer() -> Any:
            return await inner

        future = outer()
        await turns(3)
        inner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(future)
        assert future.state is State.CANCELLED


# --- futures that nobody awaits --------------------------------------------------------------------------------------


class Overheard:
    """What reaches the loop's exception handler."""

    def __init__(self) -> None:
        self.contexts: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.contexts.append(context))

    def messages(self) -> list[str]:
        gc.collect()
        return [str(context["message"]) for context in self.contexts]


async def test_a_failure_that_nobody_awaited_is_logged_once_for_its_root() -> None:
    overheard = Overheard()
    async with faked() as (flow, backend):
        root = named(flow, "root")()
        rest = [named(flow, "rest")(root) for _ in range(10)]
        rest += [named(flow, "rest")(each) for each in rest]
        await fail(backend, root, ValueError("broken"))
        assert overheard.messages() == [], "as long as somebody may still await one of them"
        uid = root.uid
        del root
        assert overheard.messages() == []
        rest.clear()
        assert overheard.messages() == [f"asyncflow: 'root' ({uid}) failed and nobody awaited it"]
        assert isinstance(overheard.contexts[0]["exception"], ValueError)


@pytest.mark.parametrize("awaited", ["root", "dependent"])
async def test_a_failure_of_which_one_future_was_awaited_is_not_logged(awaited: str) -> None:
    overheard = Overheard()
    async with faked() as (flow, backend):
        futures = {"root": named(flow, "root")()}
        futures["dependent"] = named(flow, "dependent")(futures["root"])
        await fail(backend, futures["root"], ValueError("broken"))
        await failure(futures[awaited])
        futures.clear()
        assert overheard.messages() == []


async def test_each_failure_that_nobody_awaited_is_logged() -> None:
    overheard = Overheard()
    async with faked() as (flow, backend):
        futures = [named(flow, name)() for name in ("one", "two")]
        for future in futures:
            await fail(backend, future, ValueError(future.name))
        del future
        futures.clear()
        assert len(overheard.messages()) == 2


async def test_a_cancelled_task_is_not_logged() -> None:
    overheard = Overheard()
    async with faked() as (flow, _):
        future = named(flow, "first")()
        dependent = named(flow, "second")(future)
        future.cancel()
        del future, dependent
        assert overheard.messages() == []


# --- cancellation ----------------------------------------------------------------------------------------------------


async def test_cancelling_takes_dependents_along_and_never_dependencies() -> None:
    async with faked() as (flow, backend):
        first = named(flow, "first")()
        second = named(flow, "second")(first)
        third, fourth = named(flow, "third")(second), named(flow, "fourth")(second)
        assert second.cancel()
        assert [future.state for future in (first, second, third, fourth)] == [State.PENDING, *[State.CANCELLED] * 3]
        with pytest.raises(asyncio.CancelledError):
            await third
        assert await finish(backend, first, 1) == 1
        assert len(backend.submitted) == 1


async def test_cancelling_what_runs_ends_its_work() -> None:
    async with faked() as (flow, backend):
        future = named(flow, "runs")()
        item = await item_of(backend, future)
        backend.begin(item)
        assert future.cancel()
        assert future.cancelled()
        assert future.state is State.CANCELLED
        assert backend.cancelled == [item]
        await soon(flow.drain())


async def test_cancelling_twice_or_after_the_end_changes_nothing() -> None:
    async with faked() as (flow, backend):
        done, cancelled = named(flow, "done")(), named(flow, "cancelled")()
        await finish(backend, done, 1)
        assert not done.cancel()
        assert done.result() == 1
        assert cancelled.cancel()
        assert not cancelled.cancel()


async def test_a_cancellation_carries_its_message() -> None:
    async with faked() as (flow, _):
        first = named(flow, "first")()
        second = named(flow, "second")(first)
        first.cancel("not needed")
        with pytest.raises(asyncio.CancelledError, match="not needed"):
            await first
        with pytest.raises(asyncio.CancelledError, match=rf"its dependency 'first' \({first.uid}\) was cancelled"):
            await second


async def test_a_slot_is_free_only_when_the_work_is_dead() -> None:
    async with faked(workers=1, ends_cancelled=False) as (flow, backend):
        futures = [named(flow, "task")() for _ in range(3)]
        item = await item_of(backend, futures[0])
        handed_over = len(backend.items)
        futures[0].cancel()
        await turns(5)
        assert len(backend.items) == handed_over
        backend.end_cancelled(item)
        await turns(2)
        assert await item_of(backend, futures[2])
        for future in futures[1:]:
            await finish(backend, future)


async def test_a_result_that_comes_after_the_cancellation_changes_nothing() -> None:
    async with faked(ends_cancelled=False) as (flow, backend):
        future = named(flow, "late")()
        item = await item_of(backend, future)
        future.cancel()
        backend.finish(item, "too late")
        await turns(2)
        assert future.cancelled()


async def test_cancelling_what_awaits_cancels_the_task() -> None:
    async with faked() as (flow, backend):
        future = named(flow, "awaited")()

        async def waiter() -> Any:
            return await future

        task = asyncio.ensure_future(waiter())
        item = await item_of(backend, future)
        task.cancel()
        await turns(2)
        assert future.cancelled()
        assert backend.cancelled == [item]


async def test_shield_only_watches() -> None:
    async with faked() as (flow, backend):
        future = named(flow, "shielded")()
        watcher = asyncio.shield(future)
        await turns(1)
        watcher.cancel()
        await turns(2)
        assert not future.done()
        assert await finish(backend, future, 1) == 1


async def test_wait_for_cancels_what_it_gives_up() -> None:
    async with faked() as (flow, backend):
        future = named(flow, "slow")()
        item = await item_of(backend, future)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(future, 0)
        assert future.cancelled()
        assert backend.cancelled == [item]


async def test_cancelling_a_gather_cancels_its_tasks_and_wait_does_not() -> None:
    async with faked() as (flow, backend):
        futures = [named(flow, "gathered")() for _ in range(3)]
        waiting = asyncio.ensure_future(asyncio.wait(futures))
        await turns(1)
        waiting.cancel()
        await turns(2)
        assert not any(future.done() for future in futures)
        gathered = asyncio.gather(*futures)
        gathered.cancel()
        await turns(2)
        assert all(future.cancelled() for future in futures)
        assert backend.items == []


async def test_a_gather_that_fails_leaves_the_other_tasks_alone() -> None:
    async with faked() as (flow, backend):
        bad, good = named(flow, "bad")(), named(flow, "good")()
        gathered = asyncio.gather(bad, good)
        await fail(backend, bad, ValueError("broken"))
        with pytest.raises(ValueError, match="broken"):
            await gathered
        assert not good.done()
        assert await finish(backend, good, 1) == 1


async def test_a_task_cancelled_before_it_was_handed_over_never_is() -> None:
    async with faked() as (flow, backend):
        future = named(flow, "never")()
        future.cancel()
        await turns(3)
        assert backend.submitted == []


async def test_flow_cancel_ends_one_workflow() -> None:
    async with faked(workers=2) as (flow, backend):
        step = flow.function_task(identity)
        with flow.workflow_scope("doomed"):
            doomed = [step() for _ in range(20)]
            doomed.append(step(doomed[0]))
        spared = step(workflow_id="spared")
        await finish(backend, doomed[1], "done before")
        assert flow.cancel("doomed") == 20
        assert [future.cancelled() for future in doomed] == [True, False, *[True] * 19]
        with pytest.raises(asyncio.CancelledError, match="workflow 'doomed' was cancelled"):
            await doomed[2]
        assert flow.cancel("doomed") == 0
        assert flow.cancel("unknown") == 0
        assert await finish(backend, spared, 1) == 1


async def test_flow_cancel_needs_a_workflow() -> None:
    async with faked() as (flow, _):
        future = named(flow, "spared")()
        with pytest.raises((TypeError, ValueError)):
            flow.cancel(future.workflow_id)  # type: ignore[arg-type]  # None: the call belongs to none
        assert not future.done()


async def test_a_function_on_a_thread_cannot_be_stopped_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    warn: Callable[..., None] = logging.getLogger("asyncflow").warning
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        running, release = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        @flow.function_task
        def stuck() -> None:
            loop.call_soon_threadsafe(running.set)
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

        future, following = stuck(), flow.function_task(identity)(1)
        await soon(running.wait())
        said = asyncio.Event()

        def heard(*what: object) -> None:
            warn(*what)
            said.set()

        monkeypatch.setattr("asyncflow.backends.threads._log.warning", heard)
        future.cancel()
        assert future.cancelled()
        await soon(said.wait())
        [record] = caplog.records
        assert f"'stuck' ({future.uid}) was cancelled, but a plain function on a thread cannot be" in record.message
        await turns(3)
        assert not following.done(), "the only worker is taken"
        release.set()
        assert await soon(following) == 1


async def test_cancelling_a_coroutine_ends_it() -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        loop = asyncio.get_running_loop()
        running, ended = asyncio.Event(), asyncio.Event()

        @flow.function_task
        async def wait_for_ever() -> None:
            loop.call_soon_threadsafe(running.set)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                loop.call_soon_threadsafe(ended.set)

        future = wait_for_ever()
        await soon(running.wait())
        future.cancel()
        await soon(ended.wait())
        assert future.cancelled()


# --- retries ---------------------------------------------------------------------------------------------------------


async def test_a_failed_attempt_is_followed_by_another() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(retries=2)(identity)("argument")
        dependent = named(flow, "dependent")(future)
        for attempt in (1, 2):
            item = await item_of(backend, future, attempt)
            backend.begin(item)
            await fail(backend, future, ValueError(f"attempt {attempt}"), attempt)
            assert not future.done()
        item = await item_of(backend, future, 3)
        assert (item.args, flow.components[future.uid].attempt) == (("argument",), 3)
        assert await finish_attempt(backend, future, 3, "at last") == "at last"
        assert (await item_of(backend, dependent)).args == ("at last",)
        await finish(backend, dependent)


async def finish_attempt(backend: FakeBackend, future: TaskFuture[Any], attempt: int, value: object) -> Any:
    backend.finish(await item_of(backend, future, attempt), value)
    return await soon(future)


async def test_the_last_attempts_error_is_the_tasks() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(retries=1)(identity)()
        for attempt in (1, 2):
            await fail(backend, future, ValueError(f"attempt {attempt}"), attempt)
        assert str(await failure(future)) == "attempt 2"
        assert len(backend.submitted) == 2


async def test_without_retries_there_is_one_attempt() -> None:
    async with faked() as (flow, backend):
        future = named(flow, "once")()
        await fail(backend, future, ValueError("broken"))
        await failure(future)
        await turns(3)
        assert len(backend.submitted) == 1


async def test_retry_delay_may_be_a_function_of_the_failures_so_far() -> None:
    asked: list[int] = []

    def delay(failures: int) -> float:
        asked.append(failures)
        return 0.001 * failures

    async with faked() as (flow, backend):
        future = flow.function_task(retries=2, retry_delay=delay)(identity)()
        for attempt in (1, 2):
            await fail(backend, future, ValueError("broken"), attempt)
            assert backend.items == [], "it waits for its delay"
            assert future.state is State.PENDING
            flow._scheduler.validate()
            [_] = await soon(backend.submitted_items(1))
        await fail(backend, future, ValueError("the last"), 3)
        assert str(await failure(future)) == "the last"
        assert asked == [1, 2]


@pytest.mark.parametrize("wrong", [lambda failures: 1 / (failures - 1), str.format, lambda: 1.0])
async def test_a_retry_delay_that_fails_ends_the_task(wrong: Any) -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(retries=1, retry_delay=wrong)(identity)()
        await fail(backend, future, ValueError("broken"))
        assert isinstance(await failure(future), (ZeroDivisionError, ValueError, TypeError))


async def test_a_task_may_be_cancelled_while_it_waits_for_its_retry() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(retries=1, retry_delay=3600.0)(identity)()
        await fail(backend, future, ValueError("broken"))
        assert future.cancel()
        assert future.cancelled()
        await soon(flow.drain())
        assert len(backend.submitted) == 1


async def test_a_failed_dependency_is_not_retried() -> None:
    async with faked() as (flow, backend):
        first = named(flow, "first")()
        second = flow.function_task(retries=5)(identity)(first)
        await fail(backend, first, ValueError("broken"))
        assert isinstance(await failure(second), DependencyFailureError)
        await failure(first)
        assert len(backend.submitted) == 1


# --- timeouts --------------------------------------------------------------------------------------------------------


async def test_a_timeout_counts_from_the_start_of_the_attempt() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(timeout=0.01, name="slow")(identity)()
        item = await item_of(backend, future)
        await asyncio.sleep(0.05)
        assert not future.done(), "it has not begun"
        backend.begin(item)
        error = await failure(future)
        assert isinstance(error, TaskTimeoutError)
        assert isinstance(error, TimeoutError)
        assert str(error) == "'slow' ran longer than its timeout of 0.01 s (attempt 1)"
        assert backend.cancelled == [item]


async def test_a_timeout_is_a_failure_of_the_attempt() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(timeout=0.01, retries=1)(identity)()
        backend.begin(await item_of(backend, future))
        second = await soon(_second(backend))
        backend.finish(second, "in time")
        assert await soon(future) == "in time"


async def _second(backend: FakeBackend) -> WorkItem:
    while len(backend.submitted) < 2:
        await turns()
    return backend.submitted[1]


async def test_a_task_that_ends_in_time_is_not_timed_out() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(timeout=0.02)(identity)()
        item = await item_of(backend, future)
        backend.begin(item)
        backend.finish(item, 1)
        assert await soon(future) == 1
        await asyncio.sleep(0.05)
        assert backend.cancelled == []


async def test_a_timeout_ends_a_coroutine_on_a_thread() -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:

        @flow.function_task(timeout=0.02)
        async def wait_for_ever() -> None:
            await asyncio.get_running_loop().create_future()

        assert isinstance(await failure(wait_for_ever()), TaskTimeoutError)


# --- lost workers ----------------------------------------------------------------------------------------------------


async def test_a_lost_worker_re_runs_its_task_on_a_budget_of_its_own() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(max_losses=2, name="deadly")(identity)()
        for attempt in (1, 2, 3):
            assert not future.done()
            item = await item_of(backend, future, attempt)
            backend.begin(item)
            backend.lose(item, "the worker was ended by signal 9 (SIGKILL)")
            await turns(2)
        error = await failure(future)
        assert isinstance(error, WorkerLostError)
        assert (error.losses, error.exit_code) == (3, -9)
        assert "'deadly' (task.000001) lost its worker 3 times, last on host " in str(error)
        assert "signal 9 (SIGKILL)" in str(error)
        assert error.host in str(error)


async def test_the_default_budget_is_three_losses_and_no_retry() -> None:
    async with faked() as (flow, backend):
        future = named(flow, "unlucky")()
        for attempt in (1, 2, 3):
            item = await item_of(backend, future, attempt)
            backend.begin(item)
            backend.lose(item)
            await turns(2)
        await fail(backend, future, ValueError("its own"), 4)
        assert str(await failure(future)) == "its own", "retries count the task's own failures only"


async def test_with_max_losses_zero_the_first_loss_is_the_end() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(max_losses=0, retries=5)(identity)()
        item = await item_of(backend, future)
        backend.begin(item)
        backend.lose(item)
        error = await failure(future)
        assert isinstance(error, WorkerLostError)
        assert "lost its worker once" in str(error)


async def test_only_a_loss_while_alone_counts() -> None:
    async with faked() as (flow, backend):
        futures = [flow.function_task(max_losses=0)(identity)() for _ in range(3)]
        items = [await item_of(backend, future) for future in futures]
        for item in items[:2]:
            backend.begin(item)
        for item in items:
            backend.lose(item, alone=False)
        await turns(2)
        again = [await item_of(backend, future, 2) for future in futures]
        assert [item.solo for item in again] == [True, True, False], "only what had begun is a suspect"
        backend.begin(again[0])
        backend.lose(again[0], alone=True)
        assert isinstance(await failure(futures[0]), WorkerLostError)
        for future, item in zip(futures[1:], again[1:], strict=True):
            backend.finish(item, 1)
            assert await soon(future) == 1


async def test_a_task_that_never_began_is_lost_at_no_cost() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(max_losses=0)(identity)()
        for attempt in range(1, 10):
            backend.lose(await item_of(backend, future, attempt), alone=False)
            await turns(2)
        assert await finish_attempt(backend, future, 10, "patience") == "patience"


async def test_what_was_lost_goes_first() -> None:
    async with faked(workers=1) as (flow, backend):
        futures = [named(flow, "task")(number) for number in range(5)]
        await turns(2)
        lost = backend.items[0]
        backend.lose(lost)
        await turns(2)
        assert backend.items[-1].uid == futures[0].uid
        for future in [futures[1], futures[0], *futures[2:]]:
            backend.finish(next(item for item in backend.items if item.uid == future.uid))
            await soon(future)


async def test_a_cancelled_task_whose_worker_is_lost_stays_cancelled() -> None:
    async with faked(ends_cancelled=False) as (flow, backend):
        future = named(flow, "gone")()
        item = await item_of(backend, future)
        backend.begin(item)
        future.cancel()
        backend.lose(item)
        await turns(3)
        assert future.cancelled()
        assert len(backend.submitted) == 1


# --- broken backends -------------------------------------------------------------------------------------------------


async def test_a_broken_backend_ends_every_future_and_says_why() -> None:
    async with faked(workers=1) as (flow, backend):
        futures = [named(flow, "task")() for _ in range(10)]
        dependent = named(flow, "dependent")(futures[0])
        backend.begin(await item_of(backend, futures[0]))
        backend.break_down("the pool is gone")
        for future in futures:
            error = await failure(future)
            assert isinstance(error, BackendLostError)
            assert str(error) == "'task' cannot run: backend 'fake' broke: the pool is gone"
        assert isinstance(await failure(dependent), DependencyFailureError)
        assert isinstance(await failure(named(flow, "later")()), BackendLostError)


class Refusing(FakeBackend):
    """Its `submit` raises."""

    def submit(self, items: Any) -> None:
        raise OSError("no more sockets")


class Speechless(FakeBackend):
    """Its `cancel` raises."""

    def cancel(self, item: WorkItem) -> None:
        raise OSError("nobody there")


async def test_a_backend_whose_submit_raises_is_broken() -> None:
    async with WorkflowEngine.create([FakeBackend("good"), Refusing("bad")]) as flow:
        futures = [flow.function_task(backend="bad")(identity)() for _ in range(100)]
        for future in futures:
            error = await failure(future)
            assert isinstance(error, BackendLostError)
            assert "submit raised OSError: no more sockets" in str(error)


async def test_a_backend_whose_cancel_raises_does_not_keep_the_future() -> None:
    overheard = Overheard()
    backend = Speechless()
    async with WorkflowEngine.create(backend) as flow:
        future = flow.function_task(identity)()
        item = await item_of(backend, future)
        assert future.cancel()
        assert future.cancelled()
        assert "backend 'fake' could not cancel" in overheard.messages()[0]
        backend.finish(item)


async def test_a_backend_that_reports_an_end_twice_changes_nothing() -> None:
    async with faked() as (flow, backend):
        future = named(flow, "twice")()
        item = await item_of(backend, future)
        backend.finish(item, "first")
        backend._open[item] = True  # past the fake's own check
        backend.finish(item, "second")
        assert await soon(future) == "first"
        await turns(3)
        assert await finish(backend, named(flow, "next")(), 1) == 1


# --- real worker processes -------------------------------------------------------------------------------------------


def note(file: str, number: int) -> None:
    """Leave a line for each run."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{number}\n".encode())
    os.close(descriptor)


def die_once(file: str, number: int) -> None:
    try:
        Path(f"{file}.{number}").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


async def test_a_worker_that_dies_takes_nothing_along_that_had_ended(tmp_path: Path) -> None:
    file = str(tmp_path / "runs")
    async with WorkflowEngine.create(ProcessBackend(1)) as flow:
        short, deadly = flow.function_task(note), flow.function_task(die_once)
        # The backend learns that these are short, and sends many at a time.
        await soon(asyncio.gather(*(short(file, -1) for _ in range(500))))
        calls = [(deadly if number % 50 == 25 else short)(file, number) for number in range(200)]
        await soon(asyncio.gather(*calls))
        assert [flow.components[calls[number].uid].attempt for number in (25, 75, 125, 175)] == [2, 2, 2, 2]
    runs = Counter(int(line) for line in Path(file).read_text().splitlines())
    assert runs[-1] == 500
    assert [number for number in range(200) if runs[number] > 1] == []


@pytest.mark.parametrize("backend", [ThreadBackend, ProcessBackend])
async def test_an_attempt_begins_only_when_the_one_that_timed_out_is_dead(
    backend: Callable[..., ThreadBackend | ProcessBackend], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    # Takes its time over TERM, as a program that writes a checkpoint does.
    script = f"trap 'sleep 0.3; echo end >> {log}; exit 1' TERM; echo start >> {log}; sleep 60 & wait"
    async with WorkflowEngine.create(backend(2), work_dir=tmp_path) as flow:

        @flow.executable_task(shell=True, timeout=0.3, retries=1)
        def slow() -> str:
            return script

        with pytest.raises(TaskTimeoutError):
            await soon(slow())
        await flow.shutdown()
    assert log.read_text().split() == ["start", "end", "start", "end"]


@pytest.mark.parametrize("delay", [lambda failures: failures / 0, lambda _: None, lambda failures: failures * math.inf])
async def test_a_retry_delay_that_gives_no_seconds_keeps_the_tasks_own_failure_in_sight(delay: Any) -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:

        @flow.function_task(retries=1, retry_delay=delay)
        def failing() -> None:
            raise KeyError("mine")

        with pytest.raises((ZeroDivisionError, InvalidOptionError)) as found:
            await soon(failing())
        assert isinstance(found.value.__cause__, KeyError)


async def test_coroutines_do_with_the_loops_that_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[CoroutineLoop] = []

    class Scarce(CoroutineLoop):
        def __init__(self, *args: Any) -> None:
            if not allowed:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr("asyncflow.backends.threads.CoroutineLoop", Scarce)
    allowed = False
    async with WorkflowEngine.create(ThreadBackend(2)) as flow:

        @flow.function_task
        async def echo(number: int) -> int:
            await asyncio.sleep(0)
            return number

        with pytest.raises(OSError, match="Too many open files"):
            await soon(echo(1))
        allowed = True
        assert await soon(echo(2)) == 2
        allowed = False
        assert await soon(asyncio.gather(*[echo(number) for number in range(10)])) == list(range(10))
        assert len(made) == 1
        assert await soon(flow.function_task(identity)(3)) == 3
