"""Cancellation, timeouts and retries: what ends, what stays, what never begins."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Any

import pytest

from asyncflow.engine import WorkflowEngine
from asyncflow.errors import ExecutableError, TaskTimeoutError
from asyncflow.future import TaskFuture
from asyncflow.testing import bodies
from asyncflow.testing.conformance.base import WORK, Suite
from asyncflow.testing.meeting import Meeting, attend, attend_async, attend_command

#: Seconds after which an attempt of these tests times out. What it bounds waits for ever.
_SOON = 0.3


class Cancellation(Suite):
    @property
    def ends_coroutines(self) -> bool:
        """Whether a coroutine that runs can be ended: where it runs on a worker's loop, or its worker can be."""
        return self.can.concurrency > self.can.workers or self.can.cancels_functions

    # --- before it runs ----------------------------------------------------------------------------------------------

    async def test_a_cancelled_task_that_waits_never_runs(
        self, flow: WorkflowEngine, meeting: Meeting, tmp_path: Path
    ) -> None:
        dependency = flow.function_task(attend)(meeting.address, "dependency")
        future = flow.function_task(bodies.noted)(tmp_path / "trace", dependency)
        await self.ended(meeting.arrivals(1))
        future.cancel()
        await self.cancelled(future)
        meeting.let_go()
        assert await self.ended(dependency) == "dependency"
        await self._nothing_ran(flow, tmp_path / "trace")

    async def test_cancelled_tasks_in_the_queue_never_run(
        self, flow: WorkflowEngine, meeting: Meeting, tmp_path: Path
    ) -> None:
        """Some of them are with the backend already, behind those that run."""
        hold = flow.function_task(attend)
        holding = [hold(meeting.address, str(number)) for number in range(self.can.workers)]
        queued: list[TaskFuture[Any]] = []
        for _ in range(2 * self.can.workers):
            queued.append(flow.function_task(bodies.noted)(tmp_path / "trace", "function"))
            queued.append(flow.executable_task(bodies.words)("touch", str(tmp_path / "trace")))
        await self.ended(meeting.arrivals(len(holding)))
        await asyncio.sleep(self.chance)
        for future in queued:
            future.cancel()
            await self.cancelled(future)
        meeting.let_go()
        await self.all_ended([*holding])
        await self._nothing_ran(flow, tmp_path / "trace")

    async def _nothing_ran(self, flow: WorkflowEngine, trace: Path) -> None:
        add = flow.function_task(bodies.add)
        await self.all_ended([add(1, 1) for _ in range(4 * self.can.workers)])
        assert not trace.exists()

    # --- while it runs -----------------------------------------------------------------------------------------------

    async def test_a_cancelled_executable_is_dead_before_its_slot_is_free(
        self, flow: WorkflowEngine, meeting: Meeting, work_mark: str
    ) -> None:
        """It ignores TERM, and so do its two children and its grandchild."""
        everything = {"cores_per_rank": self.can.total.cores}
        run = flow.executable_task(env={WORK: work_mark}, task_description=everything)(bodies.words)
        future = run(*attend_command(meeting.address, "held", 1, "stubborn", "family"))
        await self.ended(meeting.arrivals(4))
        future.cancel()
        await self.cancelled(future)
        later = run(*attend_command(meeting.address, "later"))
        if not self.can.cancels_executables:
            await asyncio.sleep(self.chance)
            assert meeting.most == 4
            meeting.let_go("held")
        await self.ended(meeting.arrivals(5))
        assert meeting.most == 4, "the slot was given away while the work was alive"
        meeting.let_go()
        await self.ended(later)
        await self.no_work_left(work_mark)

    async def test_a_cancelled_executable_may_end_politely(
        self, flow: WorkflowEngine, work_mark: str, meeting: Meeting, tmp_path: Path
    ) -> None:
        """TERM comes first: a command can clean up."""
        trace = tmp_path / "trace"
        command = shlex.join(attend_command(meeting.address, "held"))
        script = f"trap 'echo polite >> {trace}; kill $!; exit 1' TERM\n{command} &\nwait"
        future = flow.executable_task(shell=True, env={WORK: work_mark})(bodies.line)(script)
        await self.ended(meeting.arrivals(1))
        future.cancel()
        await self.cancelled(future)
        if self.can.cancels_executables:
            await self.ended(meeting.until(lambda: meeting.vanished == ["held"]))
            await self.no_work_left(work_mark)
            assert bodies.notes(trace) == ["polite"]
        meeting.let_go()

    async def test_a_cancelled_function(self, flow: WorkflowEngine, meeting: Meeting, tmp_path: Path) -> None:
        """It is dead, or where the backend cannot do that, its slot stays taken until it returns."""
        trace = tmp_path / "trace"
        hold = flow.function_task(bodies.attend_and_note)
        futures = [hold(meeting.address, str(number), trace) for number in range(self.can.workers)]
        await self.ended(meeting.arrivals(len(futures)))
        for future in futures:
            future.cancel()
            await self.cancelled(future)
        later = flow.function_task(bodies.noted)(trace, "later")
        if self.can.cancels_functions:
            await self.ended(later)
            await self.ended(meeting.until(lambda: len(meeting.vanished) == len(futures)))
            assert bodies.notes(trace) == ["later"]
        else:
            await asyncio.sleep(self.chance)
            assert not later.done(), "a slot was given away while its function ran"
            meeting.let_go()
            await self.ended(later)
            assert bodies.notes(trace).index("later") > 0

    async def test_the_neighbours_of_a_cancelled_function_go_on(self, flow: WorkflowEngine, meeting: Meeting) -> None:
        hold = flow.function_task(attend)
        victim, neighbour = hold(meeting.address, "victim"), hold(meeting.address, "neighbour")
        await self.ended(meeting.arrivals(2))
        victim.cancel()
        await self.cancelled(victim)
        if self.can.cancels_functions:
            await self.ended(meeting.until(lambda: meeting.vanished == ["victim"]))
        meeting.let_go()
        assert await self.ended(neighbour) == "neighbour"
        add = flow.function_task(bodies.add)
        assert await self.all_ended([add(number, 1) for number in range(20)]) == [*range(1, 21)]

    async def test_a_cancelled_coroutine_sees_it(self, flow: WorkflowEngine, meeting: Meeting, tmp_path: Path) -> None:
        """Where it cannot be ended, its future is cancelled all the same."""
        future = flow.function_task(bodies.attend_and_tell)(meeting.address, "held", tmp_path / "trace")
        neighbour = flow.function_task(attend_async)(meeting.address, "neighbour")
        await self.ended(meeting.arrivals(2))
        future.cancel()
        await self.cancelled(future)
        if self.ends_coroutines:
            await self.ended(meeting.until(lambda: meeting.vanished == ["held"]))
            assert bodies.notes(tmp_path / "trace") == ["held was cancelled"]
        meeting.let_go()
        assert await self.ended(neighbour) == "neighbour"

    # --- timeouts ----------------------------------------------------------------------------------------------------

    async def test_a_function_that_takes_too_long(self, flow: WorkflowEngine, meeting: Meeting) -> None:
        future = flow.function_task(timeout=_SOON)(attend)(meeting.address, "held")
        await self._times_out(future)
        if self.can.cancels_functions:
            await self.ended(meeting.until(lambda: meeting.vanished == ["held"]))

    async def test_a_coroutine_that_takes_too_long(
        self, flow: WorkflowEngine, meeting: Meeting, tmp_path: Path
    ) -> None:
        task = flow.function_task(timeout=_SOON)(bodies.attend_and_tell)
        await self._times_out(task(meeting.address, "held", tmp_path / "trace"))
        if self.ends_coroutines:
            await self.become_true(lambda: len(meeting.present) == 0, "the coroutine is gone")

    async def test_an_executable_that_takes_too_long(
        self, flow: WorkflowEngine, meeting: Meeting, work_mark: str
    ) -> None:
        task = flow.executable_task(timeout=_SOON, env={WORK: work_mark})(bodies.words)
        await self._times_out(task(*attend_command(meeting.address, "held")))
        if not self.can.cancels_executables:
            meeting.let_go()
        await self.no_work_left(work_mark)

    async def _times_out(self, future: TaskFuture[Any]) -> None:
        error = await self.failure(future, TaskTimeoutError)
        assert isinstance(error, TimeoutError)
        assert error.seconds == _SOON
        assert repr(future.name) in str(error)

    async def test_a_timeout_is_a_failure_that_may_be_tried_again(self, flow: WorkflowEngine, meeting: Meeting) -> None:
        future = flow.function_task(timeout=_SOON, retries=1)(attend)(meeting.address, "held")
        assert (await self.failure(future, TaskTimeoutError)).attempt == 2

    # --- retries -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("retries", [1, 2])
    async def test_a_failure_is_tried_again_as_often_as_allowed(
        self, flow: WorkflowEngine, tmp_path: Path, retries: int
    ) -> None:
        future = flow.function_task(retries=retries)(bodies.fail_until)(tmp_path / "trace", 3)
        if retries == 2:
            assert await self.ended(future) == 3
        else:
            assert (await self.failure(future, bodies.Detailed)).code == 2
        assert len(bodies.notes(tmp_path / "trace")) == min(3, retries + 1)

    async def test_a_failed_executable_is_tried_again(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        script = "echo tried >> trace; test $(wc -l < trace) -ge 2 && echo well"
        task = flow.executable_task(retries=1, shell=True, cwd=str(tmp_path))(bodies.line)
        assert await self.ended(task(script)) == "well\n"
        (tmp_path / "trace").unlink()
        once = flow.executable_task(shell=True, cwd=str(tmp_path))(bodies.line)
        await self.failure(once(script), ExecutableError)
