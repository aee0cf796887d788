"""What an engine tells about itself: events, spans, metrics. Started by `flow.start_telemetry()`."""

from asyncflow.telemetry.events import Event, EventType, OwnEvent, define_event, read_event
from asyncflow.telemetry.session import Telemetry
from asyncflow.telemetry.summary import NameSummary, Summary

__all__ = ["Event", "EventType", "NameSummary", "OwnEvent", "Summary", "Telemetry", "define_event", "read_event"]
