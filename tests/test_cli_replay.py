"""`asyncflow replay`: recorded workflows, run again."""

from __future__ import annotations

import asyncio
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asyncflow import WorkflowEngine
from asyncflow.backends import Backend, NoopBackend, ProcessBackend, ThreadBackend
from asyncflow.cli import work
from asyncflow.cli.commands import invoke
from asyncflow.cli.display import Lines, LiveTable, display, progress_line
from asyncflow.cli.replay import Replay, run_replay
from asyncflow.cli.summary import Measured, summary
from asyncflow.cli.tally import Tallies, Tally
from asyncflow.testing.leaks import descendants
from asyncflow.wfformat import RecordedWorkflow, parse_workflow
from tests.support.command_line import all_gone, command_line, ctrl_c, start_command_line
from tests.support.faked import soon
from tests.support.recordings import INSTANCES, instance, needs_recordings

#: a before b1 and b2, both before c.
DIAMOND = instance({"a": [], "b_1": ["a"], "b_2": ["a"], "c": ["b_1", "b_2"]})


def recorded(content: dict[str, Any]) -> RecordedWorkflow:
    return parse_workflow(json.dumps(content), "recording.json")


def written(content: Any) -> str:
    Path("recording.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return "recording.json"


def text_of(measured: Measured) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(summary(measured))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Silent:
    """A display that keeps what it was shown."""

    interval = 0.01

    def __init__(self, until: str = "") -> None:
        self.seen: list[str] = []
        self._until = until
        #: Set when it was shown something with `until` in it.
        self.came = asyncio.Event()

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, tallies: Tallies) -> None:
        self.seen.append(progress_line(tallies))
        if self._until in self.seen[-1]:
            self.came.set()


async def replayed(
    content: dict[str, Any], backend: Backend, speed: float = 100.0, work: str = "sleep"
) -> tuple[Measured, Silent]:
    shown = Silent()
    return await run_replay(Replay(recorded(content), backend, speed, work), Tallies(), shown), shown


@pytest.mark.parametrize("backend", ["threads", "processes"])
@pytest.mark.parametrize("work", ["sleep", "burn"])
def test_a_workflow_is_replayed_and_measured(backend: str, work: str) -> None:
    file = written(DIAMOND)
    run = command_line("replay", file, "--backend", backend, "--speed", "50", "--work", work, "--workers", "2")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert "4 (4 done, 0 failed)" in run.stdout
    assert "critical path 0.060 s, work/cores 0.040 s" in run.stdout
    for row in ("recording (WfFormat 1.6)", "edges", "makespan", "efficiency", "µs a task", "overhead = (makespan -"):
        assert row in run.stdout
    # In a pipe: no colours, no cursor that moves.
    assert "\x1b" not in run.stdout


async def test_the_measurements_follow_from_the_recording(no_leaks: None) -> None:
    measured, shown = await replayed(DIAMOND, ThreadBackend(1))
    assert (measured.critical_path, measured.shared_work) == (0.03, 0.04)
    assert measured.lower_bound == 0.04 <= measured.makespan
    assert measured.efficiency == measured.lower_bound / measured.makespan <= 1
    assert measured.overhead == (measured.makespan - 0.04) / 4
    assert measured.tally == Tally(total=4, done=4)
    assert shown.seen[-1] == "4/4 done, 0 running, 0 failed"


async def test_tasks_ask_for_the_cores_that_they_had_as_far_as_there_are_any(no_leaks: None) -> None:
    content = instance({"a": [], "b": []}, cores=16)
    measured, _ = await replayed(content, ThreadBackend(2))
    assert measured.capped == 2
    # Each holds both cores, so they cannot overlap.
    assert measured.makespan >= 0.02
    assert "2 tasks recorded more cores than the 2 there are, and got these" in text_of(measured)


async def test_a_backend_that_runs_nothing_shows_the_engine_alone() -> None:
    measured, _ = await replayed(DIAMOND, NoopBackend(), speed=0.001)
    assert measured.lower_bound == 0
    assert measured.overhead == measured.makespan / 4
    text = text_of(measured)
    assert "efficiency  " not in text
    assert "the makespan is the engine's alone" in text


async def test_burning_on_threads_is_named_for_what_it_is() -> None:
    measured, _ = await replayed(DIAMOND, ThreadBackend(2), work="burn")
    assert "the GIL" in text_of(measured)


def test_burning_takes_cpu_time() -> None:
    before = time.thread_time()
    work.burn(0.02, [])
    assert time.thread_time() - before >= 0.02


async def test_what_failed_is_counted_with_the_first_error() -> None:
    tallies = Tallies()
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def divide(by: int) -> float:
            return 1 / by

        @flow.function_task
        def after(value: float) -> None: ...

        for future in (divide(1), divide(0), cancelled := divide(2)):
            tallies.add(future)
        tallies.add(after(divide(0)))
        cancelled.cancel()
        await flow.drain()
        tallies.look()
    assert tallies.by_name["divide"] == Tally(total=3, done=1, failed=1, cancelled=1)
    assert tallies.by_name["after"] == Tally(total=1, failed=1)
    assert tallies.sum().finished
    assert isinstance(tallies.error, ZeroDivisionError)


