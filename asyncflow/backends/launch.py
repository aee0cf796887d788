"""The command line that really starts: ranks under `mpirun`, GPUs for each rank, commands to run first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

from asyncflow.backends.contract import WorkItem
from asyncflow.backends.orphans import ATTEMPT, SESSION, Family
from asyncflow.description import TaskDescription
from asyncflow.errors import CommandError

#: Open MPI binds ranks to the first cores, whoever else is bound there, and refuses more ranks than physical cores.
#: The backend has already counted the cores; both settings, for Open MPI 4 and 5, leave placing to the kernel.
_OPEN_MPI = {
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}

#: Each rank picks its own GPUs, by the rank number that its launcher gives it (Open MPI, PMI, SLURM).
_PICK_GPUS = (
    "r=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${PMI_RANK:-${SLURM_PROCID:-0}}}}; "
    'eval "export CUDA_VISIBLE_DEVICES=\\$ASYNCFLOW_GPUS_$r"'
)


def attempt_mark(item: WorkItem, family: Family) -> str:
    """What marks the processes of this attempt in their environment."""
    return f"{family.session}/{item.uid}/{item.attempt}"


def command_line(name: str, argv: Sequence[str], description: TaskDescription | None) -> list[str]:
    """`argv` as it must be started to meet `description`."""
    if description is None:
        return list(argv)
    first = list(description.pre_exec)
    if description.ranks > 1 and description.gpus_per_rank:
        first.insert(0, _PICK_GPUS)
    line = list(argv)
    if first:
        line = ["/bin/sh", "-c", " && ".join([*first, 'exec "$@"']), "asyncflow", *line]
    if description.ranks > 1:
        line = [_mpirun(name, description.ranks), "-n", str(description.ranks), *line]
    return line


def _mpirun(name: str, ranks: int) -> str:
    for program in ("mpirun", "mpiexec"):
        if shutil.which(program):
            return program
    raise CommandError(name, f"ranks={ranks} needs mpirun, which is not on PATH; install an MPI (Open MPI, MPICH)")


def environment(item: WorkItem, family: Family, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process started for `item`: the worker's, what the task asks for, and the marks."""
    variables = dict(os.environ)
    description = item.definition.description
    if description is not None:
        # The cores that it holds are the ones that its threads may use.
        variables["OMP_NUM_THREADS"] = str(description.cores_per_rank)
        if description.ranks > 1:
            variables.update(_OPEN_MPI)
    if item.gpus:
        variables.update(_gpu_variables(item))
    variables.update(extra or {})
    if description is not None:
        variables.update(description.environment)
    variables[SESSION] = family.session
    variables[ATTEMPT] = attempt_mark(item, family)
    return variables


def _gpu_variables(item: WorkItem) -> dict[str, str]:
    variables = {"CUDA_VISIBLE_DEVICES": ",".join(item.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    description = item.definition.description
    if description is not None and description.ranks > 1:
        each = description.gpus_per_rank
        for rank in range(description.ranks):
            variables[f"ASYNCFLOW_GPUS_{rank}"] = ",".join(item.gpus[rank * each : (rank + 1) * each])
    return variables
