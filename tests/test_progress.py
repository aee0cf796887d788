"""`flow.progress()`: right totals, the view that suits the place, and no trace of it afterwards."""

from __future__ import annotations

import asyncio
import fcntl
import io
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import WorkflowEngine
from asyncflow.display import progress as progress_module
from asyncflow.display.counts import Counts, count, fold, segments
from asyncflow.display.lines import LineView, LogView, line, phrase
from asyncflow.display.terminal import BarView
from asyncflow.errors import ForeignThreadError
from asyncflow.graph import State
from tests.support.faked import NEVER, fail, faked, finish, identity, item_of, soon, turns
from tests.support.scripts import run_script


def counts_of(flow: WorkflowEngine) -> dict[str, Counts]:
    return {each.name: each for each in count(flow._scheduler)}


async def test_counts_by_name_and_state() -> None:
    async with faked(workers=3) as (flow, backend):
        simulate = flow.function_task(name="simulate")(identity)
        combine = flow.function_task(name="combine")(identity)
        done, failed, runs, cancelled, waits = (simulate(n) for n in range(5))
        combine(done, waits)
        await finish(backend, done)
        await fail(backend, failed, ValueError("no"))
        backend.begin(await item_of(backend, runs))
        cancelled.cancel()
        assert counts_of(flow) == {"simulate": Counts("simulate", 5, 1, 1, 1, 1), "combine": Counts("combine", 1)}
        with pytest.raises(ValueError, match="no"):
            await failed


async def test_totals_outlive_the_history() -> None:
    async with faked(history=2) as (flow, backend):
        task = flow.function_task(name="task")(identity)
        for number in range(10):
            await finish(backend, task(number))
        assert counts_of(flow)["task"] == Counts("task", 10, done=10)


async def test_a_call_that_is_tried_again_is_counted_once() -> None:
    async with faked() as (flow, backend):
        task = flow.function_task(name="task", retries=2)(identity)
        future = task()
        await fail(backend, future, ValueError("first"))
        backend.begin(await item_of(backend, future, attempt=2))
        assert counts_of(flow)["task"] == Counts("task", 1, running=1)


async def test_dependents_of_a_failure_are_counted_as_failed_and_those_of_a_cancelled_call_as_cancelled() -> None:
    async with faked() as (flow, backend):
        first, after = (flow.function_task(name=name)(identity) for name in ("first", "after"))
        fails, is_cancelled = first(), first()
        ends = [after(fails), after(after(is_cancelled))]
        await fail(backend, fails, ValueError("no"))
        is_cancelled.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        assert counts_of(flow)["after"] == Counts("after", 3, failed=1, cancelled=2)


async def test_names_without_end_are_counted_together() -> None:
    async with faked() as (flow, _):
        for number in range(1010):
            flow.function_task(name=f"task-{number}")(identity)()
        found = counts_of(flow)
        assert len(found) == 1001
        assert found["other tasks"].calls == 10


async def test_a_log_gets_its_last_line_at_the_end() -> None:
    file = io.StringIO()
    async with faked() as (flow, backend):
        task = flow.function_task(name="simulate")(identity)
        with flow.progress(file):
            futures = [task(n) for n in range(3)]
            for future in futures:
                await finish(backend, future)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  simulate 3/3 done\n", file.getvalue())


async def test_async_with() -> None:
    file = io.StringIO()
    async with faked() as (flow, backend), flow.progress(file):
        await finish(backend, flow.function_task(name="simulate")(identity)())
    assert file.getvalue().endswith("simulate 1/1 done\n")


