"""What a call returns and all that users await."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from asyncflow.display.cards import future_card
from asyncflow.errors import FutureNotSettableError, NotAwaitedError
from asyncflow.graph import State

if TYPE_CHECKING:
    from asyncflow.component import Component

R = TypeVar("R")


def _refusal(use: str) -> Callable[..., NoReturn]:
    """What a special method of a future is that only its result can have."""

    def refuse(self: TaskFuture[Any], *_operands: object) -> NoReturn:
        raise NotAwaitedError(self.name, self.uid, use)

    return refuse


class FailureNotice:
    """Shared by the future of a task that failed first and those of all tasks that failed because of it.

    When the last of them is gone and nobody looked at any, the failure is logged: once, for the root.
    """

    __slots__ = ("_error", "_loop", "_name", "_uid", "seen")

    def __init__(self, component: Component, error: BaseException, loop: asyncio.AbstractEventLoop) -> None:
        self._name = component.name
        self._uid = component.uid
        self._error = error
        self._loop = loop
        self.seen = False

    def __del__(self) -> None:
        if not self.seen:
            self._loop.call_exception_handler(
                {
                    "message": f"asyncflow: {self._name!r} ({self._uid}) failed and nobody awaited it",
                    "exception": self._error,
                }
            )


class TaskFuture(asyncio.Future[R]):
    """The future of one call: an `asyncio.Future` of the engine's loop. Pass it to other tasks, or await it.

    Cancelling it cancels the call: `await asyncio.shield(future)` only watches. It is a future, not a coroutine:
    `gather`, `wait` and `ensure_future` take it, `create_task` does not.
    """

    __slots__ = ("_awaited", "_component", "_failure")

    # Set by the scheduler; not in an __init__, which would cost half as much as making the future itself.
    _component: Component
    _failure: FailureNotice | None
    #: Whether somebody may be waiting: then only the loop sets it.
    _awaited: bool

    @property
    def uid(self) -> str:
        """Unique in its engine, and where `flow.components` has it."""
        return self._component.uid

    @property
    def name(self) -> str:
        """The task's name: its function's, unless `name=` gave another."""
        return self._component.name

    @property
    def workflow_id(self) -> str | None:
        """The workflow that the call belongs to; None outside any."""
        return self._component.workflow_id

    @property
    def state(self) -> State:
        """PENDING, RUNNING, DONE, FAILED or CANCELLED."""
        state = self._component.state
        # Its value is there, but not here: `result()` has to wait for the loop.
        return State.RUNNING if state is State.DONE and not asyncio.Future.done(self) else state

    def done(self) -> bool:
        """As of every `asyncio.Future`. Asking takes an interest: a result that stayed on a cluster is fetched."""
        if asyncio.Future.done(self):
            return True
        if not self._awaited and self._component.phase.ended:
            scheduler = self._component.binding.scheduler
            if scheduler.on_loop_thread():
                scheduler.reserve(self)
        return False

    def add_done_callback(
        self, fn: Callable[[TaskFuture[R]], object], /, *, context: contextvars.Context | None = None
    ) -> None:
        """As of every `asyncio.Future`; `await` and `gather` come here too."""
        if not self._awaited and not asyncio.Future.done(self):
            self._component.binding.scheduler.reserve(self)
        if context is None:
            asyncio.Future.add_done_callback(self, fn)
        else:
            asyncio.Future.add_done_callback(self, fn, context=context)

    def set_result(self, result: R, /) -> NoReturn:
        """Refused, as by `asyncio.Task`: only its task sets it."""
        raise FutureNotSettableError(self.name, self.uid)

    def set_exception(self, exception: type | BaseException, /) -> NoReturn:
        """Refused, as by `asyncio.Task`: only its task sets it."""
        raise FutureNotSettableError(self.name, self.uid)

    def _value(self) -> R:
        """What `result()` will return; here as soon as the task is DONE, on any thread."""
        return self.result() if asyncio.Future.done(self) else self._component.binding.scheduler.value_of(self)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the call and all that depends on it; False where it has ended.

        A task's future is cancelled at once, while its work is being ended. A block, like an `asyncio.Task`, is asked
        to: its future ends when its coroutine has.
        """
        if self.done():
            return False
        scheduler = self._component.binding.scheduler
        if scheduler.on_loop_thread():
            return scheduler.cancel(self._component, msg) or scheduler.forgo(self, msg)
        scheduler.cancel_soon(self._component, msg)
        return True

    def __del__(self) -> None:
        # asyncio's own message would come for every future of a failed graph; the notice logs one for its root.
        if self._failure is not None:
            if self._log_traceback:
                self._log_traceback = False
            else:
                self._failure.seen = True

    if not TYPE_CHECKING:  # type checkers find these mistakes by themselves
        # A forgotten `await` is the most common mistake of all, and Python would say nothing of it.
        # Not __len__ and __bool__: programs ask whether they have a future.
        __add__ = __radd__ = _refusal("+")
        __sub__ = __rsub__ = __neg__ = _refusal("-")
        __mul__ = __rmul__ = _refusal("*")
        __truediv__ = __rtruediv__ = _refusal("/")
        __floordiv__ = __rfloordiv__ = _refusal("//")
        __mod__ = __rmod__ = _refusal("%")
        __pow__ = __rpow__ = _refusal("**")
        __matmul__ = __rmatmul__ = _refusal("@")
        __lt__ = __le__ = __gt__ = __ge__ = _refusal("order")
        __int__ = __float__ = __complex__ = _refusal("number")
        __getitem__ = _refusal("items")

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):  # asked for by whoever inspects it; or before it is bound to its component
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            component = self._component
            raise NotAwaitedError(component.name, component.uid, f"attribute {name!r}")

        def __format__(self, spec: str) -> str:
            if spec:
                raise NotAwaitedError(self.name, self.uid, f"format {spec!r}")
            return str(self)

    def __repr__(self) -> str:
        try:
            return f"<TaskFuture {self.name} {self.uid} {self.state} (await it: a future, not a coroutine)>"
        except AttributeError:  # not yet bound to its component
            return "<TaskFuture>"

    def _repr_html_(self) -> str:
        # Not exception(): that would count as the user's having looked at it.
        return future_card(self._component, self._exception)
