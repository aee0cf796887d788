"""The command line in a process of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncflow.testing.leaks import descendants
from tests.support.scripts import environment

COMMAND = [sys.executable, "-m", "asyncflow"]


def command_line(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end; `variables` are added to its environment."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**environment(), **variables},
        timeout=100,
    )


def start_command_line(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start it in a process group of its own, as a shell does, with pipes for stdout and stderr."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # process_group= came with Python 3.11
    )


#: What a terminal is told when lines are taken out of the region that scrolls, and when they are given back.
RESERVED, RELEASED = re.compile(r"\x1b\[1;\d+r"), "\x1b[r"


class Terminal:
    """Reads what a program writes to its terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def until(self, words: str) -> str:
        """What has come since the last call, as soon as `words` are in it."""
        received = b""
        while words.encode() not in received:
            received += os.read(self._descriptor, 100_000)
        return received.decode(errors="replace")  # a character may have come in part


@contextmanager
def on_terminal(
    *arguments: str | Path, lines: int = 24, columns: int = 100
) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """Start it in a process group of its own with a terminal of that size for stdout and stderr."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**environment(), "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield process, Terminal(ours)
    finally:
        process.kill()  # nothing, where it has ended
        process.wait()
        os.close(ours)


def ctrl_c(process: subprocess.Popen[Any]) -> None:
    """What a terminal does at Ctrl-C: the signal goes to the whole group in the foreground."""
    os.killpg(process.pid, signal.SIGINT)


def all_gone(before: set[int], within: float = 10.0) -> list[int]:
    """Processes that descend from this one and did not `before`, as soon as there are none or when time is up."""
    deadline = time.monotonic() + within
    while (left := sorted(set(descendants()) - before)) and time.monotonic() < deadline:
        time.sleep(0.02)  # the table of processes announces nothing
    return left
