"""What a killed pilot leaves: processes here, jobs and job steps of SLURM's. All carry the session's name."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from getpass import getuser
from pathlib import Path

from asyncflow.backends.allocation import ask
from asyncflow.backends.radical.files import Files, began

_log = logging.getLogger("asyncflow")

#: Seconds to wait for what was killed to be gone.
_WITHIN = 10.0


def end_all(root: Path) -> None:
    """End what is left of pilots below `root` whom nobody holds any more."""
    for folder in root.glob("asyncflow.*"):
        files = Files(folder)
        owner = files.owner()
        if owner is None or files.closed or is_held(files):
            continue
        _log.warning("ending what is left of a pilot that was killed; its files are in %s", folder)
        end_session(files)


def end_session(files: Files) -> None:
    """End all that carries the session's name, here and in SLURM. Blocks."""
    session = files.session
    if found := [*_jobs(session), *_steps(session)]:
        ask("scancel", *found)
    deadline = time.monotonic() + _WITHIN
    # Again even after the last: what was killed may have started something just before.
    while (pids := processes(session)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    if not pids:
        files.note_closed()


def processes(session: str) -> list[int]:
    """Those of this host that carry the name: in their environment, command line or working directory.

    RADICAL-Pilot's own overwrite the first two. Never this process, nor what it descends from, nor what somebody has in
    a terminal, where the name may stand because he looks at the files.
    """
    skipped, needle = _lineage(), session.encode()
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if pid not in skipped and needle in _traits(pid) and not _has_terminal(pid)]


def _has_terminal(pid: int) -> bool:
    return _status(pid)[4:5] not in ([], ["0"])


def _status(pid: int) -> list[str]:
    """What /proc tells of a process, from its state on; nothing where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _traits(pid: int) -> bytes:
    traits = b""
    for name in ("environ", "cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            traits += Path(f"/proc/{pid}/{name}").read_bytes()
    with contextlib.suppress(OSError):
        traits += os.readlink(f"/proc/{pid}/cwd").encode()
    return traits


def _lineage() -> set[int]:
    pid, found = os.getpid(), set()
    while pid > 0:
        found.add(pid)
        pid = int([*_status(pid), "0", "0"][1])
    return found


def _jobs(session: str) -> Iterator[str]:
    """Jobs whose folder is the session's: their names are not RADICAL-Pilot's to choose."""
    return _numbers(session, ask("squeue", "--noheader", f"--user={getuser()}", "--format=%A %Z"))


def _steps(session: str) -> Iterator[str]:
    """Steps of the job that this runs in: of the same allocation, which a new program may have been started in."""
    job = os.environ.get("SLURM_JOB_ID")
    shown = ask("squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i %j") if job else None
    return _numbers(session, shown)


def _numbers(session: str, shown: str | None) -> Iterator[str]:
    """First words of the lines that have the session's name in them."""
    for line in (shown or "").splitlines():
        number, _, rest = line.strip().partition(" ")
        if session in rest:
            yield number


def is_held(files: Files) -> bool:
    """Whether the process that holds the pilot is there, as far as can be told from here."""
    owner = files.owner()
    if owner is None:
        return False
    if owner["host"] != socket.gethostname():
        return True  # not for this host to say
    return owner["began"] is not None and began(owner["pid"]) == owner["began"]
