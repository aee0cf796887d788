"""Which tracer provider there is, and whose spans go to the processors that one session was given.

Libraries speak OpenTelemetry's API; the SDK is imported only where processors are given or a provider of it is there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from asyncflow.backends.origin import origin_of, unpack_spans
from asyncflow.errors import ForeignTracerProviderError
from asyncflow.telemetry import names
from asyncflow.telemetry.providers import resource
from asyncflow.version import installed_version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider


class Router:
    """A span processor that hands each span to the processors of the session that it is of, and to no others.

    A provider cannot be rid of a processor again: this one stays, and is empty when no session has any.
    """

    def __init__(self) -> None:
        #: By session; two engines may have been given the same name.
        self._sessions: dict[str, tuple[SpanProcessor, ...]] = {}

    def add(self, session_id: str, processors: Sequence[SpanProcessor]) -> None:
        self._sessions[session_id] = (*self._sessions.get(session_id, ()), *processors)

    def remove(self, session_id: str, processors: Sequence[SpanProcessor]) -> None:
        left = tuple(each for each in self._sessions.pop(session_id, ()) if each not in processors)
        if left:
            self._sessions[session_id] = left

    def _of(self, span: Any) -> tuple[SpanProcessor, ...]:
        return self._sessions.get((span.attributes or {}).get(names.SESSION_ID, ""), ())

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        origin = origin_of(otel_context.get_current() if parent_context is None else parent_context)
        # What user code opens inside a task is told by the task's ids; a span of the engine's has them already.
        if origin is not None and names.SESSION_ID not in (span.attributes or {}):
            span.set_attribute(names.SESSION_ID, origin.session_id)
            span.set_attribute(names.TASK_ID, origin.task_id)
            if origin.workflow_id is not None:
                span.set_attribute(names.WORKFLOW_ID, origin.workflow_id)
        for processor in self._of(span):
            processor.on_start(span, parent_context)

    def _on_ending(self, span: Any) -> None:
        for processor in self._of(span):
            processor._on_ending(span)

    def on_end(self, span: ReadableSpan) -> None:
        for processor in self._of(span):
            processor.on_end(span)

    def shutdown(self) -> None:
        for processors in list(self._sessions.values()):
            for processor in processors:
                processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        flushed = [
            processor.force_flush(timeout_millis) for each in list(self._sessions.values()) for processor in each
        ]
        return all(flushed)


#: A process has one provider, and each provider one router.
_routers: WeakKeyDictionary[Any, Router] = WeakKeyDictionary()
_lock = threading.Lock()


class Tracing:
    """What one session needs of OpenTelemetry's tracing."""

    def __init__(self, session_id: str, provider: Any, processors: Sequence[SpanProcessor]) -> None:
        self._session_id = session_id
        self._provider = provider
        self._processors = tuple(processors)
        self._router = _router_of(provider)
        if self._router is not None:
            self._router.add(session_id, processors)
        self.tracer: Tracer = provider.get_tracer(names.SCOPE, installed_version())

    def parent(self) -> Context:
        """That of the session's span: the span that is current, else the one that started this process."""
        if trace.get_current_span().get_span_context().is_valid:
            return otel_context.get_current()
        carrier = {name.lower(): os.environ[name] for name in ("TRACEPARENT", "TRACESTATE") if name in os.environ}
        return TraceContextTextMapPropagator().extract(carrier, Context())

    def hand_in(self, packed: bytes) -> None:
        """Give spans that ended in a worker's process to the provider's processors, as if they had ended here."""
        # The API has no way for a span that has its ids already.
        processor = getattr(self._provider, "_active_span_processor", None)
        if processor is not None:
            for span in unpack_spans(packed, self._provider.resource):
                processor.on_end(span)

    def close(self) -> None:
        """No span goes to the session's processors any more."""
        if self._router is not None:
            self._router.remove(self._session_id, self._processors)


def tracing_for(session_id: str, processors: Sequence[SpanProcessor]) -> Tracing | None:
    """The provider of the application, else a new one for `processors`; None where there is neither."""
    provider: Any = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        if not processors:
            return None
        provider = _install()
    elif isinstance(provider, trace.NoOpTracerProvider) and not processors:
        return None
    if processors and not hasattr(provider, "add_span_processor"):
        raise ForeignTracerProviderError(type(provider).__name__)
    return Tracing(session_id, provider, processors)


def _install() -> TracerProvider:
    """Set a provider for the process; its spans have as many links as tasks have dependencies."""
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider

    provider = TracerProvider(resource=resource(), span_limits=SpanLimits(max_links=SpanLimits.UNSET))
    trace.set_tracer_provider(provider)
    return provider


def _router_of(provider: Any) -> Router | None:
    if not hasattr(provider, "add_span_processor"):
        return None
    with _lock:
        router = _routers.get(provider)
        if router is None:
            router = _routers[provider] = Router()
            provider.add_span_processor(router)
        return router
