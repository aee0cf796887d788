"""The program of a job that is a Dask worker: Dask's own, told to listen on one address of the node alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from asyncflow.backends.dask.interfaces import own_address


def command(words: Sequence[str]) -> list[str]:
    """Dask's program with the options that dask-jobqueue gives, and those that only the node can tell."""
    scheduler = next((word for word in words if "://" in word), None)
    if "--interface" in words:
        host = own_address(words[words.index("--interface") + 1])
        where = []
    else:
        host = own_address(None, scheduler)
        where = ["--host", host]
    # Of its web server, which there is without a dashboard too.
    web = ["--no-dashboard", "--dashboard-address", f"{host}:0"]
    return [sys.executable, "-m", "distributed.cli.dask_worker", *words, *where, *web]


if __name__ == "__main__":
    program = command(sys.argv[1:])
    os.execv(program[0], program)
