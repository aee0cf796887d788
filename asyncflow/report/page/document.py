"""A run as one HTML file that needs nothing else: no network, no fonts, and for its tables no script.

The charts are drawn by `timeline.js`, on a canvas, and not by a library: of the two that were tried on 5,000 tasks one
took 3 s or more to draw and brings 70 MB, the other took 1 to 2 s, brings 150 MB in ten packages, and would need
scripts of our own for lanes, search and the critical path all the same. This takes 0.4 s and brings nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from string import Template

import orjson

from asyncflow.display.markup import Markup, safe, tag
from asyncflow.report.analysis import Analysis
from asyncflow.report.failures import troubles
from asyncflow.report.page import elements, head, time_spent, use, who, wrong
from asyncflow.report.page.timeline import timeline
from asyncflow.report.words import number, readable

#: What would end the element that data stands in, or begin a comment there: all of HTML's own characters.
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(analysis: Analysis) -> str:
    """The whole page."""
    run = analysis.run
    data = timeline(run, analysis.path.tasks, analysis.used)
    style, script = _file("page.css"), _file("timeline.js")
    parts = list(_sections(analysis))
    return Template(_file("page.html")).substitute(
        title=safe(f"Run {readable(run.session.uid)}"),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        head=head.head(run),
        links=_links(parts),
        notes=head.notes(run),
        figures=head.figures(analysis),
        left_out=_left_out(data["left_out"]),
        sections=elements.join(markup for _, _, markup in parts),
        explained=head.explained(),
        data=embedded(data),
    )


def _sections(analysis: Analysis) -> Iterator[tuple[str, str, Markup]]:
    """Where each is found, what its link says, and the section; those with nothing to say are left out."""
    run = analysis.run
    found = [
        ("time", "Where the time went", time_spent.time_spent(analysis)),
        ("path", "Critical path", time_spent.critical(analysis)),
        ("wrong", "What went wrong", wrong.wrong(run, troubles(run))),
        ("use", "Utilisation", use.utilisation(analysis)),
        ("workflows", "Workflows", who.workflows(run)),
        ("workers", "Workers", who.workers(run)),
        ("loop", "Event loop", who.held_up(run)),
    ]
    return (each for each in found if each[2])


def _links(parts: list[tuple[str, str, Markup]]) -> Markup:
    places = [("timeline", "Timeline"), *((place, words) for place, words, _ in parts)]
    return elements.join(tag("a", words, href=f"#{place}") for place, words in places)


def _left_out(count: int) -> Markup:
    if not count:
        return Markup("")
    words = (
        f"{number(count, 'bar')} left out: a browser cannot draw more. Shown are all that did not end well, the "
        "critical path, and then what ran longest; the tables count everything."
    )
    return tag("p", words, class_="notes")


def embedded(data: object) -> str:
    """JSON that may stand in a script element, whatever texts are in it."""
    text = orjson.dumps(data, option=orjson.OPT_NON_STR_KEYS).decode()
    for character, escape in _ESCAPED.items():
        text = text.replace(character, escape)
    return text


def _file(name: str) -> str:
    return files("asyncflow.report.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a content security policy knows an element's text by: nothing else is run or used."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
