"""A cluster that the engine starts for itself: the scheduler on the backend's own loop, workers as processes.

Not Dask's `LocalCluster`: it starts its workers with `multiprocessing`, which imports the user's script in each, so
that a script without a `__main__` guard starts itself again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from distributed import Scheduler
from distributed.security import Security

from asyncflow.backends.allocation import AllocatedNode, Allocation
from asyncflow.backends.aside import aside
from asyncflow.backends.dask.interfaces import own_address
from asyncflow.backends.dask.security import variables_of
from asyncflow.backends.orphans import SESSION, Family
from asyncflow.description import Resources

_log = logging.getLogger("distributed")

#: Seconds that a worker gets to end by itself.
_GRACE = 3.0


class OwnCluster:
    """A scheduler, and processes that are workers, or that start some elsewhere. On the backend's own loop."""

    def __init__(self, interface: str | None, security: Security | None) -> None:
        """Everything listens on `interface` alone; None is loopback, or in an allocation what the nodes share."""
        self._interface = interface
        self._security = security
        self._scheduler: Any = None
        self._level = _log.level
        self._family = Family(_GRACE)
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return str(self._scheduler.address)

    async def start_here(self, size: Resources) -> None:
        """Start the scheduler and one worker on this machine."""
        self._interface = self._interface or "lo"
        await self._start_scheduler(own_address(self._interface))
        await aside(partial(self._launch, [], size))

    async def start_in(self, allocation: Allocation) -> None:
        """Start the scheduler here and a worker on each node of the allocation."""
        await self._start_scheduler(own_address(self._interface))
        for size, nodes in _by_size(allocation).items():
            await aside(partial(self._launch, _srun(nodes, size), size))

    async def _start_scheduler(self, host: str) -> None:
        # Dask would write a dozen lines for each start and stop into the user's terminal.
        _log.setLevel(max(self._level, logging.WARNING))
        self._scheduler = Scheduler(
            host=host,
            port=0,
            dashboard=False,
            dashboard_address=f"{host}:0",  # of its web server, which there is without a dashboard too
            security=self._security,
        )
        await self._scheduler

    def _launch(self, launcher: Sequence[str], size: Resources) -> None:
        self._family.guard()
        arguments = json.dumps([self.address, self._interface, size.cores, size.memory, size.gpus])
        environment = {
            "DASK_LOGGING__DISTRIBUTED": "warning",
            **os.environ,
            **variables_of(self._security),
            SESSION: self._family.session,
            # What the engine can import, its workers can.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._processes.append(
            subprocess.Popen(
                [*launcher, sys.executable, "-m", "asyncflow.backends.dask.start", arguments],
                stdin=subprocess.DEVNULL,
                env=environment,
                # Out of reach of the terminal's signals: the engine ends it in order.
                start_new_session=True,
            )
        )

    async def close(self) -> None:
        """Send the workers home, and end the scheduler."""
        scheduler = self._scheduler
        if scheduler is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                leaving = scheduler.retire_workers(list(scheduler.workers), close_workers=True, remove=True)
                await asyncio.wait_for(leaving, _GRACE)
        await aside(self._wait)
        if scheduler is not None:
            await scheduler.close()
            _log.setLevel(self._level)

    def _wait(self) -> None:
        # Sent home, they end by themselves; ended in the middle of that, a worker or `srun` complains loudly.
        for end in (_let_be, _terminate, _kill):
            for process in self._processes:
                end(process)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)
        self._family.disband()


def _let_be(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself."""


def _terminate(process: subprocess.Popen[bytes]) -> None:
    process.terminate()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()


def _by_size(allocation: Allocation) -> dict[Resources, list[AllocatedNode]]:
    groups: dict[Resources, list[AllocatedNode]] = {}
    for node in allocation.nodes:
        groups.setdefault(node.resources, []).append(node)
    return groups


def _srun(nodes: Sequence[AllocatedNode], size: Resources) -> list[str]:
    """One worker on each of the nodes: beside job steps, which find cores, memory and GPUs as free as without it."""
    count = str(len(nodes))
    where = ",".join(node.name for node in nodes)
    step = ["srun", "--overlap", "--mem=0", "--gres=none", "-N", count, "-n", count, "--ntasks-per-node=1"]
    return [*step, "-c", str(size.cores), "-w", where, "-J", "asyncflow-workers", "--kill-on-bad-exit=0"]
