"""The conformance suite over a backend with faults; run by `test_conformance_of_wrong_backend.py`."""

from __future__ import annotations

import os

import pytest

from asyncflow.backends import Backend
from asyncflow.testing.conformance import BackendConformance
from tests.support.wrong_backend import backend_with


class TestWrongBackend(BackendConformance):
    within = 6.0
    chance = 0.5

    def make_backend(self) -> Backend:
        return backend_with(os.environ["ASYNCFLOW_FAULTS"].split())

    @pytest.fixture
    def leak_patience(self) -> float:
        return 2.0
