"""How much of this machine the process may use: by affinity, cgroup and SLURM, not by the node's size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from asyncflow.description import Resources
from asyncflow.options import whole

_CGROUP = Path("/sys/fs/cgroup")
#: Which cgroup of each tree this process is in.
_MEMBERSHIP = Path("/proc/self/cgroup")


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
    # Which of the two is set depends on how the job asked.
    mebibytes = _positive("SLURM_MEM_PER_NODE") or (_positive("SLURM_MEM_PER_CPU") or 0) * (slurm_cores() or 1)
    return mebibytes * 2**20 // 10**6 if mebibytes else None


def cgroup_cores() -> int | None:
    """Cores granted by cgroup v2's `cpu.max` or v1's quota, rounded up; None where there is no limit."""
    pairs = [(_read(folder / "cpu.max") or "").split() for folder in _own_cgroups("")]
    pairs += [
        [_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")] for folder in _own_cgroups("cpu")
    ]
    # No limit is "max" in version 2 and -1 in version 1.
    quotas = [int(pair[0]) / int(pair[1]) for pair in pairs if len(pair) == 2 and all(map(str.isdigit, pair))]
    return max(1, -int(-min(quotas) // 1)) if quotas else None


def cgroup_memory() -> int | None:
    """MB (10**6 bytes) granted by cgroup v2's `memory.max` or v1's limit; None where that is no real limit."""
    files = [folder / "memory.max" for folder in _own_cgroups("")]
    files += [folder / "memory.limit_in_bytes" for folder in _own_cgroups("memory")]
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


def _own_cgroups(controller: str) -> list[Path]:
    """The folders from this process's own cgroup up to the root: each may set a limit.

    The controllers of version 1 ("cpu", "memory") have a tree each, that of version 2 is "". In a container the root is
    its own cgroup, whose path may be told as the host sees it: then only the root is there.
    """
    root = _CGROUP / controller
    for line in (_read(_MEMBERSHIP) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            folder = root / path.lstrip("/")
            return [folder, *(parent for parent in folder.parents if parent == root or root in parent.parents)]
    return [root]
