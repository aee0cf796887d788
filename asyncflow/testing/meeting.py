"""Where tasks and the test that called them meet: how a test knows, without a clock, what runs at this moment.

A task attends: it says that it is there, waits until the test lets it go, and says goodbye before it ends. It does so
over a socket, so that it may be a coroutine, a function on a thread or a process, or a command; a connection that is
lost without goodbye is work that died.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

Address = tuple[str, int]

_GO = b"go\n"
_BYE = b"bye\n"

#: The program of a command that attends; its arguments are host, port, weight and name.
_PROGRAM = """
import os, signal, socket, sys
if "stubborn" in sys.argv[5:]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "family" in sys.argv[5:]:
    os.fork()
    os.fork()
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    file = connection.makefile("rwb")
    file.write(f"{sys.argv[3]} {os.getpid()} {sys.argv[4]}\\n".encode())
    file.flush()
    if file.readline() == b"go\\n":
        file.write(b"bye\\n")
        file.flush()
        file.readline()
print(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
"""


class MeetingClosedError(ConnectionError):
    """The test ended before it let this task go."""


def attend(address: Address, name: str, weight: int = 1) -> str:
    """Be at the meeting until let go; `name` again."""
    with socket.create_connection(address) as connection, connection.makefile("rwb") as file:
        file.write(_hello(name, weight))
        file.flush()
        if file.readline() != _GO:
            raise MeetingClosedError(name)
        file.write(_BYE)
        file.flush()
        # Answered: whoever begins because this one has ended arrives after its goodbye.
        file.readline()
    return name


async def attend_async(address: Address, name: str, weight: int = 1) -> str:
    """The same as a coroutine."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(_hello(name, weight))
        if await reader.readline() != _GO:
            raise MeetingClosedError(name)
        writer.write(_BYE)
        await reader.readline()
    finally:
        writer.close()
    return name


def attend_command(address: Address, name: str, weight: int = 1, *how: str) -> list[str]:
    """A command that attends, then prints its CUDA_VISIBLE_DEVICES.

    With "stubborn" it ignores TERM, with "family" it is there four times over: itself, two children and a grandchild.
    """
    host, port = address
    return [sys.executable, "-I", "-S", "-c", _PROGRAM, host, str(port), str(weight), name, *how]


def _hello(name: str, weight: int) -> bytes:
    return f"{weight} {os.getpid()} {name}\n".encode()


@dataclass(frozen=True)
class Attendant:
    """Who is at a meeting."""

    name: str
    pid: int
    weight: int


class Meeting:
    """The test's side; lives on the test's event loop. Closing it sends home whoever still waits."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        """`host` is the address of this machine under which the workers reach it."""
        self._host = host
        self._connections: dict[_Connection, Attendant | None] = {}
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._let_go: set[str] | None = set()
        #: Whoever came, in order.
        self.arrived: list[Attendant] = []
        #: Names of those who said goodbye, and of those who vanished without, in order.
        self.left: list[str] = []
        self.vanished: list[str] = []
        #: The largest weight that was there at once.
        self.most = 0

    async def __aenter__(self) -> Meeting:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), self._host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        self.address: Address = (self._host, port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.hang_up()
        await self._server.wait_closed()
        await self.until(lambda: not self._connections)

    @property
    def present(self) -> list[Attendant]:
        """Who is there now."""
        return [attendant for attendant in self._connections.values() if attendant is not None]

    @property
    def names(self) -> list[str]:
        """Names of whoever came, in order."""
        return [attendant.name for attendant in self.arrived]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition`, which looks at this meeting, holds."""
        if not condition():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((condition, future))
            await future

    async def arrivals(self, count: int) -> list[Attendant]:
        """Wait until `count` have come in all; these."""
        await self.until(lambda: len(self.arrived) >= count)
        return self.arrived

    def let_go(self, *names: str) -> None:
        """Let those of these names go, now or when they come; without names everybody."""
        if not names:
            self._let_go = None
        elif self._let_go is not None:
            self._let_go.update(names)
        for connection, attendant in self._connections.items():
            if attendant is not None and self._may_go(attendant):
                connection.send_off()

    def _may_go(self, attendant: Attendant) -> bool:
        return self._let_go is None or attendant.name in self._let_go

    # What the connections tell.

    def connected(self, connection: _Connection) -> None:
        self._connections[connection] = None

    def heard(self, connection: _Connection, line: bytes) -> None:
        attendant = self._connections.get(connection)
        if attendant is None:
            weight, pid, name = line.decode().rstrip("\n").split(" ", 2)
            self._came(connection, Attendant(name, int(pid), int(weight)))
        elif line == _BYE:
            self._connections[connection] = None
            self.left.append(attendant.name)
            connection.answer()
        self._look()

    def _came(self, connection: _Connection, attendant: Attendant) -> None:
        self._connections[connection] = attendant
        self.arrived.append(attendant)
        self.most = max(self.most, sum(other.weight for other in self.present))
        if self._may_go(attendant):
            connection.send_off()

    def lost(self, connection: _Connection) -> None:
        attendant = self._connections.pop(connection)
        if attendant is not None:
            self.vanished.append(attendant.name)
        self._look()

    def _look(self) -> None:
        waiting, self._waiters = self._waiters, []
        for condition, future in waiting:
            if future.done():
                continue
            if condition():
                future.set_result(None)
            else:
                self._waiters.append((condition, future))


class _Connection(asyncio.Protocol):
    """One attendant's line to the meeting."""

    _transport: asyncio.Transport

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting
        self._received = b""
        self._sent_off = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._meeting.connected(self)

    def data_received(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._meeting.heard(self, line + b"\n")

    def connection_lost(self, error: Exception | None) -> None:
        self._meeting.lost(self)

    def send_off(self) -> None:
        if not self._sent_off:
            self._sent_off = True
            self._transport.write(_GO)

    def answer(self) -> None:
        self._transport.write(_BYE)

    def hang_up(self) -> None:
        self._transport.close()
