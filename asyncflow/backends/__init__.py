"""What runs tasks. `docs/design.md` says how a backend fits in, `contract` what it must keep.

`DaskBackend` is imported from here too, and what it stands on only then: it needs the extra `dask`.
"""

from typing import TYPE_CHECKING, Any

from asyncflow.backends.contract import (
    CONTRACT_VERSION,
    Backend,
    Capabilities,
    Loss,
    Outcome,
    Place,
    Reporter,
    Reports,
    WorkItem,
)
from asyncflow.backends.executor import ExecutorBackend, LocalExecutionBackend
from asyncflow.backends.noop import NoopBackend
from asyncflow.backends.processes import ProcessBackend
from asyncflow.backends.threads import ThreadBackend

if TYPE_CHECKING:
    from asyncflow.backends.dask import DaskBackend as DaskBackend
else:  # to mypy it would make every name one of this package

    def __getattr__(name: str) -> Any:
        if name != "DaskBackend":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from asyncflow.backends import dask

        return dask.DaskBackend


# Without DaskBackend: `import *` would import Dask, or fail where that is not installed.
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
    "Reports",
    "ThreadBackend",
    "WorkItem",
]
