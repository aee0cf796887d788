"""Events: what the file says of every kind of life, and what happens to those who read and write it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncflow import DependencyFailureError, WalltimeReached, WorkflowEngine, engine
from asyncflow.backends import ProcessBackend, ThreadBackend
from asyncflow.backends.aside import aside
from asyncflow.backends.contract import Definition, Kind, Place
from asyncflow.component import Component
from asyncflow.errors import (
    EngineClosedError,
    EventDefinitionError,
    EventFieldError,
    InvalidOptionError,
    TelemetryNotInstalledError,
    TelemetryRunningError,
)
from asyncflow.graph import Phase
from asyncflow.telemetry import Event, define_event, names
from asyncflow.telemetry.batch import Batch
from asyncflow.telemetry.consumer import Consumer
from asyncflow.telemetry.journal import Journal
from asyncflow.telemetry.life import moments
from asyncflow.telemetry.lines import Lines, encoded
from asyncflow.telemetry.record import Shown
from asyncflow.testing.bodies import echo
from tests.support.faked import soon
from tests.support.scripts import environment, run_script, start_script
from tests.support.telemetry import events, mode, of, told, types

WHOLE = [
    "TaskCreated",
    "asyncflow.TaskResolved",
    "TaskSubmitted",
    "TaskQueued",
    "TaskStarted",
    "TaskCompleted",
]


# --- lives -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["threads", "processes"])
async def test_a_task_that_goes_well_has_six_events(backend: str, no_leaks: None) -> None:
    async with told(backend) as (flow, telemetry):
        first = flow.function_task(name="first")(echo)(1)
        second = flow.function_task(name="second")(echo)([first])
        assert await second == [1]
        path, session = telemetry.path, flow.uid
    found = events(path)
    assert types(found)[0] == "SessionStarted"
    assert types(found)[-1] == "SessionEnded"
    mine = of(found, second.uid)
    assert types(mine) == WHOLE
    times = [event["event_time"] for event in mine]
    assert times == sorted(times)
    created, *_, started, completed = mine
    assert created["attributes"] == {
        "asyncflow.workflow_id": None,
        "task_name": "second",
        "task_type": "function",
        "executable": "asyncflow.testing.bodies.echo",
        "asyncflow.cores": 1,
        "asyncflow.gpus": 0,
        "depends_on": [first.uid],
        "asyncflow.parent": None,
    }
    assert started["attributes"]["asyncflow.worker"].startswith(backend)
    assert started["node_id"] == completed["node_id"] is not None
    assert completed["duration_seconds"] == pytest.approx(completed["event_time"] - started["event_time"], abs=1e-5)
    assert {event["session_id"] for event in found} == {session}
    assert len({event["event_id"] for event in found}) == len(found)
    assert found[-1]["attributes"]["asyncflow.tasks"] == {"DONE": 2}


async def test_the_file_is_its_owners_alone(no_leaks: None) -> None:
    async with told() as (_, telemetry):
        assert telemetry.path is not None
        assert mode(telemetry.path) == 0o600
        assert mode(telemetry.path.parent) == 0o700


async def test_a_failure_is_told_with_its_reason_and_so_is_what_it_took_along(no_leaks: None) -> None:
    async with told() as (flow, telemetry):

        @flow.function_task
        def fails() -> None:
            raise ValueError("no such column")

        root = fails()
        below = flow.function_task(name="below")(echo)(root)
        with pytest.raises(DependencyFailureError):
            await below
        path = telemetry.path
    found = events(path)
    end = of(found, root.uid)[-1]
    assert (end["event_type"], end["error_type"]) == ("TaskFailed", "ValueError")
    assert end["attributes"]["exception.message"] == "no such column"
    assert end["attributes"]["cicd.pipeline.task.run.result"] == "failure"
    skipped = of(found, below.uid)
    assert types(skipped) == ["TaskCreated", "TaskFailed"]
    assert skipped[-1]["attributes"]["asyncflow.root_cause"] == root.uid
    assert skipped[-1]["attributes"]["cicd.pipeline.task.run.result"] == "skip"
    assert skipped[-1]["duration_seconds"] is None


async def test_a_failed_command_is_told_with_its_stderr(no_leaks: None) -> None:
    async with told() as (flow, telemetry):

        @flow.executable_task
        def command() -> list[str]:
            return ["/bin/sh", "-c", "echo no licence >&2; exit 3"]

        future = command()
        await asyncio.wait([future])
        assert future.exception() is not None
        path = telemetry.path
    attributes = of(events(path), future.uid)[-1]["attributes"]
    assert attributes["process.exit.code"] == 3
    assert attributes["process.command_args"][:2] == ["/bin/sh", "-c"]
    assert attributes["asyncflow.stderr"] == "no licence"


async def test_each_attempt_is_told(no_leaks: None) -> None:
    tries: list[int] = []
    async with told() as (flow, telemetry):

        @flow.function_task(retries=2)
        def works_at_last() -> int:
            tries.append(1)
            if len(tries) < 3:
                raise OSError(f"try {len(tries)}")
            return len(tries)

        future = works_at_last()
        assert await future == 3
        path = telemetry.path
    mine = of(events(path), future.uid)
    attempt = ["TaskSubmitted", "TaskQueued", "TaskStarted"]
    retried = [*attempt, "asyncflow.TaskRetried"]
    assert types(mine) == [*WHOLE[:2], *retried, *retried, *attempt, "TaskCompleted"]
    assert [event["attributes"]["asyncflow.attempt"] for event in mine[2:]] == [1] * 4 + [2] * 4 + [3] * 4
    again = [event for event in mine if event["event_type"] == "asyncflow.TaskRetried"]
    assert [event["attributes"]["exception.message"] for event in again] == ["try 1", "try 2"]
    assert [event["attributes"]["asyncflow.lost"] for event in again] == [False, False]


async def test_a_lost_worker_is_told(tmp_path: Path, no_leaks: None) -> None:
    async with told(ProcessBackend(1)) as (flow, telemetry):

        @flow.function_task
        def dies_once(mark: Path) -> str:
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return "alive"

        future = dies_once(tmp_path / "mark")
        assert await soon(future) == "alive"
        path = telemetry.path
    lost = next(event for event in of(events(path), future.uid) if event["event_type"] == "asyncflow.TaskRetried")
    assert lost["attributes"]["asyncflow.lost"] is True
    assert "SIGKILL" in lost["attributes"]["exception.message"]


async def test_a_timeout_and_a_cancellation_are_told_as_such(no_leaks: None) -> None:
    async with told() as (flow, telemetry):

        @flow.function_task(timeout=0.01)
        async def slow() -> None:
            await asyncio.sleep(600)

        @flow.function_task
        async def endless() -> None:
            await asyncio.sleep(600)

        late, given_up = slow(), endless()
        await asyncio.wait([late])
        assert late.exception() is not None
        given_up.cancel("not wanted")
        await asyncio.wait([given_up])
        path = telemetry.path
    found = events(path)
    assert of(found, late.uid)[-1]["attributes"]["cicd.pipeline.task.run.result"] == "timeout"
    end = of(found, given_up.uid)[-1]
    assert end["event_type"] == "TaskCanceled"
    assert end["attributes"]["asyncflow.reason"] == "not wanted"
    assert "error_type" not in end


async def test_blocks_are_told_and_are_the_parents_of_what_they_call(no_leaks: None) -> None:
    async with told() as (flow, telemetry):
        step = flow.function_task(name="step")(echo)

        @flow.block
        async def block() -> list[int]:
            return list(await asyncio.gather(step(1), step(2)))

        future = block()
        assert await future == [1, 2]
        path = telemetry.path
    found = events(path)
    inside = [event for event in found if event["attributes"].get("asyncflow.parent") == future.uid]
    assert types(inside) == ["TaskCreated"] * 2
    assert {event["attributes"]["asyncflow.workflow_id"] for event in inside} == {future.uid}
    assert types(of(found, future.uid)) == WHOLE
    assert of(found, future.uid)[0]["backend"] == "blocks"


async def test_what_was_called_before_is_told_of_too(no_leaks: None) -> None:
    held = threading.Event()
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        running = flow.function_task(name="running")(held.wait)()
        waiting = flow.function_task(name="waiting")(echo)(running)
        await asyncio.sleep(0)
        telemetry = await flow.start_telemetry("told", resource_interval=None)
        held.set()
        await waiting
        path = telemetry.path
    found = events(path)
    assert types(of(found, waiting.uid)) == WHOLE
    assert types(of(found, running.uid))[-1] == "TaskCompleted"


async def test_what_runs_is_in_the_file_before_it_ends(no_leaks: None) -> None:
    held = threading.Event()
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with told() as (flow, telemetry):

        def look(event: Event) -> None:
            if event.event_type == "TaskStarted":
                loop.call_soon_threadsafe(seen.set)

        telemetry.subscribe(look)
        future = flow.function_task(name="long")(held.wait)()
        await soon(seen.wait())
        assert not future.done()
        held.set()
        await future


async def test_a_blocked_loop_is_told(no_leaks: None) -> None:
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with WorkflowEngine.create(block_warning=0.02) as flow:
        telemetry = await flow.start_telemetry(None, resource_interval=None)
        found: list[Event] = []

        def look(event: Event) -> None:
            if event.event_type == names.LOOP_BLOCKED:
                found.append(event)
                loop.call_soon_threadsafe(seen.set)

        telemetry.subscribe(look)
        time.sleep(0.2)
        await soon(seen.wait())
    assert found[0].attributes["asyncflow.seconds"] >= 0.02
    assert "test_telemetry.py" in found[0].attributes["code.filepath"]


async def test_hosts_tell_how_busy_they_are(no_leaks: None) -> None:
    async with told(resource_interval=0.05) as (_, telemetry):
        path = telemetry.path
        seen = asyncio.Event()
        loop = asyncio.get_running_loop()

        def look(event: Event) -> None:
            if event.event_type == names.RESOURCE_UPDATE:
                loop.call_soon_threadsafe(seen.set)

        telemetry.subscribe(look)
        await soon(seen.wait())
    update = next(event for event in events(path) if event["event_type"] == names.RESOURCE_UPDATE)
    assert 0 <= update["attributes"]["cpu_percent"] <= 100
    assert 0 < update["attributes"]["memory_used"] < update["attributes"]["memory_total"]


# --- workflows and engines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["threads", "processes"])
async def test_five_workflows_at_once_and_two_engines_never_mix(backend: str, no_leaks: None) -> None:
    expected: dict[str, str | None] = {}
    paths: list[Path | None] = []

    async def one(flow: WorkflowEngine, name: str) -> None:
        step = flow.function_task(name=f"step-{name}")(echo)
        async with flow.workflow_scope(name):
            for number in range(10):
                first = step(number)
                other = step(first, workflow_id="other" if number % 2 else None)
                expected[f"{flow.uid}/{first.uid}"] = name
                expected[f"{flow.uid}/{other.uid}"] = "other" if number % 2 else name
                await other

    async def engine() -> None:
        async with told(backend) as (flow, telemetry):
            paths.append(telemetry.path)
            await asyncio.gather(*(one(flow, f"campaign {number}") for number in range(5)))

    await asyncio.gather(engine(), engine())
    found = [event for path in paths for event in events(path) if event["task_id"] is not None]
    assert len(found) == 2 * 5 * 20 * 6
    for event in found:
        assert event["attributes"]["asyncflow.workflow_id"] == expected[f"{event['session_id']}/{event['task_id']}"]


# --- lines -----------------------------------------------------------------------------------------------------------

_TIMES = ("created", "resolved", "submitted", "queued", "started", "ended")


class _Backend:
    name = '100% "threads"'


class _State:
    backend = _Backend


class _Lane:
    state = _State


class _Binding:
    """What is asked of a component's binding."""

    prefix = "task"
    lane = _Lane

    def __init__(self, name: str) -> None:
        self.definition = Definition(echo, Kind.FUNCTION, name, is_async=False)


