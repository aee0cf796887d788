"""Programs of their own that use the library, for what a test cannot do to its own process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

import asyncflow

#: Where the library is found, and where `tests` is.
_ROOTS = [Path(asyncflow.__file__).parents[1], Path(__file__).parents[2]]

needs_mpi = pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed")


def environment() -> dict[str, str]:
    """This process's, in which the library is found wherever the program stands."""
    path = [*map(str, _ROOTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": "error"}


def run_script(program: str | Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; source text, or the path of a file. Fails nowhere: look at `returncode`."""
    return subprocess.run(
        [*_command(program), *arguments], capture_output=True, text=True, env=environment(), timeout=100
    )


def start_script(program: str, *arguments: str, stderr: IO[bytes] | int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Start a program with its stdout as a pipe."""
    return subprocess.Popen([*_command(program), *arguments], stdout=subprocess.PIPE, stderr=stderr, env=environment())


def _command(program: str | Path) -> list[str]:
    return [sys.executable, str(program)] if isinstance(program, Path) else [sys.executable, "-c", program]
