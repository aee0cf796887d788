"""Ended spans as bytes, and back: plain data, pickled. Imported where there are any: it needs OpenTelemetry's SDK.

Read are only bytes that a worker of the engine's has written. Several of these in a row are read as one.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from asyncflow.backends.origin.spans import DROPPED_SPANS

_PROTOCOL = 5
#: What the SDK calls a service to which nobody has given a name.
_UNNAMED = "unknown_service"

_PLAIN: tuple[type[Any], ...] = (bool, int, float, str, bytes)

#: A span context, and a resource or scope, as they travel.
_PackedContext = tuple[int, int, bool, int, str]
_PackedSource = tuple[Any, ...]


def pack(spans: Sequence[ReadableSpan], dropped: int) -> bytes:
    """`spans`, the first at the front, as `unpack` takes them; `dropped` is how many are not among them."""
    # Those that several spans have are packed once: as one object, which is pickled once.
    resources, scopes = _Once(_packed_resource), _Once(_packed_scope)
    packed = [_packed(span, resources.of(span.resource), scopes.of(span.instrumentation_scope)) for span in spans]
    if dropped:
        packed[0][-1][DROPPED_SPANS] = dropped
    return pickle.dumps(packed, _PROTOCOL)


class _Once:
    """What `make` makes of an object, made once for each; the objects are kept, so that no other gets the same id."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self._made: dict[int, tuple[Any, Any]] = {}

    def of(self, source: Any) -> Any:
        made = self._made.get(id(source))
        if made is None:
            made = self._made[id(source)] = source, self._make(source)
        return made[1]


def _packed(span: ReadableSpan, resource: _PackedSource, scope: _PackedSource | None) -> tuple[Any, ...]:
    return (
        span.name,
        span.kind.value,
        _packed_context(span.get_span_context()),
        _packed_context(span.parent),
        span.start_time,
        span.end_time,
        (span.status.status_code.value, span.status.description),
        [(event.name, event.timestamp, _plain(event.attributes)) for event in span.events],
        [(_packed_context(link.context), _plain(link.attributes)) for link in span.links],
        resource,
        scope,
        _plain(span.attributes),
    )


def _packed_resource(resource: Resource) -> _PackedSource:
    return resource.schema_url, _plain(resource.attributes)


def _packed_scope(scope: InstrumentationScope | None) -> _PackedSource | None:
    return None if scope is None else (scope.name, scope.version, scope.schema_url, _plain(scope.attributes))


def _packed_context(context: SpanContext | None) -> _PackedContext | None:
    if context is None:
        return None
    return (
        context.trace_id,
        context.span_id,
        context.is_remote,
        int(context.trace_flags),
        context.trace_state.to_header(),
    )


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {str(name): _plain_value(value) for name, value in (attributes or {}).items()}


def _plain_value(value: Any) -> Any:
    """Of a type that every interpreter has: a float of NumPy's is a float too."""
    for kind in _PLAIN:
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return _plain(value)
    if isinstance(value, Sequence):
        return tuple(_plain_value(each) for each in value)
    return value if value is None else str(value)


def unpack(data: bytes, resource: Resource | None) -> list[ReadableSpan]:
    """What `pack` packed; with this `resource` and what is told of host and process, where one is given."""
    reader = _Reader(resource)
    spans: list[ReadableSpan] = []
    stream = io.BytesIO(data)
    while stream.tell() < len(data):
        packed = pickle.load(stream)
        if isinstance(packed, list):  # else it is what is told of a command
            spans += [reader.span(*each) for each in packed]
    return spans


class _Reader:
    """Makes spans; those of one process share their resource and scopes."""

    def __init__(self, resource: Resource | None) -> None:
        self._resource = resource
        self._resources = _Once(self._merged)
        self._scopes = _Once(lambda packed: None if packed is None else InstrumentationScope(*packed))

    def span(
        self,
        name: str,
        kind: int,
        context: _PackedContext,
        parent: _PackedContext | None,
        start: int | None,
        end: int | None,
        status: tuple[int, str | None],
        events: list[tuple[str, int, dict[str, Any]]],
        links: list[tuple[_PackedContext, dict[str, Any]]],
        resource: _PackedSource,
        scope: _PackedSource | None,
        attributes: dict[str, Any],
    ) -> ReadableSpan:
        return ReadableSpan(
            name,
            _context(context),
            None if parent is None else _context(parent),
            self._resources.of(resource),
            attributes,
            [Event(name, attributes, time) for name, time, attributes in events],
            [Link(_context(to), attributes) for to, attributes in links],
            SpanKind(kind),
            status=Status(StatusCode(status[0]), status[1]),
            start_time=start,
            end_time=end,
            instrumentation_scope=self._scopes.of(scope),
        )

    def _merged(self, packed: _PackedSource) -> Resource:
        schema, attributes = packed
        if self._resource is None:
            return Resource(attributes, schema)
        if str(attributes.get(SERVICE_NAME, "")).startswith(_UNNAMED):
            attributes = {name: value for name, value in attributes.items() if name != SERVICE_NAME}
        return self._resource.merge(Resource(attributes, schema))


def _context(packed: _PackedContext) -> SpanContext:
    trace_id, span_id, is_remote, flags, state = packed
    return SpanContext(trace_id, span_id, is_remote, TraceFlags(flags), TraceState.from_header([state]))