def _component(**values: Any) -> Component:
    """As the recorder leaves it, on no engine."""
    component = object.__new__(Component)
    untold = dict.fromkeys(_TIMES) | {"item": None, "error": None, "lost": False, "told": None, "shown": Shown.NOTHING}
    for name, value in {**untold, **values}.items():
        setattr(component, name, value)
    return component


def _compared(event: dict[str, Any]) -> tuple[Any, ...]:
    return event["event_type"], event["event_time"], event["attributes"], event.get("duration_seconds")


@settings(deadline=None)
@given(
    name=st.text(max_size=20),
    workflow=st.none() | st.text(max_size=20),
    worker=st.text(max_size=20),
    depends_on=st.lists(st.sampled_from(["task.000007", "block.000001"]), max_size=3),
    parent=st.none() | st.just("block.000001"),
    stops=st.lists(st.integers(1, 5), max_size=4),
    traced=st.booleans(),
    attempt=st.integers(1, 3),
)
def test_lines_made_by_templates_say_what_the_moments_say(
    name: str,
    workflow: str | None,
    worker: str,
    depends_on: list[str],
    parent: str | None,
    stops: list[int],
    traced: bool,
    attempt: int,
) -> None:
    lines = Lines("session")
    about = {
        "binding": _Binding(name),
        "workflow_id": workflow,
        "parent": parent,
        "depends_on": tuple(depends_on),
        "attempt": attempt,
        "place": Place(worker, "node-1", 77),
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01" if traced else None,
        "phase": Phase.DONE,
    }
    for seq in (1, 2):  # the first makes the templates, the second fills them
        component = _component(seq=seq, **about)
        said: list[dict[str, Any]] = []
        for stop in [*sorted(stops), 6]:
            for number, field in enumerate(_TIMES[:stop]):
                setattr(component, field, 1_700_000_000.123 + seq * number)
            ended, going = ([component], []) if stop == 6 else ([], [component])
            said += map(json.loads, b"\n".join(lines.of([], ended, going, 1_700_000_009.0)).splitlines())
        component.shown = Shown.NOTHING
        expected = [
            {
                "event_type": moment.kind,
                "event_time": moment.time,
                "attributes": json.loads(encoded({"asyncflow.workflow_id": workflow, **moment.attributes})),
                **moment.ends,
            }
            for moment in moments(component, True, component.place)
        ]
        assert list(map(_compared, said)) == list(map(_compared, expected))
        assert {event["task_id"] for event in said} == {f"task.{seq:06d}"}
        assert {event["trace_id"] for event in said} == {"a" * 32 if traced else None}


