"""Fakes for tests of what stands above a backend."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence

from asyncflow.backends.contract import Capabilities, HostFigures, Loss, Outcome, Place, Reporter, WorkItem
from asyncflow.description import Resources


class FakeBackend:
    """A backend in memory that runs nothing: the test says when each item begins, and how and when it ends.

        backend = FakeBackend()
        async with WorkflowEngine.create(backend=backend) as flow:
            future = flow.function_task(compute)(1)
            [item] = await backend.submitted_items(1)
            backend.begin(item)
            backend.finish(item, 42)
            assert await future == 42

    Every method is called on the engine's loop. One that the contract forbids (a second end, an end of what was never
    submitted) raises ValueError, so that a test cannot pass by breaking the contract.
    """

    def __init__(
        self,
        name: str = "fake",
        *,
        workers: int = 2,
        concurrency: int | None = None,
        total: Resources | None = None,
        shares_memory: bool = True,
        reports_start: bool = True,
        ends_cancelled: bool = True,
    ) -> None:
        """With `ends_cancelled` an item dies as soon as it is cancelled; else the test ends it, one way or another."""
        self.name = name
        self.capabilities = Capabilities(
            workers=workers,
            total=total or Resources(cores=workers),
            shares_memory=shares_memory,
            concurrency=concurrency or workers,
            cancels_functions=True,
            cancels_executables=True,
            survives_worker_loss=True,
            reports_start=reports_start,
        )
        #: Every item ever submitted, in order.
        self.submitted: list[WorkItem] = []
        #: Those that the engine asked to cancel, in order.
        self.cancelled: list[WorkItem] = []
        #: True once the engine has stopped the backend.
        self.stopped = False
        self._ends_cancelled = ends_cancelled
        #: Items that have not ended, in order, and whether each has begun.
        self._open: dict[WorkItem, bool] = {}
        self._place = Place(name)
        self._submission = asyncio.Event()

    @property
    def items(self) -> list[WorkItem]:
        """What was submitted and has not ended, in order."""
        return list(self._open)

    def begun(self, item: WorkItem) -> bool:
        """Whether `item` has begun and not ended."""
        return self._open.get(item, False)

    async def submitted_items(self, count: int) -> list[WorkItem]:
        """Wait until at least `count` items are there that have not ended; all of these."""
        while len(self._open) < count:
            self._submission.clear()
            await self._submission.wait()
        return self.items

    # --- what the test decides ---------------------------------------------------------------------------------------

    def begin(self, item: WorkItem) -> None:
        """`item` begins to run."""
        self._check(item)
        if self._open[item]:
            raise ValueError(f"{item!r} has begun already")
        self._open[item] = True
        self._reporter.started(item, self._place, time.time())

    def finish(self, item: WorkItem, value: object = None, *, seconds: float = 1.0) -> None:
        """`item` ends well, with `value`, having run for `seconds`."""
        self._end(item, value, None, seconds)

    def fail(self, item: WorkItem, error: BaseException, *, seconds: float = 1.0) -> None:
        """`item` ends with what its function raised."""
        self._end(item, None, error, seconds)

    def call(self, item: WorkItem) -> None:
        """Call the function of `item` here and now, and end `item` as it ends."""
        self._check(item)
        try:
            value = item.definition.fn(*item.args, **item.kwargs)
        except Exception as error:
            self.fail(item, error)
        else:
            self.finish(item, value)

    def lose(
        self, item: WorkItem, reason: str = "the worker was ended", *, exit_code: int | None = -9, alone: bool = True
    ) -> None:
        """The worker of `item` dies; it takes the item with it, or the item had not begun and may run elsewhere."""
        begun = self._take(item)
        self._reporter.lost(item, Loss(reason, exit_code=exit_code, begun=begun, alone=alone))

    def end_cancelled(self, item: WorkItem) -> None:
        """`item`, which the engine asked to cancel, is dead."""
        if item not in self.cancelled:
            raise ValueError(f"{item!r} was not cancelled")
        self._end(item, None, asyncio.CancelledError(), 0.0)

    def break_down(self, reason: str) -> None:
        """The backend breaks as a whole, and all that is on it is lost."""
        self._open.clear()
        self._reporter.broken(reason)

    def _check(self, item: WorkItem) -> None:
        if item not in self._open:
            known = "has ended already" if item in self.submitted else "was never submitted"
            raise ValueError(f"{item!r} {known}")

    def _take(self, item: WorkItem) -> bool:
        self._check(item)
        return self._open.pop(item)

    def _end(self, item: WorkItem, value: object, error: BaseException | None, seconds: float) -> None:
        self._take(item)
        now = time.time()
        self._reporter.finished(item, Outcome(value, error, now - seconds, now, self._place))

    # --- the contract ------------------------------------------------------------------------------------------------

    async def start(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def submit(self, items: Sequence[WorkItem]) -> None:
        self.submitted += items
        self._open.update(dict.fromkeys(items, False))
        self._submission.set()

    def cancel(self, item: WorkItem) -> None:
        item.cancelled = True
        self.cancelled.append(item)
        if self._ends_cancelled and item in self._open:
            self.end_cancelled(item)

    async def stop(self, grace: float) -> None:
        self.stopped = True
        for item in self.items:
            self._end(item, None, asyncio.CancelledError(), 0.0)


class RecordingReporter:
    """A `Reporter` that keeps what a backend tells it, for tests of a backend without an engine.

    Made on the event loop of the test; reports may come from any thread.
    """

    def __init__(self, work_dir: str = ".asyncflow") -> None:
        self.work_dir = os.path.abspath(work_dir)
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        #: Every report in the order in which it came: which, and what it said.
        self.log: list[tuple[str, WorkItem, object]] = []
        #: Why the backend broke; None while it has not.
        self.breakdown: str | None = None
        #: What it told of its hosts, in the order in which it came.
        self.figures: list[HostFigures] = []

    def started(self, item: WorkItem, place: Place, time: float) -> None:
        self._keep("started", item, place)

    def finished(self, item: WorkItem, outcome: Outcome) -> None:
        self._keep("finished", item, outcome)

    def lost(self, item: WorkItem, loss: Loss) -> None:
        self._keep("lost", item, loss)

    def broken(self, reason: str) -> None:
        self.breakdown = reason
        self._loop.call_soon_threadsafe(self._changed.set)

    def resized(self) -> None:
        """Of no interest here."""

    def measured(self, figures: HostFigures) -> None:
        self.figures.append(figures)
        self._loop.call_soon_threadsafe(self._changed.set)

    def _keep(self, report: str, item: WorkItem, content: object) -> None:
        self.log.append((report, item, content))
        self._loop.call_soon_threadsafe(self._changed.set)

    def reports(self, item: WorkItem) -> list[str]:
        """Which reports came for `item`, in order: "started", "finished", "lost"."""
        return [report for report, subject, _ in list(self.log) if subject is item]

    def ends(self, item: WorkItem) -> list[Outcome | Loss]:
        """The end reports of `item`: one, when it has ended and the backend keeps the contract."""
        return [
            content
            for _, subject, content in list(self.log)
            if subject is item and isinstance(content, (Outcome, Loss))
        ]

    async def end(self, item: WorkItem) -> Outcome | Loss:
        """Wait for the first end report of `item`."""
        while not self.ends(item):
            await self._next()
        return self.ends(item)[0]

    async def start(self, item: WorkItem) -> None:
        """Wait for the first report that `item` has started."""
        while "started" not in self.reports(item):
            await self._next()

    async def measurements(self, count: int) -> list[HostFigures]:
        """Wait until hosts were told of `count` times; all that was told."""
        while len(self.figures) < count:
            await self._next()
        return list(self.figures)

    async def _next(self) -> None:
        # Cleared only after the wait: a report between the caller's look and this line has set it and is seen.
        await self._changed.wait()
        self._changed.clear()
