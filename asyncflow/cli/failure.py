"""What ends a command with one line."""

from __future__ import annotations

from asyncflow.errors import AsyncflowError

#: Exit code of a command that was called wrongly, as of every Unix tool that has one.
USAGE = 2

#: Exit code of a command that Ctrl-C ended: 128 and the signal's number, as shells count.
INTERRUPTED = 130

#: Exit code where the time ended before the work did, EX_TEMPFAIL of sysexits: the same again may succeed.
OUT_OF_TIME = 75


class CommandLineError(AsyncflowError):
    """A command that cannot do what it was asked to: its message is all that is printed."""

    def __init__(self, problem: str, exit_code: int = USAGE) -> None:
        self.exit_code = exit_code
        super().__init__(problem)


class OutOfTimeError(CommandLineError):
    """A script whose time ended before its work did."""

    def __init__(self, problem: str, ends: float) -> None:
        #: When the time ends, in seconds since the epoch.
        self.ends = ends
        super().__init__(problem, OUT_OF_TIME)
