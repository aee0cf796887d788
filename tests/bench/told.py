"""What telemetry costs: processor time a task on threads, with the file, with spans, and without either."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median

from tests.bench.contenders import WORKERS
from tests.bench.plan import Plan
from tests.bench.rows import Row, Selection, guarded
from tests.bench.session import Child, Sample, in_turns, noise_of
from tests.bench.work import calibrate

#: Microseconds of processor time a task more than without.
_GOALS = {"file": 10.0, "spans": None}
#: Patterns of no-op tasks.
_PATTERNS = ("trivial", "stencil_1d", "random")
#: Of the time of tasks of a millisecond.
_SHARE = 0.05


def measure(plan: Plan, selection: Selection) -> Iterator[Row]:
    for kind, goal in _GOALS.items():
        for pattern in _PATTERNS:
            name = f"{kind}: {pattern}"
            if selection.has("telemetry", name):
                yield guarded("telemetry", name, goal, partial(_extra, plan, kind, pattern, goal))
    if selection.has("telemetry", "file: 1 ms tasks"):
        yield guarded("telemetry", "file: 1 ms tasks", _SHARE, partial(_share, plan))


def _rounds(plan: Plan, kind: str, pattern: str, tasks: int, iterations: int = 0) -> list[list[Sample]]:
    with Child(f"threads, {kind}") as told, Child("threads") as untold:
        asks = [
            partial(each.ask, "processor", pattern=pattern, tasks=tasks, iterations=iterations)
            for each in (told, untold)
        ]
        return in_turns(asks, plan.rounds, plan.patience)


def _extra(plan: Plan, kind: str, pattern: str, goal: float | None) -> Row:
    tasks = plan.size("threads", pattern)
    rounds = _rounds(plan, kind, pattern, tasks)
    extras = sorted(_micros(told) - _micros(untold) for told, untold in rounds)
    margin = len(extras) // 4
    mine, without = (median(_micros(samples[column]) for samples in rounds) for column in (0, 1))
    return Row(
        "telemetry",
        f"{kind}: {pattern}",
        median(extras),
        goal,
        "µs",
        f"{mine:.1f} µs a task, {without:.1f} without; {tasks:,} tasks",
        (extras[margin], extras[-1 - margin]),
        noise_of(rounds),
        {"us_per_task": mine, "us_per_task_without": without},
    )


def _share(plan: Plan) -> Row:
    tasks = plan.size("threads", "trivial") // 5
    rounds = _rounds(plan, "file", "trivial", tasks, calibrate(WORKERS).iterations(1000.0))
    shares = sorted(told.reply["seconds"] / untold.reply["seconds"] - 1 for told, untold in rounds)
    margin = len(shares) // 4
    detail = f"of the time of {tasks:,} tasks"
    spread = shares[margin], shares[-1 - margin]
    return Row("telemetry", "file: 1 ms tasks", median(shares), _SHARE, "", detail, spread, noise_of(rounds))


def _micros(sample: Sample) -> float:
    return sample.reply["processor"] / sample.reply["tasks"] * 1e6
