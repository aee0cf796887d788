"""What the tasks of the conformance suite do. Workers import this module: it needs nothing but the library itself."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from asyncflow import function_task
from asyncflow.backends.contract import Origin
from asyncflow.backends.origin import LOG_SPAN_ID, LOG_TASK_ID, LOG_TRACE_ID, LOG_WORKFLOW_ID, here
from asyncflow.testing.meeting import Address, attend, attend_async

# --- values ----------------------------------------------------------------------------------------------------------


def add(left: int, right: int) -> int:
    return left + right


async def add_async(left: int, right: int) -> int:
    await asyncio.sleep(0)
    return left + right


def echo(value: Any) -> Any:
    return value


async def echo_async(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def spread(first: int, *rest: int, factor: int = 1, **named: int) -> tuple[int, tuple[int, ...], int, dict[str, int]]:
    return first, rest, factor, named


def where() -> int:
    """The process that runs this."""
    return os.getpid()


def thread_and_process() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


async def thread_and_process_async() -> tuple[int, int]:
    return thread_and_process()


@function_task
def module_level(number: int) -> int:
    return 2 * number


@function_task
async def module_level_async(number: int) -> int:
    await asyncio.sleep(0)
    return 3 * number


class Outer:
    """Holds a class whose instances a worker has to find inside it."""

    class Inner:
        def __init__(self, value: int) -> None:
            self.value = value

        def plus_two(self, factor: int) -> int:
            return self.value * factor + 2

    class Adder:
        """A callable object."""

        def __init__(self, term: int) -> None:
            self.term = term

        def __call__(self, value: int) -> int:
            return value + self.term


def doubled_inner(inner: Outer.Inner) -> Outer.Inner:
    return Outer.Inner(2 * inner.value)


class CountedFunction:
    """A callable that counts how often it is pickled and notes where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.__name__ = "counted"
        self.pickled = 0

    def __call__(self, number: int) -> int:
        return number

    def __getstate__(self) -> Path:
        self.pickled += 1
        return self.file

    def __setstate__(self, file: Path) -> None:
        self.__init__(file)  # type: ignore[misc]  # an instance made without it
        note(file, str(os.getpid()))


colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


def read_colour() -> str:
    return colour.get()


async def read_colour_async() -> str:
    return colour.get()


# --- traces ----------------------------------------------------------------------------------------------------------


def note(file: Path, line: str) -> None:
    """Append a line in one piece, whoever else does so at the same time."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def notes(file: Path) -> list[str]:
    """The lines that were noted."""
    return file.read_text().splitlines() if file.exists() else []


def noted(file: Path, line: str) -> str:
    """A task that leaves a trace of each of its runs."""
    note(file, line)
    return line


async def noted_async(file: Path, line: str) -> str:
    return noted(file, line)


def step(file: Path, name: str, needs: Sequence[list[str]]) -> list[str]:
    """A step of a graph: its name and which of the steps that it needs have left no trace; then its own trace."""
    traces = {*notes(file)}
    note(file, name)
    return [name, *(need[0] for need in needs if need[0] not in traces)]


async def step_async(file: Path, name: str, needs: Sequence[list[str]]) -> list[str]:
    await asyncio.sleep(0)
    return step(file, name, needs)


def attend_and_note(address: Address, name: str, file: Path) -> str:
    attend(address, name)
    note(file, name)
    return name


async def attend_blocking(address: Address, name: str) -> str:
    """A coroutine that blocks the loop it is on."""
    return attend(address, name)


async def attend_and_tell(address: Address, name: str, file: Path) -> str:
    """Attends; notes whether it was cancelled."""
    try:
        return await attend_async(address, name)
    except asyncio.CancelledError:
        note(file, f"{name} was cancelled")
        raise


def variables(*names: str) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


async def variables_async(*names: str) -> dict[str, str | None]:
    return variables(*names)


def attend_with_gpus(address: Address, name: str) -> str:
    attend(address, name)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def rank_of(label: str) -> tuple[str, int, int]:
    """Which MPI rank runs this, and of how many."""
    return label, int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])


# --- whose work it is ------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """Whose work something is, by three ways of asking."""

    origin: Origin | None
    #: What a log record says of task, workflow, trace and span; empty where it says nothing of them.
    logged: tuple[str | None, ...]
    #: Ids of OpenTelemetry's current trace and span; None outside any.
    current: tuple[str, str] | None


def told() -> Told:
    record = logging.makeLogRecord({}).__dict__
    names = (LOG_TASK_ID, LOG_WORKFLOW_ID, LOG_TRACE_ID, LOG_SPAN_ID)
    logged = tuple(record[name] for name in names if name in record)
    return Told(here(), logged, _current_span())


async def told_async() -> Told:
    await asyncio.sleep(0)
    return told()


def _current_span() -> tuple[str, str] | None:
    from opentelemetry import trace  # not needed by those who do not test this

    context = trace.get_current_span().get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None


def told_in_spans(tracer: Any = None, size: int = 0) -> tuple[Told, Told, bytes]:
    """What is told within a span, and in one within that; and a result of this `size`.

    Without a tracer they are of the one that OpenTelemetry gives, as anybody's would be.
    """
    with _tracer(tracer).start_as_current_span("outer", attributes={"number": 1}):
        outer = told()
        with _tracer(tracer).start_as_current_span("inner") as span:
            span.add_event("seen", {"what": "this"})
            return outer, told(), b"." * size


async def told_in_spans_async(tracer: Any = None, size: int = 0) -> tuple[Told, Told, bytes]:
    with _tracer(tracer).start_as_current_span("outer", attributes={"number": 1}):
        await asyncio.sleep(0)
        outer = told()
        with _tracer(tracer).start_as_current_span("inner") as span:
            span.add_event("seen", {"what": "this"})
            await asyncio.sleep(0)
            return outer, told(), b"." * size


def raise_in_span(tracer: Any = None) -> NoReturn:
    with _tracer(tracer).start_as_current_span("failing"):
        raise ValueError("in a span")


def many_spans(count: int) -> None:
    """A span with so many in it."""
    with _tracer(None).start_as_current_span("first"):
        for number in range(count):
            with _tracer(None).start_as_current_span(f"span {number}"):
                pass


def _tracer(tracer: Any) -> Any:
    from opentelemetry import trace

    return trace.get_tracer("bodies", "1.0") if tracer is None else tracer


# --- errors ----------------------------------------------------------------------------------------------------------


class Detailed(Exception):
    """An exception of the user's, with data."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


