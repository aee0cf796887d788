"""Real workflows, as they were recorded, run again with each task's runtime scaled down.

The recordings are no part of the project: they stand in `../shared/data/wfinstances`, beside the checkout, and the
tests are skipped where they do not.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncflow import State, TaskFuture, WorkflowEngine
from asyncflow.backends import Backend, ProcessBackend, ThreadBackend
from asyncflow.wfformat import parse_workflow
from tests.support.faked import soon
from tests.support.recordings import INSTANCES, needs_recordings

#: Seconds that a workflow would take at best.
LASTING = 1.5


def note(file: str, line: str) -> None:
    """Append a line in one piece, whoever else does so at the same time."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def run_recorded(label: str, seconds: float, file: str, parents: list[str]) -> str:
    """A recorded task, run again; `parents` are what its parents returned."""
    note(file, f"begin {label} {','.join(sorted(parents))}")
    time.sleep(seconds)
    note(file, f"end {label}")
    return label


@needs_recordings
@pytest.mark.parametrize("backend,workers", [(ThreadBackend, 8), (ProcessBackend, 2)], ids=["threads", "processes"])
@pytest.mark.parametrize(
    "name,tasks,edges",
    [("montage-chameleon-dss-05d-001", 58, 114), ("bwa-chameleon-large-001", 1004, 4000)],
    ids=["montage", "bwa-large"],
)
async def test_a_recorded_workflow_runs_every_task_once_after_its_parents(
    name: str, tasks: int, edges: int, backend: Callable[[int], Backend], workers: int, tmp_path: Path, no_leaks: None
) -> None:
    recorded = parse_workflow((INSTANCES / f"{name}.json").read_bytes(), name)
    assert (len(recorded.tasks), recorded.edges) == (tasks, edges)
    scale = LASTING / recorded.lower_bound(workers)
    file = tmp_path / "trace"

    async with WorkflowEngine.create(backend(workers)) as flow:
        run = flow.function_task(run_recorded)
        futures: dict[str, TaskFuture[str]] = {}
        async with flow.workflow_scope(name):
            for task in recorded.tasks:
                parents = [futures[parent] for parent in task.parents]
                futures[task.id] = run(task.id, task.runtime * scale, str(file), parents)
        await soon(flow.drain())

        assert {future.state for future in futures.values()} == {State.DONE}
        assert {future.workflow_id for future in futures.values()} == {name}
        assert all(future.result() == label for label, future in futures.items())
        assert len(flow.components) == tasks

    needs = {task.id: set(task.parents) for task in recorded.tasks}
    ended: set[str] = set()
    begun: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        event, label, *given = line.split(" ")
        if event == "begin":
            begun[label] += 1
            assert needs[label] <= ended, f"{label} began before its parents had ended"
            assert {parent for parent in given[0].split(",") if parent} == needs[label]
        else:
            ended.add(label)
    assert begun == dict.fromkeys(needs, 1)
    assert ended == needs.keys()