async def test_what_an_earlier_display_showed_as_ended_is_left_out() -> None:
    files = [io.StringIO() for _ in range(3)]
    async with faked() as (flow, backend):
        task = flow.function_task(name="simulate")(identity)
        await finish(backend, task())  # before any display: shown by the first
        with flow.progress(files[0]):
            waits = task()
        with flow.progress(files[1]):
            await finish(backend, waits)
        with flow.progress(files[2]):
            pass
    lines = [file.getvalue()[10:] for file in files]
    assert lines == ["simulate 1/2 done\n", "simulate 1/1 done\n", "no calls\n"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_an_error_goes_through_and_the_last_state_is_shown(error: BaseException) -> None:
    file = io.StringIO()
    async with faked() as (flow, _):
        flow.function_task(name="simulate")(identity)()
        display = flow.progress(file)
        with pytest.raises(type(error)), display:
            raise error
        assert file.getvalue().endswith("simulate 0/1 waiting\n")
        assert display._timer is not None
        assert display._timer.cancelled()


class Broken(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


async def test_a_display_that_fails_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with faked() as (flow, backend):
        with flow.progress(Broken()):
            await finish(backend, flow.function_task(identity)())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "progress can no longer be shown: BrokenPipeError: "


async def test_only_on_the_loop_of_the_engine() -> None:
    async with faked() as (flow, _):
        with pytest.raises(ForeignThreadError):
            await asyncio.to_thread(flow.progress)


class Probe:
    """A view that takes as long as a test says."""

    interval = 0.0

    def __init__(self) -> None:
        self.seen: list[list[Counts]] = []
        self.changed = asyncio.Event()

    def show(self, counts: list[Counts]) -> None:
        self.seen.append(counts)
        self.changed.set()

    def close(self, counts: list[Counts]) -> None:
        self.show(counts)


async def test_it_looks_again_and_again_until_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe()
    monkeypatch.setattr(progress_module, "view_for", lambda _: probe)
    async with faked() as (flow, backend):
        task = flow.function_task(name="task")(identity)
        with flow.progress():
            for number in range(3):
                await finish(backend, task())
                while not any(each.done == number + 1 for each in probe.seen[-1]):
                    probe.changed.clear()
                    await soon(probe.changed.wait())
        looks = len(probe.seen)
        await turns(20)
        assert len(probe.seen) == looks


# --- where it is shown -----------------------------------------------------------------------------------------------


def resize(terminal: int, lines: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 100, 0, 0))


class Terminal(io.TextIOWrapper):
    #: The end at which what was written is read.
    reader: io.FileIO


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """The program's end of a terminal."""
    ours, theirs = pty.openpty()
    resize(theirs, 24)
    with open(ours, "rb", buffering=0) as reader, Terminal(open(theirs, "wb"), encoding="utf-8") as writer:
        writer.reader = reader
        yield writer


def test_a_file_gets_lines_and_a_terminal_bars(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress_module.view_for(io.StringIO()), LogView)
    view = progress_module.view_for(terminal)
    assert isinstance(view, BarView)
    view.close([])


def test_a_terminal_without_rich_gets_one_line(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert isinstance(progress_module.view_for(terminal), LineView)


@pytest.mark.parametrize("lines", [0, 5])
def test_a_terminal_too_low_for_bars_gets_one_line(
    terminal: Terminal, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    resize(terminal.fileno(), lines)
    assert isinstance(progress_module.view_for(terminal), LineView)


def test_a_dumb_terminal_gets_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_module.view_for(terminal), LogView)


SCRIPT = """
import asyncio, sys
from asyncflow import WorkflowEngine

async def main():
    async with WorkflowEngine.create() as flow:
        @flow.function_task
        def step(n):
            if n == 3:
                raise ValueError("no")
            return n
        with flow.progress():
            await asyncio.gather(*map(step, range(50)), return_exceptions=True)
            print("a line of the program")

asyncio.run(main())
"""


def test_a_script_whose_output_is_no_terminal() -> None:
    run = run_script(SCRIPT)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first == "a line of the program"
    assert second.endswith("  step 49/50 done, 1 failed")
    assert run.stderr == ""


def test_ctrl_c_ends_a_script_with_the_last_state() -> None:
    program = SCRIPT.replace('print("a line of the program")', "print('it waits', flush=True); await asyncio.sleep(99)")
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "it waits\n"
        run.send_signal(signal.SIGINT)
        output, errors = run.communicate(timeout=NEVER)
    assert output.endswith("  step 49/50 done, 1 failed\n")
    assert errors.endswith("KeyboardInterrupt\n")


def received(terminal: Terminal) -> str:
    """What was written to the terminal since the last call: it comes in pieces, so up to a mark of our own."""
    mark = "<end>"
    terminal.write(mark)
    terminal.flush()
    output = ""
    while not output.endswith(mark):
        output += os.read(terminal.reader.fileno(), 100_000).decode()
    return output.removesuffix(mark)


@pytest.fixture
def bars(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> BarView:
    monkeypatch.setenv("TERM", "xterm-256color")
    return BarView(terminal)


def test_bars_show_every_state_and_escape_names(terminal: Terminal, bars: BarView) -> None:
    bars.close([Counts("simulate", 10, 4, 1, 1, 2), Counts("[red]odd", 1)])
    output = received(terminal)
    for words in ("simulate", "[red]odd", "6/10", "1 failed", "1 cancelled", "2 running", "2 pending"):
        assert words in output


def test_bars_stand_below_what_scrolls_and_leave_the_terminal_as_it_was(terminal: Terminal, bars: BarView) -> None:
    bars.show([Counts("simulate", 10)])
    output = received(terminal)
    assert "\x1b[1;22r" in output, "all but the bar's line and the clock's scroll"
    assert "\x1b[23;1H" in output
    bars.show([Counts("simulate", 10, 1)])
    assert "r\x1b8" not in received(terminal), "the region is set once"
    resize(terminal.fileno(), 30)
    bars.show([Counts("simulate", 10, 2)])
    assert "\x1b[1;28r" in received(terminal)
    bars.close([Counts("simulate", 10, 10)])
    assert received(terminal).startswith("\x1b7\x1b[r\x1b8\x1b[J"), "everything scrolls again, the bars are cleared"


def test_bars_take_half_of_the_terminal_at_most(terminal: Terminal, bars: BarView) -> None:
    bars.show([Counts(f"task-{number}", 1) for number in range(50)])
    output = received(terminal)
    assert "\x1b[1;11r" in output
    assert "39 other tasks" in output


def test_one_line_is_written_over_and_cut_at_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    file = io.StringIO()
    view = LineView(file)
    view.show([Counts("simulate", 10)])
    view.close([Counts("simulate", 10, 9, 1)])
    assert file.getvalue() == "\rsimulate 0/10 waiti\x1b[K\rsimulate 9/10 done,\x1b[K\n"


def test_a_log_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    file = io.StringIO()
    view = LogView(file)
    times = []
    for second in range(4 * 3600):
        now[0] = float(second)
        before = file.tell()
        view.show([Counts("simulate", 100_000, second)])
        if file.tell() > before:
            times.append(second)
    gaps = [after - before for before, after in zip([0, *times], times, strict=False)]
    assert gaps[0] == 5
    assert gaps == sorted(gaps)
    assert gaps[-1] == 60


def test_a_log_says_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    file = io.StringIO()
    view = LogView(file)
    for second in range(100):
        now[0] = float(second)
        view.show([Counts("simulate", 1)])
    view.close([Counts("simulate", 1)])
    assert file.getvalue().count("\n") == 1


# --- words and bars --------------------------------------------------------------------------------------------------


def test_phrases() -> None:
    assert phrase(Counts("simulate", 1000, 340, 1, 0, 8)) == "simulate 340/1000 done, 8 running, 1 failed"
    assert phrase(Counts("combine", 1)) == "combine 0/1 waiting"
    assert phrase(Counts("combine", 1, running=1)) == "combine 0/1, 1 running"
    assert phrase(Counts("combine", 2, cancelled=2)) == "combine 0/2, 2 cancelled"
    assert line([Counts("a", 1), Counts("b", 1, 1)]) == "a 0/1 waiting; b 1/1 done"


def test_many_names_are_folded_and_the_unfinished_stay() -> None:
    counts = [*(Counts(f"done-{n}", 2, 2) for n in range(10)), Counts("runs", 1, running=1)]
    first, second, others = fold(counts, 3)
    assert (first.name, second.name) == ("runs", "done-0")
    assert others == Counts("9 other tasks", 18, 18)


@given(st.lists(st.integers(0, 10**7), min_size=5, max_size=5).filter(any), st.integers(5, 300))
def test_a_bar_has_a_cell_for_every_state_and_its_width(numbers: list[int], width: int) -> None:
    done, failed, cancelled, running, pending = numbers
    counts = Counts("task", sum(numbers), done, failed, cancelled, running)
    cells = segments(counts, width)
    assert sum(cells.values()) == width
    assert set(cells) == set(counts.by_state())
    assert min(cells.values()) >= 1
    assert (State.PENDING in cells) == bool(pending)
