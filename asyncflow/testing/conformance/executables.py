"""Commands: how they are given, what they get, what comes back."""

from __future__ import annotations

import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncflow.engine import WorkflowEngine
from asyncflow.errors import CommandError, CommandNotFoundError, ExecutableError
from asyncflow.testing import bodies
from asyncflow.testing.conformance.base import WORK, Suite
from asyncflow.testing.meeting import Meeting, attend_command

#: Far more than a pipe holds.
_MUCH = 1_000_000

_BOTH_PIPES = f"import sys; sys.stderr.write('e' * {_MUCH}); sys.stdout.write('o' * {_MUCH}); sys.exit(3)"


class Executables(Suite):
    # --- commands ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("body", [bodies.line, bodies.line_async])
    async def test_a_string_is_split_as_a_shell_would(self, flow: WorkflowEngine, body: Callable[..., Any]) -> None:
        future = flow.executable_task(body)("printf '%s,' one 'two | three' \"f'o;ur\" fi\\ ve")
        assert await self.ended(future) == "one,two | three,f'o;ur,fi ve,"

    async def test_a_list_of_words_needs_no_quoting(self, flow: WorkflowEngine) -> None:
        future = flow.executable_task(bodies.words)("printf", "%s,", "a b", "$HOME", "*", "'", "")
        assert await self.ended(future) == "a b,$HOME,*,',,"

    async def test_a_shell_script(self, flow: WorkflowEngine) -> None:
        future = flow.executable_task(shell=True)(bodies.line)("for i in 1 2; do echo $i; done | tr 12 ab")
        assert await self.ended(future) == "a\nb\n"

    async def test_the_values_of_dependencies_stand_in_the_command(self, flow: WorkflowEngine) -> None:
        name = flow.function_task(bodies.echo)("world")
        greeting = flow.executable_task(bodies.greet)(name)
        assert await self.ended(flow.function_task(bodies.echo)(greeting)) == "hello world"

    @pytest.mark.parametrize("character", ["|", ">", "<", ";", "&", "`", "$"])
    async def test_an_unquoted_character_of_the_shell_is_named(self, flow: WorkflowEngine, character: str) -> None:
        error = await self.failure(flow.executable_task(bodies.line)(f"echo a {character} b"), CommandError)
        assert repr(character) in str(error)
        assert "shell=True" in str(error)
        assert "'line'" in str(error)

    async def test_an_error_of_the_function_is_the_tasks(self, flow: WorkflowEngine) -> None:
        await self.failure(flow.executable_task(bodies.raise_detailed)(1), bodies.Detailed)

    async def test_what_is_no_command_is_named(self, flow: WorkflowEngine) -> None:
        error = await self.failure(flow.executable_task(bodies.echo)({"a": 1}), CommandError)
        assert "dict" in str(error)

    # --- surroundings ------------------------------------------------------------------------------------------------

    async def test_environment_and_folder(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        print_both = flow.executable_task(shell=True, env={"GREETING": "hi there"}, cwd=str(tmp_path))(bodies.line)
        output = await self.ended(print_both('pwd; echo "$GREETING"; test -n "$PATH" && echo path'))
        assert output == f"{tmp_path}\nhi there\npath\n"

    async def test_it_has_no_input(self, flow: WorkflowEngine) -> None:
        assert await self.ended(flow.executable_task(bodies.words)("cat")) == ""

    # --- output ------------------------------------------------------------------------------------------------------

    async def test_output_that_is_no_text(self, flow: WorkflowEngine) -> None:
        assert await self.ended(flow.executable_task(bodies.words)("printf", r"\303\274 \377.")) == "ü \ufffd."

    async def test_much_output_on_both_pipes(self, flow: WorkflowEngine) -> None:
        future = flow.executable_task(bodies.words)(sys.executable, "-I", "-S", "-c", _BOTH_PIPES)
        error = await self.failure(future, ExecutableError)
        assert error.stdout == "o" * _MUCH
        assert error.stderr.endswith("e" * 1000)

    async def test_output_in_files(self, flow: WorkflowEngine, tmp_path: Path) -> None:
        future = flow.executable_task(capture_stdio=True, shell=True)(bodies.line)("echo out; echo err >&2")
        output = Path(await self.ended(future))
        assert output.read_text() == "out\n"
        assert tmp_path in output.parents
        files = [file for file in output.parent.iterdir() if file.is_file()]
        assert sorted(file.read_text() for file in files) == ["err\n", "out\n"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    async def test_a_background_process_does_not_hold_up_the_end(
        self, flow: WorkflowEngine, meeting: Meeting, work_mark: str
    ) -> None:
        """It inherited the pipes and would hold them open; it ends with its command."""
        background = shlex.join(attend_command(meeting.address, "background"))
        start = flow.executable_task(shell=True, env={WORK: work_mark})(bodies.line)
        assert await self.ended(start(f"{background} & echo started")) == "started\n"
        await self.no_work_left(work_mark)

    # --- ends --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("capture", [False, True], ids=["pipes", "files"])
    async def test_a_failure_tells_command_code_host_and_the_end_of_stderr(
        self, flow: WorkflowEngine, capture: bool
    ) -> None:
        script = "for i in $(seq 1 30); do echo line $i. >&2; done; echo out; exit 7"
        fail = flow.executable_task(shell=True, capture_stdio=capture)(bodies.line)
        error = await self.failure(fail(script), ExecutableError)
        assert isinstance(error, subprocess.CalledProcessError)
        assert (error.returncode, error.cmd) == (7, script)
        assert error.host
        message = str(error)
        assert all(part in message for part in ("'line'", "code 7", error.host, repr(script), "line 11.", "line 30."))
        assert "line 10." not in message

    async def test_a_command_ended_by_a_signal(self, flow: WorkflowEngine) -> None:
        error = await self.failure(flow.executable_task(shell=True)(bodies.line)("kill -KILL $$"), ExecutableError)
        assert error.returncode == -9
        assert "SIGKILL" in str(error)

    async def test_a_command_that_does_not_exist(self, flow: WorkflowEngine) -> None:
        error = await self.failure(flow.executable_task(bodies.words)("no-such-command"), CommandNotFoundError)
        assert "no-such-command" in str(error)

    async def test_the_next_one_runs_after_failures(self, flow: WorkflowEngine) -> None:
        run = flow.executable_task(bodies.words)
        for _ in range(2 * self.can.workers):
            await self.failure(run("false"), ExecutableError)
        assert await self.ended(run("echo", "fine")) == "fine\n"
