"""Messages between the engine and the agents on the cluster, over Dask's own connections.

A frame is what was said since the last one: small tuples, pickled together, and beside them the segments (pickled
arguments, results, and the buffers that these refer to), which Dask sends as they are. Both ends are the engine's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from distributed.comm.core import Comm, CommClosedError
from distributed.protocol.serialize import to_serialize

from asyncflow.backends.payload import Segment


class Message(NamedTuple):
    """What is said, with which data, and the segments that belong to it."""

    verb: str
    data: tuple[Any, ...]
    segments: Sequence[Segment]


class Wire:
    """One end of a connection. Everything here runs on the loop of its connection."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self._posted: list[tuple[str, tuple[Any, ...], int]] = []
        self._segments: list[Segment] = []
        self._something = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    @property
    def peer(self) -> str:
        """The address of the other end."""
        return str(self._comm.peer_address)

    def post(self, verb: str, data: tuple[Any, ...] = (), segments: Sequence[Segment] = ()) -> None:
        """Say something; it leaves with whatever else is said in this turn of the loop."""
        self._posted.append((verb, data, len(segments)))
        self._segments.extend(segments)
        if self._sending is None:
            self._sending = asyncio.ensure_future(self._send())

    async def _send(self) -> None:
        # An end of the connection is noticed where it is read.
        with contextlib.suppress(OSError, CommClosedError):
            while self._posted:
                posted, self._posted = self._posted, []
                segments, self._segments = self._segments, []
                words = pickle.dumps(posted, 5)
                await self._comm.write({"words": words, "segments": [to_serialize(_flat(each)) for each in segments]})
        self._sending = None

    async def messages(self) -> AsyncIterator[Message]:
        """What the other end says, until the connection ends."""
        while True:
            try:
                frame = await self._comm.read()
            except (OSError, CommClosedError):
                return
            position, segments = 0, frame["segments"]
            for verb, data, count in pickle.loads(frame["words"]):
                yield Message(verb, data, segments[position : position + count])
                position += count

    async def close(self) -> None:
        """Send what was said, then end the connection."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=1.0)
        self.abort()

    def abort(self) -> None:
        """End the connection now."""
        self._comm.abort()


def _flat(segment: Segment) -> memoryview:
    return memoryview(segment).cast("B")
