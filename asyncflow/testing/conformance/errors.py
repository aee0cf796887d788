"""What tasks raise, and what cannot travel to a worker or back."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncflow.engine import WorkflowEngine
from asyncflow.errors import DependencyFailureError, NotPicklableError, RemoteError, TaskExitError
from asyncflow.testing import bodies
from asyncflow.testing.conformance.base import Suite

_EXITS = [StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, bodies.NoException]


def text_of(error: BaseException) -> str:
    """All that a user sees of an error that nobody caught."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


class Errors(Suite):
    # --- exceptions --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("body", [bodies.raise_detailed, bodies.raise_detailed_async])
    async def test_an_exception_comes_back_as_itself(self, flow: WorkflowEngine, body: Callable[..., Any]) -> None:
        error = await self.failure(flow.function_task(body)(5), bodies.Detailed)
        assert (error.args, error.code, error.detail) == ((5, "in detail"), 5, "in detail")

    @pytest.mark.parametrize("body", [bodies.raise_detailed, bodies.raise_detailed_async])
    async def test_the_traceback_shows_where_it_was_raised(
        self, flow: WorkflowEngine, body: Callable[..., Any]
    ) -> None:
        text = text_of(await self.failure(flow.function_task(body)(5), bodies.Detailed))
        assert f"in {body.__name__}" in text
        assert "bodies.py" in text

    async def test_the_traceback_shows_the_cause(self, flow: WorkflowEngine) -> None:
        error = await self.failure(flow.function_task(bodies.raise_from_cause)(), ValueError)
        assert "the first thing" in text_of(error)

    @pytest.mark.parametrize(
        "body, kind, message",
        [
            (bodies.raise_not_rebuilt, bodies.NotRebuilt, "this and that"),
            (bodies.raise_attached, bodies.Attached, "with a lock"),
            (bodies.raise_speechless_attached, bodies.SpeechlessAttached, "(its message could not be read)"),
        ],
        ids=["does not unpickle", "does not pickle", "has no text"],
    )
    async def test_an_exception_that_cannot_travel(
        self, flow: WorkflowEngine, body: Callable[..., Any], kind: type[BaseException], message: str
    ) -> None:
        """It comes back as itself where it need not travel, else as a RemoteError that tells all about it."""
        future = flow.function_task(body)()
        if self.can.shares_memory:
            await self.failure(future, kind)
            return
        error = await self.failure(future, RemoteError)
        assert error.type_name.endswith(kind.__name__)
        assert error.message == message
        assert f"in {body.__name__}" in error.traceback
        assert repr(future.name) in str(error)

    @pytest.mark.parametrize("kind", _EXITS)
    async def test_an_exit_in_a_function(self, flow: WorkflowEngine, kind: type[BaseException]) -> None:
        await self._exit(flow, bodies.raise_kind, kind)

    # StopIteration in a coroutine is a RuntimeError already by Python's own rules.
    @pytest.mark.parametrize("kind", _EXITS[1:])
    async def test_an_exit_in_a_coroutine(self, flow: WorkflowEngine, kind: type[BaseException]) -> None:
        await self._exit(flow, bodies.raise_kind_async, kind)

    async def _exit(self, flow: WorkflowEngine, body: Callable[..., Any], kind: type[BaseException]) -> None:
        error = await self.failure(flow.function_task(body)(kind, 4), TaskExitError)
        assert error.raised == kind.__name__
        assert error.code == (4 if kind is SystemExit else None)
        assert repr(body.__name__) in str(error)
        await self._still_works(flow)

    async def _still_works(self, flow: WorkflowEngine) -> None:
        """Every worker is as good as before."""
        tasks = [flow.function_task(bodies.add), flow.function_task(bodies.add_async)]
        count = 2 * self.can.workers
        assert await self.all_ended([task(number, 1) for number in range(count) for task in tasks]) == [
            number + 1 for number in range(count) for _ in tasks
        ]

    async def test_a_failure_reaches_what_depends_on_it_and_nothing_else(
        self, flow: WorkflowEngine, tmp_path: Path
    ) -> None:
        failing = flow.function_task(bodies.raise_detailed)(5)
        dependent = flow.function_task(bodies.noted)(tmp_path / "trace", failing)
        other = flow.function_task(bodies.add)(1, 2)
        error = await self.failure(dependent, DependencyFailureError)
        assert error.root_cause is await self.failure(failing, bodies.Detailed)
        assert await self.ended(other) == 3
        assert not bodies.notes(tmp_path / "trace")

    # --- what cannot travel ------------------------------------------------------------------------------------------

    async def test_an_argument_that_cannot_be_pickled_is_named(self, flow: WorkflowEngine) -> None:
        takes = flow.function_task(bodies.takes)
        futures = [takes(1, bodies.Unpicklable()), takes(2, thing=bodies.Unpicklable())]
        others = [takes(number, "thing") for number in range(4)]
        if self.can.shares_memory:
            assert await self.all_ended([*futures]) == [1, 2]
        else:
            for future in futures:
                error = await self.failure(future, NotPicklableError)
                assert error.what == "argument 'thing'"
                assert "'takes'" in str(error)
                assert "it stays where it is" in str(error)
        assert await self.all_ended([*others]) == [*range(4)]

    async def test_an_argument_that_cannot_be_unpickled_is_no_lost_worker(self, flow: WorkflowEngine) -> None:
        future = flow.function_task(bodies.takes)(1, bodies.Unreadable())
        if self.can.shares_memory:
            assert await self.ended(future) == 1
        else:
            error = await self.failure(future, NotPicklableError)
            assert "it does not arrive" in str(error)
            assert "'takes'" in str(error)
        await self._still_works(flow)

    @pytest.mark.parametrize(
        "body, reason",
        [(bodies.gives_unpicklable, "it stays where it is"), (bodies.gives_unreadable, "it does not arrive")],
    )
    async def test_a_result_that_cannot_travel_is_named(
        self, flow: WorkflowEngine, body: Callable[..., Any], reason: str
    ) -> None:
        future = flow.function_task(body)()
        if self.can.shares_memory:
            assert isinstance(await self.ended(future), (bodies.Unpicklable, bodies.Unreadable))
        else:
            error = await self.failure(future, NotPicklableError)
            assert error.what.startswith("result")
            assert repr(body.__name__) in str(error)
            assert reason in str(error)
        await self._still_works(flow)

    async def test_a_function_that_cannot_be_pickled_is_named(self, flow: WorkflowEngine) -> None:
        lock = threading.Lock()

        def locked() -> bool:
            return lock.locked()

        future = flow.function_task(locked)()
        if self.can.shares_memory:
            assert await self.ended(future) is False
        else:
            error = await self.failure(future, NotPicklableError)
            assert error.what == "function"
            assert "'locked'" in str(error)
        await self._still_works(flow)