@pytest.mark.parametrize("value", [{"a\ud800b": "\ud800"}, [1 << 70, float("nan")], {1: {2, 3}}, object()])
def test_whatever_is_told_becomes_json(value: Any) -> None:
    json.loads(encoded(value))


# --- subscribers and own events ---------------------------------------------------------------------------------------


async def test_subscribers_see_what_the_file_says(no_leaks: None) -> None:
    seen: list[Event] = []
    async with told() as (flow, telemetry):
        end = telemetry.subscribe(seen.append)
        await flow.function_task(name="step")(echo)(1)
        path = telemetry.path
    read = events(path)
    assert [event.event_id for event in seen] == [event["event_id"] for event in read]
    assert seen[1].workflow_id is None
    end()


async def test_who_unsubscribes_is_told_no_more(no_leaks: None) -> None:
    seen: list[Event] = []
    async with told(None) as (flow, telemetry):
        telemetry.subscribe(seen.append)()
        await flow.function_task(name="step")(echo)(1)
    assert seen == []


async def test_a_subscriber_that_raises_costs_one_warning(no_leaks: None, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []

    def raises(event: Event) -> None:
        raise RuntimeError("no such table")

    async with told() as (flow, telemetry):
        telemetry.subscribe(raises)
        telemetry.subscribe(seen.append)
        assert await flow.function_task(name="step")(echo)(1) == 1
        path = telemetry.path
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage().partition(";")[0] for record in warnings] == [
        f"a telemetry subscriber, {raises.__qualname__}, raised RuntimeError: no such table"
    ]
    assert len(seen) == len(events(path))


