"""A Dask cluster of plain processes on loopback, whose workers a test may kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

_QUIET = {"DASK_LOGGING__DISTRIBUTED": "error", "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "30s"}


_LOCAL = ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]


class DaskCluster:
    """A scheduler, and workers that are not restarted when they die."""

    def __init__(self, folder: Path) -> None:
        """Its scheduler file and its logs lie in `folder`."""
        self.scheduler_file = folder / "scheduler.json"
        self._log = (folder / "log").open("w")
        self._scheduler = self._start("dask_scheduler", *_LOCAL, "--port", "0")
        while not self._has_address():
            assert self._scheduler.poll() is None, "the scheduler did not start"
            time.sleep(0.05)  # it tells by this file alone
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"distributed.cli.{program}",
                "--scheduler-file",
                str(self.scheduler_file),
                *arguments,
            ],
            env={**os.environ, **_QUIET, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def _has_address(self) -> bool:
        try:
            return bool(self.address)
        except (OSError, ValueError):
            return False

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return str(json.loads(self.scheduler_file.read_text())["address"])

    def add(self, *names: str, threads: int = 1) -> None:
        """Start workers of these names."""
        for name in names:
            options = [*_LOCAL, "--no-nanny", "--nthreads", str(threads)]
            self.workers[name] = self._start(
                "dask_worker", *options, "--memory-limit", "1GB", "--name", name, "--death-timeout", "20"
            )

    def kill(self, name: str) -> None:
        """End a worker, and what runs on it, as the death of its node would."""
        worker = self.workers.pop(name)
        for process in [*psutil.Process(worker.pid).children(recursive=True), worker]:
            process.kill()
        worker.wait()

    def kill_scheduler(self) -> None:
        """End the scheduler without a word."""
        self._scheduler.kill()
        self._scheduler.wait()

    def stop(self) -> None:
        """End all of it. Without ceremony: a worker whose scheduler goes at the same time takes ten seconds."""
        for name in list(self.workers):
            self.kill(name)
        self.kill_scheduler()
        self._log.close()
