"""What a notebook shows of futures, engines and graphs: well-formed, escaped, and true."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Protocol
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import BackendLostError, WorkflowEngine
from asyncflow.display.layout import columns_of, last_stop, passages, rows_of
from asyncflow.display.markup import COLOURS, one_line, tag
from asyncflow.graph import State
from tests.support.faked import fail, faked, finish, identity, item_of

SVG = "{http://www.w3.org/2000/svg}"


class Shown(Protocol):
    def _repr_html_(self) -> str: ...


def parsed(shown: Shown) -> ET.Element:
    """What an object shows in a notebook, as a tree; it must be well-formed."""
    return ET.fromstring(f"<all>{shown._repr_html_()}</all>")


def words(shown: Shown) -> str:
    return "".join(parsed(shown).itertext())


def titles(flow: WorkflowEngine) -> list[str]:
    """What each box of the graph says when the mouse rests on it."""
    return ["".join(each.itertext()) for each in parsed(flow.components).iter(f"{SVG}title")]


def paths(flow: WorkflowEngine) -> int:
    return sum(1 for _ in parsed(flow.components).iter(f"{SVG}path"))


async def test_a_future_shows_name_uid_workflow_and_state() -> None:
    async with faked() as (flow, backend):
        task = flow.function_task(name="simulate")(identity)
        future = task(workflow_id="experiment-42")
        assert words(future) == f"simulate PENDING {future.uid} in workflow experiment-42"
        backend.begin(await item_of(backend, future))
        assert words(future).startswith("simulate RUNNING")
        backend.finish(await item_of(backend, future))
        await future
        assert words(future).startswith("simulate DONE")
        assert COLOURS[State.DONE] in future._repr_html_()


async def test_a_failed_future_shows_its_error_in_one_line() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(name="simulate")(identity)()
        await fail(backend, future, ValueError("first <b>line</b>\nsecond"))
        assert words(future) == f"simulate FAILED {future.uid}ValueError: first <b>line</b>"
        with pytest.raises(ValueError, match="first"):
            await future


async def test_to_show_a_failed_future_is_not_to_look_at_its_error() -> None:
    async with faked() as (flow, backend):
        told: list[str] = []
        flow.loop.set_exception_handler(lambda _, context: told.append(context["message"]))
        future = flow.function_task(name="simulate")(identity)()
        await fail(backend, future, ValueError("no"))
        future._repr_html_()
        del future
        assert told == ["asyncflow: 'simulate' (task.000001) failed and nobody awaited it"]


async def test_an_engine_shows_backends_workers_and_counts() -> None:
    async with faked(workers=3, uid="flow-1") as (flow, backend):
        assert "no calls yet" in words(flow)
        task = flow.function_task(name="simulate")(identity)
        await finish(backend, task())
        future = task()
        cells = ["".join(cell.itertext()) for cell in parsed(flow).iter("td")]
        assert cells[:2] == ["fake", "3"]
        assert cells[2:] == ["simulate", "", "1/2", "1", "", "1", "", ""]
        future.cancel()
    assert "closed" in words(flow)


async def test_an_engine_shows_why_a_backend_is_broken() -> None:
    async with faked() as (flow, backend):
        assert "broken" not in words(flow)
        backend.break_down("the cluster is gone")
        future = flow.function_task(name="simulate")(identity)()
        with pytest.raises(BackendLostError):
            await future
        assert "brokenfake4the cluster is gone" in words(flow)


async def test_a_graph_shows_each_call_and_dependency() -> None:
    async with faked() as (flow, backend):
        simulate, combine = (flow.function_task(name=name)(identity) for name in ("simulate", "combine"))
        futures = [simulate(n) for n in range(3)]
        total = combine(*futures, [futures[0]])
        await finish(backend, futures[0])
        await fail(backend, futures[1], ValueError("no"))
        states = ["DONE", "FAILED", "PENDING"]
        expected = {f"simulate {future.uid} {state}" for future, state in zip(futures, states, strict=True)} | {
            f"combine {total.uid} FAILED"
        }
        assert set(titles(flow)) == expected
        assert paths(flow) == 3
        await asyncio.gather(futures[1], total, return_exceptions=True)


async def test_dependencies_that_had_ended_are_drawn_too() -> None:
    async with faked() as (flow, backend):
        task = flow.function_task(name="task")(identity)
        first = task()
        await finish(backend, first)
        await finish(backend, task(first))
        assert paths(flow) == 1


async def test_a_line_passes_beside_the_boxes_between_its_ends() -> None:
    async with faked() as (flow, _):
        task = flow.function_task(name="task")(identity)
        first = task()
        task(task(first), first)
        picture = parsed(flow.components)
        (top, height) = next(
            (float(rect.attrib["y"]), float(rect.attrib["height"]))
            for box in list(picture.iter(f"{SVG}g"))[1:2]
            for rect in box.iter(f"{SVG}rect")
        )
        (passing,) = [path.attrib["d"] for path in picture.iter(f"{SVG}path") if " h" in path.attrib["d"]]
        assert paths(flow) == 4, "to the second, to the third, and two steps past the second"
        height_of_line = float(passing.partition(" h")[0].rpartition(",")[2])
        assert not top <= height_of_line <= top + height


async def test_groups_that_depend_on_each_other_and_on_themselves() -> None:
    async with faked() as (flow, _):
        step, check = (flow.function_task(name=name)(identity) for name in ("step", "check"))
        state = step()
        for _ in range(101):
            state = step(state, check(state))
        assert numbers_at_edges(flow) == ["101", "101", "101"], "from step to check, back, and to itself"
        assert paths(flow) == 3


async def test_an_empty_graph() -> None:
    async with faked() as (flow, _):
        assert words(flow.components) == "no calls"


async def test_many_calls_are_drawn_as_groups() -> None:
    async with faked() as (flow, backend):
        simulate, combine = (flow.function_task(name=name)(identity) for name in ("simulate", "combine"))
        futures = [simulate(n) for n in range(300)]
        combine(*futures[:150])
        combine(simulate(combine()))
        await finish(backend, futures[0])
        assert titles(flow) == ["simulate: 1 DONE, 300 PENDING", "combine: 3 PENDING"]
        numbers = {"".join(each.itertext()) for each in parsed(flow.components).iter(f"{SVG}text")}
        assert {"151", "1", "1/301", "0/3"} <= numbers, "dependencies between the groups, and calls"


def numbers_at_edges(flow: WorkflowEngine) -> list[str]:
    texts = parsed(flow.components).iter(f"{SVG}text")
    return ["".join(each.itertext()) for each in texts if each.get("font-size") == "10"]


@pytest.mark.parametrize("number,shown", [(200, "200"), (201, "200+"), (1000, "200+")])
async def test_a_number_that_is_too_small_says_so(number: int, shown: str) -> None:
    async with faked() as (flow, _):
        simulate, combine = (flow.function_task(name=name)(identity) for name in ("simulate", "combine"))
        combine(combine(*map(simulate, range(number))))
        assert sorted(numbers_at_edges(flow)) == ["1", shown]


async def test_forgotten_calls_make_the_numbers_between_groups_too_small() -> None:
    async with faked(history=210) as (flow, backend):
        simulate, check = (flow.function_task(name=name)(identity) for name in ("simulate", "check"))
        for _ in range(105):
            await finish(backend, future := simulate())
            await finish(backend, check(future))
        assert numbers_at_edges(flow) == ["105"]
        await finish(backend, simulate())
        assert numbers_at_edges(flow) == ["104+"]


async def test_totals_of_groups_outlive_the_history() -> None:
    async with faked(history=210) as (flow, backend):
        task = flow.function_task(name="task")(identity)
        for _ in range(250):
            await finish(backend, task())
        assert titles(flow) == ["task: 250 DONE"]


HOSTILE = '<script>alert("1")</script>&amp;\'"'


async def test_hostile_names_stay_text() -> None:
    async with faked(uid=HOSTILE.replace("/", "")) as (flow, backend):
        task = flow.function_task(name=HOSTILE)(identity)
        future = task(workflow_id=HOSTILE)
        for shown in (future, flow, flow.components):
            assert "<script" not in shown._repr_html_()
        assert HOSTILE in words(future)
        assert HOSTILE in words(flow)
        assert titles(flow) == [f"{HOSTILE} {future.uid} PENDING"]
        await fail(backend, future, ValueError(HOSTILE))
        assert HOSTILE in words(future)
        for number in range(250):
            task(number)
        assert "<script" not in flow.components._repr_html_()
        await asyncio.wait([future])
        future.exception()


def test_markup_escapes_all_that_is_not_markup() -> None:
    assert tag("b", "<i>", tag("i", "x"), title='"') == '<b title="&quot;">&lt;i&gt;<i>x</i></b>'


def test_an_error_in_one_line() -> None:
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("\n a \n b")) == "ValueError: a "
    assert len(one_line(ValueError("x" * 10_000))) == 301


@given(st.lists(st.sets(st.integers(0, 30)), max_size=30))
def test_what_depends_on_something_stands_to_the_right_of_it(graph: list[set[int]]) -> None:
    after = {node: sorted(each for each in sources if each < node) for node, sources in enumerate(graph)}
    columns = columns_of(after)
    edges = [(source, node) for node, sources in after.items() for source in sources]
    assert all(columns[source] < columns[node] for source, node in edges)


@given(st.lists(st.sets(st.integers(0, 30)), max_size=30))
def test_boxes_and_the_lines_between_them_have_places_of_their_own(graph: list[set[int]]) -> None:
    after = {node: sorted(each for each in sources if each < node) for node, sources in enumerate(graph)}
    columns = columns_of(after)
    edges = [(source, node) for node, sources in after.items() for source in sources]
    rows = rows_of(columns, edges)
    assert {last_stop(*edge, columns) for edge in edges} <= rows.keys() >= after.keys()
    standing: dict[int, list[tuple[float, float]]] = {}
    for stop, middle in rows.items():
        # A box is a row high; where a line passes through a column, nothing stands in its way.
        column, half = (stop[1], 0.0) if isinstance(stop, tuple) else (columns[stop], 0.5)
        standing.setdefault(column, []).append((middle - half, middle + half))
    for places in standing.values():
        places.sort()
        assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(places))
        assert len(set(places)) == len(places)


def test_lines_from_one_box_share_a_passage_in_each_column_that_they_skip() -> None:
    columns = {1: 0, 2: 1, 3: 2, 4: 3}
    assert list(passages(columns, [(1, 2), (4, 1), (4, 4)])) == []
    assert list(passages(columns, [(1, 3), (1, 4)])) == [(1, (1, 1)), ((1, 1), (1, 2))]
    assert [last_stop(1, target, columns) for target in (2, 3, 4)] == [1, (1, 1), (1, 2)]
    assert last_stop(4, 1, columns) == 4


def test_columns_without_gaps() -> None:
    assert columns_of({1: [], 2: [1], 3: [1, 2], 5: [4]}) == {1: 0, 2: 1, 3: 2, 5: 0}
