"""The contract itself: a backend without an engine, and what it reports."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from asyncflow.backends.contract import (
    CONTRACT_VERSION,
    Backend,
    Capabilities,
    Definition,
    ExecutableOptions,
    Kind,
    Loss,
    Outcome,
    Place,
    WorkItem,
)
from asyncflow.backends.orphans import marked
from asyncflow.description import TaskDescription
from asyncflow.testing import bodies
from asyncflow.testing.conformance.base import WORK, Suite
from asyncflow.testing.fakes import RecordingReporter
from asyncflow.testing.meeting import Meeting, attend, attend_async, attend_command


class Bench:
    """A started backend with a reporter that keeps all it hears."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.reporter = RecordingReporter()
        self._numbers = count(1)
        self._stopped = False

    def item(
        self,
        body: Callable[..., Any],
        *args: Any,
        executable: Mapping[str, str] | None = None,
        description: TaskDescription | None = None,
    ) -> WorkItem:
        """An item that calls `body`; a command with these environment variables where `executable` is given."""
        definition = Definition(
            body,
            Kind.FUNCTION if executable is None else Kind.EXECUTABLE,
            body.__name__,
            is_async=inspect.iscoroutinefunction(body),
            description=description,
            executable=None if executable is None else ExecutableOptions(env=executable),
        )
        return WorkItem(definition, args, {}, uid=f"task.{next(self._numbers):06d}")

    def again(self, item: WorkItem) -> WorkItem:
        """Another call of the same task, with the same arguments (which the backend has kept untouched)."""
        return WorkItem(item.definition, item.args, item.kwargs, uid=f"task.{next(self._numbers):06d}")

    def submit(self, *items: WorkItem) -> None:
        self.backend.submit(items)

    async def stop(self, grace: float) -> None:
        if not self._stopped:
            self._stopped = True
            await self.backend.stop(grace)


