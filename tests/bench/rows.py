"""One line of the result: what was measured, and what it should be at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.bench.session import ChildFailed


@dataclass
class Row:
    group: str
    name: str
    #: In `unit`; None where it could not be measured, and `detail` says why.
    value: float | None
    #: The most that `value` should be; None where there is no goal.
    goal: float | None
    #: "" is a ratio.
    unit: str = ""
    detail: str = ""
    #: What half of the rounds lie between.
    spread: tuple[float, float] | None = None
    #: The share of the machine that others took meanwhile, from 0 to 1.
    noise: float | None = None
    #: What the plot and other rows need beside.
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """None where there is no goal."""
        if self.goal is None:
            return None
        return self.value is not None and self.value <= self.goal


def guarded(group: str, name: str, goal: float | None, measure: Callable[[], Row]) -> Row:
    """The row that `measure` makes; one that says why where a measuring process failed."""
    try:
        return measure()
    except ChildFailed as error:
        return Row(group, name, None, goal, detail=" ".join(str(error).split())[-300:])


@dataclass(frozen=True)
class Selection:
    """What `--only` chose: groups ("threads") or rows ("threads/chain"); all where nothing was chosen."""

    chosen: tuple[str, ...]

    def has(self, group: str, name: str) -> bool:
        return not self.chosen or group in self.chosen or f"{group}/{name}" in self.chosen

    def of(self, group: str, names: tuple[str, ...]) -> Iterator[str]:
        """Those of a group's rows that were chosen."""
        return (name for name in names if self.has(group, name))
