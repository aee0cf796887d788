"""The program that holds a pilot: RADICAL-Pilot's session, and the scheduler of the Dask workers on the pilot.

A process of its own, because RADICAL-Pilot takes over the one that it is in: its environment, threads that hold up the
end of the interpreter, children that see its forks. It outlives a killed engine for as long as it takes to end all that
it has started, and serves one engine after the other where it is told to stay.

    python -m asyncflow.backends.radical.keeper FOLDER      # says on stdout how it fares, ends when stdin does
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from distributed import Scheduler
from distributed.comm.core import Comm
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin

from asyncflow.backends.aside import aside
from asyncflow.backends.dask.interfaces import own_address
from asyncflow.backends.dask.security import variables_of
from asyncflow.backends.dask.wire import Message, Wire
from asyncflow.backends.radical import held, leftovers
from asyncflow.backends.radical.calls import Calls
from asyncflow.backends.radical.description import slot
from asyncflow.backends.radical.files import Files
from asyncflow.backends.radical.messages import HANDLER, PilotNode, TaskState
from asyncflow.backends.radical.order import Order
from asyncflow.backends.radical.pulse import Pulse
from asyncflow.backends.radical.workers import OVERLAP, PilotWorkers

_log = logging.getLogger("asyncflow")

#: Seconds that RADICAL-Pilot gets to start a session.
_OPENING = 120.0
#: Seconds that Dask's workers get to end by themselves.
_RETIRING = 3.0
#: Seconds that RADICAL-Pilot gets to end a pilot and its session; where the pilot is dead, it often cannot.
_CLOSING = 45.0
_CLOSING_DEAD = 10.0
#: Seconds that the tasks of an engine that is gone get to end.
_CLEANING = 20.0


class Keeper:
    """Holds one pilot until it is told to end, or the pilot ends. Runs on the event loop, but for what blocks."""

    def __init__(self, files: Files, order: Order, news: Callable[[dict[str, Any]], None]) -> None:
        """`news` tells whoever started it."""
        self._files = files
        self._order = order
        self._news = news
        self._loop = asyncio.get_running_loop()
        self._held = held.HeldPilot(files.session, files.folder, order, self._on_pilot_thread, self._on_task_thread)
        self._work = Calls()
        self._pulse = Pulse(self._probe)
        self._pilot_workers: PilotWorkers | None = None
        self._nodes: list[PilotNode] = []
        self._scheduler: Any = None
        #: Done with the reason when there is nothing more to do.
        self._end: asyncio.Future[str] = self._loop.create_future()
        #: Whether that was asked for.
        self._in_order = False
        self._active: asyncio.Future[None] = self._loop.create_future()
        self._since = 0.0
        #: The engine that is served, who it is, and its tasks.
        self._engine: Wire | None = None
        self._engine_name = ""
        self._out: dict[str, asyncio.Event] = {}
        self._turn = asyncio.Lock()
        self._probes = 0
        #: What starts workers again.
        self._again: set[asyncio.Future[None]] = set()

    async def run(self) -> None:
        """Start everything, serve, and end everything."""
        work = [asyncio.ensure_future(self._open()), asyncio.ensure_future(self._watch_pulse())]
        reason = await self._end
        self._tell_engine("broken", (reason,))
        self._news({"failed": reason})
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await self._close()

    def end(self, reason: str) -> None:
        """Let everything end, for something is wrong; the first reason counts."""
        if not self._end.done():
            _log.warning("the end: %s", reason)
            self._end.set_result(reason)

    def end_in_order(self, reason: str) -> None:
        """Let everything end, for it is no longer needed."""
        self._in_order = self._in_order or not self._end.done()
        self.end(reason)

    # --- its start ---------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        try:
            await self._start()
        except Exception as error:
            _log.exception("the pilot could not be started")
            self.end(str(error) or type(error).__name__)

    async def _start(self) -> None:
        security = self._files.security()
        host = own_address("lo" if self._order.is_local else self._order.interface)
        self._scheduler = Scheduler(
            host=host, port=0, dashboard=False, dashboard_address=f"{host}:0", security=security
        )
        await self._scheduler
        try:
            await asyncio.wait_for(self._work.done(self._held.open), _OPENING)
        except asyncio.TimeoutError:
            raise RuntimeError(f"RADICAL-Pilot has not started a session within {_OPENING:g} s") from None
        await self._active
        self._nodes = await self._work.done(self._held.nodes)
        if not self._nodes:
            raise RuntimeError("the pilot has no node with a core")
        address = str(self._scheduler.address)
        self._pilot_workers = PilotWorkers(
            self._files.session, self._order, self._nodes, address, variables_of(security), self._submit
        )
        self._scheduler.add_plugin(_Joined(self._pilot_workers.joined), name="asyncflow-joined")
        self._scheduler.handlers[HANDLER] = self._serve
        self._files.note_address(address)
        self._news({"ready": address})

    # --- what RADICAL-Pilot tells, on its threads --------------------------------------------------------------------

    def _on_pilot_thread(self, state: str) -> None:
        self._loop.call_soon_threadsafe(self._on_pilot, state)

    def _on_task_thread(self, task: TaskState) -> None:
        self._loop.call_soon_threadsafe(self._on_task, task)

    def _on_pilot(self, state: str) -> None:
        self._news({"state": state})
        if held.is_active(state) and not self._active.done():
            self._active.set_result(None)
            self._since = self._loop.time()
        if held.is_final(state):
            lasted = (self._loop.time() - self._since) / 60 if self._active.done() else 0.0
            over = (
                f": its {self._order.runtime} minutes (runtime=) are over" if lasted > self._order.runtime - 1 else ""
            )
            self.end(f"the pilot ended{over}, as RADICAL-Pilot says with the state {state}")

    def _on_task(self, task: TaskState) -> None:
        if not (task.executed or task.final):
            return
        if task.final and task.exit_code is None and task.reason and not self._end.done():
            _log.warning("task %s: %s: %s", task.uid, task.state, task.reason)
        # A worker that runs is not waited for.
        workers = self._pilot_workers
        is_worker = workers is not None and workers.has(task.uid)
        if self._pulse.heard(task.uid, task.final or is_worker):
            self._work.soon(lambda: shutil.rmtree(task.sandbox, ignore_errors=True), self.end)
        if task.final and workers is not None and is_worker:
            again = asyncio.ensure_future(self._start_again(workers, task))
            self._again.add(again)
            again.add_done_callback(self._again.discard)
        if task.uid in self._out:
            self._tell_engine("task", (task,))
            if task.final:
                self._out.pop(task.uid).set()

    async def _start_again(self, workers: PilotWorkers, task: TaskState) -> None:
        """Start another worker in the place of one whose task has ended; where it lives on, it is let go first."""
        if self._end.done():
            return
        await self._send_home(names=[workers.name(task.uid)])
        trouble = workers.ended(task)
        if trouble is not None:
            self.end(trouble)

    async def _send_home(self, **which: list[str]) -> None:
        """Let Dask's workers end by themselves."""
        with contextlib.suppress(Exception):
            leaving = self._scheduler.retire_workers(**which, close_workers=True, remove=True)
            await asyncio.wait_for(leaving, _RETIRING)

    # --- tasks -------------------------------------------------------------------------------------------------------

    def _submit(self, description: Mapping[str, Any]) -> None:
        uid = str(description["uid"])
        self._pulse.sent(uid)
        # What is refused is that task's own failure.
        self._work.soon(
            lambda: self._held.submit([description]),
            lambda reason: self._on_task(TaskState(uid, "FAILED", False, True, None, reason, "")),
        )

    def _probe(self) -> str:
        """Submit a task that ends at once."""
        self._probes += 1
        uid = f"{self._files.session}.probe.{self._probes}"
        place = slot(self._nodes[0], self._nodes[0].cores[:1], ())
        self._submit({"uid": uid, "executable": "/bin/true", "slots": [place], "pre_launch": OVERLAP})
        return uid

    async def _watch_pulse(self) -> None:
        await self._pulse.stops()
        self.end("the pilot does not answer: tasks that end at once do not end there")

    # --- engines -----------------------------------------------------------------------------------------------------

    async def _serve(self, comm: Comm) -> Status:
        """Serve an engine until its connection ends, one after the other; or end, where that is what is wanted."""
        wire = Wire(comm)
        messages = wire.messages()
        async for verb, data, _ in messages:
            if verb == "stop":
                self.end_in_order("it was told to end")
            elif self._engine is not None:
                wire.post("refused", (f"it serves {self._engine_name}",))
                await wire.close()
            else:
                await self._serve_engine(wire, messages, data[0])
        return Status.dont_reply

    async def _serve_engine(self, wire: Wire, messages: AsyncIterator[Message], name: str) -> None:
        self._engine, self._engine_name = wire, name
        async with self._turn:  # once nothing is left of an earlier one
            try:
                self._tell_engine("welcome", (self._files.session, self._nodes))
                if self._end.done():
                    self._tell_engine("broken", (self._end.result(),))
                async for verb, data, _ in messages:
                    self._heed(verb, data)
            finally:
                self._engine = None
                await self._clean()

    def _heed(self, verb: str, data: tuple[Any, ...]) -> None:
        if verb == "submit":
            self._out[data[0]["uid"]] = asyncio.Event()
            self._submit(data[0])
        elif verb == "cancel":
            self._work.soon(lambda: self._held.cancel(data), self.end)

    def _tell_engine(self, verb: str, data: tuple[Any, ...]) -> None:
        if self._engine is not None:
            self._engine.post(verb, data)

    async def _clean(self) -> None:
        """End what an engine that is gone has left."""
        if self._out and not self._end.done():
            left = list(self._out)
            self._work.soon(lambda: self._held.cancel(left), self.end)
            with contextlib.suppress(asyncio.TimeoutError):
                waiting = asyncio.gather(*(event.wait() for event in list(self._out.values())))
                await asyncio.wait_for(waiting, _CLEANING)
        self._out.clear()

    # --- its end -----------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        if self._scheduler is not None:
            await self._send_home(workers=list(self._scheduler.workers))
        try:
            closing = self._work.done(lambda: self._held.close(self._in_order))
            await asyncio.wait_for(closing, _CLOSING if self._in_order else _CLOSING_DEAD)
        except Exception:  # what it leaves is found and ended all the same
            _log.exception("RADICAL-Pilot could not end its session")
        if self._scheduler is not None:
            await self._scheduler.close()
        await aside(lambda: leftovers.end_session(self._files))
        if self._in_order:
            await aside(self._files.remove)


