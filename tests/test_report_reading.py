"""Telemetry files read back: whole ones, torn ones, and what is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import WorkflowEngine
from asyncflow.errors import DependencyFailureError, NotTelemetryError, UnknownSessionError
from asyncflow.graph import State
from asyncflow.report.analysis import analyse as analyse_run
from asyncflow.report.reading import read_run
from asyncflow.report.run import BLOCKS, BackendShape, GpuSample, LoopBlock, Run, Task
from asyncflow.telemetry import names
from tests.support.runs import EPOCH, HOME, Lines, campaign

SCHEMA = Path(__file__).parents[1] / "telemetry" / "events.schema.json"
RUN = Path("run.jsonl")


def read(lines: Lines, *more: Lines) -> Run:
    for each in (lines, *more):
        each.write(RUN)
    return read_run(RUN)


def small() -> Lines:
    """a, then b at its second attempt, then c, which failed; d was never run because of that."""
    lines = Lines()
    lines.start([{"name": "processes", "workers": 2, "cores": 2}])
    lines.run("task.000001", 1.0, 3.0, "a", workflow="wf", worker="w1")
    lines.create("task.000002", 1.5, "b", ["task.000001"], workflow="wf", parent="block.000009", cores=2)
    lines.resolve("task.000002", 3.0)
    lines.submit("task.000002", 3.125)
    lines.begin("task.000002", 3.5, "w1")
    lines.retry("task.000002", 4.0, "its worker died", lost=True)
    lines.submit("task.000002", 5.0, 2)
    lines.begin("task.000002", 5.25, "w2", attempt=2)
    lines.complete("task.000002", 6.0, "w2", attempt=2, lasted=0.75)
    lines.run("task.000003", 6.0, 6.5, "skipped")
    lines.create("task.000004", 6.5, "c", ["task.000002", "task.000003"])
    lines.resolve("task.000004", 6.5)
    lines.submit("task.000004", 6.5)
    lines.begin("task.000004", 6.5)
    more = {names.EXIT_CODE: 3, names.COMMAND_ARGS: ["convert", "a b"], names.STDERR: "no such file"}
    lines.fail("task.000004", 7.0, "it broke", "ExecutableError", more=more)
    lines.create("task.000005", 6.5, "d", ["task.000004"])
    about = {names.ROOT_CAUSE: "task.000004"}
    lines.fail("task.000005", 7.0, "not run", attempt=0, worker=None, host=None, result=names.SKIP, more=about)
    lines.end(8.0, DONE=3, FAILED=2)
    return lines


def test_what_is_made_up_for_tests_is_what_telemetry_writes() -> None:
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    for event in [*small().dicts(), *campaign(120, wrong=0.1).dicts()]:
        validator.validate(event)


def test_a_run_is_read_with_its_tasks_attempts_and_failures() -> None:
    run = read(small())
    assert run.session.uid == "flow-1"
    assert run.session.began == EPOCH
    assert run.session.host == HOME
    assert run.session.backends == (BackendShape("processes", 2, 2, 0, 64_000),)
    assert run.session.command == ("python", "campaign.py")
    assert run.session.ended == 8.0
    a, b, _, c, d = run.tasks.values()
    assert (a.name, a.workflow, a.created, a.resolved, a.started, a.ended, a.state) == (
        *("a", "wf", 1.0, 1.0, 1.0, 3.0),
        State.DONE,
    )
    assert b.depends_on == ("task.000001",)
    assert (b.parent, b.cores) == ("block.000009", 2)
    first, second = b.attempts
    assert (first.number, first.submitted, first.started, first.ended) == (1, 3.125, 3.5, 4.0)
    assert first.failure is not None
    assert first.failure.lost
    assert first.failure.message == "its worker died"
    assert (second.number, second.worker, second.failure) == (2, "w2", None)
    assert run.running(b) == 0.5 + 0.75
    assert c.state is State.FAILED
    assert c.failure is not None
    assert (c.failure.exit_code, c.failure.command, c.failure.stderr) == (3, ("convert", "a b"), "no such file")
    assert (d.state, d.attempts, d.started, d.place) == (State.FAILED, [], None, None)
    assert d.failure is not None
    assert d.failure.root_cause == "task.000004"
    assert (run.first, run.end, run.makespan) == (1.0, 7.0, 6.0)
    assert run.states == {State.DONE: 3, State.FAILED: 2}


def test_a_campaign_is_read_whole() -> None:
    lines = campaign(500)
    run = read(lines)
    assert run.unreadable == 0
    assert len(run.tasks) == sum(event["event_type"] == names.TASK_CREATED for event in lines.dicts())
    assert all(task.state in (State.DONE, State.FAILED) for task in run.tasks.values())
    assert set(run.samples) == {"n01", "n02", HOME}
    assert run.own_events == {"campaign.Checkpoint": 1}
    [held] = run.loop_blocks
    assert held.seconds == 2.4


def test_figures_of_hosts_and_of_the_loop() -> None:
    lines = Lines()
    lines.start()
    figures = {"cpu_percent": 42.0, "memory_used": 1, "memory_total": 4, "disk_read": 5, "disk_written": 6}
    gpus = [{"id": "0", "utilisation": 70.0, "memory_used": 2, "memory_total": 8}, "no object"]
    figures |= {"net_received": 7, "net_sent": 8}
    lines.add(names.RESOURCE_UPDATE, 2.0, {**figures, "gpus": gpus}, host="n01")
    lines.add(names.LOOP_BLOCKED, 3.0, {names.WHO: "a coroutine", names.WHERE: "x.py:1", names.SECONDS: 1.5})
    run = read(lines)
    [sample] = run.samples["n01"]
    assert (sample.time, sample.cpu_percent, sample.memory_used, sample.net_sent) == (2.0, 42.0, 1, 8)
    assert sample.gpus == (GpuSample("0", 70.0, 2, 8),)
    assert run.loop_blocks == [LoopBlock(3.0, 1.5, "a coroutine", "x.py:1")]


# --- files that are not whole -----------------------------------------------------------------------------------------


def test_a_killed_run_ends_where_its_file_does() -> None:
    lines = Lines()
    lines.start()
    lines.run("task.000001", 0.0, 1.0)
    lines.create("task.000002", 0.0)
    lines.resolve("task.000002", 1.0)
    lines.submit("task.000002", 1.0)
    lines.begin("task.000002", 2.0)
    lines.create("task.000003", 0.0, after=["task.000002"])
    lines.add(names.RESOURCE_UPDATE, 9.0, host=HOME)
    RUN.write_text(lines.text() + '{"event_id":"x","event_type":"TaskComp')
    run = read_run(RUN)
    assert run.session.ended is None
    assert run.unreadable == 1
    assert [task.state for task in run.tasks.values()] == [State.DONE, State.RUNNING, State.PENDING]
    assert run.end == 9.0
    assert run.running(run.tasks["task.000002"]) == 7.0
    assert run.running(run.tasks["task.000003"]) == 0.0


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9])
def test_a_file_cut_anywhere_is_read_up_to_there(cut: float) -> None:
    text = small().text().encode()
    RUN.write_bytes(text[: int(len(text) * cut)])
    run = read_run(RUN)
    assert run.session.uid == "flow-1"
    assert run.makespan >= 0


def test_lines_that_are_missing_cost_no_more_than_what_they_said() -> None:
    lines = small()
    created = next(event for event in lines.dicts() if event["task_id"] == "task.000002")
    RUN.write_text("".join(f"{json.dumps(event)}\n" for event in lines.dicts() if event is not created))
    run = read_run(RUN)
    task = run.tasks["task.000002"]
    assert (task.name, task.workflow, task.state) == ("task.000002", "wf", State.DONE)
    assert len(task.attempts) == 2


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "[]",
        "{}",
        "\x00\x01",
        '{"event_type": "TaskCreated"}',
        '{"event_type": 1, "session_id": "flow-1", "event_time": 1, "attributes": {}}',
        '{"event_type": "TaskCreated", "session_id": "flow-1", "event_time": "late", "attributes": {}}',
        '{"event_type": "TaskCreated", "session_id": "flow-1", "event_time": 1e300, "attributes": {}}',
        '{"event_type": "TaskCreated", "session_id": "flow-1", "event_time": -1, "attributes": {}}',
        '{"event_type": "TaskCreated", "session_id": "flow-1", "event_time": 1, "attributes": []}',
        '{"event_type": "TaskCreated", "session_id": "flow-1", "event_time": 1, "attributes": {}, "x": "\\ud800"}',
        "[" * 10_000,
    ],
)
def test_lines_that_are_no_events_are_counted_and_left_out(line: str) -> None:
    text = small().text()
    RUN.write_text(f"{text}{line}\n")
    run = read_run(RUN)
    assert run.unreadable == (1 if line else 0)
    assert len(run.tasks) == 5


#: What any field of a line may hold instead of what it should.
odd = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just([{}, 1])


@given(data=st.data())
def test_no_value_of_any_field_breaks_the_reading(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    events = small().dicts()
    for _ in range(5):
        event = data.draw(st.sampled_from(events))
        part = data.draw(st.sampled_from([event, event["attributes"]]))
        if isinstance(part, dict) and part:
            part[data.draw(st.sampled_from(sorted(part)))] = data.draw(odd)
    file = tmp_path_factory.mktemp("odd") / "run.jsonl"
    file.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    run = read_run(file)
    assert run.makespan >= 0
    for _, _, started, ended in run.attempts():
        assert 0 <= started <= ended


# --- several sessions -------------------------------------------------------------------------------------------------


def session(uid: str, began: float, tasks: int) -> Lines:
    lines = Lines(uid, EPOCH + began)
    lines.start()
    for number in range(tasks):
        lines.run(f"task.{number:06d}", 1.0, 2.0)
    lines.end(3.0)
    return lines


def test_the_session_that_began_last_is_shown() -> None:
    run = read(session("first", 0, 1), session("second", 100, 2))
    assert (run.session.uid, len(run.tasks), run.sessions) == ("second", 2, ("first", "second"))
    assert run.session.began == EPOCH + 100


def test_another_session_is_shown_by_its_name() -> None:
    read(session("first", 0, 1), session("second", 100, 2))
    run = read_run(RUN, "first")
    assert (run.session.uid, len(run.tasks), run.sessions) == ("first", 1, ("first", "second"))


def test_of_two_sessions_with_one_name_the_later_is_shown() -> None:
    run = read(session("study", 0, 3), session("study", 100, 1))
    assert (len(run.tasks), run.session.began, run.sessions) == (1, EPOCH + 100, ("study",))
    assert len(read_run(RUN, "study").tasks) == 1


def test_sessions_that_write_at_the_same_time_are_kept_apart() -> None:
    first, second = session("first", 0, 3).dicts(), session("second", 0.5, 2).dicts()
    mixed = [event for pair in zip(first, second, strict=False) for event in pair] + first[len(second) :]
    RUN.write_text("".join(f"{json.dumps(event)}\n" for event in mixed))
    assert len(read_run(RUN).tasks) == 2
    assert len(read_run(RUN, "first").tasks) == 3


def test_a_session_that_is_not_there_is_named_with_those_that_are() -> None:
    read(session("first", 0, 1), session("second", 100, 2))
    with pytest.raises(UnknownSessionError, match="has no session 'frist'; there are 'first', 'second'"):
        read_run(RUN, "frist")


# --- what is no telemetry ---------------------------------------------------------------------------------------------


def _written(content: bytes) -> Callable[[], Path]:
    def write() -> Path:
        RUN.write_bytes(content)
        return RUN

    return write


def _empty_folder() -> Path:
    Path("telemetry").mkdir()
    Path("telemetry/notes.txt").touch()
    return Path("telemetry")


def _unreadable() -> Path:
    # For root every file is readable; a link to itself is not.
    RUN.symlink_to(RUN)
    return RUN


@pytest.mark.parametrize(
    "make,said",
    [
        (_written(b""), "it is empty"),
        (_written(b"\n\n"), "it is empty"),
        (_written(b"seed,energy\n1,2\n"), "its lines are no events of telemetry"),
        (_written(b'{"name": "ensemble", "schemaVersion": "1.5"}'), "its lines are no events of telemetry"),
        (_written(bytes(range(256)) * 100), "its lines are no events of telemetry"),
        (_empty_folder, "there is no *.jsonl in this folder"),
        (_unreadable, "there is no such file or folder"),
        (lambda: Path("nowhere.jsonl"), "there is no such file or folder"),
    ],
)
def test_what_is_no_telemetry_is_refused(make: Callable[[], Path], said: str) -> None:
    path = make()
    with pytest.raises(NotTelemetryError) as caught:
        read_run(path)
    assert str(caught.value) == f"{path} cannot be read as a run's telemetry: {said}"


def test_of_a_folder_the_newest_file_is_read(tmp_path: Path) -> None:
    for number, name in enumerate(["b.jsonl", "c.jsonl", "a.jsonl"]):
        session(name, 0, 1).write(Path(name))
        os.utime(name, (number, number))
    Path("d.txt").touch()
    assert read_run(tmp_path).session.uid == "a.jsonl"


# --- clocks -----------------------------------------------------------------------------------------------------------


def skewed(**skew: float) -> Lines:
    """Three tasks in a chain on two hosts and the engine's, none with a pause between them."""
    lines = Lines(skew=skew)
    lines.start()
    for number, host in enumerate(["n01", "n02", HOME]):
        uid, before = f"task.{number:06d}", [f"task.{number - 1:06d}"] if number else []
        lines.create(uid, 0.0, after=before)
        lines.resolve(uid, 10.0 * number)
        lines.submit(uid, 10.0 * number)
        lines.begin(uid, 10.0 * number, host=host)
        lines.complete(uid, 10.0 * number + 10.0, host=host, lasted=10.0)
    lines.end(30.0)
    return lines


