"""The conformance suite over every backend of ours and several executors of others."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import loky
import pytest

from asyncflow.backends import Backend, ExecutorBackend, LocalExecutionBackend, ThreadBackend
from asyncflow.backends.processes import ProcessBackend
from asyncflow.testing.conformance import BackendConformance
from tests.support.batching import forced_batching

_ROOT = Path(__file__).parents[1]

#: Two workers, two pretended GPUs, little patience with commands that ignore TERM.
SMALL: dict[str, Any] = {"gpus": 2, "memory": 1000, "grace": 1.0}


class TestThreads(BackendConformance):
    def make_backend(self) -> Backend:
        return ThreadBackend(2, **SMALL)


class TestProcesses(BackendConformance):
    def make_backend(self) -> Backend:
        return ProcessBackend(2, **SMALL)


class TestThreadsInBatches(TestThreads):
    @pytest.fixture(autouse=True)
    def _in_batches(self) -> Iterator[None]:
        with forced_batching():
            yield


class TestProcessesInBatches(TestProcesses):
    #: It rests on the order in which calls begin, which a batch behind a long call does not keep.
    test_cancelled_tasks_in_the_queue_never_run = None  # type: ignore[assignment]  # so it is no test

    @pytest.fixture(autouse=True)
    def _in_batches(self) -> Iterator[None]:
        with forced_batching():
            yield


class TestThreadPoolExecutor(BackendConformance):
    def make_backend(self) -> Backend:
        return LocalExecutionBackend(ThreadPoolExecutor(2), **SMALL)


class TestProcessPoolExecutor(BackendConformance):
    workers_end_with_engine = False
    ends_late = True

    def make_backend(self) -> Backend:
        # Not fork: this process has threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["asyncflow.testing.bodies"])
        return LocalExecutionBackend(ProcessPoolExecutor(2, mp_context=context), **SMALL)


class TestLoky(BackendConformance):
    workers_end_with_engine = False
    ends_late = True

    def prepare(self) -> None:
        loky.get_reusable_executor(2, timeout=None).submit(int).result()

    def make_backend(self) -> Backend:
        # The same one until it breaks.
        return ExecutorBackend(loky.get_reusable_executor(2, timeout=None), **SMALL)


@pytest.mark.timeout(600)
def test_mpi4py_futures() -> None:
    suite = Path(__file__).with_name("support") / "mpi_suite.py"
    # More processes than cores, as the suite's two workers and the ranks of their tasks are on a small machine.
    variables = {**os.environ, "OMPI_MCA_rmaps_base_oversubscribe": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", str(suite), "-q", "-p", "no:cacheprovider", "--rootdir", str(_ROOT)]
    ran = subprocess.run(command, env=variables, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ran.returncode == 0, ran.stdout
