"""A first graph: functions and a command line program, joined by passing futures.

What to look at: a call of a task gives a future at once. Passed on as an argument, it makes the graph; awaited, it
gives the value. `combine` starts when the last of its eight simulations has ended, and nothing in between waits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from asyncflow import WorkflowEngine


async def main() -> None:
    async with WorkflowEngine.create(backend="processes") as flow:

        @flow.function_task
        def simulate(seed: int) -> float:
            """An estimate of pi: how many random points of the unit square lie in the circle."""
            draw = random.Random(seed)
            return 4 * sum(draw.random() ** 2 + draw.random() ** 2 < 1 for _ in range(50_000)) / 50_000

        @flow.function_task
        def combine(estimates: Sequence[float]) -> float:
            return sum(estimates) / len(estimates)

        @flow.executable_task
        async def announce(value: float) -> list[str]:
            return ["echo", f"pi is about {value:.2f}"]

        async with flow.workflow_scope("quickstart"):
            mean = combine([simulate(seed) for seed in range(8)])
            said = announce(mean)

        print(f"registered: {said.name} of workflow {said.workflow_id} is {said.state}")
        print((await said).strip())
        print(f"the mean of 8 simulations is {await mean:.4f}")


if __name__ == "__main__":
    asyncio.run(main())
