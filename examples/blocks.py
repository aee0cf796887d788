"""Blocks, and blocks in blocks: parts of a workflow that decide what to run next.

What to look at: a block is a coroutine on the engine's loop, so it may look at results, loop and branch, and call tasks
and other blocks; its future is a dependency like a task's. Here `converge` repeats a task until its result is good
enough, which no graph drawn in advance can do, and `study` runs three of them at once. Each component knows the block
that called it.
"""

from __future__ import annotations

import asyncio

from asyncflow import WorkflowEngine


async def main() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        def improve(guess: float, number: float) -> float:
            """One step of Newton's method for a square root."""
            return (guess + number / guess) / 2

        @flow.block
        async def converge(number: float) -> tuple[float, int]:
            guess, steps = number, 0
            while abs(guess * guess - number) > 1e-9:
                guess = await improve(guess, number)
                steps += 1
            return guess, steps

        @flow.function_task
        def report(roots: list[tuple[float, int]]) -> str:
            return "\n".join(f"root {root:.6f} after {steps} steps" for root, steps in roots)

        @flow.block
        async def study(numbers: list[float]) -> str:
            # The futures of three blocks, passed to a task.
            return await report([converge(number) for number in numbers])

        print(await study([2.0, 9.0, 100.0]))

        components = flow.components
        parents = [components[uid]["description"]["parent"] for uid in components]
        print(f"{len(parents)} components, {sum(parent is not None for parent in parents)} of them called by a block")


if __name__ == "__main__":
    asyncio.run(main())
