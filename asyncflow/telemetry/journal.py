"""The JSONL file: whole lines, appended, by one thread."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from time import gmtime, strftime

from asyncflow.telemetry.batch import Batch

_log = logging.getLogger("asyncflow")


def file_for(path: str | Path, session_id: str) -> Path:
    """Where the journal of a session goes: `path` itself where it ends in `.jsonl`, else a new file in that folder."""
    path = Path(path)
    if path.suffix == ".jsonl":
        return path
    return path / f"{session_id}.{strftime('%Y%m%dT%H%M%SZ', gmtime())}.{os.getpid()}.jsonl"


class Journal:
    """Appends lines to a file, its owner's alone. A failure of the file's costs one warning, and nothing else."""

    def __init__(self, path: Path) -> None:
        """Makes the folder and opens the file; raises OSError."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A pipe that nobody reads is refused, instead of waited for.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.open(path, flags, 0o600)
        #: The rest of what the system took only a part of: it must come first, or a line would be torn in two.
        self._rest = b"\n" if _is_torn(path) else b""
        #: Lines that could not be written.
        self.dropped = 0
        self._warned = False
        self._closed = False

    def take(self, batch: Batch) -> None:
        """Write the lines of `batch`."""
        if batch.lines and not self._closed:
            self.write(batch.lines)

    def write(self, lines: list[bytes]) -> None:
        """Write them, or none where the file takes no more."""
        data = self._rest + b"\n".join([*lines, b""])
        try:
            written = _write_all(self._file, data)
        except OSError as error:
            self._refused(error, data.count(b"\n", len(self._rest)))
            return
        if written < len(data):
            self._cut(data, written)
        else:
            self._rest = b""

    def _refused(self, error: OSError, lines: int) -> None:
        self.dropped += lines
        if not self._warned:
            self._warned = True
            _log.warning(
                "telemetry cannot write to %s (%s): events are left out of it until that is possible again",
                self.path,
                error.strerror,
            )

    def _cut(self, data: bytes, written: int) -> None:
        """Only a part was written: the line that it ends in must be made whole, what follows is left out."""
        torn = data[written - 1 : written] != b"\n"
        end = data.find(b"\n", written) + 1 if torn else written
        self._rest = data[written:end]
        self._refused(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), data.count(b"\n", end))

    def close(self) -> None:
        """What is offered later is left out."""
        self._closed = True
        os.close(self._file)


def _is_torn(path: Path) -> bool:
    """Whether the last line of the file has no end: whoever wrote it was killed."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        return bool(size) and os.pread(file.fileno(), 1, size - 1) != b"\n"


def _write_all(file: int, data: bytes) -> int:
    """Write as much as the system takes; how many bytes. Raises OSError where it takes none."""
    view, written = memoryview(data), 0
    while written < len(data):
        try:
            count = os.write(file, view[written:])
        except OSError:
            if not written:
                raise
            break
        if not count:
            break
        written += count
    return written
