"""The published schema of a telemetry file's lines: it knows our events, admits what a session writes, and no more."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from asyncflow import WorkflowEngine
from asyncflow.telemetry import names
from asyncflow.telemetry.events import define_event
from asyncflow.testing import bodies
from asyncflow.testing.leaks import nothing_left

SCHEMA: dict[str, Any] = json.loads((Path(__file__).parents[1] / "telemetry" / "events.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)

_NUMBER, _TEXT = 7, "text"
_GPU = {"id": "0", "utilisation": 50.0, "memory_used": 1, "memory_total": 2}
_FAILURE: dict[str, Any] = {
    "asyncflow.attempt": 1,
    "asyncflow.worker": "w1",
    "exception.message": _TEXT,
    "cicd.pipeline.task.run.result": "failure",
}
#: Of each event type its attributes besides the workflow's id.
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "SessionStarted": {
        "asyncflow.version": "1.0",
        "python.version": "3.11",
        "process.pid": _NUMBER,
        "process.command_args": ["script.py"],
        "asyncflow.backends": [{"name": "threads", "workers": 2, "cores": 2, "gpus": 0, "memory": 1000}],
    },
    "TaskCreated": {
        "task_name": "add",
        "task_type": "function",
        "executable": "module.add",
        "depends_on": ["task.1"],
        "asyncflow.parent": None,
        "asyncflow.cores": 1,
        "asyncflow.gpus": 0,
    },
    "asyncflow.TaskResolved": {},
    "TaskSubmitted": {"asyncflow.attempt": 1},
    "TaskQueued": {"asyncflow.attempt": 1},
    "TaskStarted": {"asyncflow.attempt": 1, "asyncflow.worker": "w1", "process.pid": _NUMBER},
    "asyncflow.TaskRetried": {**_FAILURE, "asyncflow.lost": True},
    "TaskCompleted": {"asyncflow.attempt": 1, "asyncflow.worker": "w1"},
    "TaskFailed": _FAILURE,
    "TaskCanceled": {
        "asyncflow.attempt": 0,
        "asyncflow.worker": None,
        "asyncflow.reason": "",
        "cicd.pipeline.task.run.result": "cancellation",
    },
    "ResourceUpdate": {
        "cpu_percent": 12.5,
        "memory_used": 1,
        "memory_total": 2,
        "disk_read": 3,
        "disk_written": 4,
        "net_received": 5,
        "net_sent": 6,
        "gpus": [_GPU],
    },
    "asyncflow.LoopBlocked": {"asyncflow.who": _TEXT, "code.filepath": _TEXT, "asyncflow.seconds": 1.5},
    "SessionEnded": {"asyncflow.tasks": {"DONE": 3}, "asyncflow.dropped": 0},
}
_ABOUT_NO_TASK = {"SessionStarted", "ResourceUpdate", "asyncflow.LoopBlocked", "SessionEnded"}


def line(kind: str, **changes: Any) -> dict[str, Any]:
    """A line of this type, as it should be but for the `changes`."""
    made: dict[str, Any] = {
        "event_id": "a-1",
        "event_type": kind,
        "event_time": 1.5,
        "emit_time": 2.0,
        "session_id": "flow-1",
        "backend": None if kind in _ABOUT_NO_TASK else "threads",
        "task_id": None if kind in _ABOUT_NO_TASK else "task.2",
        "node_id": "n1" if kind in ("SessionStarted", "ResourceUpdate", "SessionEnded") else None,
        "trace_id": "0" * 31 + "a",
        "span_id": "0" * 15 + "b",
        "attributes": {"asyncflow.workflow_id": None, **copy.deepcopy(ATTRIBUTES.get(kind, {}))},
    }
    if kind in ("TaskCompleted", "TaskFailed", "TaskCanceled", "asyncflow.TaskRetried", "SessionEnded"):
        made["duration_seconds"] = 0.5
    if kind in ("TaskFailed", "asyncflow.TaskRetried"):
        made["error_type"] = "ValueError"
    return {**made, **changes}


def with_attributes(kind: str, **attributes: Any) -> dict[str, Any]:
    made = line(kind)
    made["attributes"].update(attributes)
    return made


def faults(line: Mapping[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(dict(line))]


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_it_names_exactly_our_event_types() -> None:
    assert SCHEMA["properties"]["event_type"]["anyOf"][0]["enum"] == list(names.EVENT_TYPES)
    told_apart = [rule["if"]["properties"].get("event_type", {}).get("const") for rule in SCHEMA["allOf"]]
    assert [kind for kind in told_apart if kind is not None] == list(names.EVENT_TYPES)
    assert set(names.EVENT_TYPES) == ATTRIBUTES.keys() == {kind for kind in SCHEMA["$defs"] if kind in ATTRIBUTES}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_every_type_of_ours_has_lines_that_are_right(kind: str) -> None:
    assert faults(line(kind)) == []
    assert faults(line(kind, trace_id=None, span_id=None)) == []


@pytest.mark.parametrize("kind", [*ATTRIBUTES, "ising.Checkpoint"])
def test_no_field_of_a_line_may_be_missing_and_none_be_unknown(kind: str) -> None:
    for field in line(kind):
        made = line(kind)
        del made[field]
        assert faults(made), field
    assert faults(line(kind, further=1))


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_no_attribute_of_ours_may_be_missing_be_of_another_type_or_be_unknown(kind: str) -> None:
    for name in line(kind)["attributes"]:
        made = line(kind)
        del made["attributes"][name]
        assert faults(made), name
        assert faults(with_attributes(kind, **{name: object})), name  # an object is of no JSON type
    assert faults(with_attributes(kind, further=1))


_WRONG = {
    "time as text": line("TaskQueued", event_time="now"),
    "no such type": line("TaskWaited"),
    "type of ours that is none": line("asyncflow.Waited"),
    "trace that is none": line("TaskQueued", trace_id="abc"),
    "trace without span": line("TaskQueued", span_id=None),
    "span without trace": line("TaskQueued", trace_id=None),
    "task without id": line("TaskQueued", task_id=None),
    "session with a task": line("SessionStarted", task_id="task.1"),
    "duration before the end": line("TaskStarted", duration_seconds=1.0),
    "negative duration": line("TaskCompleted", duration_seconds=-1.0),
    "error of what ended well": line("TaskCompleted", error_type="ValueError"),
    "attempt 0 that was submitted": with_attributes("TaskSubmitted", **{"asyncflow.attempt": 0}),
    "unknown outcome": with_attributes("TaskFailed", **{"cicd.pipeline.task.run.result": "cancellation"}),
    "unknown kind": with_attributes("TaskCreated", task_type="thread"),
    "busier than can be": with_attributes("ResourceUpdate", cpu_percent=100.5),
    "GPU without memory": with_attributes("ResourceUpdate", gpus=[{"id": "0", "utilisation": 1.0}]),
    "backend without cores": with_attributes("SessionStarted", **{"asyncflow.backends": [{"name": "threads"}]}),
    "state that is none": with_attributes("SessionEnded", **{"asyncflow.tasks": {"LOST": 1}}),
}


@pytest.mark.parametrize("wrong", _WRONG.values(), ids=_WRONG)
def test_a_line_that_is_wrong_is_not_admitted(wrong: dict[str, Any]) -> None:
    assert faults(wrong)


def test_what_only_some_failures_have_is_admitted() -> None:
    of_command = {"process.exit.code": -9, "process.command_args": ["a", "b"], "asyncflow.stderr": "oops"}
    assert faults(with_attributes("TaskFailed", **of_command)) == []
    assert faults(with_attributes("TaskFailed", **{"asyncflow.root_cause": "task.1"})) == []
    assert faults(line("TaskFailed", duration_seconds=None)) == []


@pytest.mark.parametrize("kind", ["ising.Checkpoint", "my.own.Event", "asyncflowers.Bloomed"])
def test_events_of_the_users_own_may_have_any_attributes(kind: str) -> None:
    assert faults(with_attributes(kind, anything=[1, {"of": None}], task_name=3)) == []
    assert faults(line(kind, backend=None, task_id=None)) == []


def _lines(path: Path | None) -> Iterator[dict[str, Any]]:
    assert path is not None
    return map(json.loads, path.read_text().splitlines())


async def test_what_a_session_writes_is_right(no_leaks: None, tmp_path: Path) -> None:
    # Without the fixture for engines, which minds that the loop is held.
    async with WorkflowEngine.create("threads", work_dir=tmp_path, block_warning=0.05) as flow:
        telemetry = await flow.start_telemetry(tmp_path, resource_interval=0.05)
        seen: set[str] = set()
        telemetry.subscribe(lambda event: seen.add(event.event_type))
        add, release = flow.function_task(bodies.add), threading.Event()

        @flow.block
        async def twice() -> int:
            return await add(await add(1, 1), 2)

        async with flow.workflow_scope("wf-1"):
            failed = flow.executable_task(bodies.words)("sh", "-c", "echo oops >&2; exit 3")
            held = flow.function_task(release.wait)()
            dropped = add(held, 1)
            dropped.cancel()
            release.set()
            retried = flow.function_task(retries=1)(bodies.fail_until)(tmp_path / "attempts", 2)
            await asyncio.gather(twice(), failed, add(failed, 1), dropped, held, retried, return_exceptions=True)
        telemetry.emit(define_event("ising.Checkpoint", step=int)(step=3))
        time.sleep(0.2)  # the loop is held
        unseen = {names.RESOURCE_UPDATE, names.LOOP_BLOCKED}
        assert not await nothing_left(lambda: sorted(unseen - seen), 60.0)
    lines = list(_lines(telemetry.path))
    assert {each["event_type"] for each in lines} == {*names.EVENT_TYPES, "ising.Checkpoint"}
    assert [(each, faults(each)) for each in lines if faults(each)] == []
