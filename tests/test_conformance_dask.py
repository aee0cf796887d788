"""The conformance suite over a Dask cluster."""

from __future__ import annotations

from asyncflow.backends import Backend
from asyncflow.backends.dask import DaskBackend
from asyncflow.testing.conformance import BackendConformance


class TestDask(BackendConformance):
    ends_late = True

    def make_backend(self) -> Backend:
        return DaskBackend(workers=2, gpus=2, memory=1000, grace=1.0)
