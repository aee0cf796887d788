"""How the command of an attempt is launched, ended and understood; here: on this node, several ranks under `mpirun`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from asyncflow.backends.contract import WorkItem, host_name
from asyncflow.backends.origin import variables as trace_variables
from asyncflow.backends.orphans import ATTEMPT, SESSION, Family, end, marked, sweep
from asyncflow.description import TaskDescription
from asyncflow.errors import CommandError

#: Open MPI binds ranks to the first cores, whoever else is bound there, and refuses more ranks than physical cores.
#: The backend has already counted the cores; both settings, for Open MPI 4 and 5, leave placing to the kernel.
OPEN_MPI = {
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}

#: How many threads numerical libraries use: without these, one for every core of the node.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

#: By these an MPI's launcher finds a whole allocation; without them it starts ranks on this node, whose cores were
#: counted. SLURM_JOB_ID stays: it is what people name their files by.
_ALLOCATION = ("SLURM_JOBID", "SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_TASKS_PER_NODE")

#: Seconds that a command's leftover background processes get between TERM and KILL once the command itself has ended.
LEFTOVER_GRACE = 0.5

#: Each rank picks its own GPUs, by the rank number that its launcher gives it (Open MPI, PMI, SLURM).
_PICK_GPUS = (
    "r=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${PMI_RANK:-${SLURM_PROCID:-0}}}}; "
    'eval "export CUDA_VISIBLE_DEVICES=\\$ASYNCFLOW_GPUS_$r"'
)


class Blow(NamedTuple):
    """One way to end a command."""

    #: Called again until it returns True, which it does when it has reached the command.
    strike: Callable[[], bool]
    #: Seconds until the next, harder one.
    patience: float


@dataclass(frozen=True)
class End:
    """How a command ended."""

    #: Exit code, negative for a signal.
    returncode: int
    host: str
    #: The tail of what the command itself wrote there.
    stderr: bytes


class Launch(Protocol):
    """How the command of one attempt is started, ended and understood. All of it may block."""

    def line(self, argv: Sequence[str]) -> list[str]:
        """What is started in order to run `argv` as the task's description asks. Raises CommandError."""

    def variables(self, extra: Mapping[str, str]) -> dict[str, str]:
        """The environment for that; `extra` is added."""

    def blows(self, process: int) -> Sequence[Blow]:
        """Ways to end what runs as process id `process`, from the gentlest on."""

    def clean(self, process: int, cancelled: bool) -> None:
        """End what the command left, while `process`, which has ended, is not reaped: nobody else has its id."""

    def end(self, returncode: int, stderr: bytes) -> End:
        """How the command ended, if what was started ended with `returncode`.

        Raises CommandStartError where the command itself never began, and WorkDied where its launcher is to blame.
        """


class LocalLaunch:
    """On this node: the command itself, or `mpirun` where it has several ranks."""

    def __init__(self, item: WorkItem, family: Family) -> None:
        self._item = item
        self._family = family
        self._mark = attempt_mark(item, family)

    def line(self, argv: Sequence[str]) -> list[str]:
        definition = self._item.definition
        return command_line(definition.name, argv, definition.description)

    def variables(self, extra: Mapping[str, str]) -> dict[str, str]:
        inherited: Mapping[str, str] = os.environ
        description = self._item.definition.description
        if description is not None and description.ranks > 1:
            inherited = {name: value for name, value in inherited.items() if name not in _ALLOCATION}
        return environment(self._item, self._family, inherited, extra)

    def blows(self, process: int) -> Sequence[Blow]:
        return Blow(lambda: self._terminate(process), self._family.grace), Blow(lambda: self._kill(process), 0.0)

    def _terminate(self, process: int) -> bool:
        _signal_group(process, signal.SIGTERM)
        return True

    def _kill(self, process: int) -> bool:
        _signal_group(process, signal.SIGKILL)
        end(marked(ATTEMPT, self._mark), signal.SIGKILL)
        return True

    def clean(self, process: int, cancelled: bool) -> None:
        if not _others_in_group(process) and not cancelled:
            return
        _signal_group(process, signal.SIGTERM)
        sweep(ATTEMPT, self._mark, grace=self._family.grace if cancelled else LEFTOVER_GRACE)
        _signal_group(process, signal.SIGKILL)

    def end(self, returncode: int, stderr: bytes) -> End:
        return End(returncode, host_name(), stderr)