def test_a_terminal_gets_a_table_that_changes_and_all_else_gets_lines() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    pipe = Console(file=io.StringIO(), width=80)
    assert isinstance(display(terminal), LiveTable)
    assert isinstance(display(pipe), Lines)
    tallies = Tallies()
    tallies.by_name.update({f"[b]sort-{number}": Tally(total=5, done=2, running=1, failed=1) for number in range(25)})
    for console in (terminal, pipe):
        with display(console) as shown:
            shown.show(tallies)
            shown.show(tallies)
    drawn, lines = (console.file.getvalue() for console in (terminal, pipe) if isinstance(console.file, io.StringIO))
    assert "[b]sort-0" in drawn
    assert "... 5 more" in drawn
    # The second one came too soon.
    assert lines.count("\n") == 1
    assert "50/125 done, 25 running, 25 failed; [b]sort-0 2/5" in lines


@pytest.mark.parametrize(
    "content,said",
    [
        ("{", "recording.json: line 1, column 2: not JSON: "),
        ({**DIAMOND, "schemaVersion": "1.3"}, "recording.json: $.schemaVersion: WfFormat 1.3 cannot be read"),
        (instance({"a": ["x"]}), "recording.json: $.workflow.specification.tasks[0].parents[0]: parent 'x' of task"),
        (instance({"a": ["b"], "b": ["a"]}), "recording.json: $.workflow.specification.tasks[1]: tasks wait for each"),
        (instance({"a": []}, {"a": -1}), "$.workflow.execution.tasks[0].runtimeInSeconds: is -1, not a number from 0"),
    ],
)
def test_a_bad_recording_gets_one_line(content: Any, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["replay", written(content)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    "options,said",
    [
        (["nowhere.json"], "cannot read nowhere.json: No such file or directory"),
        (["."], "cannot read .: Is a directory"),
        (["recording.json", "--backend", "thread"], "backend 'thread' is not known; known are"),
        (["recording.json", "--backend", "noop", "--workers", "2"], "backend 'noop' has no number of workers"),
        (["recording.json", "--workers", "0"], "workers=0 is not possible: a whole number of at least 1"),
        (["recording.json", "--workers", "x"], "Invalid value for '--workers'"),
        (["recording.json", "--speed", "0"], "--speed 0 is not possible: a number above 0"),
        (["recording.json", "--speed", "nan"], "--speed nan is not possible: a number above 0"),
        (["recording.json", "--work", "play"], "'play' is not one of 'sleep', 'burn'"),
        (["recording.json", "--sped", "2"], "No such option '--sped'"),
        ([], "Missing argument 'INSTANCE'"),
    ],
)
def test_a_wrong_call_gets_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    written(DIAMOND)
    assert invoke(["replay", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("asyncflow: ")


@pytest.mark.parametrize("backend", ["threads", "processes"])
@pytest.mark.parametrize("work", ["sleep", "burn"])
def test_ctrl_c_ends_everything_and_says_what_ran(backend: str, work: str) -> None:
    before = set(descendants())
    file = written(instance({"quick": [], "long": ["quick"], "never": ["long"]}, {"quick": 0, "long": 600}))
    process = start_command_line("replay", file, "--backend", backend, "--work", work, "--workers", "2")
    with process:
        assert process.stdout is not None
        assert "/3 done" in process.stdout.readline()
        ctrl_c(process)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaint.strip().startswith("asyncflow: interrupted: ")
    assert " of 3 tasks had run, " in complaint
    assert complaint.strip().count("\n") == 0
    assert all_gone(before) == []


async def test_a_replay_that_is_cancelled_leaves_nothing(no_leaks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_hurry", type(work._hurry)())
    content = instance({"quick": [], "long": ["quick"], "never": ["long"]}, {"quick": 0, "long": 600})
    tallies = Tallies()
    shown = Silent(until="long")
    asked = Replay(recorded(content), ProcessBackend(1), 1.0, "sleep")
    running = asyncio.ensure_future(run_replay(asked, tallies, shown))
    await soon(shown.came.wait())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (tallies.sum().done, tallies.sum().running) == (1, 1)


@needs_recordings
@pytest.mark.parametrize("backend", [ThreadBackend, ProcessBackend], ids=["threads", "processes"])
async def test_a_real_workflow_is_replayed(backend: Any, no_leaks: None) -> None:
    text = (INSTANCES / "bwa-chameleon-large-001.json").read_bytes()
    asked = Replay(parse_workflow(text, "bwa"), backend(2), 20_000.0, "sleep")
    measured = await run_replay(asked, Tallies(), Silent())
    assert measured.tally == Tally(total=1004, done=1004)
    assert measured.makespan >= measured.lower_bound
