"""Results that stayed with their backend: who may need the value, and fetching it for them.

The component is DONE; its future is not, until somebody awaits it and the value has come. Dependents on the same
backend are given what stands for the value, without it ever coming here. Touched under the scheduler's lock.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from asyncflow.backends.contract import Backend, RemoteValue
from asyncflow.future import TaskFuture

#: What is called, on any thread, with a future, its value, and why that cannot be had.
Arrived = Callable[[TaskFuture[Any], tuple[Any, BaseException | None]], None]


class StayedResults:
    """Futures of components that are DONE and whose values are elsewhere. They go when nobody holds the future."""

    def __init__(self, arrived: Arrived) -> None:
        self._arrived = arrived
        self._values: weakref.WeakKeyDictionary[TaskFuture[Any], RemoteValue] = weakref.WeakKeyDictionary()
        #: Those that are on their way.
        self._coming: dict[TaskFuture[Any], RemoteValue] = {}

    def __contains__(self, future: TaskFuture[Any]) -> bool:
        return future in self._values

    def __bool__(self) -> bool:
        return bool(self._values)

    @property
    def coming(self) -> bool:
        """Whether somebody waits for a value."""
        return bool(self._coming)

    def add(self, future: TaskFuture[Any], value: RemoteValue) -> None:
        """A component is DONE, with this."""
        self._values[future] = value
        if future._awaited:
            self.fetch(future)

    def fetch(self, future: TaskFuture[Any]) -> None:
        """Somebody needs the value itself."""
        value = self._values.get(future)
        if value is not None and future not in self._coming:
            self._coming[future] = value
            value.fetch(partial(self._on_fetched, future))

    def _on_fetched(self, future: TaskFuture[Any], value: Any, error: BaseException | None) -> None:
        self._arrived(future, (value, error))

    def take(self, future: TaskFuture[Any]) -> None:
        """It has come, or cannot come."""
        self._coming.pop(future, None)
        self._values.pop(future, None)

    def value_of(self, future: TaskFuture[Any]) -> RemoteValue | None:
        """What stands for its value; None where it did not stay."""
        return self._values.get(future)

    def usable_by(self, future: asyncio.Future[Any], backend: Backend) -> bool:
        """Whether a task on `backend` may have what stands for the value: True where it did not stay."""
        value = self._values.get(future) if isinstance(future, TaskFuture) else None
        return value is None or value.backend is backend

    def rest(self) -> list[TaskFuture[Any]]:
        """All that were never fetched."""
        return list(self._values)
