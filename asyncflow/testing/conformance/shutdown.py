"""The end of an engine, whatever it is at: every future has ended, nothing is left behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncflow.backends.aside import aside
from asyncflow.backends.orphans import end, marked
from asyncflow.engine import WorkflowEngine
from asyncflow.errors import AsyncflowError
from asyncflow.testing import bodies
from asyncflow.testing.conformance.base import WORK, Suite
from asyncflow.testing.leaks import MARK, Traces, nothing_left, traces
from asyncflow.testing.meeting import Meeting, attend, attend_async, attend_command
from asyncflow.testing.plugin import MakeEngine

#: Seconds that running work gets to end by itself.
_GRACE = 0.2

_KILLED_SCRIPT = """
import asyncio
from asyncflow import WorkflowEngine
from asyncflow.testing import bodies
from asyncflow.testing.meeting import attend_async, attend_command

async def main():
    address, work = arguments
    async with WorkflowEngine.create(make_backend(), work_dir=".") as flow:
        run = flow.executable_task(env={"ASYNCFLOW_TEST_WORK": work})(bodies.words)
        future = run(*attend_command(address, "command", 1, "stubborn", "family"))
        await flow.function_task(attend_async)(address, "coroutine")
        await future

if __name__ == "__main__":
    asyncio.run(main())
