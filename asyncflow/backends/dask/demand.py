"""How Dask's scheduler sees the work that it does not schedule: by placeholders, which do nothing but hold a thread.

Adaptive clusters ask their scheduler how many workers to have, and which of them to close. For each task that waits
there is a placeholder that waits, and for each that runs one that holds a thread of the worker where it runs.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import dask
from distributed import Client, Worker, get_worker

from asyncflow.backends.dask.agent import Agent
from asyncflow.backends.dask.node import Node

#: The most placeholders of what waits: more tasks than this ask for no more workers.
_MOST = 1000
#: Under which the scheduler keeps what it knows of them all: it takes the part of a name before a number for that.
_PREFIX = "asyncflow_hold"
#: What the scheduler takes one to last: for each it should have a thread.
_LASTING = "1h"


def hold(handler: str, name: str) -> None:
    """Hold this thread of a Dask worker until the engine lets go of `name`, or its agent ends."""
    worker: Worker = get_worker()
    serve: Any = worker.handlers.get(handler)
    if serve is not None:
        agent: Agent = serve.__self__
        agent.hold(name).wait()


class Demand:
    """The placeholders of one engine. On the backend's own loop."""

    def __init__(self, client: Client, handler: str) -> None:
        """`handler` is the name under which the engine's agents serve."""
        self._client: Any = client
        self._handler = handler
        self._numbers = itertools.count(1)
        #: Placeholders by name, with the address of the worker that each is for; "" is any.
        self._held: dict[str, tuple[str, Any]] = {}
        # Heeded where the scheduler is in this process, as it is where the cluster is an object here.
        durations = dask.config.get("distributed.scheduler.default-task-durations", {})
        dask.config.set({"distributed.scheduler.default-task-durations": {**durations, _PREFIX: _LASTING}})

    def adjust(self, nodes: list[Node], waiting: int, keeping: set[Node]) -> None:
        """Let there be as many as there is work; `keeping` are nodes whose results are still needed."""
        wanted = Counter({node.address: min(node.total.cores, max(len(node.out), node in keeping)) for node in nodes})
        wanted[""] = min(_MOST, waiting)
        for name, (address, _) in list(self._held.items()):
            if wanted[address] > 0:
                wanted[address] -= 1
            else:
                self._let_go(name, nodes)
        for address, count in wanted.items():
            for _ in range(count):
                self._add(address)

    def _add(self, address: str) -> None:
        name = f"{_PREFIX}-{next(self._numbers)}-{self._handler}"
        where = {"workers": [address], "allow_other_workers": False} if address else {}
        self._held[name] = address, self._client.submit(hold, self._handler, name, key=name, pure=False, **where)

    def _let_go(self, name: str, nodes: list[Node]) -> None:
        _, future = self._held.pop(name)
        future.release()
        for node in nodes:
            node.wire.post("release", (name,))
