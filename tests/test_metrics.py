"""What a session tells as metrics: what is counted, under which labels, and where Prometheus finds it."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import prometheus_client
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from asyncflow import WorkflowEngine
from asyncflow.backends.contract import Definition, GpuFigures, HostFigures, Kind
from asyncflow.errors import PrometheusEndpointError
from asyncflow.graph import State
from asyncflow.telemetry import names, session
from asyncflow.telemetry.batch import Batch
from asyncflow.telemetry.metrics import BUCKETS, Metrics
from asyncflow.telemetry.prometheus import PrometheusEndpoint
from asyncflow.telemetry.providers import Meters
from asyncflow.testing import bodies
from asyncflow.testing.leaks import nothing_left
from asyncflow.testing.plugin import MakeEngine
from tests.support.scripts import run_script

# --- what is counted -------------------------------------------------------------------------------------------------


class Reading:
    """Metrics of a provider of their own, and what a reader sees of them."""

    def __init__(self) -> None:
        self.workers = {"threads": 2}
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider([self._reader], shutdown_on_exit=False)
        self.metrics = Metrics([self._provider.get_meter("test")], self.workers.items)

    def points(self, name: str) -> dict[frozenset[Any], Any]:
        """The points of one metric, by the values of their labels."""
        data = self._reader.get_metrics_data()
        found = [
            metric
            for resource in (data.resource_metrics if data is not None else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        return {
            frozenset((point.attributes or {}).values()): point for each in found for point in each.data.data_points
        }

    def value(self, name: str, *labels: str) -> float:
        """Of a counter or a gauge; not a number where there is none."""
        point = self.points(name).get(frozenset(labels))
        return math.nan if point is None else float(point.value)

    def stop(self) -> None:
        self._provider.shutdown()


@pytest.fixture
def reading() -> Iterator[Reading]:
    reading = Reading()
    yield reading
    reading.stop()


def record(
    state: State | None = State.DONE,
    *,
    submitted: float | None = 10.0,
    started: float | None = 11.0,
    ended: float | None = 13.0,
    kind: Kind = Kind.FUNCTION,
    backend: str = "threads",
    seen: bool = False,
) -> Any:
    """A component that ended, or one of its attempts, as far as metrics want to know it."""
    return SimpleNamespace(
        definition=Definition(bodies.add, kind, "add", is_async=False),
        backend=backend,
        submitted=submitted,
        started=started,
        ended=ended,
        state=state,
        seen_running=seen,
    )


def test_ends_are_counted_by_state_backend_and_kind(reading: Reading) -> None:
    ended = [record(), record(), record(State.FAILED), record(State.CANCELLED, kind=Kind.BLOCK, backend="blocks")]
    reading.metrics.take(Batch(ended=ended))
    reading.metrics.take(Batch(ended=[record(), record(kind=Kind.EXECUTABLE, backend="dask")]))
    assert reading.value(names.METRIC_TASKS, "DONE", "threads", "function") == 3
    assert reading.value(names.METRIC_TASKS, "FAILED", "threads", "function") == 1
    assert reading.value(names.METRIC_TASKS, "CANCELLED", "blocks", "block") == 1
    assert reading.value(names.METRIC_TASKS, "DONE", "dask", "executable") == 1
    assert sum(point.value > 0 for point in reading.points(names.METRIC_TASKS).values()) == 4


def test_what_a_backend_does_begins_at_nothing(reading: Reading) -> None:
    # Else a server would take what it sees first as what was always so, and no rate would show it.
    for state in ("DONE", "FAILED", "CANCELLED"):
        for kind in ("function", "executable"):
            assert reading.value(names.METRIC_TASKS, state, "threads", kind) == 0
    assert reading.value(names.METRIC_RUNNING, "threads") == 0
    reading.workers["dask"] = 1
    reading.metrics.take(Batch(ended=[record(State.FAILED, backend="dask")]))
    assert reading.value(names.METRIC_TASKS, "FAILED", "dask", "function") == 1
    assert reading.value(names.METRIC_TASKS, "DONE", "dask", "function") == 0


def test_durations_and_waits_of_last_attempts_are_told_in_buckets(reading: Reading) -> None:
    reading.metrics.take(
        Batch(ended=[record(), record(ended=11.0015), record(State.FAILED, ended=7211.5)], retried=[record(None)])
    )
    duration = reading.points(names.METRIC_DURATION)[frozenset({"DONE", "threads", "function"})]
    assert tuple(duration.explicit_bounds) == BUCKETS
    assert (duration.count, duration.sum) == (2, pytest.approx(2.0015))
    by_bound = dict(zip((*BUCKETS, math.inf), duration.bucket_counts, strict=True))
    assert {bound for bound, count in by_bound.items() if count} == {0.002, 2.0}
    failed = reading.points(names.METRIC_DURATION)[frozenset({"FAILED", "threads", "function"})]
    assert (failed.count, failed.sum) == (1, 7200.5)
    wait = reading.points(names.METRIC_QUEUE_WAIT)[frozenset({"threads", "function"})]
    assert (wait.count, wait.sum) == (3, 3.0)


def test_buckets_reach_from_a_millisecond_to_hours() -> None:
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert BUCKETS[0] == 0.001
    assert BUCKETS[-1] >= 12 * 3600


def test_what_never_began_took_no_time(reading: Reading) -> None:
    reading.metrics.take(Batch(ended=[record(State.CANCELLED, submitted=None, started=None), record(submitted=None)]))
    assert reading.value(names.METRIC_TASKS, "CANCELLED", "threads", "function") == 1
    assert list(reading.points(names.METRIC_DURATION)) == [frozenset({"DONE", "threads", "function"})]
    assert reading.points(names.METRIC_QUEUE_WAIT) == {}


def test_a_clock_that_is_behind_makes_no_time_negative(reading: Reading) -> None:
    reading.metrics.take(Batch(ended=[record(submitted=10.0, started=9.0, ended=8.5)]))
    for name in (names.METRIC_DURATION, names.METRIC_QUEUE_WAIT):
        [point] = reading.points(name).values()
        assert (point.count, point.sum) == (1, 0.0)


def test_what_runs_is_counted_until_its_attempt_ends(reading: Reading) -> None:
    first, second, other = record(None), record(None), record(None, backend="dask")
    reading.metrics.take(Batch(started=[first, second, other]))
    assert reading.value(names.METRIC_RUNNING, "threads") == 2
    assert reading.value(names.METRIC_RUNNING, "dask") == 1
    for each in (first, second, other):
        each.seen_running = True
    # One ends, one is tried again, and three short ones were never seen to run.
    reading.metrics.take(Batch(ended=[first, record(), record()], retried=[second, record(None)]))
    assert reading.value(names.METRIC_RUNNING, "threads") == 0
    assert reading.value(names.METRIC_RUNNING, "dask") == 1


def test_workers_are_those_that_there_are(reading: Reading) -> None:
    assert reading.value(names.METRIC_WORKERS, "threads") == 2
    reading.workers["dask"] = 8
    reading.metrics.take(Batch())
    assert reading.value(names.METRIC_WORKERS, "dask") == 8
    reading.workers["dask"] = 5
    reading.metrics.take(Batch())
    assert (reading.value(names.METRIC_WORKERS, "threads"), reading.value(names.METRIC_WORKERS, "dask")) == (2, 5)
    reading.metrics.close()
    assert (reading.value(names.METRIC_WORKERS, "threads"), reading.value(names.METRIC_WORKERS, "dask")) == (0, 0)


def test_all_meters_are_told() -> None:
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    providers = [MeterProvider([reader], shutdown_on_exit=False) for reader in readers]
    metrics = Metrics([provider.get_meter("test") for provider in providers], dict[str, int]().items)
    metrics.take(Batch(ended=[record()], started=[record(None)], hosts=[(None, figures())]))
    for provider, reader in zip(providers, readers, strict=True):
        data: Any = reader.get_metrics_data()
        [scope] = data.resource_metrics[0].scope_metrics
        assert {"asyncflow.tasks", "asyncflow.tasks.running", "system.cpu.utilization"} <= {
            each.name for each in scope.metrics
        }
        provider.shutdown()


# --- hosts -----------------------------------------------------------------------------------------------------------


def figures(host: str = "n1", *, bytes_so_far: int = 1000, gpus: tuple[GpuFigures, ...] = ()) -> HostFigures:
    return HostFigures(
        host=host,
        time=1.0,
        cpu_percent=25.0,
        memory_used=3,
        memory_total=4,
        disk_read=bytes_so_far,
        disk_written=2 * bytes_so_far,
        net_received=3 * bytes_so_far,
        net_sent=4 * bytes_so_far,
        gpus=gpus,
    )


def test_hosts_have_gauges_of_their_own(reading: Reading) -> None:
    gpus = (GpuFigures("0", 40.0, 5, 6), GpuFigures("1", 0.0, 7, 8))
    reading.metrics.take(Batch(hosts=[(None, figures("n1", gpus=gpus)), ("dask", figures("n2"))]))
    for host in ("n1", "n2"):
        assert reading.value(names.METRIC_CPU, host) == 0.25
        assert reading.value(names.METRIC_MEMORY, host) == 3
        assert reading.value(names.METRIC_MEMORY_LIMIT, host) == 4
    assert reading.value(names.METRIC_GPU, "n1", "0") == pytest.approx(0.4)
    assert reading.value(names.METRIC_GPU_MEMORY, "n1", "1") == 7
    assert reading.value(names.METRIC_GPU_MEMORY_LIMIT, "n1", "1") == 8
    assert len(reading.points(names.METRIC_GPU)) == 2


def test_bytes_count_from_the_first_figures_on(reading: Reading) -> None:
    for so_far in (1000, 1010, 1030):
        reading.metrics.take(Batch(hosts=[(None, figures("n1", bytes_so_far=so_far))]))
    assert reading.value(names.METRIC_DISK, "n1", "read") == 30
    assert reading.value(names.METRIC_DISK, "n1", "write") == 60
    assert reading.value(names.METRIC_NETWORK, "n1", "receive") == 90
    assert reading.value(names.METRIC_NETWORK, "n1", "transmit") == 120


def test_a_host_that_was_restarted_takes_no_bytes_back(reading: Reading) -> None:
    for so_far in (1000, 10, 15):
        reading.metrics.take(Batch(hosts=[(None, figures("n1", bytes_so_far=so_far))]))
    assert reading.value(names.METRIC_DISK, "n1", "read") == 5


# --- where it goes ---------------------------------------------------------------------------------------------------


class Closing(InMemoryMetricReader):
    """Keeps what it saw last, when it is shut down, and how often it was."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Any = None
        self.shutdowns = 0

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        self.last = self.get_metrics_data()
        self.shutdowns += 1
        super().shutdown(timeout_millis, **options)


