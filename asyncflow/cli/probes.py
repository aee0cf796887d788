"""What `asyncflow doctor` looks at. Each probe is a function that may fail: then its finding says why."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asyncflow.backends import machine
from asyncflow.backends.allocation import ask, end_in
from asyncflow.backends.registry import find_backend, known_backends
from asyncflow.cli.filesystem import FileSystem, file_system
from asyncflow.errors import BackendNotInstalledError, UnknownBackendError


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs this."""

    version: str
    implementation: str
    executable: str


@dataclass(frozen=True)
class Cores:
    """How many cores there are, by each who may limit them; None where that one sets no limit."""

    machine: int | None
    affinity: int | None
    cgroup: int | None
    slurm: int | None
    #: What a local backend takes for its workers: the least of all.
    used: int


@dataclass(frozen=True)
class Memory:
    """MB (10**6 bytes), by each who may limit them; None where that one sets no limit."""

    machine: int
    cgroup: int | None
    slurm: int | None
    #: What a local backend gives out: the least of all.
    used: int


@dataclass(frozen=True)
class Gpus:
    """Ids of the GPUs that a local backend gives out, and where they were found."""

    ids: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Allocation:
    """A SLURM job that this process is part of."""

    job: str
    nodes: int | None
    node_list: str | None
    partition: str | None
    #: Seconds since 1970; None where SLURM does not say.
    ends_at: int | None
    #: Seconds until then, negative afterwards.
    seconds_left: int | None


@dataclass(frozen=True)
class Slurm:
    """SLURM as it is found here."""

    #: Paths of its programs; None where they are not on PATH.
    sbatch: str | None
    srun: str | None
    #: None outside of any.
    allocation: Allocation | None


@dataclass(frozen=True)
class Launcher:
    """What starts tasks of several ranks."""

    program: str
    path: str


@dataclass(frozen=True)
class BackendFinding:
    """One line of the table of backends."""

    name: str
    #: Whether what it is made of is installed.
    installed: bool
    #: Whether an engine can be created on it here.
    usable: bool
    #: What is missing and what to do; empty where nothing is.
    advice: str


def interpreter() -> Interpreter:
    """Version and place of the Python that runs this."""
    return Interpreter(platform.python_version(), platform.python_implementation(), sys.executable)


def cores() -> Cores:
    """Cores of this process."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return Cores(os.cpu_count(), affinity, machine.cgroup_cores(), machine.slurm_cores(), machine.usable_cores())


def memory() -> Memory:
    """Memory of this process."""
    return Memory(machine.physical_memory(), machine.cgroup_memory(), machine.slurm_memory(), machine.usable_memory())


def gpus() -> Gpus:
    """GPUs of this process."""
    variable = "CUDA_VISIBLE_DEVICES"
    return Gpus(machine.usable_gpus(), variable if variable in os.environ else "/dev")


def working_directory() -> FileSystem:
    """The file system of the working directory."""
    return file_system(Path.cwd().resolve(), Path("/proc/self/mountinfo").read_text())


def slurm() -> Slurm:
    """SLURM's programs, and the job around this process."""
    return Slurm(shutil.which("sbatch"), shutil.which("srun"), allocation(os.environ))


def allocation(variables: Mapping[str, str]) -> Allocation | None:
    """The SLURM job of a process with these environment variables; None outside of any."""
    job = variables.get("SLURM_JOB_ID")
    if not job:
        return None
    nodes, ends_at = variables.get("SLURM_JOB_NUM_NODES", ""), _end(job, variables)
    return Allocation(
        job,
        int(nodes) if nodes.isdigit() else None,
        variables.get("SLURM_JOB_NODELIST"),
        variables.get("SLURM_JOB_PARTITION"),
        ends_at,
        None if ends_at is None else ends_at - int(time.time()),
    )


def _end(job: str, variables: Mapping[str, str]) -> int | None:
    """When the job ends. Older versions of SLURM do not set the variable, but all of them know when asked."""
    end = variables.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        return int(end)
    told = end_in(ask("scontrol", "show", "job", "--oneliner", job) or "")
    return None if told is None else int(told)


def mpi() -> Launcher | None:
    """The program that starts tasks of several ranks; None where there is none."""
    for program in ("mpirun", "mpiexec"):
        path = shutil.which(program)
        if path:
            return Launcher(program, path)
    return None


#: Backends with an extra of their own, which has their name, and the package that the extra brings.
_EXTRAS = {"dask": "distributed", "radical": "radical"}


def backends() -> list[BackendFinding]:
    """Every backend that this version knows or might know, each tried."""
    known = known_backends()
    return [_examined(name) for name in [*known, *(name for name in _EXTRAS if name not in known)]]


def _examined(name: str) -> BackendFinding:
    try:
        find_backend(name)
    except UnknownBackendError:
        return BackendFinding(name, _has(_EXTRAS[name]), False, "this version of asyncflow has no such backend")
    except BackendNotInstalledError as error:
        return BackendFinding(name, False, False, str(error))
    except Exception as error:  # whatever importing a third party's module raises
        return _not_loaded(name, error)
    return BackendFinding(name, True, True, "")


def _not_loaded(name: str, error: Exception) -> BackendFinding:
    if name in _EXTRAS and isinstance(error, ImportError) and not _has(_EXTRAS[name]):
        return BackendFinding(name, False, False, str(BackendNotInstalledError(name, name)))
    return BackendFinding(name, True, False, f"cannot be loaded: {type(error).__name__}: {error}")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
