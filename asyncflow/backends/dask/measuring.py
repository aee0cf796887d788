"""Which agents measure their hosts: one each, as several may share one. Everything here runs on the backend's loop."""

from __future__ import annotations

from collections.abc import Iterable

from asyncflow.backends.contract import host_name
from asyncflow.backends.dask.node import Node


class Measuring:
    """Has every host measured but the engine's own, which telemetry does itself."""

    def __init__(self, interval: float, nodes: Iterable[Node]) -> None:
        """Begin with those that there are, every `interval` seconds."""
        self._interval = interval
        self._own = host_name()
        self._by: dict[str, Node] = {}
        for node in nodes:
            self.joined(node)

    def joined(self, node: Node) -> None:
        """A node has come."""
        if node.host != self._own and node.host not in self._by:
            self._by[node.host] = node
            node.wire.post("measure", (self._interval,))

    def left(self, node: Node, others: Iterable[Node]) -> None:
        """It has gone; of the `others` one on its host goes on."""
        if self._by.get(node.host) is node:
            del self._by[node.host]
            for other in others:
                self.joined(other)
