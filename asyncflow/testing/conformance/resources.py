"""Cores, GPUs and memory: counted, given out, never given twice. MPI ranks, environments, commands to run first."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncflow.engine import WorkflowEngine
from asyncflow.errors import CommandError, ExecutableError, UnsatisfiableRequestError
from asyncflow.future import TaskFuture
from asyncflow.testing import bodies
from asyncflow.testing.conformance.base import Suite
from asyncflow.testing.meeting import Meeting, attend, attend_async, attend_command


class Resources(Suite):
    # --- how much --------------------------------------------------------------------------------------------------

    def _attending(
        self, flow: WorkflowEngine, meeting: Meeting, kind: str, description: dict[str, Any] | None
    ) -> Callable[[str, int], TaskFuture[Any]]:
        """What calls a task of `kind` that attends under a name and a weight."""
        if kind == "executable":
            run = flow.executable_task(task_description=description)(bodies.words)
            return lambda name, weight: run(*attend_command(meeting.address, name, weight))
        task = flow.function_task(task_description=description)(attend if kind == "function" else attend_async)
        return lambda name, weight: task(meeting.address, name, weight)

    async def _fill(self, meeting: Meeting, call: Callable[[str, int], TaskFuture[Any]], weight: int, fit: int) -> None:
        """Call more tasks than fit: as many as fit run at once, and no more at any time."""
        futures = [call(str(number), weight) for number in range(fit + 2)]
        await self.ended(meeting.arrivals(fit))
        await asyncio.sleep(self.chance)
        assert len(meeting.arrived) == fit
        meeting.let_go()
        await self.all_ended([*futures])
        assert meeting.most == fit * weight

    @pytest.mark.parametrize("kind", ["function", "coroutine", "executable"])
    async def test_cores_are_never_oversubscribed(self, flow: WorkflowEngine, meeting: Meeting, kind: str) -> None:
        half = self.can.total.cores // 2
        call = self._attending(flow, meeting, kind, {"cores_per_rank": half})
        await self._fill(meeting, call, half, self.can.total.cores // half)

    async def test_an_executable_holds_a_core(self, flow: WorkflowEngine, meeting: Meeting) -> None:
        await self._fill(meeting, self._attending(flow, meeting, "executable", None), 1, self.can.total.cores)

    @pytest.mark.parametrize("kind", ["function", "coroutine", "executable"])
    async def test_a_large_request_waits_and_is_waited_for(
        self, flow: WorkflowEngine, meeting: Meeting, kind: str
    ) -> None:
        cores = self.can.total.cores
        small = self._attending(flow, meeting, kind, {"cores_per_rank": 1})
        large = self._attending(flow, meeting, kind, {"cores_per_rank": cores})
        futures = [small("first", 1)]
        await self.ended(meeting.arrivals(1))
        futures.append(large("second", cores))
        await asyncio.sleep(self.chance)
        meeting.let_go("first")
        await self.ended(meeting.arrivals(2))
        futures.append(small("third", 1))
        await asyncio.sleep(self.chance)
        meeting.let_go()
        await self.all_ended([*futures])
        assert meeting.names == ["first", "second", "third"]
        assert meeting.most == cores

    async def test_memory_is_never_oversubscribed(self, flow: WorkflowEngine, meeting: Meeting) -> None:
        if not self.can.total.memory:
            self._refused(flow, {"mem_per_rank": 1}, "MB")
            return
        call = self._attending(flow, meeting, "function", {"mem_per_rank": self.can.total.memory // 2 + 1})
        await self._fill(meeting, call, 1, 1)

    @pytest.mark.parametrize("kind", ["function", "executable"])
    async def test_each_task_gets_gpus_of_its_own(self, flow: WorkflowEngine, meeting: Meeting, kind: str) -> None:
        count = min(self.can.total.gpus, self.can.total.cores)
        if not count:
            self._refused(flow, {"gpus_per_rank": 1}, "GPUs")
            return
        if kind == "function":
            task = flow.function_task(task_description={"gpus_per_rank": 1})(bodies.attend_with_gpus)
            futures = [task(meeting.address, str(number)) for number in range(count + 2)]
        else:
            call = self._attending(flow, meeting, kind, {"gpus_per_rank": 1})
            futures = [call(str(number), 1) for number in range(count + 2)]
        await self.ended(meeting.arrivals(count))
        first = {int(attendant.name) for attendant in meeting.arrived[:count]}
        meeting.let_go()
        seen = [gpus.strip() for gpus in await self.all_ended([*futures])]
        assert len({seen[number] for number in first}) == count, "two tasks had one GPU at the same time"
        assert meeting.most == count
        assert all(gpu and "," not in gpu for gpu in seen)

    # --- too much ----------------------------------------------------------------------------------------------------

    def _refused(self, flow: WorkflowEngine, description: dict[str, Any], unit: str) -> None:
        for decorate in (flow.function_task, flow.executable_task):
            task = decorate(task_description=description)(bodies.words)
            with pytest.raises(UnsatisfiableRequestError) as caught:
                task("true")
            assert unit in str(caught.value)
            assert repr(self.backend.name) in str(caught.value)

    @pytest.mark.parametrize(
        "key, unit",
        [("ranks", "cores"), ("cores_per_rank", "cores"), ("gpus_per_rank", "GPUs"), ("mem_per_rank", "MB")],
    )
    async def test_a_request_beyond_the_backend_fails_at_the_call(
        self, flow: WorkflowEngine, key: str, unit: str
    ) -> None:
        total = self.can.total
        most = {"cores": total.cores, "GPUs": total.gpus, "MB": total.memory}[unit]
        self._refused(flow, {key: most + 1}, unit)

    # --- surroundings ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("asynchronous", [False, True], ids=["function", "coroutine"])
    async def test_a_function_gets_its_environment(self, flow: WorkflowEngine, asynchronous: bool) -> None:
        described = {"environment": {"GREETING": "hi there"}, "pre_exec": ["export FIRST='it ran first'"]}
        body = bodies.variables_async if asynchronous else bodies.variables
        future = flow.function_task(task_description=described)(body)("GREETING", "FIRST")
        assert await self.ended(future) == {"GREETING": "hi there", "FIRST": "it ran first"}
        plain = flow.function_task(bodies.variables)("GREETING", "FIRST")
        assert await self.ended(plain) == {"GREETING": None, "FIRST": None}, "it reached another task"

    async def test_what_fails_before_a_function_fails_the_function(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        """As its own failure: a lost worker's would run it again."""
        described = {"pre_exec": [f"echo once >> {tmp_path / 'trace'}", "echo no such module >&2; exit 3"]}
        error = await self.failure(flow.function_task(task_description=described)(bodies.add)(1, 2), ExecutableError)
        assert error.returncode == 3
        assert "no such module" in str(error)
        assert (tmp_path / "trace").read_text() == "once\n"

    async def test_a_command_gets_its_environment(self, flow: WorkflowEngine) -> None:
        described = {
            "environment": {"GREETING": "hi there"},
            "pre_exec": ["export FIRST='it ran first'", 'FIRST="$FIRST of all"'],
        }
        task = flow.executable_task(task_description=described)(bodies.words)
        assert await self.ended(task("printenv", "GREETING", "FIRST")) == "hi there\nit ran first of all\n"

    async def test_a_function_with_an_environment_is_as_good_as_any(self, flow: WorkflowEngine) -> None:
        """A closure, exceptions that come back as themselves."""
        offset = 40
        described = {"environment": {"GREETING": "hi"}}
        assert await self.ended(flow.function_task(task_description=described)(lambda n: n + offset)(2)) == 42
        failing = flow.function_task(task_description=described)(bodies.raise_detailed)(5)
        assert (await self.failure(failing, bodies.Detailed)).code == 5

    async def test_a_command_may_use_as_many_threads_as_it_has_cores(self, flow: WorkflowEngine) -> None:
        task = flow.executable_task(task_description={"cores_per_rank": 2})(bodies.words)
        assert await self.ended(task("printenv", "OMP_NUM_THREADS")) == "2\n"

    # --- MPI ---------------------------------------------------------------------------------------------------------

    async def _without_mpi(self, future: TaskFuture[Any]) -> None:
        assert "mpirun" in str(await self.failure(future, CommandError))

    async def test_the_ranks_of_a_command(self, flow: WorkflowEngine) -> None:
        task = flow.executable_task(shell=True, task_description={"ranks": 2})(bodies.line)
        future = task("echo rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE")
        if not shutil.which("mpirun"):
            await self._without_mpi(future)
            return
        assert sorted((await self.ended(future)).splitlines()) == ["rank 0 of 2", "rank 1 of 2"]

    async def test_the_ranks_of_a_function(self, flow: WorkflowEngine) -> None:
        """The result is the list of all ranks' results."""
        future: TaskFuture[Any] = flow.function_task(task_description={"ranks": 2})(bodies.rank_of)("simulation")
        if not shutil.which("mpirun"):
            await self._without_mpi(future)
            return
        assert await self.ended(future) == [("simulation", 0, 2), ("simulation", 1, 2)]

    async def test_a_rank_that_fails(self, flow: WorkflowEngine) -> None:
        if not shutil.which("mpirun"):
            return
        failing = flow.function_task(task_description={"ranks": 2})(bodies.raise_detailed)(5)
        assert (await self.failure(failing, bodies.Detailed)).code == 5

    async def test_each_rank_gets_gpus_of_its_own(self, flow: WorkflowEngine) -> None:
        if self.can.total.gpus < 2:
            self._refused(flow, {"ranks": 2, "gpus_per_rank": 1}, "GPUs")
            return
        task = flow.executable_task(shell=True, task_description={"ranks": 2, "gpus_per_rank": 1})(bodies.line)
        future = task("echo $CUDA_VISIBLE_DEVICES")
        if not shutil.which("mpirun"):
            await self._without_mpi(future)
            return
        seen = (await self.ended(future)).split()
        assert len(seen) == len({*seen}) == 2
