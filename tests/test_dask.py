"""What the Dask backend promises beyond the conformance suite: results that stay, workers that come and go."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
from distributed import Client
from distributed.comm.tcp import TCP
from distributed.security import Security

from asyncflow import BackendLostError, WorkflowEngine
from asyncflow.backends import ThreadBackend
from asyncflow.backends.aside import aside
from asyncflow.backends.dask import DaskBackend, agent
from asyncflow.backends.dask.interfaces import own_address
from asyncflow.backends.dask.results import Result
from asyncflow.errors import (
    InvalidOptionError,
    ResultLostError,
    ResultNotFetchedError,
    UnsatisfiableRequestError,
    WorkerRefusedError,
)
from asyncflow.testing import bodies
from asyncflow.testing.leaks import nothing_left
from asyncflow.testing.meeting import Meeting, attend
from asyncflow.testing.plugin import MakeEngine
from tests.support.dask_cluster import DaskCluster
from tests.support.scripts import run_script

#: Bytes of a result that is large enough to stay.
LARGE = 1_000_000


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """Two workers of one thread each, for tests that kill none."""
    cluster = DaskCluster(tmp_path_factory.mktemp("dask"))
    cluster.add("a", "b")
    yield cluster
    cluster.stop()


@pytest.fixture
def frail(no_leaks: None, tmp_path: Path) -> Iterator[DaskCluster]:
    """The same, for tests that kill some, or add."""
    cluster = DaskCluster(tmp_path)
    cluster.add("a", "b")
    yield cluster
    cluster.stop()


async def using(cluster: DaskCluster, make_engine: MakeEngine) -> WorkflowEngine:
    flow = await make_engine([DaskBackend(cluster.address, grace=1.0), ThreadBackend(2)])
    assert await became(lambda: len(nodes(flow)) == 2)
    return flow


@pytest_asyncio.fixture
async def flow(lasting: DaskCluster, make_engine: MakeEngine) -> WorkflowEngine:
    """An engine on both workers of the lasting cluster."""
    return await using(lasting, make_engine)


@pytest_asyncio.fixture
async def frail_flow(frail: DaskCluster, make_engine: MakeEngine) -> WorkflowEngine:
    """An engine on both workers of the frail cluster."""
    return await using(frail, make_engine)


@pytest_asyncio.fixture
async def meeting(make_engine: MakeEngine) -> AsyncIterator[Meeting]:
    async with Meeting("127.0.0.1") as meeting:
        yield meeting


async def became(condition: Callable[[], bool]) -> bool:
    """Whether that became true which announces itself by no event."""
    return not await nothing_left(lambda: [] if condition() else ["not true"], 60.0)


def nodes(flow: WorkflowEngine) -> dict[str, Any]:
    """The workers that the engine uses, by name."""
    backend: Any = flow._backends["dask"].backend
    return {node.name: node for node in backend._session.dispatcher.nodes}


def results(flow: WorkflowEngine) -> list[Result]:
    """Results whose values are on the cluster."""
    backend: Any = flow._backends["dask"].backend
    return [result for result in list(backend._session.dispatcher.results._known.values()) if result.holders]


def large(trace: Path, name: str = "made") -> bytes:
    """Leaves a trace of being run."""
    bodies.note(trace, name)
    return name.encode() * LARGE


def length(*values: Any) -> int:
    return sum(len(value) for value in values)


def length_within(values: dict[str, list[bytes]]) -> int:
    return sum(len(value) for each in values.values() for value in each)


class Traffic:
    """Bytes that this process sends and receives over Dask's connections."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        write: Any = TCP.write
        read: Any = TCP.read

        async def counted_write(comm: TCP, *args: Any, **options: Any) -> int:
            count = await write(comm, *args, **options)
            self.bytes += count
            return int(count)

        async def counted_read(comm: TCP, *args: Any, **options: Any) -> Any:
            message = await read(comm, *args, **options)
            if isinstance(message, dict) and "words" in message:
                self.bytes += len(message["words"]) + sum(memoryview(each).nbytes for each in message["segments"])
            return message

        monkeypatch.setattr(TCP, "write", counted_write)
        monkeypatch.setattr(TCP, "read", counted_read)


