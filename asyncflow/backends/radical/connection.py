"""A pilot that runs, as a session of the engine uses it."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

from distributed import Client

from asyncflow.backends.contract import ItemReports
from asyncflow.backends.dask.connection import Connection
from asyncflow.backends.dask.node import Node
from asyncflow.backends.dask.wire import Message, Wire
from asyncflow.backends.radical.messages import PilotNode
from asyncflow.backends.radical.pilot import HeldElsewhereError, Pilot
from asyncflow.backends.radical.tasks import PilotTasks
from asyncflow.description import Resources

#: Seconds for the scheduler to answer.
_ANSWER = 60.0


class PilotConnection(Connection):
    """The workers on a pilot, and whoever holds it."""

    def __init__(
        self,
        client: Client,
        own: Pilot | None,
        wire: Wire,
        messages: AsyncIterator[Message],
        session: str,
        nodes: Sequence[PilotNode],
    ) -> None:
        """`own` is ended with it."""
        super().__init__(client, may_grow=False)
        self.steps = self._make_tasks
        self.sizes = [Resources(len(node.cores), len(node.gpus), node.memory) for node in nodes]
        self._own = own
        self._wire = wire
        self._messages = messages
        self._session = session
        self._nodes = nodes
        self._tasks: PilotTasks | None = None

    def _make_tasks(self, reports: ItemReports, nodes: Sequence[Node], *, name: str, grace: float) -> PilotTasks:
        self._tasks = PilotTasks(self._wire, self._session, self._nodes, reports, nodes, name=name, grace=grace)
        return self._tasks

    async def ended(self) -> str:
        """Hear what becomes of the pilot's tasks until it ends; why."""
        reason = await self._heard()
        if self._tasks is not None:
            self._tasks.lose()
        return reason

    async def _heard(self) -> str:
        async for verb, data, _ in self._messages:
            if verb == "task" and self._tasks is not None:
                self._tasks.heed(*data)
            elif verb == "broken":
                return str(data[0])
        return "the process that holds the pilot has ended"

    async def close(self) -> None:
        """Let the pilot go; where it is ours, end it."""
        await self._wire.close()
        await super().close()
        if self._own is not None:
            await self._own.stop()


async def attach(pilot: Pilot, own: Pilot | None) -> PilotConnection:
    """Connect to whoever holds `pilot`; `own` is ended with the connection. Raises OSError, HeldElsewhereError."""
    wire = await pilot.wire()
    try:
        wire.post("engine", (f"process {os.getpid()} on {socket.gethostname()}",))
        messages = wire.messages()
        try:
            verb, data, _ = await messages.__anext__()
        except StopAsyncIteration:
            raise HeldElsewhereError("the process that holds it has ended") from None
        if verb != "welcome":
            raise HeldElsewhereError(data[0])
        client: Any = Client(
            pilot.address(), security=pilot.security, asynchronous=True, set_as_default=False, timeout=_ANSWER
        )
        await client
    except BaseException:
        wire.abort()
        raise
    return PilotConnection(client, own, wire, messages, *data)
