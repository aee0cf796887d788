"""One worker process as the pool sees it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

from asyncflow.backends.contract import Place, WorkItem
from asyncflow.backends.definitions import KnownDefinitions
from asyncflow.backends.launch import THREAD_VARIABLES
from asyncflow.backends.orphans import SESSION, Family
from asyncflow.backends.processes.channel import Channel
from asyncflow.backends.processes.progress import Progress
from asyncflow.description import Resources
from asyncflow.errors import signal_name

_START = (
    "import json, sys; path, *rest = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from asyncflow.backends.processes.child import main; main(*rest)"
)


class Seat:
    """One core, held by a worker while it has plain calls."""

    gpus: tuple[str, ...] = ()
    request = Resources(cores=1)


class WorkerProcess:
    """A started worker: its process, its channel, what it has been given."""

    def __init__(
        self,
        name: str,
        family: Family,
        env: Mapping[str, str],
        asked: Mapping[str, str],
        concurrency: int,
        cwd: str | None,
    ) -> None:
        """`env` is the backend's addition to this process's environment, `asked` that of the tasks it is for.

        `cwd` is its working directory; None is this process's.
        """
        self.name = name
        #: Only tasks that ask for exactly this run here: libraries read such variables once.
        self.asked = asked
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as theirs:
            work, control = (self._socket(on_failure, theirs) for _ in range(2))
            self.progress, progress = Progress.create()
            on_failure.callback(self.progress.close)
            theirs.enter_context(os.fdopen(progress))
            descriptors = work[1].fileno(), control[1].fileno(), progress
            arguments = json.dumps([sys.path, *descriptors, name, family.session, family.grace, concurrency])
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, arguments],
                stdin=subprocess.DEVNULL,
                cwd=cwd,
                env={
                    **os.environ,
                    **dict.fromkeys(THREAD_VARIABLES, "1"),
                    **env,
                    **asked,
                    SESSION: family.session,
                },
                pass_fds=descriptors,
                # Out of reach of the terminal's signals, and a process group of its own to be ended as a whole.
                start_new_session=True,
            )
            on_failure.pop_all()
        #: Work and reports, in their order; and what must be heard while a call runs.
        self.channel = Channel(work[0])
        self.control = Channel(control[0])
        self.pidfd = os.pidfd_open(self._process.pid) if hasattr(os, "pidfd_open") else None
        self.place = Place(name, pid=self._process.pid)
        #: The call that it runs, as far as was reported.
        self.first: WorkItem | None = None
        #: Whether it has come up.
        self.greeted = False
        #: Calls and coroutines that it has and that have not ended, by key.
        self.calls: dict[int, WorkItem] = {}
        self.coroutines: dict[int, WorkItem] = {}
        #: Keys of the coroutines that began.
        self.begun: set[int] = set()
        #: The core that it holds for plain calls; None where it has none of these.
        self.seat: Seat | None = None
        #: How many coroutines its loop can begin before it says again that it is free, and had when it last was.
        self.credit = self.granted = 1
        #: When work was last sent to it or it last ended some, by the monotonic clock.
        self.heard = 0.0
        #: Whether it was asked to give back what it has not begun.
        self.recalled = False
        #: Whether its socket takes nothing more for now.
        self.stuffed = False
        #: Takes nothing else: what it runs must be alone, or it is on its way out.
        self.closed = False
        self.definitions = KnownDefinitions(self.channel.post)

    @staticmethod
    def _socket(on_failure: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
        """Our end, which waits for nothing, and the worker's."""
        our_end, their_end = socket.socketpair()
        on_failure.callback(our_end.close)
        theirs.enter_context(their_end)
        our_end.setblocking(False)
        return our_end, their_end

    @property
    def idle(self) -> bool:
        return not (self.calls or self.coroutines or self.closed)

    @property
    def hoards(self) -> bool:
        """Whether it has more than it can be running."""
        return len(self.calls) > 1 or len(self.coroutines) > len(self.begun)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End it and all of its process group now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def has_exited(self) -> bool:
        return self._process.poll() is not None

    def reap(self) -> tuple[int, str]:
        """Wait for its end; its exit code and, in words, how it ended."""
        # Its socket closed before its process ended: nothing can come from it, so it has no reason to live.
        self.kill()
        code = self._process.wait()
        how = f"was ended by {signal_name(-code)}" if code < 0 else f"exited with code {code}"
        return code, f"its worker process {self.pid} {how}"

    def close(self) -> None:
        """Free what this process holds for it."""
        self.channel.sock.close()
        self.control.sock.close()
        self.progress.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
