"""What runs tasks. `docs/design.md` says how a backend fits in, `contract` what it must keep.

`DaskBackend` and `RadicalPilotBackend` are imported from here too, and what they stand on only then: they need the
extras `dask` and `radical`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from asyncflow.backends.contract import (
    CONTRACT_VERSION,
    Backend,
    Capabilities,
    GpuFigures,
    HostFigures,
    Loss,
    MeasuringBackend,
    Origin,
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
    from asyncflow.backends.radical import RadicalPilotBackend as RadicalPilotBackend
else:  # to mypy it would make every name one of this package
    _EXTRAS = {"DaskBackend": "dask", "RadicalPilotBackend": "radical"}

    def __getattr__(name: str) -> Any:
        if name not in _EXTRAS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"asyncflow.backends.{_EXTRAS[name]}"), name)


# Without these: `import *` would import Dask, or fail where that is not installed.
__all__ = [
    "CONTRACT_VERSION",
    "Backend",
    "Capabilities",
    "ExecutorBackend",
    "GpuFigures",
    "HostFigures",
    "LocalExecutionBackend",
    "Loss",
    "MeasuringBackend",
    "NoopBackend",
    "Origin",
    "Outcome",
    "Place",
    "ProcessBackend",
    "Reporter",
    "Reports",
    "ThreadBackend",
    "WorkItem",
]
