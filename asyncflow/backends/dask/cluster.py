"""From what the user has (nothing, an address, a file, a client, a cluster) to a cluster and a client of ours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.deploy.cluster import Cluster
from distributed.security import Security

from asyncflow.backends.allocation import Allocation
from asyncflow.backends.aside import aside
from asyncflow.backends.dask.connection import Connection, address_of
from asyncflow.backends.dask.job_steps import JobSteps
from asyncflow.backends.dask.jobs import Jobs
from asyncflow.backends.dask.own import OwnCluster
from asyncflow.description import Resources
from asyncflow.errors import InvalidOptionError

_LEGAL = "an address ('tcp://host:port'), a scheduler file, a Dask Client or cluster, or None for a cluster of its own"


_ADDRESS = re.compile(r"\w+://|[\w.-]+:\d+$")


def check(where: Any) -> None:
    """Raise InvalidOptionError where a cluster cannot be named so."""
    if where is not None and not isinstance(where, (str, Path, Client, Cluster, Jobs)):
        raise InvalidOptionError("cluster", where, _LEGAL)


@dataclass(frozen=True)
class Wish:
    """What the user asked for."""

    where: Any
    #: Of the worker of a cluster on this machine.
    size: Resources
    interface: str | None
    security: Security | None
    #: Seconds for the scheduler to answer.
    timeout: float


async def connect(wish: Wish) -> Connection:
    """Connect to a cluster that runs, or start one: in an allocation on all of its nodes, else on this machine."""
    where, security = wish.where, wish.security
    if where is None:
        return await _start(wish)
    if isinstance(where, Jobs):
        jobs = await where.start(security)
        grows = where.least is not None
        address = jobs.scheduler_address
        return await _connected(jobs, grows, wish.timeout, address=address, security=jobs.security)
    if isinstance(where, Client):
        return Connection(await _client(wish.timeout, address=address_of(where), security=where.security))
    if isinstance(where, Cluster):
        cluster: Any = where
        return Connection(await _client(wish.timeout, address=cluster.scheduler_address, security=cluster.security))
    if isinstance(where, Path) or not _ADDRESS.match(where):
        return Connection(await _client(wish.timeout, scheduler_file=str(where), security=security))
    return Connection(await _client(wish.timeout, address=where, security=security))


async def _start(wish: Wish) -> Connection:
    own = OwnCluster(wish.interface, wish.security)
    try:
        allocation = await aside(Allocation.current)
        await (own.start_here(wish.size) if allocation is None else own.start_in(allocation))
    except BaseException:
        await own.close()
        raise
    connection = await _connected(own, False, wish.timeout, address=own.address, security=wish.security)
    if allocation is not None:
        connection.steps = partial(JobSteps, allocation)
        connection.memory_per_core = allocation.memory_per_core
        connection.sizes = [node.resources for node in allocation.nodes]
    return connection


async def _connected(own: Any, may_grow: bool, timeout: float, **options: Any) -> Connection:
    """A connection that closes the cluster with it."""
    try:
        return Connection(await _client(timeout, **options), own, may_grow=may_grow)
    except BaseException:
        await own.close()
        raise


async def _client(timeout: float, **options: Any) -> Client:
    client: Client = Client(**options, asynchronous=True, set_as_default=False, timeout=timeout)
    await client
    return client
