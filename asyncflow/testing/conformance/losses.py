"""The death of workers: what runs again, what fails, what is never touched."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import chain
from pathlib import Path

import pytest

from asyncflow.backends.orphans import SESSION, marks
from asyncflow.engine import WorkflowEngine
from asyncflow.errors import AsyncflowError, BackendLostError, WorkerLostError
from asyncflow.future import TaskFuture
from asyncflow.testing import bodies
from asyncflow.testing.conformance.base import Suite
from asyncflow.testing.leaks import descendants
from asyncflow.testing.meeting import Meeting, attend, attend_async


class Losses(Suite):
    async def _fate(self, flow: WorkflowEngine) -> str:
        """What the death of a worker means here: "survived" or "broken", or "none" where none can die alone."""
        if self.can.shares_memory:
            assert await self.ended(flow.function_task(bodies.where)()) == os.getpid()
            return "none"
        if not self.worker_may_die:
            assert not self.can.survives_worker_loss, "it claims to survive what must not be tried"
            return "none"
        return "survived" if self.can.survives_worker_loss else "broken"

    async def _is_broken(self, flow: WorkflowEngine, future: TaskFuture[int]) -> None:
        """The declared alternative: all that is unfinished, and whatever is called later, ends and says why."""
        assert (await self.failure(future, BackendLostError)).reason
        assert (await self.failure(flow.function_task(bodies.add)(1, 2), BackendLostError)).reason

    async def test_a_task_whose_worker_died_runs_again(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        fate = await self._fate(flow)
        if fate == "none":
            return
        future = flow.function_task(bodies.die_until)(os.getpid(), tmp_path / "trace", 2)
        if fate == "broken":
            await self._is_broken(flow, future)
        else:
            assert await self.ended(future) == 2

    async def test_a_coroutine_whose_worker_died_runs_again(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        fate = await self._fate(flow)
        if fate == "none":
            return
        future = flow.function_task(bodies.die_until_async)(os.getpid(), tmp_path / "trace", 2)
        if fate == "broken":
            await self._is_broken(flow, future)
        else:
            assert await self.ended(future) == 2

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
    async def test_a_loss_too_many_names_signal_and_host(
        self, flow: WorkflowEngine, tmp_path: Path, number: signal.Signals
    ) -> None:
        if await self._fate(flow) != "survived":
            return
        task = flow.function_task(max_losses=0)(bodies.die_until)
        error = await self.failure(task(os.getpid(), tmp_path / "trace", 2, number), WorkerLostError)
        assert (error.exit_code, error.losses) == (-number, 1)
        assert error.host
        assert error.host in str(error)
        assert number.name in str(error)

    async def test_a_worker_that_exits_names_its_code(self, flow: WorkflowEngine) -> None:
        if await self._fate(flow) != "survived":
            return
        task = flow.function_task(max_losses=0)(bodies.exit_worker)
        error = await self.failure(task(os.getpid(), 3), WorkerLostError)
        assert error.exit_code == 3
        assert "3" in error.reason

    async def test_a_task_that_always_kills_its_worker_ends(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        if await self._fate(flow) != "survived":
            return
        task = flow.function_task(max_losses=2, retries=5)(bodies.die_until)
        error = await self.failure(task(os.getpid(), tmp_path / "trace", 1000), WorkerLostError)
        assert error.losses == 3
        assert len(bodies.notes(tmp_path / "trace")) == 3
        assert await self.ended(flow.function_task(bodies.add)(1, 2)) == 3

    async def test_others_are_not_touched(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        noted, names = flow.function_task(max_losses=0)(bodies.noted), [str(number) for number in range(50)]
        futures = [noted(tmp_path / "others", name) for name in names[:25]]
        runs = 2 if await self._fate(flow) == "survived" else 1  # it kills nothing where that would break everything
        killer = flow.function_task(bodies.die_until)(os.getpid(), tmp_path / "killer", runs)
        futures += [noted(tmp_path / "others", name) for name in names[25:]]
        assert await self.ended(killer) == runs
        assert await self.all_ended([*futures]) == names
        assert sorted(bodies.notes(tmp_path / "others")) == sorted(names), "a task ran more than once"

    async def test_short_calls_that_have_ended_do_not_run_again(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        """Even where a worker that dies was given many of them at once, and told of none yet."""
        deadly = "250" if await self._fate(flow) == "survived" else "none"
        task, names = flow.function_task(bodies.note_or_die), [str(number) for number in range(300)]
        futures = [task(os.getpid(), tmp_path / "trace", name, deadly) for name in names]
        assert await self.all_ended([*futures]) == names
        traces = bodies.notes(tmp_path / "trace")
        assert {name: traces.count(name) for name in names} == {name: 1 + (name == deadly) for name in names}

    async def test_coroutines_beside_the_killer_are_no_suspects(
        self, flow: WorkflowEngine, meeting: Meeting, tmp_path: Path
    ) -> None:
        """They run again, and the loss is not counted against them: only one while alone would be."""
        if await self._fate(flow) != "survived":
            return
        count = min(self.can.concurrency, 4 * self.can.workers) - 1
        sit = flow.function_task(max_losses=0)(attend_async)
        sitting = [sit(meeting.address, str(number)) for number in range(count)]
        killer = flow.function_task(max_losses=1)(bodies.die_in_company)(
            os.getpid(), meeting.address, tmp_path / "trace"
        )
        await self.ended(meeting.arrivals(count + 1))
        meeting.let_go("killer")
        assert await self.ended(killer) == 2
        meeting.let_go()
        assert await self.all_ended([*sitting]) == [str(number) for number in range(count)]

    async def test_an_idle_worker_that_dies_is_replaced(self, flow: WorkflowEngine, meeting: Meeting) -> None:
        if await self._fate(flow) != "survived":
            return
        pid = await self.ended(flow.function_task(bodies.where)())
        # Nothing else may be killed; workers that are no children of the engine's process carry a mark.
        assert pid in [*descendants(), *chain.from_iterable(marks(SESSION).values())]
        os.kill(pid, signal.SIGKILL)
        task = flow.function_task(attend)
        futures = [task(meeting.address, str(number)) for number in range(self.can.workers)]
        await self.ended(meeting.arrivals(self.can.workers))
        meeting.let_go()
        await self.all_ended([*futures])

    async def test_a_broken_backend_leaves_no_future_behind(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        if await self._fate(flow) != "broken":
            return
        killer = flow.function_task(bodies.die_until)(os.getpid(), tmp_path / "trace", 2)
        add = flow.function_task(bodies.add)
        others = [add(number, killer) for number in range(10)] + [add(number, 1) for number in range(10)]
        results = await self.ended(asyncio.gather(killer, *others, return_exceptions=True))
        assert all(isinstance(result, (int, AsyncflowError)) for result in results)
        assert all(isinstance(result, AsyncflowError) for result in results[:11])

    async def test_a_function_whose_own_process_dies(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        """A function with an `environment` of its own runs in a process of its own; its end tells how that ended."""
        own = {"environment": {"OWN": "1"}}
        task = flow.function_task(max_losses=0, task_description=own)(bodies.die_until)
        with pytest.raises(AsyncflowError, match="SIGKILL"):
            await self.ended(task(os.getpid(), tmp_path / "trace", 2))
        assert await self.ended(flow.function_task(bodies.add)(1, 2)) == 3
