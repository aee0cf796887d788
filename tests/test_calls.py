"""Calls: how they register, what they depend on, which workflow they belong to, and where they are refused."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import inspect
import pickle
import queue
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import cloudpickle
import pytest

from asyncflow import State, Task, TaskDescription, TaskFuture, WorkflowEngine
from asyncflow.backends import NoopBackend, ThreadBackend
from asyncflow.errors import (
    CalledInsideTaskError,
    CallOutsideLoopError,
    DependencyFailureError,
    EngineClosedError,
    EngineNotPicklableError,
    ForeignFutureError,
    ForeignThreadError,
    InvalidOptionError,
    LoopBoundError,
    NoEngineError,
    TaskDefinitionError,
    UnknownBackendError,
    UnknownOptionError,
    UnsatisfiableRequestError,
)
from asyncflow.testing.fakes import FakeBackend
from tests.support import module_tasks
from tests.support.faked import fail, faked, finish, identity, item_of, soon, turns

# --- what a call gives -----------------------------------------------------------------------------------------------


async def test_a_call_registers_at_once_and_gives_a_future() -> None:
    async with faked() as (flow, backend):
        step = flow.function_task(identity)
        future = step(1)
        assert isinstance(future, TaskFuture)
        assert isinstance(future, asyncio.Future)
        assert list(flow.components) == [future.uid]
        assert future.name == "identity"
        assert (future.state, future.workflow_id) == (State.PENDING, None)
        assert backend.submitted == [], "nothing is awaited in a call, so nothing can have run"


async def test_a_future_is_no_coroutine_and_says_so() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(identity)()
        with pytest.raises(TypeError, match="a future, not a coroutine"):
            asyncio.create_task(future)  # type: ignore[arg-type]  # noqa: RUF006  # the mistake under test
        assert asyncio.ensure_future(future) is future
        assert re.fullmatch(r"<TaskFuture identity task\.000001 PENDING .*not a coroutine.*>", repr(future))
        others = [flow.function_task(identity)() for _ in range(2)]
        for value, each in enumerate([future, *others]):
            backend.finish(await item_of(backend, each), value)
        assert await soon(asyncio.gather(future, *others)) == [0, 1, 2]


async def test_uids_are_unique_and_tell_tasks_from_blocks() -> None:
    async with faked() as (flow, _):

        @flow.block
        async def outer() -> None:
            """Calls nothing."""

        step = flow.function_task(identity)
        uids = [step().uid, outer().uid, step().uid]
        assert uids == ["task.000001", "block.000002", "task.000003"]


async def test_states_of_a_task() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(identity)()
        seen = [str(future.state)]
        item = await item_of(backend, future)
        seen.append(str(future.state))
        backend.begin(item)
        seen.append(str(future.state))
        backend.finish(item)
        await soon(future)
        assert [*seen, future.state] == ["PENDING", "PENDING", "RUNNING", "DONE"]


# --- dependencies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        lambda future: ((future,), {}),
        lambda future: ((), {"key": future}),
        lambda future: (([1, (future,)],), {}),
        lambda future: (({"a": {future}},), {"key": {future: 1}}),
        lambda future: ((future, future), {"key": [future]}),
    ],
    ids=["positional", "keyword", "nested", "in dicts and sets", "several times"],
)
async def test_a_task_waits_for_the_futures_in_its_arguments_and_gets_their_values(
    place: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]],
) -> None:
    async with faked() as (flow, backend):
        first = flow.function_task(identity)()
        args, kwargs = place(first)
        second = flow.function_task(identity)(*args, **kwargs)
        item = await item_of(backend, first)
        await turns(3)
        assert backend.items == [item], "the dependent must wait"
        await finish(backend, first, 7)
        assert ((item := await item_of(backend, second)).args, item.kwargs) == place(7)


async def test_a_task_waits_for_all_its_dependencies() -> None:
    async with faked() as (flow, backend):
        step = flow.function_task(identity)
        first, second = step(), step()
        third = step(first, [second])
        await finish(backend, second, 2)
        assert [item.uid for item in backend.items] == [first.uid]
        await finish(backend, first, 1)
        assert (await item_of(backend, third)).args == (1, [2])


async def test_a_dependency_that_has_ended_is_no_obstacle() -> None:
    async with faked() as (flow, backend):
        step = flow.function_task(identity)
        first = step()
        await finish(backend, first, 5)
        assert (await item_of(backend, step(first))).args == (5,)


async def test_arguments_without_a_future_are_passed_on_untouched() -> None:
    async with faked() as (flow, backend):
        plain: list[Any] = [1, {"a": 2}]
        plain.append(plain)
        first = flow.function_task(identity)()
        second = flow.function_task(identity)(plain, first, key=plain)
        await finish(backend, first)
        item = await item_of(backend, second)
        assert item.args[0] is item.kwargs["key"] is plain


async def test_any_asyncio_future_is_a_dependency() -> None:
    async with faked() as (flow, backend):
        plain: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(asyncio.sleep(0, "slept"))
        future = flow.function_task(identity)(plain, task)
        await task
        await turns(2)
        assert backend.items == []
        plain.set_result(3)
        assert (await item_of(backend, future)).args == (3, "slept")


async def test_a_future_of_another_engine_is_a_dependency() -> None:
    async with faked() as (flow, backend), faked() as (other, elsewhere):
        first = other.function_task(identity)()
        second = flow.function_task(identity)([first])
        await turns(2)
        assert backend.items == []
        await finish(elsewhere, first, 4)
        assert (await item_of(backend, second)).args == ([4],)
        flow._scheduler.validate()


async def test_the_failure_of_another_engine_reaches_here() -> None:
    async with faked() as (flow, _), faked() as (other, elsewhere):
        first = other.function_task(name="theirs")(identity)()
        second = flow.function_task(identity)(first)
        await fail(elsewhere, first, ValueError("broken"))
        with pytest.raises(DependencyFailureError, match="theirs"):
            await soon(second)
        with pytest.raises(ValueError, match="broken"):
            await soon(first)


async def test_a_plain_future_that_fails_or_is_cancelled_takes_its_dependents_along() -> None:
    async with faked() as (flow, backend):
        loop = asyncio.get_running_loop()
        fails, ends = loop.create_future(), loop.create_future()
        failing = flow.function_task(identity)(fails)
        cancelled = flow.function_task(identity)(ends)
        fails.set_exception(ValueError("broken"))
        ends.cancel()
        with pytest.raises(DependencyFailureError) as caught:
            await soon(failing)
        assert isinstance(caught.value.root_cause, ValueError)
        with pytest.raises(asyncio.CancelledError):
            await soon(cancelled)
        assert (failing.state, cancelled.state, backend.submitted) == (State.FAILED, State.CANCELLED, [])


async def test_the_dependency_of_a_cancelled_task_may_end_later() -> None:
    async with faked() as (flow, _):
        plain: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future = flow.function_task(identity)(plain)
        future.cancel()
        plain.set_result(1)
        await turns(2)
        assert future.state is State.CANCELLED


def test_a_future_of_another_loop_is_named() -> None:
    loop = asyncio.new_event_loop()
    elsewhere: asyncio.Future[int] = loop.create_future()

    async def main() -> None:
        async with faked() as (flow, backend):
            with pytest.raises(ForeignFutureError, match="belongs to another event loop"):
                flow.function_task(identity)(elsewhere)
            assert len(flow.components) == 0
            elsewhere.set_result(6)
            assert (await item_of(backend, flow.function_task(identity)(elsewhere))).args == (6,)

    asyncio.run(main())
    loop.close()


async def test_arguments_that_cannot_be_made_fail_their_task() -> None:
    async with faked() as (flow, backend):
        first = flow.function_task(identity)()
        second = flow.function_task(identity)({first})
        await finish(backend, first, ["unhashable"])
        with pytest.raises(TypeError, match="unhashable"):
            await soon(second)


# --- from one task to the next ---------------------------------------------------------------------------------------


async def test_dependents_are_handed_over_in_the_turn_in_which_the_last_dependency_ends() -> None:
    async with faked() as (flow, backend):
        step = flow.function_task(identity)
        first = step()
        second = step(first)
        item = await item_of(backend, first)
        backend.finish(item)
        await asyncio.sleep(0)
        assert [item.uid for item in backend.items] == [second.uid]


async def test_no_timer_stands_between_two_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    async with WorkflowEngine.create(ThreadBackend(2)) as flow:
        loop = asyncio.get_running_loop()
        timers: list[object] = []
        call_at = loop.call_at

        def noted_call_at(when: float, callback: Any, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            timers.append(callback)
            return call_at(when, callback, *args, **kwargs)

        monkeypatch.setattr(loop, "call_at", noted_call_at)

        @flow.function_task
        def successor(number: int) -> int:
            return number + 1

        future = successor(0)
        for _ in range(999):
            future = successor(future)
        assert await future == 1000
        assert timers == []


async def _work_for_one_task(unfinished: int) -> int:
    """How many bytecode instructions the engine's loop takes to end a task and hand over its dependent."""
    counted = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal counted
        frame.f_trace_opcodes = True
        counted += event == "opcode"
        return count

    async with faked(workers=2) as (flow, backend):
        step = flow.function_task(identity)
        for _ in range(unfinished):
            step(asyncio.get_running_loop().create_future())
        first = step()
        second = step(first)
        item = await item_of(backend, first)
        await turns(2)
        previous = sys.gettrace()
        sys.settrace(count)
        try:
            backend.finish(item)
            await asyncio.sleep(0)
        finally:
            sys.settrace(previous)
        assert [item.uid for item in backend.items] == [second.uid]
    return counted


