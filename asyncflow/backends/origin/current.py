"""The origin of the body that runs: a context variable, and OpenTelemetry's current span where there is a trace."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Container, Iterator
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from asyncflow.backends.contract import Origin, WorkItem

if TYPE_CHECKING:
    from opentelemetry.context import Context

#: An item stands for its origin, which is made when somebody asks.
_here: contextvars.ContextVar[Origin | WorkItem | None] = contextvars.ContextVar("asyncflow_origin", default=None)

#: Under which OpenTelemetry's context carries it too: what only passes that one on (to threads, say) passes it on.
_KEY = "asyncflow-origin"

_TRACEPARENT, _TRACESTATE = "TRACEPARENT", "TRACESTATE"


def here() -> Origin | None:
    """Whose work the calling code is; None outside tasks, and in threads that a body started without its context."""
    found = _here.get()
    return found.origin if isinstance(found, WorkItem) else found


def stand_for(item: WorkItem) -> None:
    """Make the origin of `item`, with which no trace goes, current in this context, which goes when the item does."""
    _here.set(item)


def enter(origin: Origin, context: contextvars.Context | None) -> Callable[[], None]:
    """Make `origin` current in `context`, which is the task's own; without one here, until what is returned is called.

    Never raises.
    """
    if context is None:
        return _enter(origin)
    if origin.traceparent is None:
        context.run(_here.set, origin)
    else:
        context.run(_enter, origin)
    return _stay


@contextlib.contextmanager
def inside(origin: Origin) -> Iterator[None]:
    """Make `origin` current meanwhile."""
    leave = enter(origin, None)
    try:
        yield
    finally:
        leave()


def _enter(origin: Origin) -> Callable[[], None]:
    token = _here.set(origin)
    api = None if origin.traceparent is None else _api()
    context = None if api is None else _trace_context(origin, api)
    if api is None or context is None:
        return partial(_here.reset, token)
    return partial(_leave, token, api.detach, api.attach(context))


def _leave(token: contextvars.Token[Origin | WorkItem | None], detach: Callable[[Any], None], attached: object) -> None:
    detach(attached)
    _here.reset(token)


def _stay() -> None:
    """The context goes when the task goes."""


class _Api(NamedTuple):
    """What is needed of OpenTelemetry's API."""

    trace: Any
    attach: Callable[[Any], Any]
    detach: Callable[[Any], None]
    get_value: Callable[[str, Any], object]
    set_value: Callable[[str, object, Any], Any]


@cache
def _api() -> _Api | None:
    """None where it is not installed."""
    try:
        from opentelemetry import context, trace
    except ImportError:
        return None
    return _Api(trace, context.attach, context.detach, context.get_value, context.set_value)


def _trace_context(origin: Origin, api: _Api) -> Context | None:
    """The current one of OpenTelemetry's with the task's span as the current span; None where that cannot be read."""
    trace = api.trace
    current = trace.get_current_span()
    if trace.format_span_id(current.get_span_context().span_id) == (origin.traceparent or "")[36:52]:
        # In the engine's own process: the span that records.
        return cast("Context", api.set_value(_KEY, origin, trace.set_span_in_context(current)))
    try:
        _, trace_id, span_id, flags = (int(part, 16) for part in (origin.traceparent or "").split("-"))
    except ValueError:
        return None
    span = trace.SpanContext(trace_id, span_id, True, trace.TraceFlags(flags), _state(origin.tracestate))
    context: Context = trace.set_span_in_context(trace.NonRecordingSpan(span), api.set_value(_KEY, origin, None))
    return context


@lru_cache(maxsize=100)
def _state(header: str | None) -> Any:
    """Most tasks of a session have the same."""
    api = _api()
    return None if api is None or header is None else api.trace.TraceState.from_header([header])


def origin_of(context: Context | None) -> Origin | None:
    """Whose a span is that is started in this context of OpenTelemetry's; None stands for the current one.

    For span processors: `on_start` is given the context. None for a span that no task's body started.
    """
    api = _api()
    found = None if api is None else api.get_value(_KEY, context)
    # A span that was started in a context made anew is the body's all the same.
    return found if isinstance(found, Origin) else here()


def variables(origin: Origin | None, own: Container[str] = ()) -> dict[str, str]:
    """The trace context as environment variables for a command that names its `own`; {} where there is no trace."""
    if origin is None or origin.traceparent is None or _TRACEPARENT in own:
        return {}
    # Both always: that of another trace must not stand beside it.
    return {_TRACEPARENT: origin.traceparent, _TRACESTATE: origin.tracestate or ""}
