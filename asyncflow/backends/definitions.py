"""Which functions the other end of a connection knows, and under which numbers: each is sent there once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from asyncflow.backends.contract import Definition

#: How many functions the other end keeps; the longest unused is forgotten first.
_MOST = 1000


class KnownDefinitions:
    """What one connection's other end knows."""

    def __init__(self, post: Callable[[str, tuple[Any, ...], Sequence[bytes]], None]) -> None:
        """`post` says something to it, with segments."""
        self._post = post
        self._numbers: OrderedDict[Definition, int] = OrderedDict()
        self._defined = 0

    def number_of(self, definition: Definition) -> int | None:
        """Under which number a definition is known there; None where it must be defined first."""
        number = self._numbers.get(definition)
        if number is not None:
            self._numbers.move_to_end(definition)
        return number

    def define(self, definition: Definition, function: bytes) -> int:
        """Send a definition, its function pickled; its number."""
        self._defined += 1
        self._numbers[definition] = self._defined
        bare = Definition(
            _undefined,
            definition.kind,
            definition.name,
            is_async=definition.is_async,
            description=definition.description,
            executable=definition.executable,
        )
        self._post("define", (self._defined, bare), [function])
        if len(self._numbers) > _MOST:
            self._post("forget", (self._numbers.popitem(last=False)[1],), ())
        return self._defined


def _undefined() -> None:
    """Stands for a function until its bytes are there."""
