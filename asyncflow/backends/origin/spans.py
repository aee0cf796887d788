"""Spans that user code ends in a worker's process: kept for each attempt, and handed over with its outcome.

Kept are the first `MOST` that an attempt starts, so that none is without the parent that it had; of these, what has
ended when the body ends. What ends later (in a thread that the body left behind) or never is dropped.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from asyncflow.backends.contract import Origin
from asyncflow.backends.origin.log_ids import install_log_ids

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

_log = logging.getLogger("asyncflow")

#: What a command has in the place of the list that spans have.
_COMMAND = "command"

#: The most spans that one attempt hands over.
MOST = 1000

#: Attributes of each of these spans.
SESSION_ID = "asyncflow.session_id"
TASK_ID = "asyncflow.task_id"
WORKFLOW_ID = "asyncflow.workflow_id"
#: Attribute of the first of them: how many further ones its task started.
DROPPED_SPANS = "asyncflow.dropped_spans"


class Kept:
    """The spans of one attempt."""

    def __init__(self, origin: Origin, most: int) -> None:
        self.origin = origin
        self._most = most
        #: By id, in the order of their starts; None while one is open.
        self.spans: dict[int, ReadableSpan | None] = {}
        #: How many more were started than are kept.
        self.dropped = 0
        #: Those that processes started for this attempt handed over, packed.
        self.brought: list[bytes] = []

    def open(self, span_id: int) -> bool:
        """A span starts; whether it is kept."""
        if len(self.spans) >= self._most:
            self.dropped += 1
            return False
        self.spans[span_id] = None
        return True

    def packed(self) -> bytes | None:
        """All that is there, as it travels; None where there is nothing."""
        # The list is made at once: a thread that the body left behind may start another.
        ended = [span for span in list(self.spans.values()) if span is not None]
        if not ended:
            return b"".join(self.brought) or None
        from asyncflow.backends.origin.packed import pack

        return b"".join([pack(ended, self.dropped), *self.brought])


class _Here:
    """What this process does about spans."""

    def __init__(self) -> None:
        self._begin(None)

    def _begin(self, inherited: object) -> None:
        self._lock = threading.Lock()
        #: Whether it is a worker's own, apart from the engine's.
        self.apart = False
        #: Whether its log records carry ids.
        self._logs = False
        #: Whether spans are collected here; None until the first task with a trace.
        self._collects: bool | None = None
        #: The tracer provider that came with a fork of another process, the engine's.
        self._inherited = inherited
        #: What is kept, by the identity of the origin: attempts of one task have equal ones.
        self.kept: dict[int, Kept] = {}

    def forked(self) -> None:
        """This process is a fork of the one in which that was said."""
        self._begin(getattr(sys.modules.get("opentelemetry.trace"), "_TRACER_PROVIDER", None))

    def prepare(self, origin: Origin) -> bool:
        """Make ready for an attempt; whether its spans are collected."""
        with self._lock:
            if not self._logs:
                self._logs = True
                install_log_ids()
            if origin.traceparent is not None and self._collects is None:
                self._collects = self._collect()
        return origin.traceparent is not None and bool(self._collects)

    def _collect(self) -> bool:
        try:
            from asyncflow.backends.origin.collector import collect
        except ImportError:  # no SDK: there are no spans here
            return False
        try:
            return collect(self.kept, self._inherited)
        except Exception:  # what is set for the SDK in the environment, for one: no matter of the task's
            _log.exception("spans of tasks are not collected in process %d", os.getpid())
            return False


_here = _Here()
os.register_at_fork(after_in_child=_here.forked)


def work_apart() -> None:
    """This process is a worker's own: what its tasks log carries their ids from now on, and their spans are kept."""
    _here.apart = True


def begin(origin: Origin, share: int = 1) -> None:
    """The body of `origin`, loaded and all, begins here; it may keep the `share`th part of the most spans."""
    if _here.apart and _here.prepare(origin):
        _here.kept[id(origin)] = Kept(origin, max(1, MOST // share))


def bring(origin: Origin, spans: bytes) -> None:
    """A process that was started for `origin` has handed over these."""
    kept = _here.kept.get(id(origin))
    if kept is None:
        kept = _here.kept[id(origin)] = Kept(origin, MOST)
    kept.brought.append(spans)


def note_command(origin: Origin, argv: Sequence[str]) -> None:
    """The command of `origin` is about to be run: it travels with the spans."""
    bring(origin, pickle.dumps({_COMMAND: list(argv)}, 5))


def command_in(told: bytes) -> list[str] | None:
    """The command that is told of beside the spans of an outcome; None where none was run."""
    stream = io.BytesIO(told)
    while stream.tell() < len(told):
        packed = pickle.load(stream)
        if isinstance(packed, dict):
            command: list[str] = packed[_COMMAND]
            return command
    return None


def end(origin: Origin) -> bytes | None:
    """The body of `origin` has ended: its spans, as `unpack_spans` takes them; None where there are none."""
    kept = _here.kept.pop(id(origin), None)
    return None if kept is None else kept.packed()


def unpack_spans(data: bytes, resource: Resource | None = None) -> list[ReadableSpan]:
    """The spans of an outcome, as they were. Needs OpenTelemetry's SDK.

    Where `resource` is given, the engine's, they have that one, and what the worker says of its host and process.
    """
    from asyncflow.backends.origin.packed import unpack

    return unpack(data, resource)
