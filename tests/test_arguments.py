"""Futures in arguments: which are found, and what a task gets in their place."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow.arguments import find_futures, resolve

Future = asyncio.Future[Any]


def ended(value: Any) -> Future:
    future: Future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


def found(*args: Any, **kwargs: Any) -> list[Future]:
    return find_futures(args, kwargs)[0]


def resolved(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return resolve(args, kwargs, find_futures(args, kwargs)[1])


@pytest.mark.parametrize(
    "place",
    [
        lambda thing: thing,
        lambda thing: [1, thing],
        lambda thing: (thing, 2),
        lambda thing: {"key": thing},
        lambda thing: {thing: "value"},
        lambda thing: {thing, 3},
        lambda thing: frozenset({thing}),
        lambda thing: [{"key": ({thing},)}],
    ],
    ids=["itself", "list", "tuple", "dict value", "dict key", "set", "frozenset", "nested"],
)
async def test_a_future_is_found_and_replaced_wherever_it_stands(place: Callable[[Any], Any]) -> None:
    future = ended(7)
    assert found(place(future)) == [future]
    assert found(name=place(future)) == [future]
    assert resolved(place(future), name=place(future)) == ((place(7),), {"name": place(7)})


async def test_the_same_future_counts_once() -> None:
    future, other = ended(1), ended(2)
    assert found(future, [future, other], key=(future,)) == [future, other]
    assert resolved(future, [future, other], key=(future,)) == ((1, [1, 2]), {"key": (1,)})


async def test_any_asyncio_future_counts() -> None:
    task = asyncio.ensure_future(asyncio.sleep(0, "slept"))
    assert found([task]) == [task]
    await task
    assert resolved([task]) == ((["slept"],), {})


class Pair(NamedTuple):
    left: Any
    right: Any


class Own(list[Any]):
    pass


@pytest.mark.parametrize(
    "place",
    [
        lambda future: Own([future]),
        lambda future: OrderedDict(key=future),
        lambda future: Pair(future, 1),
        lambda future: deque([future]),
        lambda future: iter([future]),
        lambda future: lambda: future,
    ],
    ids=["subclass of list", "OrderedDict", "named tuple", "deque", "iterator", "closure"],
)
async def test_other_containers_are_passed_on_untouched(place: Callable[[Any], Any]) -> None:
    thing = place(ended(1))
    assert found(thing, [thing]) == []
    args, _ = resolved(thing, [thing], ended(2))
    assert args[0] is thing
    assert args[1][0] is thing


async def test_a_future_of_a_pool_is_a_value() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    assert found(future) == []
    assert resolved(future)[0][0] is future


async def test_an_iterator_is_not_consumed() -> None:
    numbers = iter([1, 2, 3])
    args, _ = resolved(numbers, ended(0))
    assert list(args[0]) == [1, 2, 3]


async def test_containers_without_a_future_are_passed_on_themselves() -> None:
    plain: list[Any] = [1, {"a": {2}}]
    args, kwargs = resolved(plain, [ended(1), plain], key=plain)
    assert args[0] is plain
    assert args[1][1] is plain
    assert kwargs["key"] is plain


async def test_the_callers_containers_are_not_changed() -> None:
    future = ended(1)
    mine = [future]
    resolved(mine)
    assert mine == [future]


async def test_cycles_end_and_stay_cycles() -> None:
    future = ended(1)
    loop: list[Any] = [future]
    loop.append(loop)
    ring: dict[str, Any] = {"future": future}
    ring["ring"] = (ring,)
    assert found(loop, ring) == [future]
    (copy, other), _ = resolved(loop, ring)
    assert copy[0] == 1
    assert copy[1] is copy
    assert other["future"] == 1
    assert other["ring"][0] is other


async def test_a_cycle_without_a_future_is_passed_on_itself() -> None:
    loop: list[Any] = []
    loop.append(loop)
    (same, value), _ = resolved(loop, ended(1))
    assert same is loop
    assert value == 1


async def test_what_was_shared_stays_shared() -> None:
    inner = [ended(1)]
    (first, second), kwargs = resolved(inner, [inner], key=inner)
    assert first is second[0] is kwargs["key"]


async def test_an_unhashable_result_cannot_stand_in_a_set() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        resolved({ended([])})


_LEAVES = st.integers(0, 9) | st.sampled_from("abc")
_HASHABLE = _LEAVES | st.tuples(_LEAVES, _LEAVES)
_NESTED: st.SearchStrategy[Any] = st.recursive(
    _HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(_HASHABLE, inner, max_size=3)
        | st.sets(_HASHABLE, max_size=3)
    ),
    max_leaves=20,
)


@given(_NESTED, st.sets(st.integers(0, 9)))
def test_any_nesting_comes_out_as_if_the_values_had_been_passed(structure: Any, numbers: set[int]) -> None:
    """Every leaf in `numbers` is passed as a future of itself."""
    loop = asyncio.new_event_loop()
    futures: dict[int, Future] = {number: loop.create_future() for number in numbers}
    for number, future in futures.items():
        future.set_result(number)
    used: set[Future] = set()

    def disguise(value: Any) -> Any:
        if isinstance(value, dict):
            return {disguise(key): disguise(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple, set)):
            return type(value)([disguise(inner) for inner in value])
        if value in futures:
            used.add(futures[value])
        return futures.get(value, value)

    try:
        disguised = disguise(structure)
        assert set(found(disguised)) == used
        assert resolved(disguised) == ((structure,), {})
    finally:
        loop.close()
