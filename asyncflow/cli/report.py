"""`asyncflow report`: a run as an HTML page, and its figures in a few lines."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from asyncflow.cli.runs import read, write

if TYPE_CHECKING:
    from asyncflow.report.analysis import Analysis


def report(path: str, output: str | None, session: str | None, opens: str) -> int:
    """Write the page and print the figures."""
    run, file = read(path, session)
    from asyncflow.report.analysis import analyse
    from asyncflow.report.page.document import page

    analysis = analyse(run)
    written = write(page(analysis).encode(errors="replace"), output, file.with_suffix(".html"))
    if written is None:
        return 0
    rows = [*_rows(analysis), ("report", written)]
    width = max(len(title) for title, _ in rows)
    for title, value in rows:
        click.echo(f"{title:{width}}  {value}")
    if opens == "yes" or (opens == "auto" and _has_screen()):
        webbrowser.open(Path(written).resolve().as_uri())
    return 0


def _rows(analysis: Analysis) -> Iterator[tuple[str, str]]:
    from asyncflow.graph import State
    from asyncflow.report.words import duration, moment, number, percent, readable

    run = analysis.run
    states = [
        f"{number(count)} {str(state).lower()}" for state in State if (count := analysis.everything.states[state])
    ]
    ended = "" if run.session.ended is not None else ", not ended"
    yield "session", f"{readable(run.session.uid)}, {moment(run.session.began)}{ended}"
    yield "tasks", f"{number(analysis.everything.calls)} ({', '.join(states) or 'none'})"
    yield "makespan", duration(run.makespan)
    path = f"critical path {duration(analysis.path.seconds)} of {number(len(analysis.path.tasks), 'task')}"
    yield "lower bound", f"{duration(analysis.lower_bound)} ({path})"
    yield "efficiency", percent(analysis.efficiency, 1.0)
    if analysis.cores:
        used = percent(analysis.core_seconds, analysis.cores * run.makespan)
        yield "cores", f"{used} of {number(analysis.cores)} in use"


def _has_screen() -> bool:
    """Whether somebody sits in front of this machine, as far as can be told: nobody does on a login node."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform == "darwin" or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))