class Contract(Suite):
    @pytest_asyncio.fixture(loop_scope="function")
    async def bench(self, free_loop: None) -> AsyncIterator[Bench]:
        self.backend = self.make_backend()
        bench = Bench(self.backend)
        await self.ended(self.backend.start(bench.reporter))
        yield bench
        await self.ended(bench.stop(0.0))

    # --- what it declares --------------------------------------------------------------------------------------------

    async def test_it_declares_what_it_is(self, bench: Bench) -> None:
        can = bench.backend.capabilities
        assert isinstance(can, Capabilities)
        assert can.contract_version == CONTRACT_VERSION
        assert bench.backend.name
        assert can.workers >= 2
        assert can.total.cores >= 2
        assert can.concurrency >= can.workers

    # --- what it reports ---------------------------------------------------------------------------------------------

    def _mixture(self, bench: Bench) -> list[WorkItem]:
        items = []
        for number in range(12):
            items.append(bench.item(bodies.add, number, 1))
            items.append(bench.item(bodies.add_async, number, 1))
            items.append(bench.item(bodies.raise_detailed, number))
        items.append(bench.item(bodies.words, "true", executable={}))
        items.append(bench.item(bodies.words, "false", executable={}))
        items.append(bench.item(bodies.add, 1, 1, description=TaskDescription(cores_per_rank=2)))
        return items

    async def test_each_item_has_one_end(self, bench: Bench) -> None:
        items = self._mixture(bench)
        # What runs at once must not be exceeded where starts are not reported: one batch after the other.
        for item in items:
            bench.submit(item)
            await self.ended(bench.reporter.end(item))
        await self.ended(bench.stop(1.0))
        assert [len(bench.reporter.ends(item)) for item in items] == [1] * len(items)
        assert bench.reporter.breakdown is None

    async def test_a_start_is_reported_at_most_once_and_before_the_end(self, bench: Bench) -> None:
        """What ends before its start could be reported may do without."""
        items = self._mixture(bench)
        bench.submit(*items)
        for item in items:
            await self.ended(bench.reporter.end(item))
        # Calls of one task that was short so far: a backend may move many of them together.
        short = [bench.again(items[0]) for _ in range(200)]
        bench.submit(*short)
        for item in short:
            await self.ended(bench.reporter.end(item))
        await self.ended(bench.stop(1.0))
        legal = [["finished"], ["started", "finished"]] if self.can.reports_start else [["finished"]]
        assert all(bench.reporter.reports(item) in legal for item in [*items, *short])

    @pytest.mark.parametrize("kind", ["function", "coroutine", "executable"])
    async def test_what_runs_is_reported_as_started(self, bench: Bench, meeting: Meeting, kind: str) -> None:
        if kind == "executable":
            item = bench.item(bodies.words, *attend_command(meeting.address, "held"), executable={})
        else:
            item = bench.item(attend if kind == "function" else attend_async, meeting.address, "held")
        bench.submit(item)
        await self.ended(meeting.arrivals(1))
        if self.can.reports_start:
            await self.ended(bench.reporter.start(item))
        meeting.let_go()
        await self._outcome(bench, item)
        await self.ended(bench.stop(1.0))  # whatever it still has to say is said
        assert bench.reporter.reports(item) == (["started"] if self.can.reports_start else []) + ["finished"]

    async def test_an_outcome_tells_value_time_and_place(self, bench: Bench) -> None:
        well, badly = bench.item(bodies.where), bench.item(bodies.raise_detailed, 5)
        bench.submit(well, badly)
        outcome = await self._outcome(bench, well)
        assert outcome.error is None
        assert outcome.started <= outcome.ended
        assert isinstance(outcome.place, Place)
        assert outcome.place.pid == outcome.value
        assert outcome.place.worker
        assert outcome.place.host
        failed = await self._outcome(bench, badly)
        assert failed.value is None
        assert isinstance(failed.error, bodies.Detailed)

    async def _outcome(self, bench: Bench, item: WorkItem) -> Outcome:
        end = await self.ended(bench.reporter.end(item))
        assert isinstance(end, Outcome)
        return end

    # --- cancelled ---------------------------------------------------------------------------------------------------

    async def _cancelled(self, bench: Bench, item: WorkItem) -> None:
        assert isinstance((await self._outcome(bench, item)).error, asyncio.CancelledError)

    @pytest.mark.parametrize("description", [None, TaskDescription(cores_per_rank=1)], ids=["plain", "described"])
    async def test_an_item_cancelled_before_it_began_never_runs(
        self, bench: Bench, meeting: Meeting, tmp_path: Path, description: TaskDescription | None
    ) -> None:
        holding = [bench.item(attend, meeting.address, str(number)) for number in range(self.can.workers)]
        queued = [bench.item(bodies.noted, tmp_path / "trace", "ran", description=description) for _ in range(4)]
        bench.submit(*holding)
        await self.ended(meeting.arrivals(len(holding)))
        bench.submit(*queued)
        for item in queued:
            bench.backend.cancel(item)
        meeting.let_go()
        for item in queued:
            await self._cancelled(bench, item)
        for item in holding:
            await self._outcome(bench, item)
        await self.ended(bench.stop(1.0))
        assert [bench.reporter.reports(item) for item in queued] == [["finished"]] * len(queued)
        assert not (tmp_path / "trace").exists()

    async def test_an_item_may_be_cancelled_twice_and_late(self, bench: Bench, meeting: Meeting) -> None:
        items = [bench.item(attend_async, meeting.address, "held"), bench.item(bodies.add, 1, 1)]
        bench.submit(*items)
        await self._outcome(bench, items[1])
        await self.ended(meeting.arrivals(1))
        for item in items:
            bench.backend.cancel(item)
            bench.backend.cancel(item)
        meeting.let_go()
        for item in items:
            await self._outcome(bench, item)
            bench.backend.cancel(item)
        await self.ended(bench.stop(1.0))
        assert [len(bench.reporter.ends(item)) for item in items] == [1, 1]

    async def test_a_cancelled_function_ends_when_it_is_dead(
        self, bench: Bench, meeting: Meeting, tmp_path: Path
    ) -> None:
        item = bench.item(bodies.attend_and_note, meeting.address, "held", tmp_path / "trace")
        bench.submit(item)
        await self.ended(meeting.arrivals(1))
        bench.backend.cancel(item)
        if not self.can.cancels_functions:
            await asyncio.sleep(self.chance)
            assert not bench.reporter.ends(item), "reported as ended while it ran"
            meeting.let_go()
        await self._outcome(bench, item)
        if self.can.cancels_functions:
            await self.ended(meeting.until(lambda: meeting.vanished == ["held"]))
        else:
            assert bodies.notes(tmp_path / "trace") == ["held"], "reported as ended before it had"

    async def test_a_cancelled_coroutine_ends_when_it_is_dead(
        self, bench: Bench, meeting: Meeting, tmp_path: Path
    ) -> None:
        item = bench.item(bodies.attend_and_tell, meeting.address, "held", tmp_path / "trace")
        bench.submit(item)
        await self.ended(meeting.arrivals(1))
        bench.backend.cancel(item)
        if self.can.concurrency > self.can.workers or self.can.cancels_functions:
            await self._cancelled(bench, item)
            assert bodies.notes(tmp_path / "trace") == ["held was cancelled"]
        else:
            meeting.let_go()
            await self._outcome(bench, item)
            assert meeting.left == ["held"]

    async def test_a_cancelled_executable_ends_when_it_is_dead(
        self, bench: Bench, meeting: Meeting, work_mark: str
    ) -> None:
        command = attend_command(meeting.address, "held", 1, "stubborn", "family")
        item = bench.item(bodies.words, *command, executable={WORK: work_mark})
        bench.submit(item)
        await self.ended(meeting.arrivals(4))
        bench.backend.cancel(item)
        if not self.can.cancels_executables:
            meeting.let_go()
        await self._outcome(bench, item)
        assert not marked(WORK, work_mark), "reported as ended while a process of it was alive"

    # --- stopped -----------------------------------------------------------------------------------------------------

    async def test_a_stopped_backend_has_reported_the_end_of_every_item(
        self, bench: Bench, meeting: Meeting, work_mark: str
    ) -> None:
        run = {WORK: work_mark}
        command = attend_command(meeting.address, "command")
        items = [bench.item(bodies.words, *command, executable=run) for _ in range(self.can.total.cores)]
        items += [bench.item(bodies.add, 1, 1, description=TaskDescription(cores_per_rank=2)) for _ in range(3)]
        items += [bench.item(bodies.add, 1, 1) for _ in range(3)]
        if self.can.concurrency > self.can.workers:
            items += [bench.item(attend_async, meeting.address, str(number)) for number in range(3)]
        bench.submit(*items)
        await self.ended(meeting.arrivals(self.can.total.cores))
        await self.ended(bench.stop(1.0))
        assert [len(bench.reporter.ends(item)) for item in items] == [1] * len(items)

    # --- lost --------------------------------------------------------------------------------------------------------

    async def test_a_loss_tells_what_happened(self, bench: Bench, tmp_path: Path) -> None:
        if self.can.shares_memory or not self.worker_may_die:
            return
        item = bench.item(bodies.die_until, os.getpid(), tmp_path / "trace", 2)
        bench.submit(item)
        if not self.can.survives_worker_loss:
            await self.become_true(lambda: bench.reporter.breakdown is not None, "the backend says that it broke")
            return
        loss = await self.ended(bench.reporter.end(item))
        assert isinstance(loss, Loss)
        assert (loss.exit_code, loss.begun, loss.alone) == (-9, True, True)
        assert "SIGKILL" in loss.reason
        assert loss.host

    async def test_a_suspect_has_its_worker_to_itself(self, bench: Bench, meeting: Meeting) -> None:
        """A coroutine that was on a lost worker runs alone the next time."""
        if self.can.shares_memory or not self.can.survives_worker_loss:
            return
        suspect = bench.item(attend_async, meeting.address, "suspect")
        suspect.solo = True
        others = [bench.item(attend_async, meeting.address, str(number)) for number in range(4)]
        bench.submit(suspect)
        await self.ended(meeting.arrivals(1))
        bench.submit(*others)
        await self.ended(meeting.arrivals(5))
        [alone] = [attendant for attendant in meeting.arrived if attendant.name == "suspect"]
        assert all(attendant.pid != alone.pid for attendant in meeting.arrived if attendant is not alone)
        meeting.let_go()
        for item in (suspect, *others):
            await self._outcome(bench, item)
