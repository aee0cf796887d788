"""A cluster that the engine starts for itself: the scheduler on the backend's own loop, workers as processes.

Not Dask's `LocalCluster`: it starts its workers with `multiprocessing`, which imports the user's script in each, so
that a script without a `__main__` guard starts itself again.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from distributed import Scheduler
from distributed.security import Security

from asyncflow.backends.aside import aside
from asyncflow.backends.orphans import SESSION, Family

_log = logging.getLogger("distributed")

#: Seconds that a worker gets to end by itself.
_GRACE = 3.0
#: Seconds without a scheduler after which a worker ends by itself.
_DEATH = 60


class OwnCluster:
    """A scheduler, and the commands that start its workers. On the backend's own loop."""

    def __init__(self, host: str, security: Security | None) -> None:
        """`host` is the address to listen on, and nothing else is listened on."""
        self._host = host
        self._security = security
        self._scheduler: Any = None
        self._family = Family(_GRACE)
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return str(self._scheduler.address)

    async def start(self, launcher: Sequence[str], options: Sequence[str]) -> None:
        """Start the scheduler, and workers with these further `options`: one by each `launcher` command line."""
        # Dask would write a dozen lines for each start and stop into the user's terminal.
        self._level = _log.level
        _log.setLevel(max(self._level, logging.WARNING))
        self._scheduler = Scheduler(
            host=self._host,
            port=0,
            dashboard=False,
            dashboard_address=f"{self._host}:0",  # of its web server, which there is without a dashboard too
            security=self._security,
        )
        await self._scheduler
        await aside(partial(self._launch, launcher, options))

    def _launch(self, launcher: Sequence[str], options: Sequence[str]) -> None:
        self._family.guard()
        program = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--no-dashboard"]
        environment = {
            "DASK_LOGGING__DISTRIBUTED": "warning",
            **os.environ,
            SESSION: self._family.session,
            # What the engine can import, its workers can.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._processes.append(
            subprocess.Popen(
                [*launcher, *program, "--death-timeout", str(_DEATH), *options],
                stdin=subprocess.DEVNULL,
                env=environment,
                # Out of reach of the terminal's signals: the engine ends it in order.
                start_new_session=True,
            )
        )

    async def close(self) -> None:
        """End the workers and the scheduler."""
        for process in self._processes:
            process.terminate()
        await aside(self._wait)
        if self._scheduler is not None:
            await self._scheduler.close()
            _log.setLevel(self._level)

    def _wait(self) -> None:
        for process in self._processes:
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._family.disband()
