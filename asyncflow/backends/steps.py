"""Commands as job steps: how an executable runs within an allocation, by `srun`, on the nodes that it was given.

SLURM gives a step cores, memory and GPUs of its own, also beside steps that overlap with everything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Mapping, Sequence

from asyncflow.backends.allocation import Allocation, ask
from asyncflow.backends.contract import Loss, WorkDied, WorkItem
from asyncflow.backends.launch import Blow, End, after, attempt_mark, environment
from asyncflow.backends.orphans import ATTEMPT, Family, end, marks
from asyncflow.backends.shared import Shared
from asyncflow.description import TaskDescription
from asyncflow.errors import CommandNotFoundError, CommandStartError, InternalError, signal_name

#: Seconds between the KILL for the processes of a step and the one for its `srun`.
_KILL_PATIENCE = 5.0
#: Seconds that what a step leaves gets to end once it is killed.
_AFTERMATH = 10.0
#: Seconds between two looks at what is not this process's child: nothing tells when it ends.
_LOOK = 0.05

#: Variables of SLURM's that describe the job, or the site. All others describe the step, or the script, that the engine
#: runs in, and `srun` would take them for options.
_OF_JOB = ("SLURM_JOB_", "SLURM_ARRAY_", "SLURM_SUBMIT_")
_OF_SITE = {"SLURM_CONF", "SLURM_CLUSTER_NAME", "SLURM_WORKING_CLUSTER", "SLURM_MPI_TYPE", "SLURM_RESTART_COUNT"}
#: The GPUs that the engine's own process sees.
_OF_GPUS = {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"}

#: Lines on stderr that are SLURM's own, and those of them that tell more than how the command ended.
_OWN = re.compile(r"(?:srun|slurmstepd\S*): ")
_TELLING = re.compile(r"oom|out of memory|due to|exceed", re.IGNORECASE)
#: How a rank ended, if not well; the first such line is the rank that took the others with it.
_ENDED = re.compile(r"srun: error: (\S+): tasks? [\d,-]+: (.*)$")
_EXITED = re.compile(r"Exited with exit code (\d+)")
_NOT_STARTED = re.compile(r"slurmstepd\S*: error: execve\(\): .*: ([^:]+)$")
_NODE_FAILED = re.compile(r"node failure", re.IGNORECASE)

_SIGNALS = {signal.strsignal(number): int(number) for number in signal.valid_signals()}
_START_ERRORS = {os.strerror(number): number for number in (errno.ENOENT, errno.EACCES, errno.ENOEXEC)}


class Steps:
    """What all steps of an allocation share: how MPI is told to them, their numbers, their processes on this node."""

    def __init__(self, allocation: Allocation) -> None:
        self.allocation = allocation
        #: The steps that run, `JOB.STEP` by name; None where SLURM does not answer.
        self.numbers: Shared[Mapping[str, str] | None] = Shared(self._list)
        #: Their processes on this node, by their attempts' marks.
        self.processes = Shared(lambda: marks(ATTEMPT))
        self._lock = threading.Lock()
        self._mpi: list[str] | None = None

    @property
    def mpi(self) -> list[str]:
        """The option of `srun` for MPI programs, none where the site or the user has chosen already. May block."""
        with self._lock:
            if self._mpi is None:
                self._mpi = [] if _mpi_is_chosen() or not _has_pmix() else ["--mpi=pmix"]
            return self._mpi

    def _list(self) -> Mapping[str, str] | None:
        shown = ask("squeue", "--noheader", "--steps", f"--jobs={self.allocation.job_id}", "--format=%i %j")
        if shown is None:
            return None
        lines = (line.split(maxsplit=1) for line in shown.splitlines())
        return {line[1].strip(): line[0] for line in lines if len(line) == 2}


def _mpi_is_chosen() -> bool:
    if "SLURM_MPI_TYPE" in os.environ:
        return True
    found = re.search(r"^MpiDefault\s*=\s*(\S+)", ask("scontrol", "show", "config") or "", re.MULTILINE)
    return found is not None and found.group(1) not in ("none", "(null)")


def _has_pmix() -> bool:
    # Without it an MPI program of one rank fails too: it sees that `srun` started it.
    # Older versions print their list to stderr.
    return "pmix" in (ask("srun", "--mpi=list", both=True) or "").split()


class StepLaunch:
    """One attempt as a job step of its own."""

    def __init__(self, item: WorkItem, family: Family, steps: Steps, nodes: Mapping[str, int]) -> None:
        """`nodes` says how many ranks run on which node."""
        self._item = item
        self._family = family
        self._steps = steps
        self._nodes = nodes
        self._description = item.definition.description or TaskDescription()
        self._name = f"{item.uid}.{item.attempt}-{family.session[:8]}"
        self._argv: Sequence[str] = ()
        if sum(nodes.values()) != self._description.ranks:
            raise InternalError(f"{item} of {self._description.ranks} ranks was placed on {dict(nodes)}")

    # --- its start ---------------------------------------------------------------------------------------------------

    def line(self, argv: Sequence[str]) -> list[str]:
        self._argv = argv
        line = after(self._description.pre_exec, argv)
        if ":" in line:  # to srun that word begins the options of another step
            line = ["/bin/sh", "-c", f"exec {shlex.join(line)}"]
        return [
            "srun",
            "--exact",
            "--export=ALL",
            f"--job-name={self._name}",
            *self._ranks(),
            *self._memory(),
            *self._gpus(),
            *self._steps.mpi,
            "--",
            *line,
        ]

    @property
    def _is_even(self) -> bool:
        """Whether each node gets as many ranks as any other."""
        return len(set(self._nodes.values())) == 1

    def _ranks(self) -> list[str]:
        description, nodes = self._description, self._nodes
        # All three always: else those of the batch script hold.
        options = [
            f"--nodes={len(nodes)}",
            f"--ntasks={description.ranks}",
            f"--cpus-per-task={description.cores_per_rank}",
        ]
        if self._is_even:
            options += [f"--ntasks-per-node={next(iter(nodes.values()))}", f"--nodelist={','.join(nodes)}"]
        else:
            names = [name for name, ranks in nodes.items() for _ in range(ranks)]
            options += ["--distribution=arbitrary", f"--nodelist={','.join(names)}"]
        # Else the death of one rank leaves the others waiting for it.
        return [*options, "--kill-on-bad-exit=1"] if description.ranks > 1 else options

    def _memory(self) -> list[str]:
        """Always named: a step that names none takes all that its job has there, and the next one waits."""
        cores = self._description.cores_per_rank
        each = self._description.mem_per_rank or cores * self._steps.allocation.memory_per_core
        if self._is_even:
            return [f"--mem={_mebibytes(each * next(iter(self._nodes.values())))}M"]
        return [f"--mem-per-cpu={_mebibytes(each // cores)}M"]

    def _gpus(self) -> list[str]:
        """Always named, for the same reason."""
        each = self._description.gpus_per_rank
        return [f"--gpus-per-task={each}"] if each else ["--gres=none"]

    def variables(self, extra: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if _is_inherited(name)}
        inherited["SLURM_JOB_ID"] = self._steps.allocation.job_id
        if self._description.gpus_per_rank:
            inherited["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        return environment(self._item, self._family, inherited, extra)

    # --- its end -----------------------------------------------------------------------------------------------------

    def blows(self, process: int) -> Sequence[Blow]:
        # Never the group of srun: its second process must stay to end the step of a first one that was killed.
        return (
            Blow(lambda: self._terminate(process), self._family.grace),
            Blow(lambda: self._kill(process), _KILL_PATIENCE),
            Blow(lambda: _send(process, signal.SIGKILL), 0.0),
        )

    def _terminate(self, process: int) -> bool:
        numbers = self._steps.numbers.get()
        if numbers is None:
            return False
        if self._name in numbers:
            return self._signal("TERM", numbers[self._name])
        # It waits for resources, and gives up. (Where its step has just begun, that is killed without a grace.)
        _send(process, signal.SIGTERM)
        return False

    def _kill(self, process: int) -> bool:
        """What SLURM may have lost sight of is killed too, where it is on this node."""
        number = (self._steps.numbers.get() or {}).get(self._name)
        if number is None:
            _send(process, signal.SIGTERM)  # with a step, srun takes that for a KILL
        else:
            self._signal("KILL", number)
        end([pid for pid in self._here() if not _is_in_group(pid, process)], signal.SIGKILL)
        return number is not None

    def _here(self) -> list[int]:
        """Its processes on this node, its srun's included."""
        return self._steps.processes.get().get(attempt_mark(self._item, self._family), [])

    @staticmethod
    def _signal(name: str, number: str) -> bool:
        # Its exit code tells nothing: for a step it is not zero although the signal has arrived.
        ask("scancel", f"--signal={name}", number)
        return True

    def clean(self, process: int, cancelled: bool) -> None:
        deadline = time.monotonic() + _AFTERMATH
        if _was_killed(process):
            self._end_abandoned(deadline)
        # What else is left is for SLURM to end; it may have lost sight of some, where it does not use cgroups.
        while cancelled and (pids := self._here()) and time.monotonic() < deadline:
            end(pids, signal.SIGKILL)
            time.sleep(_LOOK)

    def _end_abandoned(self, deadline: float) -> None:
        """End the step of an srun that was killed: its second process would, seconds later."""
        while time.monotonic() < deadline:
            numbers = self._steps.numbers.get()
            if numbers is not None and self._name not in numbers:
                return
            if numbers is not None:
                self._signal("KILL", numbers[self._name])
            time.sleep(_LOOK)

    def end(self, returncode: int, stderr: bytes) -> End:
        if returncode < 0:
            raise WorkDied(
                Loss(f"the srun of its job step was ended by {signal_name(-returncode)}", exit_code=returncode)
            )
        lines = stderr.decode(errors="replace").splitlines()
        own = [line for line in lines if _OWN.match(line)]
        ended = next((found for line in lines if (found := _ENDED.search(line))), None)
        self._raise_unless_run(own, ended, returncode)
        host, how = ended.groups() if ended is not None else (next(iter(self._nodes)), "")
        said = [line for line in lines if not _OWN.match(line) or _TELLING.search(line)]
        return End(_code(how, returncode), host, "\n".join(said).encode())

    def _raise_unless_run(self, own: Sequence[str], ended: re.Match[str] | None, returncode: int) -> None:
        """Raise where the command never began, or was lost with its node."""
        for line in own:
            found = _NOT_STARTED.match(line)
            if found and found.group(1) in _START_ERRORS:
                self._raise_start_error(OSError(_START_ERRORS[found.group(1)], found.group(1)))
        failed = any(_NODE_FAILED.search(line) for line in own)
        errors = [line for line in own if line.startswith(("srun: error: ", "srun: fatal: "))]
        if failed or (ended is None and errors):
            said = "; ".join(line.partition(": ")[2].removeprefix("error: ") for line in errors or own)
            what = "a node of its job step failed" if failed else "SLURM did not run its job step"
            raise WorkDied(Loss(f"{what}: {said}", host=next(iter(self._nodes)), exit_code=returncode))

    def _raise_start_error(self, error: OSError) -> None:
        kind = CommandNotFoundError if isinstance(error, FileNotFoundError) else CommandStartError
        options = self._item.definition.executable
        raise kind(self._item.definition.name, self._argv, error, options.cwd if options else None)


def _code(how: str, returncode: int) -> int:
    """The command's exit code, negative for a signal, by what srun says of it and by srun's own exit code."""
    exited = _EXITED.match(how)
    if exited is not None:
        return int(exited.group(1))
    number = _SIGNALS.get(how.removesuffix(" (core dumped)"))
    if number is not None:
        return -number
    return 128 - returncode if returncode > 128 else returncode


def _is_inherited(name: str) -> bool:
    if name in _OF_GPUS or name.startswith("SRUN_"):
        return False
    return not name.startswith("SLURM_") or name in _OF_SITE or name.startswith(_OF_JOB)


def _is_in_group(pid: int, group: int) -> bool:
    try:
        return os.getpgid(pid) == group
    except ProcessLookupError:
        return False


def _was_killed(process: int) -> bool:
    """Whether a child that has ended and is not reaped was ended by a signal."""
    end = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return end is not None and end.si_code != os.CLD_EXITED


def _send(process: int, number: int) -> bool:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)
    return True


def _mebibytes(megabytes: int) -> int:
    """As SLURM counts memory; at least 1, for 0 stands for all."""
    return max(1, megabytes * 10**6 // 2**20)
