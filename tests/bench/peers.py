"""This engine's figures over those of its peers, which were measured apart: each needs an environment of its own.

A peers file has one JSON object a line: `peer`, `mode`, `pattern`, `status` ("ok" counts), and with mode "run" `n` and
`us_per_task`, with mode "metg" `metg_us`. Where it also holds this engine, measured by the same program through
`peer_adapter.py` as peer "asyncflow-ours-threads" or "-processes", those figures are compared; else this run's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.contenders import LOCAL
from tests.bench.metg import PATTERNS as METG_PATTERNS
from tests.bench.patterns import PATTERNS
from tests.bench.rows import Row, Selection

_OURS = "asyncflow-ours-"
#: radical.asyncflow on threads.
_RADICAL = "asyncflow-threads"
_RADICAL_GOAL, _RADICAL_CHAIN_GOAL = 1 / 50, 1 / 200
_METG_GOAL = 0.5

Record = dict[str, Any]


def measure(file: Path, measured: list[Row], selection: Selection) -> Iterator[Row]:
    records = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    records = [record for record in records if record.get("status") == "ok"]
    rows = {(row.group, row.name): row for row in measured}
    for pattern in selection.of("peers", PATTERNS):
        yield from _against_radical(records, rows.get(("threads", pattern)), pattern)
    for backend in LOCAL:
        for pattern in METG_PATTERNS:
            name = f"metg {backend} {pattern}"
            if selection.has("peers", name):
                yield from _metg(records, rows.get(("metg", f"{backend} {pattern}")), name, backend, pattern)


def _against_radical(records: list[Record], row: Row | None, pattern: str) -> Iterator[Row]:
    theirs = _us_per_task(records, _RADICAL, pattern)
    ours = _us_per_task(records, f"{_OURS}threads", pattern)
    if ours is None and row is not None and row.data:
        ours = row.data["us_per_task"], row.data["tasks"]
    if theirs is None or ours is None:
        return
    goal = _RADICAL_CHAIN_GOAL if pattern == "chain" else _RADICAL_GOAL
    detail = f"{ours[0]:.1f} µs a task at {ours[1]:,}, radical.asyncflow on threads {theirs[0]:,.0f} at {theirs[1]:,}"
    yield Row("peers", pattern, ours[0] / theirs[0], goal, detail=detail)


def _us_per_task(records: list[Record], peer: str, pattern: str) -> tuple[float, int] | None:
    """The median of a peer's runs of the graph nearest to 10,000 tasks, and how many tasks that was."""
    key = (peer, "run", pattern)
    runs = [r for r in records if (r["peer"], r["mode"], r.get("pattern")) == key and not r.get("iters")]
    if not runs:
        return None
    size = min((run["n"] for run in runs), key=lambda n: abs(n - 10_000))
    return median(run["us_per_task"] for run in runs if run["n"] == size), size


def _metg(records: list[Record], row: Row | None, name: str, backend: str, pattern: str) -> Iterator[Row]:
    found: dict[str, list[float]] = {}
    for record in records:
        if (record["mode"], record.get("pattern")) == ("metg", pattern) and record.get("metg_us"):
            found.setdefault(record["peer"], []).append(record["metg_us"])
    figures = {peer: median(values) for peer, values in found.items()}
    ours = figures.pop(_OURS + backend, row.value if row is not None else None)
    peers = {peer: figure for peer, figure in figures.items() if _is_peer(peer) and _backend_of(peer) == backend}
    if ours is None or not peers:
        return
    best = min(peers, key=lambda peer: peers[peer])
    yield Row("peers", name, ours / peers[best], _METG_GOAL, detail=f"{ours:.1f} µs, {best} {peers[best]:.1f}")


def _is_peer(name: str) -> bool:
    """Whether it is another engine, and one that runs tasks."""
    return not name.startswith(("raw-", _OURS)) and "noop" not in name


def _backend_of(peer: str) -> str:
    """To which of our backends an engine compares: whether its tasks share the memory of the program."""
    return "threads" if "threads" in peer or peer == "dask-delayed" else "processes"
