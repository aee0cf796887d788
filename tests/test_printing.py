"""What tasks print comes out in whole lines, whoever prints at the same time."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.scripts import environment

_PRINTS = """
import asyncio
from asyncflow import WorkflowEngine

async def main():
    async with WorkflowEngine.create(backend="processes") as flow:
        @flow.function_task
        def say(number):
            print("task", number)
        await asyncio.gather(*map(say, range(3)))

asyncio.run(main())
"""


def test_a_line_of_a_worker_process_is_written_in_one_piece() -> None:
    reader, writer = os.pipe2(os.O_DIRECT)  # what is written in one piece is read in one
    variables = {**environment(), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run([sys.executable, "-c", _PRINTS], stdout=writer, env=variables, timeout=100, check=True)
    os.close(writer)
    pieces = []
    while piece := os.read(reader, 4096):
        pieces.append(piece)
    os.close(reader)
    assert done.returncode == 0
    assert sorted(pieces) == [b"task %d\n" % number for number in range(3)]
