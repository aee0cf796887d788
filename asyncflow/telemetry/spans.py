"""Spans of the session, its workflows and its components, through the OpenTelemetry API.

A span is begun where the call is made, for its ids travel with the work; it is ended on the thread of the spans.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from time import time
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, Tracer

from asyncflow.backends.contract import Kind
from asyncflow.component import Component
from asyncflow.errors import ExecutableError
from asyncflow.future import TaskFuture
from asyncflow.graph import State
from asyncflow.telemetry import names
from asyncflow.telemetry.batch import Batch
from asyncflow.telemetry.failures import failure_of
from asyncflow.telemetry.life import command_of
from asyncflow.telemetry.record import PastAttempt, Record
from asyncflow.telemetry.tracing import Tracing

_log = logging.getLogger("asyncflow")

#: The longest stack trace that a span carries.
_LONGEST = 16_000


class _Workflow:
    """A workflow with something unfinished, or a scope that was not left."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.context = trace.set_span_in_context(span, Context())
        self.scopes = 0
        #: Whether it ever had a scope: without one nothing says that it is over.
        self.scoped = False
        self.unfinished = 0
        self.last = 0.0

    @property
    def over(self) -> bool:
        return self.scoped and not self.scopes and not self.unfinished


class Spans:
    """One session's spans."""

    def __init__(self, session_id: str, tracing: Tracing, attributes: dict[str, Any]) -> None:
        self._session_id = session_id
        self._tracing = tracing
        self._tracer: Tracer = tracing.tracer
        self._session = self._tracer.start_span(
            "asyncflow.session", tracing.parent(), attributes={names.SESSION_ID: session_id, **attributes}
        )
        self._root = trace.set_span_in_context(self._session, Context())
        self._lock = threading.Lock()
        self._workflows: dict[str, _Workflow] = {}
        #: Contexts of the blocks that have not ended, by uid.
        self._blocks: dict[str, Context] = {}
        #: Components with open spans, and the workflow that each is counted in, by number.
        self._open: dict[int, Component] = {}
        self._counted: dict[int, _Workflow] = {}

    @property
    def ids(self) -> tuple[str, str]:
        """Of the session's span, as hex digits."""
        context = self._session.get_span_context()
        return f"{context.trace_id:032x}", f"{context.span_id:016x}"

    # --- the hot path ------------------------------------------------------------------------------------------------

    def begin(self, component: Component, dependencies: Sequence[asyncio.Future[Any]]) -> None:
        """Open the span of a component that was just called."""
        definition = component.definition
        span = self._tracer.start_span(
            definition.name,
            self._parent(component),
            attributes=self._attributes(component),
            links=_links(dependencies) if dependencies else None,
            start_time=_ns(component.created),
        )
        context = span.get_span_context()
        if not context.is_valid:  # the SDK is switched off
            return
        component.span = span
        component.context_ids = context
        component.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        self._open[component.seq] = component
        if definition.kind is Kind.BLOCK:
            self._blocks[component.uid] = trace.set_span_in_context(span, Context())

    def _parent(self, component: Component) -> Context:
        """What contains the call: a block, else a workflow, else the session."""
        block = None if component.parent is None else self._blocks.get(component.parent)
        workflow_id = component.workflow_id
        if workflow_id is None:
            return block or self._root
        with self._lock:
            workflow = self._workflows.get(workflow_id)
            # Outside any workflow the calls of a block carry its uid: that is none of its own.
            if workflow is None and component.parent is None:
                workflow = self._workflow(workflow_id)
            if workflow is not None:
                workflow.unfinished += 1
                self._counted[component.seq] = workflow
        return block or (self._root if workflow is None else workflow.context)

    def _workflow(self, workflow_id: str) -> _Workflow:
        workflow = self._workflows.get(workflow_id)
        if workflow is None:
            span = self._tracer.start_span(
                f"workflow {workflow_id}",
                self._root,
                attributes={names.SESSION_ID: self._session_id, names.WORKFLOW_ID: workflow_id},
            )
            workflow = self._workflows[workflow_id] = _Workflow(span)
        return workflow

    def _attributes(self, component: Component) -> dict[str, Any]:
        attributes = {
            names.SESSION_ID: self._session_id,
            names.TASK_ID: component.uid,
            names.TASK_TYPE: component.definition.kind.value,
            names.BACKEND: component.backend,
        }
        if component.workflow_id is not None:
            attributes[names.WORKFLOW_ID] = component.workflow_id
        return attributes

    # --- on the loop -------------------------------------------------------------------------------------------------

    def entered(self, workflow_id: str) -> None:
        with self._lock:
            workflow = self._workflow(workflow_id)
            workflow.scopes += 1
            workflow.scoped = True

    def left(self, workflow_id: str) -> None:
        with self._lock:
            workflow = self._workflows.get(workflow_id)
            if workflow is None or not workflow.scopes:  # entered before there was telemetry
                return
            workflow.scopes -= 1
            workflow.last = max(workflow.last, time())
            self._end_if_over(workflow_id, workflow)

    def _end_if_over(self, workflow_id: str, workflow: _Workflow) -> None:
        if workflow.over:
            del self._workflows[workflow_id]
            workflow.span.end(_ns(workflow.last))

    # --- on the thread of the spans ----------------------------------------------------------------------------------

    def take(self, batch: Batch) -> None:
        for packed in batch.spans:
            _try(partial(self._tracing.hand_in, packed))
        for past in batch.retried:
            if past.span is not None:
                _add_retry(past)
        for component in batch.ended:
            if component.span is not None:
                _try(partial(self._end, component))
                self._forget(component)

    def _end(self, component: Component) -> None:
        span = component.span
        _add_moments(component)
        if component.attempt:
            span.set_attribute(names.ATTEMPT, component.attempt)
        if component.place is not None:
            span.set_attributes({names.HOST: component.place.host, names.WORKER: component.place.worker})
        if component.state is State.DONE:
            span.set_attributes({names.OUTCOME: names.SUCCESS, **command_of(component)})
            span.set_status(Status(StatusCode.OK))
        else:
            _tell_failure(span, component)
        if component.definition.kind is Kind.EXECUTABLE:
            _tell_program(span, component)
        span.end(_ns(max(component.ended or 0.0, component.created)))

    def _forget(self, component: Component) -> None:
        component.span = None
        self._open.pop(component.seq, None)
        self._blocks.pop(component.uid, None)
        with self._lock:
            workflow = self._counted.pop(component.seq, None)
            if workflow is not None and component.workflow_id is not None:
                workflow.unfinished -= 1
                workflow.last = max(workflow.last, component.ended or 0.0)
                self._end_if_over(component.workflow_id, workflow)

    def close(self) -> None:
        """End what is open, the session's span last."""
        for component in list(self._open.values()):
            span, component.span = component.span, None
            if span is not None:  # telemetry ends before the component does
                span.add_event("interrupted")
                _try(span.end)
        with self._lock:
            for workflow in self._workflows.values():
                _try(partial(workflow.span.end, _ns(workflow.last or time())))
            self._workflows.clear()
        self._session.end()


