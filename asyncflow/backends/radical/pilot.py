"""A pilot, as the process sees it that starts it or uses it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from distributed.comm.core import connect

from asyncflow.backends.aside import aside
from asyncflow.backends.dask.wire import Wire
from asyncflow.backends.radical import component, leftovers
from asyncflow.backends.radical.files import Files
from asyncflow.backends.radical.messages import HANDLER
from asyncflow.backends.radical.order import RUNTIME, Order, order
from asyncflow.backends.radical.sites import write_sites
from asyncflow.errors import BackendStartError, InvalidOptionError

_log = logging.getLogger("asyncflow")

#: Where a pilot's files go, below an engine's folder.
FOLDER = "radical"
#: Paths that shells read as they are.
_PLAIN = re.compile(r"[\w/.+@-]+", re.ASCII)
#: Seconds for whoever holds a pilot to answer.
_ANSWER = 30.0
#: Seconds that the process which holds a pilot gets to end it, beyond those that it gives RADICAL-Pilot.
_ENDING = 75.0
#: Seconds after which the log says what is waited for.
_SILENCE = 20.0


class HeldElsewhereError(Exception):
    """Whoever holds the pilot does not let this one use it."""


class Pilot:
    """A pilot that serves one engine after the other, whichever process these are in.

        pilot = await Pilot.start("local.localhost", cores=4, root="pilots")
        flow = await WorkflowEngine.create(RadicalPilotBackend(pilot=pilot.folder))
        ...
        await pilot.stop()      # from any process: Pilot(folder).stop()

    It is there until it is stopped or its time is over, so that a notebook that is started again does not wait in the
    machine's queue again.
    """

    def __init__(self, folder: str | Path) -> None:
        """The one whose files are in `folder`."""
        self._files = Files(Path(folder).absolute())
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self._files.folder

    @classmethod
    async def start(
        cls,
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
        interface: str | None = None,
        config: str | Path | None = None,
        root: str | Path = Path(".asyncflow", FOLDER),
        timeout: float | None = None,
    ) -> Pilot:
        """Start one that stays, its files in a new folder below `root`; returns when it is active.

        The options are those of `RadicalPilotBackend`. Raises BackendStartError.
        """
        wanted = order(
            resource,
            nodes=nodes,
            cores=cores,
            gpus=gpus,
            memory=memory,
            runtime=runtime,
            queue=queue,
            project=project,
            access_schema=access_schema,
            interface=interface,
            config=config,
        )
        return await cls.launch(wanted, root, "radical", timeout, stays=True)

    @classmethod
    async def launch(cls, wanted: Order, root: str | Path, name: str, timeout: float | None, *, stays: bool) -> Pilot:
        """Start the one that is `wanted` for the backend called `name`, and end what killed ones have left."""
        pilot = cls(Files.new(_checked(root)))
        preparing = asyncio.ensure_future(aside(lambda: _prepare(wanted, pilot._files, name, stays)))
        try:
            await asyncio.shield(preparing)
            await aside(pilot._run)
            await asyncio.wait_for(pilot._active(name), timeout)
        except BaseException as error:
            with contextlib.suppress(Exception):
                await preparing
            await pilot.stop()
            if isinstance(error, asyncio.TimeoutError):
                raise BackendStartError(name, f"the pilot was not active after {timeout:g} s") from None
            raise
        return pilot

    def _run(self) -> None:
        files = self._files
        with files.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "asyncflow.backends.radical.keeper", str(files.folder)],
                stdin=subprocess.DEVNULL if files.stays else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=files.folder,
                env=_environment(files.folder),
                # Out of reach of the terminal's signals: the pilot is ended in order.
                start_new_session=True,
            )
        files.note_owner(self._process.pid)

    async def _active(self, name: str) -> None:
        """Read what its process says until the pilot is active. Raises BackendStartError."""
        reading = asyncio.ensure_future(self._news(name))
        done, _ = await asyncio.wait([reading], timeout=_SILENCE)
        if not done:
            _log.warning("backend %r waits for its pilot; the log is %s", name, self._files.log)
        try:
            await reading
        finally:
            reading.cancel()

    async def _news(self, name: str) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        while line := await aside(process.stdout.readline):
            news = json.loads(line)
            if "ready" in news:
                return
            if "failed" in news:
                raise BackendStartError(name, f"{news['failed']}; its log is {self._files.log}")
        code = await aside(process.wait)
        raise BackendStartError(
            name, f"the process that was to hold its pilot ended with code {code}: {_tail(self._files.log)}"
        )

    # --- its use -----------------------------------------------------------------------------------------------------

    @property
    def session(self) -> str:
        """The name of RADICAL-Pilot's session."""
        return self._files.session

    @property
    def security(self) -> Any:
        """With which everything about it is connected."""
        return self._files.security()

    def address(self) -> str:
        """Of the scheduler of its workers. Raises HeldElsewhereError where it is not there."""
        address = self._files.address()
        if address is None:
            raise HeldElsewhereError("no pilot is active there")
        if self._files.closed or not leftovers.is_held(self._files):
            raise HeldElsewhereError(f"it has ended; what its process said last is in {self._files.log}")
        return address

    async def wire(self) -> Wire:
        """A new connection to whoever holds it. Raises OSError, HeldElsewhereError."""
        comm = await connect(self.address(), _ANSWER, **self.security.get_connection_args("client"))
        await comm.write({"op": HANDLER, "reply": False})
        return Wire(comm)

    # --- its end -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End it, and all that it has started. Its folder is removed, unless something went wrong."""
        process = self._process
        if process is None:
            await self._ask_to_stop()
        elif process.stdin is None:
            process.terminate()
        else:
            with contextlib.suppress(OSError):
                process.stdin.close()
        await aside(self._wait)

    async def _ask_to_stop(self) -> None:
        with contextlib.suppress(OSError, HeldElsewhereError):
            wire = await self.wire()
            wire.post("stop")
            async for _ in wire.messages():
                pass

    def _wait(self) -> None:
        process = self._process
        if process is not None:
            try:
                process.wait(_ENDING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        deadline = time.monotonic() + _ENDING
        # One that another process has started is none of ours to wait for otherwise.
        while process is None and leftovers.is_held(self._files) and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._files.owner() is None:
            self._files.remove()  # nothing was started, or nothing is left
        else:
            leftovers.end_session(self._files)

    async def __aenter__(self) -> Pilot:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _checked(root: str | Path) -> Path:
    path = Path(root).absolute()
    if not _PLAIN.fullmatch(str(path)):
        legal = (
            "RADICAL-Pilot's scripts quote no path; name one of letters, digits and '/', '.', '-', '_', '+', '@' alone"
        )
        raise InvalidOptionError("sandbox", str(path), legal)
    return path


def _prepare(wanted: Order, files: Files, name: str, stays: bool) -> None:
    leftovers.end_all(files.folder.parent)
    try:
        files.make(wanted.dumps(), stays=stays)
    except OSError as error:
        reason = f"its files cannot be written ({error}); sandbox= names another folder"
        raise BackendStartError(name, reason) from error
    write_sites(wanted, files.folder / "config")
    _write_program(files.folder)


def _write_program(folder: Path) -> None:
    """The program that RADICAL-Pilot finds where it looks for its components."""
    program = folder / "bin" / component.NAME
    program.parent.mkdir()
    command = shlex.join([sys.executable, component.__file__, str(folder)])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o700)


def _environment(folder: Path) -> dict[str, str]:
    """What RADICAL-Pilot needs in order to start without questions, and to write nowhere else."""
    own = str(Path(sys.executable).parent)
    return {
        **os.environ,
        # It finds its own programs there, and nothing tells if it does not.
        "PATH": os.pathsep.join([str(folder / "bin"), own, os.environ.get("PATH", os.defpath)]),
        "VIRTUAL_ENV": sys.prefix,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "RADICAL_BASE": str(folder / "base"),
        "RADICAL_CONFIG_USER_DIR": str(folder / "config"),
        "RADICAL_LOG_LVL": "ERROR",
        "RADICAL_REPORT": "FALSE",
        "RADICAL_PROFILE": "FALSE",
    }


def _tail(file: Path) -> str:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return "no log"
    return " / ".join(lines[-3:])
