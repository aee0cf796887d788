"""What the commands that read a run back share: finding it, and putting what they make of it into a file."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from asyncflow.cli.failure import CommandLineError
from asyncflow.errors import NotTelemetryError, UnknownSessionError

if TYPE_CHECKING:
    from asyncflow.report.run import Run


def need_telemetry() -> None:
    """Complain where the extra is missing; to be called before anything of `asyncflow.report` is imported."""
    if importlib.util.find_spec("orjson") is None:
        raise CommandLineError(
            "reading telemetry is not installed; install it with: pip install 'asyncflow-hpc[cli,telemetry]'"
        )


def read(path: str, session: str | None) -> tuple[Run, Path]:
    """A session with the file it stands in."""
    need_telemetry()
    from asyncflow.report.files import find_file
    from asyncflow.report.reading import read_run

    try:
        file = find_file(Path(path))
        run = read_run(file, session)
    except (NotTelemetryError, UnknownSessionError) as error:
        raise CommandLineError(str(error)) from error
    # It stays to the end of the process: not to be looked through for garbage again and again.
    gc.freeze()
    return run, file


def write(content: bytes, output: str | None, beside: Path) -> str | None:
    """Put it into the file `output`, or by default into `beside`, or to stdout for `-`; the file's path, else None.

    Like the telemetry, the file is its owner's alone; it is there whole or not at all.
    """
    if output == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return None
    file = Path(output) if output is not None else beside
    try:
        if file.exists() and not file.is_file():  # a device, a pipe: to be written to, not to be replaced
            file.write_bytes(content)
        else:
            _replace(file, content)
    except OSError as error:
        raise CommandLineError(f"cannot write {file}: {error.strerror}; name another file by -o", 1) from error
    return str(file)


def _replace(file: Path, content: bytes) -> None:
    number, name = tempfile.mkstemp(prefix=f".{file.name[:50]}.", dir=file.parent)
    try:
        with os.fdopen(number, "wb") as out:
            out.write(content)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
