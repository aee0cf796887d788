"""Executables of a cluster that stands in an allocation: job steps beside its workers."""

from __future__ import annotations

from collections.abc import Sequence

from asyncflow.backends.allocation import Allocation
from asyncflow.backends.contract import ItemReports, WorkItem
from asyncflow.backends.dask.node import Node, Share
from asyncflow.backends.step_runner import StepRunner


class JobSteps:
    """Runs executables as steps of the allocation's job."""

    def __init__(
        self, allocation: Allocation, reports: ItemReports, nodes: Sequence[Node], *, name: str, grace: float
    ) -> None:
        self._runner = StepRunner(allocation, reports, name=name, grace=grace)

    def run(self, item: WorkItem, shares: Sequence[Share]) -> None:
        """Run `item` there. Which GPUs it gets there is SLURM's choice."""
        self._runner.run(item, {share.node.name: share.ranks for share in shares})

    def cancel(self, item: WorkItem) -> None:
        """End `item`."""
        self._runner.cancel(item)

    async def stop(self, grace: float) -> None:
        """Cancel what runs, and wait until it is dead and reported."""
        await self._runner.stop(grace)
