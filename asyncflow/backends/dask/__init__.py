"""Tasks on the workers of a Dask cluster. Needs the extra `dask`."""

from asyncflow.errors import BackendNotInstalledError

try:
    from asyncflow.backends.dask.backend import DaskBackend
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] not in ("dask", "distributed"):
        raise
    raise BackendNotInstalledError("dask", "dask") from missing

__all__ = ["DaskBackend"]
