"""A process in which one contender is measured: commands are lines of JSON on stdin, replies such lines on stdout."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, TextIO

from tests.bench.contenders import CONTENDERS, WORKERS, Contender
from tests.bench.measures import MEASURES, Reply
from tests.bench.patterns import build
from tests.bench.work import where


def _take_stdout() -> TextIO:
    """Stdout for replies only: what anyone prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


async def _stdin() -> asyncio.StreamReader:
    """Stdin on the loop: reading it on a thread would give the process one that the contender does not have."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _warm_up(contender: Contender) -> None:
    """Until all workers have worked, and each kind of step was taken once."""
    seen: set[Any] = set()
    while len(seen) < WORKERS:
        seen.update(await asyncio.gather(*[contender.call(where, 0.02) for _ in range(2 * WORKERS)]))
    for pattern in ("trivial", "stencil_1d"):
        await contender.run(build(pattern, 200), 0)


def _send(replies: TextIO, reply: Reply) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


async def main(name: str) -> None:
    replies, commands = _take_stdout(), await _stdin()
    contender = CONTENDERS[name]()
    await contender.start()
    await _warm_up(contender)
    _send(replies, {})
    while line := await commands.readline():
        command = json.loads(line)
        measure = MEASURES[command.pop("measure")]
        _send(replies, await measure(contender, **command))
    await contender.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
