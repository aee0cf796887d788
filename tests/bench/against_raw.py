"""No-op tasks in each pattern, and large arrays: the engine's time over that of the standard library's pool by hand."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median

from tests.bench.contenders import RAW
from tests.bench.patterns import PATTERNS
from tests.bench.plan import Plan
from tests.bench.rows import Row, Selection, guarded
from tests.bench.session import Child, Sample, in_turns, ratio, seconds, seconds_per_task

_GOALS = {"threads": 0.25, "processes": 0.3, "dask": 0.7}
_CHAIN_GOALS = {"threads": 1.2, "processes": 1.0, "dask": 0.7}
#: Where not all of them: by hand a task takes milliseconds there.
_PATTERNS = {"dask": ("trivial", "chain")}
_ROUNDS = {"dask": 3}
_ARRAY_GOAL = 0.7
_MEGABYTES = 8


def measure(plan: Plan, selection: Selection) -> Iterator[Row]:
    for backend in RAW:
        for pattern in selection.of(backend, _PATTERNS.get(backend, PATTERNS)):
            goal = (_CHAIN_GOALS if pattern == "chain" else _GOALS)[backend]
            yield guarded(backend, pattern, goal, partial(_pattern, plan, backend, pattern, goal))
    for name in selection.of("arrays", (f"{_MEGABYTES} MB",)):
        yield guarded("arrays", name, _ARRAY_GOAL, partial(_array, plan, name))


def _pattern(plan: Plan, backend: str, pattern: str, goal: float) -> Row:
    size = plan.size(backend, pattern)
    with Child(backend) as ours, Child(RAW[backend]) as raw:
        asks = [partial(child.ask, "graph", pattern=pattern, tasks=size) for child in (ours, raw)]
        rounds = in_turns(asks, min(plan.rounds, _ROUNDS.get(backend, plan.rounds)), plan.patience)
    found = ratio(rounds, seconds)
    mine, theirs = (_median_us(rounds, column) for column in (0, 1))
    return Row(
        backend,
        pattern,
        found.value,
        goal,
        detail=f"{mine:.1f} µs a task, raw {theirs:.1f}; {size:,} tasks",
        spread=(found.low, found.high),
        noise=found.noise,
        data={"us_per_task": mine, "raw_us_per_task": theirs, "tasks": size},
    )


def _median_us(rounds: list[list[Sample]], column: int) -> float:
    return median(seconds_per_task(samples[column]) for samples in rounds) * 1e6


def _array(plan: Plan, name: str) -> Row:
    with Child("processes") as ours, Child(RAW["processes"]) as raw:
        asks = [partial(child.ask, "array", megabytes=_MEGABYTES, trips=plan.trips) for child in (ours, raw)]
        rounds = in_turns(asks, plan.rounds, plan.patience)
    found = ratio(rounds, seconds)
    mine, theirs = (median(seconds(samples[column]) for samples in rounds) * 1e3 for column in (0, 1))
    detail = f"{mine:.1f} ms there and back, raw {theirs:.1f}"
    return Row("arrays", name, found.value, _ARRAY_GOAL, "", detail, (found.low, found.high), found.noise)
