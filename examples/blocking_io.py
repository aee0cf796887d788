"""Blocking calls in tasks, while the event loop stays free.

What to look at: `read` blocks its thread, as file systems, drivers and old client libraries do. Sixteen of them wait on
sixteen threads, in the time of one, and the heartbeat, which lives on the engine's loop, never misses a beat. It would
be no different for an `async def` task that blocks by mistake: tasks never run on the engine's loop.
"""

from __future__ import annotations

import asyncio
import time

from asyncflow import WorkflowEngine
from asyncflow.backends import ThreadBackend

BEAT = 0.02


async def heartbeat() -> float:
    """Tick until cancelled; the longest that a tick was late, in seconds."""
    latest = 0.0
    try:
        while True:
            due = time.perf_counter() + BEAT
            await asyncio.sleep(BEAT)
            latest = max(latest, time.perf_counter() - due)
    except asyncio.CancelledError:
        return latest


async def main() -> None:
    async with WorkflowEngine.create(backend=ThreadBackend(workers=16)) as flow:

        @flow.function_task
        def read(name: str) -> str:
            time.sleep(0.5)  # a slow disk, a lock, a query
            return f"contents of {name}"

        @flow.function_task
        def join(parts: list[str]) -> int:
            return len(parts)

        heart = asyncio.create_task(heartbeat())
        started = time.perf_counter()
        count = await join([read(f"file-{number}") for number in range(16)])
        elapsed = time.perf_counter() - started
        heart.cancel()
        late = await heart

        print(f"{count} blocking reads of 0.5 s in {elapsed:.2f} s")
        print(f"meanwhile the loop was at most {late * 1000:.1f} ms late")


if __name__ == "__main__":
    asyncio.run(main())
