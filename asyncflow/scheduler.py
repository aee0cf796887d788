"""Ready tasks to their backends, outcomes back to the graph: attempts, retries, timeouts, cancellation, back-pressure.

All state here is touched under one lock: by the engine's loop, and by workers that report a success (`reports`). What
concerns the loop itself is left to it: timers, failures, and every future that somebody awaits.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import partial
from itertools import count
from time import time
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from asyncflow.arguments import resolve
from asyncflow.backends.contract import Kind, Loss, Outcome, RemoteValue, WorkDied, WorkItem
from asyncflow.component import Binding, Component, Tally
from asyncflow.errors import (
    BackendLostError,
    DependencyFailureError,
    ExecutableError,
    ForeignFutureError,
    InternalError,
    ResultNotFetchedError,
    TaskExitError,
    TaskTimeoutError,
    WalltimeReached,
    WorkerLostError,
)
from asyncflow.future import FailureNotice, TaskFuture
from asyncflow.graph import Phase, connect, orphans, release, validate
from asyncflow.lane import BackendState, Lane
from asyncflow.observer import Observer
from asyncflow.options import seconds
from asyncflow.reports import DirectReporter, Mailbox, MailboxReporter
from asyncflow.stayed import StayedResults
from asyncflow.walltime import Stage, Walltime

#: How many task names are counted apart; a program that makes up names without end must not fill the memory with them.
_NAMES = 1000
#: How many dependencies of a component are remembered for drawings.
_DRAWN = 200
#: Seconds from a hint that nothing runs any more to the look at whether that is so: while the engine drains, and while
#: it only holds back what would not finish. Then somebody may still call what would, and the look costs more.
_MOMENT, _WHILE = 0.05, 1.0
#: A TaskFuture refuses to be set by anybody else, and takes an interest for one in its value.
_set_result = asyncio.Future.set_result
_is_done = asyncio.Future.done

#: The keyword arguments of an item that has none, or has ended.
_NOTHING: dict[str, Any] = {}

S = TypeVar("S", bound="Scheduler")
P = ParamSpec("P")
T = TypeVar("T")


def _exclusive(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Run a method of the scheduler under its lock, and then what other threads had to leave meanwhile."""

    def locked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        mailbox = self._mailbox
        try:
            with mailbox.lock:
                mailbox.held += 1
                try:
                    return method(self, *args, **kwargs)
                finally:
                    mailbox.held -= 1
        finally:
            mailbox.catch_up()

    return cast("Callable[Concatenate[S, P], T]", functools.update_wrapper(locked, method))


