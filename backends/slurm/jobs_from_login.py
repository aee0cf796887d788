"""Workers that are SLURM jobs of their own, submitted from here: for a login node.

python jobs_from_login.py --jobs 8 --cores 16 --memory 32GB --walltime 01:00:00 --interface ib0
"""

import argparse
import asyncio
import os

from asyncflow import WorkflowEngine
from asyncflow.backends import DaskBackend


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tasks on workers that are SLURM jobs.")
    parser.add_argument("--jobs", type=int, default=4, help="the most jobs at a time")
    parser.add_argument("--cores", type=int, default=16, help="of each job")
    parser.add_argument("--memory", default="32GB", help="of each job")
    parser.add_argument("--walltime", default="01:00:00", help="of each job")
    parser.add_argument("--interface", help="the network that leads to the compute nodes: ip -br address")
    parser.add_argument("--queue", help="the partition")
    parser.add_argument("--account")
    return parser.parse_args()


def simulate(seed: int) -> tuple[int, str]:
    return seed * seed, os.environ["SLURM_JOB_ID"]


async def main(chosen: argparse.Namespace) -> None:
    backend = DaskBackend.slurm(
        **vars(chosen),
        adapt=0,  # no job while there is nothing to do, and up to --jobs of them when there is
        security=True,  # others on the login node see the ports: admit only what has the certificate
        prologue=['. "$HOME/venv/bin/activate"'],  # what the job's shell runs first
    )
    async with WorkflowEngine.create(backend) as flow:
        results = await asyncio.gather(*map(flow.function_task(simulate), range(100)))
    print("total", sum(value for value, _ in results), "by jobs", *sorted({job for _, job in results}))


if __name__ == "__main__":
    asyncio.run(main(options()))