def test_without_readers_or_a_provider_there_are_no_meters() -> None:
    meters = Meters([])
    assert meters.meters == []
    meters.close()


def test_readers_are_shut_down_with_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    readers = [Closing(), Closing()]
    meters = Meters(readers)
    [meter] = meters.meters
    meter.create_counter("count").add(3)
    meters.close()
    meters.close()
    for reader in readers:
        assert reader.shutdowns == 1
        [resource] = reader.last.resource_metrics
        assert resource.scope_metrics[0].metrics[0].data.data_points[0].value == 3
        assert resource.scope_metrics[0].scope.name == "asyncflow"
        assert resource.resource.attributes["service.name"] == "asyncflow"


def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ising")
    reader = Closing()
    meters = Meters([reader])
    meters.meters[0].create_counter("count").add(1)
    meters.close()
    assert reader.last.resource_metrics[0].resource.attributes["service.name"] == "ising"


#: The application's provider is set once a process.
_APPLICATION = """
import sys
from opentelemetry.metrics import NoOpMeterProvider, set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from asyncflow.telemetry.providers import Meters

if sys.argv[1] == "none":
    set_meter_provider(NoOpMeterProvider())
    print(len(Meters([]).meters), len(Meters([InMemoryMetricReader()]).meters))
else:
    reader = InMemoryMetricReader()
    set_meter_provider(MeterProvider([reader]))
    meters = Meters([InMemoryMetricReader()])
    for meter in meters.meters:
        meter.create_counter("before").add(1)
    meters.close()
    meters.meters[0].create_counter("after").add(1)
    found = reader.get_metrics_data().resource_metrics[0].scope_metrics
    print(len(meters.meters), [metric.name for scope in found for metric in scope.metrics])
"""


