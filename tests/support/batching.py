"""Every way of doing several things at a time forced on, whatever the tasks cost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from asyncflow import lane
from asyncflow.backends.processes import pool


@contextmanager
def forced_batching() -> Iterator[None]:
    """Inside, what is ready goes out at once, as much as ever may be ahead, and threads meet as often as they can.

    What nothing is known of counts as short and is sent ahead to a worker; so is what takes nearly as long as the
    pool's patience, at which it is taken back.
    """
    interval = sys.getswitchinterval()
    # A thousand times more often than usual: what two threads may do between each other's steps, they do.
    sys.setswitchinterval(interval / 1000)
    try:
        with (
            patch.object(lane, "_AHEAD", 1e9),
            patch.object(lane, "_UNKNOWN", 0.0),
            patch.object(pool, "_AHEAD", 0.95 * pool._PATIENCE),
            patch.object(pool, "_UNKNOWN", pool._MOST),
        ):
            yield
    finally:
        sys.setswitchinterval(interval)
