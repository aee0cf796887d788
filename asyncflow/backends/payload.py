"""What travels between processes: functions, arguments, results and exceptions, as bytes.

The plain pickler is tried first, for it is ten times faster; cloudpickle takes what it cannot do, and whatever names
`__main__`, which is another module on a worker. Pickles are read only from processes that the engine started.

Pickling runs code of the user's classes; whatever that raises, SystemExit included, is an error of that one value.
"""

from __future__ import annotations

import importlib
import inspect
import mmap
import pickle
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import cloudpickle

from asyncflow.backends.contract import Definition
from asyncflow.errors import NotPicklableError, RemoteError, RemoteTraceback

_PROTOCOL = 5

#: What holds pickled bytes, or a buffer that a pickle refers to.
Segment = bytes | bytearray | memoryview | mmap.mmap


class PackedFunction:
    """A function as `dump_function` wrote it, in the place of the function where nobody calls it."""

    def __init__(self, data: Segment) -> None:
        self.data = data

    def __call__(self) -> Any:
        raise TypeError("a packed function is for a worker to unpack")


class PackedError(Exception):
    """An exception as `dump_error` wrote it."""

    def __init__(self, data: Segment) -> None:
        super().__init__("an exception that nobody has unpickled yet")
        self.data = data


class PackedCall:
    """The arguments of a call as `pack_arguments` wrote them, and the values that stand in them under a name."""

    __slots__ = ("given", "segments")

    def __init__(self, segments: Sequence[Segment], given: Mapping[str, Sequence[Segment]]) -> None:
        self.segments = segments
        #: As `pack_result` wrote them.
        self.given = given


class _Given(threading.local):
    """The values that the arguments now being unpickled on this thread refer to by name."""

    values: Mapping[str, Sequence[Segment]] = MappingProxyType({})


_given = _Given()


def given_value(name: str) -> Any:
    """What stands in pickled arguments for a value that travels beside them."""
    return unpack(_given.values[name])


def dumps(value: Any) -> bytes:
    """Pickle anything that can be; raises whatever the picklers raise."""
    try:
        data = pickle.dumps(value, _PROTOCOL)
    except Exception:
        return bytes(cloudpickle.dumps(value, _PROTOCOL))
    # By reference, a function or class of `__main__` would be looked up in the worker's own `__main__`.
    return bytes(cloudpickle.dumps(value, _PROTOCOL)) if b"__main__" in data else data


def loads(data: Segment) -> Any:
    """The value that `dumps` wrote."""
    return pickle.loads(data)


def dump_function(definition: Definition) -> bytes:
    """The function of `definition` for a worker: by reference where it can be imported there, else by value."""
    if isinstance(definition.fn, PackedFunction):
        return bytes(definition.fn.data)
    try:
        if definition.reference is not None and definition.reference[0] != "__main__":
            return dumps((definition.reference, None))
        return dumps((None, definition.fn))
    except BaseException as error:
        raise NotPicklableError(definition.name, "function", _reason(error)) from error


def load_function(name: str, data: Segment) -> Callable[..., Any]:
    """The function that `dump_function` wrote."""
    try:
        function: Callable[..., Any]
        reference, function = loads(data)
        if reference is None:
            return function
        target: Any = importlib.import_module(reference[0])
        for attribute in reference[1].split("."):
            target = getattr(target, attribute)
        function = target.fn if hasattr(target, "fn") else target  # a Task, or the function
    except BaseException as error:
        raise NotPicklableError(name, "function", f"on the worker, {_reason(error)}") from error
    return function


def pack(value: Any) -> list[bytes | memoryview]:
    """Like `dumps`, in segments: the pickle, then the large buffers (NumPy's, say) that it refers to, not copied."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, _PROTOCOL, buffer_callback=buffers.append)
        if b"__main__" not in data:
            return [data, *(buffer.raw() for buffer in buffers)]
    except Exception:
        buffers.clear()
    else:
        buffers.clear()
    data = cloudpickle.dumps(value, _PROTOCOL, buffer_callback=buffers.append)
    return [data, *(buffer.raw() for buffer in buffers)]


def unpack(segments: Sequence[Segment]) -> Any:
    """The value that `pack` wrote; it keeps the segments' memory."""
    return pickle.loads(segments[0], buffers=segments[1:])


