"""Futures in arguments: finding them at the call, putting their values in their place before the task runs.

Only exact builtin containers (list, tuple, dict, set, frozenset) are looked into: a subclass may behave in any way and
is passed on untouched, as is every container without a future inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

#: Types that are never looked at twice: neither a future nor a container.
_PLAIN = frozenset({int, float, str, bool, bytes, type(None), complex})
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})


def find_futures(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[asyncio.Future[Any]], bool]:
    """The distinct futures in a call's arguments in the order met, and whether any stands inside a container."""
    found: list[asyncio.Future[Any]] = []
    containers: list[Any] | None = None
    future = asyncio.Future
    for value in (*args, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind in _PLAIN:
            continue
        if kind in _CONTAINERS:
            if value:
                containers = [value] if containers is None else [*containers, value]
        elif isinstance(value, future):
            found.append(value)
    direct = len(found)
    if containers is not None:
        _search(containers, found)
    nested = len(found) > direct
    if len(found) > 1 and len(set(found)) < len(found):
        found = list(dict.fromkeys(found))
    return found, nested


def _search(pending: list[Any], found: list[asyncio.Future[Any]]) -> None:
    """Append the futures inside `pending` containers to `found`; each container is entered once, so cycles end."""
    seen: set[int] = set()
    while pending:
        container = pending.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        for values in (container, container.values()) if type(container) is dict else (container,):
            # Most large containers hold one plain type, which this tells three times faster than a loop.
            if not _PLAIN.issuperset(set(map(type, values))):
                _sort(values, pending, found)


def _sort(values: Iterable[Any], pending: list[Any], found: list[asyncio.Future[Any]]) -> None:
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            continue
        if kind in _CONTAINERS:
            pending.append(value)
        elif isinstance(value, asyncio.Future):
            found.append(value)


def resolve(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    nested: bool,
    value_of: Callable[[asyncio.Future[Any]], Any] = asyncio.Future.result,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with every future replaced by its value; containers are copied only where one is inside.

    Raises TypeError where a value cannot stand where its future stood (an unhashable one in a set).
    """
    if nested:
        replace = _Replacer(value_of)
        return tuple([replace(value) for value in args]), {key: replace(value) for key, value in kwargs.items()}
    future = asyncio.Future
    resolved = tuple([value_of(value) if isinstance(value, future) else value for value in args])
    if not kwargs:
        return resolved, kwargs
    return resolved, {key: value_of(value) if isinstance(value, future) else value for key, value in kwargs.items()}


class _Replacer:
    """Copies containers with the futures inside replaced; shares and cycles of the original stay as they are."""

    def __init__(self, value_of: Callable[[asyncio.Future[Any]], Any]) -> None:
        self._value_of = value_of
        self._copies: dict[int, Any] = {}
        self._touched: dict[int, bool] = {}

    def __call__(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind in _CONTAINERS:
            return self._copy(value) if self._holds_future(value) else value
        return self._value_of(value) if isinstance(value, asyncio.Future) else value

    def _holds_future(self, container: Any) -> bool:
        known = self._touched.get(id(container))
        if known is None:
            found: list[asyncio.Future[Any]] = []
            _search([container], found)
            known = self._touched[id(container)] = bool(found)
        return known

    def _copy(self, container: Any) -> Any:
        if id(container) in self._copies:
            return self._copies[id(container)]
        kind = type(container)
        copy: Any
        if kind is list:
            # Registered before it is filled: a list that contains itself finds its own copy.
            copy = self._copies[id(container)] = []
            copy.extend(map(self, container))
        elif kind is dict:
            copy = self._copies[id(container)] = {}
            copy.update((self(key), self(value)) for key, value in container.items())
        else:
            copy = self._copies[id(container)] = kind(map(self, container))
        return copy
