"""`asyncflow report`: where the page goes, what is printed, what is refused."""

from __future__ import annotations

import importlib.util
import os
import webbrowser
from pathlib import Path

import pytest

from asyncflow.cli import report as module
from asyncflow.cli.commands import invoke
from tests.support.command_line import command_line
from tests.support.runs import EPOCH, Lines, campaign


@pytest.fixture
def run_file() -> Path:
    return campaign(60, wrong=0.3).write(Path("run.jsonl"))


def test_a_page_is_written_beside_the_file_and_its_figures_are_printed(run_file: Path) -> None:
    done = command_line("report", run_file, "--open", "no")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    printed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert printed["session"] == "flow-3f9c21aa, 2025-11-21 09:00:00 UTC"
    assert printed["tasks"].startswith("75 (")
    assert set(printed) == {"session", "tasks", "makespan", "lower", "efficiency", "cores", "report"}
    assert printed["report"] == "run.html"
    assert Path("run.html").read_text().startswith("<!DOCTYPE html>")
    assert Path("run.html").stat().st_mode & 0o077 == 0, "as private as the telemetry"


def test_a_page_goes_where_one_wants_it(run_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("page.html").write_text("an older one")
    assert invoke(["report", str(run_file), "-o", "page.html"]) == 0
    assert Path("page.html").read_text().startswith("<!DOCTYPE html>")
    assert not Path("run.html").exists()
    capfd.readouterr()
    assert invoke(["report", str(run_file), "-o", "-"]) == 0
    assert capfd.readouterr().out == Path("page.html").read_text()
    assert sorted(os.listdir()) == ["page.html", "run.jsonl"], "nothing is left over"


def test_the_newest_run_of_a_folder_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    Path("telemetry").mkdir()
    for number, name in enumerate(["new", "old"]):
        lines = Lines(name)
        lines.start()
        file = lines.write(Path("telemetry", f"{name}.jsonl"))
        os.utime(file, (EPOCH - number, EPOCH - number))
    assert invoke(["report", "telemetry"]) == 0
    assert capsys.readouterr().out.startswith("session      new,")
    assert Path("telemetry/new.html").exists()


def test_a_session_is_chosen_by_its_name(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = Lines("later", EPOCH + 1000)
    later.start()
    later.write(run_file)
    assert invoke(["report", str(run_file)]) == 0
    assert capsys.readouterr().out.startswith("session      later, 2025-11-21 09:16:40 UTC, not ended")
    assert invoke(["report", str(run_file), "--session", "flow-3f9c21aa"]) == 0
    assert capsys.readouterr().out.startswith("session      flow-3f9c21aa")
    assert invoke(["report", str(run_file), "--session", "other"]) == 2
    said = "asyncflow: run.jsonl has no session 'other'; there are 'flow-3f9c21aa', 'later'\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("command", [["report"], ["export", "--format", "chrome"], ["export", "--format", "wfformat"]])
def test_what_is_no_run_gets_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("table.csv").write_text("seed,energy\n")
    assert invoke([*command, "table.csv"]) == 2
    said = "asyncflow: table.csv cannot be read as a run's telemetry: its lines are no events of telemetry\n"
    assert capsys.readouterr().err == said
    assert os.listdir() == ["table.csv"]


def test_a_page_that_cannot_be_written_gets_one_line(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["report", str(run_file), "-o", "nowhere/page.html"]) == 1
    said = "asyncflow: cannot write nowhere/page.html: No such file or directory; name another file by -o\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "screen,asked,opened", [(True, "auto", True), (False, "auto", False), (False, "yes", True), (True, "no", False)]
)
def test_a_browser_is_opened_where_somebody_can_see_it(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, screen: bool, asked: str, opened: bool
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    monkeypatch.setattr(module, "_has_screen", lambda: screen)
    assert invoke(["report", str(run_file), "--open", asked]) == 0
    assert shown == ([Path("run.html").resolve().as_uri()] if opened else [])


def test_nobody_sits_in_front_of_a_pipe() -> None:
    assert not module._has_screen()


def test_without_the_extra_the_commands_say_which(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "orjson" else find(name, *more)
    )
    for command in (["report"], ["watch"], ["export", "--format", "chrome"]):
        assert invoke([*command, str(run_file)]) == 2
        assert "pip install 'asyncflow-hpc[cli,telemetry]'" in capsys.readouterr().err
