"""What the process that holds a pilot tells the engine."""

from __future__ import annotations

from typing import NamedTuple

#: Under which name it serves engines, beside what Dask's scheduler serves.
HANDLER = "asyncflow-pilot"


class PilotNode(NamedTuple):
    """A node of the pilot."""

    name: str
    #: Its number in the pilot.
    number: int
    #: Numbers of the cores and GPUs that tasks may have there.
    cores: tuple[int, ...]
    gpus: tuple[int, ...]
    #: MB.
    memory: int


class TaskState(NamedTuple):
    """What has become of a task."""

    uid: str
    state: str
    #: Whether the pilot's executor has had it.
    executed: bool
    final: bool
    exit_code: int | None
    #: Why RADICAL-Pilot could not run it.
    reason: str
    #: Its folder.
    sandbox: str
