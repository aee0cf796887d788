"""Task graphs in the vocabulary of Task Bench (Slaughter et al., SC20), and the values that their tasks must return."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

#: Tasks in each step of the patterns that are a grid of tasks by steps.
WIDTH = 8
#: Values stay below this, so that no pattern's grow to big integers.
MODULUS = 1 << 31

Parents = list[tuple[int, ...]]


def combine(parents: tuple[int, ...]) -> int:
    """The value of a task whose parents have these: the number of paths to it, from any task, itself included."""
    return (1 + sum(parents)) % MODULUS


@dataclass(frozen=True)
class Graph:
    """`parents[i]` are the tasks whose values are the arguments of task i; each comes before it."""

    parents: Parents
    #: The tasks that nobody waits for, except the user.
    sinks: list[int]

    @property
    def tasks(self) -> int:
        return len(self.parents)

    @property
    def edges(self) -> int:
        return sum(map(len, self.parents))

    def children(self) -> list[list[int]]:
        """For each task those that wait for it."""
        children: list[list[int]] = [[] for _ in self.parents]
        for task, parents in enumerate(self.parents):
            for parent in parents:
                children[parent].append(task)
        return children

    def expected(self) -> list[int]:
        """The values of the sinks, computed without any engine."""
        values: list[int] = []
        for parents in self.parents:
            values.append(combine(tuple([values[parent] for parent in parents])))
        return [values[task] for task in self.sinks]


def trivial(tasks: int) -> Parents:
    """No edges at all."""
    return [()] * tasks


def chain(tasks: int) -> Parents:
    """Each waits for the one before."""
    return [(), *((task - 1,) for task in range(1, tasks))]


def fan(tasks: int) -> Parents:
    """One, all others but one, and one that waits for them."""
    return [(), *[(0,)] * (tasks - 2), tuple(range(1, tasks - 1))]


def fan_out(tasks: int) -> Parents:
    """All others wait for the first."""
    return [(), *[(0,)] * (tasks - 1)]


def fan_in(tasks: int) -> Parents:
    """The last waits for all others."""
    return [*[()] * (tasks - 1), tuple(range(tasks - 1))]


def stencil_1d(tasks: int) -> Parents:
    """A row of WIDTH cells, step by step; each waits for itself and its neighbours in the step before."""
    parents: Parents = []
    for task in range(tasks):
        step, cell = divmod(task, WIDTH)
        near = range(max(cell - 1, 0), min(cell + 2, WIDTH))
        parents.append(tuple((step - 1) * WIDTH + other for other in near) if step else ())
    return parents


def tree(tasks: int) -> Parents:
    """A binary tree that branches out to a third of the tasks, and another in which these come together again."""
    leaves = max(1, (tasks + 2) // 3)
    parents: Parents = [(), *((((task - 1) // 2),) for task in range(1, 2 * leaves - 1))]
    meeting = list(range(leaves - 1, 2 * leaves - 1))
    # A queue: what two have met in meets others later.
    for pair in range(0, 2 * leaves - 2, 2):
        meeting.append(len(parents))
        parents.append((meeting[pair], meeting[pair + 1]))
    return parents


def random_steps(tasks: int) -> Parents:
    """Steps of WIDTH tasks; each waits for one to three of the step before, always the same ones for a size."""
    dice = random.Random(tasks)
    cells = range(WIDTH)
    parents: Parents = [()] * min(tasks, WIDTH)
    for task in range(WIDTH, tasks):
        before = (task // WIDTH - 1) * WIDTH
        first, stride, count = dice.choice(cells), dice.choice((1, 3)), dice.choice((1, 2, 3))
        # Both strides meet each cell once before they come round.
        parents.append(tuple([before + (first + stride * step) % WIDTH for step in range(count)]))
    return parents


_MAKERS: dict[str, Callable[[int], Parents]] = {
    "trivial": trivial,
    "chain": chain,
    "fan": fan,
    "stencil_1d": stencil_1d,
    "tree": tree,
    "random": random_steps,
    "fan_out": fan_out,
    "fan_in": fan_in,
}
#: The patterns that every engine is measured with.
PATTERNS = ("trivial", "chain", "fan", "stencil_1d", "tree", "random")


def build(pattern: str, tasks: int) -> Graph:
    """A graph of `tasks` tasks; of "tree" the nearest number below that makes one."""
    parents = _MAKERS[pattern](tasks)
    has_children = bytearray(len(parents))
    for row in parents:
        for parent in row:
            has_children[parent] = 1
    return Graph(parents, [task for task, inner in enumerate(has_children) if not inner])
