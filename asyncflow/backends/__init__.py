"""What runs tasks. `docs/design.md` says how a backend fits in, `contract` what it must keep."""

from asyncflow.backends.contract import (
    CONTRACT_VERSION,
    Backend,
    Capabilities,
    Loss,
    Outcome,
    Place,
    Reporter,
    WorkItem,
)
from asyncflow.backends.executor import ExecutorBackend, LocalExecutionBackend
from asyncflow.backends.noop import NoopBackend
from asyncflow.backends.processes import ProcessBackend
from asyncflow.backends.threads import ThreadBackend

__all__ = [
    "CONTRACT_VERSION",
    "Backend",
    "Capabilities",
    "ExecutorBackend",
    "LocalExecutionBackend",
    "Loss",
    "NoopBackend",
    "Outcome",
    "Place",
    "ProcessBackend",
    "Reporter",
    "ThreadBackend",
    "WorkItem",
]
