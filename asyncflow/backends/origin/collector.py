"""What listens to the spans of a worker's process. Imported there alone: it needs OpenTelemetry's SDK."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from weakref import WeakValueDictionary

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from asyncflow.backends.origin.current import origin_of
from asyncflow.backends.origin.spans import SESSION_ID, TASK_ID, WORKFLOW_ID, Kept


class Collector(SpanProcessor):
    """Keeps each span with the attempt whose body started it.

    No lock: every step is one operation on a dict, and spans of one attempt that start on several threads at once may
    at worst be a few more than the most.
    """

    def __init__(self, attempts: Mapping[int, Kept]) -> None:
        self._attempts = attempts
        #: To which attempts the open ones belong, by id, for as long as these have not ended.
        self._open: WeakValueDictionary[int, Kept] = WeakValueDictionary()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        origin = origin_of(parent_context)
        kept = None if origin is None else self._attempts.get(id(origin))
        if origin is None or kept is None:
            return
        span_id = span.get_span_context().span_id
        if kept.open(span_id):
            span.set_attribute(SESSION_ID, origin.session_id)
            span.set_attribute(TASK_ID, origin.task_id)
            if origin.workflow_id is not None:
                span.set_attribute(WORKFLOW_ID, origin.workflow_id)
            self._open[span_id] = kept

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        kept = None if context is None else self._open.pop(context.span_id, None)
        if context is not None and kept is not None:
            kept.spans[context.span_id] = span


def collect(attempts: Mapping[int, Kept], inherited: object) -> bool:
    """Listen to what this process's tracer provider makes; False where user code has set one, which is left alone.

    `inherited` is the provider, if any, that came with a fork of the engine's process.
    """
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(Collector(attempts))
        trace.set_tracer_provider(provider)
        return True
    if provider is inherited and isinstance(provider, TracerProvider):
        _take_over(provider, Collector(attempts))
        return True
    return False


def _resource() -> Resource:
    return Resource.create({"host.name": socket.gethostname(), "process.pid": os.getpid()})


def _take_over(provider: TracerProvider, collector: Collector) -> None:
    """Give the engine's processors nothing here: what they keep would end with this process, and all comes to them."""
    listeners = provider._active_span_processor
    if hasattr(listeners, "_span_processors"):
        listeners._span_processors = ()
    provider.add_span_processor(collector)
