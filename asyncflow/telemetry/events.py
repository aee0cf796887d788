"""Events as subscribers see them, and events of the user's own."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from asyncflow.errors import EventDefinitionError, EventFieldError

#: Of the user's own types: at least one dot, as in "ising.Checkpoint".
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the file; `docs/telemetry.md` says what each field is."""

    event_id: str
    event_type: str
    #: Seconds since the epoch, by the clock of the host where it happened.
    event_time: float
    emit_time: float
    session_id: str
    backend: str | None
    task_id: str | None
    node_id: str | None
    trace_id: str | None
    span_id: str | None
    attributes: dict[str, Any]
    duration_seconds: float | None = None
    error_type: str | None = None

    @property
    def workflow_id(self) -> str | None:
        workflow_id: str | None = self.attributes.get("asyncflow.workflow_id")
        return workflow_id


def read_event(line: str | bytes) -> Event:
    """The event that a line of the file tells of."""
    return Event(**orjson.loads(line))


class EventType:
    """What `define_event` made: call it with the fields for an event that `telemetry.emit` takes."""

    def __init__(self, name: str, fields: dict[str, type]) -> None:
        self.name = name
        self.fields = fields

    def __call__(self, **values: Any) -> OwnEvent:
        """Raises EventFieldError where a field is missing, unknown or of another type."""
        if values.keys() != self.fields.keys():
            raise EventFieldError(self.name, f"it has the fields {', '.join(self.fields)}")
        for field, kind in self.fields.items():
            value = values[field]
            whole_for_float = kind is float and type(value) is int
            if not (isinstance(value, kind) or whole_for_float) or (kind is not bool and isinstance(value, bool)):
                raise EventFieldError(self.name, f"{field} is {value!r:.80}, not of type {kind.__name__}")
        return OwnEvent(self.name, values)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={kind.__name__}" for name, kind in self.fields.items())
        return f"define_event({self.name!r}, {fields})"


@dataclass(frozen=True, slots=True)
class OwnEvent:
    """An event of the user's own, before it is emitted."""

    name: str
    values: dict[str, Any]


#: What a field may be: what JSON has a form for.
_KINDS = (str, int, float, bool, list, dict)


def define_event(name: str, /, **fields: type) -> EventType:
    """A type of events of your own: `Checkpoint = define_event("ising.Checkpoint", step=int, energy=float)`.

    Then `telemetry.emit(Checkpoint(step=100, energy=-1.7))`. The name has a dot, and does not begin with
    `asyncflow.`; the fields' types are str, int, float, bool, list and dict.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or any(map(keyword.iskeyword, name.split("."))):
        raise EventDefinitionError(name, "a name of words with dots between them, such as 'ising.Checkpoint'")
    if name.startswith("asyncflow."):
        raise EventDefinitionError(name, "a name that does not begin with 'asyncflow.', which is the engine's")
    for field, kind in fields.items():
        if kind not in _KINDS:
            raise EventDefinitionError(name, f"{field} of type str, int, float, bool, list or dict, not {kind!r}")
    return EventType(name, fields)


class Subscriber:
    """One callback, and what is done where it raises."""

    def __init__(self, callback: Callable[[Event], object]) -> None:
        self.callback = callback
        self.failures = 0

    def tell(self, event: Event) -> BaseException | None:
        """Call it; what it raised, the first time."""
        try:
            self.callback(event)
        except BaseException as error:  # a SystemExit, too, is the callback's own affair
            self.failures += 1
            return error if self.failures == 1 else None
        return None