def pack_arguments(definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[bytes | memoryview]:
    """`dump_arguments` in segments."""
    try:
        return pack((args, kwargs))
    except BaseException as error:
        raise NotPicklableError(definition.name, *_culprit(definition, args, kwargs, error)) from error


def unpack_arguments(
    name: str, segments: Sequence[Segment], given: Mapping[str, Sequence[Segment]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that `pack_arguments` wrote, `given` being the values that they refer to by name."""
    _given.values = given
    try:
        args, kwargs = unpack(segments)
    except BaseException as error:
        raise NotPicklableError(name, "arguments", f"on the worker, {_reason(error)}") from error
    finally:
        del _given.values
    return args, kwargs


def pack_result(name: str, value: Any) -> list[bytes | memoryview]:
    """`dump_result` in segments."""
    try:
        return pack(value)
    except BaseException as error:
        raise NotPicklableError(name, f"result (a {type(value).__qualname__})", _reason(error)) from error


def unpack_result(name: str, segments: Sequence[Segment]) -> Any:
    """The result that `pack_result` wrote."""
    try:
        return unpack(segments)
    except BaseException as error:
        raise NotPicklableError(name, "result", f"on its way back, {_reason(error)}") from error


def dump_arguments(definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The arguments of a call; raises NotPicklableError that names the one that cannot be pickled."""
    try:
        return dumps((args, kwargs))
    except BaseException as error:
        raise NotPicklableError(definition.name, *_culprit(definition, args, kwargs, error)) from error


def load_arguments(name: str, data: bytes | memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that `dump_arguments` wrote."""
    try:
        args, kwargs = loads(data)
    except BaseException as error:
        raise NotPicklableError(name, "arguments", f"on the worker, {_reason(error)}") from error
    return args, kwargs


def _culprit(
    definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any], error: BaseException
) -> tuple[str, str]:
    for label, value in [*zip(_labels(definition.fn, len(args)), args, strict=True), *kwargs.items()]:
        try:
            dumps(value)
        except BaseException as found:
            return f"argument {label!r}", _reason(found)
    return "arguments", _reason(error)


def _labels(function: Callable[..., Any], count: int) -> list[str]:
    """Names of the first `count` positional parameters; their positions where the signature does not tell."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        names = [p.name for p in inspect.signature(function).parameters.values() if p.kind in positional]
    except (TypeError, ValueError):
        names = []
    return [names[position] if position < len(names) else str(position) for position in range(count)]


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def dump_result(name: str, value: Any) -> bytes:
    """A task's result; raises NotPicklableError that names the task."""
    try:
        return dumps(value)
    except BaseException as error:
        raise NotPicklableError(name, f"result (a {type(value).__qualname__})", _reason(error)) from error


def load_result(name: str, data: bytes | memoryview) -> Any:
    """The result that `dump_result` wrote."""
    try:
        return loads(data)
    except BaseException as error:
        raise NotPicklableError(name, "result", f"on its way back, {_reason(error)}") from error


def dump_error(name: str, error: BaseException) -> bytes:
    """An exception with the text of its traceback; one that does not survive pickling goes as a RemoteError."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        data = dumps((error, text))
        loads(data)  # many exceptions pickle and then cannot be rebuilt from what was pickled
    except BaseException:
        kind = type(error)
        stand_in = RemoteError(name, f"{kind.__module__}.{kind.__qualname__}", _message(error), text)
        return dumps((stand_in, text))
    return data


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its message could not be read)"


def load_error(name: str, data: Segment) -> BaseException:
    """The exception that `dump_error` wrote, the remote traceback as its cause."""
    try:
        error, text = loads(data)
    except BaseException as found:
        return RemoteError(name, "unknown", _reason(found), "(it could be read on the worker but not here)")
    if not isinstance(error, BaseException):
        return RemoteError(name, type(error).__qualname__, str(error), text)
    if not isinstance(error, RemoteError):
        error.__cause__ = RemoteTraceback(text)
    return error