async def test_a_subscriber_that_is_slow_costs_nobody_anything(
    no_leaks: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    async with told() as (flow, telemetry):
        telemetry.subscribe(lambda _: held.wait())
        assert await soon(flow.function_task(name="step")(echo)(1)) == 1
        held.set()
        path = telemetry.path
    assert types(events(path))[-1] == "SessionEnded"


def test_what_is_too_slow_misses_what_is_too_much(caplog: pytest.LogCaptureFixture) -> None:
    held, begun = threading.Event(), threading.Event()

    def take(batch: Batch) -> None:
        begun.set()
        held.wait()

    consumer = Consumer("the telemetry test", take, most=10)
    for _ in range(3):
        consumer.offer(Batch(lines=[b"{}"] * 6))
        begun.wait()
    assert consumer.dropped == 12
    assert "the telemetry test is too slow" in caplog.text
    held.set()
    consumer.close()
    consumer.finish(60)


async def test_events_of_the_users_own(no_leaks: None) -> None:
    checkpoint = define_event("ising.Checkpoint", step=int, energy=float)
    async with told() as (flow, telemetry):

        @flow.function_task
        def simulate() -> None:
            telemetry.emit(checkpoint(step=7, energy=-1.5))

        async with flow.workflow_scope("experiment"):
            await simulate()
            telemetry.emit(checkpoint(step=8, energy=1))
        path = telemetry.path
    inside, outside = (event for event in events(path) if event["event_type"] == "ising.Checkpoint")
    assert inside["attributes"] == {"asyncflow.workflow_id": "experiment", "step": 7, "energy": -1.5}
    assert inside["task_id"] == "task.000001"
    assert outside["attributes"] == {"asyncflow.workflow_id": "experiment", "step": 8, "energy": 1}
    assert outside["task_id"] is None


@pytest.mark.parametrize(
    "name, fields, said",
    [
        ("checkpoint", {}, "events cannot be defined as 'checkpoint': give a name of words with dots between them"),
        ("asyncflow.Mine", {}, "give a name that does not begin with 'asyncflow.'"),
        ("a.b", {"when": complex}, "give when of type str, int, float, bool, list or dict, not <class 'complex'>"),
        (7, {}, "events cannot be defined as 7"),
    ],
)
def test_a_wrong_definition_says_what_is_right(name: Any, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(EventDefinitionError) as caught:
        define_event(name, **fields)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"step": 1}, "event 'a.B': it has the fields step, energy"),
        ({"step": 1, "energy": 1.0, "more": 2}, "it has the fields step, energy"),
        ({"step": "1", "energy": 1.0}, "step is '1', not of type int"),
        ({"step": True, "energy": 1.0}, "step is True, not of type int"),
    ],
)
def test_a_wrong_event_says_what_is_right(values: dict[str, Any], said: str) -> None:
    with pytest.raises(EventFieldError) as caught:
        define_event("a.B", step=int, energy=float)(**values)
    assert said in str(caught.value)


