"""Five workflows at once, each `task3(task1(), task2())`.

What to look at: the five coroutines run concurrently, and each opens a `workflow_scope` of its own; every task carries
the workflow of the coroutine that called it, however they interleave. All tasks together take about as long as the
longest chain.
"""

from __future__ import annotations

import asyncio
import time

from asyncflow import WorkflowEngine


async def main() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.function_task
        async def task1(number: int) -> int:
            await asyncio.sleep(0.2)
            return number

        @flow.function_task
        async def task2(number: int) -> int:
            await asyncio.sleep(0.3)
            return number * number

        @flow.function_task
        async def task3(first: int, second: int) -> int:
            await asyncio.sleep(0.1)
            return first + second

        async def workflow(number: int) -> str:
            async with flow.workflow_scope(f"workflow-{number}"):
                result = task3(task1(number), task2(number))
                return f"{result.workflow_id}: {number} + {number}² = {await result}"

        started = time.perf_counter()
        for line in await asyncio.gather(*[workflow(number) for number in range(1, 6)]):
            print(line)
        print(f"five workflows in {time.perf_counter() - started:.1f} s; one after another they take 2.0 s")


if __name__ == "__main__":
    asyncio.run(main())
