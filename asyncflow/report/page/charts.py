"""Pictures that need no script: stacked bars and curves as SVG. Colours are the style sheet's, by class. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncflow.display.markup import Markup, tag

#: Units of a picture's width and height; it is stretched to the room that there is.
_WIDE, _HIGH = 1000, 100


def stack(parts: Iterable[tuple[str, str, float]], whole: float) -> Markup:
    """One bar of several parts: class, title and value of each; `whole` is what its full width stands for."""
    pieces, left = [], 0.0
    for kind, title, value in parts:
        wide = value / whole * _WIDE if whole > 0 else 0.0
        if wide > 0:
            place = {"x": f"{left:.2f}", "width": f"{wide:.2f}", "height": 1}
            pieces.append(tag("rect", tag("title", title), class_=kind, y=0, **place))
            left += wide
    return tag("svg", *pieces, class_="stack", viewBox=f"0 0 {_WIDE} 1", preserveAspectRatio="none", aria_hidden="true")


def swatch(kind: str) -> Markup:
    """The colour of a part, for a key."""
    square = tag("rect", class_=kind, width=12, height=12)
    return tag("svg", square, viewBox="0 0 12 12", aria_hidden="true")


def line_swatch(kind: str) -> Markup:
    """The look of a line, for a key."""
    return tag("svg", tag("line", class_=kind, x1=0, y1=6, x2=12, y2=6), viewBox="0 0 12 12", aria_hidden="true")


def area(values: Sequence[float], most: float, title: str) -> Markup:
    """Values at equal distances, each a step, from 0 to `most`."""
    wide = _WIDE / max(1, len(values))
    steps = "".join(
        f"L{place * wide:.1f},{_y(value, most)}H{(place + 1) * wide:.1f}" for place, value in enumerate(values)
    )
    return _framed(title, tag("path", class_="area", d=f"M0,{_HIGH}{steps}V{_HIGH}Z"))


def lines(curves: Iterable[tuple[str, Sequence[tuple[float, float]]]], begin: float, end: float, title: str) -> Markup:
    """Curves of a class each, through points of time and value; values are parts of the height, 0 to 1."""
    span = max(end - begin, 1e-9)
    paths = []
    for kind, points in curves:
        inside = [(time, value) for time, value in points if begin <= time <= end]
        places = " ".join(f"{(time - begin) / span * _WIDE:.1f},{_y(value, 1.0)}" for time, value in inside)
        if len(inside) > 1:
            paths.append(tag("path", class_=f"line {kind}", d=f"M{places}"))
    return _framed(title, *paths)


def _y(value: float, most: float) -> str:
    share = min(1.0, max(0.0, value / most)) if most > 0 else 0.0
    return f"{_HIGH - share * _HIGH:.1f}"


def _framed(title: str, *content: Markup) -> Markup:
    frame = {"viewBox": f"0 0 {_WIDE} {_HIGH}", "preserveAspectRatio": "none", "role": "img"}
    return tag("svg", tag("title", title), *content, aria_label=title, **frame)


def curve(picture: Markup, scale: Sequence[str], times: Sequence[str]) -> Markup:
    """A picture with what its height and its width mean, from the top and from the left."""
    beside = tag("div", *(tag("span", each) for each in scale), class_="scale")
    below = tag("div", *(tag("span", each) for each in times), class_="times")
    return tag("div", beside, picture, below, class_="curve")


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of its neighbours; a session of a week has a hundred thousand."""
    if len(points) <= most:
        return list(points)
    found = []
    for place in range(most):
        part = points[place * len(points) // most : (place + 1) * len(points) // most]
        found.append((sum(time for time, _ in part) / len(part), sum(value for _, value in part) / len(part)))
    return found