async def test_the_summary_counts(no_leaks: None) -> None:
    async with told() as (flow, telemetry):
        step = flow.function_task(name="step")(echo)

        @flow.function_task
        def fails() -> None:
            raise KeyError("x")

        async with flow.workflow_scope("w"):
            await asyncio.gather(*(step(number) for number in range(10)))
        future = fails()
        await asyncio.wait([future])
        assert future.exception() is not None
        summary = telemetry.summary()
    assert summary.tasks == {"DONE": 10, "FAILED": 1}
    assert summary.workflows == {"w": 10, None: 1}
    assert summary.names["step"].ran == 10
    assert summary.errors == {"KeyError": 1}
    assert "step: 10 done, 0 failed, 0 cancelled" in str(summary)


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def test_wrong_options_are_named(no_leaks: None) -> None:
    async with WorkflowEngine.create() as flow:
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"path": 7}, "path=7"),
            ({"resource_interval": 0}, "resource_interval=0"),
            ({"prometheus": "yes"}, "prometheus='yes'"),
            ({"prometheus": 70000}, "prometheus=70000"),
        ]
        for options, said in wrong:
            with pytest.raises(InvalidOptionError, match=said):
                await flow.start_telemetry(**options)
        telemetry = await flow.start_telemetry(None, resource_interval=None)
        with pytest.raises(TelemetryRunningError, match="has telemetry already"):
            await flow.start_telemetry(None)
        with pytest.raises(InvalidOptionError, match="a plain function of one event"):
            telemetry.subscribe(_not_plain)
        with pytest.raises(InvalidOptionError, match="define_event"):
            telemetry.emit("checkpoint")  # type: ignore[arg-type]  # as a user might
        await telemetry.stop()
        await telemetry.stop()
        await (await flow.start_telemetry(None, resource_interval=None)).stop()
    with pytest.raises(EngineClosedError):
        await flow.start_telemetry(None)


