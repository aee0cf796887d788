"""Which version this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """The version of the installed package; "unknown" in a source tree that is not installed."""
    try:
        return version("asyncflow-hpc")
    except PackageNotFoundError:
        return "unknown"
