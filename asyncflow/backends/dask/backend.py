"""The face of a Dask cluster towards the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncflow import options
from asyncflow.backends.contract import CONCURRENCY, Reporter
from asyncflow.backends.dask import cluster
from asyncflow.backends.dask.connection import Connection
from asyncflow.backends.dask.jobs import Jobs, load
from asyncflow.backends.dask.on_cluster import GRACE, LARGE, ClusterBackend
from asyncflow.backends.dask.security import secured
from asyncflow.backends.machine import resources_of

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster
    from distributed.security import Security


class DaskBackend(ClusterBackend):
    """Tasks on the workers of a Dask cluster.

    `where` is a scheduler's address or file, a Dask client, or a cluster (`LocalCluster`, `SLURMCluster`, ...); these
    stay the caller's to close. None starts a cluster and closes it: within a SLURM allocation on all of its nodes, else
    on this machine, with `workers` cores. `DaskBackend.slurm` submits jobs that are workers.

    On each worker of the cluster stands a pool of worker processes, as many as the worker has threads: tasks run in
    these, never in the Dask worker itself. Results of `large` bytes and more stay on the cluster: tasks there get them
    from each other, the engine only gets what is awaited.
    """

    def __init__(
        self,
        where: str | Path | Client | Cluster | Jobs | None = None,
        *,
        workers: int | None = None,
        name: str = "dask",
        gpus: int | tuple[str, ...] | None = None,
        memory: int | None = None,
        interface: str | None = None,
        security: Security | bool | None = None,
        concurrency: int = CONCURRENCY,
        large: int = LARGE,
        grace: float = GRACE,
        timeout: float = 60.0,
        patience: float | None = 60.0,
    ) -> None:
        """`gpus` (a number or ids) and `memory` (MB) are those of each worker of the cluster; by default it says so.

        A cluster of its own listens on loopback, within an allocation on the address of the node's name, or on the
        network `interface` named; with `security=True` it encrypts and admits only what has its certificate, made for
        the occasion (needs `cryptography`). `concurrency` is coroutines a core, `grace` seconds between TERM and KILL
        for a cancelled executable, `timeout` seconds to wait for the scheduler. A cluster that has lost its last worker
        and gets no other one for `patience` seconds counts as lost; None waits for ever.
        """
        cluster.check(where)
        super().__init__(
            name, concurrency=concurrency, large=large, grace=grace, patience=patience, gpus=gpus, memory=memory
        )
        local, _ = resources_of(workers, gpus, memory)
        seconds = options.seconds("timeout", timeout, positive=True)
        self._wish = cluster.Wish(where, local, interface, secured(security), seconds)

    @classmethod
    def slurm(
        cls,
        jobs: int,
        *,
        cores: int,
        memory: str,
        walltime: str,
        adapt: int | None = None,
        queue: str | None = None,
        account: str | None = None,
        interface: str | None = None,
        directives: Sequence[str] = (),
        prologue: Sequence[str] = (),
        further: Mapping[str, Any] | None = None,
        **backend: Any,
    ) -> DaskBackend:
        """Workers that are SLURM jobs of their own, submitted from a login node through dask-jobqueue.

        `jobs` of them, each with `cores`, `memory` ("16GB") and `walltime` ("01:00:00"); with `adapt` as many as there
        is work for, at least that many. `directives` are further lines for the job script's head, `prologue` commands
        that it runs first, `further` goes to dask-jobqueue's `SLURMCluster` as it is, the rest to the backend.
        """
        load()
        if adapt is not None:  # it may have none for long, with nothing to do or in SLURM's queue
            backend.setdefault("patience", None)
        size = Jobs(
            jobs, cores, memory, walltime, adapt, queue, account, interface, directives, prologue, further or {}
        )
        return cls(size, **backend)

    async def connect(self, reporter: Reporter) -> Connection:
        """Connect to the cluster that was named, or start one."""
        return await cluster.connect(self._wish)
