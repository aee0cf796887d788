"""Recorded workflows in WfFormat, the JSON format of the WfCommons collections. Pure: text in, dataclasses out.

Versions 1.5 and 1.6 are read; 1.6 adds summaries only, which are recomputed here where they are needed. What an
instance says about files, machines and commands is left out: a replay needs the graph, the runtimes and the cores.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from asyncflow.errors import AsyncflowError

#: The versions of the format that are understood.
VERSIONS = ("1.5", "1.6")

#: What recorders put behind a task's name to make it unique: "_ID0000012", "_00000012".
_NUMBER = re.compile(r"(?<=.)[_-](ID)?\d+$")


class WfFormatError(AsyncflowError, ValueError):
    """A file that is no recorded workflow, or one that makes no sense."""

    def __init__(self, source: str, where: str, problem: str) -> None:
        #: The file's name.
        self.source = source
        #: A JSON path such as `$.workflow.specification.tasks[3].parents[0]`, or a line and column.
        self.where = where
        self.problem = problem
        super().__init__(f"{source}: {where}: {problem}")


@dataclass(frozen=True, slots=True)
class RecordedTask:
    """One task as it was recorded."""

    id: str
    name: str
    #: Ids, each once, in the file's order.
    parents: tuple[str, ...]
    #: Seconds.
    runtime: float
    #: Whole cores. The format has fractions from 1 on, which are rounded up; a task that records none had one.
    cores: int = 1
    #: The program that it ran; empty where that was not recorded.
    program: str = ""

    @property
    def sort(self) -> str:
        """What all tasks of its sort are called: what precedes in its name what makes that unique."""
        if self.program and self.name.startswith(self.program):
            return self.program
        return _NUMBER.sub("", self.name)


@dataclass(frozen=True, slots=True)
class RecordedWorkflow:
    """A recorded workflow."""

    name: str
    version: str
    #: Parents before children.
    tasks: tuple[RecordedTask, ...]

    @property
    def edges(self) -> int:
        """How many pairs of parent and child there are."""
        return sum(len(task.parents) for task in self.tasks)

    def critical_path(self) -> float:
        """Seconds of the longest path: no number of cores makes the workflow shorter."""
        ends: dict[str, float] = {}
        for task in self.tasks:
            ends[task.id] = task.runtime + max((ends[parent] for parent in task.parents), default=0.0)
        return max(ends.values())

    def work(self, cores: int) -> float:
        """Core seconds of all tasks, none of which gets more than `cores`."""
        return math.fsum(task.runtime * min(task.cores, cores) for task in self.tasks)

    def lower_bound(self, cores: int) -> float:
        """Seconds that no schedule on `cores` cores can go below: the longest path, or the work shared by all cores."""
        return max(self.critical_path(), self.work(cores) / cores)


@dataclass(frozen=True, slots=True)
class _Place:
    """A value in the file and the JSON path to it."""

    value: Any
    source: str
    path: str = "$"

    def wrong(self, problem: str) -> WfFormatError:
        return WfFormatError(self.source, self.path, problem)

    def get(self, key: str) -> _Place | None:
        """The member called `key`; None where there is none, or null."""
        if not isinstance(self.value, dict):
            raise self.wrong(f"is {_kind(self.value)}, not an object")
        value = self.value.get(key)
        return None if value is None else _Place(value, self.source, f"{self.path}.{key}")

    def need(self, key: str) -> _Place:
        member = self.get(key)
        if member is None:
            raise self.wrong(f"has no {key!r}")
        return member

    def __iter__(self) -> Iterator[_Place]:
        if not isinstance(self.value, list):
            raise self.wrong(f"is {_kind(self.value)}, not a list")
        for number, value in enumerate(self.value):
            yield _Place(value, self.source, f"{self.path}[{number}]")

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong(f"is {_kind(self.value)}, not a text")
        return self.value

    def number(self, least: float) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise self.wrong(f"is {_kind(self.value)}, not a number")
        # A whole number beyond what a float can hold is as unusable as one that is infinite.
        if not least <= self.value <= 1e300:
            raise self.wrong(f"is {self.value!s:.30}, not a number from {least:g} on")
        return float(self.value)


@dataclass(slots=True)
class _Specified:
    """A task of the specification, before it is known what it points to."""

    place: _Place
    name: str
    parents: dict[str, _Place] = field(default_factory=dict)
    children: dict[str, _Place] = field(default_factory=dict)


def _kind(value: object) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    if value == "":
        return "an empty text"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names[type(value)]


def parse_workflow(text: str | bytes, source: str) -> RecordedWorkflow:
    """The workflow recorded in `text`; `source` is the file's name, for error messages. Raises WfFormatError."""
    instance = _Place(_decode(text, source), source)
    version = _version(instance)
    workflow = instance.need("workflow")
    name = instance.need("name").text()
    tasks = _specified(workflow.need("specification").need("tasks"))
    _check_references(tasks)
    runs = _runs(workflow, tasks)
    recorded = [RecordedTask(uid, task.name, tuple(task.parents), *runs[uid]) for uid, task in tasks.items()]
    return RecordedWorkflow(name, version, tuple(_sorted(recorded, tasks)))


