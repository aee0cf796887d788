"""The command line in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def ctrl_c(process: subprocess.Popen[str]) -> None:
    """What a terminal does at Ctrl-C: the signal goes to the whole group in the foreground."""
    os.killpg(process.pid, signal.SIGINT)


def all_gone(before: set[int], within: float = 10.0) -> list[int]:
    """Processes that descend from this one and did not `before`, as soon as there are none or when time is up."""
    deadline = time.monotonic() + within
    while (left := sorted(set(descendants()) - before)) and time.monotonic() < deadline:
        time.sleep(0.02)  # the table of processes announces nothing
    return left
