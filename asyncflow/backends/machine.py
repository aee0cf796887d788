"""How much of this machine the process may use: by affinity, cgroup and SLURM, not by the node's size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from asyncflow.description import Resources
from asyncflow.options import whole

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use, at least 1: the least of affinity, cgroup quota and SLURM's allotment."""
    try:
        limits = [len(os.sched_getaffinity(0))]
    except AttributeError:  # not on macOS
        limits = [os.cpu_count() or 1]
    limits += [limit for limit in (cgroup_cores(), slurm_cores()) if limit]
    return max(1, min(limits))


def usable_memory() -> int:
    """MB (10**6 bytes) that this process may use, as far as it can be told."""
    return min(limit for limit in (physical_memory(), cgroup_memory(), slurm_memory()) if limit)


def usable_gpus() -> tuple[str, ...]:
    """Ids of the GPUs that this process may use, in the form that CUDA_VISIBLE_DEVICES takes."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(gpu for gpu in (part.strip() for part in visible.split(",")) if gpu and gpu != "-1")
    devices = Path("/dev").glob("nvidia[0-9]*")
    return tuple(sorted((device.name.removeprefix("nvidia") for device in devices), key=int))


def gpu_ids(gpus: Any) -> tuple[str, ...]:
    """The ids that `gpus=` of a local backend stands for: a number, a list of ids, or None for the machine's."""
    if gpus is None:
        return usable_gpus()
    if isinstance(gpus, (list, tuple)):
        return tuple(str(gpu) for gpu in gpus)
    return tuple(str(number) for number in range(whole("gpus", gpus, 0)))


def resources_of(workers: Any, gpus: Any, memory: Any) -> tuple[Resources, tuple[str, ...]]:
    """What a local backend has in all, and the ids of its GPUs; None stands for what the machine has.

    Raises InvalidOptionError for values that are none of the kind.
    """
    cores = usable_cores() if workers is None else whole("workers", workers, 1)
    ids = gpu_ids(gpus)
    return Resources(cores, len(ids), usable_memory() if memory is None else whole("memory", memory, 0)), ids


def physical_memory() -> int:
    """MB (10**6 bytes) that the machine has, whoever may use them."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6


def slurm_cores() -> int | None:
    """Cores of this node that SLURM allotted to the job; None outside of one."""
    return _positive("SLURM_CPUS_ON_NODE")


def slurm_memory() -> int | None:
    """MB (10**6 bytes) of this node that SLURM allotted to the job; None outside of one, and where it set no limit."""
    mebibytes = _positive("SLURM_MEM_PER_NODE")
    return mebibytes * 2**20 // 10**6 if mebibytes else None


def cgroup_cores() -> int | None:
    """Cores granted by cgroup v2's `cpu.max` or v1's quota, rounded up; None where there is no limit."""
    quotas = []
    for folder in _own_cgroup():
        words = (_read(folder / "cpu.max") or "max").split()
        if words[0] != "max" and len(words) == 2:
            quotas.append(int(words[0]) / int(words[1]))
    quota, period = _read(_CGROUP / "cpu/cpu.cfs_quota_us"), _read(_CGROUP / "cpu/cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        quotas.append(int(quota) / int(period))
    return max(1, -int(-min(quotas) // 1)) if quotas else None


def cgroup_memory() -> int | None:
    """MB (10**6 bytes) granted by cgroup v2's `memory.max` or v1's limit; None where that is no real limit."""
    files = [folder / "memory.max" for folder in _own_cgroup()] + [_CGROUP / "memory/memory.limit_in_bytes"]
    limits = [int(text) // 10**6 for text in map(_read, files) if text and text.isdigit()]
    # Version 1 writes an absurd number for "no limit".
    return min((limit for limit in limits if limit < physical_memory()), default=None)


def _positive(variable: str) -> int | None:
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _own_cgroup() -> list[Path]:
    """The cgroup v2 folders from this process's own up to the root: each may set a limit."""
    text = _read(Path("/proc/self/cgroup")) or ""
    own = next((line[3:].lstrip("/") for line in text.splitlines() if line.startswith("0::")), "")
    folder = _CGROUP / own
    return [folder, *(parent for parent in folder.parents if parent == _CGROUP or _CGROUP in parent.parents)]
