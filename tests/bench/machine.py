"""What the machine is, and what else it is doing meanwhile. Linux only: it is read from /proc."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_ROOT = Path(__file__).parents[2]
_PROC = Path("/proc")
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
#: From this share of all cores in other hands on, the machine is not quiet.
QUIET = 0.1


def resident() -> int:
    """Bytes of memory that this process occupies now."""
    return int((_PROC / "self/statm").read_text().split()[1]) * _PAGE


def busy_seconds() -> float:
    """Processor seconds of all cores in use since the machine started, those that a hypervisor took included."""
    user, nice, system, _idle, _waiting, *rest = (_PROC / "stat").read_text().splitlines()[0].split()[1:9]
    return sum(map(int, (user, nice, system, *rest))) / _TICK


def own_seconds() -> float:
    """Processor seconds of this process and all its descendants, the ended ones included."""
    usage: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            usage[int(folder.name)] = sum(map(int, fields[11:15]))
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    family = [os.getpid()]
    for member in family:
        family.extend(children.get(member, ()))
    return sum(usage.get(member, 0) for member in family) / _TICK


class Others:
    """What others took of the machine inside the `with`: `share`, from 0 to 1, of all cores."""

    share = 0.0

    def __enter__(self) -> Others:
        self._begun = time.perf_counter()
        self._before = busy_seconds() - own_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        taken = busy_seconds() - own_seconds() - self._before
        # The counters move in steps of a hundredth of a second; over less than a few of them a share says nothing.
        passed = max(time.perf_counter() - self._begun, 5 / _TICK)
        self.share = min(1.0, max(0.0, taken / passed / (os.cpu_count() or 1)))


@dataclass
class Patience:
    """How much noise costs, all in all: `seconds` of waiting for a quiet machine, and `rounds` measured once more."""

    seconds: float
    rounds: int
    #: Seconds for which the machine is watched before it is called quiet.
    window: float
    waited: float = 0.0

    def again(self) -> bool:
        """Whether one more round may be measured because others were noisy."""
        self.rounds -= 1
        return self.rounds >= 0

    def wait(self) -> None:
        """Until the machine is quiet."""
        while True:
            begun = time.perf_counter()
            with Others() as others:
                time.sleep(self.window)
            if others.share < QUIET or self.waited >= self.seconds:
                return
            self.waited += time.perf_counter() - begun


def commit() -> str:
    """Of the checkout that is measured."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def describe() -> dict[str, str | int]:
    """The machine and the interpreter, for the head of a report."""
    models = [line for line in (_PROC / "cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_GiB": round(os.sysconf("SC_PHYS_PAGES") * _PAGE / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
