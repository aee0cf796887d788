"""Task graphs of ordinary functions and command lines, from a laptop to a supercomputer."""

from asyncflow.backends.executor import LocalExecutionBackend
from asyncflow.description import TaskDescription
from asyncflow.engine import WorkflowEngine, run
from asyncflow.errors import (
    AsyncflowError,
    BackendLostError,
    DependencyFailureError,
    EngineClosedError,
    ExecutableError,
    NotPicklableError,
    RemoteError,
    TaskExitError,
    TaskTimeoutError,
    UnknownBackendError,
    UnsatisfiableRequestError,
    WalltimeReached,
    WorkerLostError,
)
from asyncflow.future import TaskFuture
from asyncflow.graph import State
from asyncflow.task import Task, block, executable_task, function_task

__all__ = [
    "AsyncflowError",
    "BackendLostError",
    "DependencyFailureError",
    "EngineClosedError",
    "ExecutableError",
    "LocalExecutionBackend",
    "NotPicklableError",
    "RemoteError",
    "State",
    "Task",
    "TaskDescription",
    "TaskExitError",
    "TaskFuture",
    "TaskTimeoutError",
    "UnknownBackendError",
    "UnsatisfiableRequestError",
    "WalltimeReached",
    "WorkerLostError",
    "WorkflowEngine",
    "block",
    "executable_task",
    "function_task",
    "run",
]
