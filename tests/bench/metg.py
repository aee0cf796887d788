"""METG(50 %): the least work in a task, in microseconds, at which two workers still do half of what they could."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from tests.bench.contenders import CONTENDERS, LOCAL, RAW, WORKERS
from tests.bench.plan import Plan
from tests.bench.rows import Row, Selection
from tests.bench.session import Child, ChildFailed, Sample, in_turns
from tests.bench.work import Speed, calibrate

PATTERNS = ("trivial", "stencil_1d")
_HALF = 0.5
#: Below this efficiency twice, a contender goes no finer.
_ENOUGH = 0.4
_FEWEST, _MOST = 64, 10_000


class Point(NamedTuple):
    """`efficiency` is the ideal time over the measured one, with tasks of `grain` microseconds."""

    grain: float
    efficiency: float
    noise: float


def measure(plan: Plan, selection: Selection) -> Iterator[Row]:
    for pattern in PATTERNS:
        chosen = list(selection.of("metg", tuple(f"{backend} {pattern}" for backend in LOCAL)))
        if chosen:
            backends = [backend for backend in LOCAL if f"{backend} {pattern}" in chosen]
            yield from _rows(plan, pattern, backends)


def _rows(plan: Plan, pattern: str, backends: list[str]) -> Iterator[Row]:
    contenders = [name for backend in backends for name in (backend, RAW[backend])]
    try:
        curves = _curves(plan, pattern, contenders)
    except ChildFailed as error:
        for backend in backends:
            yield Row("metg", f"{backend} {pattern}", None, None, "µs", str(error)[-300:])
        return
    for backend in backends:
        mine, theirs = crossing(curves[backend]), crossing(curves[RAW[backend]])
        yield Row(
            "metg",
            f"{backend} {pattern}",
            mine,
            None,
            "µs",
            f"raw {RAW[backend]} {_text(theirs)}",
            noise=max(point.noise for point in curves[backend]),
            data={
                "raw_us": theirs,
                "curve": [point._asdict() for point in curves[backend]],
                "raw_curve": [point._asdict() for point in curves[RAW[backend]]],
            },
        )


def _text(microseconds: float | None) -> str:
    return f"{microseconds:.1f} µs" if microseconds is not None else "not reached"


def _curves(plan: Plan, pattern: str, contenders: list[str]) -> dict[str, list[Point]]:
    """For each contender its efficiencies from coarse to fine; at each grain all are measured in turn."""
    assert set(contenders) <= set(CONTENDERS)
    curves: dict[str, list[Point]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        children = {name: stack.enter_context(Child(name)) for name in contenders}
        for child in children.values():
            child.get_ready()
        plan.patience.wait()
        speed = calibrate(WORKERS)
        for grain in plan.grains:
            active = [name for name in contenders if not _went_far_enough(curves[name])]
            if active:
                _grain(plan, pattern, speed, grain, {name: children[name] for name in active}, curves)
    return curves


def _grain(
    plan: Plan, pattern: str, speed: Speed, grain: float, children: dict[str, Child], curves: dict[str, list[Point]]
) -> None:
    iterations = speed.iterations(grain)
    grain = speed.microseconds(iterations)
    tasks = int(min(_MOST, max(_FEWEST, plan.ideal * WORKERS * 1e6 / grain)))
    asks = [
        partial(child.ask, "graph", pattern=pattern, tasks=tasks, iterations=iterations) for child in children.values()
    ]
    # The first grain warms up for the others: what a task costs is then known to whoever learns that.
    rounds = in_turns(asks, plan.metg_rounds, plan.patience, warm_up=not any(curves.values()))
    for column, name in enumerate(children):
        curves[name].append(_point(grain, [samples[column] for samples in rounds]))


def _point(grain: float, samples: list[Sample]) -> Point:
    efficiency = median(grain * 1e-6 * each.reply["tasks"] / WORKERS / each.reply["seconds"] for each in samples)
    return Point(grain, efficiency, max(each.noise for each in samples))


def _went_far_enough(curve: list[Point]) -> bool:
    return len(curve) > 1 and all(point.efficiency < _ENOUGH for point in curve[-2:])


def crossing(curve: list[Point]) -> float | None:
    """The grain at which a curve, from coarse to fine, first falls to one half, between points by the logarithm.

    None where it never does, or was never above.
    """
    for above, below in pairwise(curve):
        if above.efficiency >= _HALF > below.efficiency:
            part = (above.efficiency - _HALF) / (above.efficiency - below.efficiency)
            return math.exp(math.log(above.grain) + part * math.log(below.grain / above.grain))
    return None
