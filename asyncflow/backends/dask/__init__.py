"""Tasks on the workers of a Dask cluster. Needs the extra `dask`."""

from asyncflow.backends.dask.backend import DaskBackend

__all__ = ["DaskBackend"]
