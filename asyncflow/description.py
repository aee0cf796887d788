"""What a task asks of its backend: ranks, cores, GPUs, memory, environment. The field's names, typed and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from asyncflow.errors import InvalidOptionError, TaskDefinitionError, UnknownOptionError
from asyncflow.options import variables, whole


@dataclass(frozen=True)
class Resources:
    """An amount of cores, GPUs and memory: what a backend has in all, or what one task holds."""

    cores: int = 0
    gpus: int = 0
    #: MB (10**6 bytes), as in RADICAL-Pilot's task description.
    memory: int = 0

    def shortfalls(self, total: Resources) -> list[str]:
        """In words, each kind of which this asks for more than `total` has."""
        asked = (("cores", self.cores, total.cores), ("GPUs", self.gpus, total.gpus), ("MB", self.memory, total.memory))
        return [f"{want} {kind} where there are {have}" for kind, want, have in asked if want > have]


@dataclass(frozen=True)
class TaskDescription:
    """What one task asks for; also accepted as a dict with the same keys.

    A task that names any of the amounts holds them from its start to its end.
    """

    #: How many MPI ranks; more than one runs under `mpirun`.
    ranks: int = 1
    cores_per_rank: int = 1
    gpus_per_rank: int = 0
    #: MB (10**6 bytes) of memory for each rank; counted, not enforced.
    mem_per_rank: int = 0
    #: Environment variables added to those of the worker.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Shell commands run, in this order and in one shell, before each rank starts.
    pre_exec: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, least in (("ranks", 1), ("cores_per_rank", 1), ("gpus_per_rank", 0), ("mem_per_rank", 0)):
            whole(f"task_description: {name}", getattr(self, name), least)
        commands = self.pre_exec
        if not isinstance(commands, (list, tuple)) or not all(isinstance(command, str) for command in commands):
            raise InvalidOptionError("task_description: pre_exec", commands, "a list of shell commands")
        # Copied and coerced, so that a later change of the caller's dict changes nothing here.
        environment = variables("task_description: environment", self.environment)
        object.__setattr__(self, "environment", MappingProxyType(environment))
        object.__setattr__(self, "pre_exec", tuple(self.pre_exec))

    def __reduce__(self) -> Any:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return _described, (values | {"environment": dict(self.environment)},)

    @property
    def resources(self) -> Resources:
        """What all ranks hold together."""
        return Resources(
            self.ranks * self.cores_per_rank,
            self.ranks * self.gpus_per_rank,
            self.ranks * self.mem_per_rank,
        )

    @property
    def rank(self) -> Resources:
        """What one rank holds."""
        return Resources(self.cores_per_rank, self.gpus_per_rank, self.mem_per_rank)

    @property
    def needs_launch(self) -> bool:
        """Whether a function can meet this only in processes started for this one call."""
        return self.ranks > 1 or bool(self.pre_exec)

    @property
    def needs_environment(self) -> bool:
        """Whether a function can meet this only in a process with an environment of its own."""
        return bool(self.gpus_per_rank or self.environment)


def _described(values: dict[str, Any]) -> TaskDescription:
    return TaskDescription(**values)


def describe(name: str, value: TaskDescription | Mapping[str, Any] | None) -> TaskDescription | None:
    """`task_description=` of the task called `name`, as the typed object; None where nothing is asked for."""
    if value is None or isinstance(value, TaskDescription):
        return value
    if not isinstance(value, Mapping):
        raise TaskDefinitionError(name, f"task_description is a {type(value).__name__}, not a dict or TaskDescription")
    known = [f.name for f in fields(TaskDescription)]
    for key in value:
        if key not in known:
            raise UnknownOptionError("task_description", str(key), known)
    return TaskDescription(**value) if value else None