async def test_the_work_for_one_task_does_not_grow_with_the_number_of_others() -> None:
    few, many = await _work_for_one_task(10), await _work_for_one_task(2000)
    assert few > 100, "the measurement sees the scheduler at work"
    assert many < few + 100, "one instruction for each of the others would be two thousand"


@pytest.mark.parametrize("seconds,most", [(1.0, 10), (0.0, 2500)], ids=["long tasks", "short tasks"])
async def test_the_number_handed_over_at_once_is_bounded(seconds: float, most: int) -> None:
    async with faked(workers=2) as (flow, backend):
        step = flow.function_task(identity)
        futures = [step(number) for number in range(5000)]
        seen = 0
        while not futures[-1].done():
            await turns(2)
            seen = max(seen, len(backend.items))
            backend.finish(backend.items[0], seconds=seconds)
            await turns(2)
        assert 2 <= seen <= most


async def test_a_burst_of_reports_is_handled_in_several_turns_of_the_loop() -> None:
    async with faked(workers=5000) as (flow, backend):
        futures = [flow.function_task(identity)(number) for number in range(5000)]
        for item in await backend.submitted_items(5000):
            backend.finish(item)
        done = most = 0
        while done < 5000:
            await turns(1)
            before, done = done, sum(future.done() for future in futures)
            most = max(most, done - before)
        assert 0 < most <= 2000


