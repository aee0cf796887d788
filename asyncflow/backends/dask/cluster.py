"""From what the user has (nothing, an address, a file, a client, a cluster) to a cluster and a client of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distributed import Client
from distributed.deploy.cluster import Cluster
from distributed.security import Security

from asyncflow.backends.dask.own import OwnCluster
from asyncflow.errors import InvalidOptionError

_LEGAL = "an address ('tcp://host:port'), a scheduler file, a Dask Client or cluster, or None for a cluster of its own"


class Connection:
    """A cluster that runs, a client of ours on it, and what of these we must close. On the backend's own loop."""

    def __init__(self, client: Client, own_cluster: OwnCluster | None = None) -> None:
        self.client = client
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
    if where is not None and not isinstance(where, (str, Path, Client, Cluster)):
        raise InvalidOptionError("cluster", where, _LEGAL)


async def connect(where: Any, cores: int, memory: int, security: Security | None, timeout: float) -> Connection:
    """Connect to a cluster, or start one of `cores` and `memory` (MB) on this machine."""
    if where is None:
        return await _start(cores, memory, security, timeout)
    if isinstance(where, Client):
        return Connection(await _client(timeout, address=_address(where), security=where.security))
    if isinstance(where, Cluster):
        cluster: Any = where
        return Connection(await _client(timeout, address=cluster.scheduler_address, security=cluster.security))
    if isinstance(where, Path) or "://" not in where:
        return Connection(await _client(timeout, scheduler_file=str(where), security=security))
    return Connection(await _client(timeout, address=where, security=security))


async def _start(cores: int, memory: int, security: Security | None, timeout: float) -> Connection:
    own = OwnCluster("127.0.0.1", security)
    size = ["--nthreads", str(cores), "--nworkers", "1", "--memory-limit", f"{memory}MB"]
    try:
        await own.start([], ["--host", "127.0.0.1", "--name", "local", *size])
        return Connection(await _client(timeout, address=own.address, security=security), own)
    except BaseException:
        await own.close()
        raise


async def _client(timeout: float, **options: Any) -> Client:
    client: Any = Client(**options, asynchronous=True, set_as_default=False, timeout=timeout)
    await client
    return client  # type: ignore[no-any-return]  # awaiting it is untyped


def _address(client: Client) -> str:
    scheduler: Any = client.scheduler
    return str(scheduler.address)
