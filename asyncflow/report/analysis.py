"""What follows from a run, computed once. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asyncflow.report.chain import Step, chain, steps
from asyncflow.report.critical import CriticalPath, critical_path
from asyncflow.report.run import Run, Task
from asyncflow.report.spent import Totals, totals
from asyncflow.report.usage import Usage, usage


@dataclass(frozen=True)
class Analysis:
    """A run with its figures; times in seconds."""

    run: Run
    path: CriticalPath
    #: From the first call to the last end, what followed on what; and what the makespan went into there.
    chain: Sequence[Task]
    steps: Mapping[Step, float]
    #: Of all tasks, blocks apart.
    everything: Totals
    names: list[Totals]
    used: list[Usage]

    @property
    def lower_bound(self) -> float:
        """What no schedule on these cores can go below: the critical path, or a backend's work on all its cores."""
        return max([self.path.seconds, *(each.used / each.cores for each in self.used if each.cores)])

    @property
    def efficiency(self) -> float:
        """Lower bound / makespan: 1 at best. Clocks that differ must not make it more."""
        return min(1.0, self.lower_bound / self.run.makespan) if self.run.makespan > 0 else 0.0

    @property
    def cores(self) -> int:
        """Of all backends."""
        return sum(each.cores for each in self.used)

    @property
    def core_seconds(self) -> float:
        """Used by tasks, of all backends."""
        return sum(each.used for each in self.used)


def analyse(run: Run) -> Analysis:
    """All figures of a run."""
    path = critical_path(run)
    everything, names = totals(run)
    followed = chain(run)
    return Analysis(run, path, followed, steps(run, followed), everything, names, usage(run))
