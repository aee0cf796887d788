"""Messages over a socket between the pool and one worker process.

A message is a small tuple, pickled, and the raw segments that belong to it: pickled arguments and the buffers that they
refer to, which are neither copied into the pickle nor out of it. Messages posted together leave in one frame:

    number of segments : 4 bytes, then for each its length : 8 bytes, then the segments; the first is the messages

Most frames have that one segment only, go out whole and come in whole, which is made cheap.
"""

from __future__ import annotations

import contextlib
import mmap
import pickle
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from asyncflow.backends.payload import Segment

_COUNT = struct.Struct("!I")
#: The header of a frame without further segments.
_PLAIN = struct.Struct("!IQ")
#: Bytes asked for at a time. Memory for more would be mapped, and its pages made, anew for each read.
_CHUNK = 1 << 15
#: Segments that one system call may take; the least that POSIX systems allow is 16, Linux takes 1024.
_IOV_MAX = 512

#: Bytes from which a segment gets memory of its own.
_LARGE = 1 << 20


class Message(NamedTuple):
    """What is said, with which data, and the segments that belong to it."""

    verb: str
    data: tuple[Any, ...]
    segments: Sequence[Segment]


class Channel:
    """One end of a socket. Works blocking (in the worker) and non-blocking (in the pool)."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._posted: list[tuple[str, tuple[Any, ...], int]] = []
        self._segments: list[Segment] = []
        self._unsent: deque[memoryview] = deque()
        self._received = bytearray()
        self._frame: _Frame | None = None

    # --- sending -----------------------------------------------------------------------------------------------------

    def post(self, verb: str, data: tuple[Any, ...] = (), segments: Sequence[Segment] = ()) -> None:
        """Add a message to the next frame."""
        self._posted.append((verb, data, len(segments)))
        self._segments.extend(segments)

    def flush(self) -> bool:
        """Send what was posted; False where a non-blocking socket did not take all of it yet."""
        if self._posted:
            self._frame_posted()
        while self._unsent:
            try:
                sent = self.sock.sendmsg([self._unsent[index] for index in range(min(len(self._unsent), _IOV_MAX))])
            except BlockingIOError:
                return False
            self._drop(sent)
        return True

    def _frame_posted(self) -> None:
        messages, segments = pickle.dumps(self._posted, 5), self._segments
        self._posted = []
        if not segments:
            self._send_plain(_PLAIN.pack(1, len(messages)) + messages)
            return
        self._segments = []
        views = [memoryview(segment).cast("B") for segment in (messages, *segments)]
        header = _COUNT.pack(len(views)) + struct.pack(f"!{len(views)}Q", *(view.nbytes for view in views))
        self._unsent.append(memoryview(header))
        self._unsent.extend(view for view in views if view.nbytes)

    def _send_plain(self, frame: bytes) -> None:
        sent = 0
        if not self._unsent:
            with contextlib.suppress(BlockingIOError):
                sent = self.sock.send(frame)
        if sent < len(frame):
            self._unsent.append(memoryview(frame)[sent:])

    def _drop(self, sent: int) -> None:
        while sent:
            first = self._unsent[0]
            if sent < first.nbytes:
                self._unsent[0] = first[sent:]
                return
            sent -= first.nbytes
            self._unsent.popleft()

    # --- receiving ---------------------------------------------------------------------------------------------------

    def receive(self) -> list[Message]:
        """Read once and return the messages that are now complete; [] where there is nothing to read yet.

        Raises EOFError when the other side has closed.
        """
        try:
            if self._frame is not None and self._frame.wants > len(self._received) + _CHUNK:
                count = self.sock.recv_into(self._frame.view)
                self._frame.view = self._frame.view[count:]
            else:
                data = self.sock.recv(_CHUNK)
                count = len(data)
                self._received += data
        except BlockingIOError:
            return []
        except ConnectionError as error:
            raise EOFError from error
        if not count:
            raise EOFError
        return self._complete()

    def pending(self) -> bool:
        """Whether there is something to read now, the other side's end included."""
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def _complete(self) -> list[Message]:
        messages: list[Message] = []
        while True:
            if self._frame is None:
                plain = self._plain()
                if plain is not None:
                    messages.extend(plain)
                    continue
                self._frame = _Frame.begin(self._received)
            if self._frame is None or not self._frame.fill(self._received):
                return messages
            messages.extend(self._frame.messages())
            self._frame = None

    def _plain(self) -> list[Message] | None:
        """The messages of a frame without further segments, taken off what was received; None where there is none."""
        received = self._received
        if len(received) < _PLAIN.size:
            return None
        count, length = _PLAIN.unpack_from(received)
        end = _PLAIN.size + length
        if count != 1 or len(received) < end:
            return None
        posted = pickle.loads(memoryview(received)[_PLAIN.size : end])
        del received[:end]
        return [Message(verb, data, ()) for verb, data, _ in posted]


def _room(length: int) -> bytearray | mmap.mmap:
    """Memory for a segment. A large bytearray would be filled with zeros first, with the GIL held; a mapping is not."""
    return bytearray(length) if length < _LARGE else mmap.mmap(-1, length)


class _Frame:
    """A frame being received: its segments are allocated whole and filled in order."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._segments: list[bytearray | mmap.mmap] = [_room(length) for length in lengths]
        self._next = 0
        #: The unfilled part of the current segment.
        self.view = memoryview(b"")
        self._advance()

    @classmethod
    def begin(cls, received: bytearray) -> _Frame | None:
        """Take a header off `received`; None where it is not all there."""
        if len(received) < _COUNT.size:
            return None
        (count,) = _COUNT.unpack_from(received)
        size = _COUNT.size + 8 * count
        if len(received) < size:
            return None
        lengths = struct.unpack_from(f"!{count}Q", received, _COUNT.size)
        del received[:size]
        return cls(lengths)

    @property
    def wants(self) -> int:
        """Bytes that the current segment lacks."""
        return self.view.nbytes

    def fill(self, received: bytearray) -> bool:
        """Move bytes from `received` into the segments; whether all are full."""
        taken = 0
        while True:
            if not self.view.nbytes:
                if not self._advance():
                    del received[:taken]
                    return True
                continue
            count = min(self.view.nbytes, len(received) - taken)
            if not count:
                del received[:taken]
                return False
            self.view[:count] = received[taken : taken + count]
            self.view = self.view[count:]
            taken += count

    def _advance(self) -> bool:
        """Go to the next segment; False where the last is full."""
        if self._next == len(self._segments):
            return False
        self.view = memoryview(self._segments[self._next])
        self._next += 1
        return True

    def messages(self) -> list[Message]:
        """What the full frame says."""
        messages = []
        position = 1
        for verb, data, count in pickle.loads(self._segments[0]):
            messages.append(Message(verb, data, self._segments[position : position + count]))
            position += count
        return messages
