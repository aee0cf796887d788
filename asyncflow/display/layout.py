"""Where the boxes of a picture of a graph stand: in columns, each to the right of what it depends on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def columns_of(after: Mapping[int, Iterable[int]]) -> dict[int, int]:
    """The length of the longest path to each node. A node's dependencies have smaller numbers than itself.

    Dependencies that are no nodes themselves are passed over.
    """
    columns: dict[int, int] = {}
    for node in sorted(after):
        columns[node] = 1 + max((columns[each] for each in after[node] if each in columns), default=-1)
    return columns


def rows_of(columns: Mapping[int, int], edges: Iterable[tuple[int, int]]) -> dict[int, float]:
    """The height of each node, in rows from the top: beside what it depends on, as far as there is room.

    Columns are centred on each other.
    """
    inputs: dict[int, list[int]] = {}
    for source, target in edges:
        inputs.setdefault(target, []).append(source)
    members: dict[int, list[int]] = {}
    for node, column in columns.items():
        members.setdefault(column, []).append(node)
    tallest = max(map(len, members.values()), default=0)
    rows: dict[int, float] = {}

    def wish(node: int) -> float:
        heights = [rows[each] for each in inputs.get(node, ()) if each in rows]
        return sum(heights) / len(heights) if heights else tallest / 2

    for column in sorted(members):
        nodes = sorted(members[column], key=lambda node: (wish(node), node))
        top = (tallest - len(nodes)) / 2
        rows.update({node: top + place for place, node in enumerate(nodes)})
    return rows
