"""Ending processes that outlived their owner.

Everything that a backend starts carries a mark in its environment, which all its descendants inherit, even those that
left its process group and session. A guardian process, one a backend, waits for the engine's process to end and then
ends what carries the mark. This file is also the guardian's program: it imports the standard library only.

The marks are read from /proc; on systems without it nothing is found, and only process groups are ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid

#: The environment variable that marks what a backend started; its value is the backend's session.
SESSION = "ASYNCFLOW_SESSION"
#: The same for what one attempt of a task started.
ATTEMPT = "ASYNCFLOW_ATTEMPT"

#: Seconds between TERM and KILL when the guardian ends what a killed engine left; the engine promises 10 in all.
_GRACE = 3.0


def marked(variable: str, value: str) -> list[int]:
    """Ids of the living processes, other than this one, with `variable=value` in the environment they began with."""
    needle = f"{variable}={value}".encode()
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    except OSError:
        return []
    return [int(name) for name in names if needle in _environment(name) and not _is_zombie(name)]


def marks(variable: str) -> dict[str, list[int]]:
    """The same for all values of `variable` at once: process ids by value."""
    found: dict[str, list[int]] = {}
    prefix = f"{variable}=".encode()
    with contextlib.suppress(OSError):
        for name in [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]:
            value = next((entry for entry in _environment(name) if entry.startswith(prefix)), None)
            if value is not None and not _is_zombie(name):
                found.setdefault(value.removeprefix(prefix).decode(errors="replace"), []).append(int(name))
    return found


def _environment(pid: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:  # ended meanwhile, or another user's
        return []


def _is_zombie(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return True


def end(pids: list[int], number: int) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def sweep(variable: str, value: str, grace: float = 0.0, within: float = 5.0) -> int:
    """End every process that carries the mark: TERM, KILL after `grace` seconds; how many were found.

    Blocks until none is left, for at most `grace + within` seconds.
    """
    pids = marked(variable, value)
    found = len(pids)
    if grace and pids:
        end(pids, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while pids and time.monotonic() < deadline:
            time.sleep(0.05)
            pids = marked(variable, value)
    deadline = time.monotonic() + within
    while pids and time.monotonic() < deadline:
        end(pids, signal.SIGKILL)
        time.sleep(0.02)
        # Once more even after the last: what was killed may have forked just before.
        pids = marked(variable, value)
    return found


class Family:
    """All processes that one backend starts, and their guardian, which outlives a killed engine to end them."""

    def __init__(self, grace: float, session: str | None = None) -> None:
        """`grace` is seconds between TERM and KILL. A worker process gets its backend's `session`, and no guardian."""
        self.grace = grace
        self.session = session or uuid.uuid4().hex
        self._guarded_elsewhere = session is not None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def guard(self) -> None:
        """Start the guardian, once: before the first process. Takes a few milliseconds: not for the event loop."""
        with self._lock:
            if self._process is None and not self._guarded_elsewhere:
                # -I -S: nothing of the user's environment is imported, and it starts in 10 ms.
                command = [sys.executable, "-I", "-S", __file__, self.session, str(os.getpid())]
                # Of no other family: it must outlive that of its owner, to end this one.
                environment = {name: value for name, value in os.environ.items() if name not in (SESSION, ATTEMPT)}
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",
                    env=environment,
                )

    def disband(self) -> None:
        """End what is left of the family and send the guardian home. Blocks for some milliseconds."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        sweep(SESSION, self.session)
        self._send_home(process)

    @staticmethod
    def _send_home(process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.write(b".")
            with contextlib.suppress(OSError):
                process.stdin.close()
        process.wait()


def _guard(session: str, owner: int) -> None:
    # The pipe tells at once; the parent's id tells also where a fork of the engine still holds the pipe open.
    while os.getppid() == owner:
        readable, _, _ = select.select([0], [], [], 1.0)
        if readable:
            if os.read(0, 1):
                return
            break
    sweep(SESSION, session, grace=_GRACE)


if __name__ == "__main__":
    _guard(sys.argv[1], int(sys.argv[2]))