def test_the_applications_provider_is_used_and_left_as_it_is() -> None:
    run = run_script(_APPLICATION, "real")
    assert (run.stdout, run.stderr) == ("2 ['before', 'after']\n", "")


def test_a_provider_that_does_nothing_is_none() -> None:
    run = run_script(_APPLICATION, "none")
    assert (run.stdout, run.stderr) == ("0 1\n", "")


# --- Prometheus ------------------------------------------------------------------------------------------------------


def scraped(url: str) -> dict[str, list[Any]]:
    """The samples that a server would store, by their names."""
    with urlopen(url) as answer:
        text = answer.read().decode()
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def served(endpoint: PrometheusEndpoint, name: str) -> Meters:
    """Meters that the endpoint shows, and a counter of theirs."""
    meters = Meters([endpoint.reader])
    meters.meters[0].create_counter(name).add(1)
    return meters


@pytest.fixture
def endpoint() -> Iterator[PrometheusEndpoint]:
    endpoint = PrometheusEndpoint()
    yield endpoint
    endpoint.close()


def test_it_is_on_loopback_alone_and_at_a_free_port(endpoint: PrometheusEndpoint) -> None:
    assert endpoint.url.startswith("http://127.0.0.1:")
    assert endpoint.url.endswith("/metrics")
    port = int(endpoint.url.split(":")[2].split("/")[0])
    assert port > 0
    # It would be taken, did the endpoint listen on all addresses.
    with socket.create_server(("127.0.0.2", port)):
        pass


