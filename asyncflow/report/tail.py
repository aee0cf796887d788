"""The events of a file that grows: read as they come, each once."""

from __future__ import annotations

from pathlib import Path

from asyncflow.errors import NotTelemetryError
from asyncflow.report.files import Event, decode, newest_file

#: Bytes that are read at once.
_CHUNK = 1 << 20


class Tail:
    """The lines of a file that grows. It may still be to come, be cut, or be replaced by another."""

    def __init__(self, path: Path) -> None:
        """`path` is a file, or a folder: then the newest telemetry file there is followed."""
        self._path = path
        #: What is followed; None until it is there.
        self.file: Path | None = None
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._rest = b""
        self._understood = False
        #: Whether the last poll left something for the next.
        self.behind = False

    def poll(self) -> tuple[list[Event], bool]:
        """The next events, and whether the file began anew. Raises NotTelemetryError."""
        self.behind = False
        if self.file is None:
            self.file = newest_file(self._path) if self._path.is_dir() else self._path if self._path.exists() else None
            if self.file is None:
                return [], False
        try:
            return self._read(self.file)
        except FileNotFoundError:
            self.file = None
            return [], False
        except OSError as error:
            raise NotTelemetryError(str(self.file), f"it cannot be read: {error.strerror}") from error

    def _read(self, file: Path) -> tuple[list[Event], bool]:
        with file.open("rb") as opened:
            status = file.stat()
            identity = status.st_dev, status.st_ino
            anew = self._identity not in (None, identity) or status.st_size < self._offset
            if anew:
                self._offset, self._rest = 0, b""
            self._identity = identity
            opened.seek(self._offset)
            data = opened.read(_CHUNK)
        self.behind = len(data) == _CHUNK
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = [event for event in map(decode, lines) if event is not None]
        if lines and not events and not self._understood:
            raise NotTelemetryError(str(file), "its lines are no events of telemetry")
        self._understood = self._understood or bool(events)
        return events, anew