async def _not_plain(event: Event) -> None:
    """No subscriber: it is a coroutine."""


async def test_a_folder_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, no_leaks: None, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    async with told(path=tmp_path / "file" / "telemetry") as (flow, telemetry):
        assert await flow.function_task(name="step")(echo)(1) == 1
        assert telemetry.path is None
    (warning,) = (record.getMessage() for record in caplog.records if "cannot write" in record.getMessage())
    assert warning.startswith(f"telemetry cannot write to {tmp_path / 'file' / 'telemetry'}/flow-")
    assert warning.endswith(".jsonl (Not a directory): there will be no file")


#: Runs tasks while files may have no more than some bytes, then lets them have more.
FULL = """
import asyncio, logging, resource, signal, sys
from asyncflow import WorkflowEngine
from asyncflow.testing.bodies import echo

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)

async def main():
    async with WorkflowEngine.create() as flow:
        step = flow.function_task(name="step")(echo)
        telemetry = await flow.start_telemetry("told", resource_interval=None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5001, most))
        await asyncio.gather(*(step(number) for number in range(100)))
        telemetry.summary()
        await asyncio.sleep(0.5)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        await asyncio.gather(*(step(number) for number in range(100)))
        print(telemetry.path)

asyncio.run(main())
"""


def test_a_full_disk_costs_lines_and_one_warning() -> None:
    ran = run_script(FULL)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("telemetry cannot write to") == 1
    found = events(Path(ran.stdout.strip()))
    completed = [event["task_id"] for event in found if event["event_type"] == "TaskCompleted"]
    assert set(completed) >= {f"task.{number:06d}" for number in range(101, 201)}, "there was room again"
    assert len(completed) < 200
    assert found[-1]["attributes"]["asyncflow.dropped"] > 0


def test_a_line_that_was_cut_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "told.jsonl")
    write, room = os.write, [7, 0, 3, 2, 0, 100]

    def little(file: int, data: Any) -> int:
        size = room.pop(0)
        if not size:
            raise OSError(28, "No space left on device")
        return write(file, bytes(data)[:size])

    monkeypatch.setattr(os, "write", little)
    journal.write([b"aaaa", b"bbbb", b"cccc"])  # "aaaa" and half of "bbbb", and no more
    journal.write([b"dddd"])  # the other half, and half of "dddd"
    journal.write([b"eeee"])
    assert journal.path.read_bytes() == b"aaaa\nbbbb\ndddd\neeee\n"
    assert journal.dropped == 1
    journal.close()


