"""Lines of the file.

What happens to components that go well differs in times and numbers only. So the lines for each stretch of such a life
are made once for each definition, as a template, in which every further component only fills the blanks: a fifth of
the time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain, count, islice, repeat
from secrets import token_hex
from typing import Any

import orjson

from asyncflow.backends.contract import Kind
from asyncflow.graph import State
from asyncflow.telemetry import names
from asyncflow.telemetry.life import Moment, moments
from asyncflow.telemetry.record import Record, Shown

#: How many templates are kept.
_KEPT = 1000
_AS_TEXT = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def encoded(value: Any) -> bytes:
    """`value` as JSON; what JSON has no form for as its text."""
    try:
        return orjson.dumps(value, default=str, option=_AS_TEXT)
    except orjson.JSONEncodeError:  # a text with lone surrogates, or an integer of more than 64 bits
        return orjson.dumps(_plain(value), option=_AS_TEXT)


def _plain(value: Any) -> Any:
    """`value` with nothing in it that JSON refuses."""
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (bool, float)) or value is None:
        return value
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
        return value
    return str(value).encode(errors="replace").decode()


def ids_of(traceparent: str | None) -> tuple[str, str] | tuple[None, None]:
    """The ids of trace and span in what W3C calls a traceparent."""
    return (None, None) if traceparent is None else (traceparent[3:35], traceparent[36:52])


class Lines:
    """Makes the lines of one session. For one thread at a time, but for `event`."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        #: Two sessions of one name may be in one file.
        self._prefix = token_hex(4)
        #: Of the next event of a component, and of all others.
        self._number = 1
        self._events = count(1)
        #: Templates, and those of them in which the present `emit` stands.
        self._templates: dict[tuple[Any, ...], bytes] = {}
        self._now: dict[tuple[Any, ...], bytes] = {}
        self._emit = 0.0
        #: What stands in a template's making for what will be filled in; in nobody's text by chance.
        self._blank = token_hex(12)
        self._blanks = re.compile(f'"{self._blank}"|{self._blank}'.encode())
        self._now_text = token_hex(12)
        self._blank_now = token_hex(12).encode()

    def _taken(self, how_many: int) -> int:
        """The first of so many numbers."""
        self._number += how_many
        return self._number - how_many

    # --- events of which there are few -------------------------------------------------------------------------------

    def event(
        self,
        kind: str,
        time: float,
        emit: float,
        attributes: Mapping[str, Any],
        *,
        backend: str | None = None,
        node: str | None = None,
        task_id: str | None = None,
        workflow_id: str | None = None,
        trace: tuple[str | None, str | None] = (None, None),
        **ends: Any,
    ) -> bytes:
        """Any event; `ends` are the fields that only ends have."""
        attributes = {names.WORKFLOW_ID: workflow_id, **attributes}
        event_id = f"{self._prefix}.{next(self._events)}"  # a counter of their own: they may come from any thread
        return encoded(self._all_fields(event_id, kind, time, emit, attributes, backend, node, task_id, trace) | ends)

    # --- components --------------------------------------------------------------------------------------------------

    def component(self, record: Record, over: bool, emit: float) -> bytes:
        """The lines for what is new in `record` since it was last seen here; empty where nothing is.

        `over` is what its property said a moment ago, `emit` the time now.
        """
        reached = _reached(record, over)
        if reached is None:
            return b"\n".join(encoded(self._fields(record, moment, emit)) for moment in moments(record, over))
        return self._filled(record, reached, emit) if reached > record.shown else b""

    def _fields(self, record: Record, moment: Moment, emit: float) -> dict[str, Any]:
        place = record.place if moment.placed else None
        return (
            self._all_fields(
                f"{self._prefix}-{self._taken(1)}",
                moment.kind,
                moment.time,
                emit,
                {names.WORKFLOW_ID: record.workflow_id, **moment.attributes},
                record.backend,
                None if place is None else place.host,
                record.uid,
                ids_of(record.traceparent),
            )
            | moment.ends
        )

    def _all_fields(
        self,
        event_id: str,
        kind: str,
        time: float,
        emit: float,
        attributes: Mapping[str, Any],
        backend: str | None,
        node: str | None,
        task_id: str | None,
        trace: tuple[str | None, str | None],
    ) -> dict[str, Any]:
        return {
            "event_id": event_id,
            "event_type": kind,
            "event_time": time,
            "emit_time": emit,
            "session_id": self._session_id,
            "backend": backend,
            "task_id": task_id,
            "node_id": node,
            "trace_id": trace[0],
            "span_id": trace[1],
            "attributes": attributes,
        }

    # --- templates ---------------------------------------------------------------------------------------------------

    def _filled(self, record: Record, reached: int, emit: float) -> bytes:
        """The lines of a component that goes well, from what was shown of it to what it has `reached`."""
        shown, place, traceparent = record.shown, record.place, record.traceparent
        worker, host, pid = (None, None, None) if place is None else (place.worker, place.host, place.pid)
        key = (
            *(record.definition, record.backend, record.workflow_id, record.attempt, shown, reached),
            *(worker, host, pid, traceparent is None),
        )
        template = self._now.get(key)
        if template is None or self._emit != emit:
            template = self._made_now(key, record, reached, emit)
        number = self._taken(reached - shown)
        times = _times(record, shown, reached)
        about = [repeat(b'"%b"' % record.uid.encode())]
        if traceparent is not None:
            about += (repeat(f'"{each}"'.encode()) for each in ids_of(traceparent))
        # Python's own loops would take half of the time.
        values = [*chain.from_iterable(zip(range(number, self._number), times, *about, strict=False))]
        if not shown:
            depends_on = orjson.dumps(record.depends_on) if record.depends_on else b"[]"
            after = 2 + len(about)
            values[after:after] = depends_on, b"null" if record.parent is None else f'"{record.parent}"'.encode()
        if reached == Shown.ALL:
            values.append(times[-1])
        record.shown = reached
        return template % tuple(values)

    def _made_now(self, key: tuple[Any, ...], record: Record, reached: int, emit: float) -> bytes:
        """The template for `key` in which `emit` stands: it is the same for many."""
        if self._emit != emit:
            self._emit = emit
            self._now.clear()
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= _KEPT:
                self._templates.clear()
            template = self._templates[key] = self._template(record, reached)
        made = self._now[key] = template.replace(self._blank_now, orjson.dumps(emit))
        return made

    def _template(self, record: Record, reached: int) -> bytes:
        """Lines of `record`, with blanks for all that differs between calls of one task on one worker."""
        lines = []
        shown = record.shown
        # The record may have come further meanwhile.
        for moment in islice(moments(record, over=reached == Shown.ALL), reached - shown):
            fields = self._fields(record, moment, 0.0)
            fields |= dict.fromkeys(["event_time", "task_id"], self._blank) | {"emit_time": self._now_text}
            if record.traceparent is not None:
                fields |= dict.fromkeys(["trace_id", "span_id"], self._blank)
            fields["event_id"] = f"{self._prefix}-{self._blank}"
            if "duration_seconds" in fields:
                fields["duration_seconds"] = self._blank
            attributes = fields["attributes"]
            for name in (names.DEPENDS_ON, names.PARENT):
                if name in attributes:
                    attributes[name] = self._blank
            lines.append(encoded(fields))
        record.shown = shown
        text = b"\n".join(lines).replace(b"%", b"%%").replace(encoded(self._now_text), self._blank_now)
        return self._blanks.sub(lambda found: b"%b" if found[0].startswith(b'"') else b"%d", text)


def _reached(record: Record, over: bool) -> int | None:
    """How far a component that goes well has come; None for one that does not, or that tells more at its end."""
    if over:
        goes_well = record.state is State.DONE and record.definition.kind is not Kind.EXECUTABLE
        return Shown.ALL if goes_well else None
    if record.started is not None:
        return Shown.STARTED
    if record.queued is not None:
        return Shown.QUEUED
    if record.submitted is not None:
        return Shown.SUBMITTED
    return Shown.CREATED if record.resolved is None else Shown.RESOLVED


def _times(record: Record, shown: int, reached: int) -> list[bytes]:
    """Of the events between, then the duration, as JSON: to encode them together costs a tenth."""
    submitted, ended, started = record.submitted, record.ended or 0.0, record.started or 0.0
    times = [record.created, record.resolved, submitted, record.queued or submitted, started, ended][shown:reached]
    times.append(ended - started if ended > started else 0.0)
    return orjson.dumps(times)[1:-1].split(b",")
