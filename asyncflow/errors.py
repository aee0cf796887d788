"""Every error of asyncflow: one class a situation, its data as attributes, its message built from them.

Messages say what, which, and what to do. Where the standard library has a type for the situation it is a second base,
so that `except LookupError` and the like keep working.
"""

from __future__ import annotations

import difflib
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "AllocationError",
    "AsyncflowError",
    "BackendInUseError",
    "BackendLostError",
    "BackendNotInstalledError",
    "BackendStartError",
    "CallOutsideLoopError",
    "CalledInsideTaskError",
    "CommandError",
    "CommandNotFoundError",
    "CommandStartError",
    "ContractVersionError",
    "DependencyFailureError",
    "DrainInsideBlockError",
    "DuplicateBackendError",
    "EngineClosedError",
    "EngineNotPicklableError",
    "EventDefinitionError",
    "EventFieldError",
    "ExecutableError",
    "ForeignFutureError",
    "ForeignThreadError",
    "ForeignTracerProviderError",
    "FutureNotSettableError",
    "InternalError",
    "InvalidOptionError",
    "LoopBoundError",
    "MapUsedError",
    "NoEngineError",
    "NotABackendError",
    "NotAwaitedError",
    "NotPicklableError",
    "NotTelemetryError",
    "NothingToExportError",
    "PrometheusEndpointError",
    "RemoteError",
    "RemoteTraceback",
    "ResultLostError",
    "ResultNotFetchedError",
    "TaskDefinitionError",
    "TaskExitError",
    "TaskTimeoutError",
    "TelemetryNotInstalledError",
    "TelemetryRunningError",
    "UnknownBackendError",
    "UnknownOptionError",
    "UnknownSessionError",
    "UnsatisfiableRequestError",
    "WalltimeReached",
    "WorkerLostError",
    "WorkerRefusedError",
    "nearest",
]


def nearest(word: str, known: Iterable[str]) -> str:
    """A "did you mean" clause for a mistyped `word`, or nothing where none of `known` is near."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _listed(words: Iterable[str]) -> str:
    return ", ".join(repr(word) for word in words) or "none"


def _restore(cls: type[AsyncflowError], args: tuple[Any, ...], state: dict[str, Any]) -> AsyncflowError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class AsyncflowError(Exception):
    """Root of every error that asyncflow raises itself."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> Any:
        # The constructors take data, not the message, so the default (call the class on `args`) would not restore.
        return _restore, (type(self), self.args, self.__dict__)


class InternalError(AsyncflowError):
    """A defect of asyncflow itself, never of the user's code."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}. This is a defect of asyncflow: please report it with this message")


# --- definitions and options -----------------------------------------------------------------------------------------


class TaskDefinitionError(AsyncflowError, TypeError):
    """A function that cannot become the task or block asked for."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        super().__init__(f"{name!r} cannot be a component: {problem}")


class UnknownOptionError(AsyncflowError, TypeError):
    """An option that a decorator, or a key that `task_description`, does not know."""

    def __init__(self, where: str, key: str, known: Sequence[str]) -> None:
        self.key = key
        self.known = tuple(known)
        hint = nearest(key, known) or f"; there are {_listed(known)}"
        super().__init__(f"{where} has no {key!r}{hint}")


class InvalidOptionError(AsyncflowError, ValueError):
    """An option whose value is out of its range or of the wrong type."""

    def __init__(self, option: str, value: object, legal: str) -> None:
        self.option = option
        self.value = value
        super().__init__(f"{option}={value!r} is not possible: {legal}")


# --- calls -----------------------------------------------------------------------------------------------------------


class EngineClosedError(AsyncflowError, RuntimeError):
    """A call on an engine that was shut down."""

    def __init__(self, name: str, engine: str) -> None:
        super().__init__(
            f"{name!r} was called on engine {engine!r}, which is shut down; "
            f"create a new one with WorkflowEngine.create()"
        )


class NoEngineError(AsyncflowError, RuntimeError):
    """A module-level task called where it cannot tell its engine."""

    def __init__(self, name: str, open_engines: int) -> None:
        self.open_engines = open_engines
        if open_engines:
            problem = f"{open_engines} engines are open on this loop; call it inside one's workflow_scope()"
        else:
            problem = "no engine is open on this loop; create one first: flow = await WorkflowEngine.create()"
        super().__init__(f"{name!r} does not know which engine to run on: {problem}")


