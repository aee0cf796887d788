"""Which workflow a call belongs to: the innermost scope of the engine that is asked, carried by context variables."""

from __future__ import annotations

import asyncio
import uuid
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from asyncflow.backends.body import on_worker
from asyncflow.errors import CalledInsideTaskError, NoEngineError

if TYPE_CHECKING:
    from asyncflow.engine import WorkflowEngine
    from asyncflow.task import Task


class Scope:
    """One entry of the chain of scopes that a context carries, innermost first."""

    __slots__ = ("engine", "outer", "parent", "workflow_id")

    def __init__(self, engine: WorkflowEngine, workflow_id: str, parent: str | None, outer: Scope | None) -> None:
        self.engine = engine
        self.workflow_id = workflow_id
        #: uid of the block inside whose body this is; None outside blocks.
        self.parent = parent
        self.outer = outer


_innermost: ContextVar[Scope | None] = ContextVar("asyncflow_scope", default=None)


def innermost() -> Scope | None:
    """The innermost scope of this context, of whichever engine."""
    return _innermost.get()


def scope_of(engine: WorkflowEngine) -> Scope | None:
    """The innermost scope of `engine` in this context; scopes of other engines are passed over."""
    scope = _innermost.get()
    while scope is not None and scope.engine is not engine:
        scope = scope.outer
    return scope


#: Engines that are not shut down. Held here, for a module-level task may be all that uses one.
_open: list[WorkflowEngine] = []


def opened(engine: WorkflowEngine) -> None:
    """`engine` can be found by module-level tasks from now on."""
    _open.append(engine)


def closed(engine: WorkflowEngine) -> None:
    """`engine` can no longer be found."""
    if engine in _open:
        _open.remove(engine)


def engine_here(task: Task[Any]) -> WorkflowEngine:
    """The engine of a module-level task's call: of the innermost scope, else the only open one of this loop."""
    scope = _innermost.get()
    while scope is not None and scope.engine.closed:
        scope = scope.outer
    if scope is not None:
        return scope.engine
    if on_worker():
        raise CalledInsideTaskError(task.name)
    loop = asyncio._get_running_loop()
    here = [engine for engine in _open if engine.loop is loop or loop is None]
    if len(here) != 1:
        raise NoEngineError(task.name, len(here))
    return here[0]


def enter(engine: WorkflowEngine, workflow_id: str, parent: str | None) -> None:
    """Open a scope in the current context."""
    _innermost.set(Scope(engine, workflow_id, parent, _innermost.get()))


def leave() -> None:
    """Close the innermost scope of the current context."""
    # No tokens: a scope object may be entered in several contexts at once, and left in any order.
    scope = _innermost.get()
    if scope is not None:
        _innermost.set(scope.outer)


class WorkflowScope:
    """`with` or `async with`: calls inside belong to the workflow `workflow_id`. May be entered again."""

    def __init__(self, engine: WorkflowEngine, workflow_id: str | None) -> None:
        self._engine = engine
        self.workflow_id = workflow_id or f"wf-{uuid.uuid4().hex[:8]}"

    def __enter__(self) -> str:
        outer = scope_of(self._engine)
        observer = self._engine._scheduler.observer
        if observer is not None:
            observer.entered(self.workflow_id)
        enter(self._engine, self.workflow_id, outer.parent if outer else None)
        return self.workflow_id

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leave()
        observer = self._engine._scheduler.observer
        if observer is not None:
            observer.left(self.workflow_id)

    async def __aenter__(self) -> str:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
