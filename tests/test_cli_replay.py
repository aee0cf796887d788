"""`asyncflow replay`: recorded workflows, run again."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asyncflow.backends import Backend, NoopBackend, ProcessBackend, ThreadBackend
from asyncflow.cli import work
from asyncflow.cli.commands import invoke
from asyncflow.cli.replay import Outcome, Replay, run_replay
from asyncflow.cli.summary import Measured, summary
from asyncflow.display import progress
from asyncflow.display.counts import Counts
from asyncflow.graph import State
from asyncflow.testing.leaks import descendants
from asyncflow.wfformat import RecordedWorkflow, parse_workflow
from tests.support.command_line import RELEASED, RESERVED, all_gone, command_line, ctrl_c, on_terminal
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
    return summary(measured, Console(file=io.StringIO(), width=200))


async def replayed(
    content: dict[str, Any], backend: Backend, speed: float = 100.0, work: str = "sleep"
) -> tuple[Measured, Outcome]:
    outcome = Outcome()
    return await run_replay(Replay(recorded(content), backend, speed, work), outcome), outcome


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
    measured, outcome = await replayed(DIAMOND, ThreadBackend(1))
    assert (measured.critical_path, measured.shared_work) == (0.03, 0.04)
    assert measured.lower_bound == 0.04 <= measured.makespan
    assert measured.efficiency == measured.lower_bound / measured.makespan <= 1
    assert measured.overhead == (measured.makespan - 0.04) / 4
    assert measured.states == outcome.states == {State.DONE: 4}
    assert outcome.error is None


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


def fail(seconds: float, parents: Sequence[None]) -> None:
    """The work of a task that fails unless it is quick."""
    if seconds:
        raise ValueError("too long\nfor one line")


def test_what_failed_is_counted_with_the_first_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(work.WORK, "sleep", fail)
    parents = {"quick": [], "b_1": ["quick"], "b_2": ["quick"], "after": ["b_1"]}
    file = written(instance(parents, {"quick": 0}))
    assert invoke(["replay", file]) == 1
    printed = capsys.readouterr()
    assert "quick 1/1 done; b 0/2, 2 failed; after 0/1, 1 failed\n" in printed.out
    assert "4 (1 done, 3 failed)" in printed.out
    assert printed.err == "asyncflow: 3 of 4 tasks failed, the first with ValueError: too long\n"
    gc.collect()
    assert caplog.text == "", "no failure that nobody looked at"


def test_a_pipe_gets_lines_and_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["replay", written(DIAMOND), "--speed", "100"]) == 0
    line, blank, *table = capsys.readouterr().out.splitlines()
    # Not the calls that start the workers.
    assert re.fullmatch(r"\d\d:\d\d:\d\d  a 1/1 done; b 2/2 done; c 1/1 done", line)
    assert blank == ""
    assert table[0] == "workflow     recording (WfFormat 1.6)", "no blanks at its end"


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
def test_ctrl_c_in_a_terminal_ends_everything_and_says_what_ran(backend: str, work: str) -> None:
    before = set(descendants())
    file = written(instance({"quick": [], "long": ["quick"], "never": ["long"]}, {"quick": 0, "long": 600}))
    with on_terminal("replay", file, "--backend", backend, "--work", work, "--workers", "2") as (process, terminal):
        bars = terminal.until("1 running")
        ctrl_c(process)
        end = terminal.until("interrupted: 1 of 3 tasks had run, 1 were running\r\n")
        assert process.wait(timeout=60) == 130
    assert "quick" in bars
    assert RESERVED.search(bars), "the last lines are the bars'"
    assert RELEASED in end, "the whole terminal scrolls again"
    assert end.count("asyncflow: ") == 1
    assert "Traceback" not in bars + end
    assert all_gone(before) == []


class Watch:
    """A view that tells when the long task runs; what starts the workers is shown to it as well."""

    interval = 0.01

    def __init__(self) -> None:
        self.runs = asyncio.Event()

    def show(self, counts: Sequence[Counts]) -> None:
        if any(each.running for each in counts if each.name == "long"):
            self.runs.set()

    def close(self, counts: Sequence[Counts]) -> None:
        pass


async def test_a_replay_that_is_cancelled_leaves_nothing(no_leaks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_hurry", type(work._hurry)())
    view = Watch()
    monkeypatch.setattr(progress, "view_for", lambda _: view)
    content = instance({"quick": [], "long": ["quick"], "never": ["long"]}, {"quick": 0, "long": 600})
    outcome = Outcome()
    running = asyncio.ensure_future(run_replay(Replay(recorded(content), ProcessBackend(1), 1.0, "sleep"), outcome))
    await soon(view.runs.wait())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert outcome.states == {State.DONE: 1, State.RUNNING: 1, State.PENDING: 1}


@needs_recordings
@pytest.mark.parametrize("backend", [ThreadBackend, ProcessBackend], ids=["threads", "processes"])
async def test_a_real_workflow_is_replayed(backend: Any, no_leaks: None) -> None:
    text = (INSTANCES / "bwa-chameleon-large-001.json").read_bytes()
    measured = await run_replay(Replay(parse_workflow(text, "bwa"), backend(2), 20_000.0, "sleep"), Outcome())
    assert measured.states == {State.DONE: 1004}
    assert measured.makespan >= measured.lower_bound
