"""All names by which telemetry calls things: the one map from the engine's words to those of the ecosystem.

Event types and the fields of a line are those of RADICAL's tools; span and resource attributes follow OpenTelemetry's
semantic conventions (cicd, process, exception, error, code); whatever has no name there begins with `asyncflow.`.
"""

from __future__ import annotations

from asyncflow.backends.origin import (
    DROPPED_SPANS,
    LOG_SPAN_ID,
    LOG_TASK_ID,
    LOG_TRACE_ID,
    LOG_WORKFLOW_ID,
    SESSION_ID,
    TASK_ID,
    WORKFLOW_ID,
)

#: What a worker names, for it may have no more than the backends.
__all__ = [
    "DROPPED_SPANS",
    "LOG_SPAN_ID",
    "LOG_TASK_ID",
    "LOG_TRACE_ID",
    "LOG_WORKFLOW_ID",
    "SESSION_ID",
    "TASK_ID",
    "WORKFLOW_ID",
]

#: The instrumentation scope of spans and metrics.
SCOPE = "asyncflow"

# --- event types ---------------------------------------------------------------------------------------------------

SESSION_STARTED = "SessionStarted"
TASK_CREATED = "TaskCreated"
TASK_RESOLVED = "asyncflow.TaskResolved"
TASK_SUBMITTED = "TaskSubmitted"
TASK_QUEUED = "TaskQueued"
TASK_STARTED = "TaskStarted"
TASK_RETRIED = "asyncflow.TaskRetried"
TASK_COMPLETED = "TaskCompleted"
TASK_FAILED = "TaskFailed"
TASK_CANCELED = "TaskCanceled"
RESOURCE_UPDATE = "ResourceUpdate"
LOOP_BLOCKED = "asyncflow.LoopBlocked"
SESSION_ENDED = "SessionEnded"

#: Event types that end a task.
ENDS = (TASK_COMPLETED, TASK_FAILED, TASK_CANCELED)
#: All types that are not the user's own.
EVENT_TYPES = (
    SESSION_STARTED,
    TASK_CREATED,
    TASK_RESOLVED,
    TASK_SUBMITTED,
    TASK_QUEUED,
    TASK_STARTED,
    TASK_RETRIED,
    *ENDS,
    RESOURCE_UPDATE,
    LOOP_BLOCKED,
    SESSION_ENDED,
)

# --- attributes of events and spans ----------------------------------------------------------------------------------

PARENT = "asyncflow.parent"
ATTEMPT = "asyncflow.attempt"
WORKER = "asyncflow.worker"
BACKEND = "asyncflow.backend"
CORES = "asyncflow.cores"
GPUS = "asyncflow.gpus"
STDERR = "asyncflow.stderr"
ROOT_CAUSE = "asyncflow.root_cause"
REASON = "asyncflow.reason"
LOST = "asyncflow.lost"
#: function, executable or block.
TASK_TYPE = "task_type"
TASK_NAME = "task_name"
EXECUTABLE = "executable"
DEPENDS_ON = "depends_on"

OUTCOME = "cicd.pipeline.task.run.result"
SUCCESS, FAILURE, ERROR, TIMEOUT, CANCELLATION, SKIP = (
    "success",
    "failure",
    "error",
    "timeout",
    "cancellation",
    "skip",
)

ERROR_TYPE = "error.type"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"
EXIT_CODE = "process.exit.code"
COMMAND_ARGS = "process.command_args"
EXECUTABLE_NAME = "process.executable.name"
PID = "process.pid"
HOST = "host.name"

# --- of the session ---------------------------------------------------------------------------------------------------

VERSION = "asyncflow.version"
PYTHON = "python.version"
BACKENDS = "asyncflow.backends"
TASKS = "asyncflow.tasks"
DROPPED = "asyncflow.dropped"
WHO = "asyncflow.who"
WHERE = "code.filepath"
SECONDS = "asyncflow.seconds"

# --- metrics ----------------------------------------------------------------------------------------------------------

METRIC_TASKS = "asyncflow.tasks"
METRIC_DURATION = "asyncflow.task.duration"
METRIC_QUEUE_WAIT = "asyncflow.task.queue_wait"
METRIC_RUNNING = "asyncflow.tasks.running"
METRIC_WORKERS = "asyncflow.workers"
METRIC_CPU = "system.cpu.utilization"
METRIC_MEMORY = "system.memory.usage"
METRIC_MEMORY_LIMIT = "system.memory.limit"
METRIC_DISK = "system.disk.io"
METRIC_NETWORK = "system.network.io"
METRIC_GPU = "hw.gpu.utilization"
METRIC_GPU_MEMORY = "hw.gpu.memory.usage"
METRIC_GPU_MEMORY_LIMIT = "hw.gpu.memory.limit"
#: Labels of metrics, besides BACKEND, TASK_TYPE and HOST. Never anything of which there are as many as tasks or runs.
STATE = "asyncflow.state"
DISK_DIRECTION = "disk.io.direction"
NETWORK_DIRECTION = "network.io.direction"
GPU = "hw.id"
