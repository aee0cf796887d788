"""The conformance suite finds what is wrong: each fault of a backend breaks exactly the tests that it should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import pytest

from tests.support import wrong_backend

_ROOT = Path(__file__).parents[1]
_SUITE = Path(__file__).with_name("support") / "wrong_suite.py"

#: Faults that break different tests, together: a run of the suite takes a while, and who broke what is clear still.
_TOGETHER = [
    "ForgetsTypes SharesGPUs CountsNoMemory ReportsEarly KeepsArguments ForgetsStarts CommandsHoldNoCore",
    "RunsCoroutinesAlone LosesExits CountsOneCore ForgetsEnvironment ForgetsContext RunsTwice DropsEnds",
    "LeavesExecutables RunsCancelled LeavesThreads HoldsLoop ReportsTwice ForgetsOrigin",
]

_ALONE = ["", *(fault for group in _TOGETHER for fault in group.split())]

#: What takes seconds and tells no more of these faults: other interpreters, MPI's launcher.
_SLOW = "killed or rank or script"


def run_suite(faults: str, folder: Path) -> tuple[set[str], str]:
    """Names of the tests that fail on a backend with these faults, and all that pytest printed."""
    # Tracebacks of one line: CPython 3.11 cannot always parse sources, as longer ones need, while threads do so too.
    shown = ["-q", "-rfE", "--tb=line"]
    options = [*shown, "-p", "no:cacheprovider", "-k", f"not ({_SLOW})", f"--basetemp={folder / 'tmp'}"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", str(_SUITE), f"--rootdir={_ROOT}", *options],
        env={**os.environ, "ASYNCFLOW_FAULTS": faults, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return {*re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", ran.stdout, re.MULTILINE)}, ran.stdout


def expected(faults: str) -> set[str]:
    """The tests that a backend with these faults must fail."""
    return {name for fault in wrong_backend.faults_named(faults.split()) for name in fault.breaks}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[tuple[set[str], str]]]]:
    """Two at a time: much of each run is waiting for what does not come."""
    with ThreadPoolExecutor(2) as pool:
        yield {faults: pool.submit(run_suite, faults, tmp_path_factory.mktemp("wrong")) for faults in _TOGETHER}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("faults", _TOGETHER)
def test_faults_break_their_tests_and_no_others(runs: dict[str, Future[tuple[set[str], str]]], faults: str) -> None:
    failed, output = runs[faults].result()
    assert failed == expected(faults), output


def test_faults_that_run_together_break_different_tests() -> None:
    for group in _TOGETHER:
        for one, other in combinations(group.split(), 2):
            assert not expected(one) & expected(other), f"{one} and {other}"


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", _ALONE)
def test_each_fault_breaks_its_tests_and_no_others(fault: str, tmp_path: Path) -> None:
    failed, output = run_suite(fault, tmp_path)
    assert failed == expected(fault), output
