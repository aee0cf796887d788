"""The conformance suite over mpi4py's executor. Run by `test_conformance.py` in a process of its own.

For MPI, once used in a process, leaves its marks in the environment of whatever that process starts, and the death of
one of its workers ends the process itself.
"""

from __future__ import annotations

from functools import cache

from mpi4py.futures import MPIPoolExecutor

from asyncflow.backends import Backend, ExecutorBackend
from asyncflow.testing.conformance import BackendConformance


@cache
def pool() -> MPIPoolExecutor:
    """One for all tests: MPI takes a second to start one, and holds up whoever asks for it."""
    return MPIPoolExecutor(2)


class TestMPIPoolExecutor(BackendConformance):
    worker_may_die = False
    workers_end_with_engine = False
    ends_late = True

    def prepare(self) -> None:
        pool().submit(int).result()

    def make_backend(self) -> Backend:
        return ExecutorBackend(pool(), gpus=2, memory=1000, grace=1.0)