async def test_a_higher_priority_goes_first_and_equals_in_their_order() -> None:
    async with faked(workers=1) as (flow, backend):
        filler = [flow.function_task(identity)() for _ in range(2)]
        await turns(2)
        assert len(backend.items) == 2, "the backend is full"
        names = {"low": -1, "plain": 0, "high": 5}
        tasks = {name: flow.function_task(name=name, priority=rank)(identity) for name, rank in names.items()}
        calls = [tasks[name]() for name in ("low", "plain", "high", "low", "plain", "high")]
        for future in [*filler, *sorted(calls, key=lambda call: -names[call.name])]:
            await finish(backend, future)
        order = [(item.definition.name, item.uid) for item in backend.submitted[2:]]
        assert [name for name, _ in order] == ["high", "high", "plain", "plain", "low", "low"]
        for name in names:
            uids = [uid for owner, uid in order if owner == name]
            assert uids == sorted(uids)


# --- workflows -------------------------------------------------------------------------------------------------------


async def test_the_innermost_scope_gives_the_workflow() -> None:
    async with faked() as (flow, _):
        step = flow.function_task(identity)
        outside = step()
        async with flow.workflow_scope("outer") as name:
            assert name == "outer"
            first = step()
            with flow.workflow_scope("inner"):
                second = step()
            third = step()
            named = step(workflow_id="named")
        after = step()
        futures = [outside, first, second, third, named, after]
        assert [future.workflow_id for future in futures] == [None, "outer", "inner", "outer", "named", None]


