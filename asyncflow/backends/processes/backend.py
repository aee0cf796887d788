"""The face of the process pool towards the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncflow import options
from asyncflow.backends.aside import aside
from asyncflow.backends.contract import CONCURRENCY, Capabilities, Reporter, WorkItem
from asyncflow.backends.machine import resources_of
from asyncflow.backends.orphans import Family
from asyncflow.backends.processes.pool import Pool
from asyncflow.backends.processes.process import Seat
from asyncflow.backends.resources import Ledger

#: Seconds between TERM and KILL for a cancelled executable.
GRACE = 5.0


class ProcessBackend:
    """Own worker processes, one core each, for CPU work.

    `workers` defaults to the cores that this process may use. Workers are fresh interpreters (never forks), started
    when first needed; they do not import the caller's `__main__`, so a script needs no `if __name__ == "__main__"`.
    Numerical libraries use one thread in them unless the task asks for more cores. `env` is added to their
    environment. GPUs and memory (MB) default to what the machine shows. A function that is cancelled, or that kills
    its worker, costs its worker process and nothing else.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        name: str = "processes",
        gpus: int | tuple[str, ...] | None = None,
        memory: int | None = None,
        env: Mapping[str, str] | None = None,
        concurrency: int = CONCURRENCY,
        grace: float = GRACE,
    ) -> None:
        """`concurrency` is coroutines a worker, `grace` seconds between TERM and KILL for a cancelled executable."""
        self.name = options.name("name", name)
        total, self._gpus = resources_of(workers, gpus, memory)
        self._workers = total.cores
        options.whole("concurrency", concurrency, 1)
        options.seconds("grace", grace)
        self.capabilities = Capabilities(
            workers=self._workers,
            total=total,
            shares_memory=False,
            concurrency=self._workers * concurrency,
            cancels_functions=True,
            cancels_executables=True,
            survives_worker_loss=True,
            thread_safe=True,
        )
        self._env = options.variables("env", env or {})
        self._concurrency = concurrency
        self._grace = grace
        self._pool: Pool | None = None

    async def start(self, reporter: Reporter) -> None:
        ledger: Ledger[WorkItem | Seat] = Ledger(self.capabilities.total, self._gpus)
        self._pool = Pool(self.name, self._workers, ledger, Family(self._grace), self._env, self._concurrency, reporter)
        self._pool.thread.start()

    def submit(self, items: Sequence[WorkItem]) -> None:
        self._started().submit(items)

    def cancel(self, item: WorkItem) -> None:
        item.cancelled = True
        self._started().cancel(item)

    async def stop(self, grace: float) -> None:
        if self._pool is not None:
            self._pool.stop(grace)
            await aside(self._pool.thread.join, f"{self.name}-stop")

    def _started(self) -> Pool:
        if self._pool is None:
            raise RuntimeError(f"backend {self.name!r} is not running")
        return self._pool
