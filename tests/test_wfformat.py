"""Reading recorded workflows: what is understood, and what is said of files that make no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from asyncflow.errors import AsyncflowError
from asyncflow.wfformat import RecordedTask, RecordedWorkflow, WfFormatError, parse_workflow
from tests.support.recordings import INSTANCES, instance, needs_recordings

Change = Callable[[dict[str, Any]], object]


def parse(content: dict[str, Any]) -> RecordedWorkflow:
    return parse_workflow(json.dumps(content), "recording.json")


def diamond() -> dict[str, Any]:
    """a before b and c, both before d; b is the long one."""
    return instance({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}, runtimes={"a": 1, "b": 4, "c": 2, "d": 1})


def specified(content: dict[str, Any]) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = content["workflow"]["specification"]["tasks"]
    return tasks


def executed(content: dict[str, Any]) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = content["workflow"]["execution"]["tasks"]
    return tasks


@pytest.mark.parametrize("version", ["1.5", "1.6"])
def test_both_versions_are_read(version: str) -> None:
    content = diamond() | {"schemaVersion": version}
    # What came with 1.6 may be there or not.
    content["workflow"]["specification"]["metrics"] = {"numberOfTasks": 4}
    workflow = parse(content)
    assert workflow.version == version
    assert workflow.name == "recording"
    assert workflow.edges == 4
    assert workflow.tasks == (
        RecordedTask("a", "a", (), 1.0),
        RecordedTask("b", "b", ("a",), 4.0),
        RecordedTask("c", "c", ("a",), 2.0),
        RecordedTask("d", "d", ("b", "c"), 1.0),
    )


def test_text_may_be_bytes() -> None:
    assert parse_workflow(json.dumps(diamond()).encode(), "recording.json") == parse(diamond())


def test_parents_come_before_children_whatever_the_order_of_the_file() -> None:
    content = diamond()
    specified(content).reverse()
    seen: set[str] = set()
    for task in parse(content).tasks:
        assert set(task.parents) <= seen
        seen.add(task.id)
    assert seen == {"a", "b", "c", "d"}


def test_the_longest_path_and_the_work_bound_the_makespan() -> None:
    workflow = parse(diamond())
    assert workflow.critical_path() == 6
    assert workflow.work(cores=1) == 8
    assert workflow.lower_bound(cores=1) == 8
    assert workflow.lower_bound(cores=2) == 6


def test_work_counts_the_cores_that_there_are() -> None:
    content = diamond()
    executed(content)[1]["coreCount"] = 64
    workflow = parse(content)
    assert workflow.work(cores=2) == 12
    assert workflow.lower_bound(cores=2) == 6


@pytest.mark.parametrize("recorded,cores", [(None, 1), (1, 1), (1.5, 2), (4, 4)])
def test_recorded_cores_are_rounded_up(recorded: float | None, cores: int) -> None:
    content = diamond()
    executed(content)[0]["coreCount"] = recorded
    assert parse(content).tasks[0].cores == cores


def test_a_parent_that_is_named_twice_is_one_parent() -> None:
    content = diamond()
    specified(content)[1]["parents"] = ["a", "a"]
    assert parse(content).tasks[1].parents == ("a",)


@pytest.mark.parametrize(
    "name,program,sort",
    [
        ("split_ID0000012", "", "split"),
        ("split_00000012", "", "split"),
        ("split", "", "split"),
        ("_12", "", "_12"),
        ("map_lane_4_ID0000005", "map", "map"),
        ("map_lane_4_ID0000005", "bash", "map_lane_4"),
    ],
)
def test_tasks_of_one_sort_have_one_name(name: str, program: str, sort: str) -> None:
    content = diamond()
    specified(content)[0]["name"] = name
    if program:
        executed(content)[0]["command"] = {"program": program}
    assert parse(content).tasks[0].sort == sort


TASKS = "$.workflow.specification.tasks"
RUNS = "$.workflow.execution.tasks"


def _circle(content: dict[str, Any]) -> None:
    tasks = specified(content)
    tasks[1]["parents"].append("d")
    tasks[3]["children"].append("b")


def _long_circle(content: dict[str, Any]) -> None:
    chain = instance({f"t{number}": [f"t{number - 1}"] if number else [] for number in range(9)})
    tasks = specified(chain)
    tasks[0]["parents"].append("t8")
    tasks[8]["children"].append("t0")
    content.update(chain)


def _own_parent(content: dict[str, Any]) -> None:
    specified(content)[0].update(parents=["a"], children=["a", "b", "c"])


@pytest.mark.parametrize(
    "change,where,problem",
    [
        (lambda it: it.pop("schemaVersion"), "$", "has no 'schemaVersion'"),
        (lambda it: it.update(schemaVersion="1.4"), "$.schemaVersion", "WfFormat 1.4 cannot be read; versions 1.5 and"),
        (lambda it: it.update(schemaVersion=1.5), "$.schemaVersion", "WfFormat 1.5 cannot be read"),
        (lambda it: it.update(schemaVersion=[]), "$.schemaVersion", "WfFormat [] cannot be read"),
        (lambda it: it.pop("name"), "$", "has no 'name'"),
        (lambda it: it.update(name=7), "$.name", "is a number, not a text"),
        (lambda it: it.update(workflow=[]), "$.workflow", "is a list, not an object"),
        (lambda it: it["workflow"].pop("specification"), "$.workflow", "has no 'specification'"),
        (lambda it: it["workflow"].pop("execution"), "$.workflow", "has no 'execution': it was never run"),
        (lambda it: specified(it).clear(), TASKS, "has no tasks"),
        (lambda it: it["workflow"]["specification"].update(tasks={}), TASKS, "is an object, not a list"),
        (lambda it: specified(it)[1].pop("parents"), f"{TASKS}[1]", "has no 'parents'"),
        (lambda it: specified(it)[1].update(id=""), f"{TASKS}[1].id", "is an empty text, not a text"),
        (lambda it: specified(it)[1].update(parents=[True]), f"{TASKS}[1].parents[0]", "is a boolean, not a text"),
        (lambda it: specified(it)[2].update(id="b"), f"{TASKS}[2].id", f"task 'b' was there before, as {TASKS}[1]"),
        (lambda it: specified(it)[3]["parents"].append("x"), f"{TASKS}[3].parents[2]", "parent 'x' of task 'd' is no"),
        (lambda it: specified(it)[3]["children"].append("x"), f"{TASKS}[3].children[0]", "child 'x' of task 'd' is no"),
        (
            lambda it: specified(it)[3]["parents"].append("a"),
            f"{TASKS}[3].parents[2]",
            "task 'd' has parent 'a', which does not have it as a child",
        ),
        (
            lambda it: specified(it)[0]["children"].append("d"),
            f"{TASKS}[0].children[2]",
            "task 'a' has child 'd', which does not have it as a parent",
        ),
        (_circle, f"{TASKS}[3]", "tasks wait for each other in a circle: d -> b -> d"),
        (_long_circle, f"{TASKS}[1]", "in a circle: t1 -> t2 -> t3 -> ... -> t8 -> t0 -> t1"),
        (_own_parent, f"{TASKS}[0]", "in a circle: a -> a"),
        (lambda it: executed(it).pop(), f"{TASKS}[3]", "task 'd' has no runtime"),
        (lambda it: executed(it).append({"id": "x"}), f"{RUNS}[4].id", "'x' is no task of this workflow"),
        (lambda it: executed(it).append({"id": "a"}), f"{RUNS}[4].id", "task 'a' was executed before"),
        (lambda it: executed(it)[2].pop("runtimeInSeconds"), f"{RUNS}[2]", "task 'c' has no 'runtimeInSeconds'"),
        (lambda it: executed(it)[2].update(runtimeInSeconds=None), f"{RUNS}[2]", "task 'c' has no 'runtimeInSeconds'"),
        (
            lambda it: executed(it)[2].update(runtimeInSeconds=-0.5),
            f"{RUNS}[2].runtimeInSeconds",
            "is -0.5, not a number from 0 on",
        ),
        (
            lambda it: executed(it)[2].update(runtimeInSeconds=float("nan")),
            f"{RUNS}[2].runtimeInSeconds",
            "is nan, not a number from 0 on",
        ),
        (
            lambda it: executed(it)[2].update(runtimeInSeconds=10**400),
            f"{RUNS}[2].runtimeInSeconds",
            "not a number from 0 on",
        ),
        (
            lambda it: executed(it)[2].update(runtimeInSeconds="3"),
            f"{RUNS}[2].runtimeInSeconds",
            "is a text, not a number",
        ),
        (lambda it: executed(it)[2].update(coreCount=0), f"{RUNS}[2].coreCount", "is 0, not a number from 1 on"),
        (lambda it: executed(it)[2].update(coreCount=0.5), f"{RUNS}[2].coreCount", "is 0.5, not a number from 1 on"),
        (lambda it: executed(it)[2].update(command="x"), f"{RUNS}[2].command", "is a text, not an object"),
    ],
)
def test_a_recording_that_makes_no_sense_is_refused_and_the_place_is_named(
    change: Change, where: str, problem: str
) -> None:
    content = diamond()
    change(content)
    with pytest.raises(WfFormatError) as caught:
        parse(content)
    assert caught.value.where == where
    assert problem in caught.value.problem
    assert str(caught.value).startswith(f"recording.json: {where}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text,where,problem",
    [
        ("", "line 1, column 1", "not JSON: Expecting value"),
        ('{\n  "name": oops\n}', "line 2, column 11", "not JSON: Expecting value"),
        (b"\xff\xfe\x00", "line 1", "not JSON: "),
        (b"\x80abc", "line 1", "not JSON: "),
        ("[" * 100_000, "line 1", "not JSON: "),
        ("[]", "$", "is a list, not an object"),
        ("null", "$", "is null, not an object"),
    ],
)
def test_what_is_no_object_of_json_is_refused(text: str | bytes, where: str, problem: str) -> None:
    with pytest.raises(WfFormatError) as caught:
        parse_workflow(text, "recording.json")
    assert caught.value.where == where
    assert caught.value.problem.startswith(problem)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, (AsyncflowError, ValueError))


@needs_recordings
def test_recordings_of_real_workflows_are_read() -> None:
    sizes = {}
    for file in sorted(INSTANCES.glob("*.json")):
        workflow = parse_workflow(file.read_bytes(), file.name)
        sizes[file.name.split("-chameleon-")[0]] = len(workflow.tasks), workflow.edges
        assert 0 < workflow.critical_path() <= workflow.work(1)
    assert sizes["montage"] == (58, 114)
