"""Where the boxes of a picture of a graph stand: in columns, each to the right of what it depends on. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

#: A box by its number; or where the lines from a box pass through a column, by the box's number and the column.
Stop = int | tuple[int, int]

#: The height of such a passage, in rows.
_PASSAGE = 0.25


def columns_of(after: Mapping[int, Iterable[int]]) -> dict[int, int]:
    """The length of the longest path to each node. A node's dependencies have smaller numbers than itself.

    Dependencies that are no nodes themselves are passed over.
    """
    columns: dict[int, int] = {}
    for node in sorted(after):
        columns[node] = 1 + max((columns[each] for each in after[node] if each in columns), default=-1)
    return columns


def last_stop(source: int, target: int, columns: Mapping[int, int]) -> Stop:
    """Where the line from one box comes from to the other: the passage before that, or the first box itself."""
    column = columns[target] - 1
    return (source, column) if column > columns[source] else source


def passages(columns: Mapping[int, int], edges: Iterable[tuple[int, int]]) -> Iterator[tuple[Stop, tuple[int, int]]]:
    """Each passage after the stop before it: one in each column that a line skips, so that none runs through a box.

    All lines from one box share its passages.
    """
    furthest: dict[int, int] = {}
    for source, target in edges:
        furthest[source] = max(furthest.get(source, 0), columns[target])
    for source, end in furthest.items():
        before: Stop = source
        for column in range(columns[source] + 1, end):
            yield before, (source, column)
            before = source, column


def rows_of(columns: Mapping[int, int], edges: Collection[tuple[int, int]]) -> dict[Stop, float]:
    """The middle of each box and passage, in rows from the top: beside what it depends on, as far as there is room.

    Columns are centred on each other.
    """
    inputs: dict[Stop, list[Stop]] = {}
    #: What stands in each column, and how high it is.
    members: dict[int, dict[Stop, float]] = {}
    for node, column in columns.items():
        members.setdefault(column, {})[node] = 1.0
    for before, passage in passages(columns, edges):
        members.setdefault(passage[1], {})[passage] = _PASSAGE
        inputs[passage] = [before]
    for source, target in edges:
        inputs.setdefault(target, []).append(last_stop(source, target, columns))
    tallest = max((sum(heights.values()) for heights in members.values()), default=0.0)
    rows: dict[Stop, float] = {}

    def wish(stop: Stop) -> float:
        heights = [rows[each] for each in inputs.get(stop, ()) if each in rows]
        return sum(heights) / len(heights) if heights else tallest / 2

    for column in sorted(members):
        heights = members[column]
        top = (tallest - sum(heights.values())) / 2
        for stop in sorted(heights, key=wish):
            rows[stop] = top + heights[stop] / 2
            top += heights[stop]
    return rows