# --- results that stay -----------------------------------------------------------------------------------------------


async def test_what_only_tasks_of_the_cluster_need_never_comes_here(
    flow: WorkflowEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = Traffic(monkeypatch)
    make, measure = flow.function_task(large), flow.function_task(length)
    made = [make(tmp_path / "trace", "made") for _ in range(4)]
    assert await measure(*made) == 4 * 4 * LARGE
    assert traffic.bytes < 4 * 4 * LARGE / 100
    assert len(results(flow)) == 4


async def test_what_is_awaited_is_fetched_then(flow: WorkflowEngine, tmp_path: Path) -> None:
    future = flow.function_task(large)(tmp_path / "trace")
    assert await flow.function_task(length)(future) == 4 * LARGE
    assert not asyncio.Future.done(future)
    assert await future == b"made" * LARGE
    assert future.result() is await future, "fetched once"
    assert bodies.notes(tmp_path / "trace") == ["made"]


async def test_who_asks_whether_it_is_done_gets_it_soon(flow: WorkflowEngine, tmp_path: Path) -> None:
    future = flow.function_task(large)(tmp_path / "trace")
    await flow.drain()
    assert await became(future.done)
    assert len(future.result()) == 4 * LARGE


async def test_a_small_result_rides_along(flow: WorkflowEngine) -> None:
    future = flow.function_task(bodies.add)(1, 2)
    await flow.drain()
    assert future.result() == 3
    assert results(flow) == []


async def test_it_stands_in_containers_too(flow: WorkflowEngine, tmp_path: Path) -> None:
    make = flow.function_task(large)
    value = {"a": [make(tmp_path / "trace"), make(tmp_path / "trace")], "b": [make(tmp_path / "trace")]}
    assert await flow.function_task(length_within)(value) == 3 * 4 * LARGE


@pytest.mark.parametrize("late", [False, True])
async def test_a_task_of_another_backend_gets_the_value(flow: WorkflowEngine, tmp_path: Path, late: bool) -> None:
    made = flow.function_task(large)(tmp_path / "trace")
    if late:
        await flow.drain()
    elsewhere = flow.function_task(backend="threads")(length)(made)
    here = flow.function_task(length)(made)
    assert (await elsewhere, await here) == (4 * LARGE, 4 * LARGE)


async def test_a_block_gets_the_value(flow: WorkflowEngine, tmp_path: Path) -> None:
    @flow.block
    async def measure(value: bytes) -> int:
        return len(value)

    assert await measure(flow.function_task(large)(tmp_path / "trace")) == 4 * LARGE


async def test_nobody_keeps_what_nobody_needs(flow: WorkflowEngine, tmp_path: Path) -> None:
    make, measure = flow.function_task(large), flow.function_task(length)
    kept = make(tmp_path / "trace")
    assert await measure(make(tmp_path / "trace"), kept) == 2 * 4 * LARGE
    assert await became(lambda: len(results(flow)) == 1)
    assert len(await kept) == 4 * LARGE
    assert await became(lambda: results(flow) == [])


async def test_what_was_not_fetched_goes_with_the_cluster(
    make_engine: MakeEngine, lasting: DaskCluster, tmp_path: Path
) -> None:
    flow = await make_engine(DaskBackend(lasting.address))
    future = flow.function_task(large)(tmp_path / "trace")
    await flow.drain()
    await flow.shutdown()
    with pytest.raises(ResultNotFetchedError, match=r"'large' .*await its future before the engine is shut down"):
        await future


# --- workers that go -------------------------------------------------------------------------------------------------


def holder(flow: WorkflowEngine) -> str:
    """The name of the worker that has the only result that stayed."""
    [result] = results(flow)
    [node] = result.holders
    return node.name


async def test_a_lost_result_is_made_again_for_a_task(
    frail_flow: WorkflowEngine, frail: DaskCluster, tmp_path: Path
) -> None:
    made = frail_flow.function_task(large)(tmp_path / "trace")
    await frail_flow.drain()
    frail.kill(holder(frail_flow))
    assert await became(lambda: len(nodes(frail_flow)) == 1)
    assert await frail_flow.function_task(length)(made) == 4 * LARGE
    assert bodies.notes(tmp_path / "trace") == ["made", "made"]


async def test_a_lost_result_is_made_again_for_who_awaits_it(
    frail_flow: WorkflowEngine, frail: DaskCluster, tmp_path: Path
) -> None:
    made = frail_flow.function_task(large)(tmp_path / "trace")
    await frail_flow.drain()
    frail.kill(holder(frail_flow))
    assert len(await made) == 4 * LARGE
    assert bodies.notes(tmp_path / "trace") == ["made", "made"]


def doubled(trace: Path, value: bytes) -> bytes:
    bodies.note(trace, "doubled")
    return 2 * value


async def test_a_lost_result_of_a_lost_one_is_made_again(
    frail_flow: WorkflowEngine, frail: DaskCluster, tmp_path: Path
) -> None:
    """Though nobody keeps the first one any more."""
    twice = frail_flow.function_task(doubled)(tmp_path / "trace", frail_flow.function_task(large)(tmp_path / "trace"))
    await frail_flow.drain()
    assert await became(lambda: len(results(frail_flow)) == 1)
    frail.kill(holder(frail_flow))
    assert len(await twice) == 8 * LARGE
    assert bodies.notes(tmp_path / "trace") == ["made", "doubled", "made", "doubled"]


def extended(value: bytes | None) -> bytes:
    return bytes(70_000)


async def test_a_long_chain_of_lost_results_is_made_again(frail_flow: WorkflowEngine, frail: DaskCluster) -> None:
    """Longer than Python's stack is deep."""
    frail.kill("b")
    assert await became(lambda: len(nodes(frail_flow)) == 1)
    step, last = frail_flow.function_task(extended), None
    for _ in range(500):
        last = step(last)
    await frail_flow.drain()
    frail.add("c")
    assert await became(lambda: len(nodes(frail_flow)) == 2)
    frail.kill("a")
    assert last is not None
    assert len(await last) == 70_000


def small_when_there(trace: Path) -> bytes | None:
    """Large at its first run only."""
    bodies.note(trace, "made")
    return bytes(LARGE) if len(bodies.notes(trace)) == 1 else None


async def test_a_result_that_is_small_the_second_time(
    frail_flow: WorkflowEngine, frail: DaskCluster, tmp_path: Path
) -> None:
    made = frail_flow.function_task(small_when_there)(tmp_path / "trace")
    await frail_flow.drain()
    frail.kill(holder(frail_flow))
    assert await made is None
    assert bodies.notes(tmp_path / "trace") == ["made", "made"]


def fails_when_there(trace: Path) -> bytes:
    bodies.note(trace, "made")
    if len(bodies.notes(trace)) > 1:
        raise ValueError("second time")
    return bytes(LARGE)


async def test_a_result_that_cannot_be_made_again_says_so(
    frail_flow: WorkflowEngine, frail: DaskCluster, tmp_path: Path
) -> None:
    made = frail_flow.function_task(fails_when_there)(tmp_path / "trace")
    await frail_flow.drain()
    frail.kill(holder(frail_flow))
    with pytest.raises(ResultLostError, match=r"'fails_when_there' .* cannot be made again: .*ValueError: second time"):
        await made


def filled(values: Any) -> Any:
    return values.repeat(2)


async def test_it_is_made_of_what_was_passed_then(frail_flow: WorkflowEngine, frail: DaskCluster) -> None:
    values = np.full(100_000, 1.0)
    made = frail_flow.function_task(filled)(values)
    await frail_flow.drain()
    values[:] = 100.0
    frail.kill(holder(frail_flow))
    assert (await made)[0] == 1.0


async def test_who_waits_for_a_lost_result_may_stop_waiting(
    frail_flow: WorkflowEngine, frail: DaskCluster, tmp_path: Path
) -> None:
    made = frail_flow.function_task(large)(tmp_path / "trace")
    await frail_flow.drain()
    for name in ("a", "b"):
        frail.kill(name)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(made, 0.1)
    assert made.cancelled()


async def test_it_is_lost_with_its_cluster(frail_flow: WorkflowEngine, frail: DaskCluster, tmp_path: Path) -> None:
    made = frail_flow.function_task(large)(tmp_path / "trace")
    await frail_flow.drain()
    for name in ("a", "b"):
        frail.kill(name)
    frail.kill_scheduler()
    with pytest.raises(ResultLostError, match="the Dask scheduler at"):
        await made


async def test_what_no_worker_can_have_any_more_holds_up_nobody(frail_flow: WorkflowEngine, frail: DaskCluster) -> None:
    frail.add("wide", threads=2)
    assert await became(lambda: len(nodes(frail_flow)) == 3)
    task = frail_flow.function_task(task_description={"cores_per_rank": 2})(bodies.add)
    assert await task(1, 2) == 3
    frail.kill("wide")
    assert await became(lambda: len(nodes(frail_flow)) == 2)
    waiting = task(1, 2)
    assert await frail_flow.function_task(task_description={"cores_per_rank": 1})(bodies.add)(1, 2) == 3
    assert not waiting.done()


async def test_a_worker_that_dies_loses_no_task(
    frail_flow: WorkflowEngine, frail: DaskCluster, meeting: Meeting, tmp_path: Path
) -> None:
    futures = [frail_flow.function_task(attend)(meeting.address, str(number)) for number in range(4)]
    await meeting.arrivals(2)
    frail.kill("a")
    assert await became(lambda: len(nodes(frail_flow)) == 1)
    meeting.let_go()
    assert sorted(await asyncio.gather(*futures)) == ["0", "1", "2", "3"]


async def test_a_worker_that_comes_is_used(frail_flow: WorkflowEngine, frail: DaskCluster, meeting: Meeting) -> None:
    futures = [frail_flow.function_task(attend)(meeting.address, str(number)) for number in range(4)]
    await meeting.arrivals(2)
    frail.add("c", threads=2)
    await meeting.arrivals(4)
    meeting.let_go()
    await asyncio.gather(*futures)
    assert frail_flow._backends["dask"].capabilities.workers == 4


async def test_idle_workers_take_over_what_waits_behind_a_long_task(
    flow: WorkflowEngine, meeting: Meeting, tmp_path: Path
) -> None:
    note = flow.function_task(bodies.noted)
    for _ in range(3):  # it is known to be short: many are sent at a time
        await asyncio.gather(*(note(tmp_path / "trace", "short") for _ in range(50)))
    task = flow.function_task(name="noted")(wait_or_note)
    task.definition.cost = note.definition.cost
    held = task(meeting.address, tmp_path / "trace", "held")
    others = [task(meeting.address, tmp_path / "trace", "free") for _ in range(100)]
    assert await asyncio.gather(*others) == ["free"] * 100
    meeting.let_go()
    assert await held == "held"


def wait_or_note(address: tuple[str, int], trace: Path, name: str) -> str:
    return attend(address, name) if name == "held" else bodies.noted(trace, name)


async def test_without_a_scheduler_every_future_ends(
    frail_flow: WorkflowEngine, frail: DaskCluster, meeting: Meeting
) -> None:
    futures = [frail_flow.function_task(attend)(meeting.address, str(number)) for number in range(3)]
    await meeting.arrivals(2)
    frail.kill_scheduler()
    for future in futures:
        with pytest.raises(BackendLostError, match=r"the Dask scheduler at tcp://.* is gone"):
            await future


# --- clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["address", "file", "path", "client"])
async def test_a_cluster_is_named_in_many_ways(make_engine: MakeEngine, lasting: DaskCluster, kind: str) -> None:
    async with Client(lasting.address, asynchronous=True, set_as_default=False) as client:
        file = lasting.scheduler_file
        where: Any = {"address": lasting.address, "file": str(file), "path": file, "client": client}[kind]
        flow = await make_engine(DaskBackend(where))
        assert await flow.function_task(bodies.add)(1, 2) == 3
        await flow.shutdown()
        assert client.status == "running", "it stays the caller's to close"


async def test_by_its_name_alone(make_engine: MakeEngine) -> None:
    flow = await make_engine("dask")
    assert await flow.function_task(bodies.where)() != os.getpid()


@pytest.mark.parametrize("where", [42, b"tcp://here"])
def test_a_cluster_cannot_be_named_so(where: Any) -> None:
    with pytest.raises(InvalidOptionError, match="a scheduler file, a Dask Client or cluster"):
        DaskBackend(where)


async def test_a_worker_with_another_library_is_refused(
    make_engine: MakeEngine, lasting: DaskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "versions", lambda: ("3.9.1", "0.0.1"))
    with pytest.raises(
        WorkerRefusedError, match=r"tcp://\S+ is not used: it runs Python 3\.1\d.*, the engine Python 3\.9"
    ):
        await make_engine(DaskBackend(lasting.address))


async def test_one_task_may_have_what_one_worker_has(flow: WorkflowEngine) -> None:
    task = flow.function_task(task_description={"cores_per_rank": 2})(bodies.add)
    with pytest.raises(UnsatisfiableRequestError, match="2 cores where there are 1"):
        task(1, 2)


def listening() -> set[str]:
    """Addresses on which this process and its descendants listen."""
    here = psutil.Process()
    found = [each for process in (here, *here.children(recursive=True)) for each in process.net_connections("inet")]
    return {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize("security", [None, True])
async def test_a_cluster_of_its_own_listens_on_loopback_alone(make_engine: MakeEngine, security: bool | None) -> None:
    flow = await make_engine(DaskBackend(workers=2, security=security))
    assert await flow.function_task(bodies.add)(1, 2) == 3
    backend: Any = flow._backends["dask"].backend
    assert backend._session._connection.address.startswith("tls://" if security else "tcp://")
    assert listening() == {"127.0.0.1"}


async def test_it_is_closed_to_whoever_lacks_the_certificate(make_engine: MakeEngine) -> None:
    flow = await make_engine(DaskBackend(workers=2, security=True))
    backend: Any = flow._backends["dask"].backend
    address = backend._session._connection.address
    with pytest.raises((OSError, TypeError)):
        await Client(address, asynchronous=True, set_as_default=False, timeout=2, security=Security.temporary())


def test_an_interface_must_exist() -> None:
    with pytest.raises(InvalidOptionError, match=r"interface='nowhere0' is not possible: .*: lo"):
        own_address("nowhere0")


@pytest.mark.parametrize("security", ["yes", 1.5])
def test_security_is_true_or_dasks(security: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"True, or a distributed\.Security"):
        DaskBackend(security=security)


async def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio\n"
        "from asyncflow import WorkflowEngine\n"
        "print('once')\n"
        "async def main():\n"
        "    async with WorkflowEngine.create('dask') as flow:\n"
        "        print(await flow.function_task(lambda x: x + 1)(1))\n"
        "asyncio.run(main())\n"
    )
    done = await aside(lambda: run_script(script))
    assert (done.stdout, done.stderr, done.returncode) == ("once\n2\n", "", 0)
