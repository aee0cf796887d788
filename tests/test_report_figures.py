"""What follows from a run: the critical path, where the time went, how much was used; checked by other means."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow.graph import State
from asyncflow.report.analysis import analyse
from asyncflow.report.chain import Step, chain, steps
from asyncflow.report.critical import critical_path
from asyncflow.report.lanes import pack, pack_by_group
from asyncflow.report.reading import read_run
from asyncflow.report.run import Attempt, Run, Session, Task
from asyncflow.report.spent import Activity, spent, totals
from asyncflow.report.usage import Steps, usage
from asyncflow.report.words import duration, number, percent, readable, size
from tests.support.runs import HOME, MANY_POOLS, Lines, campaign

RUN = Path("run.jsonl")


def read(lines: Lines) -> Run:
    return read_run(lines.write(RUN))


def run_of(tasks: Sequence[Task]) -> Run:
    return Run(Session("flow-1", 0.0, ended=0.0), {task.uid: task for task in tasks})


def task(uid: str, after: Sequence[str], seconds: float | None, **more: Any) -> Task:
    """One that ran so long, from time 0; None for one that never did."""
    attempts = [] if seconds is None else [Attempt(1, 0.0, 0.0, seconds)]
    ended = 0.0 if seconds is None else seconds
    return Task(uid, uid, depends_on=tuple(after), attempts=attempts, ended=ended, state=State.DONE, **more)


# --- the critical path ------------------------------------------------------------------------------------------------


def independent(run: Run) -> tuple[float, list[str]]:
    """The longest path and its sum by networkx: each task an edge from its beginning to its end."""
    parts: dict[str, list[str]] = {}
    for each in run.tasks.values():
        if each.parent in run.tasks and each.started is not None:
            parts.setdefault(str(each.parent), []).append(each.uid)
    graph = nx.DiGraph()
    for uid, each in run.tasks.items():
        ran = sum((a.ended or 0.0) - a.started for a in each.attempts if a.started is not None)
        graph.add_edge((uid, "begin"), (uid, "end"), seconds=0.0 if uid in parts else ran)
        graph.add_edges_from((((before, "end"), (uid, "begin")) for before in each.depends_on), seconds=0.0)
        for part in parts.get(uid, ()):
            graph.add_edge((uid, "begin"), (part, "begin"), seconds=0.0)
            graph.add_edge((part, "end"), (uid, "end"), seconds=0.0)
    longest = nx.dag_longest_path(graph, weight="seconds")
    uids = [uid for uid, side in longest if side == "end" and uid not in parts and run.tasks[uid].started is not None]
    return nx.dag_longest_path_length(graph, weight="seconds"), uids


@st.composite
def graphs(draw: st.DrawFn) -> list[Task]:
    """Random graphs of tasks; some never ran, some took no time. Sums of the durations are exact."""
    count = draw(st.integers(1, 14))
    tasks = []
    for place in range(count):
        after = draw(st.sets(st.integers(0, place - 1), max_size=4)) if place else set()
        seconds = draw(st.none() | st.integers(0, 40).map(lambda eighths: eighths / 8))
        tasks.append(task(f"task.{place}", [f"task.{each}" for each in sorted(after)], seconds))
    return draw(st.permutations(tasks))


@given(graphs())
def test_the_critical_path_is_the_longest_path(tasks: list[Task]) -> None:
    run = run_of(tasks)
    path = critical_path(run)
    seconds, _ = independent(run)
    assert path.seconds == seconds
    assert sum(run.running(each) for each in path.tasks) == seconds
    assert all(each.started is not None for each in path.tasks)
    # What never ran may lie between two of them.
    graph = nx.DiGraph((before, each.uid) for each in tasks for before in each.depends_on)
    graph.add_nodes_from(run.tasks)
    for one, next_ in pairwise(path.tasks):
        assert nx.has_path(graph, one.uid, next_.uid)


@given(graphs(), st.integers())
def test_where_only_one_path_is_longest_it_is_that_one(tasks: list[Task], seed: int) -> None:
    rng = random.Random(seed)
    for each in tasks:
        for attempt in each.attempts:
            attempt.ended = each.ended = rng.random()
    run = run_of(tasks)
    path = critical_path(run)
    seconds, uids = independent(run)
    assert path.seconds == pytest.approx(seconds)
    assert [each.uid for each in path.tasks] == uids
    assert len(path.tasks) == len(uids)


@pytest.mark.parametrize("tasks", [120, 5000])
def test_the_critical_path_of_a_campaign(tasks: int) -> None:
    run = read(campaign(tasks, pools=MANY_POOLS))
    path = critical_path(run)
    seconds, uids = independent(run)
    assert path.seconds == pytest.approx(seconds)
    assert [each.uid for each in path.tasks] == uids
    assert 8 <= len(path.tasks) <= 10, "from mProject to mJPEG: the block is no part of it"
    assert path.seconds < run.makespan


def test_a_block_counts_as_what_it_called() -> None:
    block = task("block.1", ["task.0"], 100.0, kind="block")
    inside = [task("task.2", [], 3.0, parent="block.1"), task("task.3", ["task.2"], 4.0, parent="block.1")]
    run = run_of([task("task.0", [], 1.0), block, *inside, task("task.4", ["block.1"], 2.0)])
    path = critical_path(run)
    assert [each.uid for each in path.tasks] == ["task.0", "task.2", "task.3", "task.4"]
    assert path.seconds == 10.0


def test_a_block_that_called_nothing_counts_like_a_task() -> None:
    run = run_of([task("block.1", [], 5.0, kind="block"), task("task.2", ["block.1"], 1.0)])
    assert critical_path(run).seconds == 6.0


def test_all_attempts_count_and_what_lies_between_them_does_not() -> None:
    tried = Task("a", "a", attempts=[Attempt(1, 0, 0, 2), Attempt(2, 50, 50, 53)], ended=53, state=State.DONE)
    assert critical_path(run_of([tried, task("b", ["a"], 1.0)])).seconds == 6.0


def test_a_circle_in_a_broken_file_is_no_endless_loop() -> None:
    run = run_of([task("a", ["b", "a"], 1.0), task("b", ["a"], 2.0), task("c", ["b", "nowhere"], 4.0)])
    assert critical_path(run).seconds <= 7.0
    assert steps(run, chain(run))


def test_a_run_without_tasks_has_no_path() -> None:
    analysis = analyse(run_of([]))
    assert analysis.path.tasks == ()
    assert (analysis.path.seconds, analysis.efficiency, analysis.run.makespan) == (0.0, 0.0, 0.0)


# --- where the time went ----------------------------------------------------------------------------------------------


def told() -> Lines:
    """Two tasks: one at its second attempt, one that was cancelled while it waited."""
    lines = Lines()
    lines.start([{"name": "processes", "workers": 4, "cores": 4}])
    lines.create("task.000001", 1.0, "a")
    lines.resolve("task.000001", 3.0)
    lines.submit("task.000001", 3.5)
    lines.begin("task.000001", 4.0)
    lines.retry("task.000001", 6.0)
    lines.submit("task.000001", 9.0, 2)
    lines.begin("task.000001", 9.25, attempt=2)
    lines.complete("task.000001", 17.25, attempt=2)
    lines.create("task.000002", 1.0, "b", ["task.000001"])
    lines.cancel("task.000002", 5.0)
    lines.end(18.0)
    return lines


def test_the_time_of_a_task_is_divided_among_what_it_did() -> None:
    run = read(told())
    assert spent(run, run.tasks["task.000001"]) == {
        Activity.WAITING: 2.0,
        Activity.ENGINE: 0.5,
        Activity.BACKEND: 0.5 + 0.25,
        Activity.RUNNING: 2.0 + 8.0,
        Activity.RETRYING: 3.0,
    }
    assert spent(run, run.tasks["task.000002"]) == {Activity.WAITING: 4.0}


def test_totals_are_by_name_and_leave_blocks_out_of_the_sum() -> None:
    lines = told()
    lines.run("block.000003", 1.0, 17.0, "study", kind="block", backend="blocks", cores=0)
    everything, names = totals(read(lines))
    assert (everything.calls, everything.retries, everything.states[State.CANCELLED]) == (2, 1, 1)
    assert [each.name for each in names] == ["study (block)", "a", "b"]
    a = names[1]
    assert (a.seconds[Activity.RUNNING], a.mean, a.longest, a.ran) == (10.0, 10.0, 10.0, 1)
    assert everything.seconds[Activity.RUNNING] == 10.0


def test_times_of_a_campaign_add_up() -> None:
    run = read(campaign(300, wrong=0.1))
    for each in run.tasks.values():
        assert sum(spent(run, each).values()) == pytest.approx((each.ended or 0.0) - each.created)
    analysis = analyse(run)
    assert sum(analysis.steps.values()) == pytest.approx(run.makespan)
    assert sum(each.calls for each in analysis.names) == len(run.tasks)


def test_the_makespan_is_followed_back_through_dependencies_calls_and_blocks() -> None:
    lines = Lines()
    lines.start()
    lines.run("task.000001", 0.0, 2.0)
    lines.run("task.000002", 0.0, 5.0)
    # Called when the second had ended, depending on the first: what held it up was the call.
    lines.run("block.000003", 5.5, 11.0, kind="block", after=["task.000001"])
    lines.run("task.000004", 6.0, 7.0, parent="block.000003")
    lines.run("task.000005", 8.0, 10.0, parent="block.000003")
    lines.create("task.000006", 0.0, after=["block.000003"])
    lines.resolve("task.000006", 11.0)
    lines.submit("task.000006", 11.0)
    lines.begin("task.000006", 11.5)
    lines.complete("task.000006", 12.0)
    run = read(lines)
    followed = chain(run)
    assert [each.uid[-1] for each in followed] == ["2", "4", "5", "3", "6"]
    assert steps(run, followed) == {
        Step.RUNNING: 5.0 + 1.0 + 2.0 + 0.5,
        # 5.0 to 6.0, 7.0 to 8.0, and the block's own from 10.0 on.
        Step.UNCALLED: 1.0 + 1.0 + 1.0,
        Step.BACKEND: 0.5,
    }


# --- how much was used ------------------------------------------------------------------------------------------------


def used(*spans: tuple[float, float, int], cores: int = 4, host: str = HOME) -> Run:
    lines = Lines()
    lines.start([{"name": "processes", "workers": cores, "cores": cores}])
    for place, (begin, end, held) in enumerate(spans):
        lines.run(f"task.{place:06d}", begin, end, cores=held, worker=f"w{place}", host=host)
    lines.run("block.000099", 0.0, 99.0, kind="block", backend="blocks", cores=0)
    lines.end(100.0)
    return read(lines)


def test_cores_in_use_over_time() -> None:
    [processes] = usage(used((0, 4, 1), (1, 3, 2), (4, 8, 1)))
    assert (processes.cores, processes.peak, processes.workers) == (4, 2, 3)
    assert processes.busy == Steps((0.0, 1.0, 3.0, 4.0, 8.0), (1.0, 3.0, 1.0, 1.0, 0.0))
    assert processes.used == 4 + 4 + 4
    assert processes.share(8.0) == 12 / 32


def test_coroutines_that_share_cores_use_no_more_than_there_are() -> None:
    [processes] = usage(used(*[(0, 10, 1)] * 50))
    assert (processes.cores, processes.peak, processes.used) == (4, 50, 40)


def test_a_cluster_that_grew_has_the_workers_that_were_busy_at_once() -> None:
    assert usage(used(*[(0, 10, 1)] * 3, (10, 20, 1), cores=2, host="n01"))[0].cores == 3
    assert usage(used(*[(0, 10, 1)] * 3, cores=2))[0].cores == 2, "a local backend does not grow"
    assert usage(used(*[(0, 10, 1)] * 3, cores=0))[0].cores == 3, "nothing is known of it"


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5)), max_size=20),
    st.integers(1, 30),
)
def test_means_keep_the_area(changes: list[tuple[float, float]], count: int) -> None:
    ordered = sorted({time: value for time, value in changes if time > 0}.items())
    curve = Steps((0.0, *(time for time, _ in ordered)), (1.0, *(value for _, value in ordered)))
    means = curve.means(0.0, 100.0, count)
    assert sum(means) * 100.0 / count == pytest.approx(curve.area(100.0))
    assert all(-1e-9 <= mean <= max(curve.values) + 1e-6 for mean in means)


def test_the_efficiency_is_the_lower_bound_by_the_makespan() -> None:
    lines = Lines()
    lines.start([{"name": "processes", "workers": 4, "cores": 4}])
    lines.run("task.000001", 0.0, 8.0, cores=3)
    lines.run("task.000002", 8.0, 10.0, cores=4)
    analysis = analyse(read(lines))
    assert analysis.path.seconds == 8.0
    assert analysis.lower_bound == (8 * 3 + 2 * 4) / 4 == 8.0
    assert analysis.efficiency == 0.8


# --- lanes ------------------------------------------------------------------------------------------------------------

spans = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)).map(lambda each: (each[0], each[0] + each[1])))


@given(spans)
def test_bars_of_a_row_do_not_overlap_and_no_row_is_wasted(bars: list[tuple[int, int]]) -> None:
    bars.sort()
    rows = pack(bars)
    for row in set(rows):
        inside = [bar for bar, its in zip(bars, rows, strict=True) if its == row]
        assert all(before[1] <= after[0] for before, after in pairwise(inside))
    most = max((sum(begin <= time < max(end, begin + 1) for begin, end in bars) for time in range(45)), default=0)
    assert len(set(rows)) <= most


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 5))))
def test_groups_have_rows_of_their_own(bars: list[tuple[str, int, int]]) -> None:
    rows, heights = pack_by_group((group, begin, begin + lasts) for group, begin, lasts in bars)
    assert len(rows) == len(bars)
    assert set(heights) == {group for group, _, _ in bars}
    for group, height in heights.items():
        assert {row for (its, _, _), row in zip(bars, rows, strict=True) if its == group} == set(range(height))


# --- words ------------------------------------------------------------------------------------------------------------

DURATIONS: Mapping[float, str] = {
    0.0: "0 s",
    0.0000004: "0 µs",
    0.000045: "45 µs",
    0.00123: "1.23 ms",
    0.9994: "999 ms",
    1.0: "1.00 s",
    9.99: "9.99 s",
    9.996: "10.0 s",
    59.9: "59.9 s",
    59.96: "1 min 00 s",
    754.0: "12 min 34 s",
    3599.7: "1 h 00 min",
    7500.0: "2 h 05 min",
    90000.0: "1 d 01 h",
}


@pytest.mark.parametrize("seconds,words", DURATIONS.items())
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_other_numbers() -> None:
    assert [percent(1, 2), percent(1, 300), percent(0, 2), percent(1, 0)] == ["50 %", "0.3 %", "0 %", "-"]
    assert [size(12), size(999), size(12_345), size(64e9), size(5e15)] == [
        "12 B",
        "999 B",
        "12.3 kB",
        "64 GB",
        "5e+03 TB",
    ]
    assert [number(1, "task"), number(1234, "task"), number(2, "entry", "entries")] == [
        "1 task",
        "1,234 tasks",
        "2 entries",
    ]


def test_what_is_meant_for_terminals_is_left_out_of_texts() -> None:
    assert readable("\x1b[31mred\x1b[0m \x1b]0;title\x07text\r\n\tnext") == "red text\n\tnext"
    assert readable("a\x00b\x1b\u202etxt.exe") == "a\ufffdb\ufffd\ufffdtxt.exe"
