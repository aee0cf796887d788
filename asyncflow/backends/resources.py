"""Counting cores, GPUs and memory, so that what runs never holds more than there is."""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

from asyncflow.description import Resources


class Claim(Protocol):
    """Something that holds resources while it runs: a work item, or a worker's seat."""

    gpus: tuple[str, ...]

    @property
    def request(self) -> Resources: ...


C = TypeVar("C", bound=Claim)


class Ledger(Generic[C]):
    """Holds claims back until what they ask for is free, then gives them what they asked for.

    Claims of one shape (the same amounts) pass in their order. A claim that does not fit keeps what is free of its own
    needs reserved against later ones of other shapes, so that small tasks can never starve a large one. Cost is the
    number of distinct shapes, not of claims.
    """

    def __init__(self, total: Resources, gpus: tuple[str, ...]) -> None:
        self.total = total
        self._cores = total.cores
        self._memory = total.memory
        self._gpus = deque(gpus)
        self._queues: dict[Resources, deque[tuple[int, C]]] = {}
        self._arrivals = 0

    def offer(self, claim: C) -> None:
        """Queue `claim`; `admit` gives it out when it fits."""
        self._arrivals += 1
        request = claim.request
        queue = self._queues.get(request)
        if queue is None:
            queue = self._queues[request] = deque()
        queue.append((self._arrivals, claim))

    def admit(self) -> list[C]:
        """The claims that may start now, in order; what they hold is taken, and their GPUs are assigned."""
        admitted: list[C] = []
        cores, gpus, memory = self._cores, len(self._gpus), self._memory
        for request in self._by_arrival():
            queue = self._queues[request]
            while queue and request.cores <= cores and request.gpus <= gpus and request.memory <= memory:
                cores, gpus, memory = cores - request.cores, gpus - request.gpus, memory - request.memory
                admitted.append(self._take(queue.popleft()[1], request))
            if queue:  # reserve what is free for the one that does not fit
                cores = max(0, cores - request.cores)
                gpus = max(0, gpus - request.gpus)
                memory = max(0, memory - request.memory)
            else:
                del self._queues[request]
        return admitted

    def release(self, claim: C) -> None:
        """Give back what an admitted `claim` held."""
        request = claim.request
        self._cores += request.cores
        self._memory += request.memory
        self._gpus.extend(claim.gpus)
        claim.gpus = ()

    def withdraw(self, claim: C) -> bool:
        """Take a queued `claim` out; False where it is not (or no longer) queued."""
        request = claim.request
        queue = self._queues.get(request, deque())
        kept = deque(entry for entry in queue if entry[1] is not claim)
        if len(kept) == len(queue):
            return False
        if kept:
            self._queues[request] = kept
        else:
            del self._queues[request]
        return True

    def drain(self) -> list[C]:
        """Take out every queued claim."""
        claims = [claim for queue in self._queues.values() for _, claim in queue]
        self._queues.clear()
        return claims

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def _by_arrival(self) -> list[Resources]:
        if len(self._queues) == 1:
            return list(self._queues)
        return sorted(self._queues, key=lambda request: self._queues[request][0][0])

    def _take(self, claim: C, request: Resources) -> C:
        self._cores -= request.cores
        self._memory -= request.memory
        if claim.gpus:  # chosen by whoever offered it, of those that are free
            for gpu in claim.gpus:
                self._gpus.remove(gpu)
        else:
            claim.gpus = tuple(self._gpus.popleft() for _ in range(request.gpus))
        return claim
