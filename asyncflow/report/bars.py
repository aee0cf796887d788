"""What a timeline is made of: the attempts that ran, with what became of them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from asyncflow.graph import State
from asyncflow.report.run import Attempt, Run, Task

#: States and looks are numbers in the page: places in this list. A look is that of a state, or RETRIED.
STATES = [State.DONE, State.FAILED, State.CANCELLED, State.RUNNING, State.PENDING]
RETRIED = len(STATES)


@dataclass(frozen=True, slots=True)
class Bar:
    """One attempt that began."""

    task: Task
    attempt: Attempt
    begin: float
    end: float

    @property
    def look(self) -> int:
        """What became of it."""
        if self.attempt.ended is None:
            return STATES.index(State.RUNNING)
        if self.attempt.failure is not None and self.attempt.failure is not self.task.failure:
            return RETRIED
        return STATES.index(self.task.state) if self.task.ended is not None else RETRIED

    @property
    def place(self) -> tuple[str, str, str]:
        """Backend, host and worker; empty where that is not known."""
        attempt = self.attempt
        return attempt.backend or self.task.backend or "", attempt.host or "", attempt.worker or ""


def bars_of(run: Run) -> list[Bar]:
    """All attempts that began, by their beginning."""
    return sorted((Bar(*each) for each in run.attempts()), key=beginning)


def beginning(bar: Bar) -> tuple[float, float]:
    """What bars are sorted by."""
    return bar.begin, bar.end


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts `w2` before `w10`."""
    parts = re.split(r"(\d{1,18})", text)
    return [(1, int(part), "") if place % 2 else (0, 0, part) for place, part in enumerate(parts)]
