"""What an engine tells about itself: events, spans, metrics. Started by `flow.start_telemetry()`."""

from typing import TYPE_CHECKING, Any

from asyncflow.telemetry.events import Event, EventType, OwnEvent, define_event, read_event
from asyncflow.telemetry.summary import NameSummary, Summary

if TYPE_CHECKING:
    from asyncflow.telemetry.session import Telemetry as Telemetry
else:  # whoever reads a file back has no use for OpenTelemetry, which takes a third of a second to import

    def __getattr__(name: str) -> Any:
        if name != "Telemetry":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from asyncflow.telemetry.session import Telemetry

        return Telemetry


__all__ = ["Event", "EventType", "NameSummary", "OwnEvent", "Summary", "Telemetry", "define_event", "read_event"]
