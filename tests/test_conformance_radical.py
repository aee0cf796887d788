"""The conformance suite over a pilot of RADICAL-Pilot."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from asyncflow.backends import Backend
from asyncflow.backends.radical import RadicalPilotBackend
from asyncflow.testing.conformance import BackendConformance
from tests.support.pilots import SharedPilot

#: Tells the scripts that tests start where the pilot is.
_FOLDER = "ASYNCFLOW_TEST_PILOT"


@pytest.fixture(scope="module", autouse=True)
def _pilot(shared_pilot: SharedPilot) -> Iterator[None]:
    with shared_pilot.network():
        os.environ[_FOLDER] = str(shared_pilot.folder)
        yield
        del os.environ[_FOLDER]


class TestRadical(BackendConformance):
    ends_late = True

    def make_backend(self) -> Backend:
        return RadicalPilotBackend(pilot=os.environ[_FOLDER], grace=1.0)
