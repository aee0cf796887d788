"""Rows to draw what overlaps in: each bar in the first row that is free when it begins. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

G = TypeVar("G", bound=Hashable)


def pack(bars: Iterable[tuple[float, float]]) -> list[int]:
    """The row of each bar (begin, end), given in the order of their beginnings. O(n log n)."""
    free: list[int] = []
    taken: list[tuple[float, int]] = []
    rows: list[int] = []
    for begin, end in bars:
        while taken and taken[0][0] <= begin:
            heapq.heappush(free, heapq.heappop(taken)[1])
        # Rows are made only where all are taken, so the next new one is their number.
        row = heapq.heappop(free) if free else len(taken)
        heapq.heappush(taken, (end, row))
        rows.append(row)
    return rows


def pack_by_group(bars: Iterable[tuple[G, float, float]]) -> tuple[list[int], Mapping[G, int]]:
    """The same within each group: the row of each bar in its group, and how many rows each group has."""
    by_group: dict[G, list[tuple[float, float, int]]] = {}
    count = 0
    for group, begin, end in bars:
        by_group.setdefault(group, []).append((begin, end, count))
        count += 1
    rows = [0] * count
    heights: dict[G, int] = {}
    for group, members in by_group.items():
        members.sort()
        packed = pack((begin, end) for begin, end, _ in members)
        heights[group] = max(packed) + 1
        for (_, _, number), row in zip(members, packed, strict=True):
            rows[number] = row
    return rows, heights
