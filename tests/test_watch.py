"""`asyncflow watch`: a run is followed while it goes on, whatever becomes of its file."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow.cli import watch as module
from asyncflow.cli.commands import invoke
from asyncflow.cli.watch import Watcher
from asyncflow.display.counts import Counts
from asyncflow.errors import NotTelemetryError
from asyncflow.report.live import Followed
from asyncflow.report.reading import read_run
from asyncflow.report.tail import Tail
from asyncflow.telemetry import names
from tests.support.command_line import RELEASED, ctrl_c, on_terminal, start_command_line
from tests.support.runs import EPOCH, HOME, Lines, campaign

RUN = Path("run.jsonl")


class Clock:
    """The time as the command sees it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.monotonic, strftime=time.strftime))
    return made


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def watcher(clock: Clock, out: io.StringIO) -> Iterator[Watcher]:
    made = Watcher(RUN, out)
    yield made
    made.close()


def begun() -> Lines:
    """One task is done, one runs, one waits; two workflows go on."""
    lines = Lines()
    lines.start([{"name": "processes", "workers": 2, "cores": 2}])
    lines.run("task.000001", 1.0, 2.0, "load", workflow="one")
    lines.create("task.000002", 1.0, "simulate", workflow="one")
    lines.submit("task.000002", 2.0)
    lines.begin("task.000002", 3.0)
    lines.create("task.000003", 1.0, "simulate", ["task.000002"], workflow="two")
    return lines


def rest() -> Lines:
    """What comes after."""
    lines = begun()
    lines.events.clear()
    lines.fail("task.000002", 5.0, "diverged\nat step 7")
    about = {names.ROOT_CAUSE: "task.000002"}
    lines.fail("task.000003", 5.0, "not run", attempt=0, result=names.SKIP, more=about)
    lines.end(6.0, DONE=1, FAILED=2)
    return lines


def said(out: io.StringIO) -> list[str]:
    """The lines without the time of day."""
    return [line.split("  ", 1)[1] for line in out.getvalue().splitlines()]


# --- what is counted --------------------------------------------------------------------------------------------------


def followed(lines: Lines) -> Followed:
    found = Followed()
    for event in lines.dicts():
        found.take(event)
    return found


def test_counts_by_name_workflows_and_rate() -> None:
    live = followed(begun()).live
    assert live is not None
    assert live.counts() == [Counts("load", 1, done=1), Counts("simulate", 2, running=1)]
    assert live.running_workflows() == ["one", "two"]
    assert live.rate(EPOCH + 4.0) == 1 / 4
    assert live.rate(EPOCH + 1000.0) == 0.0
    assert (live.over, live.began, live.last) == (False, EPOCH, EPOCH + 3.0)


def test_counts_of_a_campaign_are_those_of_its_report() -> None:
    lines = campaign(300, wrong=0.2)
    live = followed(lines).live
    assert live is not None
    assert live.over
    run = read_run(lines.write(RUN))
    assert {each.name: (each.calls, each.done, each.failed) for each in live.counts()} == {
        name: (len(states), states.count("DONE"), states.count("FAILED"))
        for name in {task.name for task in run.tasks.values()}
        for states in [[str(task.state) for task in run.tasks.values() if task.name == name]]
    }
    assert live.running_workflows() == []


def test_a_task_that_is_tried_again_waits_again() -> None:
    lines = begun()
    lines.retry("task.000002", 4.0)
    live = followed(lines).live
    assert live is not None
    assert live.counts()[1] == Counts("simulate", 2)


def test_a_later_session_takes_the_place_of_the_one_before() -> None:
    later = Lines("flow-2", EPOCH + 100)
    later.start()
    later.run("task.000001", 1.0, 2.0, "other")
    found = Followed()
    for event in [*begun().dicts(), *rest().dicts(), *later.dicts(), *begun().dicts()[1:]]:
        found.take(event)
    assert found.live is not None
    assert found.live.session_id == "flow-2"
    assert found.live.counts() == [Counts("other", 1, done=1)]
    assert not found.live.over