async def test_a_scope_without_a_name_makes_one() -> None:
    async with faked() as (flow, _):
        with flow.workflow_scope() as first, flow.workflow_scope() as second:
            assert flow.function_task(identity)().workflow_id == second
        assert re.fullmatch("wf-[0-9a-f]{8}", first)
        assert first != second


async def test_a_scope_is_copied_into_child_tasks_and_closed_in_its_own() -> None:
    async with faked() as (flow, _):
        step = flow.function_task(identity)

        async def child(name: str) -> list[str | None]:
            seen = [step().workflow_id]
            async with flow.workflow_scope(name):
                await turns(2)
                seen.append(step().workflow_id)
            return [*seen, step().workflow_id]

        async with flow.workflow_scope("parent"):
            results = await asyncio.gather(child("one"), child("two"))
        assert list(results) == [["parent", "one", "parent"], ["parent", "two", "parent"]]


async def test_one_scope_may_be_entered_by_several_tasks_at_once() -> None:
    async with faked() as (flow, _):
        scope = flow.workflow_scope("shared")
        first_in, second_in = asyncio.Event(), asyncio.Event()

        async def first() -> None:
            async with scope:
                first_in.set()
                await second_in.wait()

        async def second() -> None:
            await first_in.wait()
            async with scope:
                second_in.set()
                await turns(5)

        await soon(asyncio.gather(first(), second()))


async def test_a_scope_is_never_seen_by_another_engine() -> None:
    async with faked() as (flow, _), faked() as (other, _):
        with flow.workflow_scope("mine"):
            assert other.function_task(identity)().workflow_id is None
            with other.workflow_scope("theirs"):
                assert flow.function_task(identity)().workflow_id == "mine"


async def test_the_workflow_never_reaches_the_function() -> None:
    async with faked() as (flow, backend):

        @flow.function_task
        def takes_anything(**kwargs: Any) -> dict[str, Any]:
            return kwargs

        future = takes_anything(a=1, workflow_id="here")
        assert (await item_of(backend, future)).kwargs == {"a": 1}
        assert future.workflow_id == "here"


async def test_any_keyword_may_be_passed() -> None:
    async with faked() as (flow, backend):
        words: dict[str, Any] = {"self": 1, "name": 2, "task": 3, "backend": 4, "args": 5, "kwargs": 6}
        future = flow.function_task(identity)(**words)
        assert (await item_of(backend, future)).kwargs == words


@pytest.mark.parametrize("wrong", [7, b"bytes", ["list"]])
async def test_a_workflow_id_is_a_string(wrong: Any) -> None:
    async with faked() as (flow, _):
        with pytest.raises(InvalidOptionError, match="a string"):
            flow.function_task(identity)(workflow_id=wrong)
        with pytest.raises(InvalidOptionError, match="a string"):
            flow.workflow_scope(wrong)
        assert len(flow.components) == 0


# --- flow.components -------------------------------------------------------------------------------------------------


async def test_components_tell_of_unfinished_and_finished_calls() -> None:
    async with faked() as (flow, backend):
        step = flow.function_task(identity)
        with flow.workflow_scope("wf"):
            first, second = step(1, key=2), step(3)
        await finish(backend, first, "the result")
        assert list(flow.components) == [first.uid, second.uid]
        assert len(flow.components) == 2

        done, unfinished = flow.components[first.uid], flow.components[second.uid]
        assert (done.uid, done.name, done.workflow_id, done.state) == (first.uid, "identity", "wf", State.DONE)
        assert (done.attempt, done.parent) == (1, None)
        assert done["state"] == "DONE"
        assert done["type"] == "function"
        assert done["description"]["workflow_id"] == "wf"
        assert done["description"]["function"] == "tests.support.faked.identity"
        assert done["description"]["executable"] is None
        assert done["description"]["arguments"] is None, "arguments are dropped at the end"
        assert "the result" not in repr(dict(done))
        assert unfinished.state is State.PENDING
        assert unfinished["description"]["arguments"] == ((3,), {})
        assert dict(unfinished) == {
            "uid": second.uid,
            "type": "function",
            "state": "PENDING",
            "description": unfinished.description,
        }


