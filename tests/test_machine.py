"""How much of the machine is ours: affinity, cgroups and SLURM, not the size of the node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncflow.backends import ThreadBackend, machine
from asyncflow.backends.machine import resources_of, usable_cores, usable_gpus, usable_memory
from asyncflow.description import Resources


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eight cores by affinity; no cgroup, no SLURM, no GPU."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_MEMBERSHIP", tmp_path / "membership")
    write(
        tmp_path / "membership", "4:memory:/job_7/step_0\n3:cpu,cpuacct:/job_7\n1:name=systemd:/\n0::/user.slice/job_7"
    )
    for variable in ("SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)


def own_cgroup(root: Path) -> Path:
    """The folder of the fake tree that is this process's own cgroup, in version 2."""
    return root / "user.slice/job_7"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_cores_by_affinity() -> None:
    assert usable_cores() == 8


def test_cores_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cores() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    "text,cores",
    [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 3), ("50000 100000", 1), ("9900000 100000", 8)],
)
def test_cores_by_cgroup_quota_rounded_up(text: str, cores: int, tmp_path: Path) -> None:
    write(own_cgroup(tmp_path) / "cpu.max", text)
    assert usable_cores() == cores


def test_the_least_quota_of_all_levels_counts(tmp_path: Path) -> None:
    write(own_cgroup(tmp_path) / "cpu.max", "400000 100000")
    write(tmp_path / "cpu.max", "300000 100000")
    assert usable_cores() == min(3, 4)


@pytest.mark.parametrize("quota,cores", [("-1", 8), ("150000", 2)])
@pytest.mark.parametrize("folder", ["cpu", "cpu/job_7"], ids=["as a container sees it", "in its own group"])
def test_cores_by_the_first_version_of_cgroups(folder: str, quota: str, cores: int, tmp_path: Path) -> None:
    write(tmp_path / folder / "cpu.cfs_quota_us", quota)
    write(tmp_path / folder / "cpu.cfs_period_us", "100000")
    assert usable_cores() == cores


def test_the_cgroups_of_others_do_not_count(tmp_path: Path) -> None:
    before = usable_memory()
    write(tmp_path / "job_7/cpu.max", "100000 100000")
    write(tmp_path / "cpu/job_8/cpu.cfs_quota_us", "100000")
    write(tmp_path / "cpu/job_8/cpu.cfs_period_us", "100000")
    write(tmp_path / "memory/job_7/step_1/memory.limit_in_bytes", "50000000")
    assert (usable_cores(), usable_memory()) == (8, before)


def test_where_no_system_tells_of_cgroups(tmp_path: Path) -> None:
    (tmp_path / "membership").unlink()
    assert usable_cores() == 8
    write(tmp_path / "cpu.max", "300000 100000")
    assert usable_cores() == 3


@pytest.mark.parametrize("value,cores", [("4", 4), ("64", 8), ("", 8), ("4(x2)", 8), ("0", 8)])
def test_cores_by_slurm(value: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", value)
    assert usable_cores() == cores


def test_the_least_of_all_limits_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(own_cgroup(tmp_path) / "cpu.max", "300000 100000")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "5")
    assert usable_cores() == 3
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert usable_cores() == 2
    assert ThreadBackend().capabilities.workers == 2


def test_memory_by_physical_size() -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6
    assert usable_memory() == physical


@pytest.mark.parametrize(
    "file",
    [
        "memory.max",
        "user.slice/job_7/memory.max",
        "memory/memory.limit_in_bytes",
        "memory/job_7/memory.limit_in_bytes",
        "memory/job_7/step_0/memory.limit_in_bytes",
    ],
)
def test_memory_by_cgroup_in_megabytes(file: str, tmp_path: Path) -> None:
    write(tmp_path / file, "50000000")
    assert usable_memory() == 50


def test_memory_without_a_limit(tmp_path: Path) -> None:
    before = usable_memory()
    write(own_cgroup(tmp_path) / "memory.max", "max")
    write(tmp_path / "memory/memory.limit_in_bytes", str(2**63 - 4096))
    assert usable_memory() == before


def test_memory_by_slurm_which_counts_in_mebibytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert usable_memory() == 104
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all of the node
    assert usable_memory() > 104


def test_memory_by_slurm_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    assert usable_memory() == 104
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    assert usable_memory() == 314


@pytest.mark.parametrize(
    "visible,gpus",
    [("0,3", ("0", "3")), ("GPU-8a1, MIG-2", ("GPU-8a1", "MIG-2")), ("", ()), ("-1", ()), (" ", ())],
)
def test_gpus_by_the_variable_that_hides_them(
    visible: str, gpus: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus() == gpus


def test_resources_of_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert resources_of(3, None, 100) == (Resources(3, 2, 100), ("4", "5"))
    assert resources_of(3, 2, 100) == (Resources(3, 2, 100), ("0", "1"))
    assert resources_of(3, ("a",), None) == (Resources(3, 1, usable_memory()), ("a",))