class Scheduler:
    """The engine's core: owns the components and moves them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, history: int, directory: str) -> None:
        """`directory` is where executables with `capture_stdio` write."""
        self._loop = loop
        self._directory = directory
        self._numbers = count(1)
        self.unfinished: dict[int, Component] = {}
        self.history: deque[Component] = deque(maxlen=history)
        self.tallies: dict[str, Tally] = {}
        self._thread = threading.get_ident()
        self._mailbox = Mailbox(loop, self)
        #: Values of components that are DONE and whose futures somebody awaits: the loop sets them, in this order.
        self._undelivered: OrderedDict[TaskFuture[Any], Any] = OrderedDict()
        #: Results of components that are DONE which their backend has kept.
        self._stayed = StayedResults(partial(self._mailbox.post, self._on_fetched))
        #: Lanes that may have something to hand over.
        self._dirty: list[Lane] = []
        self._flush_due = False
        self._states: list[BackendState] = []
        self._idle_waiters: list[asyncio.Future[None]] = []
        #: What is begun must end before; None while no end is known.
        self.walltime: Walltime | None = None
        #: Who is told what happens to components.
        self.observer: Observer | None = None

    def reporter(self, state: BackendState) -> MailboxReporter:
        """What the backend of `state` reports to."""
        self._states.append(state)
        return MailboxReporter(self._mailbox, self, state, os.path.dirname(self._directory))

    def direct_reporter(self, state: BackendState) -> DirectReporter:
        """What the block runner reports to."""
        self._states.append(state)
        return DirectReporter(self, os.path.dirname(self._directory))

    # --- calls -------------------------------------------------------------------------------------------------------

    def add(
        self,
        binding: Binding,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        futures: list[asyncio.Future[Any]],
        nested: bool,
        workflow_id: str | None,
        parent: str | None,
        context: contextvars.Context | None,
    ) -> TaskFuture[Any]:
        """Register a call that depends on `futures`; its future, which has ended already where one of these failed."""
        component = Component(
            next(self._numbers), binding, args, kwargs, nested if futures else None, workflow_id, parent
        )
        component.context = context
        future: TaskFuture[Any] = TaskFuture(loop=self._loop)
        future._component = component
        future._failure = None
        future._awaited = False
        component.future = future
        mailbox = self._mailbox
        try:
            with mailbox.lock:
                mailbox.held += 1  # not the decorator: this is called for every task
                try:
                    others = self._connect(component, futures) if futures else ()
                    self.unfinished[component.seq] = component
                    binding.tally.calls += 1
                    if self.observer is not None:
                        self.observer.created(component, futures)
                    for dependency in others:
                        self._depend(component, dependency)
                    if not component.waits and component.phase is Phase.WAITING:
                        self._make_ready(component)
                finally:
                    mailbox.held -= 1
        finally:
            mailbox.catch_up()
        if self._dirty and not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)
        return future

    def _connect(self, component: Component, futures: list[asyncio.Future[Any]]) -> list[asyncio.Future[Any]]:
        """Make `component` wait for the unfinished ones of this engine; the others, but for those that are DONE."""
        unfinished: list[Component] = []
        others: list[asyncio.Future[Any]] = []
        numbers: list[int] = []
        for future in futures:
            if type(future) is TaskFuture and (dependency := future._component).binding.scheduler is self:
                numbers.append(dependency.seq)
                if not dependency.phase.ended:
                    unfinished.append(dependency)
                elif dependency.phase is not Phase.DONE or self._stays_elsewhere(future, component):
                    others.append(future)
            elif future.get_loop() is self._loop or future.done():
                others.append(future)
            else:
                raise ForeignFutureError(component.name, future)
        connect(component, unfinished)
        component.after = tuple(numbers if len(numbers) <= _DRAWN else (*numbers[:_DRAWN], 0))
        return others

    def _stays_elsewhere(self, future: asyncio.Future[Any], component: Component) -> bool:
        """Whether a value must be fetched before `component` can have it."""
        return bool(self._stayed) and not self._stayed.usable_by(future, component.binding.lane.state.backend)

    def _depend(self, component: Component, future: asyncio.Future[Any]) -> None:
        """Wait for a future that is not of this engine, or end as one does that has ended."""
        if not future.done():
            component.waits += 1
            component.foreign += 1
            future.add_done_callback(partial(self._foreign_ended, component))
        elif not component.phase.ended:
            self._check_ended(component, future)

    def _check_ended(self, component: Component, future: asyncio.Future[Any]) -> None:
        """End `component` with a dependency that has ended other than well."""
        if future.cancelled():
            self._end_cancelled(component, f"its dependency {_names(future)[0]!r} was cancelled")
            return
        # Not exception(): that would count as the user's having looked at it.
        error = future._exception if isinstance(future, TaskFuture) else future.exception()
        if isinstance(error, WalltimeReached):
            self._end_cancelled(component, error)
        elif error is not None:
            notice = future._failure if isinstance(future, TaskFuture) else None
            self._end_failed(component, _dependency_failure(component, _names(future), error), notice)

    @_exclusive
    def _foreign_ended(self, component: Component, future: asyncio.Future[Any]) -> None:
        component.waits -= 1
        component.foreign -= 1
        if component.phase.ended:
            return
        self._check_ended(component, future)
        if not component.waits and component.phase is Phase.WAITING:
            self._make_ready(component)
        self.flush()

    # --- ready -> backend --------------------------------------------------------------------------------------------

    def _make_ready(self, component: Component, first: bool = False) -> None:
        component.move(Phase.READY)
        if self.observer is not None:
            self.observer.resolved(component)
        lane = component.binding.lane
        lane.push(component, first)
        if not lane.dirty:
            lane.dirty = True
            self._dirty.append(lane)

    def _make_ready_again(self, component: Component) -> None:
        """Put a READY component back to the front of its lane."""
        lane = component.binding.lane
        lane.push(component, first=True)
        if not lane.dirty:
            lane.dirty = True
            self._dirty.append(lane)

    @_exclusive
    def flush(self) -> int:
        """Hand ready components to their backends, as far as these take them; set what is awaited: how many futures."""
        self._flush_due = False
        while self._dirty:
            lane = self._dirty.pop()
            lane.dirty = False
            self._feed_lane(lane)
        return self._deliver()

    def feed(self) -> bool:
        """As `flush`, but on any thread; whether something is left for the loop."""
        left: list[Lane] | None = None
        dirty = self._dirty
        while dirty:
            lane = dirty.pop()
            if not lane.thread_safe or lane.state.broken is not None:
                left = [lane] if left is None else [*left, lane]
                continue
            lane.dirty = False
            # Half of what may be ahead lasts until the next success; a batch costs little more than an item.
            if lane.fixed or 2 * len(lane.out) <= lane.limit:
                self._feed_lane(lane)
        if left is not None:
            dirty.extend(left)
            return True
        return not self.unfinished and bool(self._idle_waiters)

    def undelivered(self) -> bool:
        """Whether somebody waits for the loop to set a future."""
        return bool(self._undelivered)

    def _feed_lane(self, lane: Lane) -> None:
        batch: list[WorkItem] = []
        walltime = self.walltime
        room = lane.limit if walltime is None else walltime.room(lane)
        try:
            while len(lane.out) < room and (component := lane.pop()) is not None:
                if walltime is not None and not walltime.fits(component):
                    walltime.held.append(component)
                elif lane.state.broken is not None:
                    self._end_broken(component, lane.state)
                elif (item := self._hand_over(component, lane)) is not None:
                    batch.append(item)
        finally:
            if batch:
                self._submit(lane, batch)
            elif walltime is not None and walltime.waits:
                self._look_soon(walltime)

    def _deliver(self) -> int:
        """Set the futures of what is DONE, and wake who waits for everything to end; how many futures."""
        count = len(self._undelivered)
        while self._undelivered:
            future, value = self._undelivered.popitem(last=False)
            if not _is_done(future):
                _set_result(future, value)
        if self._idle_waiters and not self.unfinished and not self._stayed.coming:
            for waiter in self._idle_waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle_waiters.clear()
        return count

    def _hand_over(self, component: Component, lane: Lane) -> WorkItem | None:
        """The item of the component's next attempt; None where its arguments cannot be made."""
        args, kwargs, binding = component.args, component.kwargs or _NOTHING, component.binding
        if component.nested is not None:
            try:
                args, kwargs = resolve(args, kwargs, component.nested, _value_of)
            except KeyboardInterrupt:  # no matter of the task's
                self._make_ready_again(component)
                raise
            except BaseException as error:
                failure = error if isinstance(error, Exception) else TaskExitError(component.name, error)
                self._mailbox.post(self._end_failed, component, failure)
                return None
        component.attempt += 1
        context = component.context
        if component.attempt > 1 and context is not None:
            context = context.copy()  # an attempt that cannot be stopped may still be in the first one
        definition = binding.definition
        item = WorkItem(definition, args, kwargs, attempt=component.attempt, context=context)
        item.solo = component.solo
        item.watched = binding.watched
        if definition.executable is not None and definition.executable.capture_stdio:
            item.directory = self._directory
        item.component = component
        item.lane = lane
        component.item = item
        component.move(Phase.SUBMITTED)
        lane.out.add(item)
        return item

    def _submit(self, lane: Lane, batch: list[WorkItem]) -> None:
        if self.observer is not None:
            self.observer.submitting(batch)
        try:
            lane.state.backend.submit(batch)
        except Exception as error:
            self._mailbox.post(self.on_broken, lane.state, f"submit raised {type(error).__name__}: {error}")
            return
        if self.observer is not None:
            self.observer.queued(batch)
        if not lane.reports_start:
            for item in batch:
                item.started = time()
                self.on_started(item, item.started)
                if self.observer is not None:
                    self.observer.started(item, None, item.started)

    # --- reports of backends -----------------------------------------------------------------------------------------

    @_exclusive
    def on_started(self, item: WorkItem, time: float) -> None:
        """A watched item began: its timeout counts from now."""
        component: Component = item.component
        timeout = component.binding.policy.timeout
        if timeout is not None and component.item is item:
            component.timer = self._loop.call_later(timeout, self._time_out, item, timeout)

    def on_success(self, item: WorkItem, outcome: Outcome) -> None:
        seconds = outcome.ended - outcome.started
        if self._settle(item, seconds):
            if self.observer is not None:
                self.observer.settled(item, outcome)
            component: Component = item.component
            if self.walltime is not None:
                self.walltime.learn(component.binding.tally, seconds)
            self._end_done(component, outcome.value)

    @_exclusive
    def on_finished(self, item: WorkItem, outcome: Outcome) -> None:
        error = outcome.error
        if error is None:
            self.on_success(item, outcome)
            return
        if isinstance(error, WorkDied):
            self.on_lost(item, error.loss)
            return
        if not self._settle(item, outcome.ended - outcome.started):
            return
        if self.observer is not None:
            self.observer.settled(item, outcome)
        component: Component = item.component
        if isinstance(error, asyncio.CancelledError):
            self._end_cancelled(component, component.reason or str(error) or None)
        elif isinstance(error, WalltimeReached):  # what a block awaited ended so, and so does the block
            self._end_cancelled(component, error)
        elif isinstance(error, ExecutableError) and self._drains():
            # At the end of its time a batch system sends TERM to programs too; that is no failure of theirs.
            self._make_ready(component, first=True)
        else:
            self._attempt_failed(component, error)

    def on_lost(self, item: WorkItem, loss: Loss) -> None:
        if not self._settle(item, None):
            return
        if self.observer is not None:
            self.observer.lost(item, loss)
        component: Component = item.component
        if loss.begun and not self._drains():  # or it is the batch system that ends the workers
            # Company is no proof of guilt: it runs again, alone, and a loss while alone is its own.
            component.solo = True
            component.losses += loss.alone
        policy = component.binding.policy
        if component.losses > policy.max_losses:
            self._end_failed(
                component,
                WorkerLostError(
                    component.name, component.uid, loss.reason, loss.host, component.losses, loss.exit_code
                ),
            )
        else:
            self._make_ready(component, first=True)

    def _settle(self, item: WorkItem, seconds: float | None) -> bool:
        """Free the item's slot; whether it was still its component's current attempt."""
        lane: Lane = item.lane
        if not lane.settle(item, seconds):
            return False
        if not lane.dirty:
            lane.dirty = True
            self._dirty.append(lane)
        # The backend may hold the item a little longer; what it was given must not live as long.
        self._mailbox.garbage.append((item.args, item.kwargs, item.context))
        item.args, item.kwargs, item.context = (), _NOTHING, None
        if lane.then and item in lane.then:
            lane.then.pop(item)()
        component: Component = item.component
        if component.item is not item:
            return False
        component.item = None
        if component.timer is not None:
            component.timer.cancel()
            component.timer = None
        return True

    def on_defect(self, subject: Any, error: BaseException) -> None:
        """A report could not be handled: whatever went wrong, its future ends."""
        self._tell(f"a report of {subject!r} could not be handled", error)
        component: Component | None = getattr(subject, "component", None)
        if component is not None and not component.phase.ended:
            defect = InternalError(f"{component.story()}: {type(error).__name__}: {error}")
            defect.__cause__ = error
            component.item = None
            self._end_failed(component, defect)

    def _tell(self, what: str, error: BaseException) -> None:
        self._loop.call_exception_handler({"message": f"asyncflow: {what}", "exception": error})

    def on_broken(self, state: BackendState, reason: str) -> None:
        """Fail everything that is with the backend; what comes later fails when it is handed over."""
        if state.broken is None:
            state.broken = reason
        for lane in state.lanes.values():
            for item in list(lane.out):
                if self._settle(item, None):
                    if self._drains():
                        self._make_ready(item.component, first=True)
                    else:
                        self._end_broken(item.component, state)
        self.flush()

    def on_resized(self, state: BackendState, _: None) -> None:
        """The backend has other numbers than before: more may be handed over, or less."""
        for lane in state.lanes.values():
            lane.resize()
            if not lane.dirty:
                lane.dirty = True
                self._dirty.append(lane)

    def _end_broken(self, component: Component, state: BackendState) -> None:
        error = BackendLostError(component.name, state.backend.name, state.broken or "")
        self._end_failed(component, error)

    # --- attempts ----------------------------------------------------------------------------------------------------

    @_exclusive
    def _time_out(self, item: WorkItem, seconds: float) -> None:
        component: Component = item.component
        if component.item is not item:
            return
        error = TaskTimeoutError(component.name, seconds, component.attempt)
        self._abandon(component)
        # A program that takes its time over TERM must not meet its own next attempt.
        self._attempt_failed(component, error, after=item if _can_be_stopped(item) else None)
        self.flush()

    def _abandon(self, component: Component) -> None:
        """Give up the current attempt: the backend ends its work, and its report will change nothing here."""
        item, component.item = component.item, None
        if item is None:
            return
        if self.observer is not None:
            self.observer.given_up(item)
        if component.timer is not None:
            component.timer.cancel()
            component.timer = None
        self._cancel_item(item)

    def _cancel_item(self, item: WorkItem) -> None:
        item.cancelled = True
        try:
            item.lane.state.backend.cancel(item)
        except Exception as error:
            self._tell(f"backend {item.lane.state.backend.name!r} could not cancel {item!r}", error)

    def _attempt_failed(self, component: Component, error: BaseException, after: WorkItem | None = None) -> None:
        """Try again, where the policy allows: once the work of `after` is dead, if that is given."""
        component.failures += 1
        policy = component.binding.policy
        if component.failures > policy.retries or self._is_over():
            self._end_failed(component, error)
            return
        try:
            delay = policy.retry_delay
            delay = seconds("retry_delay", delay(component.failures) if callable(delay) else delay)
        except BaseException as wrong:
            wrong.__cause__ = error  # the user's function: whatever it raises, the task's own failure stays in sight
            self._end_failed(component, wrong if isinstance(wrong, Exception) else TaskExitError("retry_delay", wrong))
            return
        component.move(Phase.BACKOFF)
        if self.observer is not None:
            self.observer.retried(component, error)
        if after is not None and after in after.lane.out:
            after.lane.then[after] = partial(self._back_off, component, delay)
        else:
            self._back_off(component, delay)

    def _back_off(self, component: Component, delay: float) -> None:
        if component.phase is not Phase.BACKOFF:
            return
        if delay > 0:
            component.timer = self._loop.call_later(delay, self._again, component)
        else:
            self._make_ready(component)

    @_exclusive
    def _again(self, component: Component) -> None:
        component.timer = None
        if component.phase is Phase.BACKOFF:
            self._make_ready(component)
            self.flush()

    # --- cancellation ------------------------------------------------------------------------------------------------

    def on_loop_thread(self) -> bool:
        return threading.get_ident() == self._thread

    def cancel_soon(self, component: Component, message: Any | None) -> None:
        """As `cancel`, from a thread other than the loop's: a worker may drop what cancels in its `__del__`."""
        self._mailbox.post(self._cancel_posted, component, message)

    def _cancel_posted(self, component: Component, message: Any | None) -> None:
        self.cancel(component, message)

    @_exclusive
    def cancel(self, component: Component, message: Any | None = None, /) -> bool:
        """Cancel a component; False where it has ended. A running block is asked to end and ends in its own time.

        `message` is for its future's CancelledError, or the WalltimeReached that its future is to raise instead.
        """
        if component.phase.ended:
            self._deliver()  # so that it is seen to have ended
            return False
        if component.item is not None:
            if component.binding.definition.kind is Kind.BLOCK:
                component.reason = message
                self._cancel_item(component.item)
                return True
            self._abandon(component)
        self._end_cancelled(component, message)
        return True

    @_exclusive
    def forgo(self, future: TaskFuture[Any], message: Any | None) -> bool:
        """Cancel the future of a component that is DONE and whose value has not come: nobody waits for it any more."""
        if future not in self._stayed:
            return False
        self._stayed.take(future)
        asyncio.Future.cancel(future, message)
        self._deliver()
        return True

    @_exclusive
    def cancel_all(self, workflow_id: str | None = None, message: Any | None = None) -> int:
        """Cancel every unfinished component, or those of one workflow; how many there were."""
        chosen = [c for c in self.unfinished.values() if workflow_id is None or c.workflow_id == workflow_id]
        # Blocks first: a block must see its own cancellation, not that of a task which it happens to await.
        chosen.sort(key=lambda component: component.binding.definition.kind is not Kind.BLOCK)
        for component in chosen:
            self.cancel(component, message)
        return len(chosen)

    # --- the end of the time -----------------------------------------------------------------------------------------

    @_exclusive
    def keep_to(self, walltime: Walltime) -> None:
        """The end has become known, or has moved: what was held back may fit now."""
        self.walltime = walltime
        for component in reversed(walltime.release_held()):
            if component.phase is Phase.READY:
                self._make_ready_again(component)
        self.flush()

    @_exclusive
    def begin_drain(self) -> None:
        """Begin nothing more, and take back what was handed over and has not begun."""
        walltime = self.walltime
        if walltime is None or walltime.stage is not Stage.OPEN:
            return
        walltime.stage = Stage.DRAINING
        for item in self._current():
            if item.started is None and item.definition.kind is not Kind.BLOCK:
                component: Component = item.component
                self._abandon(component)
                self._make_ready(component, first=True)
        self._look_soon(walltime)
        self.flush()

    @_exclusive
    def run_out(self) -> None:
        """End everything with WalltimeReached, but for blocks that run: these see it where they await something."""
        if self.walltime is None:
            return
        self.walltime.stage = Stage.OVER
        running = [c for c in self.unfinished.values() if c.item is not None]
        ending = [c for c in self.unfinished.values() if c.item is None or not _is_block(c)]
        if ending:
            error = self._out_of_time(self.walltime, sum(not _is_block(c) for c in running))
            # The last calls first: a dependent is to end by itself, and not by its dependency.
            for component in reversed(ending):
                self.cancel(component, error)
        self.walltime.held.clear()

    @_exclusive
    def end_blocks(self) -> None:
        """Cancel what still runs at the end of the time."""
        if self.walltime is not None and self.unfinished:
            self.cancel_all(message=self._out_of_time(self.walltime, 0))

    def _out_of_time(self, walltime: Walltime, stopped: int) -> WalltimeReached:
        return walltime.reached(sum(tally.done for tally in self.tallies.values()), len(self.unfinished), stopped)

    def _drains(self) -> bool:
        return self.walltime is not None and self.walltime.stage is Stage.DRAINING

    def _is_over(self) -> bool:
        return self.walltime is not None and self.walltime.stage is Stage.OVER

    def _look_soon(self, walltime: Walltime) -> None:
        """Something was not begun, on whatever thread: have the loop look whether anything still runs."""
        if not walltime.looks:
            walltime.looks = True
            self._mailbox.post(self._look, walltime, None)

    def _look(self, walltime: Walltime, _: None) -> None:
        if walltime.stage is Stage.OVER:
            walltime.looks = False
            self.run_out()
        else:
            delay = _MOMENT if walltime.stage is Stage.DRAINING else _WHILE
            self._loop.call_later(delay, self._end_if_idle, walltime)

    @_exclusive
    def _end_if_idle(self, walltime: Walltime) -> None:
        walltime.looks = False
        if not walltime.waits or any(not _is_block(item.component) for item in self._current()):
            return
        if walltime.stage is not Stage.OPEN or self._is_stuck(walltime):
            self.run_out()

    def _is_stuck(self, walltime: Walltime) -> bool:
        """Whether nothing will become ready by itself: all waits for what is held back, blocks by their calls."""
        ready = 0
        blocks, callers = set(), set()
        for component in self.unfinished.values():
            if component.phase is Phase.BACKOFF or component.foreign:
                return False
            if component.phase is Phase.SUBMITTED:
                blocks.add(component.uid)
            ready += component.phase is Phase.READY
            callers.add(component.parent)
        held = sum(component.phase is Phase.READY for component in walltime.held)
        return ready == held > 0 and blocks <= callers

    def _current(self) -> list[WorkItem]:
        """The items with backends that are still their components' attempts."""
        lanes = [lane for state in self._states for lane in state.lanes.values()]
        return [item for lane in lanes for item in lane.out if item.component.item is item]

    # --- ends --------------------------------------------------------------------------------------------------------

    def _end_done(self, component: Component, value: Any) -> None:
        component.move(Phase.DONE)
        component.binding.tally.done += 1
        if self.observer is not None:
            self.observer.ended(component, None)
        future = component.future
        if isinstance(value, RemoteValue):
            self._end_stayed(component, value)
        elif future is not None and not _is_done(future):
            if future._awaited:
                self._undelivered[future] = value
            else:  # nothing of the loop's: safe on any thread, while nobody can begin to await it
                _set_result(future, value)
        for dependent in release(component):
            self._make_ready(dependent)
        self._forget(component)

    def _end_stayed(self, component: Component, value: RemoteValue) -> None:
        """Dependents on other backends, and who awaits the future, wait on until the value has been fetched."""
        if component.future is not None:
            self._stayed.add(component.future, value)
        others = [
            dependent
            for dependent in component.dependents or ()
            if dependent.phase is Phase.WAITING and dependent.binding.lane.state.backend is not value.backend
        ]
        for dependent in others:
            dependent.waits += 1
            dependent.foreign += 1
        if others and component.future is not None:
            self._mailbox.post(self._await_for, component.future, others)

    def _await_for(self, future: TaskFuture[Any], dependents: list[Component]) -> None:
        for dependent in dependents:
            future.add_done_callback(partial(self._foreign_ended, dependent))

    def _on_fetched(self, future: TaskFuture[Any], arrived: tuple[Any, BaseException | None]) -> None:
        """A value that had stayed is here, or cannot be had."""
        self._stayed.take(future)
        value, error = arrived
        if _is_done(future):
            return
        if error is None:
            _set_result(future, value)
        else:
            future._failure = FailureNotice(future._component, error, self._loop)
            asyncio.Future.set_exception(future, error)
        self._deliver()

    def _end_failed(self, component: Component, error: BaseException, notice: FailureNotice | None = None) -> None:
        self._deliver()  # in the order of the ends
        notice = notice or FailureNotice(component, error, self._loop)
        ending: list[tuple[Component, BaseException]] = [(component, error)]
        while ending:  # not recursive: a chain may be a million tasks long
            component, error = ending.pop()
            if component.phase.ended:
                continue
            component.move(Phase.FAILED)
            component.binding.tally.failed += 1
            if self.observer is not None:
                self.observer.ended(component, error)
            future = component.future
            if future is not None and not _is_done(future):
                future._failure = notice
                asyncio.Future.set_exception(future, error)
            names = (component.name, component.uid)
            ending.extend((below, _dependency_failure(below, names, error)) for below in orphans(component))
            self._forget(component)

    def _end_cancelled(self, component: Component, message: Any | None) -> None:
        self._deliver()  # in the order of the ends
        ending = [component]
        while ending:
            component = ending.pop()
            if component.phase.ended:
                continue
            component.move(Phase.CANCELLED)
            component.binding.tally.cancelled += 1
            if self.observer is not None:
                self.observer.ended(component, None if message is None else asyncio.CancelledError(message))
            future = component.future
            if isinstance(message, WalltimeReached):
                # Not a CancelledError: whoever awaits the future would take itself for cancelled.
                if future is not None and not _is_done(future):
                    asyncio.Future.set_exception(future, message)
            else:
                if future is not None:
                    asyncio.Future.cancel(future, message)
                message = f"its dependency {component.name!r} ({component.uid}) was cancelled"
            ending.extend(orphans(component))
            self._forget(component)

    def _forget(self, component: Component) -> None:
        """Let go of all that an ended component held."""
        del self.unfinished[component.seq]
        self._mailbox.garbage.append((component.args, component.kwargs, component.context, component.future))
        component.args, component.kwargs, component.context, component.future = (), None, None, None
        if component.timer is not None:
            component.timer.cancel()
            component.timer = None
        self.history.append(component)
        if not self.unfinished:
            self.unfinished.clear()  # a dict keeps the room of its largest size until then
            if self._idle_waiters:
                self._mailbox.wake()

    async def drain(self) -> None:
        """Wait until no component is unfinished."""
        while (waiter := self._idle_waiter()) is not None:
            await waiter

    @_exclusive
    def _idle_waiter(self) -> asyncio.Future[None] | None:
        """What is done when no component is unfinished; None where that is so already."""
        if not self.unfinished and not self._undelivered and not self._stayed.coming:
            return None
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._idle_waiters.append(waiter)
        return waiter

    @_exclusive
    def abandon_all(self, message: str) -> None:
        """End the future of every component that is still unfinished, whatever its work does."""
        self._deliver()
        for component in list(self.unfinished.values()):
            self._abandon(component)
            self._end_cancelled(component, message)
        for future in self._stayed.rest():
            self._stayed.take(future)
            if not _is_done(future):  # without a notice: nobody wanted it so far
                asyncio.Future.set_exception(future, ResultNotFetchedError(future.name, future.uid))

    # --- self-check --------------------------------------------------------------------------------------------------

    @_exclusive
    def validate(self) -> None:
        """Raise InternalError where an invariant of `docs/design.md` does not hold."""
        components = list(self.unfinished.values())
        validate(components, {component: component.foreign for component in components if component.foreign})
        for component in components:
            if (component.phase is Phase.SUBMITTED) != (component.item is not None):
                raise InternalError(f"{component.story()} has the item {component.item!r}")
            if component.item is not None and component.item not in component.item.lane.out:
                raise InternalError(f"{component.story()} has an item that is not out")
            if component.future is None or _is_done(component.future):
                raise InternalError(f"{component.story()} has no unfinished future")

    @_exclusive
    def watch(self, observer: Observer | None) -> None:
        """Tell `observer` from now on, and nobody else; what is unfinished it is told of as created."""
        self.observer = observer
        if observer is not None:
            for component in self.unfinished.values():
                observer.adopt(component)

    @_exclusive
    def known(self) -> list[Component]:
        """The last components that ended and all that have not."""
        return [*self.history, *self.unfinished.values()]

    def tally(self, name: str) -> Tally:
        """What counts the calls of `name`; one for all names that come after many others."""
        if name not in self.tallies and len(self.tallies) >= _NAMES:
            name = "other tasks"
        return self.tallies.setdefault(name, Tally())

    @_exclusive
    def running(self) -> Counter[Tally]:
        """How many calls run. The cost is in what is with backends, not in what waits."""
        out = (item for state in self._states for lane in state.lanes.values() for item in lane.out)
        # An item that was given up is out as well, until its work is dead.
        return Counter(item.component.binding.tally for item in out if item.started and item.component.item is item)

    def reserve(self, future: TaskFuture[Any]) -> None:
        """Somebody begins to await `future`: from now on only the loop sets it."""
        with self._mailbox.lock:
            future._awaited = True
            if self._stayed:
                self._stayed.fetch(future)
        self._mailbox.catch_up()

    def value_of(self, future: TaskFuture[Any]) -> Any:
        """The result of a component that is DONE; its future may not have it yet."""
        if future in self._undelivered:
            return self._undelivered[future]
        stayed = self._stayed.value_of(future)
        return stayed if stayed is not None else future.result()

    def out(self) -> int:
        """How many items are with backends."""
        return sum(len(lane.out) for state in self._states for lane in state.lanes.values())


def _is_block(component: Component) -> bool:
    return component.binding.definition.kind is Kind.BLOCK


def _can_be_stopped(item: WorkItem) -> bool:
    definition, capabilities = item.definition, item.lane.state.capabilities
    if definition.kind is Kind.EXECUTABLE:
        return bool(capabilities.cancels_executables)
    overlap = capabilities.concurrency > capabilities.workers  # where they do not, they run like functions
    return bool(capabilities.cancels_functions or (definition.shares_worker and overlap))


def _value_of(future: asyncio.Future[Any]) -> Any:
    try:
        return future.result()
    except asyncio.InvalidStateError:  # DONE, but the loop has not been told
        if isinstance(future, TaskFuture):
            return future._value()
        raise


def _names(future: asyncio.Future[Any]) -> tuple[str, str]:
    if isinstance(future, TaskFuture):
        return future.name, future.uid
    return type(future).__name__, "not of this engine"


def _dependency_failure(component: Component, failed: tuple[str, str], error: BaseException) -> DependencyFailureError:
    failure = DependencyFailureError(component.name, component.uid, [failed], error)
    failure.__cause__ = failure.root_cause
    return failure
