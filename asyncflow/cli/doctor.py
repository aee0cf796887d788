"""`asyncflow doctor`: what this machine has, as a page to read or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import click

from asyncflow.cli import probes
from asyncflow.cli.filesystem import FileSystem
from asyncflow.version import installed_version

#: Every probe by the name of its finding, in the order of the page.
PROBES: dict[str, Callable[[], Any]] = {
    "python": probes.interpreter,
    "asyncflow": installed_version,
    "cores": probes.cores,
    "memory": probes.memory,
    "gpus": probes.gpus,
    "directory": probes.working_directory,
    "slurm": probes.slurm,
    "mpi": probes.mpi,
    "backends": probes.backends,
}


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Stands for the finding of a probe that failed."""

    problem: str


def examine(as_json: bool) -> int:
    """Run every probe and print what was found; 0 whatever that is."""
    findings = {name: _finding(probe) for name, probe in PROBES.items()}
    if as_json:
        click.echo(json.dumps(_plain(findings), indent=2))
    else:
        click.echo("\n".join(_page(findings)))
    return 0


def _finding(probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except Exception as error:  # one that fails must not hide what the others found
        return Unreadable(f"{type(error).__name__}: {error}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, (list, tuple)) else value


def _page(findings: dict[str, Any]) -> Iterator[str]:
    for name, finding in findings.items():
        if isinstance(finding, Unreadable):
            lines = [f"could not be read: {finding.problem}"]
        else:
            lines = list(_WORDS[name](finding))
        yield f"{name:<10} {lines[0]}"
        for line in lines[1:]:
            yield f"{'':<10} {line}"


def _python(found: probes.Interpreter) -> Iterator[str]:
    yield f"{found.version} ({found.implementation}) {found.executable}"


def _asyncflow(found: str) -> Iterator[str]:
    yield found


def _cores(found: probes.Cores) -> Iterator[str]:
    yield f"{found.used} used by a local backend: the least of {_limits(found, '')}"


def _memory(found: probes.Memory) -> Iterator[str]:
    yield f"{found.used:,} MB given out by a local backend: the least of {_limits(found, ' MB')}"


def _limits(found: probes.Cores | probes.Memory, unit: str) -> str:
    limits = dataclasses.asdict(found)
    del limits["used"]
    return ", ".join(f"{who} {'no limit' if limit is None else f'{limit:,}{unit}'}" for who, limit in limits.items())


def _gpus(found: probes.Gpus) -> Iterator[str]:
    yield f"{', '.join(found.ids) or 'none'} (by {found.source})"


def _directory(found: FileSystem) -> Iterator[str]:
    yield f"{found.folder} is on {found.name}, mounted at {found.mount}"
    yield found.advice


def _slurm(found: probes.Slurm) -> Iterator[str]:
    yield from ["no allocation"] if found.allocation is None else _allocation(found.allocation)
    programs = {"sbatch": found.sbatch, "srun": found.srun}
    if found.allocation is not None or any(programs.values()):
        yield ", ".join(f"{name} {path or 'not on PATH'}" for name, path in programs.items())


def _allocation(found: probes.Allocation) -> Iterator[str]:
    nodes = "1 node" if found.nodes == 1 else f"{'?' if found.nodes is None else found.nodes} nodes"
    yield f"job {found.job} on {nodes} ({found.node_list or '?'}), partition {found.partition or '?'}"
    if found.ends_at is None or found.seconds_left is None:
        yield "its end is not known: SLURM_JOB_END_TIME is not set, and scontrol does not tell"
    else:
        ends = datetime.fromtimestamp(found.ends_at).astimezone()
        yield f"ends {ends:%Y-%m-%d %H:%M:%S}, {_left(found.seconds_left)}"


def _left(seconds: int) -> str:
    hours, minutes = divmod(abs(seconds) // 60, 60)
    return f"{hours} h {minutes} min {'ago' if seconds < 0 else 'from now'}"


def _mpi(found: probes.Launcher | None) -> Iterator[str]:
    yield found.path if found else "none on PATH: tasks with ranks > 1 need an MPI (Open MPI, MPICH)"


def _backends(found: list[probes.BackendFinding]) -> Iterator[str]:
    width = max(len(backend.name) for backend in found)
    yield f"{'':<{width}}  installed  usable"
    for backend in found:
        line = f"{backend.name:<{width}}  {_yes(backend.installed):<9}  {_yes(backend.usable):<6}  {backend.advice}"
        yield line.rstrip()


def _yes(value: bool) -> str:
    return "yes" if value else "no"


_WORDS: dict[str, Callable[[Any], Iterator[str]]] = {
    "python": _python,
    "asyncflow": _asyncflow,
    "cores": _cores,
    "memory": _memory,
    "gpus": _gpus,
    "directory": _directory,
    "slurm": _slurm,
    "mpi": _mpi,
    "backends": _backends,
}
