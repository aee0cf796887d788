"""Runs blocks: coroutines on the engine's own loop, behind the same contract as any backend."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from time import time
from typing import Any

from asyncflow.backends import origin
from asyncflow.backends.body import task_error
from asyncflow.backends.contract import Capabilities, Outcome, Place, Reporter, WorkItem
from asyncflow.description import Resources

_log = logging.getLogger("asyncflow")

#: Blocks wait for tasks, so limiting them could make a graph wait for itself.
_UNLIMITED = 10**9


class BlockRunner:
    """Each block is an `asyncio.Task` of the engine's loop, in the context of its call."""

    name = "blocks"

    def __init__(self) -> None:
        self.capabilities = Capabilities(
            workers=_UNLIMITED,
            total=Resources(),
            shares_memory=True,
            concurrency=_UNLIMITED,
            cancels_functions=True,
            cancels_executables=True,
            survives_worker_loss=True,
        )
        self._place = Place(self.name)
        self._tasks: dict[WorkItem, asyncio.Task[None]] = {}

    async def start(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def submit(self, items: Sequence[WorkItem]) -> None:
        loop = asyncio.get_running_loop()
        for item in items:
            if item.origin is not None and item.context is not None:
                origin.enter(item.origin, item.context)
            create = partial(loop.create_task, self._host(item), name=f"{item.definition.name} ({item.uid})")
            # The task copies the context that it is created in.
            task = item.context.run(create) if item.context is not None else create()
            if not task.done():  # as one may be where the loop starts tasks eagerly
                task.add_done_callback(partial(self._never_begun, item))
                self._tasks[item] = task

    async def _host(self, item: WorkItem) -> None:
        started = time()
        self._reporter.started(item, self._place, started)
        value: Any = None
        error: BaseException | None = None
        try:
            value = await item.definition.fn(*item.args, **item.kwargs)
        except asyncio.CancelledError as cancelled:
            error = cancelled
        except BaseException as raised:
            error = task_error(item.definition.name, raised)
        self._tasks.pop(item, None)
        self._reporter.finished(item, Outcome(value, error, started, time(), self._place))

    def _never_begun(self, item: WorkItem, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step ends without having run a line of `_host`."""
        if self._tasks.pop(item, None) is not None:
            now = time()
            self._reporter.finished(item, Outcome(None, asyncio.CancelledError(), now, now, self._place))

    def cancel(self, item: WorkItem) -> None:
        task = self._tasks.get(item)
        if task is not None:
            item.cancelled = True
            task.cancel()

    async def stop(self, grace: float) -> None:
        # A block may itself have called for the shutdown; it cannot be waited for by itself.
        current = asyncio.current_task()
        pending = {task for task in self._tasks.values() if task is not current}
        if not pending:
            return
        _, stubborn = await asyncio.wait(pending, timeout=grace)
        for task in stubborn:
            _log.warning("block %s did not end within %g s of being cancelled", task.get_name(), grace)
