"""RADICAL-Pilot itself: a session, its managers, a pilot and the tasks on it.

Everything here blocks and belongs on a thread of the process that holds the pilot; the callbacks are called on threads
of RADICAL-Pilot's, which must never see an exception of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import radical.pilot as rp

from asyncflow.backends.radical.messages import PilotNode, TaskState
from asyncflow.backends.radical.order import Order

#: Seconds that tasks get to end once they are cancelled.
_CANCELLING = 15.0

#: States of a task that the pilot's executor has had in its hands.
_EXECUTED = (rp.AGENT_EXECUTING, rp.AGENT_STAGING_OUTPUT_PENDING, rp.AGENT_STAGING_OUTPUT, *rp.FINAL)


class NotLocalError(Exception):
    """A pilot whose files are elsewhere."""


class HeldPilot:
    """One session with one pilot."""

    def __init__(
        self,
        session: str,
        folder: Path,
        order: Order,
        on_pilot: Callable[[str], None],
        on_task: Callable[[TaskState], None],
    ) -> None:
        """Its session is called `session`, and all its files go below `folder`."""
        self._uid = session
        self._folder = folder
        self._order = order
        self._on_pilot = on_pilot
        self._on_task = on_task
        self._session: Any = None
        self._unfinished: set[str] = set()

    def open(self) -> None:
        """Start the session and submit the pilot; `on_pilot` tells the states that it comes to."""
        self._session = rp.Session(uid=self._uid, cfg={"base": str(self._folder / "sessions")})
        pilots = rp.PilotManager(session=self._session)
        self._tasks = rp.TaskManager(session=self._session)
        pilots.register_callback(lambda _, state: self._on_pilot(state))
        self._tasks.register_callback(self._on_state)
        self._pilot = pilots.submit_pilots(rp.PilotDescription(self._description()))
        self._tasks.add_pilots(self._pilot)

    def _description(self) -> dict[str, Any]:
        order = self._order
        wanted = {
            "resource": order.resource,
            "job_name": self._uid,
            "runtime": order.runtime,
            "queue": order.queue,
            "project": order.project,
            "access_schema": order.access_schema,
            "sandbox": str(self._folder / "sandbox"),
            # Else a pilot that fails interrupts the main thread.
            "exit_on_error": False,
            **self._size(),
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def _size(self) -> dict[str, int | None]:
        order = self._order
        machine = self._session.get_resource_config(order.resource, order.access_schema)
        nodes = order.nodes
        if nodes is None and order.cores is not None and machine.cores_per_node:
            nodes = math.ceil(order.cores / machine.cores_per_node)
        return {"cores": order.cores} if nodes is None else {"nodes": nodes}

    def nodes(self) -> list[PilotNode]:
        """Those of the pilot, once it is active, with as many cores and GPUs in all as were asked for.

        Raises NotLocalError where its files cannot be reached from here.
        """
        local_path(str(self._pilot.pilot_sandbox))
        cores, gpus = self._order.cores, self._order.gpus
        nodes = []
        for node in self._pilot.nodelist.nodes:
            some = [each["index"] for each in node["cores"]][:cores]
            others = [each["index"] for each in node["gpus"]][:gpus]
            cores = None if cores is None else cores - len(some)
            gpus = None if gpus is None else gpus - len(others)
            memory = self._order.memory or int(node["mem"])
            if some:
                nodes.append(PilotNode(str(node["name"]), node["index"], tuple(some), tuple(others), memory))
        return nodes

    def _on_state(self, task: Any, state: str) -> None:
        if state in rp.FINAL:
            self._unfinished.discard(task.uid)
        reason = " ".join(filter(None, [task.exception, task.exception_detail])) if state == rp.FAILED else ""
        sandbox = local_path(str(task.task_sandbox or "")) if state in rp.FINAL else ""
        executed, final = state in _EXECUTED, state in rp.FINAL
        self._on_task(TaskState(task.uid, state, executed, final, task.exit_code, reason, sandbox))

    def submit(self, descriptions: Sequence[Mapping[str, Any]]) -> None:
        """Submit tasks."""
        # First: the end of one may be told before this returns.
        uids = {each["uid"] for each in descriptions}
        self._unfinished |= uids
        try:
            self._tasks.submit_tasks([rp.TaskDescription(dict(each)) for each in descriptions])
        except BaseException:
            self._unfinished -= uids  # it has none of them, and could not wait for them at the end
            raise

    def cancel(self, uids: Sequence[str]) -> None:
        """Have RADICAL-Pilot end tasks, without a grace."""
        self._tasks.cancel_tasks(list(uids))

    def close(self, answers: bool) -> None:
        """End every task, the pilot and the session; tasks only where the pilot still `answers`."""
        if self._session is None:
            return
        # Those that still run when a session is closed run on.
        if answers and (left := list(self._unfinished)):
            self._tasks.cancel_tasks(left)
            self._tasks.wait_tasks(left, timeout=_CANCELLING)
        self._session.close(download=False)


def is_final(state: str) -> bool:
    """Whether a pilot in this state has ended."""
    return state in rp.FINAL


def is_active(state: str) -> bool:
    """Whether a pilot in this state runs tasks."""
    return bool(state == rp.PMGR_ACTIVE)


def local_path(url: str) -> str:
    """The path of a folder that RADICAL-Pilot names by a URL. Raises NotLocalError."""
    parts = urlsplit(url)
    if parts.scheme not in ("", "file"):
        raise NotLocalError(
            f"its files are at {url}; run the engine on a machine that shares a file system with the pilot's nodes"
        )
    return parts.path
