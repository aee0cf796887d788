"""A real SLURM cluster of four nodes on this machine, one for all tests, and what they do with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from backends.slurm.cluster import Cluster, obstacle
from tests.support.scripts import environment

_OBSTACLE = obstacle()

needs_slurm = pytest.mark.skipif(_OBSTACLE is not None, reason=f"no SLURM here: {_OBSTACLE}")

#: What `scontrol` says of a job that has not ended.
_UNFINISHED = {"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "STAGE_OUT"}


class JobEnd(NamedTuple):
    state: str
    #: Of the batch script; that of a signal is negative.
    exit_code: int


class SlurmCluster:
    """SLURM's programs, run against the cluster. Whatever goes wrong raises AssertionError; `report` tells why."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        #: To be added to the environment of whatever is to use the cluster: `SLURM_CONF`, and settings of Open MPI.
        self.variables = cluster.variables
        #: The whole environment of the programs run here; `sbatch` hands it on to jobs.
        self.environment = {**environment(), **cluster.variables}
        self._jobs: list[int] = []

    def run(self, *command: str, stdin: str = "", within: float = 60.0) -> str:
        """What a program prints; it must end well, and in time."""
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, env=self.environment, timeout=within
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{command} did not end within {within:g} s") from error
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stderr}"
        return done.stdout

    def sbatch(self, script: str, *options: str) -> int:
        """Submit a job; without a `#!` the shell runs it. Its output goes to the working directory: `output`."""
        text = script if script.startswith("#!") else f"#!/bin/sh\n{script}"
        job = int(self.run("sbatch", "--parsable", *options, stdin=text))
        self._jobs.append(job)
        return job

    def show(self, job: int) -> dict[str, str]:
        """All that `scontrol show job` knows, times as seconds since 1970; for five minutes after the end too."""
        line = self.run("env", "SLURM_TIME_FORMAT=%s", "scontrol", "show", "job", "-o", str(job))
        return {name: value for name, _, value in (word.partition("=") for word in line.split())}

    def wait(self, job: int, within: float = 60.0) -> JobEnd:
        """Until the job has ended and its nodes are free."""
        shown = self._wait_while(_UNFINISHED, job, within)
        code, _, number = shown["ExitCode"].partition(":")
        return JobEnd(shown["JobState"], -int(number) or int(code))

    def wait_until_running(self, job: int, within: float = 60.0) -> None:
        state = self._wait_while({"PENDING", "CONFIGURING"}, job, within)["JobState"]
        assert state == "RUNNING", f"job {job}: {state}"

    def _wait_while(self, states: set[str], job: int, within: float) -> dict[str, str]:
        deadline = time.monotonic() + within
        while (shown := self.show(job))["JobState"] in states:
            assert time.monotonic() < deadline, f"job {job}: {shown['JobState']} after {within:g} s"
            time.sleep(0.1)  # SLURM announces nothing to others than the job
        return shown

    def output(self, job: int) -> str:
        """What the job has printed so far."""
        path = Path(self.show(job)["StdOut"])
        return path.read_text() if path.exists() else ""

    def squeue(self) -> dict[int, str]:
        """The states of all jobs that have not ended."""
        lines = self.run("squeue", "--noheader", "--format=%A %T").splitlines()
        return {int(job): state for job, state in map(str.split, lines)}

    def scancel(self, *jobs: int, options: tuple[str, ...] = ()) -> None:
        """Returns before the jobs have ended."""
        self.run("scancel", *options, *map(str, jobs))

    def clear(self, within: float = 30.0) -> None:
        """Cancel all jobs, and wait until none is left."""
        deadline = time.monotonic() + within
        while left := self.squeue():
            assert time.monotonic() < deadline, f"jobs outlive scancel: {left}"
            # Whose exit code tells of jobs that have ended meanwhile.
            subprocess.run(["scancel", *map(str, left)], capture_output=True, env=self.environment, timeout=30)
            time.sleep(0.1)  # as above
        self._jobs.clear()

    def report(self) -> str:
        """How the jobs since the last `clear` went, and what SLURM's daemons have written last."""
        return "\n".join([*(self._story(job) for job in self._jobs), self.cluster.log_tails()])

    def _story(self, job: int) -> str:
        command = ["scontrol", "show", "job", "-o", str(job)]
        shown = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=30).stdout
        path = Path(shown.partition(" StdOut=")[2].partition(" ")[0])
        return f"== {shown.strip()}\n{path.read_text(errors='replace')[-4000:] if path.is_file() else ''}"


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """The cluster, whatever runs on it."""
    # Not in pytest's own folder, where only root may look: SLURM's nodes are for all users, and its paths are short.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder)
    try:
        cluster.start(kill_wait=3)
        yield SlurmCluster(cluster)
    finally:
        try:
            cluster.stop()
        finally:
            left = _end_all_of(cluster)
        shutil.rmtree(folder)
    assert not left, f"processes that the cluster left behind: {left}"


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """The cluster without a job on it; where the test fails, what became of its jobs is shown."""
    yield slurm_cluster
    print(slurm_cluster.report())
    slurm_cluster.clear()


def _end_all_of(cluster: Cluster) -> dict[int, str]:
    """Kill whatever runs in the cluster's folder or was told of the cluster when it was started; what that was."""
    left = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = f"SLURM_CONF={cluster.configuration}\0".encode() in (process / "environ").read_bytes()
            if told or cluster.folder in (process / "cwd").readlink().parents:
                left[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:  # gone meanwhile, or dead and not yet waited for
            continue
    return left
