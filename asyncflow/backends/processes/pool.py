"""The thread that keeps the worker processes: gives them work, reads what they send, notices their end.

All state is this thread's own. The engine's loop talks to it through a queue of commands and a wake-up socket.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from asyncflow.backends import payload
from asyncflow.backends.body import cancelled_outcome
from asyncflow.backends.contract import Definition, Kind, Loss, Outcome, Place, Reports, WorkItem
from asyncflow.backends.launch import asked_variables, attempt_mark
from asyncflow.backends.orphans import ATTEMPT, Family, sweep
from asyncflow.backends.payload import Segment
from asyncflow.backends.processes.channel import Channel, Message
from asyncflow.backends.processes.process import Seat, WorkerProcess
from asyncflow.backends.resources import Ledger

_log = logging.getLogger("asyncflow")

#: Seconds until the system is asked again for a process that it refused, and how often it may refuse in a row.
_PAUSE = 0.2
_REFUSALS = 25
#: Workers that die, one after the other, before they have come up: then the next would die too.
_FAILED_STARTS = 3
#: Seconds of work that a worker is given ahead, by what calls of the same definition lately took.
_AHEAD = 0.002
#: The most calls a worker has ahead, however short they are.
_MOST = 256
#: The same where there is no evidence yet: taken for long, so that nothing waits behind it.
_UNKNOWN = 1
#: The most coroutines that are sent to a loop before it says that it is free again.
_MOST_CREDIT = 64
#: How many coroutines may run alone, each on a worker of its own, at a time; at least as many as there are cores.
_SUSPECTS = 16
#: How much the last call's cost counts in the running mean.
_WEIGHT = 0.1
#: Seconds of silence after which a worker is asked to give back what it has not begun.
_PATIENCE = 0.02
#: Results of these types travel in the message itself.
_SMALL = frozenset({int, float, bool, type(None), str})
#: Seconds between looks at processes where the system cannot tell of their end (no pidfd).
_LOOK = 0.2


class Pool:
    """Up to `size` workers busy with calls, and as many that carry coroutines; started when needed."""

    def __init__(
        self,
        name: str,
        size: int,
        ledger: Ledger[WorkItem | Seat],
        family: Family,
        env: Mapping[str, str],
        concurrency: int,
        reporter: Reports,
        cwd: str | None = None,
    ) -> None:
        """`cwd` is the workers' working directory; None is this process's."""
        self._name = name
        self._cwd = cwd
        self._size = size
        self._ledger = ledger
        self._family = family
        self._env = env
        self._concurrency = concurrency
        self._reporter = reporter
        self._place = Place(name)
        self._commands: deque[tuple[Callable[..., None], Any]] = deque()
        self._wake_end, self._waker = socket.socketpair()
        self._wake_end.setblocking(False)
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_end, selectors.EVENT_READ, None)
        self._workers: list[WorkerProcess] = []
        self._started = 0
        self._failed_starts = 0
        #: How often in a row the system refused a new process, and when to ask again.
        self._refusals = 0
        self._retry_at = 0.0
        #: Calls that need a core and nothing else; every other call waits in the ledger itself.
        self._plain: deque[WorkItem] = deque()
        #: How many seats for them wait in the ledger.
        self._seats_due = 0
        self._coroutines: deque[WorkItem] = deque()
        #: Coroutines that must run alone.
        self._suspects: deque[WorkItem] = deque()
        self._keys = 0
        self._where: dict[WorkItem, tuple[int, WorkerProcess]] = {}
        self._functions: WeakKeyDictionary[Definition, bytes] = WeakKeyDictionary()
        #: Workers that something was posted to.
        self._posted: set[WorkerProcess] = set()
        #: Whether a worker may have more than it can be running, and when to look at that again.
        self._watching = False
        self._look_at = 0.0
        self._stop_by: float | None = None
        self.thread = threading.Thread(target=self._run, name=f"{name}-pool", daemon=True)

    # --- called on any thread ----------------------------------------------------------------------------------------

    def submit(self, items: Any) -> None:
        self._command(self._take, items)

    def cancel(self, item: WorkItem) -> None:
        self._command(self._cancel, item)

    def give_back(self, take: Callable[[list[WorkItem]], None]) -> None:
        """Call `take`, on this pool's thread, with the plain calls and coroutines that no worker has; they are out."""
        self._command(self._give_back, take)

    def stop(self, grace: float) -> None:
        """End everything within `grace` seconds and a little; the thread ends then."""
        self._command(self._begin_stop, grace)

    def _command(self, function: Callable[..., None], argument: Any) -> None:
        self._commands.append((function, argument))
        if threading.current_thread() is self.thread:
            return  # in a report: it looks there before it sleeps
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake anyway; closed: it has ended
            self._waker.send(b".")

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._family.guard()
            while self._stop_by is None or self._workers:
                self._turn()
        except BaseException as error:
            _log.exception("the pool thread of backend %r failed", self._name)
            self._reporter.broken(f"its pool thread failed with {type(error).__name__}: {error}")
        finally:
            for worker in list(self._workers):
                worker.kill()
                worker.reap()
                worker.close()
            self._selector.close()
            self._wake_end.close()
            self._waker.close()
            self._family.disband()

    def _turn(self) -> None:
        self._listen()
        if not hasattr(selectors, "EpollSelector"):
            self._look_for_dead()
        while self._commands:
            function, argument = self._commands.popleft()
            function(argument)
        if self._stop_by is None:
            self._assign()
        elif time.monotonic() > self._stop_by:
            for worker in self._workers:
                worker.kill()
        if self._watching and time.monotonic() >= self._look_at:
            self._recall_hoards()
        if self._posted:
            self._flush()

    def _listen(self) -> None:
        for key, events in self._selector.select(self._timeout()):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake_end.recv(4096)
            elif key.data in self._workers:
                self._on_event(key.data, key.fileobj, events)

    def _timeout(self) -> float | None:
        if self._stop_by is not None:
            return max(0.01, self._stop_by - time.monotonic())
        if self._retry_at > time.monotonic():
            return self._retry_at - time.monotonic()
        if self._watching:
            return max(0.0, self._look_at - time.monotonic())
        return None if hasattr(selectors, "EpollSelector") else _LOOK

    def _look_for_dead(self) -> None:
        for worker in list(self._workers):
            if worker.has_exited():
                self._on_death(worker)

    def _on_event(self, worker: WorkerProcess, source: object, events: int) -> None:
        if source == worker.pidfd or (events & selectors.EVENT_READ and not self._read(worker)):
            self._on_death(worker)

    def _read(self, worker: WorkerProcess) -> bool:
        """Heed what the worker sent; False where it has closed its end."""
        try:
            messages = worker.channel.receive()
        except (EOFError, OSError):
            return False
        except Exception:
            _log.exception("worker %r said what cannot be read", worker.name)
            return False
        for message in messages:
            try:
                self._heed(worker, message)
            except Exception:
                # Whatever it said, it costs this worker and no other.
                _log.exception("worker %r said something that makes no sense: %s%r", worker.name, *message[:2])
                return False
        if messages:
            worker.heard = time.monotonic()
            self._after_reports(worker)
        return True

    def _after_reports(self, worker: WorkerProcess) -> None:
        """Give a worker more to do, or let it go."""
        if worker.seat is not None and not worker.closed and self._stop_by is None:
            # Where others wait for cores, this one comes free first.
            contended = len(self._ledger) > self._seats_due
            if contended and not worker.calls:
                self._ledger.release(worker.seat)
                worker.seat = None
            elif not contended:
                self._feed(worker)
        self._report_first(worker)
        if worker.idle and sum(not other.closed for other in self._workers) > self._size:
            self._retire(worker)

    def _flush(self) -> None:
        for worker in list(self._posted):
            try:
                told = worker.control.flush()
                done = worker.channel.flush()
            except OSError:  # it has died; its end will be noticed by itself
                told = done = True
            if done and told:
                self._posted.discard(worker)
            if worker.stuffed == done:
                worker.stuffed = not done
                events = selectors.EVENT_READ if done else selectors.EVENT_READ | selectors.EVENT_WRITE
                self._selector.modify(worker.channel.sock, events, worker)

    # --- giving out work ---------------------------------------------------------------------------------------------

    def _take(self, items: Any) -> None:
        for item in items:
            if self._stop_by is not None:
                self._end_cancelled(item)
            elif item.definition.shares_worker:
                (self._suspects if item.solo else self._coroutines).append(item)
            elif item.definition.description is None and not item.solo:
                self._plain.append(item)
            else:
                self._ledger.offer(item)

    def _assign(self) -> None:
        self._offer_seats()
        for claim in self._ledger.admit():
            if isinstance(claim, Seat):
                self._seats_due -= 1
                self._fill(claim)
            elif claim.cancelled:
                self._ledger.release(claim)
                self._end_cancelled(claim)
            else:
                self._give_call(claim)
        self._assign_coroutines()

    def _offer_seats(self) -> None:
        taken = sum(worker.seat is not None for worker in self._workers)
        for _ in range(min(len(self._plain), self._size - taken) - self._seats_due):
            self._ledger.offer(Seat())
            self._seats_due += 1

    def _fill(self, seat: Seat) -> None:
        """Give a worker the seat and plain calls for it."""
        if not self._plain:
            self._ledger.release(seat)
            return
        worker = self._for_call({})
        if worker is None:
            self._ledger.release(seat)
            return
        worker.seat = seat
        self._feed(worker)

    def _feed(self, worker: WorkerProcess) -> None:
        """Give a seated worker as many plain calls as it should have ahead; its seat back where it has none left."""
        share = 1 + len(self._plain) // self._size
        while self._plain and share and len(worker.calls) < self._depth(self._plain[0].definition):
            item = self._plain.popleft()
            if item.cancelled:
                self._end_cancelled(item)
            elif self._send(worker, item, worker.calls):
                share -= 1
        if not worker.calls and worker.seat is not None:
            self._ledger.release(worker.seat)
            worker.seat = None
        self._report_first(worker)

    def _depth(self, definition: Definition) -> int:
        cost = definition.cost
        return _UNKNOWN if cost is None else min(_MOST, 1 + int(_AHEAD / max(cost, 1e-6)))

    def _report_first(self, worker: WorkerProcess) -> None:
        """The first of the calls that a worker has is the one that it runs."""
        item = next(iter(worker.calls.values()), None)
        if item is not None and item is not worker.first and worker.greeted:
            worker.first = item
            self._reporter.started(item, worker.place, time.time())

    def _give_call(self, item: WorkItem) -> None:
        # A function runs in the worker itself; what is started for one call gets its variables then.
        worker = self._for_call(asked_variables(item) if _runs_in_worker(item) else {})
        if worker is None:
            self._ledger.release(item)
            self._ledger.offer(item)
        elif self._send(worker, item, worker.calls):
            self._report_first(worker)
        else:
            self._ledger.release(item)

    def _assign_coroutines(self) -> None:
        for queue, find in ((self._coroutines, self._for_coroutine), (self._suspects, self._for_suspect)):
            while queue:
                if queue[0].cancelled:
                    self._end_cancelled(queue.popleft())
                    continue
                worker = find()
                if worker is None:
                    break
                item = queue.popleft()
                if self._send(worker, item, worker.coroutines):
                    worker.credit -= 1
                    worker.closed = worker.closed or item.solo

    def _recall_hoards(self) -> None:
        """Take back what waits behind a call, or a coroutine's step, that takes longer than its kind lately did."""
        now = time.monotonic()
        self._watching = False
        for worker in self._workers:
            if worker.hoards and not worker.recalled:
                if worker.greeted and worker.heard < now - _PATIENCE:
                    worker.recalled = True
                    self._tell(worker.control, worker, "recall")
                else:
                    self._watch(now)

    def _watch(self, now: float) -> None:
        if not self._watching:
            self._watching = True
            self._look_at = now + _PATIENCE

    def _for_call(self, asked: Mapping[str, str]) -> WorkerProcess | None:
        """An idle worker with the environment asked for; None where none can be started now.

        The ledger lets no more calls in than there may be.
        """
        idle = [worker for worker in self._workers if worker.idle]
        fitting = next((worker for worker in idle if worker.asked == asked), None)
        if fitting is not None:
            return fitting
        if idle and len(self._workers) >= self._size:
            self._retire(idle[0])
        return self._start_worker(asked)

    def _for_coroutine(self) -> WorkerProcess | None:
        """A worker that can begin a coroutine now: one that carries some already, else an idle, else a new one."""
        carrying = [worker for worker in self._workers if worker.coroutines and not worker.closed]
        for worker in carrying:
            if worker.credit > 0 and len(worker.coroutines) < self._concurrency:
                return worker
        return self._fresh() if len(carrying) < self._size else None

    def _for_suspect(self) -> WorkerProcess | None:
        """A worker for one coroutine alone: beside the others, for a waiting coroutine holds no core."""
        alone = sum(1 for worker in self._workers if worker.coroutines and worker.closed)
        return self._fresh() if alone < max(self._size, _SUSPECTS) else None

    def _fresh(self) -> WorkerProcess | None:
        """An idle worker for coroutines, else a new one; None where none can be started now."""
        idle = (worker for worker in self._workers if worker.idle and worker.credit > 0 and not worker.asked)
        return next(idle, None) or self._start_worker({})

    def _send(self, worker: WorkerProcess, item: WorkItem, among: dict[int, WorkItem]) -> bool:
        """Give `item` to `worker`; False where it cannot be pickled, which is reported."""
        definition = item.definition
        try:
            number = worker.definitions.number_of(definition)
            if number is None:
                number = worker.definitions.define(definition, self._function(definition))
            small = item.packed is None and not item.kwargs and _SMALL.issuperset(map(type, item.args))
            segments, given = ((), ()) if small else _packed_arguments(item)
        except BaseException as error:
            now = time.time()
            self._reporter.finished(item, Outcome(None, error, now, now, self._place))
            return False
        self._keys += 1
        among[self._keys] = item
        self._where[item] = self._keys, worker
        about: tuple[Any, ...] = (item.uid, item.attempt, item.directory, item.gpus, given)
        if item.origin is not None:
            about = (*about, tuple(item.origin))
        self._tell(worker.channel, worker, "run", (self._keys, number, item.args if small else None, *about), segments)
        worker.heard = time.monotonic()
        if worker.hoards:
            self._watch(worker.heard)
        return True

    def _tell(
        self, channel: Channel, worker: WorkerProcess, verb: str, data: tuple[Any, ...] = (), segments: Any = ()
    ) -> None:
        channel.post(verb, data, segments)
        self._posted.add(worker)

    def _function(self, definition: Definition) -> bytes:
        data = self._functions.get(definition)
        if data is None:
            data = self._functions[definition] = payload.dump_function(definition)
        return data

    # --- workers -----------------------------------------------------------------------------------------------------

    def _start_worker(self, asked: Mapping[str, str]) -> WorkerProcess | None:
        """A new worker; None where the system has no room for one now, which is tried again a little later."""
        if time.monotonic() < self._retry_at:
            return None
        try:
            worker = self._launch(asked)
        except OSError as error:
            self._refusals += 1
            self._retry_at = time.monotonic() + _PAUSE
            if self._refusals >= _REFUSALS and not self._workers:
                self._reporter.broken(f"no worker process can be started: {error}")
            return None
        self._refusals = 0
        return worker

    def _launch(self, asked: Mapping[str, str]) -> WorkerProcess:
        name = f"{self._name}-{self._started}"
        self._started += 1
        worker = WorkerProcess(name, self._family, self._env, asked, self._concurrency, self._cwd)
        self._workers.append(worker)
        self._selector.register(worker.channel.sock, selectors.EVENT_READ, worker)
        if worker.pidfd is not None:
            self._selector.register(worker.pidfd, selectors.EVENT_READ, worker)
        return worker

    def _retire(self, worker: WorkerProcess) -> None:
        worker.closed = True
        self._tell(worker.channel, worker, "stop")

    def _heed(self, worker: WorkerProcess, message: Message) -> None:
        verb, data, segments = message
        if verb == "finished":
            self._on_finished(worker, data, segments)
        elif verb == "started":
            key, began = data
            worker.begun.add(key)
            self._reporter.started(worker.coroutines[key], worker.place, began)
        elif verb == "free":
            self._on_free(worker)
        elif verb == "returned":
            self._on_returned(worker, data[0])
        elif verb == "hello":
            worker.greeted = True
            self._failed_starts = 0

    def _on_free(self, worker: WorkerProcess) -> None:
        quick = time.monotonic() - worker.heard < _PATIENCE
        worker.granted = min(_MOST_CREDIT, 2 * worker.granted) if quick else 1
        worker.credit = worker.granted

    def _on_returned(self, worker: WorkerProcess, keys: list[int]) -> None:
        """It has not begun these: they go to whoever is free."""
        worker.recalled = False
        worker.heard = time.monotonic()
        for key in reversed(keys):
            item = worker.calls.pop(key, None)
            if item is not None:
                # Calls like the one that it is in are no longer taken for short.
                item.definition.cost = _PATIENCE
                self._plain.appendleft(item)
            else:
                item = worker.coroutines.pop(key)
                self._coroutines.appendleft(item)
            del self._where[item]
        if worker.hoards:  # the rest was still on its way when it was asked
            self._watch(worker.heard)

    def _on_finished(self, worker: WorkerProcess, data: tuple[Any, ...], segments: Any) -> None:
        key, failed, started, ended, value, *spans = data
        item = worker.calls.pop(key, None)
        if item is None:
            item = worker.coroutines.pop(key, None)
            if item is None:
                return  # reported twice
            worker.begun.discard(key)
            if item.solo:
                worker.closed = False
        else:
            _note_cost(item.definition, ended - started)
            if worker.seat is None:
                self._ledger.release(item)
        del self._where[item]
        worker.recalled = False
        if worker.hoards:
            self._watch(time.monotonic())
        error: BaseException | None = None
        if segments:
            value, error = _unpacked(item, failed, segments)
        outcome = Outcome(value, error, started, ended, worker.place)
        if spans:
            outcome.spans = spans[0]
        self._reporter.finished(item, outcome)

    def _on_death(self, worker: WorkerProcess) -> None:
        worker.closed = True
        while worker.channel.pending() and self._read(worker):
            pass  # what it sent before it died counts
        self._workers.remove(worker)
        self._posted.discard(worker)
        self._selector.unregister(worker.channel.sock)
        if worker.pidfd is not None:
            self._selector.unregister(worker.pidfd)
        code, how = worker.reap()
        current, last = worker.progress.current, worker.progress.last
        worker.close()
        if not worker.greeted and self._stop_by is None:
            self._failed_starts += 1
        for key, item in reversed([*worker.calls.items(), *worker.coroutines.items()]):
            self._lose(worker, key, item, current, last, Loss(how, self._place.host, code))
        if worker.seat is not None:
            self._ledger.release(worker.seat)
        if self._failed_starts >= _FAILED_STARTS:
            self._reporter.broken(f"its worker processes die while they start; the last one: {how}")

    def _lose(self, worker: WorkerProcess, key: int, item: WorkItem, current: int, last: int, loss: Loss) -> None:
        """Say what a worker's death means for one item; `current` and `last` are its progress."""
        del self._where[item]
        if key in worker.calls:
            begun, alone, waiting = key == current, True, key > last
            if worker.seat is None:
                self._ledger.release(item)
            if begun and not _runs_in_worker(item):
                # What was started for it outlived its worker; it must not run beside its own next attempt.
                sweep(ATTEMPT, attempt_mark(item, self._family))
        else:
            begun, alone, waiting = key in worker.begun, len(worker.begun) == 1, key not in worker.begun
        if item.cancelled or self._stop_by is not None:
            self._end_cancelled(item)
        elif waiting:
            self._requeue(item)
        else:
            # Neither waiting nor begun: it had ended, and its outcome was lost on the way.
            self._reporter.lost(item, replace(loss, begun=begun, alone=begun and alone))

    def _requeue(self, item: WorkItem) -> None:
        """Nothing of it ran: it may go to another worker as it is."""
        if item.definition.shares_worker:
            (self._suspects if item.solo else self._coroutines).appendleft(item)
        elif item.definition.description is None and not item.solo:
            self._plain.appendleft(item)
        else:
            self._ledger.offer(item)

    def _give_back(self, take: Callable[[list[WorkItem]], None]) -> None:
        waiting = [*self._plain, *self._coroutines]
        self._plain.clear()
        self._coroutines.clear()
        take(waiting)

    # --- cancelling and stopping -------------------------------------------------------------------------------------

    def _cancel(self, item: WorkItem) -> None:
        if item not in self._where:
            # A coroutine or plain call that waits is found cancelled at its turn.
            if item.definition.description is not None and self._ledger.withdraw(item):
                self._end_cancelled(item)
            return
        key, worker = self._where[item]
        if worker.progress.current == key and _runs_in_worker(item):
            worker.closed = True
            worker.kill()
        else:
            self._tell(worker.control, worker, "cancel", (key,))

    def _begin_stop(self, grace: float) -> None:
        self._stop_by = time.monotonic() + grace + 1.0
        waiting = [claim for claim in self._ledger.drain() if isinstance(claim, WorkItem)]
        for queue in (self._plain, self._coroutines, self._suspects):
            waiting.extend(queue)
            queue.clear()
        for item in waiting:
            self._end_cancelled(item)
        for worker in self._workers:
            worker.closed = True
            if not worker.greeted or any(_runs_in_worker(item) for item in worker.calls.values()):
                worker.kill()
            else:
                worker.control.post("end", (grace,))
                self._tell(worker.channel, worker, "stop")

    def _end_cancelled(self, item: WorkItem) -> None:
        self._reporter.finished(item, cancelled_outcome(self._place))


