"""The engine: what users create, decorate with and shut down. Thin: it hands on to the rooms below."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
import uuid
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from time import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar

from asyncflow import options
from asyncflow.arguments import find_futures
from asyncflow.backends.contract import Backend, Kind
from asyncflow.backends.noop import NoopBackend
from asyncflow.backends.registry import check_contract, give_back, names_of, resolve_backends, take
from asyncflow.blocks import BlockRunner
from asyncflow.component import Binding
from asyncflow.components import Components
from asyncflow.display.cards import engine_card
from asyncflow.display.counts import Counts, count
from asyncflow.display.progress import Progress
from asyncflow.errors import (
    AsyncflowError,
    BackendStartError,
    CallOutsideLoopError,
    DrainInsideBlockError,
    EngineClosedError,
    EngineNotPicklableError,
    ForeignThreadError,
    InvalidOptionError,
    TaskDefinitionError,
    TelemetryNotInstalledError,
    TelemetryRunningError,
    UnknownBackendError,
    UnsatisfiableRequestError,
)
from asyncflow.future import TaskFuture
from asyncflow.guard import start_guard
from asyncflow.lane import BackendState
from asyncflow.mapping import TaskMap
from asyncflow.scheduler import Scheduler
from asyncflow.scope import WorkflowScope, _open, closed, enter, opened, scope_of
from asyncflow.task import Decorators, Task, refuse_on_worker
from asyncflow.walltime import Walltime, allocation_end, walltime_of

if TYPE_CHECKING:
    from asyncflow.telemetry import Telemetry

R = TypeVar("R")

_get_running_loop = asyncio._get_running_loop


class WorkflowEngine(Decorators):
    """Turns calls into a graph and runs what is ready on its backends. Made by `WorkflowEngine.create()`.

    It serves the event loop on which it was created. Close it with `await flow.shutdown()` or by leaving its
    `async with`; one that is forgotten is shut down, with a ResourceWarning, when `asyncio.run` ends.
    """

    _engine: WorkflowEngine  # of the decorators: this very one

    def __init__(
        self,
        uid: str,
        work_dir: Path,
        history: int,
        block_warning: float | None,
        walltime: float | None,
        margin: float | None,
    ) -> None:
        """Use `WorkflowEngine.create()`."""
        self.uid = uid
        self.work_dir = work_dir
        self.loop = asyncio.get_running_loop()
        #: False while calls are possible.
        self.closed = False
        self._engine = self
        self._thread = threading.current_thread()
        self._scheduler = Scheduler(self.loop, history=history, directory=str(work_dir / uid))
        self.components = Components(self._scheduler)
        self._walltime = Walltime(self.loop, self._scheduler, margin)
        #: When the time ends, where the user said so.
        self._ends = None if walltime is None else time() + walltime
        self._blocks = BackendState(BlockRunner())
        self._backends: dict[str, BackendState] = {}
        self._block_warning = block_warning
        #: What displays of progress ended with: the next one leaves out what had ended by then.
        self._shown: dict[str, Counts] = {}
        self._stop_guard: Callable[[], None] = lambda: None
        self._telemetry: Telemetry | None = None
        self._telemetry_by_default = False
        self._shutdown: asyncio.Task[None] | None = None
        self._ended = False

    @staticmethod
    def create(
        backend: Any = None,
        *,
        work_dir: str | Path = ".asyncflow",
        uid: str | None = None,
        dry_run: bool = False,
        history: int = 10_000,
        block_warning: float | None = 1.0,
        walltime: float | Literal[False] | None = None,
        walltime_margin: float | None = None,
        telemetry: str | Path | None = None,
    ) -> EngineCreation:
        """Start an engine: `await` it, or use it in `async with`, which shuts it down.

        `backend` is a backend, an awaitable of one, any `concurrent.futures.Executor`, a name ("threads",
        "processes", "noop", or one that a package registered), or a list of these with distinct names, of which the
        first is the default; nothing means threads, or what `asyncflow run --backend` named. `work_dir` is where files
        go, made when the first is written. With `dry_run` no task runs: each gives None, on backends of the same names.
        `history` finished components stay in `flow.components`. A coroutine that holds the loop for more than
        `block_warning` seconds is named in the log; None for never.

        `walltime` is the seconds from now that the engine has: some before that it begins nothing more, and ends what
        is unfinished with WalltimeReached. None is what is left of the SLURM allocation, if there is one; False is no
        end. `walltime_margin` is how many seconds before; None is a tenth of the walltime, and at most 60.

        `telemetry` is the `path` of a `start_telemetry()` at once; None is none, or what `asyncflow run --telemetry`
        named.
        """
        options.whole("history", history, 0)
        if block_warning is not None:
            options.seconds("block_warning", block_warning)
        if not isinstance(work_dir, (str, Path)):
            raise InvalidOptionError("work_dir", work_dir, "the path of a directory")
        if uid is not None and (not isinstance(uid, str) or not uid or "/" in uid or uid in (".", "..")):
            raise InvalidOptionError("uid", uid, "a name without '/': it names a directory below work_dir")
        if walltime is not None and walltime is not False:
            options.seconds("walltime", walltime, positive=True)
        if walltime_margin is not None:
            options.seconds("walltime_margin", walltime_margin)
        make = partial(
            WorkflowEngine,
            uid or f"flow-{uuid.uuid4().hex[:8]}",
            Path(work_dir).absolute(),
            history,
            block_warning,
            walltime or None,
            walltime_margin,
        )
        _check_path("telemetry", telemetry)
        start = partial(
            WorkflowEngine._start,
            given=backend,
            dry_run=dry_run,
            in_allocation=walltime is None,
            telemetry=_default.telemetry if telemetry is None else telemetry,
        )
        return EngineCreation(make, start)

    async def _start(self, given: Any, dry_run: bool, in_allocation: bool, telemetry: str | Path | None) -> None:
        for backend in await resolve_backends(given):
            self._backends[backend.name] = BackendState(NoopBackend(backend.name) if dry_run else backend)
        started: list[Backend] = []
        try:
            for state in self._backends.values():
                take(state.backend)
                started.append(state.backend)
                await state.backend.start(self._scheduler.reporter(state))
                check_contract(state.backend)
        except BaseException as error:
            for backend in started:
                with contextlib.suppress(Exception):
                    await backend.stop(0.0)
                give_back(backend)
            if isinstance(error, AsyncflowError) or not isinstance(error, Exception):
                raise
            raise BackendStartError(started[-1].name, f"{type(error).__name__}: {error}") from error
        await self._blocks.backend.start(self._scheduler.direct_reporter(self._blocks))
        self._stop_guard = start_guard(self.loop, self._block_warning, self.uid, self._tell_blocked)
        opened(self)
        # asyncio.run closes asynchronous generators when it ends: that is how a forgotten engine is noticed, without
        # a task of ours among the user's.
        self._lifeline = self._shut_down_with_loop()
        await self._lifeline.__anext__()
        if self._ends is not None:
            self._walltime.end_at(self._ends)
        elif in_allocation and (read := allocation_end()) is not None:
            self._walltime.follow(read)
        if telemetry is not None:
            try:
                await self.start_telemetry(telemetry)
                self._telemetry_by_default = telemetry is _default.telemetry
            except BaseException:
                await self.shutdown(grace=0)
                raise

    async def _shut_down_with_loop(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if not self.closed:
                await self.shutdown()
                warnings.warn(f"engine {self.uid!r} was never shut down", ResourceWarning, stacklevel=1)
            elif not self._ended:  # the shutdown itself was cancelled, by a second Ctrl-C
                await self._shut_down(0.0)

    # --- calls -------------------------------------------------------------------------------------------------------

    def _call(
        self, task: Task[R], args: tuple[Any, ...], kwargs: dict[str, Any], workflow_id: str | None
    ) -> TaskFuture[R]:
        if _get_running_loop() is not self.loop or self.closed:
            self._refuse(task)
        if workflow_id is not None:
            options.name("workflow_id", workflow_id)
        binding = task._binding
        if binding is None or binding.scheduler is not self._scheduler:
            binding = self._bind(task)
        futures, nested = find_futures(args, kwargs)
        scope = scope_of(self)
        parent = None
        if scope is not None:
            parent = scope.parent
            workflow_id = workflow_id or scope.workflow_id
        context = contextvars.copy_context() if binding.lane.shares_memory else None
        future = self._scheduler.add(binding, args, kwargs or None, futures, nested, workflow_id, parent, context)
        if context is not None and binding.definition.kind is Kind.BLOCK:  # it begins in a later turn of the loop
            context.run(enter, self, workflow_id or future.uid, future.uid)
        return future

    def _refuse(self, task: Task[Any]) -> None:
        """Say why this is not the place for a call."""
        refuse_on_worker(task.name)
        if self.closed:
            raise EngineClosedError(task.name, self.uid)
        self._check_loop(task.name)

    def _check_loop(self, name: str) -> None:
        """Raise where `name` was called anywhere but on the engine's loop: nothing else may touch its state."""
        if _get_running_loop() is self.loop:
            return
        if threading.current_thread() is not self._thread:
            raise ForeignThreadError(name, threading.current_thread().name)
        raise CallOutsideLoopError(name, _get_running_loop() is not None)

    def _bind(self, task: Task[Any]) -> Binding:
        definition, policy = task.definition, task.policy
        state = self._blocks if definition.kind is Kind.BLOCK else self._backend(policy.backend, task.name)
        if definition.kind is not Kind.BLOCK:
            shortfalls = state.capabilities.shortfalls(definition)
            if shortfalls:
                raise UnsatisfiableRequestError(task.name, state.backend.name, shortfalls)
        task._binding = Binding(definition, policy, state.lane(definition), self._scheduler, task)
        return task._binding

    def _backend(self, name: str | None, task: str) -> BackendState:
        if name is None:
            return next(iter(self._backends.values()))
        if name not in self._backends:
            raise UnknownBackendError(name, names_of([state.backend for state in self._backends.values()]), task)
        return self._backends[name]

    def workflow_scope(self, workflow_id: str | None = None) -> WorkflowScope:
        """`with` or `async with`: calls inside belong to this workflow; without a name one is made, `wf-1a2b3c4d`."""
        if workflow_id is not None:
            options.name("workflow_id", workflow_id)
        return WorkflowScope(self, workflow_id)

    def map(self, task: Task[R], *iterables: Iterable[Any], window: int = 10_000) -> TaskMap[R]:
        """Call `task` for each input, at most `window` calls ahead: `async for` its results, or await their list.

        Several iterables give several arguments, as in `map()`. The loop stays free however many inputs there are.
        """
        if not isinstance(task, Task):
            raise TaskDefinitionError(str(task), "flow.map takes a task: decorate the function first")
        return TaskMap(task, iterables, window)

    def cancel(self, workflow_id: str) -> int:
        """Cancel every unfinished component of a workflow; how many there were."""
        options.name("workflow_id", workflow_id)
        self._check_loop("flow.cancel")
        return self._scheduler.cancel_all(workflow_id, f"workflow {workflow_id!r} was cancelled")

    def progress(self, file: TextIO | None = None) -> Progress:
        """`with` or `async with`: shows, by task name, how many calls wait, run and have ended, until it is left.

        A live table in a notebook, bars in a terminal (with `rich` installed, else one line), and elsewhere a line
        every few seconds, to stdout or `file`. It shows all calls but those that an earlier display showed as ended.
        """
        self._check_loop("flow.progress")
        return Progress(self._scheduler, self._shown, file)

    # --- telemetry ---------------------------------------------------------------------------------------------------

    async def start_telemetry(
        self,
        path: str | Path | None = "telemetry/",
        *,
        span_processors: Sequence[Any] = (),
        metric_readers: Sequence[Any] = (),
        prometheus: bool | int | tuple[str, int] = False,
        resource_interval: float | None = 5.0,
    ) -> Telemetry:
        """Tell what happens from now on: events to a file, spans and metrics to OpenTelemetry. Needs `telemetry`.

        `path` is the folder where a new JSONL file is written, or that file where it ends in `.jsonl`; None for none.
        Spans and metrics go to the providers that the application has set, and to `span_processors` and
        `metric_readers` (OpenTelemetry SDK objects), which are shut down with this. `prometheus` serves metrics on
        loopback: True on any free port, or a port, or host and port; `telemetry.prometheus_url` says where.
        `resource_interval` is seconds between looks at how busy the hosts are; None for never.
        """
        self._check_loop("flow.start_telemetry")
        if self.closed:
            raise EngineClosedError("flow.start_telemetry", self.uid)
        if self._telemetry is not None:
            if not self._telemetry_by_default:
                raise TelemetryRunningError(self.uid)
            self._telemetry_by_default = False  # what the command line named gives way to what the script says
            await self._telemetry.stop()
        if resource_interval is not None:
            options.seconds("resource_interval", resource_interval, positive=True)
        _check_path("path", path)
        try:
            from asyncflow.telemetry.session import Options, Telemetry
        except ModuleNotFoundError as error:
            raise TelemetryNotInstalledError(error.name or str(error)) from error
        asked = Options(path, span_processors, metric_readers, _address("prometheus", prometheus), resource_interval)
        self._telemetry = Telemetry(self, [state.backend for state in self._backends.values()], asked)
        try:
            await self._telemetry.start()
        except BaseException:
            self._telemetry = None
            raise
        return self._telemetry

    @property
    def telemetry(self) -> Telemetry | None:
        """What `start_telemetry()` gave; None while there is none."""
        return self._telemetry

    def _tell_blocked(self, who: str, where: str, seconds: float) -> None:
        observer = self._scheduler.observer
        if observer is not None:
            observer.blocked(who, where, seconds)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Wait until every call has ended, well or not. Calls stay possible.

        Raises DrainInsideBlockError in a block, which would wait for itself.
        """
        self._check_loop("flow.drain")
        scope = scope_of(self)
        if scope is not None and scope.parent is not None:
            raise DrainInsideBlockError(scope.parent)
        await self._scheduler.drain()

    def end_within(self, seconds: float) -> None:
        """Have the engine end in that many seconds, as it does at the end of its walltime.

        It begins nothing more at once, lets go on what runs, and in time stops that and ends what is unfinished with
        WalltimeReached. It never puts off an end that is nearer. May be called from any thread, and by a signal's
        handler: `loop.add_signal_handler(signal.SIGTERM, flow.end_within, 25)`.
        """
        options.seconds("seconds", seconds)
        with contextlib.suppress(RuntimeError):  # the loop is closed, and so is the engine
            self.loop.call_soon_threadsafe(self._walltime.end_within, seconds)

    async def shutdown(self, grace: float = 5.0) -> None:
        """Cancel what is unfinished and end all that the engine started. May be called twice.

        `grace` is seconds that running executables and blocks get to end by themselves; less, where the walltime ends
        before. Afterwards a call raises EngineClosedError.
        """
        options.seconds("grace", grace)
        self._check_loop("flow.shutdown")
        if self._shutdown is None:
            self.closed = True
            self._shutdown = asyncio.ensure_future(self._shut_down(grace))
        # Cancelling one of several waiters must not leave the shutdown half done.
        await asyncio.shield(self._shutdown)

    async def _shut_down(self, grace: float) -> None:
        message = f"engine {self.uid!r} was shut down"
        grace = self._walltime.grace(grace)
        self._walltime.close()
        self._scheduler.cancel_all(message=message)
        await self._blocks.backend.stop(grace)
        # gather, not one by one: each may need its grace.
        ends = await asyncio.gather(
            *(state.backend.stop(grace) for state in self._backends.values()), return_exceptions=True
        )
        for state in self._backends.values():
            give_back(state.backend)
        self._scheduler.abandon_all(message)
        if self._telemetry is not None:
            await self._telemetry.stop()
        await self._walltime.closed()
        self._stop_guard()
        closed(self)
        self._ended = True
        with contextlib.suppress(RuntimeError):  # it is what called this
            await self._lifeline.aclose()
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def __aenter__(self) -> WorkflowEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # At the end of the time blocks may be about to save something.
            if kind is None or (error is not None and walltime_of(error) is self._walltime.error is not None):
                await self.drain()
        finally:
            await self.shutdown()
        if error is None and self._walltime.error is not None:
            raise self._walltime.error

    def __reduce__(self) -> Any:
        raise EngineNotPicklableError

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._scheduler.unfinished)} unfinished"
        return f"<WorkflowEngine {self.uid} on {', '.join(self._backends)}: {state}>"

    def _repr_html_(self) -> str:
        return engine_card(self.uid, self.closed, self._backends.values(), count(self._scheduler))


def _check_path(option: str, path: Any) -> None:
    if path is not None and (not isinstance(path, (str, Path)) or "\0" in str(path)):
        raise InvalidOptionError(option, path, "the path of a folder, or of a file that ends in .jsonl; or None")


class _Default:
    """What engines do where the script says nothing."""

    telemetry: str | None = None


_default = _Default()


def tell_by_default(path: str) -> None:
    """Let `telemetry=None` stand for this path from now on."""
    _default.telemetry = path


def _address(option: str, given: Any) -> tuple[str, int] | None:
    """Host and port of a server that was asked for; loopback and any free port where not said otherwise."""
    if given is False:
        return None
    host, port = given if isinstance(given, tuple) and len(given) == 2 else ("127.0.0.1", 0 if given is True else given)
    if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise InvalidOptionError(option, given, "True, a port, or a host and a port")
    return host, port


class EngineCreation:
    """What `WorkflowEngine.create()` returns: await it for the engine, or enter it with `async with`."""

    def __init__(self, make: Callable[[], WorkflowEngine], start: Callable[[WorkflowEngine], Awaitable[None]]) -> None:
        self._make = make
        self._start = start
        self._flow: WorkflowEngine | None = None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name!r} belongs to the engine itself: await it first, flow = await {self!r}")

    def __repr__(self) -> str:
        return "WorkflowEngine.create(...)"

    async def _create(self) -> WorkflowEngine:
        flow = self._make()
        await self._start(flow)
        return flow

    def __await__(self) -> Generator[Any, None, WorkflowEngine]:
        return self._create().__await__()

    async def __aenter__(self) -> WorkflowEngine:
        self._flow = await self._create()
        return self._flow

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._flow is not None:
            await self._flow.__aexit__(kind, error, trace)


def open_engines() -> list[WorkflowEngine]:
    """Those of this process, on whatever loop, that are not shut down."""
    return list(_open)


def run(main: Callable[..., Coroutine[Any, Any, R]], backend: Any = None, **create_options: Any) -> R:
    """Run `async def main()` or `main(flow)` with an engine around it, from a plain script.

    `backend` and `create_options` are those of `WorkflowEngine.create()`. Module-level tasks find the engine where it
    is the only open one.
    """
    if not inspect.iscoroutinefunction(main):
        raise TaskDefinitionError(getattr(main, "__name__", str(main)), "asyncflow.run() takes an 'async def' function")

    async def with_engine() -> R:
        async with WorkflowEngine.create(backend, **create_options) as flow:
            return await (main(flow) if inspect.signature(main).parameters else main())

    return asyncio.run(with_engine())
