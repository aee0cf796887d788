"""The pytest plugin: `pytest_plugins = ["asyncflow.testing.plugin"]` in a `conftest.py`.

It brings fixtures for tests of backends and of programs that use an engine; it changes nothing for tests that do not
ask for them. It needs pytest and pytest-asyncio, in either of its modes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

# Before anything imports it: a failed assertion of the suite then shows its values.
pytest.register_assert_rewrite("asyncflow.testing.conformance")

from asyncflow.engine import WorkflowEngine  # noqa: E402  # after the line above
from asyncflow.guard import start_guard  # noqa: E402  # the same
from asyncflow.testing.leaks import MARK, nothing_left, traces  # noqa: E402  # the same

MakeEngine = Callable[..., Awaitable[WorkflowEngine]]


@pytest.fixture
def test_mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """What marks, in their environment, the processes that this test starts."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    return mark


@pytest.fixture
def leak_patience() -> float:
    """Seconds that `no_leaks` waits for the last process or thread to go: patience with a slow machine."""
    return 10.0


@pytest_asyncio.fixture(loop_scope="function")
async def no_leaks(test_mark: str, leak_patience: float) -> AsyncIterator[None]:
    """Fails a test that leaves a process, a thread, a task of the loop or a signal handler behind.

    Ask for it before whatever is to be closed, so that it looks after that was closed.
    """
    before = traces(test_mark)
    yield
    left = await nothing_left(lambda: traces(test_mark).beyond(before), leak_patience)
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left))


@pytest.fixture
def longest_hold() -> float:
    """Seconds for which the event loop may be held before `free_loop` fails the test; override it to change it."""
    return 2.0


class _Overheard(logging.Handler):
    """Keeps what the loop guard says."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "held the event loop" in message:
            self.messages.append(message)


@pytest.fixture
def guard_log() -> Iterator[list[str]]:
    """The warnings of the loop guard, as they come."""
    handler = _Overheard()
    logger = logging.getLogger("asyncflow")
    logger.addHandler(handler)
    yield handler.messages
    logger.removeHandler(handler)


@pytest_asyncio.fixture(loop_scope="function")
async def free_loop(no_leaks: None, guard_log: list[str], longest_hold: float) -> AsyncIterator[None]:
    """Fails a test that held the event loop for long, or left an exception to the loop's handler."""
    loop = asyncio.get_running_loop()
    unhandled: list[str] = []

    def keep(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        unhandled.append(f"{context.get('message')}: {context.get('exception')!r}")

    loop.set_exception_handler(keep)
    stop = start_guard(loop, longest_hold, "test")
    yield
    stop()
    loop.set_exception_handler(None)
    problems = [*guard_log, *unhandled]
    if problems:
        pytest.fail("on the event loop of the test:\n  " + "\n  ".join(problems))


@pytest.fixture
def hang_limit() -> float:
    """Seconds after which a shutdown that has not ended counts as hung; override it to change it."""
    return 60.0


@pytest_asyncio.fixture(loop_scope="function")
async def make_engine(free_loop: None, tmp_path: Path, hang_limit: float) -> AsyncIterator[MakeEngine]:
    """`await make_engine(backend, ...)`: as `WorkflowEngine.create`; shut down after the test, files in `tmp_path`."""
    engines: list[WorkflowEngine] = []

    async def make(backend: Any = None, **options: Any) -> WorkflowEngine:
        # The test's own guard watches the loop already.
        engine = await WorkflowEngine.create(backend, **{"work_dir": tmp_path, "block_warning": None, **options})
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        await asyncio.wait_for(engine.shutdown(), hang_limit)


@pytest.fixture
def mpi_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets Open MPI start where the tests run as root, as in a container."""
    if os.geteuid() == 0:
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