def test_a_file_of_a_killed_session_can_be_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "told.jsonl"
    file.write_bytes(b'{"whole": 1}\n{"torn')
    journal = Journal(file)
    journal.write([b"{}"])
    journal.close()
    assert file.read_bytes() == b'{"whole": 1}\n{"torn\n{}\n'


#: Says, in a file, what had ended when.
KILLED = """
import asyncio, os, sys, time
from asyncflow import WorkflowEngine
from asyncflow.testing.bodies import echo

said = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)

async def main():
    async with WorkflowEngine.create() as flow:
        step = flow.function_task(name="step")(echo)
        await flow.start_telemetry("told.jsonl", resource_interval=None)
        print("begun", flush=True)
        while True:
            futures = [step(number) for number in range(50)]
            await asyncio.gather(*futures)
            os.write(said, f"{time.monotonic()} {futures[-1].uid}\\n".encode())
            await asyncio.sleep(0.001)

asyncio.run(main())
"""


def _kill_an_engine(after: float) -> None:
    """Kill an engine some seconds after it began, and look at its file."""
    said, told_lines = Path("said"), Path("told.jsonl")
    said.write_text("")
    told_lines.unlink(missing_ok=True)
    process = start_script(KILLED, str(said.absolute()))
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"begun\n"
        time.sleep(after)  # the random moment
    finally:
        killed = time.monotonic()
        process.kill()
        process.communicate()
    whole = told_lines.read_bytes().split(b"\n")[:-1]
    completed = {event["task_id"] for event in map(json.loads, whole) if event["event_type"] == "TaskCompleted"}
    for line in said.read_text().splitlines():
        moment, uid = line.split()
        if float(moment) < killed - 0.5:
            assert uid in completed, f"{uid} ended {killed - float(moment):.2f} s before the kill"


@pytest.mark.parametrize("number", range(20))
def test_a_kill_loses_at_most_half_a_second(number: int) -> None:
    _kill_an_engine(random.Random(number).random())


@pytest.mark.soak
def test_two_hundred_kills_lose_at_most_half_a_second() -> None:
    for number in range(200):
        _kill_an_engine(2.0 * random.Random(number).random())


# --- where it is asked for -------------------------------------------------------------------------------------------


async def test_an_engine_can_begin_with_telemetry(no_leaks: None) -> None:
    async with WorkflowEngine.create(telemetry="told.jsonl") as flow:
        await flow.function_task(name="step")(echo)(1)
        telemetry = flow.telemetry
        assert telemetry is not None
        path = telemetry.path
    assert path == Path("told.jsonl")
    assert types(of(events(path), "task.000001")) == WHOLE
    assert flow.telemetry is None
    with pytest.raises(InvalidOptionError, match="telemetry=7 is not possible: the path"):
        await WorkflowEngine.create(telemetry=7)  # type: ignore[arg-type]  # as a user might


SCRIPT = """
import asyncio
from asyncflow import WorkflowEngine

async def main():
    async with WorkflowEngine.create() as flow:
        print(await flow.function_task(abs)(-7))

asyncio.run(main())
"""


def test_the_command_line_asks_for_it_without_a_change_of_the_script() -> None:
    Path("script.py").write_text(SCRIPT)
    run = (sys.executable, "-m", "asyncflow", "run", "--telemetry", "told", "script.py")
    ran = subprocess.run(run, capture_output=True, text=True, env=environment(), timeout=100)
    assert ran.stdout == "7\n", ran.stderr
    (file,) = Path("told").iterdir()
    assert "TaskCompleted" in types(events(file))


async def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("asyncflow.telemetry")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "orjson", None)
    async with WorkflowEngine.create() as flow:
        with pytest.raises(TelemetryNotInstalledError) as caught:
            await flow.start_telemetry()
    assert str(caught.value) == (
        "telemetry needs 'orjson', which is not installed: pip install 'asyncflow-hpc[telemetry]'"
    )


# --- what was wrong once ----------------------------------------------------------------------------------------------


