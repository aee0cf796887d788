"""This engine as one of the peers of a harness that runs many engines on the same graphs, each in its own environment.

    python bench.py run --adapter tests/bench/peer_adapter.py --python .venv/bin/python \
        --peer asyncflow-ours-threads --opts '{"backend": "threads"}' --pattern trivial --n 10000

The harness imports this file by its path and has its own `adapters` and `kernel` on the module path. What it
writes, a line of JSON a run, is what `python -m tests.bench --peers FILE` reads.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # this checkout is measured, whatever is installed

_AsyncBase: Any = import_module("adapters.base").AsyncBase


class Adapter(_AsyncBase):  # type: ignore[misc] # the harness's, known only when it runs
    """Options: `backend`, "threads" or "processes"."""

    def version(self) -> str:
        from tests.bench.machine import commit

        return commit()

    async def astart(self) -> None:
        from asyncflow import WorkflowEngine
        from asyncflow.backends.processes import ProcessBackend
        from asyncflow.backends.threads import ThreadBackend

        backend = {"threads": ThreadBackend, "processes": ProcessBackend}[self.opts["backend"]]
        self.flow = await WorkflowEngine.create(backend(self.workers))
        self.task = self.flow.function_task(import_module("kernel").body)

    async def arun(self, graph: Any) -> list[Any]:
        task = self.task
        futures: list[asyncio.Future[Any]] = []
        for parents, work in zip(graph.deps, graph.work, strict=True):
            futures.append(task(work, *[futures[parent] for parent in parents]))
        self.submitted()
        return await asyncio.gather(*[futures[sink] for sink in graph.sinks])

    async def astop(self) -> None:
        await self.flow.shutdown()
