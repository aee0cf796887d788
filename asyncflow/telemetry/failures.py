"""What is told of an error: in events, in spans and in reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asyncflow.backends.contract import Loss
from asyncflow.errors import (
    BackendLostError,
    DependencyFailureError,
    ExecutableError,
    InternalError,
    TaskTimeoutError,
    WorkerLostError,
)
from asyncflow.graph import State
from asyncflow.telemetry import names

#: What is kept of a message; user code may put whole arrays into one.
_LONGEST = 4000
#: How many words of a command are told.
_WORDS = 100


@dataclass(frozen=True)
class Failure:
    """Why something ended other than well."""

    #: The exception's class.
    error_type: str
    #: One of the outcome words of `names`.
    outcome: str
    attributes: dict[str, Any]


def failure_of(error: BaseException | Loss | None, state: State | None) -> Failure:
    """What is told of `error`; `state` is the component's, None where another attempt follows."""
    if state is State.CANCELLED:
        return Failure("CancelledError", names.CANCELLATION, {names.REASON: _clipped(_reason(error))})
    if error is None:  # the engine has taken it back
        taken = "taken back by the engine, whose time ends"
        return Failure("WalltimeReached", names.CANCELLATION, {names.EXCEPTION_MESSAGE: taken})
    if isinstance(error, Loss):
        return Failure("WorkerLostError", names.ERROR, {names.EXCEPTION_MESSAGE: _clipped(error.reason)})
    attributes: dict[str, Any] = {names.EXCEPTION_MESSAGE: _clipped(text_of(error))}
    if isinstance(error, ExecutableError):
        attributes |= _of_command(error)
    if isinstance(error, DependencyFailureError):
        attributes[names.ROOT_CAUSE] = error.root_uid
    return Failure(type(error).__name__, _outcome(error), attributes)


def _of_command(error: ExecutableError) -> dict[str, Any]:
    command = [error.cmd] if isinstance(error.cmd, str) else list(map(str, error.cmd))
    tail = str(error.stderr or "").splitlines()[-error.SHOWN :]
    return {
        names.EXIT_CODE: error.returncode,
        names.COMMAND_ARGS: [_clipped(word) for word in command[:_WORDS]],
        names.STDERR: _clipped("\n".join(tail)),
    }


def _outcome(error: BaseException | None) -> str:
    if isinstance(error, TaskTimeoutError):
        return names.TIMEOUT
    if isinstance(error, DependencyFailureError):
        return names.SKIP
    return names.ERROR if isinstance(error, (WorkerLostError, BackendLostError, InternalError)) else names.FAILURE


def _reason(error: BaseException | Loss | None) -> str:
    return "" if error is None else text_of(error)


def text_of(error: BaseException | Loss | None) -> str:
    """Its message; an exception's own `__str__` may raise."""
    try:
        return str(error)
    except BaseException as wrong:  # user code on a thread of ours: nothing of it may end that
        return f"(its message cannot be had: {type(wrong).__name__})"


def _clipped(text: str) -> str:
    # A surrogate that stands for a byte which is no UTF-8 would make the line unreadable to others.
    text = text.encode(errors="replace").decode()
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " [...]"
