"""What must be gone when an engine is: processes, threads, tasks of the loop, signal handlers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asyncflow.backends.orphans import marked

#: The environment variable with which a test marks whatever it starts, directly or not.
MARK = "ASYNCFLOW_TEST"


@dataclass(frozen=True)
class Traces:
    """What exists at one moment, by what identifies it."""

    processes: frozenset[int]
    threads: frozenset[threading.Thread]
    tasks: frozenset[asyncio.Task[Any]]
    handlers: tuple[tuple[int, object], ...]

    def beyond(self, earlier: Traces) -> list[str]:
        """In words, what is here and was not earlier."""
        found = [f"process {pid}: {_command(pid)}" for pid in sorted(self.processes - earlier.processes)]
        found += [f"thread {thread.name}" for thread in self.threads - earlier.threads]
        found += [f"task {task!r}" for task in self.tasks - earlier.tasks]
        # One that is back at its default was another's to begin with.
        changed = {pair for pair in {*self.handlers} - {*earlier.handlers} if pair[1] is not signal.SIG_DFL}
        return found + [f"handler of signal {number}: {handler!r}" for number, handler in sorted(changed, key=str)]


def traces(mark: str) -> Traces:
    """What exists now; called in a coroutine. `mark` is the value of MARK in the environment of this test."""
    return Traces(
        frozenset(descendants()) | frozenset(marked(MARK, mark)),
        frozenset(threading.enumerate()),
        frozenset(asyncio.all_tasks() - {asyncio.current_task()}),
        tuple((number, _handler(number)) for number in sorted(signal.valid_signals())),
    )


def _handler(number: int) -> object:
    handler = signal.getsignal(number)
    # A new one with each of its calls; asyncio's own, for Ctrl-C.
    return "asyncio.Runner" if "Runner._on_sigint" in repr(handler) else handler


def descendants() -> list[int]:
    """Processes that descend from this one, unreaped ones too; none on a system without /proc."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    generation = children.get(os.getpid(), [])
    while generation:
        found += generation
        generation = [child for pid in generation for child in children.get(pid, [])]
    return found


def _parents() -> list[tuple[int, int]]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    pairs = []
    for name in names:
        if name.isdigit():
            fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
            if len(fields) > 1:
                pairs.append((int(name), int(fields[1])))
    return pairs


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # ended meanwhile
        return b""


def _command(pid: int) -> str:
    command = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return command[:300] or "has ended and was not waited for"


async def nothing_left(look: Callable[[], list[str]], within: float) -> list[str]:
    """Look until nothing is found, for at most `within` seconds; what was found last."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    pause = 0.001
    while (found := look()) and loop.time() < deadline:
        # The table of processes announces nothing.
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.1)
    return found
