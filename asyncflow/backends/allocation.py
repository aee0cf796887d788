"""The allocation of SLURM's that this process runs in: its nodes, what it has of each, and when it ends.

SLURM's programs are asked, and they answer in their own time: nothing here is for an event loop.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from asyncflow.backends.machine import physical_memory
from asyncflow.description import Resources
from asyncflow.errors import AllocationError

#: Seconds that one of SLURM's programs gets to answer: it waits for a daemon that serves the whole site.
_PATIENCE = 15.0
#: Seconds for which the end of the allocation is taken to be what it last was: it can be changed at any time.
_MEMORY = 60.0
#: Ids from here on are no steps: the batch script, and what `salloc` starts on the first node.
_NO_STEPS = 0xFFFFFFF0

_DETAIL = re.compile(r"\bNodes=(\S+) CPU_IDs=(\S*) Mem=(\d+) GRES=(\S*)")
_GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)*?:(\d+)(?=[(,]|$)")


@dataclass(frozen=True)
class AllocatedNode:
    """What the allocation has of one node."""

    #: As SLURM calls it, which need not be its host name.
    name: str
    #: As SLURM counts them: where it gives out hardware threads, these.
    cores: int
    #: MB (10**6 bytes).
    memory: int
    gpus: int

    @property
    def resources(self) -> Resources:
        return Resources(self.cores, self.gpus, self.memory)


@dataclass
class _Answer:
    """The end of the allocation as SLURM last told it."""

    asked: float = -math.inf
    end: float | None = None


@dataclass(frozen=True)
class Allocation:
    """The job that this process runs in."""

    job_id: str
    #: In SLURM's order.
    nodes: tuple[AllocatedNode, ...]
    #: Number of the job step that this process is part of, which may hold cores itself; None in a batch script and
    #: under `salloc`.
    step: int | None = None
    _answer: _Answer = field(default_factory=_Answer, repr=False, compare=False)

    @classmethod
    def current(cls) -> Allocation | None:
        """The allocation of this process; None outside of a job, and where the job has ended meanwhile.

        Raises AllocationError where its nodes cannot be told.
        """
        job_id = os.environ.get("SLURM_JOB_ID") or os.environ.get("SLURM_JOBID")
        if not job_id:
            return None
        shown = ask("scontrol", "show", "job", "--details", "--oneliner", job_id)
        if shown is not None and not _is_running(shown):
            return None
        nodes = nodes_of(shown, hostnames) if shown is not None else ()
        if any(node.memory == 0 for node in nodes):
            nodes = _with_real_memory(nodes)
        # Where SLURM's daemon does not answer, the variables tell nearly as much.
        nodes = nodes or nodes_told(os.environ, hostnames)
        if not nodes:
            raise AllocationError(job_id, "`scontrol show job` does not tell, nor does SLURM_JOB_NODELIST")
        return cls(job_id, tuple(nodes), surrounding_step(os.environ))

    @property
    def total(self) -> Resources:
        """All nodes together."""
        nodes = self.nodes
        return Resources(sum(n.cores for n in nodes), sum(n.gpus for n in nodes), sum(n.memory for n in nodes))

    @property
    def memory_per_core(self) -> int:
        """MB (10**6 bytes) that a job step gets for each of its cores where its task names no memory."""
        return min(node.memory // max(1, node.cores) for node in self.nodes)

    def end_time(self) -> float | None:
        """When the allocation ends, in seconds since the epoch; None where that cannot be told. May block.

        SLURM is asked at most once a minute.
        """
        told = _seconds(os.environ.get("SLURM_JOB_END_TIME", ""))
        if told is not None:
            return told
        answer = self._answer
        if time.monotonic() - answer.asked >= _MEMORY:
            answer.asked = time.monotonic()
            shown = ask("scontrol", "show", "job", "--oneliner", self.job_id)
            answer.end = end_in(shown) if shown is not None else answer.end
        return answer.end


def ask(*command: str, both: bool = False) -> str | None:
    """What one of SLURM's programs prints, times as seconds since the epoch; None where it fails or takes too long.

    `both` adds what it prints to stderr.
    """
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_PATIENCE,
            env={**os.environ, "SLURM_TIME_FORMAT": "%s"},
        )
        if done.returncode == 0:
            return done.stdout + done.stderr if both else done.stdout
    return None


def hostnames(nodelist: str) -> list[str]:
    """The nodes that a list such as `n[1-3,7],m4` names; none where that cannot be told."""
    if not set("[,") & set(nodelist):
        return [nodelist]
    return (ask("scontrol", "show", "hostnames", nodelist) or "").split()


def nodes_of(shown: str, expand: Callable[[str], Sequence[str]]) -> list[AllocatedNode]:
    """The nodes in what `scontrol show job --details` printed; `expand` is `hostnames`."""
    found = []
    for names, cpus, mebibytes, gres in _DETAIL.findall(shown):
        amounts = count_of(cpus), _megabytes(int(mebibytes)), sum(map(int, _GPUS.findall(gres)))
        found += [AllocatedNode(name, *amounts) for name in expand(names)]
    return found


def count_of(numbers: str) -> int:
    """How many numbers a list such as `0-3,8` has."""
    ranges = [part.partition("-") for part in numbers.split(",") if part]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def nodes_told(variables: Mapping[str, str], expand: Callable[[str], Sequence[str]]) -> list[AllocatedNode]:
    """The nodes as the environment of a job tells them; every node is taken to have as many GPUs as this one."""
    nodelist = variables.get("SLURM_JOB_NODELIST") or variables.get("SLURM_NODELIST")
    names = expand(nodelist) if nodelist else []
    cores = repeated(variables.get("SLURM_JOB_CPUS_PER_NODE", ""))
    gpus = _gpus_told(variables)
    if len(cores) != len(names):
        return []
    return [
        AllocatedNode(name, count, _memory_told(variables, count, gpus), gpus)
        for name, count in zip(names, cores, strict=True)
    ]


def repeated(counts: str) -> list[int]:
    """One count a node, of a list such as `4(x2),8`."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def _gpus_told(variables: Mapping[str, str]) -> int:
    # In a step SLURM_GPUS_ON_NODE is what the step has; the first two are always the job's.
    each = variables.get("SLURM_GPUS_PER_NODE", "")
    if each:
        return sum(int(part.rpartition(":")[2]) for part in each.split(",") if part.rpartition(":")[2].isdigit())
    ids = variables.get("SLURM_JOB_GPUS", "")
    return count_of(ids) if ids else _number(variables, "SLURM_GPUS_ON_NODE")