class ForeignThreadError(AsyncflowError, RuntimeError):
    """A call from a thread that is not the one of the engine's loop."""

    def __init__(self, name: str, thread: str) -> None:
        super().__init__(
            f"{name!r} was called from thread {thread!r}, but its engine lives on the event loop of another thread; "
            f"use loop.call_soon_threadsafe, or await it in a block"
        )


class CallOutsideLoopError(AsyncflowError, RuntimeError):
    """A call outside the engine's event loop: no loop runs here, or another one does."""

    def __init__(self, name: str, another: bool) -> None:
        where = "on another event loop" if another else "while the engine's event loop was not running"
        super().__init__(
            f"{name!r} was called {where}; an engine serves the loop that it was created on: "
            f"create it and call its tasks in the same asyncio.run()"
        )


class CalledInsideTaskError(AsyncflowError, RuntimeError):
    """A task called in the body of another task, where there is no graph."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} was called inside a task's body, on a worker; call the plain function {name}.fn(...) there, "
            f"or make the caller a block (@flow.block), which may call tasks"
        )


class ForeignFutureError(AsyncflowError, RuntimeError):
    """A future of another event loop passed as an argument before it ended."""

    def __init__(self, name: str, future: object) -> None:
        super().__init__(
            f"{name!r} was given {future!r}, which belongs to another event loop and will never end on this one; "
            f"await it there and pass its result"
        )


class DrainInsideBlockError(AsyncflowError, RuntimeError):
    """`flow.drain()` in a block: it would wait for the block that waits for it."""

    def __init__(self, block: str) -> None:
        self.block = block
        super().__init__(
            f"drain() inside {block} would wait for that block itself; await the futures that it needs instead"
        )


class MapUsedError(AsyncflowError, RuntimeError):
    """The results of a `flow.map()` were asked for twice."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"the results of this map of {name!r} were given already: keep their list, or call flow.map() again"
        )


class FutureNotSettableError(AsyncflowError, RuntimeError):
    """Somebody but the engine tried to set a task's future."""

    def __init__(self, name: str, uid: str) -> None:
        self.name = name
        self.uid = uid
        super().__init__(
            f"the future of {name!r} ({uid}) is set by its task alone: cancel it, or set one of your own, "
            "made by asyncio.get_running_loop().create_future()"
        )


class NotAwaitedError(AsyncflowError, AttributeError, TypeError):
    """A future used as if it were its result."""

    def __init__(self, task: str, uid: str, use: str) -> None:
        self.task = task
        self.uid = uid
        #: What was asked of it: "attribute 'mean'", "+".
        self.use = use
        super().__init__(
            f"the future of {task!r} ({uid}) has no {use}: await it first, the result is what may have it; "
            f"or pass the future itself to another task"
        )


class UnsatisfiableRequestError(AsyncflowError, ValueError):
    """A request for more than the backend has in all."""

    def __init__(self, name: str, backend: str, shortfalls: Sequence[str]) -> None:
        self.backend = backend
        self.shortfalls = tuple(shortfalls)
        super().__init__(
            f"{name!r} can never run on backend {backend!r}: it asks for {'; '.join(shortfalls)}; "
            f"ask for less or choose a larger backend"
        )


# --- backends --------------------------------------------------------------------------------------------------------


class UnknownBackendError(AsyncflowError, LookupError):
    """A backend's name that this engine, or this installation, does not have."""

    def __init__(self, name: str, known: Sequence[str], task: str | None = None) -> None:
        self.name = name
        self.known = tuple(known)
        who = f"{task!r} asks for backend {name!r}, which" if task else f"backend {name!r}"
        where = "this engine does not have; it has" if task else "is not known; known are"
        super().__init__(f"{who} {where} {_listed(known)}{nearest(name, known)}")


class NotABackendError(AsyncflowError, TypeError):
    """A `backend=` that is nothing an engine can use."""

    def __init__(self, value: object) -> None:
        super().__init__(
            f"backend={value!r} is not a backend: give a backend, a concurrent.futures.Executor, a name such as "
            f"'threads' or 'processes', or a list of these"
        )


