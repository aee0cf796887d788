"""What a session does, as metrics: through OpenTelemetry's API, on all meters at once.

No label has a value of which there are as many as tasks, workflows or runs: whoever stores metrics keeps a series for
each. All instruments are synchronous: an observable one cannot be taken back, and the application's provider outlives
the session.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from asyncflow.backends.contract import GpuFigures, HostFigures, Kind
from asyncflow.graph import State
from asyncflow.telemetry import names
from asyncflow.telemetry.batch import Batch
from asyncflow.telemetry.record import Record

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

#: From a millisecond to a day, in seconds.
BUCKETS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0, 1800.0),
    *(3600.0, 7200.0, 18_000.0, 43_200.0, 86_400.0),
)

_ENDS = (State.DONE, State.FAILED, State.CANCELLED)

_Labels = dict[str, str]


class Metrics:
    """Counts and measures what the bus hands on. For one thread at a time."""

    def __init__(self, meters: Sequence[Meter], workers: Callable[[], Iterable[tuple[str, int]]]) -> None:
        """`workers` gives each backend's name and how many workers it has now."""
        self._all = [_Instruments(meter) for meter in meters]
        self._workers = workers
        self._known_workers: dict[str, int] = {}
        self._known_figures: dict[str, HostFigures] = {}
        self._count_workers(workers())

    def take(self, batch: Batch) -> None:
        """Count what happened."""
        self._count_running(batch)
        self._count_ends(batch.ended)
        for _, figures in batch.hosts:
            self._measure(figures)
        self._count_workers(self._workers())

    def close(self) -> None:
        """There are no workers any more."""
        self._count_workers([])

    def _count_running(self, batch: Batch) -> None:
        change = Counter(record.backend for record in batch.started)
        over: list[Record] = [*batch.retried, *batch.ended]
        change.subtract(record.backend for record in over if record.seen_running)
        for backend, number in change.items():
            for each in self._all:
                each.running.add(number, {names.BACKEND: backend})

    def _count_ends(self, ended: Iterable[Record]) -> None:
        # By what they have in common, for which an instrument is asked once: a batch has thousands.
        alike: defaultdict[tuple[str, str, str], list[Record]] = defaultdict(list)
        for record in ended:
            alike[str(record.state), record.backend, record.definition.kind.value].append(record)
        for (state, backend, kind), records in alike.items():
            labels = {names.BACKEND: backend, names.TASK_TYPE: kind}
            for each in self._all:
                each.count(records, labels, {**labels, names.STATE: state})

    def _count_workers(self, now: Iterable[tuple[str, int]]) -> None:
        before, self._known_workers = self._known_workers, dict(now)
        for backend in before.keys() | self._known_workers.keys():
            change = self._known_workers.get(backend, 0) - before.get(backend, 0)
            for each in self._all:
                if backend not in before:
                    each.begin(backend)
                if change:
                    each.workers.add(change, {names.BACKEND: backend})

    def _measure(self, figures: HostFigures) -> None:
        before = self._known_figures.get(figures.host, figures)
        self._known_figures[figures.host] = figures
        for each in self._all:
            each.measure(figures, before)


class _Instruments:
    """Those of one meter."""

    def __init__(self, meter: Meter) -> None:
        self._tasks = meter.create_counter(names.METRIC_TASKS, "{task}", "Tasks and blocks that ended")
        self._duration = meter.create_histogram(
            names.METRIC_DURATION,
            "s",
            "How long the last attempts of tasks and blocks took",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._queue_wait = meter.create_histogram(
            names.METRIC_QUEUE_WAIT,
            "s",
            "How long they had waited on their backend until they began",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self.running = meter.create_up_down_counter(names.METRIC_RUNNING, "{task}", "Tasks and blocks that run")
        self.workers = meter.create_up_down_counter(names.METRIC_WORKERS, "{worker}", "Workers")
        self._cpu = meter.create_gauge(names.METRIC_CPU, "1", "Share of all cores of the host that is busy")
        self._memory = meter.create_gauge(names.METRIC_MEMORY, "By", "Memory of the host that is used")
        self._memory_limit = meter.create_gauge(names.METRIC_MEMORY_LIMIT, "By", "Memory of the host")
        self._disk = meter.create_counter(names.METRIC_DISK, "By", "Bytes of disks since the session began")
        self._network = meter.create_counter(names.METRIC_NETWORK, "By", "Bytes of networks since the session began")
        self._gpu = meter.create_gauge(names.METRIC_GPU, "1", "Share of the time for which the GPU is busy")
        self._gpu_memory = meter.create_gauge(names.METRIC_GPU_MEMORY, "By", "Memory of the GPU that is used")
        self._gpu_limit = meter.create_gauge(names.METRIC_GPU_MEMORY_LIMIT, "By", "Memory of the GPU")

    def begin(self, backend: str) -> None:
        """A backend has come: what happens there is seen as a change from nothing, not as what was always so."""
        self.running.add(0, {names.BACKEND: backend})
        for state in _ENDS:
            for kind in (Kind.FUNCTION, Kind.EXECUTABLE):
                labels = {names.STATE: state.value, names.BACKEND: backend, names.TASK_TYPE: kind.value}
                self._tasks.add(0, labels)

    def count(self, ended: Sequence[Record], labels: _Labels, with_state: _Labels) -> None:
        """Components that ended alike, and how long their last attempts had waited and took."""
        self._tasks.add(len(ended), with_state)
        for record in ended:
            started, submitted, over = record.started, record.submitted, record.ended
            # Their times are by two clocks, of which one may be behind.
            if started is not None and submitted is not None:
                self._queue_wait.record(max(0.0, started - submitted), labels)
            if started is not None and over is not None:
                self._duration.record(max(0.0, over - started), with_state)

    def measure(self, now: HostFigures, before: HostFigures) -> None:
        """Figures of a host, and those `before`, which are the same where there are none."""
        host = {names.HOST: now.host}
        self._cpu.set(now.cpu_percent / 100, host)
        self._memory.set(now.memory_used, host)
        self._memory_limit.set(now.memory_total, host)
        # Less than before after a restart of the host, or where a disk or an interface went.
        self._disk.add(max(0, now.disk_read - before.disk_read), {**host, names.DISK_DIRECTION: "read"})
        self._disk.add(max(0, now.disk_written - before.disk_written), {**host, names.DISK_DIRECTION: "write"})
        received, sent = now.net_received - before.net_received, now.net_sent - before.net_sent
        self._network.add(max(0, received), {**host, names.NETWORK_DIRECTION: "receive"})
        self._network.add(max(0, sent), {**host, names.NETWORK_DIRECTION: "transmit"})
        for gpu in now.gpus:
            self._measure_gpu(gpu, {**host, names.GPU: gpu.id})

    def _measure_gpu(self, gpu: GpuFigures, labels: _Labels) -> None:
        self._gpu.set(gpu.utilisation / 100, labels)
        self._gpu_memory.set(gpu.memory_used, labels)
        self._gpu_limit.set(gpu.memory_total, labels)
