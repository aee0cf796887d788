"""The face of a pilot towards the engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from asyncflow import options
from asyncflow.backends.contract import CONCURRENCY, Reporter
from asyncflow.backends.dask.connection import Connection
from asyncflow.backends.dask.on_cluster import GRACE, LARGE, ClusterBackend
from asyncflow.backends.radical.connection import attach
from asyncflow.backends.radical.order import RUNTIME, order
from asyncflow.backends.radical.pilot import FOLDER, HeldElsewhereError, Pilot
from asyncflow.errors import BackendStartError, InvalidOptionError


class RadicalPilotBackend(ClusterBackend):
    """Tasks on a pilot: one allocation of many nodes, started by RADICAL-Pilot, that all of them share.

    Executables are tasks of RADICAL-Pilot's, with ranks, cores and GPUs as they ask for; functions run in worker
    processes that stay on the pilot's nodes. The engine counts what both hold, so that never more runs than there is.
    """

    def __init__(
        self,
        resource: str = "local.localhost",
        *,
        nodes: int | None = None,
        cores: int | None = None,
        gpus: int | None = None,
        memory: int | None = None,
        runtime: int = RUNTIME,
        queue: str | None = None,
        project: str | None = None,
        access_schema: str | None = None,
        sandbox: str | Path | None = None,
        config: str | Path | None = None,
        interface: str | None = None,
        pilot: str | Path | None = None,
        name: str = "radical",
        concurrency: int = CONCURRENCY,
        large: int = LARGE,
        grace: float = GRACE,
        timeout: float | None = None,
        patience: float | None = 60.0,
    ) -> None:
        """`resource` is a machine that RADICAL-Pilot knows, or one of the files resource_SITE.json in `config`.

        `nodes`, or `cores` in all, and `gpus` in all, are what is used of it; `memory` is MB of each node, by default
        what its configuration says. The pilot lasts `runtime` minutes. `queue`, `project` and `access_schema` are
        those of its job. All files go below `sandbox`, on a file system that the nodes share; by default that is
        `radical` in the engine's `work_dir`. Everything of the engine's listens on loopback for this machine, else on
        the address of this host's name or the network `interface` named; all of it is encrypted, and admits only what
        has the pilot's own certificate. (RADICAL-Pilot itself listens on all interfaces.)

        `pilot` is the folder of one that runs already (`Pilot.start`); then nothing is started, and no other option
        about it may be given. `timeout` is seconds to wait for the pilot to become active; None waits as long as the
        machine's queue lets it wait. The others are as for `DaskBackend`.
        """
        # Functions find files where commands do.
        cwd = os.getcwd()
        super().__init__(name, concurrency=concurrency, large=large, grace=grace, patience=patience, cwd=cwd)
        about: dict[str, Any] = {
            "nodes": nodes,
            "cores": cores,
            "gpus": gpus,
            "memory": memory,
            "queue": queue,
            "project": project,
            "access_schema": access_schema,
            "config": config,
            "interface": interface,
        }
        self._pilot = None if pilot is None else Pilot(_folder("pilot", pilot))
        self._order = order(resource, runtime=runtime, **about)
        if pilot is not None:
            _refuse({**about, "sandbox": sandbox})
        self._root = None if sandbox is None else _folder("sandbox", sandbox)
        self._timeout = None if timeout is None else options.seconds("timeout", timeout, positive=True)

    async def connect(self, reporter: Reporter) -> Connection:
        """Connect to the pilot that was named, or start one."""
        if self._pilot is not None:
            return await self._attached(self._pilot, None)
        root = self._root or Path(reporter.work_dir, FOLDER)
        pilot = await Pilot.launch(self._order, root, self.name, self._timeout, stays=False)
        try:
            return await self._attached(pilot, pilot)
        except BaseException:
            await pilot.stop()
            raise

    async def _attached(self, pilot: Pilot, own: Pilot | None) -> Connection:
        try:
            return await attach(pilot, own)
        except (OSError, HeldElsewhereError) as error:
            raise BackendStartError(self.name, f"the pilot in {pilot.folder} cannot be used: {error}") from error


def _refuse(about: dict[str, Any]) -> None:
    for option, value in about.items():
        if value is not None:
            raise InvalidOptionError(option, value, "the pilot that is named runs already")


def _folder(option: str, value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise InvalidOptionError(option, value, "the path of a folder")
    return Path(value).absolute()