"""


class Shutdown(Suite):
    # --- states ------------------------------------------------------------------------------------------------------

    async def test_shutdown_of_an_engine_that_did_nothing(self, make_engine: MakeEngine, test_mark: str) -> None:
        before = traces(test_mark)
        flow = await self.open(make_engine)
        await self.ended(flow.shutdown())
        await self._nothing_is_left(before, test_mark)

    async def test_shutdown_after_work_well_done_and_not(self, make_engine: MakeEngine, test_mark: str) -> None:
        before = traces(test_mark)
        flow = await self.open(make_engine)
        for body in (bodies.add, bodies.add_async):
            assert await self.ended(flow.function_task(body)(1, 2)) == 3
        await self.failure(flow.function_task(bodies.raise_detailed)(1), bodies.Detailed)
        assert await self.ended(flow.executable_task(bodies.words)("echo", "out")) == "out\n"
        await self.ended(flow.shutdown())
        await self._nothing_is_left(before, test_mark)

    @pytest.mark.parametrize("body", [bodies.add, bodies.add_async])
    async def test_shutdown_right_after_many_calls(
        self, make_engine: MakeEngine, test_mark: str, body: Callable[..., Any]
    ) -> None:
        before = traces(test_mark)
        flow = await self.open(make_engine)
        task = flow.function_task(body)
        futures = [task(number, 1) for number in range(300)]
        await self.ended(futures[0])
        await self.ended(flow.shutdown(_GRACE))
        assert all(future.done() for future in futures)
        results = await asyncio.gather(*futures, return_exceptions=True)
        for number, result in enumerate(results):
            assert result == number + 1 or isinstance(result, asyncio.CancelledError)
        await self._nothing_is_left(before, test_mark)

    async def test_shutdown_while_coroutines_run_and_wait(
        self, make_engine: MakeEngine, meeting: Meeting, test_mark: str
    ) -> None:
        before = traces(test_mark)
        flow = await self.open(make_engine)
        task = flow.function_task(attend_async)
        futures = [task(meeting.address, str(number)) for number in range(2 * self.can.concurrency)]
        await self.ended(meeting.arrivals(self.can.workers))
        self._ends_by_itself_where_it_cannot_be_ended(meeting)
        await self._shut_down(flow, [*futures])
        await self._nothing_is_left(before, test_mark)

    async def test_shutdown_while_executables_run_and_wait(
        self, make_engine: MakeEngine, meeting: Meeting, test_mark: str, work_mark: str
    ) -> None:
        """They ignore TERM and have children."""
        before = traces(test_mark)
        flow = await self.open(make_engine)
        run = flow.executable_task(env={WORK: work_mark})(bodies.words)
        cores = self.can.total.cores
        command = attend_command(meeting.address, "held", 1, "stubborn", "family")
        futures = [run(*command) for _ in range(2 * cores)]
        await self.ended(meeting.arrivals(4 * cores))
        await self._shut_down(flow, [*futures])
        assert self.ends_late or not marked(WORK, work_mark)
        await self.no_work_left(work_mark)
        await self._nothing_is_left(before, test_mark)

    async def test_shutdown_while_functions_run_and_wait(
        self, make_engine: MakeEngine, meeting: Meeting, test_mark: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A function that cannot be ended is named in a warning; its future ends all the same."""
        before = traces(test_mark)
        flow = await self.open(make_engine)
        task = flow.function_task(attend)
        futures = [task(meeting.address, str(number)) for number in range(3 * self.can.workers)]
        await self.ended(meeting.arrivals(self.can.workers))
        with caplog.at_level(logging.WARNING, "asyncflow"):
            await self._shut_down(flow, [*futures])
        if not self.can.cancels_functions:
            warnings = [record.getMessage() for record in caplog.records if record.name == "asyncflow"]
            assert any("'attend'" in warning for warning in warnings)
            meeting.let_go()
        await self._nothing_is_left(before, test_mark)
        assert len(meeting.arrived) == self.can.workers

    def _ends_by_itself_where_it_cannot_be_ended(self, meeting: Meeting) -> None:
        if self.can.concurrency <= self.can.workers and not self.can.cancels_functions:
            meeting.let_go()

    async def _shut_down(self, flow: WorkflowEngine, futures: list[asyncio.Future[Any]]) -> None:
        await self.ended(flow.shutdown(_GRACE))
        assert all(future.done() for future in futures), "a future did not end"
        for future in futures:
            assert future.cancelled() or future.exception() is None

    async def _nothing_is_left(self, before: Traces, mark: str) -> None:
        """At once, where what is left is not a function that could not be ended, or a foreign pool's."""
        patience = self.within if self.ends_late or not self.can.cancels_functions else 0.0
        left = await nothing_left(lambda: traces(mark).beyond(before), patience)
        assert not left

    # --- again -------------------------------------------------------------------------------------------------------

    async def test_shutdown_twice(self, flow: WorkflowEngine, meeting: Meeting) -> None:
        future = flow.function_task(attend_async)(meeting.address, "held")
        await self.ended(meeting.arrivals(1))
        self._ends_by_itself_where_it_cannot_be_ended(meeting)
        await self.all_ended([flow.shutdown(_GRACE), flow.shutdown(_GRACE)])
        await self.ended(flow.shutdown())
        assert future.done()

    async def test_a_call_after_shutdown_is_refused(self, flow: WorkflowEngine) -> None:
        task = flow.function_task(bodies.add)
        await self.ended(flow.shutdown())
        with pytest.raises(AsyncflowError):
            task(1, 2)

    async def test_engines_one_after_the_other(self, make_engine: MakeEngine) -> None:
        for number in range(3):
            flow = await self.open(make_engine)
            assert await self.ended(flow.function_task(bodies.add)(number, 1)) == number + 1
            await self.ended(flow.shutdown())

    # --- by force ----------------------------------------------------------------------------------------------------

    async def test_a_killed_engine_takes_its_processes_with_it(
        self, meeting: Meeting, tmp_path: Path, test_mark: str, work_mark: str
    ) -> None:
        script = self.script(tmp_path, _KILLED_SCRIPT, meeting.address, work_mark)
        try:
            await self.ended(meeting.arrivals(5))
        finally:
            script.kill()
            await self.ended(aside(script.wait))
        await self.no_work_left(work_mark)
        if self.workers_end_with_engine:
            await self.become_true(lambda: not marked(MARK, test_mark), "no process of the engine is left")
        else:
            end(marked(MARK, test_mark), 9)
