"""Tasks at module level, as an application's own modules have them."""

from __future__ import annotations

import asyncio

from asyncflow import block, executable_task, function_task


@function_task
def double(number: int) -> int:
    return 2 * number


@function_task(name="thrice", retries=1)
async def triple(number: int) -> int:
    await asyncio.sleep(0)
    return 3 * number


@executable_task
def greet(name: str) -> list[str]:
    return ["printf", "hello %s", name]


@block
async def sextuple(number: int) -> int:
    return await triple(double(number))


def calls_a_task(number: int) -> object:
    """A task's body that calls a task, which it must not."""
    return double(number)


def calls_the_plain_function(number: int) -> int:
    return int(double.fn(number))


class Scaled:
    """Holds a task as its method."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    @function_task
    def of(self, number: int) -> int:
        return self.factor * number
