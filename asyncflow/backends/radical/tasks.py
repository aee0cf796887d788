"""Executables as tasks of a pilot: the nodes are ours to choose, the launching is RADICAL-Pilot's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from asyncflow.backends.aside import aside
from asyncflow.backends.body import cancelled_outcome
from asyncflow.backends.contract import ExecutableOptions, ItemReports, Outcome, Place, WorkItem
from asyncflow.backends.dask.node import Node, Share
from asyncflow.backends.dask.wire import Wire
from asyncflow.backends.executable import TAIL, output_files, parse_command
from asyncflow.backends.item_threads import ItemThreads
from asyncflow.backends.origin import note_command
from asyncflow.backends.radical.description import (
    OBSTACLES,
    check_words,
    describe_attempt,
    mark_of,
    slot,
    without_wrapping,
)
from asyncflow.backends.radical.messages import PilotNode, TaskState
from asyncflow.backends.radical.workers import worker_name
from asyncflow.errors import CommandError, CommandNotFoundError, CommandStartError, ExecutableError

#: Seconds for agents to answer where the pilot is gone.
_PATIENCE = 5.0
#: Seconds beyond the grace in which what was cancelled has ended.
_DELAY = 30.0


class Attempt:
    """One executable on its way."""

    def __init__(self, item: WorkItem, shares: Sequence[Share]) -> None:
        self.item = item
        self.shares = shares
        #: Under which RADICAL-Pilot knows it; empty while its command is being made.
        self.uid = ""
        #: What its function returned, and that as a list of words.
        self.returned: Any = None
        self.argv: list[str] = []
        #: Numbers of the cores that it has, by node.
        self.cores: dict[str, list[int]] = {}
        self.began: float | None = None
        self.ended = asyncio.Event()
        #: What its function told beside the command: the outcome's.
        self.spans: bytes | None = None


class PilotTasks:
    """Runs executables on nodes that it is given. On the backend's own loop."""

    def __init__(
        self,
        wire: Wire,
        session: str,
        nodes: Sequence[PilotNode],
        reports: ItemReports,
        workers: Sequence[Node],
        *,
        name: str,
        grace: float,
    ) -> None:
        """`wire` leads to whoever holds the pilot; `workers` are those that are there at any time.

        `grace` is seconds between TERM and KILL.
        """
        self._wire = wire
        self._session = session
        self._nodes = {worker_name(node): node for node in nodes}
        self._free = {name: deque(node.cores) for name, node in self._nodes.items()}
        self._reports = reports
        self._workers = workers
        self._name = name
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._numbers = count(1)
        #: Distinguishes this engine's tasks from those of another one that used the pilot.
        self._prefix = f"{session}.{os.getpid():x}{time.monotonic_ns() & 0xFFFFFF:06x}"
        self._attempts: dict[WorkItem, Attempt] = {}
        self._sent: dict[str, Attempt] = {}
        self._threads = ItemThreads(_Made(self), self._make, name=name, grace=grace)
        self._tasks: set[asyncio.Task[None]] = set()
        #: Whether nothing will be told of the pilot's tasks any more.
        self._lost = False

    # --- their start -------------------------------------------------------------------------------------------------

    def run(self, item: WorkItem, shares: Sequence[Share]) -> None:
        """Run `item` there; its end is reported."""
        self._attempts[item] = Attempt(item, shares)
        self._threads.run(item, shares[0].node.host)

    @staticmethod
    def _make(item: WorkItem, returned: Any) -> tuple[Any, list[str]]:
        options = item.definition.executable or ExecutableOptions()
        argv = parse_command(item.definition.name, returned, options.shell)
        if item.origin is not None:
            note_command(item.origin, argv)
        return returned, argv

    def made(self, item: WorkItem, outcome: Outcome) -> None:
        """The function of an executable has ended; from any thread."""
        self._loop.call_soon_threadsafe(self._send, item, outcome)

    def _send(self, item: WorkItem, outcome: Outcome) -> None:
        attempt = self._attempts[item]
        if item.cancelled or self._lost:
            outcome = cancelled_outcome(Place(self._name))
        try:
            if outcome.error is not None:
                raise outcome.error
            attempt.returned, attempt.argv = outcome.value
            attempt.spans = outcome.spans
            description = self._describe(attempt)
        except BaseException as error:
            outcome.value, outcome.error = None, error
            self._end(attempt, outcome)
            return
        self._sent[attempt.uid] = attempt
        self._wire.post("submit", (description,))

    def _describe(self, attempt: Attempt) -> dict[str, Any]:
        item = attempt.item
        attempt.uid = f"{self._prefix}.{next(self._numbers)}"
        options = item.definition.executable or ExecutableOptions()
        cwd = os.path.abspath(options.cwd or ".")
        check_words(item.definition.name, attempt.argv, cwd)
        return describe_attempt(attempt.uid, self._session, item, attempt.argv, cwd, self._slots(attempt))

    def _slots(self, attempt: Attempt) -> Sequence[dict[str, Any]]:
        rank = attempt.item.definition.rank
        cores, gpus = rank.cores, rank.gpus
        slots = []
        for share in attempt.shares:
            name = share.node.name
            taken = attempt.cores[name] = [self._free[name].popleft() for _ in range(share.ranks * cores)]
            ids = [int(gpu) for gpu in share.gpus]
            for number in range(share.ranks):
                own = taken[number * cores : (number + 1) * cores], ids[number * gpus : (number + 1) * gpus]
                slots.append(slot(self._nodes[name], *own))
        return slots

    def heed(self, task: TaskState) -> None:
        """The pilot has come on with a task."""
        attempt = self._sent.get(task.uid)
        if attempt is None or self._lost:
            return
        if attempt.began is None:
            attempt.began = time.time()
            if not attempt.item.cancelled:
                self._reports.started(attempt.item, self._place(attempt), attempt.began)
        if task.final and not attempt.ended.is_set():
            attempt.ended.set()
            self._keep(self._finish(attempt, task))

    def _place(self, attempt: Attempt) -> Place:
        first = attempt.shares[0].node
        return Place(first.name, first.host, 0)

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- their end ---------------------------------------------------------------------------------------------------

    def cancel(self, item: WorkItem) -> None:
        """End `item`: TERM for all of its processes, KILL after the grace."""
        item.cancelled = True
        attempt = self._attempts.get(item)
        if attempt is None or attempt.ended.is_set():
            return
        if attempt.uid:
            self._keep(self._strike(attempt))
        else:
            self._threads.cancel(item)

    async def _strike(self, attempt: Attempt) -> None:
        if attempt.began is not None and await self._signal(attempt, signal.SIGTERM):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(attempt.ended.wait(), self._grace)
                return
            await self._signal(attempt, signal.SIGKILL)
        self._wire.post("cancel", (attempt.uid,))

    async def _signal(self, attempt: Attempt, number: int) -> int:
        """Send it a signal wherever it runs; how many processes that has reached."""
        return sum(reached or 0 for reached in await self._ask(attempt, "strike", mark_of(attempt.uid), int(number)))

    async def _ask(self, attempt: Attempt, verb: str, *data: Any) -> list[Any]:
        """What the workers answer that are now where it runs."""
        names = {share.node.name for share in attempt.shares}
        return await asyncio.gather(*(node.ask(verb, *data) for node in self._workers if node.name in names))

    async def _finish(self, attempt: Attempt, task: TaskState) -> None:
        # What it has left in the background ends with it.
        await self._ask(attempt, "sweep", mark_of(attempt.uid))
        item, place = attempt.item, self._place(attempt)
        began = attempt.began if attempt.began is not None else time.time()
        outcome = Outcome(None, None, began, time.time(), place)
        try:
            if item.cancelled:
                outcome.error = asyncio.CancelledError()
            else:
                outcome.value = await aside(lambda: self._result(attempt, task))
        except Exception as error:
            outcome.error = error
        outcome.spans = attempt.spans
        self._end(attempt, outcome)

    def _result(self, attempt: Attempt, task: TaskState) -> str:
        """What its future gives. Blocks. Raises what its future raises."""
        item, folder = attempt.item, Path(task.sandbox)
        name, stdout, stderr = item.definition.name, folder / f"{task.uid}.out", folder / f"{task.uid}.err"
        if task.exit_code is None:
            raise CommandError(name, f"RADICAL-Pilot could not run it: {task.reason or task.state}")
        said = _tail_of(stderr)
        if item.directory is None:
            output = stdout.read_bytes().decode(errors="replace")
        else:
            output, errors = output_files(item, item.directory)
            shutil.copyfile(stdout, output)
            shutil.copyfile(stderr, errors)
        if task.exit_code:
            self._raise_unless_begun(attempt, said)
            said = without_wrapping(said, task.uid)
            raise ExecutableError(
                name, attempt.returned, _code(task.exit_code), self._place(attempt).host, output, said
            )
        shutil.rmtree(folder, ignore_errors=True)
        return output

    def _raise_unless_begun(self, attempt: Attempt, said: str) -> None:
        """Raise where it never became the command."""
        name, mark = attempt.item.definition.name, mark_of(attempt.uid)
        options = attempt.item.definition.executable or ExecutableOptions()
        for obstacle in OBSTACLES:
            if f"{mark} {obstacle}" in said.splitlines():
                if obstacle == "not executable":
                    raise CommandStartError(name, attempt.argv, PermissionError(errno.EACCES, obstacle), options.cwd)
                raise CommandNotFoundError(name, attempt.argv, FileNotFoundError(errno.ENOENT, obstacle), options.cwd)

    def lose(self) -> None:
        """The pilot is gone, and whoever could have told what becomes of its tasks."""
        self._lost = True
        for attempt in self._sent.values():
            if not attempt.ended.is_set():
                attempt.ended.set()
                self._keep(self._kill(attempt))

    async def _kill(self, attempt: Attempt) -> None:
        """What it left runs on where nobody ends it."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._signal(attempt, signal.SIGKILL), _PATIENCE)
        self._end(attempt, cancelled_outcome(self._place(attempt)))

    def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        self._sent.pop(attempt.uid, None)
        del self._attempts[attempt.item]
        for name, cores in attempt.cores.items():
            self._free[name].extend(cores)
        attempt.ended.set()
        self._reports.finished(attempt.item, outcome)

    async def stop(self, grace: float) -> None:
        """Cancel what runs, and wait until it is dead and reported."""
        self._grace = min(self._grace, grace)
        for item in list(self._attempts):
            self.cancel(item)
        deadline = self._loop.time() + grace + _DELAY
        while self._attempts and (left := deadline - self._loop.time()) > 0:
            waiting = [asyncio.ensure_future(attempt.ended.wait()) for attempt in self._attempts.values()]
            await asyncio.wait([*waiting, *self._tasks], timeout=left)
            for each in waiting:
                each.cancel()
        await self._threads.stop(grace)
        for task in self._tasks:
            task.cancel()


class _Made:
    """Hears what becomes of the functions of executables."""

    def __init__(self, tasks: PilotTasks) -> None:
        self._tasks = tasks

    def started(self, item: WorkItem, place: Place, time: float) -> None:
        """Their commands have not."""

    def finished(self, item: WorkItem, outcome: Outcome) -> None:
        self._tasks.made(item, outcome)


def _code(exit_code: int) -> int:
    """As elsewhere: negative for a signal, of which a shell makes a number above 128."""
    return 128 - exit_code if exit_code - 128 in signal.valid_signals() else exit_code


def _tail_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - TAIL))
            return opened.read().decode(errors="replace")
    except OSError:
        return ""
