"""Recorded workflows in WfFormat 1.5: which tasks there were, what they waited for, how long each took."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recorded:
    """One task of a recorded workflow."""

    #: As the recording has it.
    label: str
    #: Seconds.
    runtime: float
    parents: tuple[str, ...]


def read_workflow(file: Path) -> list[Recorded]:
    """The tasks of a recorded workflow, parents before children."""
    recorded: dict[str, Any] = json.loads(file.read_text())
    if recorded["schemaVersion"] != "1.5":
        raise ValueError(f"{file.name} is written in WfFormat {recorded['schemaVersion']}, not 1.5")
    workflow = recorded["workflow"]
    runtimes = {task["id"]: float(task["runtimeInSeconds"]) for task in workflow["execution"]["tasks"]}
    specified = {task["id"]: task for task in workflow["specification"]["tasks"]}
    tasks = {
        label: Recorded(label, runtimes[label], tuple(dict.fromkeys(task["parents"])))
        for label, task in specified.items()
    }
    _check(specified)
    return _sorted(tasks)


def _check(specified: dict[str, Any]) -> None:
    down = {(label, child) for label, task in specified.items() for child in task["children"]}
    up = {(parent, label) for label, task in specified.items() for parent in task["parents"]}
    if down != up:
        raise ValueError(f"parents and children do not agree: {sorted(down ^ up)[:3]}")


def _sorted(tasks: dict[str, Recorded]) -> list[Recorded]:
    missing = {label: len(task.parents) for label, task in tasks.items()}
    children: dict[str, list[str]] = {}
    for task in tasks.values():
        for parent in task.parents:
            children.setdefault(parent, []).append(task.label)
    ready = [label for label, count in missing.items() if not count]
    ordered = []
    while ready:
        label = ready.pop()
        ordered.append(tasks[label])
        for child in children.get(label, ()):
            missing[child] -= 1
            if not missing[child]:
                ready.append(child)
    if len(ordered) != len(tasks):
        raise ValueError("the tasks wait for each other in a circle")
    return ordered


def shortest(tasks: list[Recorded], workers: int) -> float:
    """Seconds that the workflow takes at best: its work shared by all workers, and its longest path."""
    path: dict[str, float] = {}
    for task in tasks:
        path[task.label] = task.runtime + max((path[parent] for parent in task.parents), default=0.0)
    return max(*path.values(), sum(task.runtime for task in tasks) / workers)