async def test_the_description_of_an_executable() -> None:
    async with faked() as (flow, _):
        future = flow.executable_task(name="list files")(identity)(Path("a"))
        info = flow.components[future.uid]
        assert info["description"]["name"] == "list files"
        assert info["description"]["executable"] == "tests.support.faked.identity"
        assert info["description"]["function"] is None
        assert info["description"]["arguments"] == ((Path("a"),), {})
        assert info["type"] == "executable"


@pytest.mark.parametrize("uid", ["task.000009", "block.000001", "block.000002", "task.1", "task", "", "task.x"])
async def test_an_unknown_uid_is_a_key_error(uid: str) -> None:
    async with faked() as (flow, backend):
        futures = [flow.function_task(identity)() for _ in range(2)]
        await finish(backend, futures[0])
        assert uid not in flow.components
        with pytest.raises(KeyError):
            flow.components[uid]


async def test_a_components_repr_is_short() -> None:
    async with faked() as (flow, _):
        future = flow.function_task(identity)("x" * 1000)
        assert repr(flow.components[future.uid]) == f"<identity {future.uid} PENDING>"


# --- module-level tasks ----------------------------------------------------------------------------------------------


async def test_a_module_level_task_runs_on_the_only_open_engine() -> None:
    async with WorkflowEngine.create(ThreadBackend(2)) as flow:
        futures = [module_tasks.double(2), module_tasks.triple(2), module_tasks.sextuple(2)]
        assert await soon(asyncio.gather(*futures)) == [4, 6, 12]
        assert await soon(module_tasks.greet("you")) == "hello you"
        assert {future.uid for future in futures} <= set(flow.components)
        assert futures[1].name == "thrice"


async def test_a_module_level_task_runs_on_the_engine_of_the_scope() -> None:
    async with faked() as (flow, _), faked() as (other, _):
        with flow.workflow_scope("a"):
            assert module_tasks.double(1).uid in flow.components
            with other.workflow_scope("b"):
                assert module_tasks.double(1).workflow_id == "b"
                assert len(other.components) == 1
        assert len(flow.components) == 1


async def test_a_block_of_an_engine_is_a_scope_for_module_level_tasks() -> None:
    async with faked() as (flow, backend), faked():

        @flow.block
        async def outer() -> int:
            return await module_tasks.double(1)

        with pytest.raises(NoEngineError):
            module_tasks.double(1)
        future = outer()
        [item] = await backend.submitted_items(1)
        backend.call(item)
        assert await soon(future) == 2


async def test_a_module_level_task_serves_one_engine_after_the_other() -> None:
    for _ in range(2):
        async with WorkflowEngine.create(ThreadBackend(1)):
            assert await soon(module_tasks.double(3)) == 6


async def test_without_an_engine_a_module_level_task_says_so() -> None:
    with pytest.raises(NoEngineError, match=r"'double' .*no engine is open.*WorkflowEngine\.create\(\)"):
        module_tasks.double(1)
    async with faked():
        pass
    with pytest.raises(NoEngineError, match="no engine is open"):
        module_tasks.double(1)


async def test_between_two_engines_a_module_level_task_says_so() -> None:
    async with faked(), faked():
        with pytest.raises(NoEngineError, match=r"2 engines are open .*workflow_scope\(\)"):
            module_tasks.double(1)


def test_module_level_tasks_pickle_by_reference() -> None:
    for pickler in (pickle, cloudpickle):
        assert pickle.loads(pickler.dumps(module_tasks.triple)) is module_tasks.triple
        assert len(pickler.dumps(module_tasks.triple)) < 200


async def test_a_task_of_an_engine_travels_as_its_plain_function() -> None:
    async with faked() as (flow, _):

        @flow.function_task
        def local(number: int) -> int:
            return number + 1

        travelled = pickle.loads(cloudpickle.dumps(local))
        assert travelled.fn(1) == 2
        with pytest.raises(CalledInsideTaskError, match=r"local\.fn\(\.\.\.\)"):
            travelled(1)


async def test_a_task_may_be_a_method() -> None:
    async with faked() as (_, backend):
        scaled = module_tasks.Scaled(3)
        future = scaled.of(2)
        backend.call(await item_of(backend, future))
        assert await soon(future) == 6


