"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

pytest_plugins = ["asyncflow.testing.plugin", "tests.support.pilots", "tests.support.slurm"]

#: Set by most continuous-integration services: there, what is needed is installed, and a skip hides a test.
_NO_SKIPS = bool(os.environ.get("CI"))

if os.geteuid() == 0:
    # Here and not in a fixture: the servers from which worker processes are forked start once and keep what they have.
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _NO_SKIPS and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"no test may be skipped here: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves files in the checkout."""
    monkeypatch.chdir(tmp_path)
