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

#: How many threads numerical libraries use: without these, one for every core of the node.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

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
    variables = {name: value for name, value in os.environ.items() if not _of_launcher(name)}
    if item.definition.description is not None and item.definition.description.ranks > 1:
        variables.update(_OPEN_MPI)
    variables.update(extra or {})
    variables.update(asked_variables(item))
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
