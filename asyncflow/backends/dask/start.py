"""The program that starts a Dask worker on the node on which it is run: what only that node can tell is filled in."""

from __future__ import annotations

import json
import os
import sys

from asyncflow.backends.dask.interfaces import own_address

#: Seconds without a scheduler after which a worker ends by itself.
_DEATH = 60


def main(scheduler: str, interface: str | None, cores: int, memory: int, gpus: int, name: str | None = None) -> None:
    """Become a worker of `scheduler`, of this size (memory in MB), that listens on `interface` alone."""
    host = own_address(interface, scheduler)
    # SLURM's name of the node: several of a test cluster share a host name.
    name = name or os.environ.get("SLURMD_NODENAME") or host
    options = {
        "--host": host,
        # Of its web server, which there is without a dashboard too.
        "--dashboard-address": f"{host}:0",
        "--nthreads": str(cores),
        "--memory-limit": f"{memory}MB",
        "--name": name,
        "--death-timeout": str(_DEATH),
    }
    if gpus:
        options["--resources"] = f"GPU={gpus}"
    words = [word for option in options.items() for word in option]
    # A nanny would restart a worker that dies; no task runs in it that could kill it.
    program = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--no-dashboard", "--no-nanny", *words]
    os.execv(sys.executable, program)


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