def test_two_of_them_never_mix(endpoint: PrometheusEndpoint) -> None:
    other = PrometheusEndpoint()
    one_meters, other_meters = served(endpoint, "one"), served(other, "other")
    assert list(scraped(endpoint.url)) == ["one_total"]
    assert list(scraped(other.url)) == ["other_total"]
    assert "one" not in prometheus_client.generate_latest().decode()
    other_meters.close()
    other.close()
    assert list(scraped(endpoint.url)) == ["one_total"]
    one_meters.close()
    assert scraped(endpoint.url) == {}


def test_a_closed_one_leaves_no_thread_and_no_port() -> None:
    before = set(threading.enumerate())
    endpoint = PrometheusEndpoint()
    meters = served(endpoint, "one")
    assert set(threading.enumerate()) > before
    scraped(endpoint.url)
    meters.close()
    endpoint.close()
    endpoint.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(OSError, match="refused"):
        scraped(endpoint.url)


def test_a_port_that_was_asked_for_is_taken(endpoint: PrometheusEndpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        before = set(threading.enumerate())
        with pytest.raises(PrometheusEndpointError, match=rf"at 127\.0\.0\.1:{port}: Address already in use; name"):
            PrometheusEndpoint(port=port)
        assert set(threading.enumerate()) == before
    again = PrometheusEndpoint(port=port)
    assert again.url == f"http://127.0.0.1:{port}/metrics"
    again.close()


@pytest.mark.parametrize(
    "host, port, problem", [("127.0.0.1", 70_000, "65535"), ("no.such.host.invalid", 0, "[Nn]ame|[Tt]emporary")]
)
def test_an_address_that_is_none_is_named(host: str, port: int, problem: str) -> None:
    with pytest.raises(PrometheusEndpointError, match=problem):
        PrometheusEndpoint(host, port)


def test_an_address_of_the_newer_kind_is_put_into_brackets() -> None:
    try:
        endpoint = PrometheusEndpoint("::1")
    except PrometheusEndpointError:  # not every host has any
        return
    meters = served(endpoint, "one")
    assert endpoint.url.startswith("http://[::1]:")
    assert list(scraped(endpoint.url)) == ["one_total"]
    meters.close()
    endpoint.close()


# --- an engine -------------------------------------------------------------------------------------------------------

_CPU = "system_cpu_utilization"

#: All labels that any metric has.
_LABELS = {
    "asyncflow_backend",
    "asyncflow_state",
    "task_type",
    "host_name",
    "disk_io_direction",
    "network_io_direction",
    "hw_id",
    "le",
}


async def seen(url: str, wanted: Callable[[dict[str, list[Any]]], bool]) -> dict[str, list[Any]]:
    """What is served once it is as `wanted`: the bus looks now and then."""
    assert not await nothing_left(lambda: [] if wanted(scraped(url)) else ["not there"], 60.0)
    return scraped(url)


def total(samples: dict[str, list[Any]], name: str, **labels: str) -> float:
    return float(sum(each.value for each in samples.get(name, []) if labels.items() <= each.labels.items()))


async def test_no_label_tells_tasks_workflows_or_runs_apart(no_leaks: None, make_engine: MakeEngine) -> None:
    flow: WorkflowEngine = await make_engine("threads", uid="run-4711")
    telemetry = await flow.start_telemetry(None, prometheus=True, resource_interval=0.05)
    add, url = flow.function_task(bodies.add), telemetry.prometheus_url
    assert url is not None

    @flow.block
    async def fan_out() -> int:
        return sum([await future for future in [add(number, 1) for number in range(5)]])

    async with flow.workflow_scope("wf-0815"):
        futures: list[asyncio.Future[Any]] = [
            fan_out(),
            flow.executable_task(bodies.words)("sh", "-c", "exit 3"),
            add(add(1, 2), 3),
        ]
        results = await asyncio.gather(*futures, return_exceptions=True)
    assert results[0] == 15
    assert results[2] == 6
    samples = await seen(url, lambda samples: total(samples, "asyncflow_tasks_total") == 9 and _CPU in samples)
    assert total(samples, "asyncflow_tasks_total", asyncflow_state="DONE", task_type="function") == 7
    assert total(samples, "asyncflow_tasks_total", asyncflow_state="FAILED", task_type="executable") == 1
    assert total(samples, "asyncflow_tasks_total", asyncflow_backend="blocks", task_type="block") == 1
    assert total(samples, "asyncflow_task_duration_seconds_count") == 9
    assert total(samples, "asyncflow_task_queue_wait_seconds_count") == 9
    assert total(samples, "asyncflow_workers", asyncflow_backend="threads") > 0
    labels = [label for each in samples.values() for sample in each for label in sample.labels.items()]
    assert {name for name, _ in labels} <= _LABELS
    ids = {"run-4711", "wf-0815", *flow.components}
    assert [label for label in labels if any(uid in label[1] for uid in ids)] == []


async def test_what_runs_is_seen_while_it_does(make_engine: MakeEngine) -> None:
    flow = await make_engine("threads")
    telemetry = await flow.start_telemetry(None, prometheus=True, resource_interval=None)
    url, release = telemetry.prometheus_url, threading.Event()
    assert url is not None
    future = flow.function_task(release.wait)()
    await seen(url, lambda samples: total(samples, "asyncflow_tasks_running", asyncflow_backend="threads") == 1)
    release.set()
    await future
    await seen(url, lambda samples: total(samples, "asyncflow_tasks_total") == 1)
    assert total(scraped(url), "asyncflow_tasks_running") == 0


async def test_the_endpoint_goes_with_telemetry(no_leaks: None, make_engine: MakeEngine) -> None:
    flow = await make_engine("threads")
    telemetry = await flow.start_telemetry(None, prometheus=True)
    url = telemetry.prometheus_url
    assert url is not None
    scraped(url)
    await telemetry.stop()
    with pytest.raises(OSError, match="refused"):
        scraped(url)


async def test_a_taken_port_leaves_the_engine_without_telemetry(no_leaks: None, make_engine: MakeEngine) -> None:
    flow = await make_engine("threads")
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(PrometheusEndpointError, match="Address already in use"):
        await flow.start_telemetry(None, prometheus=taken.getsockname()[1])
    telemetry = await flow.start_telemetry(None, prometheus=True)
    assert await flow.function_task(bodies.add)(1, 2) == 3
    await telemetry.stop()


class Hanging(Closing):
    """Its server does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        self.released.wait()
        super().shutdown(timeout_millis, **options)


async def test_a_reader_that_hangs_does_not_hold_up_the_end(
    no_leaks: None, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "_PATIENCE", 0.1)
    flow, hanging = await make_engine("threads"), Hanging()
    telemetry = await flow.start_telemetry(None, metric_readers=[hanging])
    await telemetry.stop()
    hanging.released.set()
    [warning] = [each.getMessage() for each in caplog.records if each.name == "asyncflow"]
    assert "did not end within 0.1 s" in warning
