"""The Dask backend on a real SLURM: within an allocation, and on jobs of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed.utils import _offload_executor

from asyncflow import BackendLostError, WorkflowEngine
from asyncflow.backends.dask import DaskBackend
from asyncflow.backends.dask.jobs import load
from asyncflow.testing.leaks import nothing_left
from asyncflow.testing.meeting import Meeting, attend
from asyncflow.testing.plugin import MakeEngine
from tests.support.slurm import SlurmCluster, needs_slurm

pytestmark = needs_slurm

#: Tasks of five workflows, which all run on whatever the script is started on.
_WORKFLOWS = """
import asyncio
import json
import os
import time
from pathlib import Path

from asyncflow import WorkflowEngine


async def workflow(flow, name):
    @flow.function_task
    def simulate(seed):
        node = os.environ.get("SLURMD_NODENAME")
        if node:  # within an allocation of two, wait until both take part
            Path(f"seen-{node}").touch()
            while len(list(Path().glob("seen-*"))) < 2:
                time.sleep(0.05)
        return seed * seed, node

    @flow.function_task
    def total(*results):
        return sum(value for value, _ in results), sorted({node for _, node in results if node})

    async with flow.workflow_scope(name):
        future = total(*[simulate(seed) for seed in range(10)])
        return future.workflow_id, await future


async def main():
    async with WorkflowEngine.create() as flow:
        print(json.dumps(await asyncio.gather(*[workflow(flow, f"wf-{number}") for number in range(5)])))


asyncio.run(main())
"""

#: Eight executables with a GPU each while functions run everywhere, then one with ranks on two nodes.
_STEPS = """
import asyncio
import json
import sys

from asyncflow import WorkflowEngine

folder, = sys.argv[1:]
MEET = '''
touch "{0}/here-$1"
until [ "$(ls {0}/here-* | wc -l)" = 8 ]; do sleep 0.05; done
echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
'''.format(folder)
RANKS = '''
import os
from mpi4py import MPI
found = MPI.COMM_WORLD.gather(os.environ["SLURMD_NODENAME"])
if found:
    print(*sorted(found))
'''


async def main():
    async with WorkflowEngine.create("dask") as flow:
        @flow.executable_task(task_description={"gpus_per_rank": 1})
        def meet(number):
            return ["sh", "-c", MEET, "meet", str(number)]

        @flow.executable_task(task_description={"ranks": 4, "cores_per_rank": 2})
        def ranks():
            return [sys.executable, "-c", RANKS]

        @flow.function_task
        def make():
            return "x" * 1_000_000

        @flow.executable_task
        def use(made):
            return ["echo", str(len(made))]

        await make()  # the workers are up
        told = await asyncio.gather(*[meet(number) for number in range(8)])
        print(json.dumps([sorted(told), await ranks(), await use(make())]))


asyncio.run(main())
"""


def command(*words: object) -> str:
    """A line of a job script."""
    return " ".join(["exec", sys.executable, *map(str, words)])


def result(slurm: SlurmCluster, job: int) -> Any:
    """What the job's script printed as JSON."""
    assert slurm.wait(job, 120.0) == ("COMPLETED", 0)
    return json.loads(slurm.output(job))


async def became(condition: Callable[[], bool]) -> bool:
    return not await nothing_left(lambda: [] if condition() else ["not true"], 60.0)


# --- within an allocation --------------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "script.py"
    file.write_text(_WORKFLOWS)
    return file


def test_workflows_use_all_nodes_of_the_allocation(slurm: SlurmCluster, script: Path) -> None:
    run = command("-m", "asyncflow", "run", "--backend", "dask", script)
    job = slurm.sbatch(run, "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=4")
    found = result(slurm, job)
    assert [name for name, _ in found] == [f"wf-{number}" for number in range(5)]
    assert {value for _, (value, _) in found} == {285}
    assert len({node for _, (_, nodes) in found for node in nodes}) == 2


@pytest.mark.parametrize("backend", ["threads", "processes", "dask"])
def test_the_same_script_runs_outside_of_one(slurm: SlurmCluster, script: Path, backend: str) -> None:
    found = json.loads(slurm.run(sys.executable, "-m", "asyncflow", "run", "--backend", backend, str(script)))
    assert found == [[f"wf-{number}", [285, []]] for number in range(5)]


def test_executables_are_job_steps_beside_the_workers(slurm: SlurmCluster, tmp_path: Path) -> None:
    file = tmp_path / "steps.py"
    file.write_text(_STEPS)
    job = slurm.sbatch(command(file, tmp_path), "--nodes=4", "--ntasks-per-node=1", "--cpus-per-task=4", "--gres=gpu:2")
    told, ranks, used = result(slurm, job)
    assert len(set(told)) == 8, "two had the same GPU of the same node"
    assert len({line.split()[0] for line in told}) == 4
    assert len(ranks.split()) == 4
    assert len(set(ranks.split())) == 2
    assert used == "1000000\n"


