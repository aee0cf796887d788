"""The SLURM that other tests stand on is a real one, and what they take from it holds."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.slurm import cluster as module
from backends.slurm.cluster import Cluster, ClusterError, obstacle
from tests.support.slurm import SlurmCluster, needs_slurm

#: Where each rank is, once all of them have heard of each other; printed by one, as lines of many may get mixed.
_MPI_PROGRAM = """
import os
from mpi4py import MPI
world = MPI.COMM_WORLD
found = world.gather(f"rank {world.rank} {os.environ['SLURMD_NODENAME']}")
if found:
    print(*found, sep="\\n")
"""

#: Worker-like: on all nodes for as long as the job lasts, beside whatever else the job starts there.
_HOLD_ALL_NODES = """
srun --overlap --mem=0 -N4 -n4 -c4 --gres=none sh -c 'touch held-$SLURMD_NODENAME; exec sleep 1000' &
until [ "$(ls held-* | wc -l)" = 4 ]; do sleep 0.05; done 2>/dev/null
"""

#: Says where it is and which GPU it has, once eight others are there: all run at once, or none ends.
_MEET = """
touch "here-$1"
until [ "$(ls here-* | wc -l)" = 8 ]; do sleep 0.05; done
echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
"""


def _lines(output: str) -> list[str]:
    return sorted(output.splitlines())


# --- jobs ------------------------------------------------------------------------------------------------------------


@needs_slurm
def test_a_job_runs_on_two_nodes(slurm: SlurmCluster) -> None:
    job = slurm.sbatch("srun sh -c 'echo $SLURMD_NODENAME'", "--nodes=2", "--ntasks-per-node=1")
    assert slurm.wait(job) == ("COMPLETED", 0)
    names = _lines(slurm.output(job))
    assert len(set(names)) == 2
    assert set(names) <= set(slurm.cluster.nodes)


@needs_slurm
def test_hello_sbatch_says_hello(slurm: SlurmCluster) -> None:
    job = slurm.sbatch((Path(module.__file__).parent / "hello.sbatch").read_text())
    assert slurm.wait(job) == ("COMPLETED", 0)
    assert _lines(slurm.output(job)) == ["hello from n1", "hello from n2"]


@needs_slurm
def test_the_exit_code_of_a_script_is_that_of_its_job(slurm: SlurmCluster) -> None:
    assert slurm.wait(slurm.sbatch("exit 75")) == ("FAILED", 75)
    assert slurm.wait(slurm.sbatch("kill -KILL $$")) == ("FAILED", -signal.SIGKILL)


@needs_slurm
def test_a_job_can_be_cancelled(slurm: SlurmCluster) -> None:
    job = slurm.sbatch("sleep 1000")
    slurm.wait_until_running(job)
    assert slurm.squeue() == {job: "RUNNING"}
    slurm.scancel(job)
    assert slurm.wait(job).state == "CANCELLED"
    assert slurm.squeue() == {}


# --- steps of a job --------------------------------------------------------------------------------------------------


@needs_slurm
@pytest.mark.parametrize("beside", ["", _HOLD_ALL_NODES], ids=["alone", "beside workers"])
def test_eight_concurrent_steps_have_a_gpu_each(slurm: SlurmCluster, beside: str) -> None:
    Path("meet.sh").write_text(_MEET)
    script = f"""#!/bin/bash
        {beside}
        for i in 1 2 3 4 5 6 7 8; do
            srun --exact -N1 -n1 -c1 --mem=100 --gres=gpu:1 sh meet.sh $i & steps="$steps $!"
        done
        wait $steps
    """
    job = slurm.sbatch(script, "--nodes=4", "--ntasks-per-node=4", "--gres=gpu:2", "--mem=4096", "--error=errors")
    assert slurm.wait(job).exit_code == 0
    assert _lines(slurm.output(job)) == [f"n{node} {gpu}" for node in (1, 2, 3, 4) for gpu in (0, 1)]


@needs_slurm
@pytest.mark.parametrize("beside", ["", _HOLD_ALL_NODES], ids=["alone", "beside workers"])
@pytest.mark.parametrize(
    "launcher",
    ["srun --exact --mpi=pmix -N2 -n4 -c2 --mem=1000 --gres=none", "mpirun -n 4 --map-by ppr:2:node -H n1:2,n2:2"],
    ids=["srun", "mpirun"],
)
def test_an_mpi_program_spans_nodes(slurm: SlurmCluster, launcher: str, beside: str) -> None:
    Path("program.py").write_text(_MPI_PROGRAM)
    script = f"""#!/bin/bash
        {beside}
        {launcher} {sys.executable} program.py
    """
    job = slurm.sbatch(script, "--nodes=4", "--ntasks-per-node=4", "--error=errors")
    assert slurm.wait(job) == ("COMPLETED", 0), Path("errors").read_text()
    assert _lines(slurm.output(job)) == ["rank 0 n1", "rank 1 n1", "rank 2 n2", "rank 3 n2"]


# --- the end of a job's time -----------------------------------------------------------------------------------------


@needs_slurm
def test_a_job_can_learn_when_its_time_ends(slurm: SlurmCluster) -> None:
    script = """
        SLURM_TIME_FORMAT=%s scontrol show job -o $SLURM_JOB_ID | tr ' ' '\\n' | sed -n 's/^EndTime=//p'
        echo "${SLURM_JOB_END_TIME:-not told}"
    """
    job = slurm.sbatch(script, "--time=2")
    assert slurm.wait(job) == ("COMPLETED", 0)
    asked, told = slurm.output(job).splitlines()
    assert int(asked) == int(slurm.show(job)["StartTime"]) + 120
    assert told in (asked, "not told")  # the variable came with SLURM 23.02


@needs_slurm
def test_a_job_gets_sigterm_when_its_time_is_over(slurm: SlurmCluster) -> None:
    script = "trap 'echo TERM; exit 75' TERM; while :; do sleep 0.1; done"
    job = slurm.sbatch(script, "--time=10")
    slurm.wait_until_running(job)
    slurm.run("scontrol", "update", f"JobId={job}", "EndTime=now")  # a limit is one minute at least
    # SLURM looks at the clock twice a minute.
    assert slurm.wait(job, within=60) == ("TIMEOUT", 75)
    assert "TERM" in slurm.output(job).splitlines()


# --- the cluster itself ----------------------------------------------------------------------------------------------


def _command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([module.__file__, *map(str, arguments)], capture_output=True, text=True, timeout=100)


def _pids(folder: Path) -> dict[str, int]:
    return {path.stem: int(path.read_text()) for path in (folder / "run").glob("*.pid")}


@pytest.fixture
def folder() -> Iterator[Path]:
    """For a second cluster, with a path short enough for SLURM's sockets."""
    path = Path(tempfile.mkdtemp(prefix="slurm-"))
    yield path
    Cluster(path).stop()
    shutil.rmtree(path)