def _try(function: Callable[[], object]) -> None:
    """A span processor that raises costs its own span and no other."""
    try:
        function()
    except Exception:
        _log.warning("a span could not be ended", exc_info=True)


def make_current(span: Span) -> None:
    """Let user code in this context add to the span itself."""
    otel_context.attach(trace.set_span_in_context(span))


def _links(dependencies: Sequence[asyncio.Future[Any]]) -> list[Link]:
    contexts: list[SpanContext] = []
    for future in dependencies:
        context = getattr(future._component, "context_ids", None) if type(future) is TaskFuture else None
        if context is not None:
            contexts.append(context)
    return [Link(context) for context in contexts]


def _add_retry(past: PastAttempt) -> None:
    _add_moments(past)
    failure = failure_of(past.error, None)
    told = {names.ATTEMPT: past.attempt, names.ERROR_TYPE: failure.error_type}
    past.span.add_event("retried", {**told, **failure.attributes}, _ns(past.ended))


def _add_moments(record: Record) -> None:
    attempt = {names.ATTEMPT: record.attempt}
    if record.attempt <= 1 and record.resolved is not None:
        record.span.add_event("ready", timestamp=_ns(record.resolved))
    for name, moment in (("submitted", record.submitted), ("started", record.started)):
        if moment is not None:
            record.span.add_event(name, attempt, _ns(moment))


def _tell_program(span: Span, component: Component) -> None:
    error = component.error
    command = error.cmd if isinstance(error, ExecutableError) else command_of(component).get(names.COMMAND_ARGS)
    words = command.split() if isinstance(command, str) else command
    if words:
        span.set_attribute(names.EXECUTABLE_NAME, os.path.basename(str(words[0])))


def _tell_failure(span: Span, component: Component) -> None:
    failure = failure_of(component.error, component.state)
    span.set_attributes({**failure.attributes, names.OUTCOME: failure.outcome})
    if component.state is not State.FAILED:
        return
    message = failure.attributes[names.EXCEPTION_MESSAGE]
    told = {names.EXCEPTION_TYPE: failure.error_type, names.EXCEPTION_MESSAGE: message}
    if isinstance(component.error, BaseException):
        told[names.EXCEPTION_STACKTRACE] = "".join(traceback.format_exception(component.error))[-_LONGEST:]
    span.set_attribute(names.ERROR_TYPE, failure.error_type)
    span.add_event("exception", told, _ns(component.ended))
    span.set_status(Status(StatusCode.ERROR, message))


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e9)
