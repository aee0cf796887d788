"""A backend that runs nothing: every task is done at once, with None. For dry runs and for measuring the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence

from asyncflow.backends.contract import Capabilities, Outcome, Place, Reporter, WorkItem
from asyncflow.description import Resources


class NoopBackend:
    """What `dry_run=True` uses. Every request is satisfiable."""

    def __init__(self, name: str = "noop") -> None:
        self.name = name
        self.capabilities = Capabilities(
            workers=10_000,
            total=Resources(10**9, 10**9, 10**9),
            shares_memory=True,
            concurrency=10_000,
            cancels_functions=True,
            cancels_executables=True,
            survives_worker_loss=True,
        )
        self._place = Place(name)

    async def start(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def submit(self, items: Sequence[WorkItem]) -> None:
        now = time.time()
        for item in items:
            self._reporter.finished(item, Outcome(None, None, now, now, self._place))

    def cancel(self, item: WorkItem) -> None:
        """Nothing to do: whatever was submitted has ended."""

    async def stop(self, grace: float) -> None:
        """Nothing to free."""