def _decode(text: str | bytes, source: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise WfFormatError(source, f"line {error.lineno}, column {error.colno}", f"not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # not text, a number of 5,000 digits, 10,000 lists in each other
        raise WfFormatError(source, "line 1", f"not JSON: {error}") from error


def _version(instance: _Place) -> str:
    place = instance.need("schemaVersion")
    if place.value not in VERSIONS:
        raise place.wrong(f"WfFormat {place.value!s:.30} cannot be read; versions {' and '.join(VERSIONS)} can")
    return str(place.value)


def _specified(places: _Place) -> dict[str, _Specified]:
    tasks: dict[str, _Specified] = {}
    for place in places:
        uid = place.need("id").text()
        if uid in tasks:
            raise place.need("id").wrong(f"task {uid!r} was there before, as {tasks[uid].place.path}")
        task = tasks[uid] = _Specified(place, place.need("name").text())
        # The same parent named twice is one parent, as for the format's own validator.
        task.parents.update((parent.text(), parent) for parent in place.need("parents"))
        task.children.update((child.text(), child) for child in place.need("children"))
    if not tasks:
        raise places.wrong("has no tasks")
    return tasks


def _check_references(tasks: Mapping[str, _Specified]) -> None:
    for uid, task in tasks.items():
        for parent, place in task.parents.items():
            if parent not in tasks:
                raise place.wrong(f"parent {parent!r} of task {uid!r} is no task of this workflow")
            if uid not in tasks[parent].children:
                raise place.wrong(f"task {uid!r} has parent {parent!r}, which does not have it as a child")
        for child, place in task.children.items():
            if child not in tasks:
                raise place.wrong(f"child {child!r} of task {uid!r} is no task of this workflow")
            if uid not in tasks[child].parents:
                raise place.wrong(f"task {uid!r} has child {child!r}, which does not have it as a parent")


def _runs(workflow: _Place, tasks: Mapping[str, _Specified]) -> dict[str, tuple[float, int, str]]:
    """Runtime, cores and program of each task."""
    execution = workflow.get("execution")
    if execution is None:
        raise workflow.wrong("has no 'execution': it was never run, so there are no runtimes to replay")
    runs: dict[str, tuple[float, int, str]] = {}
    for place in execution.need("tasks"):
        uid = place.need("id").text()
        if uid not in tasks:
            raise place.need("id").wrong(f"{uid!r} is no task of this workflow")
        if uid in runs:
            raise place.need("id").wrong(f"task {uid!r} was executed before in this list")
        runs[uid] = _runtime(place, uid), _cores(place), _program(place)
    for uid, task in tasks.items():
        if uid not in runs:
            raise task.place.wrong(f"task {uid!r} has no runtime: it is not in $.workflow.execution.tasks")
    return runs


def _runtime(place: _Place, uid: str) -> float:
    runtime = place.get("runtimeInSeconds")
    if runtime is None:
        raise place.wrong(f"task {uid!r} has no 'runtimeInSeconds'")
    return runtime.number(0)


def _cores(place: _Place) -> int:
    cores = place.get("coreCount")
    return 1 if cores is None else math.ceil(cores.number(1))


def _program(place: _Place) -> str:
    command = place.get("command")
    program = None if command is None else command.get("program")
    return "" if program is None else program.text()


def _sorted(recorded: list[RecordedTask], tasks: Mapping[str, _Specified]) -> Iterator[RecordedTask]:
    """The tasks, parents before children, else in their order."""
    by_id = {task.id: task for task in recorded}
    waits = {task.id: len(task.parents) for task in recorded}
    ready = deque(task.id for task in recorded if not task.parents)
    while ready:
        uid = ready.popleft()
        del waits[uid]
        yield by_id[uid]
        for child in tasks[uid].children:
            waits[child] -= 1
            if not waits[child]:
                ready.append(child)
    if waits:
        circle = _circle(by_id, waits)
        raise tasks[circle[0]].place.wrong(f"tasks wait for each other in a circle: {_arrows(circle)}")


def _circle(tasks: Mapping[str, RecordedTask], waiting: Mapping[str, int]) -> list[str]:
    """A circle among the tasks that wait for ever, from parent to child; each of them has a parent that waits too."""
    path: dict[str, None] = {}
    uid = next(iter(waiting))
    while uid not in path:
        path[uid] = None
        uid = next(parent for parent in tasks[uid].parents if parent in waiting)
    upwards = list(path)
    return upwards[upwards.index(uid) :][::-1]


def _arrows(circle: list[str]) -> str:
    shown = circle if len(circle) <= 6 else [*circle[:3], "...", *circle[-2:]]
    return " -> ".join([*shown, circle[0]])
