"""The graph: phases, edges and counts, without an engine."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow.errors import InternalError
from asyncflow.graph import Node, Phase, State, connect, orphans, release, validate

ENDS = (Phase.DONE, Phase.FAILED, Phase.CANCELLED)

#: Every legal move, by the life of a task in docs/design.md.
MOVES = {
    *product([Phase.WAITING], [Phase.READY, Phase.FAILED, Phase.CANCELLED]),
    *product([Phase.READY], [Phase.SUBMITTED, Phase.FAILED, Phase.CANCELLED]),
    *product([Phase.SUBMITTED], [Phase.READY, Phase.BACKOFF, *ENDS]),
    *product([Phase.BACKOFF], [Phase.READY, Phase.FAILED, Phase.CANCELLED]),
}


def node_in(phase: Phase) -> Node:
    node = Node()
    node.phase = phase
    return node


@pytest.mark.parametrize("before,after", sorted(MOVES, key=str))
def test_legal_moves(before: Phase, after: Phase) -> None:
    node = node_in(before)
    node.move(after)
    assert node.phase is after


@pytest.mark.parametrize("before,after", sorted(set(product(Phase, Phase)) - MOVES, key=str))
def test_an_illegal_move_is_a_defect_and_tells_the_story(before: Phase, after: Phase) -> None:
    node = node_in(before)
    with pytest.raises(InternalError, match=f"in phase {before.name} .*cannot move to {after.name}"):
        node.move(after)
    assert node.phase is before


def test_public_states() -> None:
    assert {phase: phase.state.value for phase in Phase} == {
        Phase.WAITING: "PENDING",
        Phase.READY: "PENDING",
        Phase.SUBMITTED: "PENDING",
        Phase.BACKOFF: "PENDING",
        Phase.DONE: "DONE",
        Phase.FAILED: "FAILED",
        Phase.CANCELLED: "CANCELLED",
    }
    assert [phase for phase in Phase if phase.ended] == list(ENDS)


@pytest.mark.parametrize("state", list(State))
def test_a_state_is_a_string_and_an_enum(state: State) -> None:
    assert state == state.name
    assert str(state) == f"{state}" == state.name
    assert State(state.name) is state


def test_the_last_dependency_makes_ready() -> None:
    first, second, dependent = Node(), Node(), Node()
    connect(dependent, [first, second])
    assert dependent.waits == 2
    assert release(first) == []
    assert release(second) == [dependent]
    assert dependent.waits == 0


def test_release_keeps_the_order_of_the_calls() -> None:
    root, *rest = [Node() for _ in range(10)]
    for node in rest:
        connect(node, [root])
    assert release(root) == rest


def test_release_passes_over_dependents_that_have_ended() -> None:
    root, ended, waiting = Node(), Node(), Node()
    connect(ended, [root])
    connect(waiting, [root])
    ended.move(Phase.CANCELLED)
    assert release(root) == [waiting]


def test_orphans_are_those_that_still_wait() -> None:
    root, other, ended, waiting = Node(), Node(), Node(), Node()
    connect(ended, [root])
    connect(waiting, [root, other])
    ended.move(Phase.CANCELLED)
    assert orphans(root) == [waiting]
    assert orphans(root) == [], "each dependent is told once"


def test_a_node_without_dependents_releases_nothing() -> None:
    assert release(Node()) == orphans(Node()) == []


def test_validate_finds_a_wrong_count() -> None:
    root, dependent = Node(), Node()
    connect(dependent, [root])
    root.move(Phase.READY)
    validate([root, dependent], {})
    dependent.waits = 2
    with pytest.raises(InternalError, match="should wait for 1"):
        validate([root, dependent], {})
    validate([root, dependent], {dependent: 1})


def test_validate_finds_an_ended_node() -> None:
    with pytest.raises(InternalError, match="has ended but counts as unfinished"):
        validate([node_in(Phase.DONE)], {})


def test_validate_finds_a_forgotten_node() -> None:
    with pytest.raises(InternalError, match="should be ready"):
        validate([Node()], {})


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), max_size=30))
def test_every_node_becomes_ready_once_and_after_its_dependencies(shape: list[list[int]]) -> None:
    """`shape[i]` are the dependencies of node i, as far as these come before it."""
    nodes = [Node() for _ in shape]
    needs = {node: {nodes[i] for i in shape[index] if i < index} for index, node in enumerate(nodes)}
    for node in nodes:
        connect(node, needs[node])
    ready = [node for node in nodes if not node.waits]
    done: list[Node] = []
    while ready:
        node = ready.pop()
        assert needs[node] <= set(done)
        node.phase = Phase.DONE
        done.append(node)
        ready += release(node)
    assert len(done) == len(set(done)) == len(nodes)
