"""Answers that are costly to find, each given to all who were waiting for one."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """What is costly to find out. One answer serves all who asked before it was looked for; callable on any thread."""

    def __init__(self, find: Callable[[], T]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._began = -math.inf

    def get(self) -> T:
        """As it is now, or was at a moment after this was called. Blocks."""
        asked = time.monotonic()
        with self._lock:
            if self._began < asked:
                self._began = time.monotonic()
                self._found = self._find()
            return self._found
