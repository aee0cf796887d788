"""The samples beside the library hold: sites' settings are ones that Dask knows, job scripts run on a real SLURM."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.config
import dask.utils
import pytest

from asyncflow.backends.dask.jobs import load
from tests.support.scripts import needs_mpi
from tests.support.slurm import SlurmCluster, needs_slurm

BACKENDS = Path(__file__).parents[1] / "backends"

# --- settings of Dask's ----------------------------------------------------------------------------------------------


def leaves(settings: Any, above: str = "") -> Iterator[str]:
    """The names of all settings, with dots."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def known() -> set[str]:
    """All that Dask and dask-jobqueue have a default for."""
    return set(leaves(dask.config.merge(*dask.config.defaults)))


@pytest.fixture
def sampled() -> Iterator[dict[str, Any]]:
    """The samples as Dask reads them, in force."""
    load()  # brings defaults of its own
    settings = dask.config.collect(paths=[str(BACKENDS / "dask")], env={})
    with dask.config.set(dask.config.merge(dask.config.config, settings)):
        yield settings


def test_every_setting_of_the_samples_is_one_that_dask_knows(sampled: dict[str, Any]) -> None:
    names = set(leaves(sampled))
    assert {"temporary-directory", "distributed.scheduler.worker-ttl", "jobqueue.slurm.interface"} <= names
    assert names - known() == set()


def test_durations_of_the_samples_are_ones(sampled: dict[str, Any]) -> None:
    for name in ("scheduler.worker-ttl", "comm.timeouts.connect", "comm.timeouts.tcp", "adaptive.interval"):
        assert dask.utils.parse_timedelta(dask.config.get(f"distributed.{name}")) > 0


def test_every_setting_of_the_samples_is_explained() -> None:
    for file in sorted((BACKENDS / "dask").glob("*.yaml")):
        explained = False
        for line in file.read_text().splitlines():
            assert explained or not re.match(r" *[\w-]+: \S", line), f"{file.name}: {line}"
            explained = line.strip().startswith("#") or (explained and bool(re.match(r" *[\w-]+: \S", line)))


def test_job_scripts_are_made_with_the_samples(sampled: dict[str, Any], tmp_path: Path) -> None:
    make: Any = load().job_cls
    job = make("tcp://10.0.0.1:1", "one", cores=2, processes=1, memory="1GB", interface="lo", config_name="slurm")
    script = job.job_script()
    for line in ("#SBATCH -p normal", "#SBATCH -A my-project", "#SBATCH -o dask-logs/", "--local-directory $TMPDIR"):
        assert line in script
    assert (tmp_path / "dask-logs").is_dir()


# --- job scripts -----------------------------------------------------------------------------------------------------

#: Small enough for the cluster of the tests.
_SMALL = ["--nodes=2", "--cpus-per-task=4", "--mem=1G", "--time=10"]

#: A script as a user's is, with an option of its own.
_SCRIPT = """
import asyncio, sys
from asyncflow import WorkflowEngine

async def main():
    async with WorkflowEngine.create() as flow:
        @flow.function_task
        def square(number):
            return number * number

        @flow.executable_task
        def say(*squares):
            return ["sh", "-c", "echo job $SLURM_JOB_ID step $SLURM_STEP_ID: $0", str(sum(squares))]

        print(await say(*map(square, range(int(sys.argv[2])))), end="")

asyncio.run(main())
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the virtual environment that the samples name, which is this one."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    for name, command in {"asyncflow": "-m asyncflow", "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
        (programs / name).chmod(0o755)
    return tmp_path


def submitted(slurm: SlurmCluster, home: Path, sample: str, *arguments: str) -> int:
    """As a user submits it, but for its size."""
    script = str(BACKENDS / "slurm" / sample)
    exported = f"--export=ALL,HOME={home}"
    return int(slurm.run("sbatch", "--parsable", *_SMALL, exported, script, *arguments))


def ended_well(slurm: SlurmCluster, job: int) -> str:
    """What it printed."""
    end = slurm.wait(job, 100.0)
    output = slurm.output(job)
    assert end == ("COMPLETED", 0), output
    return output


@needs_slurm
@needs_mpi
def test_job_scripts_run(slurm: SlurmCluster, home: Path) -> None:
    (home / "script.py").write_text(_SCRIPT)
    # Its own is the default.
    (home / "ranks.py").write_text((BACKENDS / "slurm" / "ranks.py").read_text())
    dask_job = submitted(slurm, home, "dask.sbatch", "script.py", "--", "--numbers", "10")
    mpi_job = submitted(slurm, home, "mpi.sbatch")  # at the same time
    assert re.fullmatch(rf"job {dask_job} step \d+: 285\n", ended_well(slurm, dask_job))
    totals, nodes = ended_well(slurm, mpi_job).splitlines()
    assert totals == "totals 6 12 18"
    assert set(nodes.split()[1:]) <= set(slurm.cluster.nodes)


@needs_slurm
def test_jobs_from_a_login_node_run(slurm: SlurmCluster, home: Path) -> None:
    script, shared = BACKENDS / "slurm" / "jobs_from_login.py", f"DASK_JOBQUEUE__SLURM__SHARED_TEMP_DIRECTORY={home}"
    options = ["--jobs", "1", "--cores", "2", "--memory", "1GB", "--walltime", "00:10:00", "--interface", "lo"]
    printed = slurm.run("env", f"HOME={home}", shared, sys.executable, str(script), *options)
    assert re.fullmatch(r"total 328350 by jobs \d+\n", printed)


def test_every_sample_is_told_of() -> None:
    for folder in ("dask", "radical", "slurm"):
        told = (BACKENDS / folder / "README.md").read_text()
        files = {path.name for path in (BACKENDS / folder).iterdir() if path.is_file()} - {"README.md"}
        assert [name for name in sorted(files) if f"`{name}`" not in told] == []
