"""One engine's telemetry, from its start to its end: puts the parts together and takes them apart."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from asyncflow.backends import origin
from asyncflow.backends.aside import aside
from asyncflow.backends.contract import Backend, Origin, host_name
from asyncflow.backends.hosts import HostSampler
from asyncflow.errors import EventFieldError, InvalidOptionError
from asyncflow.scope import scope_of
from asyncflow.telemetry import names
from asyncflow.telemetry.bounded import close_within
from asyncflow.telemetry.bus import Bus
from asyncflow.telemetry.consumer import Consumer
from asyncflow.telemetry.events import Event, OwnEvent, Subscriber, read_event
from asyncflow.telemetry.journal import Journal, file_for
from asyncflow.telemetry.lines import Lines, ids_of
from asyncflow.telemetry.metrics import Metrics
from asyncflow.telemetry.prometheus import PrometheusEndpoint
from asyncflow.telemetry.providers import Meters
from asyncflow.telemetry.recorder import Recorder
from asyncflow.telemetry.spans import Spans
from asyncflow.telemetry.summary import Counting, Summary
from asyncflow.telemetry.tracing import Tracing, tracing_for
from asyncflow.version import installed_version

if TYPE_CHECKING:
    from asyncflow.engine import WorkflowEngine

_log = logging.getLogger("asyncflow")

#: Seconds that each of those who are slow is waited for at the end.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Options:
    """What `flow.start_telemetry` was asked for."""

    path: str | Path | None
    span_processors: Sequence[Any]
    metric_readers: Sequence[Any]
    #: Where Prometheus can scrape: host and port; None for nowhere.
    prometheus: tuple[str, int] | None
    resource_interval: float | None


class Telemetry:
    """What `await flow.start_telemetry(...)` gives. It ends with the engine, or with `await telemetry.stop()`."""

    def __init__(self, flow: WorkflowEngine, backends: Sequence[Backend], asked: Options) -> None:
        """Use `flow.start_telemetry()`."""
        self._flow = flow
        self._backends = backends
        self._asked = asked
        self._began = time()
        self._lines = Lines(flow.uid)
        self._counting = Counting(flow.uid)
        self._bus = Bus(self._lines, self._counting.take)
        self._consumers: list[Consumer] = []
        self._subscribers: dict[Consumer, Subscriber] = {}
        self._journal: Journal | None = None
        self._tracing: Tracing | None = None
        self._spans: Spans | None = None
        self._endpoint: PrometheusEndpoint | None = None
        self._meters: Meters | None = None
        self._sampler: HostSampler | None = None
        self._stopping: asyncio.Task[None] | None = None

    # --- for users ---------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """The file that is written; None where there is none."""
        return None if self._journal is None else self._journal.path

    @property
    def prometheus_url(self) -> str | None:
        """What Prometheus is to scrape; None where that was not asked for."""
        return None if self._endpoint is None else self._endpoint.url

    def subscribe(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Have `callback` called with every event from now on; what is returned ends that.

        It is called on a thread of its own, in the order of the file. One that raises is told of once, and called on;
        one that is too slow misses events.
        """
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise InvalidOptionError("callback", callback, "a plain function of one event")
        if self._stopping is not None:  # there is nothing more to be told
            return lambda: None
        subscriber = Subscriber(callback)
        consumer = Consumer(f"telemetry subscriber {_name_of(callback)}", lambda batch: _tell(subscriber, batch.lines))
        self._subscribers[consumer] = subscriber
        self._bus.add(consumer)
        self._bus.wants_lines = True
        return lambda: self._unsubscribe(consumer)

    def _unsubscribe(self, consumer: Consumer) -> None:
        if self._subscribers.pop(consumer, None) is not None:
            self._bus.remove(consumer)
            consumer.give_up()

    def emit(self, event: OwnEvent) -> None:
        """Write an event of your own, made by what `define_event` gave; from any thread of this process.

        It carries the task and workflow in whose body, or scope, this is called.
        """
        if not isinstance(event, OwnEvent):
            raise InvalidOptionError("event", event, "what a type made by define_event gives when it is called")
        here = origin.here()
        if here is not None and here.session_id != self._flow.uid:  # inside a task of another engine's
            here = None
        now = time()
        try:
            line = self._lines.event(
                event.name,
                now,
                now,
                event.values,
                task_id=None if here is None else here.task_id,
                workflow_id=self._workflow_of(here),
                trace=ids_of(None if here is None else here.traceparent),
            )
        except Exception as error:  # whatever the user's own values raise
            raise EventFieldError(event.name, f"it cannot be written as JSON: {type(error).__name__}") from error
        self._bus.post_line(line)

    def _workflow_of(self, here: Origin | None) -> str | None:
        """That of the task whose body this is, else the innermost scope's, which may be one within a block."""
        scope = scope_of(self._flow)
        if scope is None or (here is not None and here.workflow_id is not None and not _on_loop(self._flow.loop)):
            return None if here is None else here.workflow_id
        return scope.workflow_id

    def summary(self) -> Summary:
        """What has ended so far, by state, name and workflow; print it, or read its fields."""
        self._bus.show_all()
        return self._counting.so_far()

    async def stop(self) -> None:
        """Write what is left and end it. May be called twice; the engine's shutdown calls it too."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())
        await asyncio.shield(self._stopping)

    def __repr__(self) -> str:
        return f"<Telemetry of {self._flow.uid}: {self.path or 'no file'}>"

    # --- start -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Called by the engine. Leaves nothing behind where it raises."""
        with ExitStack() as undo:
            self._start_spans(undo)
            self._start_metrics(undo)
            if self._asked.path is not None:
                await aside(self._open_journal)
                if self._journal is not None:
                    undo.callback(self._journal.close)
            self._bus.start(self._start_consumers())
            self._bus.post_line(self._session_started())
            origin.install_log_ids()
            recorder = Recorder(self._flow.uid, self._bus, self._lines, self._spans)
            self._flow._scheduler.watch(recorder)
            self._start_sampling(recorder)
            undo.pop_all()

    def _start_spans(self, undo: ExitStack) -> None:
        self._tracing = tracing_for(self._flow.uid, self._asked.span_processors)
        if self._tracing is not None:
            undo.callback(self._tracing.close)
            self._spans = Spans(self._flow.uid, self._tracing, {names.VERSION: installed_version()})
            undo.callback(self._spans.close)

    def _start_metrics(self, undo: ExitStack) -> None:
        readers = list(self._asked.metric_readers)
        if self._asked.prometheus is not None:
            self._endpoint = PrometheusEndpoint(*self._asked.prometheus)
            undo.callback(self._endpoint.close)
            readers.append(self._endpoint.reader)
        self._meters = Meters(readers)
        undo.callback(self._meters.close)

    def _open_journal(self) -> None:
        path = file_for(self._asked.path or "", self._flow.uid)
        try:
            self._journal = Journal(path)
        except OSError as error:
            _log.warning("telemetry cannot write to %s (%s): there will be no file", path, error.strerror or error)

    def _start_consumers(self) -> Iterator[Consumer]:
        if self._journal is not None:
            self._bus.wants_lines = True
            yield self._consumer("the telemetry file", self._journal.take, self._journal.close)
        if self._spans is not None:
            yield self._consumer("the telemetry spans", self._spans.take, self._spans.close)
        metrics = self._metrics()
        if metrics is not None:
            yield self._consumer("the telemetry metrics", metrics.take, metrics.close)

    def _consumer(self, name: str, take: Callable[[Any], None], end: Callable[[], object] | None = None) -> Consumer:
        self._consumers.append(Consumer(name, take, end))
        return self._consumers[-1]

    def _metrics(self) -> Metrics | None:
        meters = self._meters.meters if self._meters is not None else []
        if not meters:
            return None
        return Metrics(meters, lambda: [(each.name, each.capabilities.workers) for each in self._backends])

    def _start_sampling(self, recorder: Recorder) -> None:
        interval = self._asked.resource_interval
        if interval is None:
            return
        self._sampler = HostSampler(interval, lambda figures: recorder.measured(None, figures))
        self._sampler.start()
        for backend in self._backends:
            measure = getattr(backend, "measure", None)
            if measure is not None:
                measure(interval)

    def _session_started(self) -> bytes:
        described = []
        for backend in self._backends:
            capabilities = backend.capabilities
            total = capabilities.total
            described.append(
                {
                    "name": backend.name,
                    "workers": capabilities.workers,
                    "cores": total.cores,
                    "gpus": total.gpus,
                    "memory": total.memory,
                }
            )
        attributes = {
            names.VERSION: installed_version(),
            names.PYTHON: platform.python_version(),
            names.PID: os.getpid(),
            names.COMMAND_ARGS: sys.argv,
            names.BACKENDS: described,
        }
        return self._lines.event(names.SESSION_STARTED, self._began, time(), attributes, **self._about_session())

    def _about_session(self) -> dict[str, Any]:
        ids = (None, None) if self._spans is None else self._spans.ids
        return {"node": host_name(), "trace": ids}

    # --- end ---------------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        self._flow._scheduler.watch(None)
        if self._sampler is not None:
            self._sampler.stop()
            thread = self._sampler.thread
            await aside(lambda: thread.join(_PATIENCE))  # a hung driver must not hold up the shutdown
        await aside(self._close, "asyncflow-telemetry-stop")
        origin.remove_log_ids()
        self._flow._telemetry = None

    def _close(self) -> None:
        """Hand on what is left, then end every part; nobody is waited for longer than some seconds."""
        self._bus.show_all()
        self._bus.post_line(self._session_ended())
        self._bus.close()
        consumers = [*self._consumers, *self._subscribers]
        for consumer in consumers:
            consumer.close()
        deadline = monotonic() + _PATIENCE
        for consumer in consumers:
            consumer.finish(max(0.0, deadline - monotonic()))
        self._close_exporters()

    def _session_ended(self) -> bytes:
        now = time()
        dropped = self._journal.dropped if self._journal is not None else 0
        attributes = {
            names.TASKS: dict(self._counting.so_far().tasks),
            names.DROPPED: dropped + sum(consumer.dropped for consumer in self._consumers),
        }
        duration = now - self._began
        return self._lines.event(
            names.SESSION_ENDED, now, now, attributes, duration_seconds=duration, **self._about_session()
        )

    def _close_exporters(self) -> None:
        """Span processors and metric readers were given for this session, and go with it."""
        closing: dict[str, Callable[[], object]] = {}
        for processor in self._asked.span_processors:
            closing[f"span processor {type(processor).__name__}"] = processor.shutdown
        if self._meters is not None:
            closing["the metric readers"] = self._meters.close
        close_within(closing, _PATIENCE)
        if self._tracing is not None:
            self._tracing.close()
        if self._endpoint is not None:
            self._endpoint.close()


def _tell(subscriber: Subscriber, lines: Sequence[bytes]) -> None:
    for line in b"\n".join(lines).splitlines():
        error = subscriber.tell(read_event(line))
        if error is not None:
            _log.warning(
                "a telemetry subscriber, %s, raised %s: %s; it is called on, and this is not told again",
                _name_of(subscriber.callback),
                type(error).__name__,
                error,
                exc_info=error,
            )


def _name_of(callback: Callable[..., object]) -> str:
    return str(getattr(callback, "__qualname__", type(callback).__name__))


def _on_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is code on `loop`: a block's, or the program's own."""
    return asyncio._get_running_loop() is loop
