"""Which component waits for which, and the phases of its life. Pure: no asyncio, no I/O, no threads.

A node is asked to move from one phase to the next; the table says which moves are legal. Cost of every operation is
the number of the node's own edges.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any, TypeVar

from asyncflow.errors import InternalError


class State(str, Enum):
    """What users see of a component's life; each equals its name as a string."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    def __str__(self) -> str:
        return self.value


class Phase(Enum):
    """The engine's finer view of a component's life; `docs/design.md` says what each means."""

    WAITING = State.PENDING, 0
    READY = State.PENDING, 1
    SUBMITTED = State.PENDING, 2
    BACKOFF = State.PENDING, 3
    DONE = State.DONE, 4
    FAILED = State.FAILED, 5
    CANCELLED = State.CANCELLED, 6

    #: Members are singletons; Enum's own hash goes through Python code.
    __hash__ = object.__hash__

    state: State
    ended: bool
    #: What may come next: nothing, unless the table below says otherwise.
    following: frozenset[Phase]

    def __init__(self, state: State, order: int) -> None:
        self.state = state
        self.ended = order >= 4
        self.following = frozenset()


# The table is spread over the members: it is asked for every move.
Phase.WAITING.following = frozenset({Phase.READY, Phase.FAILED, Phase.CANCELLED})
Phase.READY.following = frozenset({Phase.SUBMITTED, Phase.FAILED, Phase.CANCELLED})
Phase.SUBMITTED.following = frozenset({Phase.READY, Phase.BACKOFF, Phase.DONE, Phase.FAILED, Phase.CANCELLED})
Phase.BACKOFF.following = frozenset({Phase.READY, Phase.FAILED, Phase.CANCELLED})


class Node:
    """A place in the graph. Components derive from it."""

    __slots__ = ("dependents", "phase", "waits")

    def __init__(self) -> None:
        self.phase = Phase.WAITING
        #: How many of its dependencies are unfinished.
        self.waits = 0
        #: Nodes that wait for this one; None where none does (most nodes: a list each would cost 56 bytes).
        self.dependents: list[Any] | None = None

    def move(self, phase: Phase) -> None:
        """The one way to change phase. Raises InternalError, with the node's story, where the table forbids it."""
        if phase not in self.phase.following:
            raise InternalError(f"{self.story()} cannot move to {phase.name}")
        self.phase = phase

    def story(self) -> str:
        """Who this is and where it stands, for messages about defects."""
        return f"a node in phase {self.phase.name} that waits for {self.waits}"


N = TypeVar("N", bound=Node)
_NONE: list[Any] = []  # most nodes have no dependents, and a list costs as much as the rest of `release`


def connect(node: N, dependencies: Iterable[N]) -> None:
    """Make `node` wait for each of `dependencies`, which are unfinished and distinct."""
    for dependency in dependencies:
        if dependency.dependents is None:
            dependency.dependents = [node]
        else:
            dependency.dependents.append(node)
        node.waits += 1


def release(node: N) -> list[N]:
    """Take an ended `node` out of its dependents' counts; the result are those that wait for nothing more."""
    dependents, node.dependents = node.dependents, None
    if dependents is None:
        return _NONE
    ready = []
    for dependent in dependents:
        dependent.waits -= 1
        # A dependent that was cancelled meanwhile keeps its place in the list: finding it there would cost O(edges).
        if not dependent.waits and dependent.phase is Phase.WAITING:
            ready.append(dependent)
    return ready


def orphans(node: N) -> list[N]:
    """The dependents of a failed or cancelled `node` that can now never run; they are still WAITING."""
    dependents, node.dependents = node.dependents, None
    if dependents is None:
        return []
    for dependent in dependents:
        dependent.waits -= 1
    return [dependent for dependent in dependents if dependent.phase is Phase.WAITING]


def validate(unfinished: Iterable[N], foreign: dict[N, int]) -> None:
    """Raise InternalError where the counts do not fit the edges.

    `unfinished` are all unfinished nodes, `foreign` how many dependencies outside the graph each still waits for.
    """
    expected = dict(foreign)
    nodes = list(unfinished)
    for node in nodes:
        for dependent in node.dependents or ():
            expected[dependent] = expected.get(dependent, 0) + 1
    for node in nodes:
        if node.phase.ended:
            raise InternalError(f"{node.story()} has ended but counts as unfinished")
        if node.waits != expected.get(node, 0):
            raise InternalError(f"{node.story()} should wait for {expected.get(node, 0)}")
        if not node.waits and node.phase is Phase.WAITING:
            raise InternalError(f"{node.story()} should be ready")
