"""How much is measured in a full run, and in a quick one whose figures only say whether something broke."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.bench.machine import Patience


@dataclass(frozen=True)
class Plan:
    #: No-op tasks in a graph on each backend; a chain between processes is shorter: each link is a round trip.
    tasks: Mapping[str, int]
    short_chain: int
    rounds: int
    #: The graph that must cost no more a task than one of `few`, and how many processes measure both.
    few: int
    many: int
    many_rounds: int
    #: The graph in which memory is measured.
    pending: int
    #: Children of one parent, and parents of one child.
    edges: Sequence[int]
    #: Trips of the array in one measurement.
    trips: int
    #: METG: microseconds of work in a task, from coarse to fine; seconds of it for each worker at each of them.
    grains: Sequence[float]
    ideal: float
    metg_rounds: int
    patience: Patience = field(default_factory=lambda: Patience(100, 40, 0.1))

    def size(self, backend: str, pattern: str) -> int:
        """Tasks in a graph of no-ops."""
        return self.short_chain if pattern == "chain" and backend != "threads" else self.tasks[backend]


def _grains(coarsest: float, finest: float, factor: float) -> list[float]:
    grains = [coarsest]
    while grains[-1] > finest:
        grains.append(grains[-1] / factor)
    return grains


def full() -> Plan:
    """Below 12 minutes on two cores."""
    return Plan(
        tasks={"threads": 10_000, "processes": 10_000, "dask": 10_000},
        short_chain=1_000,
        rounds=7,
        few=10_000,
        many=1_000_000,
        many_rounds=3,
        pending=1_000_000,
        edges=(10_000, 20_000, 40_000),
        trips=20,
        grains=_grains(1024, 2, 2**0.5),
        ideal=0.2,
        metg_rounds=3,
    )


def quick() -> Plan:
    """Below a minute on two cores."""
    return Plan(
        tasks={"threads": 3_000, "processes": 2_000, "dask": 300},
        short_chain=300,
        rounds=3,
        few=10_000,
        many=100_000,
        many_rounds=1,
        pending=100_000,
        edges=(5_000, 10_000, 20_000),
        trips=5,
        grains=_grains(512, 4, 2),
        ideal=0.05,
        metg_rounds=1,
        patience=Patience(4, 0, 0.05),
    )