# --- the file ---------------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_lines_come_whole_and_once_however_the_file_grows(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = begun().text().encode()
    file = tmp_path_factory.mktemp("tail") / "run.jsonl"
    tail, came = Tail(file), []
    for place in [*sorted(data.draw(st.sets(st.integers(0, len(content)), max_size=8))), len(content)]:
        file.write_bytes(content[:place])
        events, anew = tail.poll()
        came += events
        assert not anew
    assert came == begun().dicts()
    assert tail.poll() == ([], False)


def test_a_long_file_comes_in_parts() -> None:
    lines = campaign(1500)
    lines.write(RUN)
    tail, came, parts = Tail(RUN), [], 0
    while not parts or tail.behind:
        came += tail.poll()[0]
        parts += 1
    assert parts > 2
    assert came == lines.dicts()


def test_a_file_that_is_cut_or_replaced_is_read_from_its_start() -> None:
    begun().write(RUN)
    tail = Tail(RUN)
    assert len(tail.poll()[0]) == len(begun().dicts())
    os.truncate(RUN, 0)
    assert tail.poll() == ([], True)
    begun().write(RUN)
    assert len(tail.poll()[0]) == len(begun().dicts())
    begun().write(Path("new"))
    os.replace("new", RUN)
    events, anew = tail.poll()
    assert anew
    assert len(events) == len(begun().dicts())


def test_a_file_may_still_be_to_come_and_go_again() -> None:
    tail = Tail(RUN)
    assert tail.poll() == ([], False)
    begun().write(RUN)
    assert len(tail.poll()[0]) == len(begun().dicts())
    RUN.unlink()
    assert tail.poll() == ([], False)


def test_of_a_folder_the_newest_file_is_followed(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    assert tail.poll() == ([], False)
    for number, name in enumerate(["old.jsonl", "new.jsonl"]):
        begun().write(Path(name))
        os.utime(name, (number, number))
    assert tail.poll()[0]
    assert tail.file == tmp_path / "new.jsonl"


def test_what_is_no_telemetry_is_not_followed() -> None:
    RUN.write_text("seed,energy\n")
    with pytest.raises(NotTelemetryError, match="no events of telemetry"):
        Tail(RUN).poll()
    RUN.write_text("{torn")
    assert Tail(RUN).poll() == ([], False)


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_a_run_is_followed_to_its_end(watcher: Watcher, out: io.StringIO, clock: Clock) -> None:
    assert not watcher.look()
    assert said(out) == ["waiting for run.jsonl"]
    assert not watcher.look()
    begun().write(RUN)
    assert not watcher.look()
    rest().write(RUN)
    assert watcher.look()
    watcher.close()
    assert said(out)[1:] == [
        "simulate (task.000002) failed: ValueError: diverged",
        "load 1/1 done; simulate 0/2, 2 failed",
        "session flow-1 has ended after 6.00 s",
    ]


def test_a_run_that_is_over_is_told_of_at_once(watcher: Watcher, out: io.StringIO) -> None:
    begun().write(RUN)
    rest().write(RUN)
    assert watcher.look()


def test_many_failures_are_not_all_told(watcher: Watcher, out: io.StringIO) -> None:
    lines = begun()
    for number in range(10, 30):
        lines.create(f"task.{number:06d}", 3.0)
        lines.fail(f"task.{number:06d}", 4.0, f"number {number}", attempt=0)
    lines.write(RUN)
    watcher.look()
    assert said(out)[0] == "15 tasks failed before these"
    assert said(out)[1:] == [f"work (task.{n:06d}) failed: ValueError: number {n}" for n in range(25, 30)]


def test_a_run_that_falls_silent_is_mentioned_ever_more_rarely(
    watcher: Watcher, out: io.StringIO, clock: Clock
) -> None:
    begun().write(RUN)
    for _ in range(1000):
        watcher.look()
        clock.now += 0.5
    silences = [line for line in said(out) if line.startswith("nothing has come")]
    assert silences == [f"nothing has come for {seconds} s" for seconds in (15, 30, 60, 120, 240, 480)]
    lines = rest()
    del lines.events[-1:]
    lines.write(RUN)
    watcher.look()
    clock.now += 15
    watcher.look()
    assert said(out)[-1] == "nothing has come for 15 s"


@pytest.mark.parametrize("gone", [True, False])
def test_of_a_run_on_this_host_it_is_known_whether_its_process_is_gone(
    watcher: Watcher, out: io.StringIO, clock: Clock, gone: bool
) -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    pid = child if gone else os.getpid()
    lines = begun()
    started = lines.events[0][1]
    started["node_id"], started["attributes"][names.PID] = socket.gethostname(), pid
    lines.write(RUN)
    watcher.look()
    clock.now += 20
    watcher.look()
    assert said(out)[-1] == "nothing has come for 20 s" + f": its process {pid} is gone" * gone


def test_a_file_that_began_anew_is_counted_anew(watcher: Watcher, out: io.StringIO) -> None:
    begun().write(RUN)
    watcher.look()
    os.truncate(RUN, 0)
    watcher.look()
    later = Lines("flow-2")
    later.start()
    later.run("task.000001", 0.0, 1.0, "other")
    later.end(2.0)
    later.write(RUN)
    assert watcher.look()
    watcher.close()
    assert said(out) == ["run.jsonl began anew", "other 1/1 done", "session flow-2 has ended after 2.00 s"]


def test_no_text_of_a_run_reaches_the_terminal_raw(watcher: Watcher, out: io.StringIO) -> None:
    bad = "\x1b]0;owned\x07\x1b[31mname\r\u202e"
    lines = Lines(f"flow{bad}")
    lines.start()
    lines.create(f"task{bad}", 0.0, bad, workflow=bad)
    lines.fail(f"task{bad}", 1.0, bad, bad, attempt=0)
    lines.end(2.0)
    lines.write(RUN)
    watcher.look()
    assert "\x1b" not in watcher._footer()
    watcher.close()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out.getvalue())
    assert "name" in out.getvalue()


