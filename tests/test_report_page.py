"""The HTML page of a run: what it says, that it needs nothing and believes no text; also in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from asyncflow.report.analysis import analyse
from asyncflow.report.bars import RETRIED, STATES, bars_of
from asyncflow.report.page import timeline
from asyncflow.report.page.document import embedded, page
from asyncflow.report.reading import read_run
from asyncflow.report.run import Run
from asyncflow.telemetry import names
from tests.support.browser import Browser, browser, needs_browser
from tests.support.runs import MANY_POOLS, STDERR, Lines, campaign

RUN = Path("run.jsonl")
PAGE = Path("run.html")

#: Texts that would do something if anybody took them for more than texts.
HOSTILE = [
    "<script>hacked(1)</script>",
    "</script><script>hacked(2)</script>",
    "<!--<script>hacked(3)",
    '"><img src=x onerror=hacked(4)>',
    "'><svg onload='hacked(5)'>",
    "</style><style>*{display:none}</style>",
    "</title></head><h1>another page</h1>",
    "javascript:hacked(6)",
    "${hacked(7)} $title {{hacked(8)}} %(x)s",
    "&lt;b&gt; &amp; <b>bold</b>",
    "]]>*/--></pre></td></details>",
    "\u2028hacked(9)\u2029",
    'back\\slash \\u003c \\" \'quotes\' "double"',
]


class Contents(HTMLParser):
    """The elements and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.raw:
            self._inside = tag
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw[self._inside][-1] += data
        else:
            self.text += data


def read(lines: Lines) -> Run:
    return read_run(lines.write(RUN))


def page_of(lines: Lines) -> str:
    text = page(analyse(read(lines)))
    PAGE.write_text(text, encoding="utf-8")
    return text


def hostile() -> Lines:
    """A run in which every text of a user's is hostile somewhere."""
    lines = Lines(HOSTILE[0])
    lines.start([{"name": HOSTILE[1], "workers": 2, "cores": 2}])
    lines.events[-1][1]["attributes"][names.COMMAND_ARGS] = HOSTILE
    lines.events[-1][1]["node_id"] = HOSTILE[2]
    for place, text in enumerate(HOSTILE):
        uid, begin = f"task.{place:06d}{text}", 10.0 * place
        lines.create(uid, begin, text, workflow=text, backend=text, kind="executable", parent=text)
        lines.submit(uid, begin)
        lines.begin(uid, begin + 1, text, text)
        more = {names.COMMAND_ARGS: [text, text], names.STDERR: text}
        lines.retry(uid, begin + 4, text, text, more=more)
        lines.submit(uid, begin + 4, 2)
        lines.begin(uid, begin + 5, text, text, attempt=2)
        if place % 3:
            lines.fail(uid, begin + 9, text, text, attempt=2, worker=text, host=text, more=more)
        else:
            lines.complete(uid, begin + 9, text, text, attempt=2)
        lines.add(names.RESOURCE_UPDATE, begin, {"cpu_percent": 1, "memory_total": 1}, host=text)
        lines.add(names.LOOP_BLOCKED, begin, {names.WHO: text, names.WHERE: text, names.SECONDS: 1})
        lines.add(text, begin)
    lines.create("cancelled", 1.0)
    lines.cancel("cancelled", 2.0, HOSTILE[1])
    return lines


# --- the text of the page ---------------------------------------------------------------------------------------------


def test_a_page_tells_what_happened() -> None:
    text = Contents(page_of(campaign(200, wrong=0.15))).text
    for words in (
        "Run flow-3f9c21aa",
        "2025-11-21 09:00:00 UTC",
        "makespan: first call to last end",
        "The clock of n02 is at least",
        "mDiffFit",
        "ExecutableError, exit code 3",
        "plate solution did not converge after 250 iterations",
        "mDiffFit -s fit.txt 'a b.fits'",
        "others failed or did not run because of it",
        "worker lost",
        "mosaic-04",
        "cluster: ",
        "coroutine 'collect'",
        "campaign.Checkpoint",
    ):
        assert words in text, words