def _packed_arguments(item: WorkItem) -> tuple[Sequence[Segment], tuple[tuple[str, int], ...]]:
    """The segments of a call; the last ones are those of the values given beside: the name and how many of each."""
    if item.packed is None:
        return payload.pack_arguments(item.definition, item.args, item.kwargs), ()
    given: Mapping[str, Sequence[Segment]] = item.packed.given
    segments = [*item.packed.segments, *(segment for value in given.values() for segment in value)]
    return segments, tuple((name, len(value)) for name, value in given.items())


def _unpacked(item: WorkItem, failed: bool, segments: Sequence[Segment]) -> tuple[Any, BaseException | None]:
    """The value or the error that a worker sent; as it came where the call was handed in so."""
    if item.packed is not None:
        return (None, payload.PackedError(segments[0])) if failed else (segments, None)
    try:
        if failed:
            return None, payload.load_error(item.definition.name, segments[0])
        return payload.unpack_result(item.definition.name, segments), None
    except BaseException as unreadable:
        return None, unreadable


def _note_cost(definition: Definition, seconds: float) -> None:
    mean = definition.cost
    if mean is None or seconds > _PATIENCE:
        definition.cost = seconds if mean is None else max(seconds, mean)
    else:
        definition.cost = mean + (seconds - mean) * _WEIGHT


def _runs_in_worker(item: WorkItem) -> bool:
    """Whether the call runs in the worker's own process, and not in one that the worker starts for it."""
    definition = item.definition
    launched = definition.description is not None and definition.description.needs_launch
    return definition.kind is Kind.FUNCTION and not launched
