"""`asyncflow run`: a user's script, run as `python script.py` would run it."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from asyncflow.backends.registry import use_by_default
from asyncflow.cli.failure import OUT_OF_TIME, CommandLineError, OutOfTimeError
from asyncflow.cli.termination import Termination
from asyncflow.engine import tell_by_default
from asyncflow.errors import AsyncflowError
from asyncflow.walltime import walltime_of


def run_script(script: str, arguments: Sequence[str], backend: str | None, telemetry: str | None, grace: float) -> int:
    """Run the file to its end; the exit code, 1 where it raised. SystemExit and KeyboardInterrupt pass through.

    `grace` is the seconds that it has after TERM. Raises CommandLineError where its time ended before its work did.
    """
    source = _read(script)
    if backend is not None:
        _choose(backend)
    if telemetry is not None:
        tell_by_default(telemetry)
    file = os.path.abspath(script)
    module = _become_main(file, [script, *arguments])
    termination = Termination(grace)
    try:
        # The flags of this module must not become the script's.
        code: CodeType = compile(source, file, "exec", dont_inherit=True)
        with termination:
            exec(code, module.__dict__)
    except Exception as error:
        return _failed(error, file)
    except SystemExit as end:
        if end is not termination.exit:
            raise
        raise CommandLineError("ended by TERM while no engine was open", OUT_OF_TIME) from None
    return 0


def _failed(error: Exception, file: str) -> int:
    """The exit code of a script that raised `error`, which is shown as python would show it."""
    reached = walltime_of(error)
    if reached is not None:
        raise OutOfTimeError(str(reached), reached.ends) from error
    # The exception's own is what is printed, whatever the hook is given beside it.
    error.__traceback__ = _script_frames(error.__traceback__, file)
    sys.excepthook(type(error), error, error.__traceback__)
    return 1


def _read(script: str) -> bytes:
    try:
        return Path(script).read_bytes()
    except OSError as error:
        raise CommandLineError(f"cannot read {script}: {error.strerror}") from error


def _choose(backend: str) -> None:
    try:
        use_by_default(backend)
    except AsyncflowError as error:
        raise CommandLineError(str(error)) from error
    except Exception as error:  # whatever a third party's module raises when it is imported
        raise CommandLineError(f"backend {backend!r} cannot be loaded: {type(error).__name__}: {error}") from error


def _become_main(file: str, argv: list[str]) -> ModuleType:
    """Make this process look as if it had been started on the script."""
    module = ModuleType("__main__")
    module.__file__ = file
    module.__loader__ = SourceFileLoader("__main__", file)
    module.__dict__.update(__builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = module
    sys.argv = argv
    if not getattr(sys.flags, "safe_path", False):  # came with Python 3.11
        # What stood here is the folder of the `asyncflow` command, or of `python -m`.
        sys.path[0] = os.path.dirname(os.path.realpath(file))
    return module


def _script_frames(trace: TracebackType | None, file: str) -> TracebackType | None:
    """The traceback from the script's first frame on; none for a syntax error, which has none."""
    while trace is not None and trace.tb_frame.f_code.co_filename != file:
        trace = trace.tb_next
    return trace
