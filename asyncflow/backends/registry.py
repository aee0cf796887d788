"""From `backend=` to backends: names, executors, awaitables and lists of them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from asyncflow.backends.contract import CONTRACT_VERSION, Backend
from asyncflow.backends.executor import ExecutorBackend
from asyncflow.errors import (
    BackendInUseError,
    ContractVersionError,
    DuplicateBackendError,
    NotABackendError,
    UnknownBackendError,
)

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: Entry-point group in which a third party's package names its backend's class.
GROUP = "asyncflow.backends"

#: Ours, so that a source tree that is not installed works too.
_OWN = {
    "threads": "asyncflow.backends.threads:ThreadBackend",
    "processes": "asyncflow.backends.processes:ProcessBackend",
    "dask": "asyncflow.backends.dask:DaskBackend",
    "radical": "asyncflow.backends.radical:RadicalPilotBackend",
    "noop": "asyncflow.backends.noop:NoopBackend",
}


@dataclass
class _Default:
    """What nothing stands for, in this process alone: not in the programs that it starts."""

    name: str = "threads"


_default = _Default()


def use_by_default(name: str) -> None:
    """Let `backend=None` stand for the backend called `name` from now on. Raises UnknownBackendError."""
    find_backend(name)
    _default.name = name


async def resolve_backends(given: Any) -> list[Backend]:
    """The backends that `backend=` stands for, not started; nothing is threads, or what `use_by_default` named.

    Raises UnknownBackendError, NotABackendError, DuplicateBackendError.
    """
    if given is None:
        given = _default.name
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    if not several:
        raise NotABackendError(given)
    backends = [await _resolve(one) for one in several]
    names = [backend.name for backend in backends]
    for name in names:
        if names.count(name) > 1:
            raise DuplicateBackendError(name)
    return backends


async def _resolve(given: Any) -> Backend:
    if isinstance(given, str):
        return find_backend(given)()
    if _is_backend(given):
        return given
    if isinstance(given, Executor):
        return ExecutorBackend(given)
    if inspect.isawaitable(given):
        return await _awaited(given)
    raise NotABackendError(given)


async def _awaited(given: Awaitable[Any]) -> Backend:
    return await _resolve(await given)


def _is_backend(given: Any) -> TypeGuard[Backend]:
    if inspect.isclass(given):
        return False
    return all(callable(getattr(given, method, None)) for method in ("start", "submit", "cancel", "stop"))


def find_backend(name: str) -> Callable[..., Backend]:
    """The class of the backend called `name`. Raises UnknownBackendError, and what importing it raises."""
    reference = _OWN.get(name)
    if reference is not None:
        module, _, attribute = reference.partition(":")
        own: Callable[..., Backend] = getattr(importlib.import_module(module), attribute)
        return own
    registered = _registered()
    if name not in registered:
        raise UnknownBackendError(name, sorted({*_OWN, *registered}))
    theirs: Callable[..., Backend] = registered[name].load()
    return theirs


def known_backends() -> list[str]:
    """The names that `backend=` may have here: ours first, then those that other packages registered."""
    return [*_OWN, *sorted(_registered().keys() - _OWN.keys())]


def _registered() -> dict[str, EntryPoint]:
    # Imported here: reading the metadata of everything installed takes longer than importing asyncflow.
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=GROUP)}


#: Backends that serve an open engine.
_in_use: list[Backend] = []


def take(backend: Backend) -> None:
    """Note that an engine uses `backend`; raises BackendInUseError where another one does."""
    if any(other is backend for other in _in_use):
        raise BackendInUseError(backend.name)
    _in_use.append(backend)


def give_back(backend: Backend) -> None:
    """Note that its engine is done with `backend`."""
    _in_use[:] = [other for other in _in_use if other is not backend]


def check_contract(backend: Backend) -> None:
    """Raise ContractVersionError where a started backend was written for another contract."""
    theirs = getattr(backend.capabilities, "contract_version", None)
    if theirs != CONTRACT_VERSION:
        raise ContractVersionError(backend.name, theirs, CONTRACT_VERSION)


def names_of(backends: Sequence[Backend]) -> list[str]:
    """The backends' names in their order."""
    return [backend.name for backend in backends]
