"""The workers on a pilot: one of Dask's on each node, started as the pilot's own tasks."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from asyncflow.backends.orphans import SESSION
from asyncflow.backends.radical.description import exported, slot
from asyncflow.backends.radical.messages import PilotNode, TaskState
from asyncflow.backends.radical.order import Order

#: How often in a row the worker of a node may fail to come up or to stay.
_MOST_FAILURES = 3


class PilotWorkers:
    """Keeps a worker on each node. On the loop of the process that holds the pilot."""

    def __init__(
        self,
        session: str,
        order: Order,
        nodes: Sequence[PilotNode],
        scheduler: str,
        variables: Mapping[str, str],
        submit: Callable[[dict[str, Any]], None],
    ) -> None:
        """`scheduler` is the address of Dask's, which they join with the environment `variables`."""
        self._session = session
        self._order = order
        self._scheduler = scheduler
        self._submit = submit
        self._numbers = count()
        self._nodes: dict[str, PilotNode] = {}
        self._failures: Counter[str] = Counter()
        self._variables = {
            "DASK_LOGGING__DISTRIBUTED": "warning",
            **variables,
            SESSION: session,
            # What the engine can import, its workers can.
            "PYTHONPATH": os.pathsep.join(order.path),
        }
        for node in nodes:
            self._start(node)

    def _start(self, node: PilotNode) -> None:
        uid = f"{self._session}.worker.{next(self._numbers)}"
        self._nodes[uid] = node
        self._submit(self._description(uid, node))

    def _description(self, uid: str, node: PilotNode) -> dict[str, Any]:
        interface = "lo" if self._order.is_local else self._order.interface
        arguments = [self._scheduler, interface, len(node.cores), node.memory, len(node.gpus), worker_name(node)]
        command = [sys.executable, "-m", "asyncflow.backends.dask.start", json.dumps(arguments)]
        return {
            "uid": uid,
            "executable": shlex.join(command),
            "ranks": 1,
            "cores_per_rank": len(node.cores),
            "environment": exported(self._variables),
            "slots": [slot(node, node.cores, ())],
            "pre_launch": OVERLAP,
        }

    def ended(self, task: TaskState) -> str | None:
        """The task of a worker has ended: another one is started; why none can be, if so."""
        node = self._nodes.pop(task.uid)
        name = worker_name(node)
        self._failures[name] += 1
        if self._failures[name] < _MOST_FAILURES:
            self._start(node)
            return None
        return f"worker {name} does not stay: {_said(task) or task.reason or task.state}"

    def has(self, uid: str) -> bool:
        """Whether a task is a worker."""
        return uid in self._nodes

    def name(self, uid: str) -> str:
        """Under which Dask knows the worker that is this task."""
        return worker_name(self._nodes[uid])

    def joined(self, name: str) -> None:
        """A worker has come up: its earlier failures are forgiven."""
        del self._failures[name]


#: Has SLURM run a task beside others on the same cores; elsewhere it does nothing.
OVERLAP = ["export SLURM_OVERLAP=1"]


def worker_name(node: PilotNode) -> str:
    """Under which Dask knows the worker of a node; nodes that are one host may have one name."""
    return f"{node.name}-{node.number}"


def _said(task: TaskState) -> str:
    try:
        lines = Path(task.sandbox, f"{task.uid}.err").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return " ".join(lines[-3:])
