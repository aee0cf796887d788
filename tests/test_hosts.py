"""How busy hosts are: this one by psutil and NVML, those of a Dask cluster by an agent of each."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pynvml
import pytest

from asyncflow.backends import hosts
from asyncflow.backends.contract import GpuFigures, HostFigures, host_name
from asyncflow.backends.dask import DaskBackend
from asyncflow.backends.dask.measuring import Measuring
from asyncflow.backends.dask.node import Node
from asyncflow.backends.hosts import Gauge, HostSampler
from asyncflow.testing.fakes import RecordingReporter
from tests.support.dask_cluster import DaskCluster
from tests.support.scripts import run_script

# --- this host -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)


@pytest.fixture
def gauge() -> Iterator[Gauge]:
    gauge = Gauge()
    yield gauge
    gauge.close()


def clock(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """What the cores have done since the host's start."""
    times = {"user": 0.0, "system": 0.0, "idle": 0.0, "iowait": 0.0, "guest": 0.0, **seconds}
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(_asdict=lambda: times))


def test_a_host_is_called_by_its_name(gauge: Gauge, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gauge.figures().host == host_name() == socket.gethostname()
    monkeypatch.setenv("SLURMD_NODENAME", "n17")
    assert Gauge().figures().host == host_name() == "n17"
    assert Gauge("other").figures().host == "other"


def test_memory_disk_and_network_are_the_hosts(gauge: Gauge) -> None:
    figures = gauge.figures()
    assert figures.memory_total == psutil.virtual_memory().total
    assert 0 < figures.memory_used < figures.memory_total
    assert 0.0 <= figures.cpu_percent <= 100.0
    later = gauge.figures()
    assert later.time >= figures.time
    for name in ("disk_read", "disk_written", "net_received", "net_sent"):
        assert getattr(later, name) >= getattr(figures, name) >= 0


def test_cpu_is_the_share_since_the_figures_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, user=100.0, idle=100.0)
    gauge = Gauge()
    clock(monkeypatch, user=101.0, system=1.0, idle=105.0, iowait=1.0)
    assert gauge.figures().cpu_percent == pytest.approx(25.0)
    clock(monkeypatch, user=103.0, system=1.0, idle=105.0, iowait=1.0)
    assert gauge.figures().cpu_percent == pytest.approx(100.0)


def test_guests_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch)
    gauge = Gauge()
    clock(monkeypatch, user=2.0, guest=2.0, idle=2.0)
    assert gauge.figures().cpu_percent == pytest.approx(50.0)


@pytest.mark.parametrize("seconds", [{}, {"idle": -1.0}, {"user": -1.0, "idle": 2.0}], ids=str)
def test_a_clock_that_does_not_go_on_is_nothing_worse_than_idle(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]
) -> None:
    clock(monkeypatch)
    gauge = Gauge()
    clock(monkeypatch, **seconds)
    assert gauge.figures().cpu_percent == 0.0


def test_two_gauges_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch)
    one, other = Gauge(), Gauge()
    clock(monkeypatch, user=1.0, idle=1.0)
    assert one.figures().cpu_percent == other.figures().cpu_percent == pytest.approx(50.0)


def test_what_a_host_tells_itself_is_no_network(gauge: Gauge) -> None:
    before = gauge.figures()
    size = 50_000_000
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver:
            thread = threading.Thread(target=sender.sendall, args=(bytes(size),))
            thread.start()
            left = size
            while left:
                left -= len(receiver.recv(left))
            thread.join()
    assert gauge.figures().net_sent - before.net_sent < size


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), NotImplementedError("no file says"), RuntimeError()])
def test_what_the_system_does_not_tell_is_nothing(
    gauge: Gauge, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(psutil, "disk_io_counters", fail)
    monkeypatch.setattr(psutil, "net_io_counters", fail)
    figures = gauge.figures()
    assert (figures.disk_read, figures.disk_written, figures.net_received, figures.net_sent) == (0, 0, 0, 0)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)  # without any disk
    assert gauge.figures().disk_read == 0


