"""The conformance suite over a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from asyncflow.backends import Backend
from asyncflow.backends.dask import DaskBackend
from asyncflow.testing.conformance import BackendConformance
from tests.support.dask_cluster import DaskCluster

#: Tells the scripts that tests start where the cluster is.
_ADDRESS = "ASYNCFLOW_TEST_DASK"


@pytest.fixture(scope="module", autouse=True)
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One worker of two threads, for all tests: nothing that these do can end it."""
    cluster = DaskCluster(tmp_path_factory.mktemp("dask"))
    cluster.add("a", threads=2)
    os.environ[_ADDRESS] = cluster.address
    yield
    del os.environ[_ADDRESS]
    cluster.stop()


class TestDask(BackendConformance):
    ends_late = True

    def make_backend(self) -> Backend:
        return DaskBackend(os.environ[_ADDRESS], gpus=2, memory=1000, grace=1.0)
