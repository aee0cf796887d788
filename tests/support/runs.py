"""Files of telemetry made up for tests: written line by line, or by a simulated campaign of any size."""

from __future__ import annotations

import heapq
import json
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from asyncflow.telemetry import names

#: When every session made up here began.
EPOCH = datetime(2025, 11, 21, 9, 0, tzinfo=timezone.utc).timestamp()
#: What the host of the engine is called.
HOME = "login1"


class Lines:
    """The lines of one session, as docs/telemetry.md has them. Times are seconds since it began."""

    def __init__(self, session: str = "flow-1", began: float = EPOCH, skew: Mapping[str, float] | None = None) -> None:
        self.session_id = session
        self.began = began
        #: By how many seconds the clock of a host is ahead of the engine's.
        self.skew = dict(skew or {})
        #: By the time of writing.
        self.events: list[tuple[float, dict[str, Any]]] = []
        #: What each component's lines have in common.
        self._known: dict[str, dict[str, Any]] = {}

    def add(
        self,
        kind: str,
        time: float,
        attributes: Mapping[str, Any] | None = None,
        *,
        host: str | None = None,
        written: float | None = None,
        **fields: Any,
    ) -> None:
        """Any event; `time` is the engine's, and is turned into that of `host`."""
        written = time if written is None else written
        event = {
            "event_id": f"{self.session_id}.{len(self.events):08d}",
            "event_type": kind,
            "event_time": round(self.began + time + self.skew.get(host or "", 0.0), 6),
            "emit_time": round(self.began + written, 6),
            "session_id": self.session_id,
            "backend": None,
            "task_id": None,
            "node_id": host,
            "trace_id": None,
            "span_id": None,
            "attributes": {names.WORKFLOW_ID: None, **(attributes or {})},
            **fields,
        }
        self.events.append((written, event))

    def start(self, backends: Iterable[Mapping[str, Any]] = (), time: float = 0.0) -> None:
        said = {
            names.VERSION: "0.1.0",
            names.PYTHON: "3.11.7",
            names.PID: 4711,
            names.COMMAND_ARGS: ["python", "campaign.py"],
            names.BACKENDS: [{"gpus": 0, "memory": 64_000, **backend} for backend in backends],
        }
        self.add(names.SESSION_STARTED, time, said, host=HOME)

    def end(self, time: float, **tasks: int) -> None:
        said = {names.TASKS: tasks, names.DROPPED: 0}
        self.add(names.SESSION_ENDED, time, said, host=HOME, duration_seconds=time)

    def create(
        self,
        uid: str,
        time: float,
        name: str = "work",
        after: Sequence[str] = (),
        *,
        kind: str = "function",
        workflow: str | None = None,
        parent: str | None = None,
        backend: str = "processes",
        cores: int = 1,
    ) -> None:
        self._known[uid] = {"backend": backend, "task_id": uid, "workflow": workflow}
        said = {
            names.TASK_NAME: name,
            names.TASK_TYPE: kind,
            names.EXECUTABLE: f"campaign.{name}",
            names.DEPENDS_ON: list(after),
            names.PARENT: parent,
            names.CORES: cores,
            names.GPUS: 0,
        }
        self.of(uid, names.TASK_CREATED, time, said)

    def of(self, uid: str, kind: str, time: float, attributes: Mapping[str, Any] | None = None, **fields: Any) -> None:
        """An event of a component."""
        known = self._known.get(uid, {"backend": None, "workflow": None})
        said = {names.WORKFLOW_ID: known["workflow"], **(attributes or {})}
        self.add(kind, time, said, **{"task_id": uid, "backend": known["backend"], **fields})

    def resolve(self, uid: str, time: float) -> None:
        self.of(uid, names.TASK_RESOLVED, time)

    def submit(self, uid: str, time: float, attempt: int = 1) -> None:
        self.of(uid, names.TASK_SUBMITTED, time, {names.ATTEMPT: attempt})
        self.of(uid, names.TASK_QUEUED, time + 1e-5, {names.ATTEMPT: attempt})

    def begin(self, uid: str, time: float, worker: str = "w1", host: str = HOME, attempt: int = 1) -> None:
        said = {names.ATTEMPT: attempt, names.WORKER: worker, names.PID: 5000}
        self.of(uid, names.TASK_STARTED, time, said, host=host)

    def retry(
        self,
        uid: str,
        time: float,
        message: str = "it broke",
        error: str = "OSError",
        *,
        attempt: int = 1,
        worker: str = "w1",
        host: str = HOME,
        lost: bool = False,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        about = {
            names.ATTEMPT: attempt,
            names.WORKER: worker,
            names.EXCEPTION_MESSAGE: message,
            names.OUTCOME: names.ERROR if lost else names.FAILURE,
            names.LOST: lost,
            **(more or {}),
        }
        self.of(uid, names.TASK_RETRIED, time, about, host=host, error_type=error, duration_seconds=None)

    def complete(
        self, uid: str, time: float, worker: str = "w1", host: str = HOME, attempt: int = 1, lasted: float | None = None
    ) -> None:
        said = {names.ATTEMPT: attempt, names.WORKER: worker}
        self.of(uid, names.TASK_COMPLETED, time, said, host=host, duration_seconds=lasted)

    def fail(
        self,
        uid: str,
        time: float,
        message: str = "it broke",
        error: str = "ValueError",
        *,
        attempt: int = 1,
        worker: str | None = "w1",
        host: str | None = HOME,
        result: str = names.FAILURE,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        said = {
            names.ATTEMPT: attempt,
            names.WORKER: worker,
            names.EXCEPTION_MESSAGE: message,
            names.OUTCOME: result,
            **(more or {}),
        }
        self.of(uid, names.TASK_FAILED, time, said, host=host, error_type=error, duration_seconds=None)

    def cancel(self, uid: str, time: float, reason: str = "cancelled by the caller", attempt: int = 0) -> None:
        said = {
            names.ATTEMPT: attempt,
            names.WORKER: None,
            names.REASON: reason,
            names.OUTCOME: names.CANCELLATION,
        }
        self.of(uid, names.TASK_CANCELED, time, said, duration_seconds=None)

    def run(
        self,
        uid: str,
        begin: float,
        end: float,
        name: str = "work",
        after: Sequence[str] = (),
        *,
        worker: str = "w1",
        host: str = HOME,
        **more: Any,
    ) -> None:
        """A component that ended well, called and begun at once."""
        self.create(uid, begin, name, after, **more)
        self.resolve(uid, begin)
        self.submit(uid, begin)
        self.begin(uid, begin, worker, host)
        self.complete(uid, end, worker, host, lasted=end - begin)

    def dicts(self) -> list[dict[str, Any]]:
        """In the order of writing."""
        return [event for _, event in sorted(self.events, key=lambda each: each[0])]

    def text(self) -> str:
        return "".join(f"{json.dumps(event, ensure_ascii=False)}\n" for event in self.dicts())

    def write(self, file: Path) -> Path:
        with file.open("a", encoding="utf-8") as out:
            out.write(self.text())
        return file


# --- a simulated campaign ---------------------------------------------------------------------------------------------


@dataclass
class Planned:
    """A call that a campaign will make."""

    name: str
    uid: str
    after: list[str]
    seconds: float
    backend: str = "processes"
    workflow: str | None = None
    kind: str = "function"
    cores: int = 1
    parent: str | None = None
    #: How attempts go wrong, the first first; an attempt without an entry ends well.
    goes_wrong: list[Mapping[str, Any]] = field(default_factory=list)
    retries: int = 0


@dataclass
class Pool:
    """A backend of a campaign."""

    name: str
    hosts: Sequence[str]
    workers_per_host: int

    @property
    def said(self) -> dict[str, Any]:
        workers = len(self.hosts) * self.workers_per_host
        return {"name": self.name, "workers": workers, "cores": workers}

    def workers(self) -> Iterator[tuple[str, str]]:
        for host in self.hosts:
            for number in range(self.workers_per_host):
                yield host, f"{self.name}-{number}"


STDERR = """\
mDiffFit 6.0: reading region-oversized.hdr
mDiffFit: plate solution did not converge after 250 iterations
[struct stat="ERROR", msg="Singular matrix: <reference image> & overlap do not intersect"]"""
_COMMAND_FAILED: Mapping[str, Any] = {
    "error": "ExecutableError",
    "message": "executable 'mDiffFit' exited with code 3 on host n02: ['mDiffFit', '-s', 'fit.txt']",
    "more": {
        names.EXIT_CODE: 3,
        names.COMMAND_ARGS: ["mDiffFit", "-s", "fit.txt", "a b.fits"],
        names.STDERR: STDERR,
    },
}
_RAISED: Mapping[str, Any] = {"error": "ValueError", "message": "background level -3.2 is below the noise floor"}
_LOST: Mapping[str, Any] = {"error": "WorkerLostError", "message": "its worker died: signal 9 (SIGKILL)", "lost": True}


def montage(
    images: int, workflow: str | None, first: int, rng: random.Random, wrong: float = 0.0, fatal: bool = False
) -> list[Planned]:
    """A mosaic of `images` images: projected, compared with their neighbours, corrected, added up; in a block.

    `wrong` is the share of tasks that need a second attempt; where it is `fatal`, some fail for good.
    """
    uids = (f"{first + number:06d}" for number in range(10 * images + 20))
    block = Planned("mosaic", f"block.{next(uids)}", [], 0.0, "blocks", workflow, "block", cores=0)

    def call(name: str, after: list[str], seconds: float, backend: str = "processes", **more: Any) -> Planned:
        lasts = seconds * rng.lognormvariate(0, 0.35)
        made = Planned(name, f"task.{next(uids)}", after, lasts, backend, workflow, parent=block.uid, **more)
        chance = rng.random()
        if name == "mDiffFit" and fatal and chance < max(2 * wrong, 0.02):
            made.goes_wrong, made.retries = [_COMMAND_FAILED] * 3, 2
        elif chance < wrong:
            made.goes_wrong, made.retries = [rng.choice([_COMMAND_FAILED, _RAISED, _LOST])], 2
        return made

    project = [call("mProject", [], 12.0, "cluster", kind="executable") for _ in range(images)]
    pairs = [(a, b) for a in range(images) for b in (a + 1, a + 2) if b < images]
    diffs = [call("mDiffFit", [project[a].uid, project[b].uid], 3.0, "cluster", kind="executable") for a, b in pairs]
    concat = call("mConcatFit", [each.uid for each in diffs], 4.0)
    model = call("mBgModel", [concat.uid], 20.0)
    back = [call("mBackground", [each.uid, model.uid], 5.0, "cluster", kind="executable") for each in project]
    table = call("mImgtbl", [each.uid for each in back], 1.0)
    add = call("mAdd", [table.uid], 25.0, "cluster", cores=4)
    shrink = call("mShrink", [add.uid], 6.0)
    jpeg = call("mJPEG", [shrink.uid], 1.5, kind="executable")
    return [block, *project, *diffs, concat, model, *back, table, add, shrink, jpeg]


POOLS = (Pool("cluster", ("n01", "n02"), 4), Pool("processes", (HOME,), 4))
MANY_POOLS = (Pool("cluster", ("n01", "n02", "n03"), 16), Pool("processes", (HOME,), 8))


def campaign(
    tasks: int, *, workflows: int = 5, wrong: float = 0.03, seed: int = 1, pools: Sequence[Pool] = POOLS
) -> Lines:
    """About `tasks` tasks of several mosaics on two backends, with whatever may happen to them."""
    rng = random.Random(seed)
    images = max(3, tasks // workflows // 4)
    planned: list[Planned] = []
    for number in range(workflows):
        fatal = wrong > 0 and number == workflows - 2
        planned += montage(images, f"mosaic-{number + 1:02d}", len(planned) + 1, rng, wrong, fatal)
    lines = Lines("flow-3f9c21aa", skew={"n02": 4.2, "n03": -1.7})
    Simulation(lines, planned, pools, rng).play()
    return lines


class Simulation:
    """Plays what was planned, first come, first served, and writes what telemetry would."""

    def __init__(self, lines: Lines, planned: Sequence[Planned], pools: Sequence[Pool], rng: random.Random) -> None:
        self._lines = lines
        self._plan = {each.uid: each for each in planned}
        self._rng = rng
        self._pools = pools
        self._free = {pool.name: deque(pool.workers()) for pool in pools}
        self._queues: dict[str, deque[tuple[Planned, int]]] = {pool.name: deque() for pool in pools}
        self._waits = {each.uid: set(each.after) for each in planned}
        self._dependents: dict[str, list[str]] = {}
        for each in planned:
            for before in each.after:
                self._dependents.setdefault(before, []).append(each.uid)
        self._members: dict[str, int] = {}
        for each in planned:
            if each.parent:
                self._members[each.parent] = self._members.get(each.parent, 0) + 1
        self._agenda: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self._count = 0
        self._over: dict[str, str] = {}
        self._running: dict[str, int] = {}

    def _at(self, time: float, what: str, *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._agenda, (time, self._count, what, arguments))

    def play(self) -> None:
        self._lines.start(pool.said for pool in self._pools)
        began: dict[str | None, float] = {}
        for each in self._plan.values():
            start = began.setdefault(each.workflow, 0.5 + 7.0 * len(began))
            self._at(start + self._rng.random() * 0.05, "call", each)
        time = last = 0.0
        while self._agenda:
            time, _, what, arguments = heapq.heappop(self._agenda)
            while last + 5.0 < time:
                last += 5.0
                self._measure(last)
            getattr(self, f"_{what}")(time, *arguments)
        self._lines.add(
            names.LOOP_BLOCKED,
            time / 3,
            {names.WHO: "coroutine 'collect'", names.WHERE: "campaign.py:88", names.SECONDS: 2.4},
        )
        self._lines.add("campaign.Checkpoint", time / 2, {"step": 12})
        tally = {state: list(self._over.values()).count(state) for state in set(self._over.values())}
        self._lines.end(time + 0.2, **tally)

    def _call(self, time: float, task: Planned) -> None:
        self._lines.create(
            task.uid,
            time,
            task.name,
            task.after,
            kind=task.kind,
            workflow=task.workflow,
            parent=task.parent,
            backend=task.backend,
            cores=task.cores,
        )
        for before in list(self._waits[task.uid]):
            if before in self._over:
                self._waits[task.uid].discard(before)
        if not self._waits[task.uid]:
            self._ready(time, task)

    def _ready(self, time: float, task: Planned, attempt: int = 1) -> None:
        if attempt == 1:
            self._lines.resolve(task.uid, time)
        handed = time + self._rng.expovariate(2000)
        self._lines.submit(task.uid, handed, attempt)
        if task.backend == "blocks":
            self._lines.begin(task.uid, handed, "loop", HOME, attempt)
            return
        self._queues[task.backend].append((task, attempt))
        self._at(handed + 0.002, "feed", task.backend)

    def _feed(self, time: float, backend: str) -> None:
        queue, free = self._queues[backend], self._free[backend]
        while queue and len(free) >= min(queue[0][0].cores, 4):
            task, attempt = queue.popleft()
            held = [free.popleft() for _ in range(max(1, min(task.cores, 4)))]
            host, worker = held[0]
            self._running[host] = self._running.get(host, 0) + len(held)
            self._lines.begin(task.uid, time, worker, host, attempt)
            wrong = task.goes_wrong[attempt - 1] if attempt <= len(task.goes_wrong) else None
            lasts = task.seconds * (self._rng.uniform(0.1, 0.9) if wrong else 1.0)
            self._at(time + lasts, "finish", task, attempt, held, wrong, lasts)

    def _finish(
        self,
        time: float,
        task: Planned,
        attempt: int,
        held: list[tuple[str, str]],
        wrong: Mapping[str, Any] | None,
        lasted: float,
    ) -> None:
        host, worker = held[0]
        self._free[task.backend].extend(held)
        self._running[host] -= len(held)
        self._at(time + 0.001, "feed", task.backend)
        place: dict[str, Any] = {"worker": worker, "host": host, "attempt": attempt}
        if wrong is None:
            self._lines.complete(task.uid, time, lasted=lasted, **place)
            self._settle(time, task, "DONE")
            return
        what = dict(wrong)
        lost = what.pop("lost", False)
        if attempt <= task.retries:
            more: Any = what.get("more")
            self._lines.retry(task.uid, time, what["message"], what["error"], lost=lost, more=more, **place)
            self._at(time + 1.0 * attempt, "ready", task, attempt + 1)
            return
        self._lines.fail(task.uid, time, **what, **place)
        self._settle(time, task, "FAILED")

    def _settle(self, time: float, task: Planned, state: str, root: str = "") -> None:
        self._over[task.uid] = state
        for uid in self._dependents.get(task.uid, ()):
            if uid in self._over:
                continue
            dependent = self._plan[uid]
            if state == "FAILED":
                cause = root or task.uid
                message = f"{dependent.name!r} was not run: its dependency {task.name!r} ({task.uid}) failed"
                about = {names.ROOT_CAUSE: cause}
                nowhere: dict[str, Any] = {
                    "worker": None,
                    "host": None,
                    "attempt": 0,
                    "result": names.SKIP,
                    "more": about,
                }
                self._lines.fail(uid, time, message, "DependencyFailureError", **nowhere)
                self._settle(time, dependent, "FAILED", cause)
                continue
            self._waits[uid].discard(task.uid)
            if not self._waits[uid]:
                self._ready(time, dependent)
        if task.parent is not None:
            self._members[task.parent] -= 1
            if not self._members[task.parent]:
                self._close(time, self._plan[task.parent])

    def _close(self, time: float, block: Planned) -> None:
        failed = [uid for uid, each in self._plan.items() if each.parent == block.uid and self._over[uid] == "FAILED"]
        if failed:
            why = {names.ROOT_CAUSE: failed[0]}
            where: dict[str, Any] = {"worker": "loop", "host": HOME, "result": names.SKIP, "more": why}
            self._lines.fail(block.uid, time, f"{len(failed)} parts failed", "DependencyFailureError", **where)
        else:
            self._lines.complete(block.uid, time, "loop", HOME)
        self._settle(time, block, "FAILED" if failed else "DONE")

    def _measure(self, time: float) -> None:
        for pool in self._pools:
            for host in pool.hosts:
                busy = self._running.get(host, 0) / pool.workers_per_host
                figures = {
                    "cpu_percent": round(min(100.0, 92 * busy + self._rng.uniform(1, 6)), 1),
                    "memory_used": int((8 + 40 * busy + self._rng.uniform(0, 3)) * 1e9),
                    "memory_total": 64_000_000_000,
                    "disk_read": int(time * 2e7),
                    "disk_written": int(time * 5e7),
                    "net_received": int(time * 1e7),
                    "net_sent": int(time * 1e6),
                    "gpus": [],
                }
                self._lines.add(names.RESOURCE_UPDATE, time, figures, host=host, backend=pool.name, written=time + 0.05)
