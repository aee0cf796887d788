"""How busy this host is, as psutil and NVML tell: both may be missing, and then the host tells so much less."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from asyncflow.backends.contract import GpuFigures, HostFigures, host_name

try:
    import psutil
except ImportError:  # it is in the extra `telemetry`
    psutil = None

#: Seconds until the first figures: a short session has some too, and their share of CPU time is that of a real span.
_FIRST = 0.5


class Gauge:
    """Measures this host whenever it is asked to. For one thread at a time."""

    def __init__(self, host: str | None = None) -> None:
        """`host` is the name that the figures have. Raises ImportError where psutil is missing."""
        if psutil is None:
            raise ImportError("psutil is not installed")
        self._host = host or host_name()
        self._cpu = _cpu_times()
        self._gpus = _Gpus()

    def figures(self) -> HostFigures:
        """How busy the host is; its share of CPU time is that since the figures before, or since this was made."""
        memory = psutil.virtual_memory()
        disk_read, disk_written = _disk_bytes()
        net_received, net_sent = _net_bytes()
        return HostFigures(
            host=self._host,
            time=time.time(),
            cpu_percent=self._cpu_percent(),
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            disk_read=disk_read,
            disk_written=disk_written,
            net_received=net_received,
            net_sent=net_sent,
            gpus=self._gpus.figures(),
        )

    def _cpu_percent(self) -> float:
        before, self._cpu = self._cpu, _cpu_times()
        busy, total = (now - then for now, then in zip(self._cpu, before, strict=True))
        # Counters of single cores may be set back where cores come and go.
        return min(100.0, max(0.0, 100.0 * busy / total)) if total > 0 else 0.0

    def close(self) -> None:
        """Let go of the GPUs' driver."""
        self._gpus.close()


class HostSampler:
    """Measures this host on a thread of its own and tells each time."""

    def __init__(self, interval: float, tell: Callable[[HostFigures], None], host: str | None = None) -> None:
        """`tell` is called on the sampler's thread every `interval` seconds; never where psutil is missing."""
        self._interval = interval
        self._tell = tell
        self._host = host
        self._over = threading.Event()
        #: Ends soon after `stop`, unless a driver hangs.
        self.thread = threading.Thread(target=self._sample, name="asyncflow-hosts", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.thread.start()

    def stop(self) -> None:
        """Measure no more; does not wait for figures that are being taken."""
        self._over.set()

    def _sample(self) -> None:
        try:
            gauge = Gauge(self._host)
        except ImportError:
            return
        pause = min(self._interval, _FIRST)
        try:
            while not self._over.wait(pause):
                self._tell(gauge.figures())
                pause = self._interval
        finally:
            gauge.close()


class _Gpus:
    """The GPUs of this host as NVML knows them: all, whoever may use them; none without driver or library."""

    def __init__(self) -> None:
        self._nvml: Any = None
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        self._nvml = pynvml

    def figures(self) -> tuple[GpuFigures, ...]:
        """Of each GPU whose driver tells; one that is cut into slices says nothing of how busy it is."""
        nvml = self._nvml
        if nvml is None:
            return ()
        found = []
        for index in range(self._count()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
            except nvml.NVMLError:
                continue
            found.append(GpuFigures(str(index), float(busy), int(memory.used), int(memory.total)))
        return tuple(found)

    def _count(self) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError:
            return 0

    def close(self) -> None:
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError:
                return


def _cpu_times() -> tuple[float, float]:
    """Seconds that the cores were busy, and all seconds, since the host's start."""
    # Not psutil.cpu_percent(): what it compares with is shared by all of the process.
    times = psutil.cpu_times()._asdict()
    # Linux counts the time of guests in that of users, too.
    total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
    return total - times["idle"] - times.get("iowait", 0.0), total


def _disk_bytes() -> tuple[int, int]:
    """Read from and written to all disks; zeros where the system does not tell, as in some containers."""
    try:
        counters = psutil.disk_io_counters()
    except (OSError, RuntimeError):  # NotImplementedError is one
        counters = None
    return (counters.read_bytes, counters.write_bytes) if counters else (0, 0)


def _net_bytes() -> tuple[int, int]:
    """Received and sent, but for what the host told itself."""
    try:
        interfaces = psutil.net_io_counters(pernic=True)
    except (OSError, RuntimeError):
        interfaces = {}
    counters = [each for name, each in interfaces.items() if not name.startswith("lo")]
    return sum(each.bytes_recv for each in counters), sum(each.bytes_sent for each in counters)