def test_a_page_loads_nothing_and_runs_only_its_own_script() -> None:
    text = page_of(campaign(50))
    contents = Contents(text)
    loaded = [
        each
        for each in contents.elements
        if "src" in each[1] or each[0] in ("link", "iframe", "img", "object", "embed", "base", "form")
    ]
    assert loaded == []
    assert re.findall(r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", text) == []
    [policy] = [str(each["content"]) for name, each in contents.elements if each.get("http-equiv")]
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for kind, raw in (("style-src", contents.raw["style"][0]), ("script-src", contents.raw["script"][1])):
        digest = base64.b64encode(hashlib.sha256(raw.encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"
    assert not [each for each in contents.elements if "style" in each[1]], "what the policy would not let through"


def test_no_text_of_a_run_is_taken_for_html() -> None:
    tame = Contents(page_of(campaign(50)))
    contents = Contents(page_of(hostile()))
    assert len(contents.raw["script"]) == len(tame.raw["script"]) == 2
    assert len(contents.raw["style"]) == 1
    assert {name for name, _ in contents.elements} <= {name for name, _ in tame.elements} | {
        "details",
        "summary",
        "pre",
    }
    for _, attributes in contents.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    for text in HOSTILE:
        assert text in contents.text
    data = json.loads(contents.raw["script"][0])
    assert set(HOSTILE) <= set(data["names"])
    assert set(HOSTILE) <= set(data["workflows"])


@pytest.mark.parametrize("text", [*HOSTILE, "</SCRIPT >", "\x00", "\U0001f600"])
def test_data_stays_data(text: str) -> None:
    inside = embedded({"text": text})
    assert json.loads(inside) == {"text": text}
    assert not set(inside) & set("<>&\u2028\u2029")


def test_what_a_terminal_would_obey_is_left_out() -> None:
    lines = Lines()
    lines.start()
    lines.create("task.000001", 0.0, "\x1b]0;owned\x07work")
    lines.fail("task.000001", 1.0, "\x1b[31mbad\x1b[0m \u202etxt", attempt=0)
    text = page_of(lines)
    assert "\x1b" not in text
    assert "\\u001b" not in text
    assert "bad \ufffdtxt" in text


def test_a_killed_run_and_odd_files_are_told_of() -> None:
    lines = Lines()
    lines.start()
    lines.create("task.000001", 0.0, "simulate")
    lines.submit("task.000001", 1.0)
    lines.begin("task.000001", 2.0)
    Lines("earlier", lines.began - 100).start()
    RUN.write_text(lines.text() + "torn")
    text = Contents(page(analyse(read_run(RUN)))).text
    assert "not ended" in text
    assert "the run goes on, or was killed" in text
    assert "1 line of the file could not be read as events: left out" in text
    assert "Had not ended when the file did" in text


@pytest.mark.parametrize("tasks", [0, 1])
def test_a_run_in_which_hardly_anything_happened_has_a_page(tasks: int) -> None:
    lines = Lines()
    lines.start([{"name": "threads", "workers": 1, "cores": 1}])
    for number in range(tasks):
        lines.create(f"task.{number:06d}", 0.0)
    text = Contents(page_of(lines)).text
    assert ("tasks: 1 pending" if tasks else "tasks: none") in text


def test_many_rows_are_counted_and_not_shown() -> None:
    lines = Lines()
    lines.start()
    for number in range(100):
        lines.run(f"task.{number:06d}", 0.0, 1.0, f"name-{number}")
        lines.create(f"task.{number + 100:06d}", 0.0, "broken")
        lines.submit(f"task.{number + 100:06d}", 0.0)
        lines.begin(f"task.{number + 100:06d}", 0.0)
        lines.fail(f"task.{number + 100:06d}", 1.0, "too bad")
    text = Contents(page_of(lines)).text
    assert "and 41 more rows, left out here" in text
    assert "97 more like these" in text
    assert "and 50 more failures, left out here" in text


# --- the data of the timeline -----------------------------------------------------------------------------------------


def data_of(run: Run) -> dict[str, object]:
    analysis = analyse(run)
    return timeline.timeline(run, analysis.path.tasks, analysis.used)


def test_every_attempt_is_a_bar_in_a_row_of_its_own() -> None:
    run = read(campaign(300, wrong=0.1))
    data = json.loads(embedded(data_of(run)))
    bars = data["bar"]
    assert len(bars["task"]) == len(list(run.attempts()))
    assert bars["look"].count(RETRIED) == sum(len(each.attempts[1:]) for each in run.tasks.values())
    assert all(begin <= end for begin, end in zip(bars["begin"], bars["end"], strict=True))
    for rows in data["rows"].values():
        by_row: dict[int, list[tuple[int, int]]] = {}
        for row, begin, end in zip(rows["row"], bars["begin"], bars["end"], strict=True):
            by_row.setdefault(row, []).append((begin, end))
        for spans in by_row.values():
            assert all(one[1] <= next_[0] + 1 for one, next_ in pairwise(spans))
        assert len(by_row) == sum(height for *_, height in rows["groups"])
    workers = [tuple(group[:2]) for group in data["rows"]["worker"]["groups"]]
    assert workers[0] == ("cluster on n01", "cluster-0")
    assert workers[-1] == ("blocks on login1", "loop")


def test_more_bars_than_a_browser_can_draw_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = campaign(300, wrong=0.1)
    run = read(lines)
    monkeypatch.setattr(timeline, "MOST_BARS", 100)
    data = json.loads(embedded(data_of(run)))
    assert len(data["bar"]["task"]) == 100
    assert data["left_out"] == len(bars_of(run)) - 100
    unwell = sum(each.look != 0 for each in bars_of(run))
    assert sum(look != STATES.index(STATES[0]) for look in data["bar"]["look"]) == min(unwell, 100)
    assert len(data["critical"]) == len(analyse(run).path.tasks)
    assert "bars left out: a browser cannot draw more" in Contents(page(analyse(run))).text


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def chromium() -> Iterator[Browser]:
    with browser() as page_:
        yield page_


def chart(page_: Browser) -> tuple[float, float, float, float]:
    """Where the chart is: left, top, width, height."""
    page_.evaluate("document.getElementById('timeline').scrollIntoView()")
    left, top, width, height = page_.evaluate(
        "(box => [box.left, box.top, box.width, box.height])(document.getElementById('chart').getBoundingClientRect())"
    )
    return left, top, width, height


def hover(page_: Browser, across: int, down: int) -> Iterator[tuple[float, float, str]]:
    """Move the mouse all over the chart; each place with what the tip says there."""
    left, top, width, height = chart(page_)
    for row in range(down):
        for column in range(across):
            x = left + 180 + (width - 185) * (column + 0.5) / across
            y = top + 24 + (height - 24) * (row + 0.5) / down
            page_.mouse("mouseMoved", x, y)
            tip = page_.evaluate("(tip => tip.hidden ? '' : tip.textContent)(document.getElementById('tip'))")
            if tip:
                yield x, y, str(tip)


@needs_browser
def test_a_page_draws_its_timeline_and_asks_nobody(chromium: Browser) -> None:
    page_of(campaign(5000, pools=MANY_POOLS))
    chromium.open(PAGE)
    chromium.frames()
    assert chromium.evaluate("Number(document.documentElement.dataset.drawn)") > 0
    colours = chromium.evaluate(
        "(canvas => new Set(new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)"
        ".data.buffer)).size)(document.getElementById('chart'))"
    )
    assert colours > 10
    assert chromium.requests == [PAGE.resolve().as_uri()]
    assert chromium.console == []


@needs_browser
def test_in_a_browser_no_text_of_a_run_does_anything(chromium: Browser) -> None:
    page_of(hostile())
    chromium.open(PAGE, 1400, 1400)
    chromium.evaluate("window.hits = []; window.hacked = number => window.hits.push(number)")
    told = [(x, y, tip) for x, y, tip in hover(chromium, 26, 30)]
    for text in HOSTILE:
        shown = re.sub(r"\s+", "", text)
        assert any(shown in re.sub(r"\s+", "", tip) for _, _, tip in told), text
    stories = ""
    for x, y, _ in told:
        chromium.click(x, y)
        stories += chromium.evaluate("document.getElementById('story').textContent")
    for text in HOSTILE:
        assert text in stories, text
    for value in ("workflow", "name", "worker"):
        chromium.evaluate(f"document.querySelector('input[name=rows][value={value}]').click()")
        chromium.frames()
    for value in ("workflow", "state", "name"):
        chromium.evaluate(f"document.querySelector('input[name=colour][value={value}]').click()")
        chromium.frames()
    assert chromium.evaluate("document.getElementById('tip').querySelectorAll(':not(div, b)').length") == 0
    assert chromium.evaluate("document.querySelectorAll('script').length") == 2
    assert chromium.evaluate("document.querySelectorAll('img, iframe').length") == 0
    assert chromium.evaluate("window.hits") == []
    assert chromium.console == []
    assert chromium.requests == [PAGE.resolve().as_uri()]


@needs_browser
def test_a_story_tells_of_attempts_errors_and_dependencies(chromium: Browser) -> None:
    run = campaign(60, wrong=0.3)
    page_of(run)
    chromium.open(PAGE)
    find = (
        "(input => {{ input.value = {}; input.dispatchEvent(new Event('input')); }})(document.getElementById('search'))"
    )
    enter = "document.getElementById('search').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}))"
    chromium.evaluate(find.format("'mDiffFit mosaic-04'"))
    chromium.evaluate("document.getElementById('trouble').click()")
    matches = chromium.evaluate("document.getElementById('found').textContent")
    assert re.fullmatch(r"[1-9]\d* of \d+", matches)
    chromium.evaluate(enter)
    story = chromium.evaluate("document.getElementById('story').textContent")
    for words in ("mDiffFit (task.", "workflow", "Attempt 1 failed", STDERR.splitlines()[1], "depends on", "mProject"):
        assert words in story, words
    chromium.evaluate("document.querySelector('#story .links button').click()")
    assert "mosaic (block." in chromium.evaluate("document.querySelector('#story h3').textContent")
    assert chromium.console == []


@needs_browser
def test_keys_and_buttons_move_the_view(chromium: Browser) -> None:
    page_of(campaign(60))
    chromium.open(PAGE)
    chromium.frames()
    drawn = "document.getElementById('chart').toDataURL()"
    seen = {chromium.evaluate(drawn)}
    for action in (
        "document.getElementById('zoom-in').click()",
        "document.getElementById('scroller').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))",
        "document.querySelector('input[name=rows][value=workflow]').click()",
        "document.querySelector('input[name=colour][value=workflow]').click()",
        "document.getElementById('critical').click()",
        "document.querySelector('#legend button').click()",
    ):
        chromium.evaluate(action)
        chromium.frames()
        picture = chromium.evaluate(drawn)
        assert picture not in seen, action
        seen.add(picture)
    left, top, width, _ = chart(chromium)
    chromium.mouse("mouseWheel", left + width / 2, top + 60, deltaX=0, deltaY=-300, modifiers=2)
    chromium.frames()
    assert chromium.evaluate(drawn) not in seen
    assert chromium.console == []


@needs_browser
def test_without_javascript_the_tables_can_be_read(chromium: Browser) -> None:
    page_of(campaign(60, wrong=0.3))
    chromium.without_javascript()
    chromium.open(PAGE)
    text = chromium.evaluate("document.body.innerText")
    assert "The timeline needs JavaScript; the rest of this page does not." in text
    for words in ("Where the time went", "mDiffFit", "Critical path", "plate solution did not converge", "Workers"):
        assert words in text
    assert "Find tasks" not in text


@needs_browser
def test_a_page_is_dark_where_the_reader_likes_that_and_light_on_paper(chromium: Browser) -> None:
    page_of(campaign(60))
    grounds = []
    for dark in (False, True):
        chromium.open(PAGE, dark=dark)
        chromium.frames()
        pixel = "[...document.getElementById('chart').getContext('2d').getImageData(300, 30, 1, 1).data].slice(0, 3)"
        body = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
        grounds.append((body, chromium.evaluate(pixel)))
    (light_body, light_chart), (dark_body, dark_chart) = grounds
    assert light_body != dark_body
    assert sum(light_chart) > 600 > 200 > sum(dark_chart)
    chromium.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert chromium.evaluate(pixel) == light_chart
    chromium.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert chromium.evaluate(pixel) == dark_chart
    chromium.pdf(Path("run.pdf"))
    assert Path("run.pdf").read_bytes().startswith(b"%PDF")


@needs_browser
def test_a_narrow_window_needs_no_scrolling_sideways(chromium: Browser) -> None:
    page_of(campaign(60, wrong=0.3))
    chromium.open(PAGE, 420, 900)
    chromium.frames()
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
