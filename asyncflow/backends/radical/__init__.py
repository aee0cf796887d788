"""Tasks on a pilot of RADICAL-Pilot: one large allocation that many tasks share. Needs the extra `radical`."""

from importlib.util import find_spec

from asyncflow.errors import BackendNotInstalledError

try:
    # Looked for, not imported: only the process that holds the pilot imports it.
    if find_spec("radical.pilot") is None:
        raise ModuleNotFoundError("No module named 'radical.pilot'", name="radical")
    from asyncflow.backends.radical.backend import RadicalPilotBackend
    from asyncflow.backends.radical.pilot import Pilot
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] not in ("radical", "dask", "distributed"):
        raise
    raise BackendNotInstalledError("radical", "radical") from missing

__all__ = ["Pilot", "RadicalPilotBackend"]