# --- decorators and options ------------------------------------------------------------------------------------------


async def test_a_task_looks_like_its_function() -> None:
    async with faked() as (flow, _):

        @flow.function_task
        def documented(number: int) -> int:
            """Says what it does."""
            return number

        assert isinstance(documented, Task)
        assert inspect.unwrap(documented) is documented.fn
        assert documented.__doc__ == "Says what it does."
        assert documented.fn(3) == 3
        assert documented.name == "documented"
        assert repr(documented) == "<function task documented>"
        assert repr(flow.block(asyncio.sleep)) == "<block sleep>"


async def test_options_bare_or_with_parentheses() -> None:
    async with faked() as (flow, backend):
        bare, empty = flow.function_task(identity), flow.function_task()(identity)
        named = flow.function_task(name="other", backend="fake")(identity)
        assert [task.name for task in (bare, empty, named)] == ["identity", "identity", "other"]
        for task in (bare, empty, named):
            assert await finish(backend, task(), 1) == 1


async def test_callables_of_all_sorts_become_tasks() -> None:
    class Adder:
        def __init__(self, term: int) -> None:
            self.term = term

        def __call__(self, number: int) -> int:
            return number + self.term

        async def later(self, number: int) -> int:
            await asyncio.sleep(0)
            return number + self.term

    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        adder = Adder(1)
        for fn in (adder, adder.later, functools.partial(max, 2), abs, lambda number: number * 3):
            task: Task[Any] = flow.function_task(fn)
            assert await soon(task(2)) in (2, 3, 6)


@pytest.mark.parametrize(
    "decorate,problem",
    [
        (lambda flow: flow.function_task(3), "3 is not a function; options are given by name, as in retries=2"),
        (lambda flow: flow.function_task(_own_workflow), "'workflow_id' would never be passed"),
        (lambda flow: flow.function_task(_generator), "it is a generator"),
        (lambda flow: flow.function_task(_async_generator), "it is a generator"),
        (lambda flow: flow.function_task(flow.function_task(identity)), "it is one already"),
        (lambda flow: flow.function_task(staticmethod(identity)), "put @staticmethod above"),
        (lambda flow: flow.function_task(classmethod(identity)), "put @classmethod above"),
        (lambda flow: flow.block(identity), "must be 'async def'"),
        (lambda flow: flow.executable_task(name="x")(None), "None is not a function"),
        (lambda flow: flow.function_task(task_description=[])(identity), "not a dict or TaskDescription"),
    ],
)
async def test_what_cannot_become_a_component_is_refused_at_decoration(
    decorate: Callable[[WorkflowEngine], object], problem: str
) -> None:
    async with faked() as (flow, _):
        with pytest.raises(TaskDefinitionError, match=re.escape(problem)):
            decorate(flow)


def _own_workflow(workflow_id: str) -> str:
    return workflow_id


def _generator() -> Any:
    yield 1


async def _async_generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    "option,wrong",
    [
        ("retries", -1),
        ("retries", 1.5),
        ("retries", True),
        ("max_losses", -1),
        ("max_losses", "3"),
        ("timeout", 0),
        ("timeout", "1h"),
        ("retry_delay", -0.1),
        ("retry_delay", "soon"),
        ("priority", 1.5),
        ("backend", 5),
    ],
)
async def test_an_option_out_of_range_is_named(option: str, wrong: Any) -> None:
    async with faked() as (flow, _):
        with pytest.raises(InvalidOptionError, match=f"{option}={re.escape(repr(wrong))} is not possible"):
            flow.function_task(**{option: wrong})(identity)


@pytest.mark.parametrize("decorator", ["function_task", "executable_task", "block"])
async def test_an_unknown_option_names_the_nearest(decorator: str) -> None:
    async with faked() as (flow, _):
        with pytest.raises(UnknownOptionError, match=rf"@{decorator} has no 'retrys'; did you mean 'retries'\?"):
            getattr(flow, decorator)(retrys=2)


