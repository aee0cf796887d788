"""Closing what others have written, and not waiting for it for ever."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from time import monotonic

_log = logging.getLogger("asyncflow")


def close_within(closing: Mapping[str, Callable[[], object]], seconds: float) -> None:
    """Call all at once, each on a thread of its own, and say which failed, or had not ended after `seconds`."""
    threads = {
        name: threading.Thread(target=_call, args=(name, close), name=f"asyncflow-close {name}", daemon=True)
        for name, close in closing.items()
    }
    for thread in threads.values():
        thread.start()
    deadline = monotonic() + seconds
    for name, thread in threads.items():
        thread.join(max(0.0, deadline - monotonic()))
        if thread.is_alive():
            _log.warning("%s did not end within %g s: what it had not sent yet is lost", name, seconds)


def _call(name: str, close: Callable[[], object]) -> None:
    try:
        close()
    except Exception as error:
        _log.warning("%s failed when it was closed: %s: %s", name, type(error).__name__, error)