class DuplicateBackendError(AsyncflowError, ValueError):
    """Two backends of one engine under the same name."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"two backends are named {name!r}; give each its own: ThreadBackend(name='io')")


class BackendNotInstalledError(AsyncflowError, ImportError):
    """A backend whose extra is not installed."""

    def __init__(self, name: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"Backend {name!r} is not installed; install it with: pip install 'asyncflow-hpc[{extra}]'")


class BackendStartError(AsyncflowError, RuntimeError):
    """A backend that did not start."""

    def __init__(self, name: str, reason: str) -> None:
        self.backend = name
        super().__init__(f"backend {name!r} did not start: {reason}")


class BackendInUseError(AsyncflowError, RuntimeError):
    """A backend given to a second engine while it serves a first."""

    def __init__(self, name: str) -> None:
        self.backend = name
        super().__init__(
            f"backend {name!r} already serves another open engine; make one for each engine, "
            f"or shut the other down first"
        )


class ContractVersionError(AsyncflowError, RuntimeError):
    """A backend written for another version of the backend contract."""

    def __init__(self, name: str, theirs: object, ours: int) -> None:
        super().__init__(
            f"backend {name!r} is written for version {theirs!r} of the backend contract; this asyncflow speaks "
            f"version {ours}; install matching versions of both"
        )


class EngineNotPicklableError(AsyncflowError, TypeError):
    """An engine that would have to travel to a worker process."""

    def __init__(self) -> None:
        super().__init__(
            "an engine cannot be sent to a worker: the function refers to it; a function that calls tasks is a block "
            "(@flow.block), which runs on the engine's loop"
        )


# --- ends of tasks ---------------------------------------------------------------------------------------------------


class DependencyFailureError(AsyncflowError):
    """A task that never ran because something that it depends on failed."""

    #: How many lines the message has at most, the root's and this task's own included.
    LINES = 5

    def __init__(self, name: str, uid: str, failed: Sequence[tuple[str, str]], cause: BaseException) -> None:
        """`failed` are name and uid of the direct dependencies that failed; `cause` is the error of the first."""
        self.name = name
        self.uid = uid
        #: The exception of the task that failed first, at the far end of the chain.
        self.root_cause: BaseException = cause.root_cause if isinstance(cause, DependencyFailureError) else cause
        #: uid of that task.
        self.root_uid: str = cause.root_uid if isinstance(cause, DependencyFailureError) else failed[0][1]
        #: Names of the direct dependencies that failed.
        self.failed_dependencies: tuple[str, ...] = tuple(name for name, _ in failed)
        #: `name (uid)` from the root to the failed direct dependency.
        self.chain: tuple[str, ...] = self._chain(failed, cause)
        super().__init__(self._text())

    def _chain(self, failed: Sequence[tuple[str, str]], cause: BaseException) -> tuple[str, ...]:
        above = cause.chain if isinstance(cause, DependencyFailureError) else ()
        chain = (*above, f"{failed[0][0]!r} ({failed[0][1]})")
        # A chain of a million tasks must not cost a million entries in each of a million errors.
        return chain if len(chain) < self.LINES else (chain[0], "...", *chain[3 - self.LINES :])

    def _text(self) -> str:
        root = self.root_cause
        origin, *between = self.chain
        lines = [f"{origin} failed with {type(root).__name__}: {_first_line(root)}"]
        lines += ["  ..." if step == "..." else f"  so {step} did not run" for step in between]
        return "\n".join([*lines, f"  so {self.name!r} ({self.uid}) did not run"])


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "(no message)"


class TaskExitError(AsyncflowError):
    """A task's own code raised what a future cannot carry, or what would end the program.

    StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit and CancelledError are such; the original is
    `__cause__`.
    """

    def __init__(self, name: str, cause: BaseException) -> None:
        #: Name of the exception type that the task raised.
        self.raised = type(cause).__name__
        #: Exit code, where the task raised SystemExit.
        self.code = cause.code if isinstance(cause, SystemExit) else None
        super().__init__(f"{name!r} raised {type(cause).__name__}({cause}) in its own code")
        self.__cause__ = cause


class TaskTimeoutError(AsyncflowError, TimeoutError):
    """An attempt that ran longer than its `timeout=`."""

    def __init__(self, name: str, seconds: float, attempt: int) -> None:
        self.seconds = seconds
        self.attempt = attempt
        super().__init__(f"{name!r} ran longer than its timeout of {seconds:g} s (attempt {attempt})")


class WorkerLostError(AsyncflowError):
    """A task whose workers died under it more often than `max_losses` allows."""

    def __init__(self, name: str, uid: str, reason: str, host: str, losses: int, exit_code: int | None = None) -> None:
        self.reason = reason
        self.host = host
        #: How often a worker was lost while it ran this task alone.
        self.losses = losses
        #: The worker's exit code; negative for a signal, as in `subprocess`; None where it is not known.
        self.exit_code = exit_code
        times = "once" if losses == 1 else f"{losses} times"
        super().__init__(
            f"{name!r} ({uid}) lost its worker {times}, last on host {host}: {reason}; "
            f"max_losses= is how many losses a task may survive"
        )


class WalltimeReached(AsyncflowError):
    """The engine's time ended before its tasks did. What ends with this has not failed: it did not run to its end."""

    def __init__(
        self,
        ends: float,
        done: int,
        unfinished: int,
        stopped: int = 0,
        too_long: Mapping[str, float] | None = None,
    ) -> None:
        #: When the time ends, in seconds since the epoch.
        self.ends = ends
        #: How many calls had ended well, and how many had not ended.
        self.done = done
        self.unfinished = unfinished
        #: How many of the latter were running.
        self.stopped = stopped
        #: Names of tasks that were not begun as they would not have finished, and the seconds that one takes.
        self.too_long = dict(too_long or {})
        super().__init__(self._text())

    def _text(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.ends))
        text = f"the walltime ends at {when}: {self.done} calls done, {self.unfinished} not done"
        if self.stopped:
            text += f" ({self.stopped} stopped while running)"
        if self.too_long:
            held = [f"{name!r} takes {seconds:.3g} s" for name, seconds in self.too_long.items()]
            text += f"; too long for what was left: {', '.join(held[:3])}"
        return f"{text}; submit the job again, or ask for more time"


