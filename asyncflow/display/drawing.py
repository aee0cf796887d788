"""A picture of the graph as SVG: a box for each call, or for each task name where there are many calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from asyncflow.display.counts import Counts, count, segments
from asyncflow.display.layout import Stop, columns_of, last_stop, passages, rows_of
from asyncflow.display.markup import COLOURS, Markup, badge, tag
from asyncflow.graph import State

if TYPE_CHECKING:
    from asyncflow.component import Component
    from asyncflow.scheduler import Scheduler

#: More calls than this are drawn as groups.
_MOST = 200
#: How many calls are looked at for the edges between groups, and how many groups are drawn.
_LOOKED_AT = 50_000
_GROUPS = 60
#: Pixels: a character of a label, the space between columns, and the height of a picture whose rows must shrink.
_CHARACTER = 7
_GAP = 60
_HEIGHT = 560
#: The heights of a row of calls and of groups, and from which on there is room for a label.
_CALL_ROW, _GROUP_ROW, _LABELLED = 30.0, 52.0, 18.0
#: Space above for captions, at the sides for edges that lead back, and below for each of these.
_MARGIN, _SIDE, _BACK = 34, 40, 16
#: Characters of a label.
_LABEL = 24
#: The state that decides the frame of a group: what went wrong before what goes on.
_FRAME = (State.FAILED, State.CANCELLED, State.RUNNING, State.PENDING, State.DONE)


@dataclass(frozen=True)
class Box:
    """A call, or all calls of a name."""

    label: str
    #: Shown while the mouse rests on it.
    title: str
    counts: Counts


@dataclass(frozen=True)
class Picture:
    """What is drawn, before it has a size."""

    boxes: Mapping[int, Box]
    #: In which column from the left each box stands.
    columns: Mapping[int, int]
    #: From which box to which, and how many dependencies it stands for.
    edges: Mapping[tuple[int, int], int]
    #: Edges that stand for more than that: not all their dependencies are known any more.
    understated: frozenset[tuple[int, int]] = frozenset()
    #: Whether a box stands for all calls of a name.
    grouped: bool = False


def draw(scheduler: Scheduler) -> Markup:
    """The calls that the engine still knows, with their dependencies."""
    known = list(islice(reversed(scheduler.known()), _LOOKED_AT))
    after = {component.seq: component.after for component in known}
    if len(known) > _MOST:
        names = {component.seq: component.name for component in known}
        return _with_legend(_groups(count(scheduler), names, after))
    boxes = {component.seq: _call(component) for component in known}
    edges = Counter((source, node) for node, sources in after.items() for source in sources if source in after)
    return _with_legend(Picture(boxes, columns_of(after), edges))


def _call(component: Component) -> Box:
    state = component.state
    done, failed, cancelled, running = (
        int(state is each) for each in (State.DONE, State.FAILED, State.CANCELLED, State.RUNNING)
    )
    counts = Counts(component.name, 1, done, failed, cancelled, running)
    return Box(component.name, f"{component.name} {component.uid} {state}", counts)


def _groups(counts: list[Counts], names: Mapping[int, str], after: Mapping[int, tuple[int, ...]]) -> Picture:
    """Totals are those of the engine; the edges and columns are those of the calls in `after`."""
    drawn = counts[-_GROUPS:]
    numbers = {each.name: number for number, each in enumerate(drawn)}
    group = {node: numbers[name] for node, name in names.items() if name in numbers}
    edges: Counter[tuple[int, int]] = Counter()
    understated: set[tuple[int, int]] = set()
    for node, sources in after.items():
        if node in group:
            its = [(group[source], group[node]) for source in sources if source in group]
            edges.update(its)
            if 0 in sources[-1:]:
                understated.update(its)
    if sum(each.calls for each in counts) > len(names):
        understated.update(edges)
    boxes = {numbers[each.name]: Box(each.name, _sentence(each), each) for each in drawn}
    return Picture(boxes, _columns_of_groups(numbers, names, after, edges), edges, frozenset(understated), grouped=True)


def _columns_of_groups(
    numbers: Mapping[str, int],
    names: Mapping[int, str],
    after: Mapping[int, tuple[int, ...]],
    edges: Iterable[tuple[int, int]],
) -> dict[int, int]:
    """Names may depend on each other in circles: what stands further to the left on average comes first."""
    standing: dict[int, list[int]] = {number: [] for number in numbers.values()}
    for node, column in columns_of(after).items():
        if (number := numbers.get(names[node])) is not None:
            standing[number].append(column)
    order = sorted(standing, key=lambda number: sum(standing[number]) / max(1, len(standing[number])))
    place = {number: rank for rank, number in enumerate(order)}
    forward: dict[int, list[int]] = {rank: [] for rank in range(len(order))}
    for source, target in edges:
        if place[source] < place[target]:
            forward[place[target]].append(place[source])
    return {order[rank]: column for rank, column in columns_of(forward).items()}


def _sentence(counts: Counts) -> str:
    return f"{counts.name}: {', '.join(f'{number} {state}' for state, number in counts.by_state().items())}"


def _with_legend(picture: Picture) -> Markup:
    if not picture.boxes:
        return tag("div", "no calls")
    states: Counter[State] = Counter()
    for box in picture.boxes.values():
        states.update(box.counts.by_state())
    legend = [badge(state, f"{states[state]} {str(state).lower()} ") for state in State if states[state]]
    above = tag("div", *legend, "by task name" if picture.grouped else "")
    return tag("div", above, tag("div", _svg(picture), style="max-height:620px;max-width:100%;overflow:auto"))


class _Frame:
    """Turns columns and rows into pixels."""

    def __init__(self, picture: Picture) -> None:
        self.columns = picture.columns
        self._rows = rows_of(picture.columns, picture.edges)
        longest = max(len(_cut(box.label)) for box in picture.boxes.values())
        rows = max(self._rows.values()) + 0.5
        # The height of a row: less where there are many calls, down to a strip for each.
        self._row = _GROUP_ROW if picture.grouped else max(6.0, min(_CALL_ROW, _HEIGHT / rows))
        self.labelled = self._row >= _LABELLED
        self.wide = max(60, longest * _CHARACTER + 16)
        self.tall = self._row * (0.75 if self.labelled else 0.85)
        self._above = 2 if self.labelled else _MARGIN
        #: Those that lead back, each with how far below everything it runs.
        self.back = {edge: number for number, edge in enumerate(filter(self._leads_back, picture.edges), 1)}
        self._side = _SIDE if self.back else 2
        self.floor = self._above + rows * self._row
        self.width = (max(self.columns.values()) + 1) * (self.wide + _GAP) - _GAP + 2 * self._side
        self.height = self.floor + len(self.back) * _BACK + 2

    def _leads_back(self, edge: tuple[int, int]) -> bool:
        source, target = edge
        return source != target and self.columns[target] <= self.columns[source]

    def left(self, stop: Stop) -> int:
        return self.left_of(stop[1] if isinstance(stop, tuple) else self.columns[stop])

    def left_of(self, column: int) -> int:
        return self._side + column * (self.wide + _GAP)

    def middle(self, stop: Stop) -> float:
        return self._above + self._rows[stop] * self._row

    def top(self, node: int) -> float:
        return self.middle(node) - self.tall / 2


def _svg(picture: Picture) -> Markup:
    frame = _Frame(picture)
    parts = [*_edges(frame, picture)]
    parts += [_box(frame, node, box, picture.grouped) for node, box in picture.boxes.items()]
    if not frame.labelled:
        parts += _captions(frame, picture)
    size = {"width": frame.width, "height": round(frame.height)}
    return tag("svg", *parts, xmlns="http://www.w3.org/2000/svg", font_family="sans-serif", font_size=12, **size)


def _edges(frame: _Frame, picture: Picture) -> Iterator[Markup]:
    """Lines, what several edges share once, and how many dependencies an edge stands for where boxes are groups."""
    yield from (_line(_step(frame, *step)) for step in passages(frame.columns, picture.edges))
    for edge, number in picture.edges.items():
        source, target = edge
        if edge in frame.back:
            curve, x, y = _back(frame, source, target, frame.back[edge])
        elif source == target:
            curve, x, y = _loop(frame, source)
        else:
            before = last_stop(source, target, frame.columns)
            curve, (x, y) = _step(frame, before, target), _beside(frame, before, target)
        yield _line(curve)
        if picture.grouped:
            yield _text(f"{number}+" if edge in picture.understated else str(number), x, y, font_size=10)


def _line(curve: str) -> Markup:
    return tag("path", d=curve, fill="none", stroke="#7b8794", stroke_opacity=0.6)


def _step(frame: _Frame, before: Stop, stop: Stop) -> str:
    """From the right of one to the left of the next, and straight through where that is a passage."""
    x, y, to_x, to_y = frame.left(before) + frame.wide, frame.middle(before), frame.left(stop), frame.middle(stop)
    bend = (to_x - x) / 2
    curve = f"M{x},{y:.1f} C{x + bend:.0f},{y:.1f} {to_x - bend:.0f},{to_y:.1f} {to_x},{to_y:.1f}"
    return f"{curve} h{frame.wide}" if isinstance(stop, tuple) else curve


def _beside(frame: _Frame, before: Stop, stop: Stop) -> tuple[float, float]:
    """Where a number stands: at a third of the way, where lines neither begin together nor end together nor cross."""
    y, to_y = frame.middle(before), frame.middle(stop)
    return frame.left(before) + frame.wide + 0.37 * _GAP, y + 0.26 * (to_y - y) - 3


def _back(frame: _Frame, source: int, target: int, number: int) -> tuple[str, float, float]:
    """Around everything: down to the right of the one, back below all, and up to the left of the other."""
    x, y, to_x, to_y = frame.left(source) + frame.wide, frame.middle(source), frame.left(target), frame.middle(target)
    aside, low = 12 + 4 * (number % 6), frame.floor + (number - 0.25) * _BACK
    down, up = x + aside, to_x - aside
    curve = (
        f"M{x},{y:.1f} Q{down},{y:.1f} {down},{y + 12:.1f} V{low - 12:.1f} Q{down},{low:.1f} {down - 12},{low:.1f} "
        f"H{up + 12} Q{up},{low:.1f} {up},{low - 12:.1f} V{to_y + 12:.1f} Q{up},{to_y:.1f} {to_x},{to_y:.1f}"
    )
    return curve, (down + up) / 2, low - 3


def _loop(frame: _Frame, node: int) -> tuple[str, float, float]:
    """From a box to itself, below it."""
    left, bottom, sag = frame.left(node), frame.top(node) + frame.tall, 0.2 * frame.tall
    x, to_x = left + frame.wide * 0.5, left + frame.wide * 0.3
    curve = f"M{x:.0f},{bottom:.1f} c0,{sag:.1f} {to_x - x:.0f},{sag:.1f} {to_x - x:.0f},0"
    return curve, left + frame.wide * 0.6, bottom + 9


def _box(frame: _Frame, node: int, box: Box, grouped: bool) -> Markup:
    left, top = frame.left(node), frame.top(node)
    place = {"x": left, "y": f"{top:.1f}", "width": frame.wide, "height": f"{frame.tall:.1f}"}
    worst = next(state for state in _FRAME if state in box.counts.by_state())
    parts = [tag("title", box.title), *_filling(frame, box.counts, left, top)]
    parts.append(tag("rect", fill="none", stroke=COLOURS[worst], **place))
    middle, centre = top + frame.tall / 2, left + frame.wide / 2
    if frame.labelled:
        parts.append(_text(_cut(box.label), centre, middle + (-4 if grouped else 4)))
    if grouped:
        parts.append(_text(f"{box.counts.ended}/{box.counts.calls}", centre, middle + 12))
    return tag("g", *parts)


def _filling(frame: _Frame, counts: Counts, left: int, top: float) -> Iterator[Markup]:
    """The inside of a box in the colours of its calls' states; pale where text is to be read on it."""
    look = {"height": f"{frame.tall:.1f}", "fill_opacity": 0.25 if frame.labelled else 1}
    for state, cells in segments(counts, frame.wide).items():
        yield tag("rect", x=left, y=f"{top:.1f}", width=cells, fill=COLOURS[state], **look)
        left += cells


def _captions(frame: _Frame, picture: Picture) -> Iterator[Markup]:
    """What the strips of each column are, where they have no labels."""
    labels: dict[int, Counter[str]] = {}
    for node, column in picture.columns.items():
        labels.setdefault(column, Counter())[picture.boxes[node].label] += 1
    for column, names in labels.items():
        centre = frame.left_of(column) + frame.wide / 2
        (first, number), *others = names.most_common()
        yield _text(f"{_cut(first)} \N{MULTIPLICATION SIGN} {number}", centre, 14)
        if others:
            yield _text(f"and {len(others)} other tasks" if len(others) > 1 else _cut(others[0][0]), centre, 29)


def _text(text: str, x: float, y: float, **more: object) -> Markup:
    return tag("text", text, x=round(x), y=f"{y:.1f}", text_anchor="middle", fill="currentColor", **more)


def _cut(label: str) -> str:
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"