async def test_a_block_has_no_backend() -> None:
    async with faked() as (flow, _):
        with pytest.raises(UnknownOptionError, match="@block has no 'backend'"):
            flow.block(backend="fake")  # type: ignore[call-overload]  # the mistake under test


async def test_an_unknown_key_of_the_description_names_the_nearest() -> None:
    async with faked() as (flow, _):
        with pytest.raises(UnknownOptionError, match=r"'gpu_per_rank'; did you mean 'gpus_per_rank'\?"):
            flow.function_task(task_description={"gpu_per_rank": 1})(identity)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": 0},
        {"ranks": 1.5},
        {"cores_per_rank": 0},
        {"gpus_per_rank": -1},
        {"mem_per_rank": "4 GB"},
        {"environment": ["A=1"]},
        {"pre_exec": "module load mpi"},
    ],
)
async def test_a_value_of_the_description_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    async with faked() as (flow, _):
        with pytest.raises(InvalidOptionError, match=f"task_description: {next(iter(wrong))}"):
            flow.function_task(task_description=wrong)(identity)


def test_a_description_is_a_value_of_its_own() -> None:
    mine = {"A": "1"}
    description = TaskDescription(ranks=2, cores_per_rank=3, environment=mine, pre_exec=["true"])
    mine["A"] = "2"
    assert description.environment["A"] == "1"
    assert description.pre_exec == ("true",)
    assert (description.resources.cores, description.resources.gpus) == (6, 0)
    assert pickle.loads(pickle.dumps(description)) == description
    assert copy.deepcopy(description) == description


# --- where a call is refused -----------------------------------------------------------------------------------------


async def test_a_call_on_a_closed_engine() -> None:
    async with faked(uid="mine") as (flow, _):
        step = flow.function_task(identity)
    with pytest.raises(EngineClosedError, match=r"'identity' .*engine 'mine', which is shut down.*create\(\)"):
        step()


async def test_a_call_from_another_thread() -> None:
    async with faked() as (flow, _):
        step = flow.function_task(identity)
        caught: list[BaseException] = []

        def call() -> None:
            try:
                step()
            except RuntimeError as error:
                caught.append(error)

        thread = threading.Thread(target=call, name="stranger")
        thread.start()
        thread.join()
        assert isinstance(caught[0], ForeignThreadError)
        assert re.search("'identity' .*thread 'stranger'.*call_soon_threadsafe", str(caught[0]))
        assert len(flow.components) == 0


def test_a_call_outside_the_engines_loop() -> None:
    loop, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    flow = loop.run_until_complete(WorkflowEngine.create(NoopBackend())._create())
    step = flow.function_task(identity)

    async def call() -> None:
        step()

    try:
        with pytest.raises(CallOutsideLoopError, match="'identity' was called while the engine's event loop was not"):
            step()
        with pytest.raises(CallOutsideLoopError, match="'identity' was called on another event loop"):
            other.run_until_complete(call())
        with pytest.raises(CallOutsideLoopError):
            module_tasks.double(1)
    finally:
        loop.run_until_complete(flow.shutdown())
        loop.close()
        other.close()


@pytest.mark.parametrize("scope", [True, False])
async def test_a_call_inside_a_tasks_body_names_the_plain_function(scope: bool) -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        inner = flow.function_task(identity)

        @flow.function_task
        def outer() -> object:
            return inner(1)

        @flow.function_task
        async def outer_async() -> object:
            await asyncio.sleep(0)
            return inner(1)

        forbidden = flow.function_task(module_tasks.calls_a_task)
        with flow.workflow_scope("here" if scope else None):
            futures = [outer(), outer_async(), forbidden(1)]
        for future in futures:
            with pytest.raises(CalledInsideTaskError, match=r"inside a task's body.*\.fn\(\.\.\.\).*@flow\.block"):
                await soon(future)
        assert await soon(flow.function_task(module_tasks.calls_the_plain_function)(4)) == 8
        assert len(flow.components) == 4


async def test_a_backend_that_the_engine_does_not_have() -> None:
    async with faked() as (flow, _):
        with pytest.raises(UnknownBackendError, match=r"'identity' asks for backend 'fak'.*did you mean 'fake'\?"):
            flow.function_task(backend="fak")(identity)()
        assert len(flow.components) == 0


