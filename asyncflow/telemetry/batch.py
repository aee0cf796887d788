"""What the bus hands on at each look: what has happened since the last one."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

from asyncflow.backends.contract import HostFigures
from asyncflow.component import Component
from asyncflow.telemetry.record import PastAttempt


@dataclass
class Batch:
    """One look's worth. Every attempt's start and end is in exactly one batch."""

    #: Components of which an attempt runs: that is in `retried` or `ended` of a later batch, with `seen_running`.
    started: list[Component] = field(default_factory=list)
    #: Attempts that ended and that another one follows.
    retried: list[PastAttempt] = field(default_factory=list)
    #: Components that ended.
    ended: list[Component] = field(default_factory=list)
    #: Spans of the user's own that workers sent back, packed.
    spans: list[bytes] = field(default_factory=list)
    #: Figures of hosts, and the backend that each belongs to; None for the engine's own host.
    hosts: list[tuple[str | None, HostFigures]] = field(default_factory=list)
    #: All that happened, as lines of the file, one or more together, without the last newline.
    lines: list[bytes] = field(default_factory=list)

    #: How many have not taken it yet.
    takers: int = 1
    _lock: Lock = field(default_factory=Lock)

    @property
    def events(self) -> int:
        """How many events its lines tell of."""
        return sum(lines.count(b"\n") + 1 for lines in self.lines)

    @property
    def weight(self) -> int:
        """About how many bytes it keeps."""
        return sum(map(len, self.lines)) + 1000 * len(self.ended) + sum(map(len, self.spans))

    def taken(self) -> None:
        """One of the takers needs it no more; after the last one it keeps nothing of the user's."""
        with self._lock:
            self.takers -= 1
            if self.takers:
                return
        for component in self.ended:
            component.error = component.told = None
        for past in self.retried:
            past.error = None
