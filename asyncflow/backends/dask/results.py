"""Results that stay on the cluster, as the engine knows them: where each is, who needs it, how to make it again."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from asyncflow.backends import payload
from asyncflow.backends.contract import Definition, Origin, RemoteValue, WorkItem
from asyncflow.backends.payload import Segment
from asyncflow.errors import ResultLostError

if TYPE_CHECKING:
    from asyncflow.backends.dask.node import Node

#: What is called with a value, or why it cannot be had.
Done = Callable[[Any, BaseException | None], None]


class Call:
    """What a task was called with, in the form that travels: enough to run it, and to run it again."""

    __slots__ = ("definition", "function", "inputs", "origin", "segments")

    def __init__(
        self,
        definition: Definition,
        function: bytes,
        segments: Sequence[Segment],
        inputs: dict[str, Result],
        origin: Origin | None = None,
    ) -> None:
        self.definition = definition
        self.function = function
        self.segments = segments
        #: The results that stand in the arguments, by name. Not their values: these may be gone by now.
        self.inputs = inputs
        #: Whose work it is, also where it is made again.
        self.origin = origin


class Result:
    """One result. It outlives its value where something that was made of it may have to be made again."""

    __slots__ = ("__weakref__", "call", "holders", "name", "size", "uid", "waiting", "wanted")

    def __init__(self, name: str, uid: str, size: int, call: Call, holder: Node) -> None:
        self.name = name
        self.uid = uid
        #: Bytes.
        self.size = size
        self.call = call
        #: Nodes that have its value, in the order in which they got it.
        self.holders: dict[Node, None] = {holder: None}
        #: How many need its value: what stands for it in futures and arguments, and what runs on it.
        self.wanted = 0
        #: What to do when it has been made again; the argument is why it could not be.
        self.waiting: list[Callable[[BaseException | None], None]] = []


class _Collecting(threading.local):
    """The results that stand in what is being pickled on this thread."""

    def __init__(self) -> None:
        self.found: dict[str, Result] = {}


_collecting = _Collecting()


@contextlib.contextmanager
def collected() -> Iterator[dict[str, Result]]:
    """What is pickled meanwhile: the results that stand in it, by name."""
    _collecting.found = {}
    yield _collecting.found
    _collecting.found = {}


class StayedValue(RemoteValue):
    """Stands for a result in a future, and in the arguments of tasks of the same backend."""

    __slots__ = ("__weakref__", "_fetch", "result")

    def __init__(
        self,
        backend: Any,
        result: Result,
        fetch: Callable[[StayedValue, Done], None],
        release: Callable[[Result], None],
    ) -> None:
        """`fetch` and `release` may be called on any thread."""
        super().__init__(backend)
        self.result = result
        self._fetch = fetch
        weakref.finalize(self, release, result).atexit = False

    def fetch(self, done: Done) -> None:
        self._fetch(self, done)

    def __reduce__(self) -> Any:
        _collecting.found[self.result.name] = self.result
        # On the worker the value itself stands there: it travels beside the arguments, under this name.
        return payload.given_value, (self.result.name,)

    def __repr__(self) -> str:
        return f"<result of {self.result.uid}, {self.result.size} bytes, on the cluster>"


def found_in(values: Sequence[Any]) -> dict[str, Result]:
    """The results that stand in arguments, also in containers there, by name."""
    found: dict[str, Result] = {}
    pending, seen = list(values), set[int]()
    while pending:
        value = pending.pop()
        if isinstance(value, StayedValue):
            found[value.result.name] = value.result
        elif type(value) in (list, tuple, dict, set, frozenset) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value)
            if type(value) is dict:
                pending.extend(value.values())
    return found


def gather_values(
    results: Results, needed: Iterable[Result], done: Callable[[dict[str, Any], BaseException | None], None]
) -> None:
    """Have `done` called with the values of all `needed`, by name, or why one cannot be had."""
    values: dict[str, Any] = {}
    missing = {result.name: result for result in needed}
    if not missing:
        done(values, None)

    def arrived(name: str, value: Any, error: BaseException | None) -> None:
        values[name] = value
        if error is not None and missing:
            missing.clear()
            done({}, error)
        elif missing.pop(name, None) is not None and not missing:
            done(values, None)

    for result in list(missing.values()):
        results.fetch(result, partial(arrived, result.name))


def with_values(item: WorkItem, values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an item with these values in the place of what stands for them."""
    segments = payload.pack_arguments(item.definition, item.args, item.kwargs)
    given = {name: payload.pack(value) for name, value in values.items()}
    return payload.unpack_arguments(item.definition.name, segments, given)


