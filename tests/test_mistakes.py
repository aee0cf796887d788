"""What a newcomer does wrong first: each mistake is told in words that say what to do."""

from __future__ import annotations

import asyncio
import copy
import operator
import re
from collections.abc import Callable
from typing import Any

import pytest

from asyncflow import TaskFuture
from asyncflow.errors import NotAwaitedError
from tests.support.faked import faked, finish, identity


@pytest.mark.parametrize(
    "use,what",
    [
        (lambda future: future + 1, "+"),
        (lambda future: 1 + future, "+"),
        (lambda future: "mean: " + future, "+"),
        (lambda future: sum([future]), "+"),
        (lambda future: future - 1, "-"),
        (operator.neg, "-"),
        (lambda future: 2 * future, "*"),
        (lambda future: future / 2, "/"),
        (lambda future: future // 2, "//"),
        (lambda future: future % 2, "%"),
        (lambda future: future**2, "**"),
        (lambda future: future @ future, "@"),
        (lambda future: future > 3, "order"),
        (lambda future: sorted([future, future]), "order"),
        (lambda future: max(1, future), "order"),
        (float, "number"),
        (int, "number"),
        (lambda future: future[0], "items"),
        (lambda future: future["energy"], "items"),
        (lambda future: future.mean(), "attribute 'mean'"),
        (lambda future: f"{future:.3f}", "format '.3f'"),
    ],
)
async def test_a_future_used_as_its_result_says_to_await_it(use: Callable[[Any], object], what: str) -> None:
    async with faked() as (flow, _):
        future = flow.function_task(name="simulate")(identity)(1)
        with pytest.raises(
            NotAwaitedError, match=re.escape(f"'simulate' (task.000001) has no {what}: await it")
        ) as caught:
            use(future)
        assert isinstance(caught.value, TypeError)
        future.cancel()


async def test_what_programs_ask_of_any_object_a_future_answers() -> None:
    async with faked() as (flow, backend):
        future: TaskFuture[Any] = flow.function_task(name="simulate")(identity)(1)
        assert future
        assert not hasattr(future, "mean")
        assert not hasattr(future, "__len__")
        assert getattr(future, "shape", None) is None
        assert f"{future}" == f"{future!s}" == repr(future)
        assert {future: 1}[future] == 1
        assert future in [1, future]
        with pytest.raises(TypeError):
            copy.deepcopy(future)
        await finish(backend, future)
        assert [*await asyncio.gather(future)] == [await future]


def test_a_future_without_a_call_has_no_attributes_either() -> None:
    """Whoever looks at one that is only half made (a debugger, `copy`) gets no endless recursion."""
    future: TaskFuture[Any] = TaskFuture.__new__(TaskFuture)
    future._failure = None
    for name in ("name", "uid", "mean", "_component"):
        with pytest.raises(AttributeError, match="no attribute '_component'"):
            getattr(future, name)
