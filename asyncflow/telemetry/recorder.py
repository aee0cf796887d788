"""Notes what happens to components: the scheduler's observer. Its cost is paid by every task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from time import time
from typing import Any

from asyncflow.backends.contract import HostFigures, Loss, Origin, Outcome, Place, WorkItem
from asyncflow.component import Component
from asyncflow.future import TaskFuture
from asyncflow.graph import Phase
from asyncflow.telemetry import names
from asyncflow.telemetry.bus import Bus
from asyncflow.telemetry.lines import Lines
from asyncflow.telemetry.record import PastAttempt, Shown
from asyncflow.telemetry.spans import Spans, make_current

_log = logging.getLogger("asyncflow")


class Recorder:
    """One engine's `Observer`."""

    def __init__(self, session_id: str, bus: Bus, lines: Lines, spans: Spans | None) -> None:
        self._session = session_id
        self._bus = bus
        self._note = bus.note
        self._put = bus.put
        self._lines = lines
        self._spans = spans
        self._origin = self._origin_of  # bound once
        self._failed = False

    def created(self, component: Component, dependencies: Sequence[asyncio.Future[Any]]) -> None:
        component.created = time()
        component.depends_on = _uids(dependencies, component) if dependencies else ()
        component.resolved = component.past = None
        component.span = component.context_ids = component.traceparent = None
        component.shown, component.over = Shown.NOTHING, False
        _forget_attempt(component)
        if self._spans is not None:
            self._try(lambda spans: spans.begin(component, dependencies))
        component.waiting = True
        self._put(component)

    def _try(self, function: Callable[[Spans], None]) -> None:
        """What is not ours, a sampler or a span processor, may raise: that must not cost the run anything."""
        try:
            if self._spans is not None:
                function(self._spans)
        except Exception:
            if not self._failed:
                self._failed = True
                _log.warning("a span could not be begun; further ones are not told of", exc_info=True)

    def adopt(self, component: Component) -> None:
        self.created(component, ())
        if component.phase is not Phase.WAITING:
            component.resolved = component.created
        item = component.item
        if item is not None:
            component.started = item.started
            component.created = min(component.created, item.started or component.created)
            component.resolved = component.submitted = component.created

    def resolved(self, component: Component) -> None:
        if component.resolved is None:
            component.resolved = time()
            if not component.waiting:
                self._note(component)
        elif component.submitted is not None:  # after a loss, or taken back by the engine
            self._next(component)

    def submitting(self, items: Iterable[WorkItem]) -> None:
        now, origin = time(), self._origin
        for item in items:
            component: Component = item.component
            component.submitted = now
            item.origin = origin
            if component.span is not None:
                self._trace(component, item)
            if not component.waiting:
                self._note(component)

    def _trace(self, component: Component, item: WorkItem) -> None:
        item.origin = self._origin_of(item)
        if item.context is not None:
            item.context.run(make_current, component.span)

    def _origin_of(self, item: WorkItem) -> Origin:
        component: Component = item.component
        return Origin(self._session, component.uid, component.workflow_id, component.traceparent)

    def queued(self, items: Iterable[WorkItem]) -> None:
        now = time()
        for item in items:
            component: Component = item.component
            if component.item is item:
                component.queued = now

    def started(self, item: WorkItem, place: Place | None, time: float) -> None:
        component: Component = item.component
        if component.item is item:  # or it was given up
            component.place = place
            component.started = time
            if not component.waiting:
                self._note(component)

    def settled(self, item: WorkItem, outcome: Outcome) -> None:
        component: Component = item.component
        component.ended = outcome.ended
        if outcome.place is not None:
            component.place = outcome.place
        # Not every start is reported on its own; of what never began nothing is said that took time.
        if outcome.error is None or outcome.ended > outcome.started:
            component.started = outcome.started
        component.told = told = outcome.spans
        if told is not None and self._spans is not None:
            self._bus.post(lambda batch: batch.spans.append(told))

    def lost(self, item: WorkItem, loss: Loss) -> None:
        component: Component = item.component
        component.ended, component.error, component.lost = time(), loss, True

    def given_up(self, item: WorkItem) -> None:
        item.component.ended = time()

    def retried(self, component: Component, error: BaseException) -> None:
        component.error = error
        self._next(component)

    def _next(self, component: Component) -> None:
        """Tell of the attempt, and forget it for the next one."""
        component.ended = component.ended or time()
        with self._bus.looking:
            component.past = [*(component.past or ()), PastAttempt(component)]
            component.shown = Shown.RESOLVED
            _forget_attempt(component)
        self._note(component)

    def ended(self, component: Component, error: BaseException | None) -> None:
        if component.ended is None:
            component.ended = time()
        component.error = error
        component.lost = False
        component.over = True
        if not component.waiting:
            self._note(component)

    def entered(self, workflow_id: str) -> None:
        if self._spans is not None:
            self._try(lambda spans: spans.entered(workflow_id))

    def left(self, workflow_id: str) -> None:
        if self._spans is not None:
            self._try(lambda spans: spans.left(workflow_id))

    def blocked(self, who: str, where: str, seconds: float) -> None:
        attributes = {names.WHO: who, names.WHERE: where, names.SECONDS: round(seconds, 3)}
        now = time()
        self._bus.post_line(self._lines.event(names.LOOP_BLOCKED, now - seconds, now, attributes))

    def measured(self, backend: str | None, figures: HostFigures) -> None:
        self._bus.post_figures(backend, figures)
        attributes = {
            "cpu_percent": round(figures.cpu_percent, 1),
            "memory_used": figures.memory_used,
            "memory_total": figures.memory_total,
            "disk_read": figures.disk_read,
            "disk_written": figures.disk_written,
            "net_received": figures.net_received,
            "net_sent": figures.net_sent,
            "gpus": [
                {
                    "id": gpu.id,
                    "utilisation": gpu.utilisation,
                    "memory_used": gpu.memory_used,
                    "memory_total": gpu.memory_total,
                }
                for gpu in figures.gpus
            ],
        }
        line = self._lines.event(
            names.RESOURCE_UPDATE, figures.time, time(), attributes, backend=backend, node=figures.host
        )
        self._bus.post_line(line)


def _uids(dependencies: Sequence[asyncio.Future[Any]], component: Component) -> tuple[str, ...]:
    """Of those that are components of the same engine."""
    own = component.binding.scheduler
    return tuple(
        future._component.uid
        for future in dependencies
        if type(future) is TaskFuture and future._component.binding.scheduler is own
    )


def _forget_attempt(component: Component) -> None:
    component.submitted = component.queued = component.started = component.ended = None
    component.place = component.error = component.told = None
    component.lost = component.seen_running = False