def test_clocks_that_differ_are_corrected() -> None:
    run = read(skewed(n01=4.0, n02=-2.5))
    assert run.skews == pytest.approx({"n01": 4.0, "n02": -2.5}, abs=0.001)
    times = [(task.started, task.ended) for task in run.tasks.values()]
    assert times == [pytest.approx(pair, abs=0.001) for pair in [(0, 10), (10, 20), (20, 30)]]


def test_clocks_that_agree_are_left_alone() -> None:
    run = read(skewed())
    assert run.skews == {}


def test_the_engines_own_clock_is_the_measure() -> None:
    lines = skewed()
    # Something odd on its own host: it cannot be ahead of itself.
    lines.add(names.RESOURCE_UPDATE, 12.0, host=HOME, written=11.0)
    assert read(lines).skews == {}


@given(
    skew=st.dictionaries(st.sampled_from(["n01", "n02"]), st.floats(-1e6, 1e6)),
    noise=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
)
def test_no_duration_is_negative_whatever_the_clocks(
    skew: dict[str, float], noise: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = skewed(**skew)
    ends: list[dict[str, Any]] = [event for event in lines.dicts() if event["event_type"] == names.TASK_COMPLETED]
    for event, error in zip(ends, noise, strict=True):
        event["event_time"] += error  # a clock that was set in between
        event["duration_seconds"] = None
    run = read_run(lines.write(tmp_path_factory.mktemp("clocks") / "run.jsonl"))
    for task in run.tasks.values():
        times = [task.created, task.resolved, task.attempts[0].submitted, task.started, task.ended]
        known = [time for time in times if time is not None]
        assert known == sorted(known)
        assert len(known) == len(times)


# --- what an engine writes --------------------------------------------------------------------------------------------


async def test_what_an_engine_wrote_is_read_as_it_was() -> None:
    tries = iter([OSError("not yet"), None])
    async with WorkflowEngine.create("threads") as flow:
        await flow.start_telemetry(RUN)

        @flow.function_task
        def load(seed: int) -> int:
            return seed

        @flow.function_task(retries=1)
        def flaky(*seeds: int) -> int:
            error = next(tries)
            if error is not None:
                raise error
            return sum(seeds)

        @flow.executable_task
        async def analyse(value: int) -> list[str]:
            return ["sh", "-c", f"echo bad {value} >&2; exit 3"]

        @flow.block
        async def study() -> int:
            return await flaky(*map(load, range(3)))

        async with flow.workflow_scope("copper"):
            done = study()
            failed = load(analyse(done))
        with pytest.raises(DependencyFailureError):
            await failed
    run = read_run(RUN)
    assert run.session.uid == flow.uid
    assert run.session.ended is not None
    assert run.unreadable == 0
    tasks = {task.uid: task for task in run.tasks.values()}
    assert {task.workflow for task in tasks.values()} == {"copper"}
    block, analysed, skipped = (tasks[uid] for uid in (done.uid, analyses_of(tasks), failed.uid))
    assert (block.kind, block.backend, block.state, block.cores) == ("block", BLOCKS, State.DONE, 0)
    assert analysed.depends_on == (block.uid,)
    assert analysed.failure is not None
    assert (analysed.failure.exit_code, analysed.failure.stderr) == (3, "bad 3")
    assert skipped.failure is not None
    assert (skipped.state, skipped.failure.root_cause, skipped.attempts) == (State.FAILED, analysed.uid, [])
    [tried] = [task for task in tasks.values() if task.name == "flaky"]
    assert [attempt.failure is None for attempt in tried.attempts] == [False, True]
    assert (tried.parent, len(tried.depends_on), tried.state) == (block.uid, 3, State.DONE)
    for task in tasks.values():
        assert 0 <= task.created <= (task.ended or 0.0) <= run.session.ended
    assert len(analyse_run(run).path.tasks) == 3


def analyses_of(tasks: Mapping[str, Task]) -> str:
    [uid] = [uid for uid, task in tasks.items() if task.name == "analyse"]
    return uid