async def test_every_failure_says_that_it_began(no_leaks: None) -> None:
    async with told(ProcessBackend(1)) as (flow, telemetry):

        @flow.function_task
        def fails(number: int) -> None:
            raise ValueError(number)

        futures = [fails(number) for number in range(100)]
        await asyncio.wait(futures)
        assert all(future.exception() is not None for future in futures)
        assert telemetry.summary().names["fails"].ran == 100
        path = telemetry.path
    found = events(path)
    assert [types(of(found, future.uid)) for future in futures] == [[*WHOLE[:5], "TaskFailed"]] * 100


async def test_a_command_that_went_well_is_told(no_leaks: None) -> None:
    async with told() as (flow, telemetry):

        @flow.executable_task
        def command() -> list[str]:
            return ["echo", "100 %"]

        future = command()
        assert await future == "100 %\n"
        path = telemetry.path
    attributes = of(events(path), future.uid)[-1]["attributes"]
    assert attributes["process.command_args"] == ["echo", "100 %"]
    assert attributes["process.exit.code"] == 0


class _Large:
    """Something that must not be kept."""


async def test_nothing_of_a_failed_task_is_kept(no_leaks: None) -> None:
    kept: list[weakref.ref[_Large]] = []

    async def until_gone() -> None:
        while kept[0]() is not None:  # it is not told when the last reference goes
            gc.collect()
            await asyncio.sleep(0.01)

    async with told() as (flow, telemetry):

        @flow.function_task
        def fails() -> None:
            large = _Large()
            kept.append(weakref.ref(large))
            raise ValueError("no such column")

        future: Any = fails()
        await asyncio.wait([future])
        future.exception()  # no assert: that would keep what it has looked at
        del future
        telemetry.summary()
        await soon(until_gone())


async def test_a_task_taken_back_at_the_walltime_is_no_failure(no_leaks: None) -> None:
    held, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        held.wait()

    flow = await WorkflowEngine.create(ThreadBackend(1), walltime=600, walltime_margin=1)
    telemetry = await flow.start_telemetry("told", resource_interval=None)
    path = telemetry.path
    step = flow.function_task(name="step")(hold)
    futures = [step(), step()]
    await aside(begun.wait)
    flow.end_within(60.0)
    await asyncio.sleep(0)
    held.set()
    await soon(asyncio.wait(futures))
    assert isinstance(futures[1].exception(), WalltimeReached)
    await flow.shutdown()
    (again,) = (event for event in events(path) if event["event_type"] == "asyncflow.TaskRetried")
    assert again["task_id"] == futures[1].uid
    assert again["error_type"] == "WalltimeReached"
    assert again["attributes"]["exception.message"] == "taken back by the engine, whose time ends"


def test_a_pipe_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "told.jsonl")
    with pytest.raises(OSError, match="No such device or address"):
        Journal(tmp_path / "told.jsonl")


async def test_what_the_command_line_named_gives_way_to_the_script(
    no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._default, "telemetry", "named.jsonl")
    async with WorkflowEngine.create() as flow:
        telemetry = await flow.start_telemetry("own.jsonl", resource_interval=None)
        assert telemetry.path == Path("own.jsonl")
    assert types(events(Path("named.jsonl")))[-1] == "SessionEnded"


async def test_a_value_that_is_no_json_is_named(no_leaks: None) -> None:
    circle: list[Any] = []
    circle.append(circle)
    async with told(path=None) as (_, telemetry):
        with pytest.raises(EventFieldError, match="it cannot be written as JSON"):
            telemetry.emit(define_event("a.B", values=list)(values=circle))


async def test_a_subscriber_that_exits_costs_one_warning(no_leaks: None, caplog: pytest.LogCaptureFixture) -> None:
    def leaves(event: Event) -> None:
        raise SystemExit(3)

    async with told(path=None) as (flow, telemetry):
        telemetry.subscribe(leaves)
        assert await flow.function_task(name="step")(echo)(1) == 1
    assert len([record for record in caplog.records if "raised SystemExit" in record.getMessage()]) == 1
