"""What stands above all sections: whose run it is, what to know before reading on, the first figures. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from asyncflow.display.markup import Markup, tag
from asyncflow.graph import State
from asyncflow.report.analysis import Analysis
from asyncflow.report.clocks import NOTICEABLE
from asyncflow.report.page.elements import join, said
from asyncflow.report.run import Run
from asyncflow.report.words import duration, moment, number, one_line, percent


def head(run: Run) -> Markup:
    """Whose run this is, when, and where."""
    session = run.session
    ended = session.ended is not None
    pill = tag("span", "ended" if ended else "not ended", class_=f"pill {'good' if ended else 'bad'}")
    lasted = duration(session.ended if session.ended is not None else run.last)
    facts: list[object] = [f"{moment(session.began)}, {lasted}"]
    if session.host:
        facts.append(join([Markup("on "), said(session.host)]))
    if session.command:
        facts.append(tag("code", said(one_line(shlex.join(session.command)))))
    versions = [f"{what_} {said(version)}" for what_, version in _versions(run) if version]
    facts.append(Markup(", ".join(versions)))
    line = join(tag("span", each, Markup(" &ensp; ")) for each in facts if each)
    return join([tag("h1", "Run ", said(session.uid), pill), tag("p", line, class_="faint")])


def _versions(run: Run) -> list[tuple[str, str]]:
    return [("asyncflow", run.session.version), ("Python", run.session.python)]


def notes(run: Run) -> Markup:
    """What a reader must know before believing the rest."""
    found = list(_notes(run))
    return tag("ul", *(tag("li", note) for note in found), class_="notes") if found else Markup("")


def _notes(run: Run) -> Iterator[object]:
    session = run.session
    if session.ended is None:
        yield (
            f"The file ends at {moment(session.began + run.last)}, before the session does: the run goes on, or was "
            "killed. What had not ended is shown as if it had gone on until then."
        )
    for host, skew in run.skews.items():
        if abs(skew) >= NOTICEABLE:
            way = "ahead of" if skew > 0 else "behind"
            yield join(
                [
                    Markup("The clock of "),
                    said(host),
                    Markup(f" is at least {duration(abs(skew))} {way} the engine's; its times are corrected by that."),
                ]
            )
    if run.unreadable:
        yield f"{number(run.unreadable, 'line')} of the file could not be read as events: left out."
    if session.dropped:
        yield f"{number(session.dropped, 'event')} could not be written when the run took place, and are missing here."
    if len(run.sessions) > 1:
        yield f"The file holds {len(run.sessions)} sessions; another one is shown by --session."


def figures(analysis: Analysis) -> Markup:
    """The numbers that one looks at first."""
    run, everything = analysis.run, analysis.everything
    states = everything.states
    ended = [f"{number(states[state])} {str(state).lower()}" for state in State if states[state]]
    shown = [
        (duration(run.makespan), "makespan: first call to last end"),
        (number(everything.calls), f"tasks: {', '.join(ended) or 'none'}"),
        (
            duration(analysis.path.seconds),
            f"critical path, {percent(analysis.path.seconds, run.makespan)} of the makespan",
        ),
        (percent(analysis.efficiency, 1.0), "efficiency: lower bound / makespan"),
        (
            percent(analysis.core_seconds, analysis.cores * run.makespan),
            f"of {number(analysis.cores, 'core')} in use: {duration(analysis.core_seconds)} of work",
        ),
        (number(everything.retries), "attempts that were tried again"),
    ]
    return tag(
        "div",
        *(tag("div", tag("b", value), tag("span", words), class_="figure") for value, words in shown),
        class_="figures",
    )


def explained() -> Markup:
    """What the words mean."""
    words = [
        ("makespan", "from the first call to the end of the last task"),
        ("lower bound", "the critical path, or all work of a backend divided among its cores: the larger of these"),
        ("waiting for dependencies", "from the call to the end of the last dependency"),
        ("queued in the engine", "from there until it was handed to its backend, which takes only so many at once"),
        ("queued at the backend", "from there until its body began"),
        ("between attempts", "from the end of an attempt that failed until the next was handed over"),
    ]
    return tag("dl", *(join([tag("dt", word), tag("dd", meaning)]) for word, meaning in words))
