"""Log records that tell whose they are: every record of this process, whichever logger made it."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

from asyncflow.backends.contract import Origin
from asyncflow.backends.origin.current import here

#: Attributes of log records; None where there is nothing to tell. The first two are named as OpenTelemetry's own
#: instrumentation of logging names them.
LOG_TRACE_ID = "otelTraceID"
LOG_SPAN_ID = "otelSpanID"
LOG_TASK_ID = "asyncflow_task_id"
LOG_WORKFLOW_ID = "asyncflow_workflow_id"


class _Factory:
    """Makes records as `wrapped` does, and adds the ids while it is `active`."""

    def __init__(self, wrapped: Callable[..., logging.LogRecord]) -> None:
        self.wrapped = wrapped
        self.active = True

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.wrapped(*args, **kwargs)
        if self.active:
            _add_ids(record.__dict__)
        return record


class _LogIds:
    """The factory of this process while anybody wants it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._factory: _Factory | None = None

    def install(self) -> None:
        with self._lock:
            self._users += 1
            if self._factory is None:
                self._factory = _Factory(logging.getLogRecordFactory())
                logging.setLogRecordFactory(self._factory)

    def remove(self) -> None:
        with self._lock:
            self._users = max(0, self._users - 1)
            factory = self._factory
            if self._users or factory is None:
                return
            self._factory = None
            # Whoever wrapped it meanwhile goes on calling it.
            factory.active = False
            if logging.getLogRecordFactory() is factory:
                logging.setLogRecordFactory(factory.wrapped)


_log_ids = _LogIds()


def install_log_ids() -> None:
    """Have every log record of this process carry the ids, until `remove_log_ids` was called as often."""
    _log_ids.install()


def remove_log_ids() -> None:
    """Take back one `install_log_ids`. More of these than of those do nothing."""
    _log_ids.remove()


def _add_ids(attributes: dict[str, Any]) -> None:
    origin = here()
    attributes[LOG_TASK_ID] = None if origin is None else origin.task_id
    attributes[LOG_WORKFLOW_ID] = None if origin is None else origin.workflow_id
    trace_id, span_id = _trace_ids(origin)
    if trace_id is not None:
        attributes[LOG_TRACE_ID], attributes[LOG_SPAN_ID] = trace_id, span_id
    else:  # OpenTelemetry's instrumentation may have been there
        attributes.setdefault(LOG_TRACE_ID, None)
        attributes.setdefault(LOG_SPAN_ID, None)


def _trace_ids(origin: Origin | None) -> tuple[str | None, str | None]:
    """Those of OpenTelemetry's current span; of the task where it is not installed."""
    # Where nobody has imported it, no span is current.
    current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current_span is not None:
        context = current_span().get_span_context()
        if context.is_valid:
            return f"{context.trace_id:032x}", f"{context.span_id:016x}"
    parts = [] if origin is None else (origin.traceparent or "").split("-")
    return (parts[1], parts[2]) if len(parts) == 4 else (None, None)