class Results:
    """All results that stay on the cluster. On the backend's own loop."""

    def __init__(self, make_again: Callable[[Result], None]) -> None:
        """`make_again` is to end in `made`."""
        self._make_again = make_again
        #: Who is being told that a result was made again, or cannot be.
        self._told: deque[tuple[list[Callable[[BaseException | None], None]], BaseException | None]] = deque()
        #: Why nothing comes any more.
        self._over: str | None = None
        self._known: weakref.WeakValueDictionary[str, Result] = weakref.WeakValueDictionary()
        #: Fetches on their way, by name: from where, and who waits.
        self._fetches: dict[str, tuple[Node, Result, list[Done]]] = {}

    def add(self, result: Result) -> None:
        """Know a new one."""
        self._known[result.name] = result

    # --- who needs it ------------------------------------------------------------------------------------------------

    def want(self, result: Result) -> None:
        """One more needs its value."""
        result.wanted += 1

    def release(self, result: Result) -> None:
        """One less needs its value; after the last nobody keeps it."""
        result.wanted -= 1
        if not result.wanted:
            for node in result.holders:
                node.wire.post("free", (result.name,))
            result.holders.clear()

    # --- where it is -------------------------------------------------------------------------------------------------

    def copied(self, name: str, node: Node) -> None:
        """`node` has a copy."""
        result = self._known.get(name)
        if result is not None and result.wanted:
            result.holders[node] = None
        else:
            node.wire.post("free", (name,))

    def missing(self, name: str, node: Node) -> None:
        """`node` does not have it."""
        result = self._known.get(name)
        if result is not None:
            result.holders.pop(node, None)

    def holders(self) -> set[Node]:
        """Nodes that have any."""
        return {node for result in self._known.values() for node in result.holders}

    def lose(self, node: Node) -> None:
        """All that `node` held is gone."""
        for result in self._known.values():
            result.holders.pop(node, None)
        for name, (source, _, _) in list(self._fetches.items()):
            if source is node:
                self._fetch_again(name)

    # --- made again --------------------------------------------------------------------------------------------------

    def remake(self, result: Result, then: Callable[[BaseException | None], None]) -> None:
        """Make a lost one again; `then` is called with why it cannot be, or None."""
        result.waiting.append(then)
        if len(result.waiting) == 1:
            self._make_again(result)

    def made(self, result: Result, error: BaseException | None) -> None:
        """It has been made again, or cannot be."""
        if error is not None and not isinstance(error, ResultLostError):
            error = _lost(result, f"its task now fails with {type(error).__name__}: {error}", error)
        self._told.append((result.waiting, error))
        result.waiting = []
        if len(self._told) > 1:
            return  # one that cannot be made ends the next, and so on: one after the other, not one within the other
        while self._told:
            waiting, error = self._told[0]
            for then in waiting:
                then(error)
            self._told.popleft()

    # --- brought to the engine ---------------------------------------------------------------------------------------

    def fetch(self, result: Result, done: Done) -> None:
        """Have `done` called with the value."""
        pending = self._fetches.get(result.name)
        if self._over is not None:
            done(None, _lost(result, self._over))
        elif pending is not None:
            pending[2].append(done)
        elif result.holders:
            node = next(iter(result.holders))
            self._fetches[result.name] = node, result, [done]
            node.wire.post("fetch", (result.name,))
        else:
            self.remake(result, partial(self._fetch_made, result, done))

    def _fetch_made(self, result: Result, done: Done, error: BaseException | None) -> None:
        if error is not None:
            done(None, error)
        else:
            self.fetch(result, done)

    def _fetch_again(self, name: str) -> None:
        node, result, waiting = self._fetches.pop(name)
        result.holders.pop(node, None)
        for done in waiting:
            self.fetch(result, done)

    def received(self, name: str, segments: Sequence[Segment] | None) -> None:
        """What was fetched has come; None where it was not there."""
        if name not in self._fetches:
            return
        if segments is None:
            self._fetch_again(name)
            return
        _, result, waiting = self._fetches.pop(name)
        value, error = None, None
        try:
            value = payload.unpack_result(result.call.definition.name, segments)
        except BaseException as unreadable:
            error = unreadable
        for done in waiting:
            done(value, error)

    def abandon(self, reason: str) -> None:
        """Nothing more will come, now or later."""
        self._over = reason
        fetches, self._fetches = self._fetches, {}
        for _, result, waiting in fetches.values():
            for done in waiting:
                done(None, _lost(result, reason))
        for result in list(self._known.values()):
            self.made(result, _lost(result, reason))


def _lost(result: Result, reason: str, cause: BaseException | None = None) -> ResultLostError:
    error = ResultLostError(result.call.definition.name, result.uid, reason)
    error.__cause__ = cause
    return error
