"""From a path to the events in it: which file is meant, and its lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from asyncflow.errors import NotTelemetryError

#: One line, decoded.
Event = dict[str, Any]


def find_file(path: Path) -> Path:
    """`path` itself, or the newest telemetry file where it is a folder. Raises NotTelemetryError."""
    if not path.is_dir():
        if not path.exists():
            raise NotTelemetryError(str(path), "there is no such file or folder")
        return path
    newest = newest_file(path)
    if newest is None:
        raise NotTelemetryError(str(path), "there is no *.jsonl in this folder")
    return newest


def newest_file(folder: Path) -> Path | None:
    """The file that was written to last; None where there is none."""
    files = [(file.stat().st_mtime_ns, file.name, file) for file in folder.glob("*.jsonl") if file.is_file()]
    return max(files)[2] if files else None


def decode(line: bytes) -> Event | None:
    """The event in a line; None where it is none."""
    try:
        event = orjson.loads(line)
    except ValueError:
        return None
    if type(event) is not dict or type(event.get("event_type")) is not str or type(event.get("session_id")) is not str:
        return None
    # Beyond the year 5000 lies no clock, but what would ruin every chart.
    time = event.get("event_time")
    if (type(time) is not float and type(time) is not int) or not 0 <= time < 1e11:
        return None
    return event if type(event.get("attributes")) is dict else None


def read_events(file: Path) -> Iterator[Event | None]:
    """Each line's event; None for one that is none. Raises NotTelemetryError where the file cannot be read."""
    try:
        with file.open("rb") as lines:
            for line in lines:
                if line != b"\n":
                    yield decode(line)
    except OSError as error:
        raise NotTelemetryError(str(file), f"it cannot be read: {error.strerror}") from error
