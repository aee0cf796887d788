"""What is told of: components, and attempts that another one followed. Pure."""

from __future__ import annotations

from enum import IntEnum

from asyncflow.component import Component
from asyncflow.graph import State


class Shown(IntEnum):
    """How far a component has been turned into events."""

    NOTHING = 0
    CREATED = 1
    RESOLVED = 2
    SUBMITTED = 3
    QUEUED = 4
    STARTED = 5
    ALL = 6


class PastAttempt:
    """An attempt that ended and that another one follows: what its component had noted of it."""

    #: It has none: its component has not ended.
    state: State | None = None
    over = True
    waiting = False
    told: bytes | None = None

    def __init__(self, component: Component) -> None:
        self.uid = component.uid
        self.definition = component.definition
        self.backend = component.backend
        self.workflow_id = component.workflow_id
        self.parent = component.parent
        self.attempt = component.attempt
        self.depends_on = component.depends_on
        self.created = component.created
        self.resolved = component.resolved
        self.submitted = component.submitted
        self.queued = component.queued
        self.started = component.started
        self.ended = component.ended
        self.place = component.place
        self.error = component.error
        self.lost = component.lost
        self.span = component.span
        self.traceparent = component.traceparent
        self.shown = component.shown
        self.seen_running = component.seen_running


#: What batches are of. Its times are seconds since the epoch, None for what has not happened.
Record = Component | PastAttempt
