"""Which call a worker process is in, readable by the pool whatever becomes of the worker.

Two numbers in memory that both share: the key of the call that began last, and of the one that ended last. A message
would be lost with the worker, or cost a system call for every task.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

_KEYS = struct.Struct("=QQ")
_KEY = struct.Struct("=Q")


class Progress:
    """One worker's progress, seen from either side."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor` is an open file of at least `SIZE` bytes; it may be closed afterwards."""
        self._memory = mmap.mmap(descriptor, _KEYS.size)

    @classmethod
    def create(cls) -> tuple[Progress, int]:
        """A new one, and the descriptor to give to the worker."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("asyncflow-progress")
        else:
            descriptor, path = tempfile.mkstemp()
            os.unlink(path)
        os.ftruncate(descriptor, _KEYS.size)
        return cls(descriptor), descriptor

    def begin(self, key: int) -> None:
        _KEY.pack_into(self._memory, 0, key)

    def end(self, key: int) -> None:
        _KEY.pack_into(self._memory, _KEY.size, key)

    @property
    def current(self) -> int:
        """Key of the call that runs now, 0 for none."""
        begun, ended = _KEYS.unpack_from(self._memory)
        return 0 if begun == ended else int(begun)

    @property
    def last(self) -> int:
        """Key of the call that began last, 0 for none. Calls begin in the order of their keys."""
        return int(_KEYS.unpack_from(self._memory)[0])

    def close(self) -> None:
        self._memory.close()
