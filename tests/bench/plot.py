"""The picture: ratios as bars against their goals, efficiency against the work in a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # before pyplot is imported: there may be no display here

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from tests.bench.contenders import LOCAL, RAW
from tests.bench.metg import PATTERNS
from tests.bench.rows import Row

_BARS = {
    "threads": "threads: time / run_in_executor",
    "processes": "processes: time / ProcessPoolExecutor",
    "growth": "threads: cost a task, large / small graph",
}
_COLOURS = {"threads": "tab:blue", "processes": "tab:orange"}


def draw(path: Path, head: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """What was not measured leaves its panel empty."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    panels = axes.flatten().tolist()
    for axis, (group, title) in zip(panels[:3], _BARS.items(), strict=True):
        _bars(axis, title, [row for row in rows if row.group == group and row.value is not None])
    for axis, pattern in zip(panels[3:5], PATTERNS, strict=True):
        _curves(axis, pattern, {row.name: row for row in rows if row.group == "metg" and row.data})
    others = [row for row in rows if row.group in ("edges", "arrays", "memory") and row.value is not None and row.goal]
    _bars(panels[5], "the rest: value / goal", others, by_goal=True)
    machine = head["machine"]
    figure.suptitle(
        f"{machine['processor']}, {machine['cores']} cores, {machine['python']}" + (", quick" if head["quick"] else "")
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _bars(axis: Axes, title: str, rows: Sequence[Row], by_goal: bool = False) -> None:
    axis.set_title(title)
    for place, row in enumerate(rows):
        assert row.value is not None
        assert row.goal is not None
        scale = row.goal if by_goal else 1.0
        low, high = (row.value, row.value) if row.spread is None else row.spread
        axis.bar(
            place,
            row.value / scale,
            yerr=[[max(0.0, row.value - low) / scale], [max(0.0, high - row.value) / scale]],
            capsize=3,
            color="tab:green" if row.met else "tab:red",
        )
        label = "" if place else "goal: at most"
        axis.hlines(row.goal / scale, place - 0.45, place + 0.45, color="black", linewidth=2, label=label)
    names = [f"{row.group}\n{row.name}" if by_goal else row.name for row in rows]
    axis.set_xticks(range(len(rows)), names, rotation=30, ha="right")
    axis.margins(y=0.2)  # for the legend
    axis.set_ylim(bottom=0)
    if rows:
        axis.legend(loc="upper right")


def _curves(axis: Axes, pattern: str, rows: Mapping[str, Row]) -> None:
    axis.set_title(f"METG(50 %), {pattern}")
    for backend in LOCAL:
        row = rows.get(f"{backend} {pattern}")
        if row is not None:
            _curve(axis, row.data["curve"], f"{backend}: {_metg(row.value)}", _COLOURS[backend], "-")
            raw = f"{RAW[backend]}: {_metg(row.data['raw_us'])}"
            _curve(axis, row.data["raw_curve"], raw, _COLOURS[backend], "--")
    axis.axhline(0.5, color="black", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel("work in a task (µs)")
    axis.set_ylabel("of the ideal rate")
    axis.set_ylim(0, 1.5)  # room for the legend
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    if axis.lines[1:]:
        axis.legend(loc="upper left")


def _curve(axis: Axes, points: Sequence[Mapping[str, float]], label: str, colour: str, style: str) -> None:
    grains = [point["grain"] for point in points]
    axis.plot(
        grains, [point["efficiency"] for point in points], style, color=colour, marker="o", markersize=3, label=label
    )


def _metg(microseconds: float | None) -> str:
    return "not reached" if microseconds is None else f"{microseconds:.0f} µs"