def _memory_told(variables: Mapping[str, str], cores: int, gpus: int) -> int:
    mebibytes = (
        _number(variables, "SLURM_MEM_PER_NODE")
        or _number(variables, "SLURM_MEM_PER_CPU") * cores
        or _number(variables, "SLURM_MEM_PER_GPU") * gpus
    )
    return _megabytes(mebibytes) if mebibytes else physical_memory()


def _number(variables: Mapping[str, str], name: str) -> int:
    value = variables.get(name, "")
    return int(value) if value.isdigit() else 0


def _with_real_memory(nodes: Sequence[AllocatedNode]) -> list[AllocatedNode]:
    """With all the memory that each node has, where SLURM does not count the memory of jobs."""
    shown = ask("scontrol", "show", "node", "--oneliner", ",".join(node.name for node in nodes)) or ""
    real = {name: _megabytes(int(mebibytes)) for name, mebibytes in _REAL_MEMORY.findall(shown)}
    return [
        AllocatedNode(node.name, node.cores, node.memory or real.get(node.name, physical_memory()), node.gpus)
        for node in nodes
    ]


_REAL_MEMORY = re.compile(r"^NodeName=(\S+) .*?\bRealMemory=(\d+)", re.MULTILINE)


def surrounding_step(variables: Mapping[str, str]) -> int | None:
    """Number of the step that a process with these variables is part of."""
    number = variables.get("SLURM_STEP_ID", "")
    return int(number) if number.isdigit() and int(number) < _NO_STEPS else None


def end_in(shown: str) -> float | None:
    """The end of a job in what `scontrol show job` printed."""
    found = re.search(r"\bEndTime=(\S+)", shown)
    return _seconds(found.group(1)) if found else None


def _seconds(text: str) -> float | None:
    # Words such as Unknown and N/A stand there for jobs without an end.
    return float(text) if text.isdigit() and int(text) > 0 else None


def _is_running(shown: str) -> bool:
    found = re.search(r"\bJobState=(\S+)", shown)
    return found is not None and found.group(1) in ("RUNNING", "SUSPENDED", "COMPLETING")


def _megabytes(mebibytes: int) -> int:
    return mebibytes * 2**20 // 10**6
