"""`asyncflow doctor`, and what all commands share: versions, help, a missing extra."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, version
from pathlib import Path
from typing import Any

import pytest

from asyncflow import cli
from asyncflow.backends import machine, registry
from asyncflow.cli import doctor, probes
from asyncflow.cli.commands import invoke
from asyncflow.cli.filesystem import file_system
from asyncflow.errors import BackendNotInstalledError
from tests.support.command_line import command_line
from tests.support.scripts import run_script
from tests.support.slurm import SlurmCluster, needs_slurm


def page(capsys: pytest.CaptureFixture[str]) -> str:
    assert invoke(["doctor"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def content(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert invoke(["doctor", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
def test_the_command_reports_on_this_machine(arguments: list[str]) -> None:
    run = command_line(*arguments)
    assert (run.returncode, run.stderr) == (0, "")
    assert sys.executable in run.stdout
    assert "could not be read" not in run.stdout


def test_the_page_and_json_hold_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    found = content(capsys)
    text = page(capsys)
    assert found["python"]["executable"] in text
    assert found["asyncflow"] == version("asyncflow-hpc")
    assert f"{found['cores']['used']} used by a local backend" in text
    assert f"{found['memory']['used']:,} MB given out" in text
    assert found["directory"]["folder"] == str(Path.cwd().resolve())
    assert found["directory"]["advice"] in text
    assert {"threads", "processes", "noop"} <= {backend["name"] for backend in found["backends"]}
    assert all(f"\n           {backend['name']}" in text for backend in found["backends"])


def test_each_limit_of_the_cores_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(machine, "cgroup_cores", lambda: 12)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    assert content(capsys)["cores"] == {"machine": 64, "affinity": 16, "cgroup": 12, "slurm": 8, "used": 8}
    assert "8 used by a local backend: the least of machine 64, affinity 16, cgroup 12, slurm 8" in page(capsys)


def test_each_limit_of_the_memory_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "physical_memory", lambda: 8000)
    monkeypatch.setattr(machine, "cgroup_memory", lambda: None)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1000")  # mebibytes
    assert content(capsys)["memory"] == {"machine": 8000, "cgroup": None, "slurm": 1048, "used": 1048}
    assert "the least of machine 8,000 MB, cgroup no limit, slurm 1,048 MB" in page(capsys)


def test_a_probe_that_fails_says_so_and_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise PermissionError("not for you")

    for name in doctor.PROBES:
        monkeypatch.setitem(doctor.PROBES, name, fail)
    assert page(capsys).splitlines() == [
        f"{name:<10} could not be read: PermissionError: not for you" for name in doctor.PROBES
    ]
    assert content(capsys)["memory"] == {"problem": "PermissionError: not for you"}


def test_the_allocation_is_read_from_the_environment() -> None:
    assert probes.allocation({}) is None
    end = int(time.time()) + 3600
    found = probes.allocation(
        {
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_JOB_PARTITION": "short",
            "SLURM_JOB_END_TIME": str(end),
        }
    )
    assert found is not None
    assert (found.job, found.nodes, found.node_list, found.partition, found.ends_at) == (
        ("4711", 2, "n[1-2]", "short", end)
    )
    assert found.seconds_left is not None
    assert 3500 < found.seconds_left <= 3600


def test_the_allocation_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "slurm      no allocation\nmpi" in page(capsys)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert "job 4711 on ? nodes (?), partition ?" in page(capsys)
    assert "SLURM_JOB_END_TIME is not set, and scontrol does not tell" in page(capsys)
    assert "sbatch not on PATH, srun not on PATH" in page(capsys)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000000")
    assert "ends 2023-11-1" in page(capsys)
    assert " min ago" in page(capsys)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert "job 4711 on 1 node (?)" in page(capsys)


@needs_slurm
def test_a_job_of_slurm_is_told_as_it_is(slurm: SlurmCluster) -> None:
    command = f"exec {sys.executable} -m asyncflow doctor --json"
    job = slurm.sbatch(command, "--nodes=2", "--cpus-per-task=2", "--mem=1000", "--gpus-per-node=1", "--time=10")
    assert slurm.wait(job) == ("COMPLETED", 0)
    found = json.loads(slurm.output(job))
    assert (found["cores"]["slurm"], found["memory"]["slurm"], len(found["gpus"]["ids"])) == (2, 1048, 1)
    told = found["slurm"]["allocation"]
    assert (told["job"], told["nodes"], told["partition"]) == (str(job), 2, "main")
    assert told["ends_at"] == int(slurm.show(job)["StartTime"]) + 600
    assert all(Path(found["slurm"][program]).name == program for program in ("sbatch", "srun"))


def test_gpus_and_the_launcher_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    monkeypatch.setenv("PATH", "/nowhere")
    assert "gpus       0, 3 (by CUDA_VISIBLE_DEVICES)" in page(capsys)
    assert "mpi        none on PATH: tasks with ranks > 1 need an MPI" in page(capsys)


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /tmp rw,nosuid shared:5 - tmpfs tmpfs rw
41 22 0:40 / /home rw shared:9 - nfs4 server:/home rw,vers=4.2
42 22 0:41 / /scratch rw shared:10 master:3 - lustre 10.0.0.1@o2ib:/lfs rw
43 22 0:42 / /big\\040data rw - gpfs fs1 rw
44 22 0:43 / /bee rw - beegfs beegfs_nodev rw
45 22 0:44 / /over rw - ext4 /dev/sdb1 rw
46 45 0:45 / /over rw - overlay overlay rw
"""