class AllocationError(AsyncflowError, RuntimeError):
    """A job of SLURM's whose nodes cannot be told."""

    def __init__(self, job_id: str, reason: str) -> None:
        self.job_id = job_id
        self.reason = reason
        super().__init__(
            f"SLURM_JOB_ID={job_id} says that this is a job of SLURM's, but its nodes cannot be told: {reason}; "
            f"unset SLURM_JOB_ID to run outside of it"
        )


class ResultLostError(AsyncflowError):
    """A result that stayed on the cluster was lost with its workers, and could not be made again."""

    def __init__(self, name: str, uid: str, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the result of {name!r} ({uid}) was lost with the worker that had it and cannot be made again: {reason}"
        )


class ResultNotFetchedError(AsyncflowError):
    """A result that stayed on the cluster, and that nobody awaited before the engine was shut down."""

    def __init__(self, name: str, uid: str) -> None:
        super().__init__(
            f"the result of {name!r} ({uid}) stayed on the cluster and went with it: await its future before the "
            f"engine is shut down"
        )


class WorkerRefusedError(AsyncflowError):
    """A worker of a cluster that does not go with the engine; it is not used."""

    def __init__(self, worker: str, reason: str) -> None:
        self.worker = worker
        self.reason = reason
        super().__init__(f"the worker {worker} is not used: {reason}")


class BackendLostError(AsyncflowError):
    """A task whose backend broke as a whole and can run nothing more."""

    def __init__(self, name: str, backend: str, reason: str) -> None:
        self.backend = backend
        self.reason = reason
        super().__init__(f"{name!r} cannot run: backend {backend!r} broke: {reason}")


class NotPicklableError(AsyncflowError, TypeError):
    """A function, argument or result that cannot travel between processes."""

    def __init__(self, name: str, what: str, reason: str) -> None:
        #: Which part: "argument 'x'", "result", "function".
        self.what = what
        super().__init__(
            f"the {what} of {name!r} cannot be sent between processes: {reason}; pass plain data, open such objects "
            f"inside the function, or run the task on threads"
        )


class RemoteTraceback(Exception):
    """The traceback, as text, of an exception that came from another process; always a `__cause__`."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class RemoteError(AsyncflowError):
    """Stands for an exception that did not survive the way back from its worker."""

    def __init__(self, name: str, type_name: str, message: str, traceback: str) -> None:
        #: Module and name of the original exception's type.
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        super().__init__(
            f"{name!r} raised {type_name}: {message} (the exception itself cannot be pickled)\n{traceback}"
        )


class LoopBoundError(AsyncflowError, RuntimeError):
    """An `async def` task that used an object of the engine's loop on its worker's loop."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"{name!r} used an object that belongs to another event loop ({reason}); tasks run on their worker's own "
            f"loop: make it a block (@flow.block), which runs on the engine's, or create the object inside the task"
        )


# --- executables -----------------------------------------------------------------------------------------------------


