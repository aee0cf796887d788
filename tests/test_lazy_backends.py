"""Backends that need an extra are found beside the others, and cost nothing until they are asked for."""

from __future__ import annotations

import json

import pytest

import asyncflow.backends
from tests.support.scripts import run_script

#: What is imported, before and after the name is asked for.
_LAZY = """
import json, sys
import asyncflow.backends
before = "distributed" in sys.modules
from asyncflow.backends import DaskBackend
from asyncflow.backends.dask import DaskBackend as same
from asyncflow.backends import RadicalPilotBackend
print(json.dumps([before, "distributed" in sys.modules, DaskBackend is same]))
"""

#: As it is where the extra is not installed.
_MISSING = """
import sys
sys.modules["distributed"] = None
from asyncflow.backends import *
from asyncflow.backends import ThreadBackend
try:
    from asyncflow.backends import DaskBackend
except ImportError as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_importing_the_backends_does_not_import_dask() -> None:
    run = run_script(_LAZY)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [False, True, True]


def test_without_its_extra_a_backend_says_how_to_install_it() -> None:
    run = run_script(_MISSING)
    assert run.returncode == 0, run.stderr
    assert run.stdout == (
        "BackendNotInstalledError: Backend 'dask' is not installed; "
        "install it with: pip install 'asyncflow-hpc[dask]'\n"
    )


@pytest.mark.parametrize("name", ["SlurmBackend", "Dask"])
def test_a_backend_that_does_not_exist_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"module 'asyncflow\.backends' has no attribute '{name}'"):
        getattr(asyncflow.backends, name)
