"""A run in Trace Event Format, which Perfetto shows: hosts are processes, workers tracks, dependencies arrows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from asyncflow.report.bars import RETRIED, STATES, Bar, bars_of, natural
from asyncflow.report.failures import follows, message, what
from asyncflow.report.lanes import pack_by_group
from asyncflow.report.run import Failure, Run, Sample
from asyncflow.report.usage import usage
from asyncflow.report.words import moment, one_line

#: Events that are encoded at once.
_BATCH = 1000
#: The process of what belongs to no worker.
_ENGINE = 1
_LOOKS = [str(state).lower() for state in STATES] + ["tried again"]

Event = dict[str, Any]


@dataclass(frozen=True)
class _Track:
    """Where a bar is drawn: numbers of a process and of a thread."""

    pid: int
    tid: int


def chrome_trace(run: Run) -> bytes:
    """The whole file; its times are microseconds since the session began."""
    about = {
        "session": run.session.uid,
        "began": moment(run.session.began),
        "version": run.session.version,
    }
    lines = b",\n".join(_encoded(_events(run)))
    return b'{"displayTimeUnit":"ms","otherData":' + orjson.dumps(about) + b',"traceEvents":[\n' + lines + b"\n]}\n"


def _encoded(events: Iterator[Event]) -> Iterator[bytes]:
    """Many at once: what the encoder gives for a single one keeps a kilobyte."""
    while batch := list(islice(events, _BATCH)):
        yield orjson.dumps(batch)[1:-1]


def _events(run: Run) -> Iterator[Event]:
    bars = bars_of(run)
    processes = _processes(run, bars)
    tracks = _Tracks(bars, processes)
    yield from _named(_ENGINE, 0, f"engine {run.session.uid}")
    for (backend, host), pid in processes.items():
        yield from _named(pid, pid, f"{backend} on {host}" if backend else f"host {host}")
    yield from tracks.names()
    for bar, track in zip(bars, tracks.of_bars, strict=True):
        yield _slice(bar, track)
    yield from _instants(run, bars, tracks.of_bars)
    yield from _flows(run, bars, tracks.of_bars)
    yield from _loop(run)
    yield from _cores(run)
    first_on: dict[str, int] = {}
    for (_, host), pid in processes.items():
        first_on.setdefault(host, pid)
    for host, samples in run.samples.items():
        yield from _counters(samples, first_on[host])


def _nano(seconds: float) -> int:
    return round(seconds * 1e9)


def _micro(seconds: float) -> float:
    return _nano(seconds) / 1000


def _processes(run: Run, bars: Iterable[Bar]) -> dict[tuple[str, str], int]:
    """Numbers for each host of a backend, and for hosts that only told their figures."""
    order = {each.name: place for place, each in enumerate(run.session.backends)}
    found = {bar.place[:2] for bar in bars}
    hosts = {host for _, host in found}
    found |= {("", host) for host in run.samples if host not in hosts}
    ranked = sorted(found, key=lambda each: (order.get(each[0], len(order)), natural(each[0]), natural(each[1])))
    return {each: number for number, each in enumerate(ranked, _ENGINE + 1)}


class _Tracks:
    """A track for each worker, and further ones where what it ran overlaps: slices of a track must not cross."""

    def __init__(self, bars: list[Bar], processes: dict[tuple[str, str], int]) -> None:
        rows, heights = pack_by_group((bar.place, bar.begin, bar.end) for bar in bars)
        self._names: list[tuple[_Track, str]] = []
        first: dict[tuple[str, str, str], _Track] = {}
        for place in sorted(heights, key=lambda place: (processes[place[:2]], natural(place[2]))):
            pid = processes[place[:2]]
            first[place] = _Track(pid, len(self._names) + 1)
            for row in range(heights[place]):
                name = place[2] or "worker unknown"
                self._names.append((_Track(pid, len(self._names) + 1), f"{name} ({row + 1})" if row else name))
        #: Of each bar.
        self.of_bars = [
            _Track(first[bar.place].pid, first[bar.place].tid + row) for bar, row in zip(bars, rows, strict=True)
        ]

    def names(self) -> Iterator[Event]:
        for place, (track, name) in enumerate(self._names):
            yield _about("thread_name", track.pid, track.tid, name=name)
            yield _about("thread_sort_index", track.pid, track.tid, sort_index=place)


def _about(what_: str, pid: int, tid: int, **said: Any) -> Event:
    return {"ph": "M", "name": what_, "pid": pid, "tid": tid, "ts": 0, "args": said}


def _named(pid: int, place: int, name: str) -> Iterator[Event]:
    yield _about("process_name", pid, 0, name=name)
    yield _about("process_sort_index", pid, 0, sort_index=place)


def _slice(bar: Bar, track: _Track) -> Event:
    task = bar.task
    said: dict[str, Any] = {
        "uid": task.uid,
        "workflow": task.workflow,
        "ended": _LOOKS[bar.look],
        "attempt": bar.attempt.number,
        "cores": task.cores,
    }
    if task.parent is not None:
        said["called in"] = task.parent
    failure = bar.attempt.failure or (task.failure if bar.look != RETRIED else None)
    if failure is not None:
        said |= _told(failure)
    slice_: Event = {
        "ph": "X",
        "name": task.name,
        "cat": task.kind,
        "ts": _micro(bar.begin),
        # By whole numbers: a slice that is longer by a rounding error crosses the next.
        "dur": (_nano(bar.end) - _nano(bar.begin)) / 1000,
        "pid": track.pid,
        "tid": track.tid,
        "args": said,
    }
    if failure is not None:
        slice_["cname"] = "bad" if bar.look == RETRIED else "terrible"
    return slice_


def _told(failure: Failure) -> dict[str, Any]:
    said = {"error": what(failure), "message": message(failure), "stderr": failure.stderr}
    return {key: value for key, value in said.items() if value}


def _instants(run: Run, bars: list[Bar], tracks: list[_Track]) -> Iterator[Event]:
    """What was tried again, where it ran; and what failed without ever running, at the engine."""
    for bar, track in zip(bars, tracks, strict=True):
        if bar.look == RETRIED:
            name = f"{bar.task.name} is tried again: {what(bar.attempt.failure or Failure())}"
            yield _instant(name, bar.end, track.pid, track.tid, "t")
    for task in run.tasks.values():
        failure = task.failure
        if failure is not None and task.started is None and not follows(failure):
            name = f"{task.name} ({task.uid}): {what(failure)}: {one_line(failure.message)}"
            yield _instant(name, task.ended or 0.0, _ENGINE, 0, "p")


def _instant(name: str, time: float, pid: int, tid: int, scope: str) -> Event:
    return {"ph": "i", "s": scope, "name": name, "cat": "event", "ts": _micro(time), "pid": pid, "tid": tid}


def _flows(run: Run, bars: list[Bar], tracks: list[_Track]) -> Iterator[Event]:
    """An arrow from the end of each dependency to the beginning of what waited for it."""
    first: dict[str, tuple[Bar, _Track]] = {}
    last: dict[str, tuple[Bar, _Track]] = {}
    for bar, track in zip(bars, tracks, strict=True):
        first.setdefault(bar.task.uid, (bar, track))
        last[bar.task.uid] = bar, track
    number = 0
    for uid, (bar, track) in first.items():
        for before in run.tasks[uid].depends_on:
            if before in last:
                number += 1
                other, there = last[before]
                # Within its slice, not at the end of it: an arrow begins at the slice that is open.
                begins = max(other.begin, other.end - 1e-6)
                arrow = {"name": "dependency", "cat": "dependency", "id": number}
                yield {"ph": "s", **arrow, "ts": _micro(begins), "pid": there.pid, "tid": there.tid}
                yield {"ph": "f", "bp": "e", **arrow, "ts": _micro(bar.begin), "pid": track.pid, "tid": track.tid}


def _loop(run: Run) -> Iterator[Event]:
    if run.loop_blocks:
        yield _about("thread_name", _ENGINE, 1, name="event loop held")
    for each in run.loop_blocks:
        yield {
            "ph": "X",
            "name": each.who,
            "cat": "loop",
            "ts": _micro(each.time),
            "dur": _micro(each.seconds),
            "pid": _ENGINE,
            "tid": 1,
            "args": {"where": each.where},
        }


def _cores(run: Run) -> Iterator[Event]:
    for used in usage(run):
        for time, value in zip(used.busy.times, used.busy.values, strict=True):
            yield _counter(f"cores in use: {used.backend}", time, _ENGINE, {"cores": value})


def _counters(samples: Iterable[Sample], pid: int) -> Iterator[Event]:
    for sample in samples:
        yield _counter("CPU", sample.time, pid, {"percent": sample.cpu_percent})
        yield _counter("memory", sample.time, pid, {"GB": round(sample.memory_used / 1e9, 3)})
        for gpu in sample.gpus:
            yield _counter(f"GPU {gpu.id}", sample.time, pid, {"percent": gpu.utilisation})


def _counter(name: str, time: float, pid: int, values: dict[str, float]) -> Event:
    return {"ph": "C", "name": name, "ts": _micro(max(0.0, time)), "pid": pid, "args": values}
