"""From what the user has (nothing, an address, a file, a client, a cluster) to a cluster and a client of ours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.deploy.cluster import Cluster
from distributed.security import Security

from asyncflow.backends.allocation import Allocation
from asyncflow.backends.aside import aside
from asyncflow.backends.dask.jobs import Jobs
from asyncflow.backends.dask.own import OwnCluster
from asyncflow.description import Resources
from asyncflow.errors import InvalidOptionError

_LEGAL = "an address ('tcp://host:port'), a scheduler file, a Dask Client or cluster, or None for a cluster of its own"


_ADDRESS = re.compile(r"\w+://|[\w.-]+:\d+$")


class Connection:
    """A cluster that runs, a client of ours on it, and what of these we must close. On the backend's own loop."""

    def __init__(self, client: Client, own_cluster: Any = None, *, may_grow: bool = True) -> None:
        self.client = client
        #: The allocation on all of whose nodes it stands, and nowhere else.
        self.allocation: Allocation | None = None
        #: Whether it may come to have other workers than it has, when these are asked for.
        self.may_grow = may_grow
        self._own_cluster = own_cluster

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return _address(self.client)

    async def workers(self) -> dict[str, str]:
        """The names of the workers that there are now, by address."""
        scheduler: Any = self.client.scheduler
        info = await scheduler.identity(n_workers=-1)
        return {address: str(worker["name"]) for address, worker in info["workers"].items()}

    @property
    def security(self) -> Security:
        """With which everything here is connected."""
        return self.client.security  # type: ignore[no-any-return]  # untyped

    async def close(self) -> None:
        """Close the client, and the cluster where it is ours."""
        client: Any = self.client
        await client.close()
        if self._own_cluster is not None:
            await self._own_cluster.close()


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
        return Connection(await _client(wish.timeout, address=_address(where), security=where.security))
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
    connection.allocation = allocation
    return connection


async def _connected(own: Any, may_grow: bool, timeout: float, **options: Any) -> Connection:
    """A connection that closes the cluster with it."""
    try:
        return Connection(await _client(timeout, **options), own, may_grow=may_grow)
    except BaseException:
        await own.close()
        raise


async def _client(timeout: float, **options: Any) -> Client:
    client: Any = Client(**options, asynchronous=True, set_as_default=False, timeout=timeout)
    await client
    return client  # type: ignore[no-any-return]  # awaiting it is untyped


def _address(client: Client) -> str:
    scheduler: Any = client.scheduler
    if scheduler is None:
        raise ConnectionError("the Dask client is closed")
    return str(scheduler.address)
