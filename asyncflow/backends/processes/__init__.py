"""Tasks in worker processes of this machine: for CPU work."""

from asyncflow.backends.processes.backend import ProcessBackend

__all__ = ["ProcessBackend"]
