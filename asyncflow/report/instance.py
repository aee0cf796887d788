"""A run as a WfFormat instance, the JSON format of the WfCommons collections, which `asyncflow replay` replays. Pure.

What a block called stands where the block stood: its parts wait for what it waited for, and what depends on it waits
for them, so that it takes no time itself. Otherwise the edges are those of the calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from math import ceil
from typing import Any

import orjson

from asyncflow.errors import NothingToExportError
from asyncflow.report.critical import in_order
from asyncflow.report.run import Run, Task

#: The version of the format that is written.
VERSION = "1.5"


def wfformat(run: Run) -> bytes:
    """The whole file. Raises NothingToExportError where nothing was called: the format has no empty workflows."""
    if not run.tasks:
        raise NothingToExportError(run.session.uid, "it called no tasks, and WfFormat knows no empty workflow")
    ids = _ids(run.tasks)
    parents = _parents(run)
    children: dict[str, list[str]] = {uid: [] for uid in parents}
    for uid, above in parents.items():
        for each in above:
            children[each].append(uid)
    tasks = [_specified(run.tasks[uid], ids, parents[uid], children[uid]) for uid in parents]
    session = run.session
    content = {
        "name": session.uid,
        "description": "A session of asyncflow, exported from its telemetry",
        "createdAt": _iso(session.began),
        "schemaVersion": VERSION,
        "runtimeSystem": {"name": "asyncflow", "version": session.version or "unknown"},
        "workflow": {
            "specification": {"tasks": tasks},
            "execution": _execution(run, [run.tasks[uid] for uid in parents], ids),
        },
    }
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _ids(uids: Iterable[str]) -> dict[str, str]:
    """What each task is called there: its uid, as far as the format allows the characters."""
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for uid in uids:
        plain = re.sub(r"[^0-9a-zA-Z_.-]", "_", uid)
        number = 1
        while (unique := plain if number == 1 else f"{plain}.{number}") in taken:
            number += 1
        taken.add(unique)
        ids[uid] = unique
    return ids


def _parents(run: Run) -> dict[str, list[str]]:
    """The parents of each task, which come before it; edges that would close a circle are left out."""
    wanted: dict[str, dict[str, None]] = {
        uid: dict.fromkeys(each for each in task.depends_on if each in run.tasks) for uid, task in run.tasks.items()
    }
    for uid, task in run.tasks.items():
        block = run.tasks.get(task.parent or "")
        if block is not None and block.is_block and block is not task:
            wanted[uid].update(dict.fromkeys(each for each in block.depends_on if each in run.tasks))
            wanted[block.uid][uid] = None
    place = {uid: number for number, uid in enumerate(in_order({uid: list(above) for uid, above in wanted.items()}))}
    return {uid: [each for each in wanted[uid] if place[each] < place[uid]] for uid in place}


def _specified(task: Task, ids: Mapping[str, str], parents: Iterable[str], children: Iterable[str]) -> dict[str, Any]:
    return {
        "name": task.name,
        "id": ids[task.uid],
        "parents": [ids[each] for each in parents],
        "children": [ids[each] for each in children],
    }


def _execution(run: Run, tasks: Iterable[Task], ids: Mapping[str, str]) -> dict[str, Any]:
    tasks = list(tasks)
    parts = {task.parent for task in tasks}
    hosts = dict.fromkeys(place.host for task in tasks if (place := task.place) is not None and place.host)
    machines = [_machine(run, host) for host in hosts]
    return {
        "makespanInSeconds": round(run.makespan, 6),
        "executedAt": _iso(run.session.began + run.first),
        "tasks": [_ran(run, task, ids, task.uid in parts) for task in tasks],
        **({"machines": machines} if machines else {}),
    }


def _machine(run: Run, host: str) -> dict[str, Any]:
    samples = run.samples.get(host)
    memory = round(samples[-1].memory_total) if samples else 0
    return {"nodeName": host, **({"memoryInBytes": memory} if memory > 0 else {})}


def _ran(run: Run, task: Task, ids: Mapping[str, str], has_parts: bool) -> dict[str, Any]:
    seconds = 0.0 if task.is_block and has_parts else run.running(task)
    said: dict[str, Any] = {"id": ids[task.uid], "runtimeInSeconds": round(seconds, 6)}
    command = _command(task)
    if command:
        said["command"] = command
    if task.cores >= 1:
        said["coreCount"] = ceil(task.cores)
    place = task.place
    if place is not None and place.host:
        said["machines"] = [place.host]
    return said


def _command(task: Task) -> dict[str, Any]:
    """What ran: a program where its words are known, which only failures tell, else the function's name."""
    told = [each.failure.command for each in task.attempts if each.failure is not None and each.failure.command]
    if told:
        program, *words = told[-1]
        # The format has no empty words.
        return {"program": program or "?", "arguments": [word for word in words if word]}
    return {"program": task.executable} if task.executable else {}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