def test_below_the_bars_stand_time_rate_workflows_and_silence(watcher: Watcher, clock: Clock) -> None:
    lines = begun()
    for number in range(4):
        lines.create(f"task.{number + 10:06d}", 1.0, workflow=f"more-{number}")
    lines.write(RUN)
    watcher.look()
    clock.now += 1
    assert watcher._footer() == "flow-1  4.00 s  0.25 tasks/s  6 workflows: one, two, more-0 and 3 others"
    clock.now += 60
    assert watcher._footer().endswith("  nothing has come for 61 s")


# --- the command ------------------------------------------------------------------------------------------------------


def test_where_no_run_can_come_to_be_nothing_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["watch", "nowhere/run.jsonl"]) == 2
    said_ = "there is no such file, and no folder where it could come to be"
    assert capsys.readouterr().err == f"asyncflow: cannot watch nowhere/run.jsonl: {said_}\n"


def test_what_is_no_telemetry_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    RUN.write_text("seed,energy\n")
    assert invoke(["watch", str(RUN)]) == 2
    said_ = "run.jsonl cannot be read as a run's telemetry: its lines are no events of telemetry"
    assert capsys.readouterr().err == f"asyncflow: {said_}\n"


def test_the_command_ends_with_the_session() -> None:
    process = start_command_line("watch", RUN)
    assert process.stdout is not None
    assert "waiting for run.jsonl" in process.stdout.readline()
    begun().write(RUN)
    rest().write(RUN)
    printed, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint) == (0, "")
    assert printed.splitlines()[-1].endswith("session flow-1 has ended after 6.00 s")


def test_ctrl_c_ends_it_with_130_and_leaves_the_terminal_as_it_was() -> None:
    begun().write(RUN)
    with on_terminal("watch", RUN) as (process, terminal):
        shown = terminal.until("2 workflows: one, two")
        for words in ("simulate", "1 running", "load", "1/1"):
            assert words in shown
        late = begun()
        late.events.clear()
        late.fail("task.000002", 5.0, "diverged")
        late.write(RUN)
        assert "simulate (task.000002) failed: ValueError: diverged" in terminal.until("1 failed")
        ctrl_c(process)
        assert RELEASED in terminal.until("asyncflow: interrupted")
        assert process.wait(30) == 128 + signal.SIGINT


def test_the_engine_is_another_host_than_this() -> None:
    """Or the tests above that say nothing of its process would."""
    assert socket.gethostname() != HOME
