"""Pilots on a real SLURM: within an allocation of two nodes, and submitted as a job."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncflow.backends.radical.leftovers import processes
from tests.support.scripts import start_script
from tests.support.slurm import SlurmCluster, needs_slurm

pytestmark = [needs_slurm, pytest.mark.timeout(400)]

#: Resource configurations for users, which these tests use as they are but for what a cluster on one host needs.
SAMPLES = Path(__file__).parents[1] / "backends" / "radical" / "resource_cluster.json"

#: Eight ranks on both nodes, functions, one that fails, one that is cancelled; then, if it is to wait, tasks that only
#: end with the pilot.
_PROGRAM = """
import asyncio, json, os, sys, time
from asyncflow import WorkflowEngine
from asyncflow.backends.radical import RadicalPilotBackend

schema, config, root, wait = sys.argv[1:]
RANKS = '''
import os
from mpi4py import MPI
found = MPI.COMM_WORLD.gather((MPI.COMM_WORLD.rank, os.environ["SLURMD_NODENAME"]))
if found:
    print(*(f"{rank}:{node}" for rank, node in found))
'''


def meet(name, other):
    open(f"{root}.{name}", "w").close()
    while not os.path.exists(f"{root}.{other}"):
        time.sleep(0.05)
    return os.environ["SLURMD_NODENAME"]


async def main():
    backend = RadicalPilotBackend(
        "cluster.slurm", nodes=2, runtime=10, access_schema=schema, config=config, sandbox=root
    )
    async with WorkflowEngine.create(backend) as flow:
        square = flow.function_task(lambda number: number * number)
        whole = flow.function_task(task_description={"cores_per_rank": 4})(meet)
        ranks = flow.executable_task(task_description={"ranks": 8})(lambda: [sys.executable, "-c", RANKS])
        sleep = flow.executable_task(lambda: ["sleep", "1000"])
        fail = flow.function_task(lambda: 1 / 0)

        cancelled, failed = sleep(), fail()
        squares = await asyncio.gather(*[square(number) for number in range(100)])
        world = ranks()  # needs all cores
        cancelled.cancel()
        report = {
            "ranks": (await world).split(),
            "squares": squares,
            "nodes": await asyncio.gather(whole("first", "second"), whole("second", "first")),
            "error": repr((await asyncio.gather(failed, return_exceptions=True))[0]),
            "cancelled": cancelled.cancelled(),
            "session": os.listdir(root)[0],
        }
        print(json.dumps(report), flush=True)
        if wait == "wait":
            left = [sleep(), flow.function_task(time.sleep)(1000)]
            await asyncio.wait(left)
            print(json.dumps([type(each.exception()).__name__ for each in left]))


asyncio.run(main())
"""


@pytest.fixture
def config(slurm: SlurmCluster, tmp_path: Path) -> Path:
    """The sample, with what ranks on nodes that are one host need in order to meet."""
    lines = SAMPLES.read_text().splitlines()
    sites = json.loads("\n".join(line for line in lines if not line.lstrip().startswith("#")))
    launcher = sites["slurm"]["launch_methods"]["SRUN"]
    launcher["pre_exec_cached"] += [f"export {name}={value}" for name, value in slurm.variables.items()]
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / SAMPLES.name).write_text(json.dumps(sites))
    return folder


def _check(report: dict[str, Any]) -> None:
    assert [rank.split(":")[0] for rank in report["ranks"]] == [str(rank) for rank in range(8)]
    assert len({rank.split(":")[1] for rank in report["ranks"]}) == 2
    assert report["squares"] == [number * number for number in range(100)]
    assert len({*report["nodes"]}) == 2
    assert report["error"] == "ZeroDivisionError('division by zero')"
    assert report["cancelled"] is True


def test_a_pilot_within_an_allocation(slurm: SlurmCluster, config: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(_PROGRAM)
    command = f"exec {sys.executable} program.py interactive {config} {tmp_path / 'root'} end"
    job = slurm.sbatch(command, "--nodes=2", "--ntasks-per-node=4", "--error=errors")
    assert slurm.wait(job, within=200) == ("COMPLETED", 0), Path("errors").read_text()
    report = json.loads(slurm.output(job))
    _check(report)
    assert processes(report["session"]) == []
    assert list((tmp_path / "root").iterdir()) == []


def test_a_pilot_that_is_a_job_until_that_is_killed(
    slurm: SlurmCluster, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm.variables.items():
        monkeypatch.setenv(name, value)
    with start_script(_PROGRAM, "batch", str(config), str(tmp_path / "root"), "wait") as script:
        try:
            assert script.stdout is not None
            report = json.loads(script.stdout.readline())
            _check(report)
            (job,) = slurm.squeue()
            slurm.run("scancel", "--signal=KILL", "--full", str(job))
            assert json.loads(script.stdout.readline()) == ["BackendLostError", "BackendLostError"]
            assert script.wait(100) == 0
        finally:
            script.kill()
    assert processes(report["session"]) == []
    slurm.wait(job)
    assert slurm.squeue() == {}
