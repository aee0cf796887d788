"""The critical path: the longest chain of dependencies by the seconds that its tasks ran. Pure.

A block runs for as long as the tasks that it calls, and waits where these wait: counted as a whole it would be the path
of most runs that have one. So what it called stands in its place: it begins before them, ends after them, and takes no
time itself. Only a block that called nothing that ran counts like a task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from asyncflow.report.run import Run, Task

#: Stands for the beginning of a block: its uid with this in front, which no uid begins with.
_BEGIN = "\0"


@dataclass(frozen=True)
class CriticalPath:
    """No number of workers makes the run shorter than this."""

    #: Each follows from the one before it; all of them ran.
    tasks: tuple[Task, ...] = ()
    #: Seconds that their attempts ran, all together.
    seconds: float = 0.0


def critical_path(run: Run) -> CriticalPath:
    """The path with the largest sum; of several the one that is found first. O(tasks + dependencies)."""
    before = _before(run)
    lasted = {uid: run.running(task) for uid, task in run.tasks.items() if _BEGIN + uid not in before}
    sums: dict[str, float] = {}
    came_from: dict[str, str] = {}
    for node in in_order(before):
        longest, parent = 0.0, None
        for each in before[node]:
            # Not known yet in a circle, which only a broken file has.
            known = sums.get(each)
            if known is not None and (parent is None or known > longest):
                longest, parent = known, each
        sums[node] = longest + lasted.get(node, 0.0)
        if parent is not None:
            came_from[node] = parent
    if not sums:
        return CriticalPath()
    last = max(sums, key=sums.__getitem__)
    on_path = (run.tasks[node] for node in _walk(last, came_from) if node in lasted)
    return CriticalPath(tuple(task for task in on_path if task.started is not None)[::-1], sums[last])


def _walk(node: str | None, came_from: Mapping[str, str]) -> Iterator[str]:
    while node is not None:
        yield node
        node = came_from.get(node)


def _before(run: Run) -> dict[str, list[str]]:
    """What each node follows; the nodes are the tasks, and the beginnings of blocks that called something that ran."""
    tasks = run.tasks
    parts: dict[str, list[str]] = {}
    for task in tasks.values():
        parent = tasks.get(task.parent or "")
        if parent is not None and parent.is_block and task.started is not None:
            parts.setdefault(parent.uid, []).append(task.uid)
    before: dict[str, list[str]] = {}
    for uid, task in tasks.items():
        above = [each for each in task.depends_on if each in tasks]
        if task.parent in parts:
            above.append(_BEGIN + task.parent)
        if uid in parts:
            before[_BEGIN + uid] = above
            above = [_BEGIN + uid, *parts[uid]]
        before[uid] = above
    return before


def in_order(before: Mapping[str, list[str]]) -> Iterator[str]:
    """Each node after those that it follows; what is in a circle, in a broken file, comes last."""
    waits = {node: len(above) for node, above in before.items()}
    after: dict[str, list[str]] = {}
    for node, above in before.items():
        for each in above:
            after.setdefault(each, []).append(node)
    ready = deque(node for node, count in waits.items() if not count)
    while ready:
        node = ready.popleft()
        del waits[node]
        yield node
        for follower in after.get(node, ()):
            waits[follower] -= 1
            if not waits[follower]:
                ready.append(follower)
    yield from waits