class _Joined(SchedulerPlugin):
    """Tells the name of a worker that has come up."""

    def __init__(self, joined: Callable[[str], None]) -> None:
        self._joined = joined

    def add_worker(self, scheduler: Any, worker: str) -> None:
        self._joined(str(scheduler.workers[worker].name))


async def _keep(folder: Path) -> None:
    def news(message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(told, f"{json.dumps(message)}\n".encode())

    # RADICAL-Pilot prints: what it prints belongs in the log.
    told = os.dup(1)
    os.set_inheritable(told, False)
    os.dup2(2, 1)
    files = Files(folder)
    keeper = Keeper(files, Order.loads(files.order.read_text()), news)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, keeper.end_in_order, f"it was ended by {signal.Signals(number).name}")
    if not files.stays:
        _call_at_end_of_input(lambda: loop.call_soon_threadsafe(keeper.end_in_order, "its engine has ended"))
    await keeper.run()


def _call_at_end_of_input(call: Callable[[], Any]) -> None:
    def read() -> None:
        while os.read(0, 1 << 16):
            pass
        with contextlib.suppress(RuntimeError):  # the loop is closed
            call()

    threading.Thread(target=read, name="lifeline", daemon=True).start()


def main(folder: str) -> None:
    """Hold the pilot that is described in `folder`."""
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s")
    try:
        asyncio.run(_keep(Path(folder)))
    finally:
        # Threads of RADICAL-Pilot's may hold up the end of the interpreter for ever.
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