@pytest.mark.parametrize(
    "description,what",
    [
        ({"ranks": 10}, "10 cores where there are 2"),
        ({"ranks": 2, "cores_per_rank": 2}, "4 cores where there are 2"),
        ({"gpus_per_rank": 3}, "3 GPUs where there are 1"),
        ({"mem_per_rank": 2000}, "2000 MB where there are 1000"),
    ],
)
async def test_a_request_for_more_than_the_backend_has(description: dict[str, Any], what: str) -> None:
    backend = ThreadBackend(2, name="small", gpus=1, memory=1000)
    async with WorkflowEngine.create(backend) as flow:
        step = flow.function_task(task_description=description)(identity)
        with pytest.raises(UnsatisfiableRequestError, match=f"'identity' .*backend 'small'.*{what}.*ask for less"):
            step()
        assert len(flow.components) == 0


async def test_an_engine_does_not_travel() -> None:
    async with faked() as (flow, _):
        with pytest.raises(EngineNotPicklableError, match=r"@flow\.block"):
            pickle.dumps(flow)


# --- where bodies run ------------------------------------------------------------------------------------------------

_colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


async def test_def_and_async_def_run_off_the_loop_in_the_callers_context() -> None:
    async with WorkflowEngine.create(ThreadBackend(2)) as flow:

        @flow.function_task
        def plain() -> tuple[int, str]:
            return threading.get_ident(), _colour.get()

        @flow.function_task
        async def coroutine() -> tuple[int, str]:
            await asyncio.sleep(0)
            return threading.get_ident(), _colour.get()

        for colour in ("red", "blue"):
            token = _colour.set(colour)
            futures = [plain(), coroutine()]
            _colour.reset(token)
            for thread, seen in await soon(asyncio.gather(*futures)):
                assert thread != threading.get_ident()
                assert seen == colour


async def test_coroutines_that_wait_overlap_by_far_more_than_the_workers() -> None:
    async with WorkflowEngine.create(ThreadBackend(2)) as flow:
        waiting: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.SimpleQueue()

        @flow.function_task
        async def meet() -> None:
            gate = asyncio.Event()
            waiting.put((asyncio.get_running_loop(), gate))
            await gate.wait()

        futures = [meet() for _ in range(500)]
        everybody = [await asyncio.to_thread(waiting.get, timeout=30) for _ in range(500)]
        for loop, gate in everybody:
            loop.call_soon_threadsafe(gate.set)
        await soon(asyncio.gather(*futures))


async def test_coroutines_that_block_hold_up_one_worker_each() -> None:
    async with WorkflowEngine.create(ThreadBackend(4)) as flow:
        barrier = threading.Barrier(4, timeout=30)

        @flow.function_task
        async def block_all_four() -> int:
            return barrier.wait()

        assert sorted(await soon(asyncio.gather(*(block_all_four() for _ in range(4))))) == [0, 1, 2, 3]


async def test_an_object_of_the_engines_loop_is_for_a_block() -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        gate = asyncio.Semaphore(0)
        waiting = asyncio.ensure_future(gate.acquire())  # binds it to this loop
        await turns(1)

        @flow.function_task
        async def enter() -> None:
            await gate.acquire()

        with pytest.raises(LoopBoundError, match=r"'enter' used an object .*make it a block \(@flow\.block\)"):
            await soon(enter())
        waiting.cancel()


async def test_a_task_picks_its_backend_by_name() -> None:
    io, cpu = FakeBackend("io"), FakeBackend("cpu")
    async with WorkflowEngine.create([io, cpu]) as flow:
        default = flow.function_task(identity)()
        picked = flow.function_task(backend="cpu")(identity)(default)
        await finish(io, default, 1)
        assert (await item_of(cpu, picked)).args == (1,)
        await finish(cpu, picked)


async def test_a_dry_run_runs_nothing_whatever_a_task_asks_for() -> None:
    async with WorkflowEngine.create([FakeBackend("io"), FakeBackend("cpu")], dry_run=True) as flow:
        first = flow.function_task(identity)(1)
        second = flow.function_task(backend="cpu", task_description={"ranks": 10_000})(identity)(first)
        assert [await soon(first), await soon(second)] == [None, None]
