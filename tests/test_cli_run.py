"""`asyncflow run`: a script behaves as under python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncflow.cli.commands import invoke
from asyncflow.testing.leaks import descendants
from tests.support.command_line import all_gone, command_line, ctrl_c, start_command_line
from tests.support.scripts import environment

#: Prints what a script can see of how it was started.
LOOKS = """\
import json, os, sys, beside
print(json.dumps([
    __name__, __file__, sys.argv, sys.path[0], beside.HERE, sys.modules["__main__"].__dict__ is globals(), __doc__,
]))
"""

BACKEND = """\
import asyncflow

@asyncflow.function_task
def pid() -> int:
    import os
    return os.getpid()

async def main():
    return await pid()

if __name__ == "__main__":
    import os
    print("other" if asyncflow.run(main) != os.getpid() else "same")
"""


def script(text: str, name: str = "script.py") -> str:
    Path(name).write_text(text)
    return name


def test_a_script_sees_what_it_would_see_under_python() -> None:
    Path("folder").mkdir()
    Path("folder/beside.py").write_text("HERE = True")
    file = script(LOOKS, "folder/looks.py")
    Path("linked.py").symlink_to(file)
    for given in (file, str(Path(file).absolute()), "linked.py"):
        ours = command_line("run", given, "--", "--steps", "100", "--help", "--", "x y")
        python = subprocess.run(
            [sys.executable, given, "--steps", "100", "--help", "--", "x y"],
            capture_output=True,
            text=True,
            env=environment(),
        )
        assert ours.stdout == python.stdout != ""
        assert (ours.returncode, ours.stderr) == (0, "")


@pytest.mark.parametrize(
    "options,where",
    [([], "same"), (["--backend", "threads"], "same"), (["--backend", "processes"], "other")],
)
def test_the_backend_is_the_one_named(options: list[str], where: str) -> None:
    run = command_line("run", script(BACKEND), *options)
    assert run.stdout == f"{where}\n", run.stderr


def test_a_backend_that_the_script_names_stays() -> None:
    text = BACKEND.replace("asyncflow.run(main)", "asyncflow.run(main, backend='threads')")
    assert command_line("run", "--backend", "processes", script(text)).stdout == "same\n"


def test_an_exception_shows_the_scripts_own_frames() -> None:
    file = script("def fall():\n    raise ValueError('too deep')\n\nfall()\n")
    run = command_line("run", file)
    python = subprocess.run([sys.executable, file], capture_output=True, text=True, env=environment())
    assert run.returncode == python.returncode == 1
    assert run.stderr == python.stderr
    assert "cli" not in run.stderr


def test_an_error_of_syntax_is_shown_as_python_shows_it() -> None:
    file = script("print('never')\nfor\n")
    run = command_line("run", file)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.splitlines()[0].endswith('script.py", line 2')
    assert run.stderr.splitlines()[-1] == "SyntaxError: invalid syntax"


@pytest.mark.parametrize(
    "end,code,said",
    [("sys.exit()", 0, ""), ("sys.exit(7)", 7, ""), ("sys.exit('no')", 1, "no\n"), ("raise SystemExit(3)", 3, "")],
)
def test_exit_codes_pass_through(end: str, code: int, said: str) -> None:
    run = command_line("run", script(f"import sys\n{end}\n"))
    assert (run.returncode, run.stderr) == (code, said)


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["nowhere.py"], "asyncflow: cannot read nowhere.py: No such file or directory\n"),
        (["."], "asyncflow: cannot read .: Is a directory\n"),
        (["script.py", "--backend", "proceses"], "did you mean 'processes'?\n"),
        (
            ["script.py", "--steps", "3"],
            "; what is meant for the script goes after --\n",
        ),
        ([], "asyncflow: Missing argument 'SCRIPT'. See 'asyncflow run --help'\n"),
    ],
)
def test_a_wrong_call_gets_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    script("raise SystemExit('this must not run')")
    assert invoke(["run", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith(said)
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_ctrl_c_ends_the_script_and_its_workers(backend: str) -> None:
    text = """\
import asyncflow

@asyncflow.executable_task
def wait(started):
    return ["sleep", "600"]

@asyncflow.function_task
def start():
    return 1

async def main():
    started = await start()
    print("runs", flush=True)
    await wait(started)

asyncflow.run(main)
"""
    before = set(descendants())
    with start_command_line("run", script(text), "--backend", backend) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        ctrl_c(process)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in complaint
    assert complaint.strip() == "asyncflow: interrupted"
    assert all_gone(before) == []


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        run = subprocess.run(
            [sys.executable, "-m", "asyncflow", "doctor"], stdout=closed, stderr=subprocess.PIPE, env=environment()
        )
    assert run.stderr == b""
    assert run.returncode == 1
