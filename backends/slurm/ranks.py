"""Three programs of four MPI ranks, and a function that reads what they print.

In an allocation the ranks may be on several nodes: `sbatch mpi.sbatch ranks.py`. On a laptop `mpirun` starts them:
`python ranks.py`. It needs mpi4py.
"""

import asyncio
import sys

from asyncflow import WorkflowEngine

#: Stands for a program of yours.
PROGRAM = """
import os, sys
from mpi4py import MPI

world = MPI.COMM_WORLD
nodes = world.gather(os.environ.get("SLURMD_NODENAME", "here"))
total = world.reduce(world.rank * int(sys.argv[1]))
if world.rank == 0:
    print(total, *sorted(set(nodes)))
"""


async def main() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task(task_description={"ranks": 4, "cores_per_rank": 1})
        def simulate(factor: int) -> list[str]:
            return [sys.executable, "-c", PROGRAM, str(factor)]

        @flow.function_task
        def read(*outputs: str) -> tuple[list[int], list[str]]:
            lines = [output.split() for output in outputs]
            return [int(total) for total, *_ in lines], sorted({node for _, *nodes in lines for node in nodes})

        totals, nodes = await read(*[simulate(factor) for factor in range(1, 4)])
        print("totals", *totals)
        print("nodes", *nodes)


if __name__ == "__main__":
    asyncio.run(main())
