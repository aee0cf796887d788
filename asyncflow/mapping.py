"""`flow.map`: a task over many inputs, a window of calls at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable
from typing import Any, Generic, TypeVar

from asyncflow.errors import InvalidOptionError, MapUsedError
from asyncflow.future import TaskFuture
from asyncflow.task import Task

R = TypeVar("R")

#: Calls made, or results given that were there already, before the loop gets a turn.
_STRIDE = 200


class TaskMap(Generic[R]):
    """The results of a mapped task, in the order of the inputs: `async for` one by one, or `await` for a list.

    At most `window` calls are unfinished or unread at a time. The first failure in that order is raised where it
    stands and cancels the calls still out, as does leaving the iteration early. The inputs are read once, so the
    results can be had once: a second time raises MapUsedError.
    """

    def __init__(self, task: Task[R], iterables: tuple[Iterable[Any], ...], window: int) -> None:
        if not isinstance(window, int) or window < 1:
            raise InvalidOptionError("window", window, "a whole number of at least 1")
        self._task = task
        self._inputs = zip(*iterables, strict=False) if len(iterables) != 1 else ((value,) for value in iterables[0])
        self._window = window
        self._used = False

    async def __aiter__(self) -> AsyncGenerator[R, None]:
        if self._used:
            raise MapUsedError(self._task.name)
        self._used = True
        out: deque[TaskFuture[R]] = deque()
        steps = 0  # calls made and results given since the loop last had a turn
        exhausted = False
        try:
            while not exhausted or out:
                while not exhausted and len(out) < self._window and steps < _STRIDE:
                    arguments = next(self._inputs, None)
                    if arguments is None:
                        exhausted = True
                    else:
                        out.append(self._task(*arguments))
                        steps += 1
                if steps >= _STRIDE:
                    steps = 0
                    await asyncio.sleep(0)
                elif out:
                    steps = steps + 1 if out[0].done() else 0
                    yield await out[0]
                    out.popleft()
        finally:
            for future in out:
                future.cancel()

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self._all().__await__()

    async def _all(self) -> list[R]:
        return [result async for result in self]
