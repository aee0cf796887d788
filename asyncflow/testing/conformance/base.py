"""What all parts of the suite stand on: the backend under test, an engine on it, a meeting, and bounded waits."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import pytest_asyncio

from asyncflow.backends.contract import Backend, Capabilities
from asyncflow.backends.orphans import marked
from asyncflow.engine import WorkflowEngine
from asyncflow.testing import bodies
from asyncflow.testing.leaks import nothing_left
from asyncflow.testing.meeting import Meeting
from asyncflow.testing.plugin import MakeEngine

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

#: The environment variable that marks the commands of a test, apart from what else the backend starts.
WORK = "ASYNCFLOW_TEST_WORK"

# Nothing here looks at sys.argv: workers run such a file too, to find what it defines, and theirs is another.
_SCRIPT = """
import sys
sys.path[:] = {path!r}
from importlib import import_module
from operator import attrgetter

arguments = {arguments!r}

def make_backend():
    return attrgetter({suite!r})(import_module({module!r}))().make_backend()

"""


class Suite:
    """Base of every part of the suite; `BackendConformance` says what a subclass sets."""

    within: ClassVar[float] = 60.0
    chance: ClassVar[float] = 0.2
    host: ClassVar[str] = "127.0.0.1"
    worker_may_die: ClassVar[bool] = True
    workers_end_with_engine: ClassVar[bool] = True
    ends_late: ClassVar[bool] = False

    #: The backend of the running test.
    backend: Backend

    _warm: ClassVar[set[type]] = set()

    def make_backend(self) -> Backend:
        """A fresh backend, not started."""
        raise NotImplementedError("a subclass of BackendConformance says here which backend it tests")

    def prepare(self) -> None:
        """Called before a test looks at what exists: start here what outlives a backend, such as a pool of its own."""

    @property
    def can(self) -> Capabilities:
        """What the backend of the running test declares."""
        return self.backend.capabilities

    # --- fixtures ----------------------------------------------------------------------------------------------------

    @pytest_asyncio.fixture(autouse=True, loop_scope="function")
    async def warmed_up(self, mpi_as_root: None, tmp_path: Path) -> None:
        """What a first engine leaves for good (a resource tracker, MPI's daemon) is the interpreter's.

        What every further engine leaves is a leak.
        """
        self.prepare()
        if type(self) in self._warm:
            return
        self._warm.add(type(self))
        flow = await self.ended(WorkflowEngine.create(self.make_backend(), work_dir=tmp_path))
        try:
            await self.ended(flow.function_task(bodies.add)(1, 2))
            await self.ended(flow.executable_task(bodies.words)("true"))
        finally:
            await self.ended(flow.shutdown())

    @pytest.fixture
    def hang_limit(self) -> float:
        """The plugin's engines are bounded as the suite is."""
        return self.within

    @pytest.fixture
    def work_mark(self) -> str:
        """What marks the commands of this test, where they are given it in their environment."""
        return uuid.uuid4().hex

    @pytest_asyncio.fixture(loop_scope="function")
    async def flow(self, make_engine: MakeEngine) -> WorkflowEngine:
        """An engine on a fresh backend, shut down after the test."""
        return await self.open(make_engine)

    @pytest_asyncio.fixture(loop_scope="function")
    async def meeting(self, free_loop: None) -> AsyncIterator[Meeting]:
        """Where the tasks of this test are waited for; ask for it after `flow`, so that it closes first."""
        async with Meeting(self.host) as meeting:
            yield meeting

    async def open(self, make_engine: MakeEngine) -> WorkflowEngine:
        """An engine on a fresh backend."""
        self.backend = self.make_backend()
        return await self.ended(make_engine(self.backend))

    # --- bounded waits -----------------------------------------------------------------------------------------------

    async def ended(self, awaitable: Awaitable[T]) -> T:
        """What `awaitable` gives or raises; the test fails where that takes longer than `within`."""
        future = asyncio.ensure_future(awaitable)
        done, _ = await asyncio.wait({future}, timeout=self.within)
        if not done:
            future.cancel()
            pytest.fail(f"did not end within {self.within:g} s: {awaitable!r}")
        return future.result()

    async def all_ended(self, awaitables: list[Awaitable[T]]) -> list[T]:
        """The results of all, in order."""
        return await self.ended(asyncio.gather(*awaitables))

    async def failure(self, awaitable: Awaitable[object], kind: type[E]) -> E:
        """The error of exactly this `kind` that `awaitable` raises."""
        with pytest.raises(kind) as caught:
            await self.ended(awaitable)
        assert type(caught.value) is kind
        return caught.value

    async def cancelled(self, future: asyncio.Future[Any]) -> None:
        """`future` ends as cancelled."""
        with pytest.raises(asyncio.CancelledError):
            await self.ended(future)
        assert future.cancelled()

    async def become_true(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what announces itself by no event; `what` says it, for the failure's message."""
        if await nothing_left(lambda: [] if condition() else [what], self.within):
            pytest.fail(f"did not become true within {self.within:g} s: {what}")

    async def no_work_left(self, mark: str) -> None:
        """No command with `mark` is alive."""
        await self.become_true(lambda: not marked(WORK, mark), "no process of the commands is left")

    # --- further processes -------------------------------------------------------------------------------------------

    def script(self, folder: Path, source: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Start `source` as a script of its own, in which `make_backend()` gives a backend of this class.

        `arguments` are in a tuple of that name; what it prints goes to the file `output` in `folder`.
        """
        file = folder / "script.py"
        suite = type(self)
        first = _SCRIPT.format(path=sys.path, arguments=arguments, module=suite.__module__, suite=suite.__qualname__)
        file.write_text(first + source)
        # Not to a pipe: workers that outlive the script would hold it open.
        with (folder / "output").open("w") as output:
            return subprocess.Popen(
                [sys.executable, str(file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                # Python's own view of it: libraries (MPI) may have added to the one that C programs inherit.
                env={**os.environ},
            )
