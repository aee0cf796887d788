"""A Dask cluster that runs, as a session uses it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from distributed import Client
from distributed.comm.core import connect
from distributed.security import Security

from asyncflow.backends.contract import ItemReports
from asyncflow.backends.dask.dispatcher import Steps
from asyncflow.backends.dask.node import Node
from asyncflow.description import Resources

#: Seconds for a scheduler that is known to run to answer.
_ANSWER = 30.0


class MakeSteps(Protocol):
    """Makes what runs executables beside the agents."""

    def __call__(self, reports: ItemReports, nodes: Sequence[Node], *, name: str, grace: float) -> Steps:
        """`nodes` are those that there are at any time, `grace` seconds between TERM and KILL for what is cancelled."""


class Connection:
    """A cluster, a client of ours on it, and what of these we must close. On the backend's own loop."""

    def __init__(self, client: Client, own_cluster: Any = None, *, may_grow: bool = True) -> None:
        self.client = client
        #: Runs executables beside the agents; None where these run them.
        self.steps: MakeSteps | None = None
        #: MB (10**6 bytes) that such an executable holds for each core where its task names no memory.
        self.memory_per_core = 0
        #: What each of its workers has, where that is known before they have come; it has no others then.
        self.sizes: Sequence[Resources] = ()
        #: Whether it may come to have other workers than it has, when these are asked for.
        self.may_grow = may_grow
        self._own_cluster = own_cluster

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return address_of(self.client)

    async def workers(self) -> dict[str, str]:
        """The names of the workers that there are now, by address."""
        scheduler: Any = self.client.scheduler
        info = await scheduler.identity(n_workers=-1)
        return {address: str(worker["name"]) for address, worker in info["workers"].items()}

    @property
    def security(self) -> Security:
        """With which everything here is connected."""
        security: Security = self.client.security
        return security

    async def ended(self) -> str:
        """Wait until the cluster is gone; why."""
        # A connection that says nothing ends when the scheduler does.
        address = self.address
        with contextlib.suppress(OSError):
            comm = await connect(address, _ANSWER, **self.security.get_connection_args("client"))
            try:
                await comm.read()
            finally:
                comm.abort()
        return f"the Dask scheduler at {address} is gone"

    async def close(self) -> None:
        """Close the client, and the cluster where it is ours."""
        client: Any = self.client
        with _quietly():
            await client.close()
        if self._own_cluster is not None:
            await self._own_cluster.close()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """A client that looks for its scheduler when it is closed would complain of that at length."""
    log = logging.getLogger("distributed.client")
    log.addFilter(_is_news)
    try:
        yield
    finally:
        log.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


def address_of(client: Client) -> str:
    """Of the scheduler that `client` is connected to. Raises ConnectionError."""
    scheduler: Any = client.scheduler
    if scheduler is None:
        raise ConnectionError("the Dask client is closed")
    return str(scheduler.address)
