"""Functions that need an interpreter of their own: several MPI ranks, GPUs, an environment, commands to run first.

The call travels in a file of a private folder, each rank's result comes back in another. With one rank the task's
result is the function's; with several it is the list of all ranks' results, in the order of the ranks. This module is
also what each rank runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asyncflow.backends import payload
from asyncflow.backends.body import enter_worker, task_error
from asyncflow.backends.contract import Loss, Origin, WorkDied, WorkItem, host_name
from asyncflow.backends.executable import Process
from asyncflow.backends.launch import LocalLaunch
from asyncflow.backends.origin import inside, spans
from asyncflow.backends.orphans import Family
from asyncflow.errors import ExecutableError, signal_name

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from asyncflow.backends.own_process import serve; serve(sys.argv[2])"
)
#: Where launchers put a rank's number: Open MPI, PMIx, MPICH, SLURM.
_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")


def run_function(item: WorkItem, family: Family) -> Any:
    """Run a function in processes started for it.

    Raises what the first failing rank raised, ExecutableError where not one rank began, and WorkDied where one died.
    """
    definition = item.definition
    description = definition.description
    folder = Path(tempfile.mkdtemp(prefix="asyncflow-"))  # readable by its owner only
    try:
        call: tuple[Any, ...] = (
            definition.name,
            1 if description is None else description.ranks,
            payload.dump_function(definition),
            payload.dump_arguments(definition, item.args, item.kwargs),
        )
        if item.origin is not None:
            call = (*call, tuple(item.origin))
        (folder / "call").write_bytes(payload.dumps(call))
        argv = [sys.executable, "-c", _START, json.dumps(sys.path), str(folder)]
        launch = LocalLaunch(item, family)
        process = Process(item, launch)
        output, errors = process.run(launch.line(argv), launch.variables({}), None, None)
        sys.stdout.write(output)
        if process.returncode and not any(folder.glob("begun-*")):
            # What was to run first failed, or the launcher: no loss of a worker, for it would fail again.
            said = errors.decode(errors="replace")
            raise ExecutableError(definition.name, _shown(item), process.returncode, host_name(), output, said)
        results = [_result(folder, definition.name, rank, process.returncode, errors) for rank in range(call[1])]
    finally:
        if item.origin is not None:
            for left in sorted(folder.glob("spans-*[0-9]")):
                spans.bring(item.origin, left.read_bytes())
        shutil.rmtree(folder, ignore_errors=True)
    return results if len(results) > 1 else results[0]


def _shown(item: WorkItem) -> str:
    """What was run for `item`, for people."""
    description = item.definition.description
    before = () if description is None else description.pre_exec
    return "; ".join([*before, f"python (calling {item.definition.name!r})"])


def _result(folder: Path, name: str, rank: int, returncode: int, errors: bytes) -> Any:
    # A rank that failed takes the others with it: its own error says more than theirs.
    failed = sorted(folder.glob("error-*[0-9]"))
    if failed:
        raise payload.load_error(name, failed[0].read_bytes())
    try:
        data = (folder / f"result-{rank}").read_bytes()
    except FileNotFoundError:
        how = f"was ended by {signal_name(-returncode)}" if returncode < 0 else f"exited with code {returncode}"
        said = errors.decode(errors="replace").splitlines()[-20:]
        reason = "\n".join([f"the process started for it (rank {rank}) {how}", *said])
        raise WorkDied(Loss(reason, exit_code=returncode)) from None
    return payload.load_result(name, data)


def serve(folder: str) -> None:
    """One rank: make the call, leave its result or its error."""
    place = Path(folder)
    name, ranks, function, arguments, *of = payload.loads((place / "call").read_bytes())
    # One rank may still run in a launch of the user's own, which numbers it otherwise.
    told = next((os.environ[variable] for variable in _RANK_VARIABLES if variable in os.environ), "0")
    rank = told if ranks > 1 else "0"
    (place / f"begun-{rank}").touch()
    try:
        args, kwargs = payload.load_arguments(name, arguments)
        called = payload.load_function(name, function)
        with _inside(Origin(*of[0]), ranks, place / f"spans-{rank}") if of else contextlib.nullcontext():
            value = _call(called, args, kwargs)
        _leave(place / f"result-{rank}", payload.dump_result(name, value))
    except BaseException as error:
        _leave(place / f"error-{rank}", payload.dump_error(name, task_error(name, error)))
        raise SystemExit(1) from None


def _call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    enter_worker()
    value = function(*args, **kwargs)
    return asyncio.run(value) if inspect.iscoroutine(value) else value


@contextlib.contextmanager
def _inside(origin: Origin, ranks: int, file: Path) -> Iterator[None]:
    """Whose work it is, meanwhile; leaves the spans that were ended."""
    spans.work_apart()
    spans.begin(origin, share=ranks)
    try:
        with inside(origin):
            yield
    finally:
        ended = spans.end(origin)
        if ended is not None:
            _leave(file, ended)


def _leave(path: Path, data: bytes) -> None:
    """Written whole or not at all: the reader may look while this process is being ended."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.rename(path)
