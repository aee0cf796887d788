"""Executables run as job steps by a program inside an allocation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from asyncflow.backends.allocation import Allocation
from asyncflow.backends.contract import Definition, ExecutableOptions, Kind, Outcome, Place, WorkDied, WorkItem
from asyncflow.backends.step_runner import StepRunner
from asyncflow.description import TaskDescription


class Run:
    """One executable: its item, and what was reported of it."""

    def __init__(self, item: WorkItem) -> None:
        self.item = item
        self.place: Place | None = None
        self.end: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


class Runs:
    """A runner of job steps, and all that it reports."""

    def __init__(self, grace: float = 5.0) -> None:
        allocation = Allocation.current()
        assert allocation is not None
        self.allocation = allocation
        self.runner = StepRunner(allocation, self, name="steps", grace=grace)
        self._loop = asyncio.get_running_loop()
        self._runs: dict[WorkItem, Run] = {}
        self._numbers = count(1)

    def start(
        self,
        function: Callable[[], Any],
        nodes: Mapping[str, int],
        description: TaskDescription | None = None,
        directory: str | None = None,
        **options: Any,
    ) -> Run:
        """Run what `function` returns, with so many ranks on each of `nodes`."""
        definition = Definition(
            function,
            Kind.EXECUTABLE,
            getattr(function, "__name__", "command"),
            is_async=asyncio.iscoroutinefunction(function),
            description=description,
            executable=ExecutableOptions(capture_stdio=directory is not None, **options),
        )
        item = WorkItem(definition, (), {}, uid=f"task-{next(self._numbers)}")
        item.directory = directory
        run = self._runs[item] = Run(item)
        self.runner.run(item, nodes)
        return run

    def started(self, item: WorkItem, place: Place, time: float) -> None:
        self._runs[item].place = place

    def finished(self, item: WorkItem, outcome: Outcome) -> None:
        self._loop.call_soon_threadsafe(self._runs[item].end.set_result, outcome)


def told(outcome: Outcome) -> Any:
    """An outcome as plain data: its value, or what its error says."""
    error = outcome.error
    if error is None:
        return outcome.value
    data = {"type": type(error).__name__, "text": str(error), "host": getattr(error, "host", None)}
    data["code"] = getattr(error, "returncode", None)
    data["output"] = getattr(error, "output", None)
    return data | ({"text": error.loss.reason} if isinstance(error, WorkDied) else {})
