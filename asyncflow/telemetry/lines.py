"""Lines of the file.

What happens to components that go well differs in times and numbers only. So the lines for each stretch of such a life
are made once for each definition, as a template, and all components of one look that have come the same way are filled
in at once: an eighth of the time, for next to nothing of it is left to Python's own loops.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count, islice
from operator import attrgetter
from secrets import token_hex
from typing import Any

import orjson

from asyncflow.backends.contract import Kind, Place
from asyncflow.component import Component
from asyncflow.graph import Phase
from asyncflow.telemetry import names
from asyncflow.telemetry.life import Moment, moments
from asyncflow.telemetry.record import PastAttempt, Record, Shown

_log = logging.getLogger("asyncflow")

#: How many templates are kept.
_KEPT = 1000
_AS_TEXT = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
#: The times of a component's events, in their order.
_TIMES = ("created", "resolved", "submitted", "queued", "started", "ended")

#: What components must have in common to be filled into one template.
_Way = tuple[Any, ...]


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
        self._templates: dict[_Way, bytes] = {}
        #: What stands in a template's making for what will be filled in; in nobody's text by chance.
        self._blank, self._blank_uid, self._blank_now = token_hex(12), token_hex(12), token_hex(12)
        self._blanks = re.compile(f'"{self._blank}"|{self._blank}'.encode())

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

    # --- components --------------------------------------------------------------------------------------------------

    def of(
        self, past: Iterable[PastAttempt], ended: Iterable[Component], going: Iterable[Component], emit: float
    ) -> list[bytes]:
        """The lines for what is new in these since they were last seen here, past attempts first.

        `ended` are those that were over a moment ago, `going` the others; `emit` is the time now.
        """
        lines = [self._lines_of(each, True, emit) for each in past]
        alike: defaultdict[_Way, list[Component]] = defaultdict(list)
        places: dict[int, Place | None] = {}
        for component in ended:
            if component.phase is Phase.DONE and component.binding.definition.kind is not Kind.EXECUTABLE:
                alike[_way(component, Shown.ALL, places)].append(component)
            else:
                lines.append(self._lines_of(component, True, emit))
        for component in going:
            reached = _reached(component)
            if reached > component.shown:
                alike[_way(component, reached, places)].append(component)
        lines += [self._lines_alike(group, way, places[way[1]], emit) for way, group in alike.items()]
        return lines

    def _lines_of(self, record: Record, over: bool, emit: float) -> bytes:
        """Of one, as they are."""
        try:
            place = record.place
            told = moments(record, over, place)
            return b"\n".join(encoded(self._fields(record, moment, emit, place)) for moment in told)
        except Exception:
            _log.exception("telemetry could not tell of %s", record.uid)
            return b""

    def _fields(self, record: Record, moment: Moment, emit: float, place: Place | None) -> dict[str, Any]:
        where = place if moment.placed else None
        self._number += 1
        return self._all_fields(
            f"{self._prefix}-{self._number - 1}",
            moment.kind,
            moment.time,
            emit,
            {names.WORKFLOW_ID: record.workflow_id, **moment.attributes},
            record.backend,
            None if where is None else where.host,
            record.uid,
            ids_of(record.traceparent),
        ) | dict(moment.ends)

    # --- templates ---------------------------------------------------------------------------------------------------

    def _lines_alike(self, components: Sequence[Component], way: _Way, place: Place | None, emit: float) -> bytes:
        """Of components that go well and have come the same way."""
        shown, reached = way[-2:]
        if reached >= Shown.QUEUED:  # an attempt may begin, and end, before the backend's `submit` has returned
            for component in components:
                if component.queued is None:
                    component.queued = component.submitted
        steps = reached - shown
        times = [*chain.from_iterable(map(_GET[shown][reached], components))]
        if None in times:
            return b"\n".join(self._lines_of(each, reached == Shown.ALL, emit) for each in components)
        template = self._template_for(components[0], way, place).replace(self._blank_now.encode(), orjson.dumps(emit))
        columns = self._columns(components, _texts(times), steps)
        if not shown:
            after = len(columns) // steps
            columns[after:after] = [*map(_depends_on, components)], [*map(_parent, components)]
        if reached == Shown.ALL:
            columns.append(_texts(_durations(components)))
        for component in components:
            component.shown = reached
        rows = chain.from_iterable(zip(*columns, strict=True))
        return ((template + b"\n") * len(components) % tuple(rows))[:-1]

    def _columns(self, components: Sequence[Component], times: Sequence[bytes], steps: int) -> list[Sequence[Any]]:
        """What is filled in for each of the `steps`: number, time, component, and the ids of its span, if any."""
        begin = self._number
        self._number = end = begin + len(components) * steps
        about: list[Sequence[Any]] = [[component.seq for component in components]]
        if components[0].traceparent is not None:
            ids = [ids_of(component.traceparent) for component in components]
            about += ([f'"{each}"'.encode() for each in column] for column in zip(*ids, strict=True))
        columns: list[Sequence[Any]] = []
        for step in range(steps):
            columns += range(begin + step, end, steps), times[step::steps], *about
        return columns

    def _template_for(self, component: Component, way: _Way, place: Place | None) -> bytes:
        where = None if place is None else (place.host, place.worker, place.pid)
        key = (component.definition, component.backend, where, *way[2:])
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= _KEPT:
                self._templates.clear()
            template = self._templates[key] = self._template(component, way[-1], place)
        return template

    def _template(self, component: Component, reached: int, place: Place | None) -> bytes:
        """Lines of `component`, with blanks for all that differs between calls of one task on one worker."""
        lines = []
        shown = component.shown
        # It may have come further meanwhile.
        for moment in islice(moments(component, reached == Shown.ALL, place), reached - shown):
            fields = self._fields(component, moment, 0.0, place)
            fields |= {"event_time": self._blank, "emit_time": self._blank_now, "task_id": self._blank_uid}
            if component.traceparent is not None:
                fields |= dict.fromkeys(["trace_id", "span_id"], self._blank)
            fields["event_id"] = f"{self._prefix}-{self._blank}"
            if "duration_seconds" in fields:
                fields["duration_seconds"] = self._blank
            attributes = fields["attributes"]
            for name in (names.DEPENDS_ON, names.PARENT):
                if name in attributes:
                    attributes[name] = self._blank
            lines.append(encoded(fields))
        component.shown = shown
        text = b"\n".join(lines).replace(b"%", b"%%")
        text = self._blanks.sub(lambda found: b"%b" if found[0].startswith(b'"') else b"%d", text)
        text = text.replace(self._blank_uid.encode(), component.binding.prefix.encode() + b".%06d")
        return text.replace(encoded(self._blank_now), self._blank_now.encode())


def _getter(shown: int, reached: int) -> Any:
    """What gives the times from one event to another of a component, as a tuple."""
    if reached <= shown:
        return None
    if reached - shown == 1:
        return lambda component: (getattr(component, _TIMES[shown]),)
    return attrgetter(*_TIMES[shown:reached])


#: By what was shown, and what was reached.
_GET = [[_getter(shown, reached) for reached in Shown] for shown in Shown]


def _way(component: Component, reached: int, places: dict[int, Place | None]) -> _Way:
    """What its lines are made by; the last two are what was shown and what is `reached`, the second its place's key."""
    place = component.place
    key = id(place)
    places[key] = place
    return (
        component.binding,
        key,
        component.workflow_id,
        component.attempt,
        component.traceparent is None,
        component.shown,
        reached,
    )


def _reached(component: Component) -> int:
    """How far one that is not over has come."""
    if component.started is not None:
        return Shown.STARTED
    if component.queued is not None:
        return Shown.QUEUED
    if component.submitted is not None:
        return Shown.SUBMITTED
    return Shown.CREATED if component.resolved is None else Shown.RESOLVED


def _texts(numbers: Sequence[float | None]) -> list[bytes]:
    """Numbers as JSON: to encode them together costs a tenth."""
    return orjson.dumps(numbers)[1:-1].split(b",")


def _durations(components: Iterable[Component]) -> list[float | None]:
    spans = ((component.started or 0.0, component.ended or 0.0) for component in components)
    return [ended - started if ended > started else 0.0 for started, ended in spans]


def _depends_on(component: Component) -> bytes:
    return orjson.dumps(component.depends_on) if component.depends_on else b"[]"


def _parent(component: Component) -> bytes:
    return b"null" if component.parent is None else f'"{component.parent}"'.encode()
