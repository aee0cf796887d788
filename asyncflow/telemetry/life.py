"""What has happened to a component, event by event: the part of its record that has not been told yet. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from asyncflow.backends.contract import Definition, Kind, Place
from asyncflow.backends.origin import command_in
from asyncflow.graph import State
from asyncflow.telemetry import names
from asyncflow.telemetry.failures import failure_of
from asyncflow.telemetry.record import Record, Shown

_END = {
    State.DONE: names.TASK_COMPLETED,
    State.FAILED: names.TASK_FAILED,
    State.CANCELLED: names.TASK_CANCELED,
}


class Moment(NamedTuple):
    """One event of a component."""

    kind: str
    time: float
    attributes: dict[str, Any]
    #: Whether it happened on a worker.
    placed: bool = False
    #: Fields that only ends have.
    ends: Mapping[str, Any] = MappingProxyType({})


def moments(record: Record, over: bool, place: Place | None) -> Iterator[Moment]:
    """What is new in `record`, in the order of its life; it counts as shown afterwards.

    `over` and `place` are what the record said before: whatever is over has all its times, and where it runs may
    become known at any moment.
    """
    if record.shown < Shown.RESOLVED:
        yield from _before_submission(record)
    if record.submitted is not None:
        yield from _attempt(record, over, place)
    if over:
        yield _end(record, place)


def _before_submission(record: Record) -> Iterator[Moment]:
    if record.shown < Shown.CREATED:
        depends_on = {names.DEPENDS_ON: record.depends_on, names.PARENT: record.parent}
        yield Moment(names.TASK_CREATED, record.created, described(record.definition) | depends_on)
        record.shown = Shown.CREATED
    if record.resolved is not None:
        yield Moment(names.TASK_RESOLVED, record.resolved, {})
        record.shown = Shown.RESOLVED


def _attempt(record: Record, over: bool, place: Place | None) -> Iterator[Moment]:
    started, submitted = record.started, record.submitted or 0.0
    attempt = {names.ATTEMPT: record.attempt}
    if record.shown < Shown.SUBMITTED:
        yield Moment(names.TASK_SUBMITTED, submitted, attempt)
        record.shown = Shown.SUBMITTED
    # It may begin, and end, before the backend's `submit` has returned.
    if record.shown < Shown.QUEUED and (record.queued is not None or started is not None or over):
        yield Moment(names.TASK_QUEUED, record.queued or submitted, attempt)
        record.shown = Shown.QUEUED
    if record.shown < Shown.STARTED and started is not None:
        where = {names.WORKER: place and place.worker, names.PID: place and place.pid}
        yield Moment(names.TASK_STARTED, started, attempt | where, placed=True)
        record.shown = Shown.STARTED


def _end(record: Record, place: Place | None) -> Moment:
    """Of the component, or of an attempt that another one follows."""
    started = record.started
    ended = record.ended or record.created
    attributes = {names.ATTEMPT: record.attempt, names.WORKER: place and place.worker}
    ends: dict[str, Any] = {"duration_seconds": None if started is None else max(0.0, ended - started)}
    if record.state is State.DONE:
        attributes |= command_of(record)
    else:
        failure = failure_of(record.error, record.state)
        attributes |= {**failure.attributes, names.OUTCOME: failure.outcome}
        if record.state is not State.CANCELLED:
            ends["error_type"] = failure.error_type
    if record.state is None:
        return Moment(names.TASK_RETRIED, ended, attributes | {names.LOST: record.lost}, placed=True, ends=ends)
    return Moment(_END[record.state], ended, attributes, placed=True, ends=ends)


def command_of(record: Record) -> dict[str, Any]:
    """What is told of a command that ended well; nothing where there was none."""
    command = None if record.told is None else command_in(record.told)
    return {} if command is None else {names.COMMAND_ARGS: command, names.EXIT_CODE: 0}


def described(definition: Definition) -> dict[str, Any]:
    """What is told of a task at each of its calls."""
    function = definition.fn
    module, name = getattr(function, "__module__", "?"), getattr(function, "__qualname__", definition.name)
    return {
        names.TASK_NAME: definition.name,
        names.TASK_TYPE: definition.kind.value,
        names.EXECUTABLE: f"{module}.{name}",
        names.CORES: 0 if definition.kind is Kind.BLOCK else definition.request.cores,
        names.GPUS: definition.request.gpus,
    }