@needs_slurm
def test_a_second_cluster_runs_beside_the_first(slurm: SlurmCluster, folder: Path) -> None:
    started = _command("start", folder, "--nodes", "1", "--cpus", "2", "--gpus", "0")
    assert started.returncode == 0, started.stderr
    assert f"export SLURM_CONF={folder}/slurm.conf" in started.stdout
    assert _command("env", folder).stdout == started.stdout
    nodes = subprocess.run(["sh", "-c", f'{started.stdout}\nsinfo -h -N -o "%N %c %G"'], capture_output=True, text=True)
    assert nodes.stdout == "n1 2 (null)\n"
    assert len(slurm.run("sinfo", "-h", "-N").splitlines()) == 4


@needs_slurm
def test_start_starts_only_what_does_not_run(folder: Path) -> None:
    cluster = Cluster(folder)
    cluster.start(nodes=1)
    before = _pids(folder)
    cluster.start()
    assert _pids(folder) == before
    _kill(before["n1"])
    cluster.start()
    after = _pids(folder)
    assert after.pop("n1") != before.pop("n1")
    assert after == before


@needs_slurm
def test_stop_ends_all_that_the_cluster_runs(folder: Path) -> None:
    cluster = Cluster(folder)
    cluster.start(nodes=1)
    environment = {**os.environ, **cluster.variables}
    job = ["srun", "sh", "-c", "echo $$; exec sleep 1000"]
    with subprocess.Popen(job, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as srun:
        try:
            assert srun.stdout is not None
            pids = {*_pids(folder).values(), int(srun.stdout.readline())}
            # A daemon that was killed is not in the way of ending the jobs.
            os.kill(_pids(folder)["slurmctld"], signal.SIGKILL)
            cluster.stop()
            srun.wait(timeout=30)
        finally:
            srun.kill()
    assert [pid for pid in pids if _is_alive(pid)] == []
    cluster.stop()


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while _is_alive(pid):
        time.sleep(0.01)  # nobody but its parent hears of its death


def _is_alive(pid: int) -> bool:
    """Dead processes stay in the table until their parent has looked."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@needs_slurm
def test_what_a_cluster_has_stays(folder: Path) -> None:
    Cluster(folder).start(nodes=1)
    with pytest.raises(ClusterError, match="holds a cluster whose gpus stay: take another folder"):
        Cluster(folder).start(gpus=3)


@needs_slurm
def test_a_port_that_is_taken_is_told(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ClusterError, match=r"(?s)slurmctld.* did not start.*slurmctld\.log.*Address already in use"
        ):
            Cluster(folder).start(nodes=1, port=port, within=2)


@needs_slurm
def test_a_folder_that_slurm_cannot_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="SLURM takes paths of up to 67 characters, without blanks"):
        Cluster(tmp_path / ("long" * 20)).start()
    with pytest.raises(ClusterError, match="cpus must be at least 1"):
        Cluster(tmp_path).start(cpus=0)


def _leads(address: str) -> Callable[[str], str]:
    return lambda *_: address


def test_what_stands_in_the_way_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(socket, "gethostname", lambda: "box.example.org")
    monkeypatch.setattr(socket, "gethostbyname", _leads("127.0.1.1"))
    monkeypatch.setattr(shutil, "which", lambda program, **_: f"/usr/sbin/{program}")
    assert obstacle() is None

    monkeypatch.setattr(socket, "gethostbyname", _leads("192.0.2.7"))
    assert "this host's name, box, leads to 192.0.2.7" in str(obstacle())
    assert "put 127.0.0.1 box before other lines" in str(obstacle())

    monkeypatch.setattr(shutil, "which", lambda program, **_: None if program == "slurmd" else program)
    assert obstacle() == "slurmd not installed; on Debian: apt-get install munge slurmctld slurmd slurm-client"

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert str(obstacle()).startswith("only root can start a cluster")
    with pytest.raises(ClusterError, match="only root can start a cluster"):
        Cluster(Path("folder")).start()
