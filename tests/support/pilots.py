"""One pilot for all tests, and what a test does to pilots of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from asyncflow.backends.radical import Pilot
from asyncflow.backends.radical.files import Files
from asyncflow.backends.radical.leftovers import processes
from tests.support.network import network_of, only_loopback


class SharedPilot:
    """One node with two cores and two GPUs, which no test may break."""

    def __init__(self, pilot: Pilot) -> None:
        self.folder = pilot.folder

    def network(self) -> AbstractContextManager[None]:
        """That from which it can be reached."""
        owner = Files(self.folder).owner()
        assert owner is not None
        return network_of(owner["pid"])


@pytest.fixture(scope="session")
def shared_pilot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedPilot]:
    """RADICAL-Pilot listens on all interfaces: where that is possible, there is only one."""
    root = tmp_path_factory.mktemp("pilot")
    with only_loopback():
        pilot = asyncio.run(Pilot.start(cores=2, gpus=2, memory=1000, root=root))
    shared = SharedPilot(pilot)
    yield shared
    with shared.network():
        asyncio.run(Pilot(pilot.folder).stop())  # as another process would
        assert not pilot.folder.exists(), "it did not end in order"
        asyncio.run(pilot.stop())


def parts(session: str, name: str) -> list[int]:
    """Processes of a session whose names (which RADICAL-Pilot sets itself) or command lines have `name` in them."""
    return [pid for pid in processes(session) if name in _names(pid)]


def kill(session: str, name: str) -> None:
    """End these without a word; there must be some."""
    found = parts(session, name)
    assert found, f"nothing of {session} is called {name}"
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def _names(pid: int) -> str:
    try:
        texts = [Path(f"/proc/{pid}/{file}").read_text(errors="replace") for file in ("comm", "cmdline")]
    except OSError:  # ended meanwhile
        return ""
    return " ".join(texts).replace("\0", " ")
