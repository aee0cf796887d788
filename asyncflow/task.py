"""What a decorator makes of a function."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from asyncflow import options
from asyncflow.backends.body import on_worker
from asyncflow.backends.contract import Definition, ExecutableOptions, Kind
from asyncflow.component import Binding, Policy
from asyncflow.description import TaskDescription, describe
from asyncflow.errors import CalledInsideTaskError, InvalidOptionError, TaskDefinitionError, UnknownOptionError
from asyncflow.future import TaskFuture
from asyncflow.options import variables
from asyncflow.scope import engine_here

if TYPE_CHECKING:
    from asyncflow.engine import WorkflowEngine

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class Task(Generic[R]):
    """A function, command or block that can be called into the graph.

    Calling it registers one call and returns its `TaskFuture` at once; `.fn` is the plain function. A task made by
    `@flow.function_task` belongs to that engine; one made by the module-level decorator to the engine whose scope it
    is called in, or to the only open one.
    """

    def __init__(
        self, definition: Definition, policy: Policy, engine: WorkflowEngine | None, signature_of: Callable[..., Any]
    ) -> None:
        self.definition = definition
        self.policy = policy
        self._engine = engine
        #: What the engine last called on made of this task.
        self._binding: Binding | None = None
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(self, attribute, getattr(signature_of, attribute, None))
        self.__wrapped__ = signature_of

    @property
    def fn(self) -> Callable[..., Any]:
        """The plain function: what to call inside another task's body."""
        return self.definition.fn

    @property
    def name(self) -> str:
        """What its calls are called in messages, events and `flow.components`."""
        return self.definition.name

    def __call__(self, /, *args: Any, workflow_id: str | None = None, **kwargs: Any) -> TaskFuture[R]:
        """Register a call; futures anywhere in the arguments are its dependencies.

        `workflow_id` says which workflow it belongs to; default is the innermost `workflow_scope()`. Raises where the
        call can never run: a closed engine, another thread or loop, inside a task's body, a backend that is missing
        or too small.
        """
        engine = self._engine
        if engine is None:
            engine = engine_here(self)
        return engine._call(self, args, kwargs, workflow_id)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        # As a function does: called on an instance, the instance is the first argument.
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        kind = self.definition.kind.value
        return f"<{kind if kind == 'block' else kind + ' task'} {self.name}>"

    def __reduce__(self) -> Any:
        # On a worker there is no engine: a task arrives as its plain function in a wrapper that refuses to be called.
        # The state is separate from the making, so that functions which refer to each other's tasks can travel.
        definition = self.definition
        if _find(definition.reference) is self:
            return _import, definition.reference
        return _Detached, (definition.name,), {"fn": definition.fn, "name": definition.name}


