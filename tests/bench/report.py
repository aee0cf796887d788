"""The result as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.machine import QUIET
from tests.bench.rows import Row

TITLES = {
    "threads": "No-op tasks on threads: time / loop.run_in_executor by hand",
    "processes": "No-op tasks on processes: time / ProcessPoolExecutor.submit by hand",
    "dask": "No-op tasks on a Dask cluster of this machine: time / Client.submit by hand",
    "arrays": "NumPy array through a task on a process and back: time / ProcessPoolExecutor.submit",
    "growth": "Cost of a task in a large graph / in a small one, on threads",
    "edges": "Cost of an edge at the most edges / at the fewest, on threads",
    "memory": "Memory, on threads",
    "telemetry": "Telemetry, on threads: processor time a task more than without; share of the time of 1 ms tasks",
    "metg": "METG(50 %): work in a task at which half of the ideal rate is kept",
    "peers": "Against other engines, measured apart",
}
_HEAD = ("", "here", "at most", "", "half within", "others", "")
_ALIGNED_LEFT = {0, 3, 6}


def table(rows: Sequence[Row]) -> str:
    """Groups of lines, each with its title."""
    cells = [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(_HEAD, *cells, strict=True)]
    lines = [_line(_HEAD, widths)]
    group = None
    for row, line in zip(rows, cells, strict=True):
        if row.group != group:
            group = row.group
            lines += ["", TITLES[group]]
        lines.append(_line(line, widths))
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.ljust(width) if column in _ALIGNED_LEFT else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return ("  " + "  ".join(padded)).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    spread = "" if row.spread is None else f"{_number(row.spread[0])} - {_number(row.spread[1])}"
    noise = "" if row.noise is None else f"{row.noise:.0%}" + (" !" if row.noise >= QUIET else "  ")
    verdict = {True: "met", False: "NOT met", None: ""}[row.met]
    return row.name, _figure(row.value, row.unit), _figure(row.goal, row.unit, ""), verdict, spread, noise, row.detail


def _figure(value: float | None, unit: str, missing: str = "-") -> str:
    return missing if value is None else f"{_number(value)} {unit}".rstrip()


def _number(value: float) -> str:
    if abs(value) < 0.0005:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def summary(rows: Sequence[Row]) -> str:
    goals = [row for row in rows if row.met is not None]
    missed = [f"{row.group}/{row.name}" for row in goals if not row.met]
    text = f"{len(goals) - len(missed)} of {len(goals)} goals met"
    return f"{text}; not met: {', '.join(missed)}" if missed else text


def write(path: Path, head: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """`head` first, then each row with whether its goal was met."""
    entries = [{**asdict(row), "met": row.met} for row in rows]
    path.write_text(json.dumps({**head, "rows": entries}, indent=1, ensure_ascii=False) + "\n")