class CommandError(AsyncflowError, ValueError):
    """A command that an executable task returned and that cannot be run as it is."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"executable {name!r}: {problem}")


class CommandStartError(AsyncflowError, OSError):
    """A command that could not be started at all."""

    def __init__(self, name: str, command: Sequence[str], error: OSError, cwd: str | None) -> None:
        self.cmd = tuple(command)
        super().__init__(
            f"executable {name!r}: its command {command[0]!r} cannot be started: {self._advice(error, cwd)}"
        )
        self.errno = error.errno

    def _advice(self, error: OSError, cwd: str | None) -> str:
        import os

        if cwd is not None and not os.path.isdir(cwd):
            return f"its directory, cwd={cwd!r}, is not there"
        if isinstance(error, PermissionError):
            return f"it is not executable ({error.strerror})"
        if isinstance(error, FileNotFoundError):
            return (
                "no such program on the worker's PATH; what only a shell knows needs shell=True, variables go in env="
            )
        return str(error.strerror or error)


class CommandNotFoundError(CommandStartError, FileNotFoundError):
    """A command whose program, or whose directory, is not there."""


class ExecutableError(AsyncflowError, subprocess.CalledProcessError):
    """A command that ended with a non-zero exit code or by a signal."""

    #: How many lines of stderr the message shows.
    SHOWN = 20

    def __init__(
        self, name: str, cmd: Sequence[str] | str, returncode: int, host: str, output: str, stderr: str
    ) -> None:
        """`returncode` is negative for a signal; `stderr` is its tail as far as it was kept."""
        subprocess.CalledProcessError.__init__(self, returncode, cmd, output=output, stderr=stderr)
        self.name = name
        self.host = host
        how = f"was ended by {signal_name(-returncode)}" if returncode < 0 else f"exited with code {returncode}"
        tail = stderr.splitlines()[-self.SHOWN :]
        said = "\n".join(["; its stderr ended with:", *tail]) if tail else "; it wrote nothing to stderr"
        self.args = (f"executable {name!r} {how} on host {host}: {cmd!r}{said}",)


def signal_name(number: int) -> str:
    """`signal 9 (SIGKILL)` for 9; numbers that this system has no name for stand alone."""
    import signal

    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


class TelemetryNotInstalledError(AsyncflowError, ImportError):
    """Telemetry was asked for where what it needs is not installed."""

    def __init__(self, missing: str) -> None:
        self.missing = missing
        super().__init__(f"telemetry needs {missing!r}, which is not installed: pip install 'asyncflow-hpc[telemetry]'")


class TelemetryRunningError(AsyncflowError, RuntimeError):
    """Telemetry was started twice."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        super().__init__(f"engine {uid!r} has telemetry already: stop that first, with `await telemetry.stop()`")


class ForeignTracerProviderError(AsyncflowError, ValueError):
    """Span processors were given where the process has a tracer provider that takes none."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        super().__init__(
            f"span_processors cannot be used: this process has the tracer provider {provider}, which takes none; "
            f"configure that one, or set none before telemetry is started"
        )


class EventDefinitionError(AsyncflowError, ValueError):
    """A type of events that cannot be defined so."""

    def __init__(self, name: Any, legal: str) -> None:
        self.name = name
        self.legal = legal
        super().__init__(f"events cannot be defined as {name!r}: give {legal}")


class EventFieldError(AsyncflowError, TypeError):
    """An event with fields that its type does not have."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"event {name!r}: {problem}")


class PrometheusEndpointError(AsyncflowError, OSError):
    """The address at which Prometheus was to find the metrics cannot be used."""

    def __init__(self, host: str, port: int, problem: str) -> None:
        self.host = host
        self.port = port
        self.problem = problem
        super().__init__(
            f"Prometheus cannot be served at {host}:{port}: {problem}; name another address, or port 0 for any free one"
        )


# --- runs read back ---------------------------------------------------------------------------------------------------


class NotTelemetryError(AsyncflowError, ValueError):
    """A file or folder that holds no run that could be read back."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path} cannot be read as a run's telemetry: {problem}")


class UnknownSessionError(AsyncflowError, LookupError):
    """A session that a telemetry file does not hold."""

    #: How many of the sessions the message names.
    SHOWN = 8

    def __init__(self, session: str, path: str, known: Sequence[str]) -> None:
        self.session = session
        self.path = path
        #: Those of the file, in the order in which they began.
        self.known = tuple(known)
        named = ", ".join(map(repr, self.known[-self.SHOWN :]))
        others = f" and {len(self.known) - self.SHOWN} others" if len(self.known) > self.SHOWN else ""
        super().__init__(f"{path} has no session {session!r}; there are {named}{others}")


class NothingToExportError(AsyncflowError, ValueError):
    """A run without what the format asked for is made of."""

    def __init__(self, session: str, what: str) -> None:
        self.session = session
        super().__init__(f"session {session!r} cannot be exported: {what}")