class NotRebuilt(Exception):
    """Pickles well and cannot be rebuilt: the constructor takes more than `args` holds."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class Attached(Exception):
    """Carries what cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class SpeechlessAttached(Attached):
    """Cannot travel, and its text cannot be had."""

    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")


class NoException(BaseException):
    """What a task's own code may raise that is no Exception."""


def raise_detailed(code: int) -> object:
    raise Detailed(code, "in detail")


async def raise_detailed_async(code: int) -> object:
    await asyncio.sleep(0)
    raise Detailed(code, "in detail")


def raise_from_cause() -> NoReturn:
    try:
        raise KeyError("the first thing")
    except KeyError as error:
        raise ValueError("the second thing") from error


def raise_not_rebuilt() -> NoReturn:
    raise NotRebuilt("this", "that")


def raise_attached() -> NoReturn:
    raise Attached("with a lock")


def raise_speechless_attached() -> NoReturn:
    raise SpeechlessAttached("unsaid")


def raise_kind(kind: type[BaseException], *args: object) -> NoReturn:
    raise kind(*args)


async def raise_kind_async(kind: type[BaseException], *args: object) -> NoReturn:
    await asyncio.sleep(0)
    raise kind(*args)


class Unpicklable:
    """Refuses to travel."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("it stays where it is")


class Unreadable:
    """Travels, and cannot be read at the other end."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return _refuse, ("it does not arrive",)


def _refuse(reason: str) -> NoReturn:
    raise ValueError(reason)


def takes(number: int, thing: object) -> int:
    return number


async def takes_async(number: int, thing: object) -> int:
    return number


class Token:
    """Something that can be watched."""


class Bound:
    """Hides an object of an event loop from the search for futures in arguments."""

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future


async def await_bound(bound: Bound) -> None:
    await bound.future


def gives_unpicklable() -> Unpicklable:
    return Unpicklable()


def gives_unreadable() -> Unreadable:
    return Unreadable()


def fail_until(file: Path, attempts: int) -> int:
    """Fails until it was tried `attempts` times; how often it was."""
    note(file, "tried")
    tried = len(notes(file))
    if tried < attempts:
        raise Detailed(tried, "not yet")
    return tried


# --- deaths ----------------------------------------------------------------------------------------------------------


def die(spared: int, number: int = signal.SIGKILL) -> NoReturn:
    """End this process by a signal, unless it is the one of the test: then the backend is wrong, and says so."""
    if os.getpid() == spared:
        raise AssertionError("it runs in the test's own process")
    os.kill(os.getpid(), number)
    signal.pause()
    raise AssertionError("unreachable")


def die_until(spared: int, file: Path, attempts: int, number: int = signal.SIGKILL) -> int:
    """Ends its worker by a signal until it was tried `attempts` times; how often it was."""
    note(file, "tried")
    tried = len(notes(file))
    if tried < attempts:
        die(spared, number)
    return tried


def note_or_die(spared: int, file: Path, name: str, deadly: str) -> str:
    """Notes its name; under the name of `deadly` it ends its worker the first time."""
    note(file, name)
    if name == deadly and notes(file).count(name) == 1:
        die(spared)
    return name


async def die_until_async(spared: int, file: Path, attempts: int) -> int:
    return die_until(spared, file, attempts)


async def die_in_company(spared: int, address: Address, file: Path) -> int:
    """The first time it attends and then ends its worker; how often it ran."""
    note(file, "tried")
    tried = len(notes(file))
    if tried == 1:
        await attend_async(address, "killer")
        die(spared)
    return tried


def exit_worker(spared: int, code: int) -> object:
    if os.getpid() == spared:
        raise AssertionError("it runs in the test's own process")
    os._exit(code)


# --- tasks in tasks --------------------------------------------------------------------------------------------------


def call_module_level(number: int) -> str:
    """What calling a task inside a task's body says."""
    try:
        module_level(number)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


async def call_module_level_async(number: int) -> str:
    await asyncio.sleep(0)
    return call_module_level(number)


def call_plain(number: int) -> int:
    result: int = module_level.fn(number)
    return result


# --- commands --------------------------------------------------------------------------------------------------------


def words(*command: str) -> Sequence[str]:
    """A command as the list of its words."""
    return list(command)


def line(command: str) -> str:
    """A command as a string."""
    return command


async def line_async(command: str) -> str:
    await asyncio.sleep(0)
    return command


def greet(name: str) -> str:
    return f"printf 'hello %s' {name}"