class _Detached:
    """A task as another task's body sees it on a worker: `.fn` is its function."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise CalledInsideTaskError(self.name)


def _find(reference: tuple[str, str] | None) -> Any:
    """What a worker would get by importing `reference`; None where it would not find anything."""
    if reference is None or reference[0] == "__main__":
        return None
    try:
        return _import(*reference)
    except (ImportError, AttributeError):
        return None


def _import(module: str, qualname: str) -> Any:
    target: Any = importlib.import_module(module)
    for attribute in qualname.split("."):
        target = getattr(target, attribute)
    return target


# --- making tasks ----------------------------------------------------------------------------------------------------


def make_task(
    fn: Callable[..., Any],
    kind: Kind,
    engine: WorkflowEngine | None,
    *,
    name: str | None = None,
    backend: str | None = None,
    retries: int = 0,
    retry_delay: float | Callable[[int], float] = 0.0,
    max_losses: int = 3,
    timeout: float | None = None,
    priority: int = 0,
    task_description: TaskDescription | Mapping[str, Any] | None = None,
    executable: ExecutableOptions | None = None,
) -> Task[Any]:
    """Check a function and its options and make the task; raises TaskDefinitionError or InvalidOptionError."""
    if name is not None:
        options.name("name", name)
    label = name or getattr(fn, "__name__", None) or type(fn).__name__
    _check_function(fn, kind, label)
    policy = _policy(backend, retries, retry_delay, max_losses, timeout, priority)
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    definition = Definition(
        fn,
        kind,
        label,
        is_async=_is_async(fn),
        description=describe(label, task_description),
        executable=executable,
        # Under this name a worker finds the task itself, if the decorator's result is bound to it.
        reference=(module, qualname) if engine is None and module and qualname and "<" not in qualname else None,
    )
    return Task(definition, policy, engine, fn)


def _is_async(fn: Callable[..., Any]) -> bool:
    call = getattr(fn, "__call__", None)  # noqa: B004  # not whether it can be called, but what that runs
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(call)


def _check_function(fn: Callable[..., Any], kind: Kind, label: str) -> None:
    if isinstance(fn, Task):
        raise TaskDefinitionError(label, "it is one already; decorate its plain function, .fn")
    if isinstance(fn, (staticmethod, classmethod)):
        raise TaskDefinitionError(label, f"put @{type(fn).__name__} above the task's decorator, not below it")
    if not callable(fn):
        raise TaskDefinitionError(label, f"{fn!r:.80} is not a function; options are given by name, as in retries=2")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise TaskDefinitionError(label, "it is a generator, whose values cannot be a future's result; return a list")
    if kind is Kind.BLOCK and not _is_async(fn):
        raise TaskDefinitionError(label, "a block runs on the engine's loop and must be 'async def'; make it a task")
    if "workflow_id" in _parameters(fn):
        raise TaskDefinitionError(
            label,
            "its parameter 'workflow_id' would never be passed: in a call that name says which workflow it belongs to",
        )


def _parameters(fn: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(fn).parameters
    except (TypeError, ValueError):  # some builtins have none
        return {}


def _policy(
    backend: str | None,
    retries: int,
    retry_delay: float | Callable[[int], float],
    max_losses: int,
    timeout: float | None,
    priority: int,
) -> Policy:
    options.whole("retries", retries, 0)
    options.whole("max_losses", max_losses, 0)
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidOptionError("priority", priority, "a whole number; higher goes first")
    if timeout is not None:
        options.seconds("timeout", timeout, positive=True)
    if not callable(retry_delay) and not (isinstance(retry_delay, (int, float)) and retry_delay >= 0):
        legal = "seconds of at least 0, or a function of the number of failures so far"
        raise InvalidOptionError("retry_delay", retry_delay, legal)
    if backend is not None and not isinstance(backend, str):
        raise InvalidOptionError("backend", backend, "the name of one of the engine's backends")
    return Policy(backend, retries, retry_delay, max_losses, timeout, priority)


_BLOCK_OPTIONS = ("name", "retries", "retry_delay", "timeout")
_TASK_OPTIONS = (*_BLOCK_OPTIONS, "backend", "max_losses", "priority", "task_description")
_KNOWN = {
    Kind.BLOCK: _BLOCK_OPTIONS,
    Kind.FUNCTION: _TASK_OPTIONS,
    Kind.EXECUTABLE: (*_TASK_OPTIONS, "shell", "capture_stdio", "cwd", "env"),
}
_DECORATOR = {Kind.FUNCTION: "function_task", Kind.EXECUTABLE: "executable_task", Kind.BLOCK: "block"}


class Decorators:
    """The three decorators, bare or with options: `@flow.function_task`, `@flow.executable_task`, `@flow.block`."""

    _engine: WorkflowEngine | None = None

    @overload
    def function_task(self, fn: Callable[..., Awaitable[R]], /) -> Task[R]: ...
    @overload
    def function_task(self, fn: Callable[..., R], /) -> Task[R]: ...
    @overload
    def function_task(
        self,
        /,
        *,
        name: str | None = None,
        backend: str | None = None,
        retries: int = 0,
        retry_delay: float | Callable[[int], float] = 0.0,
        max_losses: int = 3,
        timeout: float | None = None,
        priority: int = 0,
        task_description: TaskDescription | Mapping[str, Any] | None = None,
    ) -> _FunctionDecorator: ...
    def function_task(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Make a task of a function, `def` or `async def`; it runs on a backend's workers, never on the loop.

        `retries` counts further attempts after a failure of the task itself, `retry_delay` seconds between them (or a
        function of the failures so far), `max_losses` the lost workers that a task survives, `timeout` seconds an
        attempt may run; a higher `priority` goes first. `task_description` is a `TaskDescription` or a dict like it.
        """
        return self._decorate(fn, Kind.FUNCTION, options)

    @overload
    def executable_task(self, fn: Callable[..., Any], /) -> Task[str]: ...
    @overload
    def executable_task(
        self,
        /,
        *,
        shell: bool = False,
        capture_stdio: bool = False,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        name: str | None = None,
        backend: str | None = None,
        retries: int = 0,
        retry_delay: float | Callable[[int], float] = 0.0,
        max_losses: int = 3,
        timeout: float | None = None,
        priority: int = 0,
        task_description: TaskDescription | Mapping[str, Any] | None = None,
    ) -> Callable[[Callable[..., Any]], Task[str]]: ...
    def executable_task(
        self,
        fn: Callable[..., Any] | None = None,
        /,
        *,
        shell: bool = False,
        capture_stdio: bool = False,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Any:
        """Make a task of a function that returns a command: a string, or a list of its words.

        A string is split as a shell would and run without one, unless `shell=True`. The result is the command's
        stdout as text (UTF-8; what is not becomes the replacement character); with `capture_stdio=True` stdout and
        stderr go to files of the engine's `work_dir`, and the result is stdout's path. `cwd` and `env` are the
        command's directory and further environment variables. Other options as for `function_task`.
        """
        executable = ExecutableOptions(
            bool(shell),
            bool(capture_stdio),
            None if cwd is None else str(cwd),
            variables("env", env or {}),
        )
        return self._decorate(fn, Kind.EXECUTABLE, options, executable)

    @overload
    def block(self, fn: Callable[..., Awaitable[R]], /) -> Task[R]: ...
    @overload
    def block(
        self,
        /,
        *,
        name: str | None = None,
        retries: int = 0,
        retry_delay: float | Callable[[int], float] = 0.0,
        timeout: float | None = None,
    ) -> _BlockDecorator: ...
    def block(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Make a block of a coroutine function: it runs on the engine's loop, calls tasks and other blocks.

        What it calls carries the workflow of the block's own call, or the block's uid where that had none. Options as
        for `function_task`.
        """
        return self._decorate(fn, Kind.BLOCK, options)

    def _decorate(
        self,
        fn: Callable[..., Any] | None,
        kind: Kind,
        options: dict[str, Any],
        executable: ExecutableOptions | None = None,
    ) -> Any:
        known = _KNOWN[kind]
        for option in options:
            if option not in known:
                raise UnknownOptionError(f"@{_DECORATOR[kind]}", option, known)
        if fn is not None:
            return make_task(fn, kind, self._engine, executable=executable, **options)
        return lambda function: make_task(function, kind, self._engine, executable=executable, **options)


class _FunctionDecorator:
    """Type of `function_task(...)`."""

    @overload
    def __call__(self, fn: Callable[..., Awaitable[R]], /) -> Task[R]: ...
    @overload
    def __call__(self, fn: Callable[..., R], /) -> Task[R]: ...
    def __call__(self, fn: Any, /) -> Any:
        raise NotImplementedError


class _BlockDecorator:
    """Type of `block(...)`."""

    def __call__(self, fn: Callable[..., Awaitable[R]], /) -> Task[R]:
        raise NotImplementedError


_module_level = Decorators()
function_task = _module_level.function_task
executable_task = _module_level.executable_task
block = _module_level.block


def refuse_on_worker(name: str) -> None:
    """Raise CalledInsideTaskError where this thread runs a task's body."""
    if on_worker():
        raise CalledInsideTaskError(name)