@pytest.mark.parametrize(
    "folder,mount,name,advice",
    [
        ("/srv", "/", "ext4", "of this node only"),
        ("/tmp/x", "/tmp", "tmpfs", "in memory"),
        ("/home/me/work", "/home", "NFS", "locks are unreliable"),
        ("/homework", "/", "ext4", "of this node only"),
        ("/scratch", "/scratch", "Lustre", "many small files are slow"),
        ("/big data/run", "/big data", "GPFS", "many small files are slow"),
        ("/bee/1", "/bee", "BeeGFS", "many small files are slow"),
        ("/over/1", "/over", "overlay", "gone with the container"),
    ],
)
def test_the_file_system_of_a_folder_is_found(folder: str, mount: str, name: str, advice: str) -> None:
    found = file_system(Path(folder), MOUNTS)
    assert (found.folder, found.mount, found.name) == (folder, mount, name)
    assert advice in found.advice


def test_a_folder_on_no_mount_is_an_error() -> None:
    with pytest.raises(ValueError, match="no mount holds /srv"):
        file_system(Path("/srv"), "30 22 0:25 / /tmp rw - tmpfs tmpfs rw\n")


class _Missing:
    def load(self) -> None:
        raise BackendNotInstalledError("dask", "dask")


class _Broken:
    def load(self) -> None:
        raise RuntimeError("boom")


class _Unimportable:
    def load(self) -> None:
        raise ModuleNotFoundError("No module named 'radical'")


def test_the_table_of_backends_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {backend.name: backend for backend in probes.backends()}
    for name in ("threads", "processes", "noop"):
        assert (found[name].installed, found[name].usable, found[name].advice) == (True, True, "")

    registered: dict[str, Any] = {
        "dask": _Missing(),
        "radical": _Unimportable(),
        "broken": _Broken(),
        "fine": EntryPoint("fine", "asyncflow.backends.noop:NoopBackend", registry.GROUP),
    }
    monkeypatch.setattr(registry, "_registered", lambda: registered)
    monkeypatch.setattr(registry, "_OWN", {})
    monkeypatch.setattr(probes, "_EXTRAS", {"dask": "no_such_package", "radical": "no_such_package"})
    found = {backend.name: backend for backend in probes.backends()}
    assert found["fine"].usable
    assert found["broken"] == probes.BackendFinding("broken", True, False, "cannot be loaded: RuntimeError: boom")
    for name in ("dask", "radical"):
        advice = f"Backend {name!r} is not installed; install it with: pip install 'asyncflow-hpc[{name}]'"
        assert found[name] == probes.BackendFinding(name, False, False, advice)
    # Installed, and broken: to install it once more would not help.
    monkeypatch.setattr(probes, "_EXTRAS", {"radical": "click"})
    found = {backend.name: backend for backend in probes.backends()}
    assert found["radical"].installed
    assert found["radical"].advice == "cannot be loaded: ModuleNotFoundError: No module named 'radical'"


def test_a_backend_that_this_version_lacks_is_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", dict)
    monkeypatch.setattr(registry, "_OWN", {"noop": "asyncflow.backends.noop:NoopBackend"})
    found = {backend.name: backend for backend in probes.backends()}
    assert list(found) == ["noop", "dask", "radical"]
    assert not found["dask"].usable
    assert found["dask"].advice == "this version of asyncflow has no such backend"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_one_line_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None if name == missing else ModuleSpec(name, None)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert cli.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "asyncflow: the command line is not installed; pip install 'asyncflow-hpc[cli]'\n"


def test_the_version_is_told() -> None:
    run = command_line("--version")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"asyncflow {version('asyncflow-hpc')}\n", "")


def test_no_command_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([]) == 0
    text = capsys.readouterr().out
    for command in ("run", "doctor", "replay"):
        assert f"\n  {command} " in text


def test_a_mistyped_command_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["docter"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("asyncflow: No such command 'docter'.")
    assert complaint.count("\n") == 1


def test_only_a_command_that_draws_imports_what_draws() -> None:
    program = (
        "import sys; from asyncflow.cli.commands import invoke; invoke(['doctor', '--json']); "
        "print([name for name in ('rich', 'json.tool', 'asyncflow.cli.replay') if name in sys.modules])"
    )
    assert run_script(program).stdout.endswith("\n[]\n")
    assert run_script("import sys, asyncflow; print('click' in sys.modules)").stdout == "False\n"