# --- GPUs ------------------------------------------------------------------------------------------------------------


class Nvml:
    """A driver with GPUs, in place of the real one's functions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *gpus: tuple[int, int, int] | None) -> None:
        """Of each its percent, used and total bytes; None for one that does not tell."""
        self.gpus = gpus
        self.open = 0
        for name in ("Init", "Shutdown", "DeviceGetCount", "DeviceGetHandleByIndex"):
            monkeypatch.setattr(pynvml, f"nvml{name}", getattr(self, name))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", self.memory)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", self.rates)

    def Init(self) -> None:  # noqa: N802 - as NVML calls it
        self.open += 1

    def Shutdown(self) -> None:  # noqa: N802 - the same
        self.open -= 1

    def DeviceGetCount(self) -> int:  # noqa: N802 - the same
        return len(self.gpus)

    def DeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - the same
        return index

    def memory(self, index: int) -> Any:
        _, used, total = self.gpus[index] or (0, 1, 2)
        return SimpleNamespace(used=used, total=total, free=total - used)

    def rates(self, index: int) -> Any:
        gpu = self.gpus[index]
        if gpu is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=gpu[0], memory=0)


def test_gpus_are_told_of_but_for_those_that_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(monkeypatch, (40, 2 * 10**9, 80 * 10**9), None, (100, 0, 80 * 10**9))
    gauge = Gauge()
    assert gauge.figures().gpus == (
        GpuFigures("0", 40.0, 2 * 10**9, 80 * 10**9),
        GpuFigures("2", 100.0, 0, 80 * 10**9),
    )
    assert nvml.open == 1
    gauge.close()
    gauge.close()
    assert nvml.open == 0


def test_a_driver_that_was_lost_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    Nvml(monkeypatch, (1, 1, 1))
    gauge = Gauge()
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", fail)
    monkeypatch.setattr(pynvml, "nvmlShutdown", fail)
    assert gauge.figures().gpus == ()
    gauge.close()


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    gauge = Gauge()
    assert gauge.figures().gpus == ()
    gauge.close()
    assert caplog.records == []


_WITHOUT = """
import sys
sys.modules[{missing!r}] = None
from threading import Semaphore, active_count
from asyncflow.backends.hosts import Gauge, HostSampler
told = Semaphore(0)
sampler = HostSampler(0.01, lambda figures: (print(figures.gpus), told.release()))
sampler.start()
{wait}
sampler.stop()
sampler.thread.join()
print(active_count())
"""


def test_without_the_library_of_gpus_there_are_none() -> None:
    run = run_script(_WITHOUT.format(missing="pynvml", wait="told.acquire()"))
    assert (run.stdout.split()[0], run.stdout.split()[-1], run.stderr) == ("()", "1", "")


def test_without_psutil_nothing_is_measured() -> None:
    run = run_script(_WITHOUT.format(missing="psutil", wait="") + "\nGauge()")
    assert run.stdout == "1\n"
    assert "ImportError: psutil is not installed" in run.stderr


# --- again and again -------------------------------------------------------------------------------------------------


class Heard:
    """What a sampler told."""

    def __init__(self) -> None:
        self.figures: list[HostFigures] = []
        self.threads: set[threading.Thread] = set()
        self._one = threading.Semaphore(0)

    def tell(self, figures: HostFigures) -> None:
        self.figures.append(figures)
        self.threads.add(threading.current_thread())
        self._one.release()

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self._one.acquire(timeout=30.0)


def test_a_sampler_tells_again_and_again_until_it_is_stopped() -> None:
    heard = Heard()
    sampler = HostSampler(0.01, heard.tell, "here")
    sampler.start()
    heard.wait(3)
    sampler.stop()
    sampler.thread.join()
    assert {figures.host for figures in heard.figures} == {"here"}
    assert heard.threads == {sampler.thread}
    sampler.stop()


def test_it_does_not_wait_for_the_end_of_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_FIRST", 0.01)
    heard = Heard()
    sampler = HostSampler(1e6, heard.tell)  # the test's own limit is far below
    sampler.start()
    heard.wait(1)
    sampler.stop()
    sampler.thread.join()
    assert len(heard.figures) == 1


# --- which agents measure --------------------------------------------------------------------------------------------


class Wire:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, tuple[Any, ...]]] = []

    def post(self, verb: str, data: tuple[Any, ...] = ()) -> None:
        self.said.append((verb, data))


@pytest.fixture
def make_node() -> Callable[[str], Node]:
    return lambda host: cast("Node", SimpleNamespace(host=host, wire=Wire()))


def measuring(*nodes: Node) -> list[bool]:
    """Of each, whether it was told to; nobody is told anything else, or twice."""
    said: list[Any] = [cast("Any", node.wire).said for node in nodes]
    assert all(each in ([], [("measure", (5.0,))]) for each in said)
    return [bool(each) for each in said]


def test_one_agent_of_each_host_measures(make_node: Callable[[str], Node]) -> None:
    nodes = [make_node(host) for host in ("n1", "n1", "n2")]
    late = [make_node(host) for host in ("n2", "n3")]
    chosen = Measuring(5.0, nodes)
    assert measuring(*nodes) == [True, False, True]
    for node in late:
        chosen.joined(node)
    assert measuring(*nodes, *late) == [True, False, True, False, True]


def test_another_one_goes_on_when_it_leaves(make_node: Callable[[str], Node]) -> None:
    first, second, third = nodes = [make_node("n1") for _ in range(3)]
    chosen = Measuring(5.0, nodes)
    chosen.left(second, [first, third])
    assert measuring(*nodes) == [True, False, False]
    chosen.left(first, [third])
    assert measuring(third) == [True]
    chosen.left(third, [])
    back = make_node("n1")
    chosen.joined(back)
    assert measuring(back) == [True]


def test_the_engines_own_host_is_not_measured_twice(
    make_node: Callable[[str], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = make_node(socket.gethostname()), make_node("n1")
    Measuring(5.0, [here, there])
    assert measuring(here, there) == [False, True]
    monkeypatch.setenv("SLURMD_NODENAME", "n2")  # the engine is a job's script
    here, there = make_node("n2"), make_node(socket.gethostname())
    Measuring(5.0, [here, there])
    assert measuring(here, there) == [False, True]


# --- a cluster -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(no_leaks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaskCluster]:
    """Two workers that say they are on n1, and one that says n2."""
    cluster = DaskCluster(tmp_path)
    for name, host in {"a": "n1", "b": "n1", "c": "n2"}.items():
        add(cluster, name, host, monkeypatch)
    yield cluster
    cluster.stop()


def add(cluster: DaskCluster, name: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setenv("SLURMD_NODENAME", host)
        cluster.add(name)


async def heard_of(reporter: RecordingReporter, host: str, since: float = 0.0) -> HostFigures:
    """Wait for figures of `host` that were taken after a time; the first such."""
    while True:
        found = [figures for figures in reporter.figures if figures.host == host and figures.time > since]
        if found:
            return found[0]
        await reporter.measurements(len(reporter.figures) + 1)


async def test_hosts_of_a_cluster_are_measured_there(cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = RecordingReporter()
    backend = DaskBackend(cluster.address)
    await backend.start(reporter)
    try:
        backend.measure(0.02)
        figures = await heard_of(reporter, "n1")
        assert figures.memory_total == psutil.virtual_memory().total
        await heard_of(reporter, "n2")
        # Which of the two on n1 measures is not ours to say: both go, one after the other.
        cluster.kill("a")
        await heard_of(reporter, "n1", since=time.time())
        add(cluster, "e", "n1", monkeypatch)
        cluster.kill("b")
        await heard_of(reporter, "n1", since=time.time())
        add(cluster, "d", "n3", monkeypatch)
        await heard_of(reporter, "n3")
    finally:
        await backend.stop(1.0)
    assert {figures.host for figures in reporter.figures} == {"n1", "n2", "n3"}
    assert reporter.breakdown is None