# --- on jobs of its own ----------------------------------------------------------------------------------------------

#: Of each job.
_JOB: dict[str, Any] = {"cores": 2, "memory": "1GB", "walltime": "00:10:00", "interface": "lo"}


@pytest.fixture
def on_slurm(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """This process is where jobs are submitted from."""
    _offload_executor.submit(int).result()  # Dask's own thread, which stays once there was something for it
    for name, value in slurm.variables.items():
        monkeypatch.setenv(name, value)
    return slurm


def nodes(flow: WorkflowEngine) -> int:
    backend: Any = flow._backends["dask"].backend
    return len(backend._session.dispatcher.nodes)


async def test_five_workflows_on_a_cluster_of_jobs(on_slurm: SlurmCluster, tmp_path: Path) -> None:
    cluster = load()(
        **{**_JOB, "processes": 1, "log_directory": str(tmp_path), "worker_extra_args": ["--no-dashboard"]},
        scheduler_options={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        asynchronous=True,
    )
    async with cluster:
        cluster.scale(jobs=2)
        async with WorkflowEngine.create(DaskBackend(cluster), work_dir=tmp_path) as flow:
            assert await became(lambda: nodes(flow) == 2)

            async def workflow(name: str) -> list[str]:
                async with flow.workflow_scope(name):
                    return await asyncio.gather(*[flow.function_task(where)() for _ in range(20)])

            found = await asyncio.gather(*[workflow(f"wf-{number}") for number in range(5)])
            assert {len(each) for each in found} == {20}
            assert {job for each in found for job in each} == set(map(str, on_slurm.squeue()))


def where() -> str:
    import os

    return os.environ["SLURM_JOB_ID"]


async def test_what_a_cancelled_job_had_is_done_elsewhere(
    on_slurm: SlurmCluster, make_engine: MakeEngine, tmp_path: Path
) -> None:
    flow = await make_engine(DaskBackend.slurm(2, **_JOB, further={"log_directory": str(tmp_path)}))
    assert await became(lambda: nodes(flow) == 2)
    async with Meeting("127.0.0.1") as meeting:
        futures = [flow.function_task(attend)(meeting.address, str(number)) for number in range(6)]
        await meeting.arrivals(4)
        on_slurm.scancel(min(on_slurm.squeue()))
        assert await became(lambda: nodes(flow) == 1)
        meeting.let_go()
        assert sorted(await asyncio.gather(*futures)) == [str(number) for number in range(6)]


async def test_without_any_job_every_future_ends(
    on_slurm: SlurmCluster, make_engine: MakeEngine, tmp_path: Path
) -> None:
    flow = await make_engine(DaskBackend.slurm(2, **_JOB, patience=1.0, further={"log_directory": str(tmp_path)}))
    async with Meeting("127.0.0.1") as meeting:
        futures = [flow.function_task(attend)(meeting.address, str(number)) for number in range(6)]
        await meeting.arrivals(2)
        on_slurm.scancel(*on_slurm.squeue())
        for future in futures:
            with pytest.raises(BackendLostError, match=r"no worker for 1 s; the last: .* worker SLURMCluster-\d"):
                await future


async def test_jobs_come_and_go_with_the_work(on_slurm: SlurmCluster, make_engine: MakeEngine, tmp_path: Path) -> None:
    flow = await make_engine(DaskBackend.slurm(2, **_JOB, adapt=0, further={"log_directory": str(tmp_path)}))
    async with Meeting("127.0.0.1") as meeting:
        futures = [flow.function_task(attend)(meeting.address, str(number)) for number in range(4)]
        await meeting.arrivals(4)
        assert len(on_slurm.squeue()) == 2
        meeting.let_go()
        await asyncio.gather(*futures)
        assert await became(lambda: not on_slurm.squeue())
    assert len(await flow.function_task(where)()) > 0


async def test_jobs_and_their_scheduler_listen_on_one_address(
    on_slurm: SlurmCluster, make_engine: MakeEngine, tmp_path: Path
) -> None:
    size = {key: value for key, value in _JOB.items() if key != "interface"}
    flow = await make_engine(DaskBackend.slurm(1, **size, further={"log_directory": str(tmp_path)}))
    assert await flow.function_task(listening)() == {"127.0.0.1"}
    assert listening(0) == {"127.0.0.1"}


def listening(levels: int = 1) -> set[str]:
    """Addresses on which this process listens, or the one that many levels above it."""
    process = psutil.Process()
    for _ in range(levels):
        process = process.parent()
    return {each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}
