"""Runs calls on a worker, a thread or a process, for all backends: functions and executables.

A call has its worker to itself; so has a coroutine that holds named resources. All others share a loop: `coroutines`.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Callable
from time import time
from typing import Any

from asyncflow.backends.body import cancelled_outcome, close_loop, task_error
from asyncflow.backends.contract import Kind, Origin, Outcome, Place, WorkItem
from asyncflow.backends.executable import Cancelled, run_executable
from asyncflow.backends.launch import LocalLaunch
from asyncflow.backends.origin import enter, spans, stand_for
from asyncflow.backends.orphans import Family
from asyncflow.backends.own_process import run_function
from asyncflow.description import TaskDescription
from asyncflow.errors import TaskExitError


class Runtime:
    """Runs the calls of one backend, whose processes are of `family`."""

    def __init__(
        self,
        family: Family,
        *,
        owns_environment: bool = False,
        execute: Callable[[WorkItem, Any], Any] | None = None,
    ) -> None:
        """`owns_environment`: the process was started with what its calls ask of their environment.

        `execute` does with an executable's item, and what its function returned, what is to be done; the default runs
        the command here.
        """
        self.family = family
        self._execute = self._execute_here if execute is None else execute
        self._owns_environment = owns_environment

    def call(self, item: WorkItem, place: Place, started: float) -> Outcome:
        """Run `item`, which begins now, `started`, to its end on this thread. Never raises."""
        if item.cancelled:
            return cancelled_outcome(place)
        value: Any = None
        error: BaseException | None = None
        definition, context = item.definition, item.context
        origin, leave = None, None
        if context is not None and definition.plain and item.has_untraced_origin:
            context.run(stand_for, item)
        else:
            origin = item.origin
            leave = None if origin is None else _begin(origin, context)
        try:
            if not definition.plain:
                value = self._special(item) if context is None else context.run(self._special, item)
            elif context is None:
                value = definition.fn(*item.args, **item.kwargs)
            else:
                value = context.run(definition.fn, *item.args, **item.kwargs)
            if type(value) is types.CoroutineType:  # of a plain function that wraps an async one
                value = _run_alone(value) if context is None else context.run(_run_alone, value)
        except Cancelled:
            error = asyncio.CancelledError()
        except BaseException as raised:
            error = task_error(definition.name, raised)
        outcome = Outcome(value, error, started, time(), place)
        if origin is not None and leave is not None:
            leave()
            outcome.spans = spans.end(origin)
        return outcome

    def _special(self, item: WorkItem) -> Any:
        """What is more than the call of a plain function."""
        definition = item.definition
        if definition.kind is Kind.FUNCTION and self._needs_process(definition.description):
            self.family.guard()
            return run_function(item, self.family)
        value = definition.fn(*item.args, **item.kwargs)
        if type(value) is types.CoroutineType:
            value = _run_alone(value)
        if definition.kind is Kind.EXECUTABLE:
            return self._execute(item, value)
        return value

    def _execute_here(self, item: WorkItem, returned: Any) -> str:
        self.family.guard()
        return run_executable(item, returned, LocalLaunch(item, self.family))

    def _needs_process(self, description: TaskDescription | None) -> bool:
        if description is None:
            return False
        return description.needs_launch or (description.needs_environment and not self._owns_environment)


def _begin(origin: Origin, context: contextvars.Context | None) -> Callable[[], None]:
    spans.begin(origin)
    return enter(origin, context)


def _run_alone(coroutine: types.CoroutineType[Any, Any, Any]) -> Any:
    """Run one coroutine to its end on an event loop of its own, in the caller's context."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(_shielded(coroutine))
    finally:
        close_loop(loop)


async def _shielded(coroutine: types.CoroutineType[Any, Any, Any]) -> Any:
    # asyncio lets SystemExit and KeyboardInterrupt of a task tear down its loop; as a value they pass through.
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise TaskExitError(coroutine.__qualname__, error) from error
