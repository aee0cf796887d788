"""What must not grow with the graph: the cost of a task, the cost of an edge, the memory of a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median

from tests.bench.patterns import PATTERNS
from tests.bench.plan import Plan
from tests.bench.rows import Row, Selection, guarded
from tests.bench.session import (
    Child,
    ChildFailed,
    Sample,
    in_turns,
    noise_of,
    ratio,
    seconds_per_edge,
    seconds_per_task,
)

_TASK_GOAL = 1.5
#: Linear is 1; quadratic would be the factor between the smallest and the largest number of edges, 4.
_EDGE_GOAL = 1.5
#: Bytes a task.
_PENDING_GOAL = 1024.0
#: Bytes in all that stand for none kept: memory is given back in pages and arenas, and what lives on, the history
#: above all, is spread over some of them, however many tasks there were.
_KEPT_GOAL = 16e6
#: Objects a task that the garbage collector knows.
_OBJECTS_GOAL = 0.001
_RUNS_OF_FEW = 5


def measure(plan: Plan, selection: Selection) -> Iterator[Row]:
    for pattern in selection.of("growth", PATTERNS):
        yield guarded("growth", pattern, _TASK_GOAL, partial(_tasks, plan, pattern))
    for pattern in selection.of("edges", ("fan_in", "fan_out")):
        yield guarded("edges", pattern, _EDGE_GOAL, partial(_edges, plan, pattern))
    names = list(selection.of("memory", ("pending", "kept", "objects")))
    if names:
        yield from (row for row in _memory(plan) if row.name in names)


def _tasks(plan: Plan, pattern: str) -> Row:
    rounds = [_many_and_few(plan, pattern) for _ in range(plan.many_rounds)]
    found = ratio(rounds, seconds_per_task)
    many, few = (median(seconds_per_task(samples[column]) for samples in rounds) * 1e6 for column in (0, 1))
    detail = f"{many:.1f} µs a task at {plan.many:,}, {few:.1f} at {plan.few:,}"
    return Row("growth", pattern, found.value, _TASK_GOAL, "", detail, (found.low, found.high), found.noise)


def _many_and_few(plan: Plan, pattern: str) -> list[Sample]:
    """In a fresh process the small graph, of which the median counts, then the large one."""
    with Child("threads") as child:
        small = partial(child.ask, "graph", pattern=pattern, tasks=plan.few)
        runs = in_turns([small], _RUNS_OF_FEW, plan.patience)
        plan.patience.wait()
        many = child.ask("graph", pattern=pattern, tasks=plan.many)
    return [many, sorted((run for (run,) in runs), key=seconds_per_task)[len(runs) // 2]]


def _edges(plan: Plan, pattern: str) -> Row:
    """The graph has as many edges as tasks but one, so this is the cost of both together."""
    largest_first: Sequence[int] = sorted(plan.edges, reverse=True)
    with Child("threads") as child:
        asks = [partial(child.ask, "graph", pattern=pattern, tasks=edges + 1) for edges in largest_first]
        rounds = in_turns(asks, plan.rounds, plan.patience)
    costs = [median(seconds_per_edge(samples[column]) for samples in rounds) for column in range(len(asks))]
    found = ratio([[samples[0], samples[-1]] for samples in rounds], seconds_per_edge)
    detail = ", ".join(f"{cost * 1e6:.2f} µs at {edges:,}" for edges, cost in zip(largest_first, costs, strict=True))
    return Row(
        "edges",
        pattern,
        found.value,
        _EDGE_GOAL,
        detail=f"an edge and its task {detail}",
        spread=(found.low, found.high),
        noise=noise_of(rounds),
    )


def _memory(plan: Plan) -> Iterator[Row]:
    goals = {"pending": _PENDING_GOAL, "kept": _KEPT_GOAL / plan.pending, "objects": _OBJECTS_GOAL}
    try:
        with Child("threads", timeout=300) as child:
            reply, noise = child.ask("memory", tasks=plan.pending)
    except ChildFailed as error:
        yield from (Row("memory", name, None, goal, detail=str(error)[-300:]) for name, goal in goals.items())
        return
    details = {
        "pending": f"a task, while {plan.pending:,} wait for one; futures and the list of them included",
        "kept": f"a task, after two rounds, all futures dropped; the second round alone {reply['again']:.1f} B",
        "objects": "a task, after the same two rounds",
    }
    for name, goal in goals.items():
        unit = "" if name == "objects" else "B"
        yield Row("memory", name, reply[name], goal, unit, details[name], noise=noise)
