"""Whose work runs here: current while a task's body runs, told in log records, spans and commands' environments."""

from __future__ import annotations

from asyncflow.backends.origin.current import enter, here, inside, origin_of, stand_for, variables
from asyncflow.backends.origin.log_ids import (
    LOG_SPAN_ID,
    LOG_TASK_ID,
    LOG_TRACE_ID,
    LOG_WORKFLOW_ID,
    install_log_ids,
    remove_log_ids,
)
from asyncflow.backends.origin.spans import (
    DROPPED_SPANS,
    SESSION_ID,
    TASK_ID,
    WORKFLOW_ID,
    command_in,
    note_command,
    unpack_spans,
    work_apart,
)

__all__ = [
    "DROPPED_SPANS",
    "LOG_SPAN_ID",
    "LOG_TASK_ID",
    "LOG_TRACE_ID",
    "LOG_WORKFLOW_ID",
    "SESSION_ID",
    "TASK_ID",
    "WORKFLOW_ID",
    "command_in",
    "enter",
    "here",
    "inside",
    "install_log_ids",
    "note_command",
    "origin_of",
    "remove_log_ids",
    "stand_for",
    "unpack_spans",
    "variables",
    "work_apart",
]
