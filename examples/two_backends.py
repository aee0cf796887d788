"""Processor-bound work on a few processes beside input and output on many threads, in one engine.

What to look at: two named backends. The first of the list is the default; a task picks the other with `backend=`. The
graph runs through both: each download is followed by a computation as soon as it is there, and the downloads do not
wait for the computations.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import zlib

from asyncflow import WorkflowEngine
from asyncflow.backends import ProcessBackend, ThreadBackend


async def main() -> None:
    backends = [ThreadBackend(name="io", workers=16), ProcessBackend(name="cpu", workers=2)]
    async with WorkflowEngine.create(backend=backends) as flow:

        @flow.function_task
        def download(number: int) -> tuple[bytes, str]:
            time.sleep(0.2)  # the network
            return bytes([number]) * 2_000_000, threading.current_thread().name

        @flow.function_task(backend="cpu")
        def checksum(fetched: tuple[bytes, str]) -> tuple[int, int]:
            data, _ = fetched
            value = 0
            for _ in range(20):
                value = zlib.crc32(data, value)
            return value, os.getpid()

        started = time.perf_counter()
        fetched = [download(number) for number in range(16)]
        checksums = [checksum(one) for one in fetched]
        processes = {pid for _, pid in await asyncio.gather(*checksums)}
        threads = {thread for _, thread in await asyncio.gather(*fetched)}

        print(f"16 downloads on {len(threads)} threads of process {os.getpid()}")
        print(f"16 checksums on {len(processes)} other processes, {os.getpid() not in processes}")
        print(f"together in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    asyncio.run(main())
