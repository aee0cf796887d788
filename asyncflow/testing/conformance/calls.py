"""Functions and coroutines, their arguments and results, and the order in which they run."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncflow.backends.aside import aside
from asyncflow.engine import WorkflowEngine
from asyncflow.errors import CalledInsideTaskError, LoopBoundError, NotPicklableError
from asyncflow.future import TaskFuture
from asyncflow.testing import bodies
from asyncflow.testing.conformance.base import Suite
from asyncflow.testing.meeting import Meeting, attend, attend_async

_LARGE = 8_000_000

_MAIN_SCRIPT = """
import asyncio
from asyncflow import WorkflowEngine, function_task

class Pair:
    def __init__(self, left, right):
        self.left, self.right = left, right

@function_task
def make(left, right):
    return Pair(left, right)

@function_task
async def total(pair):
    assert isinstance(pair, Pair)
    return pair.left + pair.right + offset()

def offset():
    return 100

async def main():
    async with WorkflowEngine.create(make_backend(), work_dir="."):
        print("total", await total(make(1, 2)))

if __name__ == "__main__":
    asyncio.run(main())
"""


class Calls(Suite):
    # --- results -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("body", [bodies.add, bodies.add_async])
    async def test_a_function_gives_its_result(self, flow: WorkflowEngine, body: Callable[..., Any]) -> None:
        assert await self.ended(flow.function_task(body)(2, 3)) == 5

    async def test_arguments_arrive_as_they_were_given(self, flow: WorkflowEngine) -> None:
        spread = flow.function_task(bodies.spread)
        assert await self.ended(spread(1, 2, 3, factor=4, more=5)) == (1, (2, 3), 4, {"more": 5})
        assert await self.ended(spread(first=1)) == (1, (), 1, {})

    @pytest.mark.parametrize("body", [bodies.echo, bodies.echo_async])
    async def test_values_survive_both_ways(self, flow: WorkflowEngine, body: Callable[..., Any]) -> None:
        value: dict[str, Any] = {
            "none": None,
            "tuple": (1, 2.5, "ü\0"),
            "set": {b"\x00\xff"},
            "type": Path,
            "nested": [[{}]],
        }
        result = await self.ended(flow.function_task(body)(value))
        assert result == value
        assert (result is value) == self.can.shares_memory

    async def test_a_task_gets_the_values_of_its_dependencies(self, flow: WorkflowEngine) -> None:
        add, echo = flow.function_task(bodies.add), flow.function_task(bodies.echo_async)
        one, two = add(0, 1), add(1, 1)
        assert await self.ended(add(one, right=two)) == 3
        assert await self.ended(echo([one, {"two": (two, one)}])) == [1, {"two": (2, 1)}]

    async def test_results_belong_to_their_calls_whatever_ends_first(
        self, flow: WorkflowEngine, meeting: Meeting
    ) -> None:
        first = flow.function_task(attend)(meeting.address, "first")
        second = flow.function_task(bodies.echo)("second")
        await self.ended(second)
        meeting.let_go()
        assert await self.all_ended([second, first]) == ["second", "first"]

    async def test_large_arguments_and_results(self, flow: WorkflowEngine) -> None:
        data = random.Random(1).randbytes(_LARGE)
        assert await self.ended(flow.function_task(bodies.echo)(data)) == data

    async def test_arguments_are_dropped_when_the_task_has_ended(self, flow: WorkflowEngine) -> None:
        tasks = [flow.function_task(bodies.takes), flow.function_task(bodies.takes_async)]
        tokens = [bodies.Token(), bodies.Token()]
        watched = [weakref.ref(token) for token in tokens]
        futures = [task(1, token) for task, token in zip(tasks, tokens, strict=True)]
        tokens.clear()
        await self.all_ended([*futures])
        await self.become_true(
            lambda: bool(gc.collect() + 1) and all(ref() is None for ref in watched), "nothing holds the arguments"
        )

    # --- graphs ------------------------------------------------------------------------------------------------------

    async def test_each_task_runs_once_and_after_its_dependencies(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        trace = tmp_path / "trace"
        chance = random.Random(7)
        kinds = [flow.function_task(bodies.step), flow.function_task(bodies.step_async)]
        futures: list[TaskFuture[Any]] = []
        for number in range(60):
            needs = chance.sample(futures, min(len(futures), chance.randrange(4)))
            futures.append(chance.choice(kinds)(trace, f"step {number}", needs))
        results = await self.all_ended([*futures])
        assert results == [[f"step {number}"] for number in range(60)], "a step ran before a dependency of it"
        assert sorted(bodies.notes(trace)) == sorted(f"step {number}" for number in range(60))

    @pytest.mark.parametrize("body", [bodies.noted, bodies.noted_async])
    async def test_hundreds_of_tasks_each_once(
        self, flow: WorkflowEngine, tmp_path: Path, body: Callable[..., Any]
    ) -> None:
        trace = tmp_path / "trace"
        task = flow.function_task(body)
        names = [str(number) for number in range(500)]
        assert await self.all_ended([task(trace, name) for name in names]) == names
        assert sorted(bodies.notes(trace)) == sorted(names)

    # --- what may be a task ------------------------------------------------------------------------------------------

    async def test_a_lambda(self, flow: WorkflowEngine) -> None:
        assert await self.ended(flow.function_task(lambda number: number + 1)(1)) == 2

    async def test_a_closure(self, flow: WorkflowEngine) -> None:
        offset = 40

        def shifted(number: int) -> int:
            return number + offset if number < 2 else shifted(number - 1)

        async def shifted_async(number: int) -> int:
            return shifted(number)

        assert await self.ended(flow.function_task(shifted)(4)) == 41
        assert await self.ended(flow.function_task(shifted_async)(4)) == 41

    @pytest.mark.parametrize(
        "function",
        [partial(bodies.add, 2), partial(bodies.add_async, 2), bodies.Outer.Adder(2), bodies.Outer.Inner(3).plus_two],
        ids=["partial", "partial of a coroutine function", "callable object", "bound method"],
    )
    async def test_other_callables(self, flow: WorkflowEngine, function: Callable[..., Any]) -> None:
        assert await self.ended(flow.function_task(function)(5)) in (7, 5 * 3 + 2)

    async def test_a_builtin(self, flow: WorkflowEngine) -> None:
        assert await self.ended(flow.function_task(len)("four")) == 4

    async def test_instances_of_nested_and_of_local_classes(self, flow: WorkflowEngine) -> None:
        class Local:
            def __init__(self, value: int) -> None:
                self.value = value

        def doubled(local: Local) -> Local:
            return Local(2 * local.value)

        nested = await self.ended(flow.function_task(bodies.doubled_inner)(bodies.Outer.Inner(4)))
        assert isinstance(nested, bodies.Outer.Inner)
        assert nested.value == 8
        assert (await self.ended(flow.function_task(doubled)(Local(5)))).value == 10

    async def test_module_level_tasks(self, flow: WorkflowEngine) -> None:
        assert await self.ended(bodies.module_level(bodies.module_level_async(7))) == 42

    async def test_what_is_defined_in_main(self, flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        class Number:
            def __init__(self, value: int) -> None:
                self.value = value

        def double(number: Number) -> Number:
            return Number(2 * number.value)

        for made in (Number, double):
            # As if the interpreter had been started with the file that defines it: no worker has that __main__.
            made.__module__, made.__qualname__ = "__main__", made.__name__
            monkeypatch.setattr(sys.modules["__main__"], made.__name__, made, raising=False)
        assert (await self.ended(flow.function_task(double)(Number(4)))).value == 8

    async def test_a_script(self, tmp_path: Path, free_loop: None) -> None:
        script = self.script(tmp_path, _MAIN_SCRIPT)
        code = await self.ended(aside(script.wait))
        assert (code, (tmp_path / "output").read_text()) == (0, "total 103\n")

    async def test_a_function_travels_once_and_is_read_once_on_each_worker(
        self, flow: WorkflowEngine, tmp_path: Path
    ) -> None:
        function = bodies.CountedFunction(tmp_path / "read")
        task = flow.function_task(function)
        assert await self.all_ended([task(number) for number in range(20)]) == [*range(20)]
        readers = bodies.notes(tmp_path / "read")
        assert function.pickled == (0 if self.can.shares_memory else 1)
        assert len(readers) == len({*readers})
        assert len(readers) <= self.can.workers

    # --- workers -----------------------------------------------------------------------------------------------------

    async def test_context_variables_of_the_caller(self, flow: WorkflowEngine) -> None:
        bodies.colour.set("blue")
        seen = [flow.function_task(bodies.read_colour)(), flow.function_task(bodies.read_colour_async)()]
        bodies.colour.set("red")
        expected = "blue" if self.can.shares_memory else "none"
        assert await self.all_ended([*seen]) == [expected, expected]

    async def test_functions_run_on_all_workers_at_once(self, flow: WorkflowEngine, meeting: Meeting) -> None:
        await self._meet(meeting, flow.function_task(attend), self.can.workers)

    async def test_coroutines_overlap(self, flow: WorkflowEngine, meeting: Meeting) -> None:
        """More of them than workers where the backend declares that; else as many as there are workers."""
        count = min(self.can.concurrency, 4 * self.can.workers)
        await self._meet(meeting, flow.function_task(attend_async), count)

    async def _meet(self, meeting: Meeting, task: Callable[..., TaskFuture[str]], count: int) -> None:
        futures = [task(meeting.address, str(number)) for number in range(count)]
        await self.ended(meeting.arrivals(count))
        assert len(meeting.present) == count
        meeting.let_go()
        assert await self.all_ended([*futures]) == [str(number) for number in range(count)]

    async def test_a_coroutine_that_blocks_holds_up_no_other_worker(
        self, flow: WorkflowEngine, meeting: Meeting
    ) -> None:
        blocked = flow.function_task(bodies.attend_blocking)(meeting.address, "blocked")
        await self.ended(meeting.arrivals(1))
        echo, echo_async = flow.function_task(bodies.echo), flow.function_task(bodies.echo_async)
        others = [task(number) for number in range(10) for task in (echo, echo_async)]
        assert await self.all_ended([*others]) == [number for number in range(10) for _ in range(2)]
        assert not blocked.done()
        meeting.let_go()
        assert await self.ended(blocked) == "blocked"

    async def test_a_coroutine_that_awaits_holds_up_no_function(self, flow: WorkflowEngine, meeting: Meeting) -> None:
        waiting = flow.function_task(attend_async)(meeting.address, "waiting")
        await self.ended(meeting.arrivals(1))
        assert await self.ended(flow.function_task(bodies.add)(1, 2)) == 3
        meeting.let_go()
        assert await self.ended(waiting) == "waiting"

    async def test_an_object_of_the_engines_loop_is_named(self, flow: WorkflowEngine) -> None:
        bound = bodies.Bound(asyncio.get_running_loop().create_future())
        future = flow.function_task(bodies.await_bound)(bound)
        if self.can.shares_memory:
            assert "block" in str(await self.failure(future, LoopBoundError))
        else:
            assert "argument 'bound'" in str(await self.failure(future, NotPicklableError))
        assert await self.ended(flow.function_task(bodies.add_async)(1, 2)) == 3

    async def test_nothing_runs_on_the_engines_thread(self, flow: WorkflowEngine) -> None:
        here = (bodies.where(), threading.get_ident())
        tasks = [flow.function_task(bodies.thread_and_process), flow.function_task(bodies.thread_and_process_async)]
        for process, thread in await self.all_ended([task() for task in tasks]):
            assert (process, thread) != here
            assert (process == here[0]) == self.can.shares_memory

    # --- tasks in tasks ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("body", [bodies.call_module_level, bodies.call_module_level_async])
    async def test_a_task_called_in_a_tasks_body_is_refused(
        self, flow: WorkflowEngine, body: Callable[..., Any]
    ) -> None:
        answer = await self.ended(flow.function_task(body)(1))
        assert answer.startswith(CalledInsideTaskError.__name__)
        assert "module_level.fn(...)" in answer

    async def test_an_engines_task_called_in_a_tasks_body_is_refused(self, flow: WorkflowEngine) -> None:
        inner = flow.function_task(bodies.add)

        def outer() -> int:
            return inner(1, 2)  # type: ignore[return-value]  # the mistake under test

        error = await self.failure(flow.function_task(outer)(), CalledInsideTaskError)
        assert "add.fn(...)" in str(error)

    async def test_the_plain_function_of_a_task_works_in_a_tasks_body(self, flow: WorkflowEngine) -> None:
        inner = flow.function_task(bodies.add)

        def outer() -> int:
            result: int = inner.fn(1, 2)
            return result

        assert await self.ended(flow.function_task(outer)()) == 3
        assert await self.ended(flow.function_task(bodies.call_plain)(4)) == 8
