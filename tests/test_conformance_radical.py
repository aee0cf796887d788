"""The conformance suite over a pilot of RADICAL-Pilot."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from asyncflow.backends import Backend
from asyncflow.backends.radical import Pilot, RadicalPilotBackend
from asyncflow.testing.conformance import BackendConformance
from tests.support.network import only_loopback

#: Tells the scripts that tests start where the pilot is.
_FOLDER = "ASYNCFLOW_TEST_PILOT"


@pytest.fixture(scope="module", autouse=True)
def _pilot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all tests. RADICAL-Pilot listens on all interfaces: where that is possible, there are no others."""
    with only_loopback():
        pilot = asyncio.run(Pilot.start(cores=2, gpus=2, memory=1000, root=tmp_path_factory.mktemp("pilot")))
        os.environ[_FOLDER] = str(pilot.folder)
        yield
        del os.environ[_FOLDER]
        asyncio.run(pilot.stop())
        assert not pilot.folder.exists()


class TestRadical(BackendConformance):
    ends_late = True

    def make_backend(self) -> Backend:
        return RadicalPilotBackend(pilot=os.environ[_FOLDER], grace=1.0)
