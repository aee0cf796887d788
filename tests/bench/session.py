"""The parent's side of the measuring processes: starting them, asking them in turn, minding the noise."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from tests.bench.machine import QUIET, Others, Patience
from tests.bench.measures import Reply

_ROOT = Path(__file__).parents[2]


class ChildFailed(Exception):
    """A measuring process ended or fell silent; the message has the end of what it wrote to stderr."""


class Sample(NamedTuple):
    """One measurement, and the share of the machine that others took meanwhile."""

    reply: Reply
    noise: float


class Child:
    """A fresh process with one contender in it, started at once and ready when it is first asked."""

    def __init__(self, contender: str, timeout: float = 180.0) -> None:
        """`timeout` is seconds that any answer may take."""
        self.contender = contender
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.child", contender],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._ready = False

    def ask(self, measure: str, **arguments: Any) -> Sample:
        """Have it measure once; raises ChildFailed."""
        self.get_ready()
        with Others() as others:
            reply = self._exchange(json.dumps({"measure": measure, **arguments}))
        return Sample(reply, others.share)

    def get_ready(self) -> None:
        """Wait until its workers are up."""
        if not self._ready:
            self._exchange(None)
            self._ready = True

    def _exchange(self, command: str | None) -> Reply:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # what it said before it ended is more to the point
            if command is not None:
                self._process.stdin.write(command.encode() + b"\n")
                self._process.stdin.flush()
        answered, _, _ = select.select([self._process.stdout], [], [], self._timeout)
        line = self._process.stdout.readline() if answered else b""
        if not line:
            what = "ended" if answered else f"was silent for {self._timeout:.0f} s"
            self._kill()
            raise ChildFailed(f"{self.contender} {what}: {self._last_words()}")
        reply: Reply = json.loads(line)
        return reply

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-800:].strip() or "it wrote nothing"

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def in_turns(
    asks: Sequence[Callable[[], Sample]], rounds: int, patience: Patience, warm_up: bool = True
) -> list[list[Sample]]:
    """Ask all in turn (A B A B ...), after an untimed round, each round on a machine as quiet as patience allows.

    Noisy rounds are made up for as far as patience goes; if enough quiet ones come together, only these count. The
    result are rounds, each with the samples in the order of `asks`.
    """
    if warm_up:
        for ask in asks:
            ask()
    quiet: list[list[Sample]] = []
    noisy: list[list[Sample]] = []
    while len(quiet) < rounds and (len(quiet) + len(noisy) < rounds or patience.again()):
        patience.wait()
        samples = [ask() for ask in asks]
        (quiet if max(sample.noise for sample in samples) < QUIET else noisy).append(samples)
    return quiet if len(quiet) >= max(2, rounds / 2) else quiet + noisy


class Ratio(NamedTuple):
    """Of two contenders in the same rounds: the median of the rounds' ratios, and what half of these lie between."""

    value: float
    low: float
    high: float
    noise: float


def ratio(rounds: Sequence[Sequence[Sample]], over: Callable[[Sample], float]) -> Ratio:
    """The first contender's figure over the second's."""
    ratios = sorted(over(samples[0]) / over(samples[1]) for samples in rounds)
    margin = len(ratios) // 4
    return Ratio(median(ratios), ratios[margin], ratios[-1 - margin], noise_of(rounds))


def noise_of(rounds: Sequence[Sequence[Sample]]) -> float:
    """The mean share of the machine that others took in these rounds."""
    return fmean(sample.noise for samples in rounds for sample in samples)


def seconds(sample: Sample) -> float:
    return sample.reply["seconds"]


def seconds_per_task(sample: Sample) -> float:
    return sample.reply["seconds"] / sample.reply["tasks"]


def seconds_per_edge(sample: Sample) -> float:
    return sample.reply["seconds"] / sample.reply["edges"]
