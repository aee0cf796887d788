"""Command line programs as tasks: as a string, as a list of words, as a shell script, and under MPI.

What to look at: the function of an executable task makes the command, when the values of its dependencies are there;
the task's result is what the command wrote to stdout. A string is split into words as a shell would, but no shell runs
it, so nothing in a file name can be taken for a command; `shell=True` asks for one. `ranks` runs the command under
`mpirun`, and the task holds that many cores.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from asyncflow import TaskDescription, WorkflowEngine
from asyncflow.backends import ThreadBackend


async def main(folder: Path) -> None:
    # Two workers stand for two cores, which two ranks hold.
    async with WorkflowEngine.create(backend=ThreadBackend(workers=2)) as flow:

        @flow.function_task
        def write(name: str) -> Path:
            path = folder / name
            path.write_text("gamma\nalpha\nbeta\nalpha\n")
            return path

        @flow.executable_task
        async def line_count(path: Path) -> str:
            return f"wc -l '{path}'"

        @flow.executable_task
        def ordered(path: Path) -> list[str | Path]:
            return ["sort", "-u", path]

        @flow.executable_task(shell=True, env={"LC_ALL": "C"})
        def most_frequent(path: Path) -> str:
            return f"sort '{path}' | uniq -c | sort -rn | head -n 1"

        @flow.executable_task(task_description=TaskDescription(ranks=2))  # or the dict {"ranks": 2}
        def parallel() -> list[str]:
            return ["sh", "-c", "echo rank $OMPI_COMM_WORLD_RANK"]

        words = write("some words.txt")  # the blank in it needs no care in a list
        lines = line_count(words)
        print("lines:", (await lines).split()[0])
        print("in order:", " ".join((await ordered(words)).split()))
        print("most frequent:", " ".join((await most_frequent(words)).split()))

        if shutil.which("mpirun"):
            print("under mpirun:", ", ".join(sorted((await parallel()).splitlines())))
        else:
            print("under mpirun: skipped, there is no mpirun here (on Debian: apt-get install openmpi-bin)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(Path(scratch)))