def attempt_mark(item: WorkItem, family: Family) -> str:
    """What marks the processes of this attempt in their environment."""
    return f"{family.session}/{item.uid}/{item.attempt}"


def command_line(name: str, argv: Sequence[str], description: TaskDescription | None) -> list[str]:
    """`argv` as it must be started to meet `description`."""
    if description is None:
        return list(argv)
    picks = [_PICK_GPUS] if description.ranks > 1 and description.gpus_per_rank else []
    line = after([*picks, *description.pre_exec], argv)
    if description.ranks > 1:
        line = [_mpirun(name, description.ranks), "-n", str(description.ranks), *line]
    return line


def after(first: Sequence[str], argv: Sequence[str]) -> list[str]:
    """`argv` where these shell commands, if any, are to run before it."""
    return ["/bin/sh", "-c", " && ".join([*first, 'exec "$@"']), "asyncflow", *argv] if first else list(argv)


def _mpirun(name: str, ranks: int) -> str:
    for program in ("mpirun", "mpiexec"):
        if shutil.which(program):
            return program
    raise CommandError(name, f"ranks={ranks} needs mpirun, which is not on PATH; install an MPI (Open MPI, MPICH)")


def environment(
    item: WorkItem, family: Family, inherited: Mapping[str, str], extra: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a process started for `item`: `inherited`, what the task asks for, and the marks."""
    variables = {name: value for name, value in inherited.items() if not _of_launcher(name)}
    if item.definition.description is not None and item.definition.description.ranks > 1:
        variables.update(OPEN_MPI)
    own = {**extra, **asked_variables(item)}
    variables.update(trace_variables(item.origin, own))
    variables.update(own)
    variables[SESSION] = family.session
    variables[ATTEMPT] = attempt_mark(item, family)
    return variables


def _of_launcher(name: str) -> bool:
    """Whether a variable tells an MPI process its place among the ranks that it was launched with.

    A worker that is such a rank itself (mpi4py.futures, srun) must not pass its place on: an `mpirun` below it would
    take itself for a part of the same launch, and fail without a word.
    """
    if name.startswith("OMPI_MCA_"):
        return name.startswith(_PLACES)
    return name.startswith(("PMIX_", "PMI_", "ORTE_", "PRTE_LAUNCHED", "OMPI_")) and not name.startswith("OMPI_ALLOW_")


#: Open MPI's parameters that it sets itself for the processes that it launches; all others are the user's.
_PLACES = ("OMPI_MCA_ess", "OMPI_MCA_orte_", "OMPI_MCA_pmix", "OMPI_MCA_initial_wdir", "OMPI_MCA_mpi_oversubscribe")


def asked_variables(item: WorkItem) -> dict[str, str]:
    """The environment variables that follow from the item's description and the GPUs that it was given."""
    description = item.definition.description
    if description is None:
        return {}
    # The cores that it holds are the ones that its threads may use.
    variables = dict.fromkeys(THREAD_VARIABLES, str(description.cores_per_rank))
    if item.gpus:
        variables.update(_gpu_variables(item))
    return {**variables, **description.environment}


def _gpu_variables(item: WorkItem) -> dict[str, str]:
    variables = {"CUDA_VISIBLE_DEVICES": ",".join(item.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    description = item.definition.description
    if description is not None and description.ranks > 1:
        each = description.gpus_per_rank
        for rank in range(description.ranks):
            variables[f"ASYNCFLOW_GPUS_{rank}"] = ",".join(item.gpus[rank * each : (rank + 1) * each])
    return variables


def _signal_group(group: int, number: int) -> None:
    """Send a signal to a process group, if it is still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _others_in_group(group: int) -> bool:
    """Whether a living process other than the leader is in the group; True where that cannot be told."""
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != group]
    except OSError:
        return True
    for name in names:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != b"Z":
            return True
    return False
