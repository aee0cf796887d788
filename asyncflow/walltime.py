"""When the time of an engine ends, and in which steps the engine ends before it.

A batch system kills what outlives its walltime. So some time before, the *margin*, the engine begins nothing more;
later it stops what still runs and ends every future; in the end it cancels the blocks that are still there. Each step
is a timer of the loop. Touched under the scheduler's lock, but for the timers, which the loop alone touches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from enum import Enum, auto
from time import monotonic, time
from typing import TYPE_CHECKING, Protocol

from asyncflow.backends.allocation import Allocation
from asyncflow.backends.aside import aside
from asyncflow.backends.contract import Kind
from asyncflow.component import Component, Tally
from asyncflow.errors import DependencyFailureError, WalltimeReached

if TYPE_CHECKING:
    from asyncflow.lane import Lane

_log = logging.getLogger("asyncflow")

#: The margin, where none is given: this share of the whole time, and at most so many seconds.
_SHARE, _MARGIN = 0.1, 60.0
#: The most seconds of the margin that are kept for ending: a program gets 5 between TERM and KILL, and the script may
#: want to save something.
_ENDING = 10.0
#: Seconds from one look at an end that may be moved to the next: half of what is left, within these bounds.
_SOONEST, _LATEST = 60.0, 600.0
#: Seconds that shutdown waits for such a look.
_PATIENCE = 5.0
#: Seconds that backends may need to stop beyond their grace.
_LEEWAY = 0.5
#: How many calls of a task, the last ones, count in what one is expected to take.
_LAST = 20


class Stage(Enum):
    """How far the end has come."""

    #: What can finish in time is begun.
    OPEN = auto()
    #: Nothing more is begun; what runs goes on.
    DRAINING = auto()
    #: All futures have ended but those of blocks that still run.
    OVER = auto()


class Steps(Protocol):
    """What the scheduler does when it is time."""

    def keep_to(self, walltime: Walltime) -> None:
        """The end has become known, or has moved."""

    def begin_drain(self) -> None:
        """Begin nothing more."""

    def run_out(self) -> None:
        """End all but blocks that run."""

    def end_blocks(self) -> None:
        """Cancel the blocks that still run."""


class Walltime:
    """The end of one engine's time, if it has one, and what is known of how long its tasks take."""

    def __init__(self, loop: asyncio.AbstractEventLoop, steps: Steps, margin: float | None) -> None:
        """`margin` is seconds before the end from which on nothing is begun; None is a tenth, and at most 60."""
        self._loop = loop
        self._steps = steps
        self._given_margin = margin
        self._began = time()
        #: Seconds since the epoch; None where no end is known.
        self.ends: float | None = None
        self.stage = Stage.OPEN
        #: What futures end with; None until one does.
        self.error: WalltimeReached | None = None
        #: READY tasks that would not finish in time: in no lane's queue, for the end may yet be moved.
        self.held: list[Component] = []
        #: Whether a look at what still runs is due: the scheduler's.
        self.looks = False
        #: Mean seconds of the last calls, by what counts the calls of a name.
        self._costs: dict[Tally, float] = {}
        #: When what runs is stopped, by the monotonic clock.
        self._stops = 0.0
        self._margin = 0.0
        self._taken = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._read: Callable[[], float | None] | None = None
        self._reader: threading.Thread | None = None
        self._next_look: asyncio.TimerHandle | None = None

    # --- what the scheduler asks -------------------------------------------------------------------------------------

    def room(self, lane: Lane) -> int:
        """How many items of `lane` may be out."""
        if self.stage is Stage.OPEN:
            return lane.room(self.left())
        return 0 if self.stage is Stage.DRAINING else sys.maxsize  # what is over takes what comes, to end it

    def fits(self, component: Component) -> bool:
        """Whether a READY component can finish, as far as that is known."""
        if self.stage is not Stage.OPEN:
            return False
        if component.binding.definition.kind is Kind.BLOCK:
            return True  # what it calls is judged, call by call
        needed = self._expected(component)
        return needed is None or needed <= self.left()

    def learn(self, tally: Tally, seconds: float) -> None:
        """A call of that name took so long, and ended well."""
        mean = self._costs.get(tally)
        weight = 1 / min(tally.done + 1, _LAST)
        self._costs[tally] = seconds if mean is None else mean + (seconds - mean) * weight

    def _expected(self, component: Component) -> float | None:
        """Seconds that a call will take: by those before it, else by its timeout; None where nothing is known."""
        known = self._costs.get(component.binding.tally)
        timeout = component.binding.policy.timeout
        if known is not None or timeout is None or self.ends is None:
            return known
        # One that exceeds the whole time says nothing: heeded, it would keep the task from ever being begun.
        return timeout if timeout <= self.ends - self._began else None

    def left(self) -> float:
        """Seconds until what runs is stopped."""
        return self._stops - monotonic()

    @property
    def waits(self) -> bool:
        """Whether the engine may end before its time, once nothing runs."""
        return self.stage is not Stage.OPEN or bool(self.held)

    def release_held(self) -> list[Component]:
        """What was held back, to be judged again; nothing once the engine drains."""
        if self._taken:
            return []
        held, self.held = self.held, []
        return held

    def reached(self, done: int, unfinished: int, stopped: int) -> WalltimeReached:
        """What the futures of this engine end with: one error for all, made for the first."""
        if self.error is None:
            too_long = {held.name: expected for held in self.held if (expected := self._expected(held)) is not None}
            ends = time() if self.ends is None else self.ends
            self.error = WalltimeReached(ends, done, unfinished, stopped, too_long)
        return self.error

    # --- when it ends ------------------------------------------------------------------------------------------------

    def end_at(self, ends: float) -> None:
        """The time ends then, in seconds since the epoch. Too late to be moved once draining has begun."""
        if self._closed or self._taken or ends == self.ends:
            return
        self.ends = ends
        whole = max(0.0, ends - self._began)
        self._margin = min(_MARGIN, _SHARE * whole) if self._given_margin is None else self._given_margin
        self._set()

    def end_within(self, seconds: float) -> None:
        """Begin to drain at once, and end in so many seconds, or sooner where the time does."""
        if self._closed:
            return
        ends = time() + seconds
        self.ends = ends if self.ends is None else min(ends, self.ends)
        self._margin = max(0.0, self.ends - time())
        if self._taken:
            self._set()
        else:
            self._step()

    def follow(self, read: Callable[[], float | None]) -> None:
        """Ask `read`, off the loop, now and now and then, when the time ends: who gave it may move the end."""
        self._read = read
        self._look()

    def grace(self, seconds: float) -> float:
        """At most `seconds`, and less than half of what is left where the engine ends."""
        if self.stage is Stage.OPEN or self.ends is None:
            return seconds
        return max(0.0, min(seconds, (self.ends - time()) / 2 - _LEEWAY))

    def close(self) -> None:
        """Nothing more will happen."""
        self._closed = True
        for timer in (self._timer, self._next_look):
            if timer is not None:
                timer.cancel()

    async def closed(self) -> None:
        """Wait, for a while, until the thread that looks for the end has ended."""
        reader = self._reader
        if reader is not None and reader.is_alive():
            await aside(lambda: reader.join(_PATIENCE), "asyncflow-walltime-stop")

    # --- timers ------------------------------------------------------------------------------------------------------

    def _plan(self) -> list[tuple[float, Callable[[], None]]]:
        """The steps, and how many seconds before the end each is taken."""
        ending = min(_ENDING, self._margin / 2)
        return [
            (self._margin, self._steps.begin_drain),
            (ending, self._steps.run_out),
            (ending / 2, self._steps.end_blocks),
        ]

    def _set(self) -> None:
        """Set the timer for the next step by the end as it is now."""
        assert self.ends is not None
        plan = self._plan()
        now = time()
        self._stops = monotonic() + self.ends - plan[1][0] - now
        if self._timer is not None:
            self._timer.cancel()
        if self._taken < len(plan) and not self._closed:
            self._timer = self._loop.call_later(max(0.0, self.ends - plan[self._taken][0] - now), self._step)
        self._steps.keep_to(self)

    def _step(self) -> None:
        _, step = self._plan()[self._taken]
        self._taken += 1
        self._set()
        step()

    # --- looking -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if not self._closed and not self._taken:
            self._reader = threading.Thread(target=self._ask, name="asyncflow-walltime", daemon=True)
            self._reader.start()

    def _ask(self) -> None:
        ends: float | None = None
        if self._read is not None:
            try:
                ends = self._read()
            except Exception as error:  # whatever a batch system answers must not end the engine
                _log.warning("the end of the walltime is not known: %s; walltime= says it", error)
                self._read = None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody needs to know
            self._loop.call_soon_threadsafe(self._heard, ends)

    def _heard(self, ends: float | None) -> None:
        if self._closed or self._read is None:
            return
        if ends is not None:
            self.end_at(ends)
        left = _LATEST if self.ends is None else self.ends - time()
        self._next_look = self._loop.call_later(min(_LATEST, max(_SOONEST, left / 2)), self._look)


def allocation_end() -> Callable[[], float | None] | None:
    """What reads the end of the allocation that this process runs in, and may block; None outside of any."""
    if not {"SLURM_JOB_ID", "SLURM_JOBID"} & os.environ.keys():
        return None
    found: list[Allocation | None] = []

    def read() -> float | None:
        if not found:
            found.append(Allocation.current())
        return found[0].end_time() if found[0] is not None else None

    return read


def walltime_of(error: BaseException | None) -> WalltimeReached | None:
    """The WalltimeReached that `error` is, comes from, or is a group of nothing but; None for other errors."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, WalltimeReached):
            return error
        members = getattr(error, "exceptions", None)  # exception groups came with Python 3.11
        if isinstance(members, tuple) and members:
            found = [walltime_of(member) for member in members]
            return found[0] if all(found) else None
        error = error.root_cause if isinstance(error, DependencyFailureError) else error.__cause__
    return None
