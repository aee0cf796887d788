"""Every error: what its message says, which types it also is, that its data travels."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import cloudpickle
import pytest

import asyncflow
from asyncflow import errors
from asyncflow.errors import nearest


class Case(NamedTuple):
    """An error, what its message must say, what else it is, and some of its data."""

    error: errors.AsyncflowError
    message: str
    base: type[BaseException] = Exception
    data: Mapping[str, Any] = MappingProxyType({})


_ROOT = ValueError("no such column\nmore of it")

CASES = [
    Case(
        errors.AllocationError("42", "nobody says"),
        "SLURM_JOB_ID=42 says that this is a job of SLURM's, but its nodes cannot be told: nobody says; unset "
        "SLURM_JOB_ID to run outside of it",
        RuntimeError,
        data={"job_id": "42", "reason": "nobody says"},
    ),
    Case(
        errors.WalltimeReached(time.mktime((2025, 11, 21, 16, 7, 33, 0, 0, -1)), 12, 88, 4, {"relax": 754.0}),
        "the walltime ends at 2025-11-21 16:07:33: 12 calls done, 88 not done (4 stopped while running); too long for "
        "what was left: 'relax' takes 754 s; submit the job again, or ask for more time",
        data={"done": 12, "unfinished": 88, "stopped": 4, "too_long": {"relax": 754.0}},
    ),
    Case(
        errors.PrometheusEndpointError("127.0.0.1", 9464, "Address already in use"),
        "Prometheus cannot be served at 127.0.0.1:9464: Address already in use; name another address, or port 0 for "
        "any free one",
        OSError,
        {"host": "127.0.0.1", "port": 9464, "problem": "Address already in use"},
    ),
    Case(
        errors.TelemetryNotInstalledError("orjson"),
        "telemetry needs 'orjson', which is not installed: pip install 'asyncflow-hpc[telemetry]'",
        ImportError,
        {"missing": "orjson"},
    ),
    Case(
        errors.TelemetryRunningError("flow-1"),
        "engine 'flow-1' has telemetry already: stop that first, with `await telemetry.stop()`",
        RuntimeError,
        {"uid": "flow-1"},
    ),
    Case(
        errors.ForeignTracerProviderError("NoOpTracerProvider"),
        "span_processors cannot be used: this process has the tracer provider NoOpTracerProvider, which takes none; "
        "configure that one, or set none before telemetry is started",
        ValueError,
        {"provider": "NoOpTracerProvider"},
    ),
    Case(
        errors.EventDefinitionError("checkpoint", "a name with a dot"),
        "events cannot be defined as 'checkpoint': give a name with a dot",
        ValueError,
        {"name": "checkpoint", "legal": "a name with a dot"},
    ),
    Case(
        errors.EventFieldError("a.B", "it has the fields x"),
        "event 'a.B': it has the fields x",
        TypeError,
        {"name": "a.B", "problem": "it has the fields x"},
    ),
    Case(
        errors.InternalError("it went backwards"),
        "it went backwards. This is a defect of asyncflow: please report it with this message",
    ),
    Case(
        errors.TaskDefinitionError("load", "it is a generator"),
        "'load' cannot be a component: it is a generator",
        TypeError,
        {"name": "load"},
    ),
    Case(
        errors.UnknownOptionError("@block", "retrys", ["retries", "timeout"]),
        "@block has no 'retrys'; did you mean 'retries'?",
        TypeError,
        {"key": "retrys", "known": ("retries", "timeout")},
    ),
    Case(
        errors.UnknownOptionError("@block", "colour", ["retries", "timeout"]),
        "@block has no 'colour'; there are 'retries', 'timeout'",
        TypeError,
    ),
    Case(
        errors.InvalidOptionError("retries", -1, "a whole number of at least 0"),
        "retries=-1 is not possible: a whole number of at least 0",
        ValueError,
        {"option": "retries", "value": -1},
    ),
    Case(
        errors.EngineClosedError("load", "flow-1"),
        "'load' was called on engine 'flow-1', which is shut down; create a new one with WorkflowEngine.create()",
        RuntimeError,
    ),
    Case(
        errors.NoEngineError("load", 0),
        "'load' does not know which engine to run on: no engine is open on this loop; create one first: "
        "flow = await WorkflowEngine.create()",
        RuntimeError,
        {"open_engines": 0},
    ),
    Case(
        errors.NoEngineError("load", 2),
        "'load' does not know which engine to run on: 2 engines are open on this loop; call it inside one's "
        "workflow_scope()",
        RuntimeError,
        {"open_engines": 2},
    ),
    Case(
        errors.ForeignThreadError("load", "Thread-7"),
        "'load' was called from thread 'Thread-7', but its engine lives on the event loop of another thread; "
        "use loop.call_soon_threadsafe, or await it in a block",
        RuntimeError,
    ),
    Case(
        errors.CallOutsideLoopError("load", another=True),
        "'load' was called on another event loop; an engine serves the loop that it was created on: create it and "
        "call its tasks in the same asyncio.run()",
        RuntimeError,
    ),
    Case(
        errors.CallOutsideLoopError("load", another=False),
        "'load' was called while the engine's event loop was not running; an engine serves the loop that it was "
        "created on: create it and call its tasks in the same asyncio.run()",
        RuntimeError,
    ),
    Case(
        errors.CalledInsideTaskError("load"),
        "'load' was called inside a task's body, on a worker; call the plain function load.fn(...) there, or make the "
        "caller a block (@flow.block), which may call tasks",
        RuntimeError,
    ),
    Case(
        errors.ForeignFutureError("load", "<Future>"),
        "'load' was given '<Future>', which belongs to another event loop and will never end on this one; await it "
        "there and pass its result",
        RuntimeError,
    ),
    Case(
        errors.MapUsedError("simulate"),
        "the results of this map of 'simulate' were given already: keep their list, or call flow.map() again",
        RuntimeError,
        {"name": "simulate"},
    ),
    Case(
        errors.NotAwaitedError("simulate", "task.000003", "attribute 'mean'"),
        "the future of 'simulate' (task.000003) has no attribute 'mean': await it first, the result is what may have "
        "it; or pass the future itself to another task",
        AttributeError,
        {"task": "simulate", "uid": "task.000003", "use": "attribute 'mean'"},
    ),
    Case(
        errors.NotAwaitedError("simulate", "task.000003", "+"),
        "the future of 'simulate' (task.000003) has no +: await it first, the result is what may have it; or pass the "
        "future itself to another task",
        TypeError,
    ),
    Case(
        errors.FutureNotSettableError("simulate", "task.000003"),
        "the future of 'simulate' (task.000003) is set by its task alone: cancel it, or set one of your own, "
        "made by asyncio.get_running_loop().create_future()",
        RuntimeError,
        {"name": "simulate", "uid": "task.000003"},
    ),
    Case(
        errors.UnsatisfiableRequestError("load", "threads", ["10 cores where there are 2", "1 GPUs where there are 0"]),
        "'load' can never run on backend 'threads': it asks for 10 cores where there are 2; 1 GPUs where there are 0; "
        "ask for less or choose a larger backend",
        ValueError,
        {"backend": "threads", "shortfalls": ("10 cores where there are 2", "1 GPUs where there are 0")},
    ),
    Case(
        errors.UnknownBackendError("thread", ["processes", "threads"]),
        "backend 'thread' is not known; known are 'processes', 'threads'; did you mean 'threads'?",
        LookupError,
        {"name": "thread", "known": ("processes", "threads")},
    ),
    Case(
        errors.UnknownBackendError("cluster", ["cpu", "io"], "load"),
        "'load' asks for backend 'cluster', which this engine does not have; it has 'cpu', 'io'",
        LookupError,
    ),
    Case(
        errors.NotABackendError(7),
        "backend=7 is not a backend: give a backend, a concurrent.futures.Executor, a name such as 'threads' or "
        "'processes', or a list of these",
        TypeError,
    ),
    Case(
        errors.DuplicateBackendError("io"),
        "two backends are named 'io'; give each its own: ThreadBackend(name='io')",
        ValueError,
        {"name": "io"},
    ),
    Case(
        errors.DrainInsideBlockError("block.000001"),
        "drain() inside block.000001 would wait for that block itself; await the futures that it needs instead",
        RuntimeError,
        {"block": "block.000001"},
    ),
    Case(
        errors.CommandNotFoundError("step", ["simulat"], FileNotFoundError(2, "No such file or directory"), None),
        "executable 'step': its command 'simulat' cannot be started: no such program on the worker's PATH; "
        "what only a shell knows needs shell=True, variables go in env=",
        FileNotFoundError,
        {"cmd": ("simulat",)},
    ),
    Case(
        errors.CommandStartError("step", ["./run"], PermissionError(13, "Permission denied"), None),
        "executable 'step': its command './run' cannot be started: it is not executable (Permission denied)",
        OSError,
        {"cmd": ("./run",)},
    ),
    Case(
        errors.BackendInUseError("io"),
        "backend 'io' already serves another open engine; make one for each engine, or shut the other down first",
        RuntimeError,
        {"backend": "io"},
    ),
    Case(
        errors.BackendNotInstalledError("dask", "dask"),
        "Backend 'dask' is not installed; install it with: pip install 'asyncflow-hpc[dask]'",
        ImportError,
        {"extra": "dask"},
    ),
    Case(
        errors.BackendStartError("dask", "OSError: no route"),
        "backend 'dask' did not start: OSError: no route",
        RuntimeError,
        {"backend": "dask"},
    ),
    Case(
        errors.ContractVersionError("theirs", 7, 1),
        "backend 'theirs' is written for version 7 of the backend contract; this asyncflow speaks version 1; install "
        "matching versions of both",
        RuntimeError,
    ),
    Case(
        errors.EngineNotPicklableError(),
        "an engine cannot be sent to a worker: the function refers to it; a function that calls tasks is a block "
        "(@flow.block), which runs on the engine's loop",
        TypeError,
    ),
    Case(
        errors.DependencyFailureError("train", "task.000003", [("load", "task.000001")], _ROOT),
        "'load' (task.000001) failed with ValueError: no such column\n  so 'train' (task.000003) did not run",
        data={"name": "train", "failed_dependencies": ("load",)},
    ),
    Case(
        errors.DependencyFailureError("train", "task.000003", [("load", "task.000001")], ValueError()),
        "'load' (task.000001) failed with ValueError: (no message)\n  so 'train' (task.000003) did not run",
    ),
    Case(
        errors.TaskExitError("load", SystemExit(3)),
        "'load' raised SystemExit(3) in its own code",
        data={"raised": "SystemExit", "code": 3},
    ),
    Case(
        errors.TaskExitError("load", StopIteration()),
        "'load' raised StopIteration() in its own code",
        data={"raised": "StopIteration", "code": None},
    ),
    Case(
        errors.TaskTimeoutError("load", 1.5, 2),
        "'load' ran longer than its timeout of 1.5 s (attempt 2)",
        TimeoutError,
        {"seconds": 1.5, "attempt": 2},
    ),
    Case(
        errors.WorkerLostError("load", "task.000001", "ended by signal 9 (SIGKILL)", "node7", 1, -9),
        "'load' (task.000001) lost its worker once, last on host node7: ended by signal 9 (SIGKILL); max_losses= is "
        "how many losses a task may survive",
        data={"reason": "ended by signal 9 (SIGKILL)", "host": "node7", "losses": 1, "exit_code": -9},
    ),
    Case(
        errors.WorkerLostError("load", "task.000001", "gone", "node7", 4),
        "'load' (task.000001) lost its worker 4 times, last on host node7: gone; max_losses= is how many losses a "
        "task may survive",
        data={"exit_code": None},
    ),
    Case(
        errors.ResultLostError("load", "task.000001", "it was lost 4 times"),
        "the result of 'load' (task.000001) was lost with the worker that had it and cannot be made again: "
        "it was lost 4 times",
        data={"reason": "it was lost 4 times"},
    ),
    Case(
        errors.ResultNotFetchedError("load", "task.000001"),
        "the result of 'load' (task.000001) stayed on the cluster and went with it: await its future before the engine "
        "is shut down",
    ),
    Case(
        errors.WorkerRefusedError("tcp://10.0.0.7:4711", "it runs Python 3.9"),
        "the worker tcp://10.0.0.7:4711 is not used: it runs Python 3.9",
        data={"worker": "tcp://10.0.0.7:4711", "reason": "it runs Python 3.9"},
    ),
    Case(
        errors.BackendLostError("load", "pool", "its thread ended"),
        "'load' cannot run: backend 'pool' broke: its thread ended",
        data={"backend": "pool", "reason": "its thread ended"},
    ),
    Case(
        errors.NotPicklableError("load", "argument 'lock'", "TypeError: cannot pickle '_thread.lock' object"),
        "the argument 'lock' of 'load' cannot be sent between processes: TypeError: cannot pickle '_thread.lock' "
        "object; pass plain data, open such objects inside the function, or run the task on threads",
        TypeError,
        {"what": "argument 'lock'"},
    ),
    Case(
        errors.RemoteError("load", "theirs.OddError", "odd", "Traceback ..."),
        "'load' raised theirs.OddError: odd (the exception itself cannot be pickled)\nTraceback ...",
        data={"type_name": "theirs.OddError", "message": "odd", "traceback": "Traceback ..."},
    ),
    Case(
        errors.LoopBoundError("load", "is bound to a different event loop"),
        "'load' used an object that belongs to another event loop (is bound to a different event loop); tasks run on "
        "their worker's own loop: make it a block (@flow.block), which runs on the engine's, or create the object "
        "inside the task",
        RuntimeError,
    ),
    Case(
        errors.CommandError("list", "it returned an empty command"),
        "executable 'list': it returned an empty command",
        ValueError,
    ),
    Case(
        errors.ExecutableError("list", ["ls", "-x"], 2, "node7", "some", "first\nlast\n"),
        "executable 'list' exited with code 2 on host node7: ['ls', '-x']; its stderr ended with:\nfirst\nlast",
        subprocess.CalledProcessError,
        {"returncode": 2, "cmd": ["ls", "-x"], "output": "some", "stdout": "some", "stderr": "first\nlast\n"},
    ),
    Case(
        errors.ExecutableError("list", "ls", -15, "node7", "", ""),
        "executable 'list' was ended by signal 15 (SIGTERM) on host node7: 'ls'; it wrote nothing to stderr",
        subprocess.CalledProcessError,
        {"name": "list", "host": "node7", "returncode": -15},
    ),
    Case(
        errors.NotTelemetryError("run.csv", "it is empty"),
        "run.csv cannot be read as a run's telemetry: it is empty",
        ValueError,
        {"path": "run.csv", "problem": "it is empty"},
    ),
    Case(
        errors.UnknownSessionError("frist", "run.jsonl", ["first", "second"]),
        "run.jsonl has no session 'frist'; there are 'first', 'second'",
        LookupError,
        {"session": "frist", "path": "run.jsonl", "known": ("first", "second")},
    ),
    Case(
        errors.UnknownSessionError("x", "run.jsonl", [f"flow-{number}" for number in range(10)]),
        "run.jsonl has no session 'x'; there are 'flow-2', 'flow-3', 'flow-4', 'flow-5', 'flow-6', 'flow-7', 'flow-8', "
        "'flow-9' and 2 others",
        LookupError,
    ),
    Case(
        errors.NothingToExportError("flow-1", "it called no tasks"),
        "session 'flow-1' cannot be exported: it called no tasks",
        ValueError,
        {"session": "flow-1"},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case.error).__name__)
def test_an_error_says_what_which_and_what_to_do(case: Case) -> None:
    assert str(case.error) == case.message
    assert isinstance(case.error, case.base)
    assert {name: getattr(case.error, name) for name in case.data} == case.data


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case.error).__name__)
def test_an_error_travels_with_its_data(case: Case) -> None:
    for travelled in (
        pickle.loads(pickle.dumps(case.error)),
        pickle.loads(cloudpickle.dumps(case.error)),
        copy.copy(case.error),
    ):
        assert type(travelled) is type(case.error)
        assert str(travelled) == case.message
        assert {name: getattr(travelled, name) for name in case.data} == case.data
        with pytest.raises(case.base):
            raise travelled


def test_every_error_is_here() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    assert classes <= set(errors.__all__)
    abstract = {"AsyncflowError", "RemoteTraceback"}
    assert {type(case.error).__name__ for case in CASES} == classes - abstract
    public = {name for name in asyncflow.__all__ if name.endswith("Error")}
    assert public <= classes


def test_no_text_says_to_install_another_projects_package() -> None:
    other = re.compile(r"pip install ['\"]?asyncflow(?!-hpc)")
    files = [*Path(asyncflow.__file__).parent.rglob("*.py")]
    assert len(files) > 20
    assert [str(file) for file in files if other.search(file.read_text())] == []


def test_a_root_cause_is_found_through_any_chain() -> None:
    error: BaseException = _ROOT
    for number in range(1, 10):
        above = (f"step {number - 1}", f"task.{number - 1:06d}")
        error = errors.DependencyFailureError(f"step {number}", f"task.{number:06d}", [above], error)
    assert isinstance(error, errors.DependencyFailureError)
    assert error.root_cause is _ROOT
    assert error.failed_dependencies == ("step 8",)
    assert str(error).splitlines() == [
        "'step 0' (task.000000) failed with ValueError: no such column",
        "  ...",
        "  so 'step 7' (task.000007) did not run",
        "  so 'step 8' (task.000008) did not run",
        "  so 'step 9' (task.000009) did not run",
    ]
    travelled = pickle.loads(pickle.dumps(error))
    assert str(travelled.root_cause) == str(_ROOT)


def test_an_executables_error_shows_the_last_lines_of_its_stderr() -> None:
    stderr = "\n".join(f"line {number}" for number in range(100))
    error = errors.ExecutableError("list", "ls", 1, "node7", "", stderr)
    assert str(error).splitlines()[1:] == [f"line {number}" for number in range(80, 100)]
    assert error.stderr == stderr


@pytest.mark.parametrize("number,name", [(9, "signal 9 (SIGKILL)"), (99, "signal 99")])
def test_signals_are_named(number: int, name: str) -> None:
    assert errors.signal_name(number) == name


def test_a_remote_traceback_is_shown_as_it_was() -> None:
    error = ValueError("broken")
    error.__cause__ = errors.RemoteTraceback("Traceback (most recent call last): ...")
    assert str(error.__cause__) == "\nTraceback (most recent call last): ..."
    assert str(pickle.loads(pickle.dumps(error.__cause__))) == str(error.__cause__)


def test_only_a_near_word_is_meant() -> None:
    assert nearest("prioritty", ["priority", "timeout"]) == "; did you mean 'priority'?"
    assert nearest("colour", ["priority", "timeout"]) == ""


def test_one_root_for_all() -> None:
    for case in CASES:
        assert isinstance(case.error, errors.AsyncflowError)
    assert asyncflow.AsyncflowError is errors.AsyncflowError
