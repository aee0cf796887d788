"""Where the ranks of a job step go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from asyncflow.backends.contract import Definition
from asyncflow.backends.dask.node import Job, Node
from asyncflow.description import Resources


def rank_of(definition: Definition, memory_per_core: int) -> Resources:
    """What one rank of an executable holds; `memory_per_core` is what SLURM counts where its task names no memory."""
    rank = definition.rank
    return rank if rank.memory else replace(rank, memory=rank.cores * memory_per_core)


def spread(job: Job, nodes: Sequence[Node], *, empty: bool = False) -> dict[Node, int]:
    """How many ranks on which of the nodes, on as few as possible; {} where they have no room for all of them.

    As many on each wherever that can be: SLURM handles steps better that are even. `empty`: were nothing running there.
    """
    description = job.item.definition.description
    ranks = 1 if description is None else description.ranks
    room = {node: node.room(job.rank, empty=empty) for node in nodes}
    roomiest = sorted((node for node in nodes if room[node]), key=lambda node: -room[node])
    for count in range(1, min(ranks, len(roomiest)) + 1):
        each = ranks // count
        fitting = [node for node in roomiest if room[node] >= each]
        if ranks % count == 0 and len(fitting) >= count:
            # Those that are left with the least, so that wide steps find room elsewhere.
            return dict.fromkeys(fitting[-count:], each)
    return _unevenly(ranks, roomiest, room)


def _unevenly(ranks: int, roomiest: Sequence[Node], room: dict[Node, int]) -> dict[Node, int]:
    placed: dict[Node, int] = {}
    for node in roomiest:
        count = min(room[node], ranks)
        if count:
            placed[node] = count
            ranks -= count
    return placed if not ranks else {}
