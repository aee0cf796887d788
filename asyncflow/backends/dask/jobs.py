"""Dask workers as SLURM jobs of their own, from a login node: what `DaskBackend.slurm` is given."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask

from asyncflow import options
from asyncflow.backends.dask.interfaces import own_address
from asyncflow.errors import InvalidOptionError


@dataclass(frozen=True)
class Jobs:
    """How many jobs of which size; the names are dask-jobqueue's, or sbatch's."""

    #: Jobs at a time.
    jobs: int
    #: Cores of each.
    cores: int
    #: As dask-jobqueue takes it: "4GB".
    memory: str
    #: As sbatch takes it: "01:00:00".
    walltime: str
    #: The fewest jobs, where their number goes with the work; None always asks for all of them.
    least: int | None = None
    queue: str | None = None
    account: str | None = None
    interface: str | None = None
    #: Further lines for the head of the job script: "--constraint=haswell".
    directives: Sequence[str] = ()
    #: Shell commands that the job runs first: "module load python".
    prologue: Sequence[str] = ()
    #: Whatever else dask-jobqueue's SLURMCluster takes.
    further: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options.whole("jobs", self.jobs, 1)
        options.whole("cores", self.cores, 1)
        if self.least is not None and options.whole("adapt", self.least, 0) > self.jobs:
            raise InvalidOptionError("adapt", self.least, f"the fewest jobs, at most jobs={self.jobs}")

    async def start(self, security: Any) -> Any:
        """A running SLURMCluster, on this loop, whose jobs are on their way."""
        slurm_cluster = load()
        interface = self.interface or _configured("interface")
        given: dict[str, Any] = {
            "cores": self.cores,
            "processes": 1,
            "memory": self.memory,
            "walltime": self.walltime,
            "queue": self.queue,
            "account": self.account,
            "interface": interface,
            "security": security,
            # None leaves these to the site's configuration.
            "job_extra_directives": list(self.directives) or None,
            "job_script_prologue": list(self.prologue) or None,
            # Without these, both would listen on all interfaces, their web servers too.
            "scheduler_options": {
                "host": own_address(interface),
                "dashboard": False,
                "dashboard_address": "127.0.0.1:0",
            },
            "worker_command": "asyncflow.backends.dask.job_worker",
            # For the certificates, which the jobs must find; what is said here is also the default, with a warning.
            "shared_temp_directory": _configured("shared-temp-directory") or os.getcwd(),
        }
        cluster: Any = slurm_cluster(**{**given, **self.further}, asynchronous=True)
        await cluster
        if self.least is None:
            cluster.scale(jobs=self.jobs)
        else:
            cluster.adapt(minimum_jobs=self.least, maximum_jobs=self.jobs)
        return cluster


def _configured(setting: str) -> Any:
    """What the site's configuration of dask-jobqueue says."""
    return dask.config.get(f"jobqueue.slurm.{setting}", None)


def load() -> Any:
    """dask-jobqueue's class. Its import sets a handler for Ctrl-C, which is undone here; first on the main thread."""
    name = "dask_jobqueue.slurm"
    if name not in sys.modules:
        if threading.current_thread() is not threading.main_thread():
            raise ImportError("dask-jobqueue can only be imported on the main thread: make the backend there")
        handler = signal.getsignal(signal.SIGINT)
        try:
            importlib.import_module(name)
        finally:
            signal.signal(signal.SIGINT, handler)
    return sys.modules[name].SLURMCluster
