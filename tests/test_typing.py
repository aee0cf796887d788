"""Types: what mypy makes of the decorators, and that it would notice if it made something else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import asyncflow
from tests.support.scripts import run_script

TYPED_CALLS = Path(__file__).parent / "support" / "typed_calls.py"


def mypy(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", f"--cache-dir={cache}", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )


WRONG = """
from typing_extensions import assert_type
from asyncflow import TaskFuture, WorkflowEngine

async def main(flow: WorkflowEngine) -> None:
    @flow.function_task
    async def double(number: int) -> int:
        return 2 * number

    @flow.block
    def no_coroutine() -> int:
        return 1

    assert_type(double(1), TaskFuture[str])
    flow.function_task(retrys=2)
    flow.block(backend="cpu")
    flow.map(len, [[1]])
"""


@pytest.mark.timeout(600)
def test_calls_are_typed_and_wrong_ones_are_noticed(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    cache = tmp_path / "cache"
    run = mypy(str(TYPED_CALLS), cache=cache)
    assert run.returncode == 0, run.stdout + run.stderr
    run = mypy(str(wrong), cache=cache)
    lines = [int(line.split(":")[1]) for line in run.stdout.splitlines() if ": error:" in line]
    source = WRONG.splitlines()
    noticed = {source[number - 1].strip() for number in lines}
    assert noticed == {
        "@flow.block",
        "assert_type(double(1), TaskFuture[str])",
        "flow.function_task(retrys=2)",
        'flow.block(backend="cpu")',
        "flow.map(len, [[1]])",
    }


def test_the_typed_calls_run() -> None:
    run = run_script(TYPED_CALLS)
    assert run.returncode == 0, run.stderr


def test_the_library_says_that_it_is_typed() -> None:
    assert (Path(asyncflow.__file__).parent / "py.typed").exists()
