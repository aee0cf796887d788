"""Executables of an allocation, each a job step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asyncflow.backends.allocation import Allocation
from asyncflow.backends.contract import ItemReports, WorkItem
from asyncflow.backends.executable import run_executable
from asyncflow.backends.item_threads import ItemThreads
from asyncflow.backends.steps import StepLaunch, Steps


class StepRunner:
    """Runs executables as job steps, as many at once as it is given: its caller has counted what they hold.

    No method blocks, and all are called on one thread; reports come from others.
    """

    def __init__(self, allocation: Allocation, reports: ItemReports, *, name: str, grace: float) -> None:
        """`grace` is seconds between TERM and KILL for one that is cancelled."""
        self._steps = Steps(allocation)
        self._threads = ItemThreads(reports, self._execute, name=name, grace=grace)

    def run(self, item: WorkItem, nodes: Mapping[str, int]) -> None:
        """Run `item` on these nodes, with so many ranks on each. Its end is reported when its step has ended.

        What it needs must be free there: SLURM may hang with a step that has to wait, if it has more ranks on one node
        than on another.
        """
        item.nodes = dict(nodes)
        self._threads.run(item, next(iter(nodes)))

    def cancel(self, item: WorkItem) -> None:
        """End `item`: TERM for all processes of its step, KILL after the grace."""
        self._threads.cancel(item)

    async def stop(self, grace: float) -> None:
        """Cancel what runs, wait until it is dead and reported, and end the threads."""
        await self._threads.stop(grace)

    def _execute(self, item: WorkItem, returned: Any) -> str:
        family = self._threads.family
        family.guard()
        return run_executable(item, returned, StepLaunch(item, family, self._steps, item.nodes))
