"""An engine's life: how it is created, what it leaves behind, and how it ends in every state."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import asyncflow
from asyncflow import BackendLostError, LocalExecutionBackend, State, TaskFuture, WorkflowEngine
from asyncflow.backends import Backend, ExecutorBackend, NoopBackend, Place, ProcessBackend, ThreadBackend, WorkItem
from asyncflow.backends.aside import aside
from asyncflow.backends.contract import Definition, Kind
from asyncflow.backends.coroutines import CoroutineLoop, CoroutineQueue
from asyncflow.errors import (
    AsyncflowError,
    BackendStartError,
    ContractVersionError,
    DuplicateBackendError,
    EngineClosedError,
    ForeignThreadError,
    InvalidOptionError,
    MapUsedError,
    NotABackendError,
    TaskDefinitionError,
    UnknownBackendError,
)
from asyncflow.testing.fakes import FakeBackend, RecordingReporter
from tests.support import module_tasks
from tests.support.faked import fail, faked, finish, identity, item_of, soon, turns
from tests.support.scripts import run_script, start_script

# --- create ----------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
async def test_an_engine_is_awaited_or_entered(no_leaks: None) -> None:
    flow = await WorkflowEngine.create()
    assert isinstance(flow, WorkflowEngine)
    assert await soon(flow.function_task(identity)(1)) == 1
    await flow.shutdown()
    async with WorkflowEngine.create() as flow:
        assert isinstance(flow, WorkflowEngine)
        assert await soon(flow.function_task(identity)(2)) == 2
    async with await WorkflowEngine.create() as flow:
        assert await soon(flow.function_task(identity)(3)) == 3
    assert flow.closed


async def test_a_creation_that_was_not_awaited_says_so() -> None:
    creation: Any = WorkflowEngine.create()
    with pytest.raises(AttributeError, match=r"'function_task' belongs to the engine itself: await it first"):
        creation.function_task(identity)


async def _later(backend: Backend) -> Backend:
    await asyncio.sleep(0)
    return backend


@pytest.mark.parametrize(
    "given,names",
    [
        (lambda: None, ["threads"]),
        (lambda: "threads", ["threads"]),
        (lambda: "processes", ["processes"]),
        (lambda: "noop", ["noop"]),
        (lambda: ThreadBackend(1, name="own"), ["own"]),
        (lambda: _later(ThreadBackend(1)), ["threads"]),
        (lambda: LocalExecutionBackend(ThreadPoolExecutor(1), name="io"), ["io"]),
        (lambda: ThreadPoolExecutor(1), ["ThreadPoolExecutor"]),
        (lambda: ["noop", "threads"], ["noop", "threads"]),
        (lambda: (NoopBackend("a"), _later(NoopBackend("b")), "threads"), ["a", "b", "threads"]),
    ],
    ids=["nothing", "threads", "processes", "noop", "backend", "awaitable", "local", "executor", "list", "mixed"],
)
async def test_a_backend_may_be_given_in_many_ways(given: Callable[[], Any], names: list[str], no_leaks: None) -> None:
    backend = given()
    async with WorkflowEngine.create(backend) as flow:
        assert f" on {', '.join(names)}:" in repr(flow)
        results = [flow.function_task(backend=name)(module_tasks.double.fn)(1) for name in [None, *names]]
        assert await soon(asyncio.gather(*results)) == [None if n in "noop ab" else 2 for n in [names[0], *names]]
    if isinstance(backend, ThreadPoolExecutor):
        backend.shutdown()


async def test_a_backend_that_can_be_awaited_gives_itself() -> None:
    backend = LocalExecutionBackend(ThreadPoolExecutor(1), name="io")
    assert await backend is backend
    flow = await WorkflowEngine.create(backend=backend)
    assert await soon(flow.function_task(identity)(1)) == 1
    await flow.shutdown()


async def test_a_local_backend_closes_its_executor_and_a_bare_one_stays_open(no_leaks: None) -> None:
    given, bare = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    async with WorkflowEngine.create([LocalExecutionBackend(given, name="given"), bare]) as flow:
        assert await soon(flow.function_task(identity)(1)) == 1
        assert await soon(flow.function_task(backend="ThreadPoolExecutor")(identity)(2)) == 2
    with pytest.raises(RuntimeError, match="shutdown"):
        given.submit(identity)
    assert bare.submit(identity, 3).result() == 3
    bare.shutdown()


async def test_a_registered_backend_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text(
        "from asyncflow.backends import ThreadBackend\ndef make(): return ThreadBackend(1, name='theirs')\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[asyncflow.backends]\ntheirs = theirs:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    async with WorkflowEngine.create(["theirs", "noop"]) as flow:
        assert await soon(flow.function_task(backend="theirs")(identity)(1)) == 1
    with pytest.raises(UnknownBackendError, match=r"'their' is not known; known are .*'theirs'.*did you mean 'theirs'"):
        await WorkflowEngine.create("their")


@pytest.mark.parametrize("wrong", [7, [], object(), NoopBackend, {"io": NoopBackend()}, [None]])
async def test_what_is_no_backend_is_refused(wrong: Any) -> None:
    with pytest.raises(NotABackendError, match=r"give a backend, a concurrent\.futures\.Executor, a name"):
        await WorkflowEngine.create(wrong)


async def test_two_backends_of_one_name_are_refused(no_leaks: None) -> None:
    with pytest.raises(DuplicateBackendError, match=r"two backends are named 'threads'; give each its own"):
        await WorkflowEngine.create([ThreadBackend(1), "threads"])


class Broken(FakeBackend):
    """Does not start."""

    async def start(self, reporter: Any) -> None:
        raise OSError("no route to host")


class Outdated(FakeBackend):
    """Written for another version of the contract."""

    def __init__(self) -> None:
        super().__init__("outdated")
        object.__setattr__(self.capabilities, "contract_version", 0)


async def test_a_backend_that_does_not_start_takes_nothing_along(no_leaks: None) -> None:
    first = FakeBackend("first")
    with pytest.raises(BackendStartError, match="backend 'broken' did not start: OSError: no route") as caught:
        await WorkflowEngine.create([first, ThreadBackend(1), Broken("broken"), FakeBackend("never started")])
    assert isinstance(caught.value.__cause__, OSError)
    assert first.stopped
    async with faked():
        module_tasks.double(1)  # the only engine that is open


async def test_a_backend_for_another_contract_is_refused() -> None:
    with pytest.raises(ContractVersionError, match="'outdated' is written for version 0 of the backend contract"):
        await WorkflowEngine.create(Outdated())


@pytest.mark.parametrize("make", [ThreadBackend, ProcessBackend])
async def test_a_backend_may_serve_one_engine_after_the_other(make: Callable[[int], Backend], no_leaks: None) -> None:
    backend = make(1)
    for _ in range(2):
        async with WorkflowEngine.create(backend) as flow:
            tasks = [flow.function_task(module_tasks.double.fn), flow.function_task(module_tasks.triple.fn)]
            command = flow.executable_task(identity)("echo hello")
            assert await soon(asyncio.gather(*(task(1) for task in tasks), command)) == [2, 3, "hello\n"]


async def test_a_backend_serves_one_engine_at_a_time() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(identity)()
        with pytest.raises((AsyncflowError, ValueError, RuntimeError), match="fake"):
            await WorkflowEngine.create(backend)
        assert await finish(backend, future, 1) == 1


async def test_an_engine_works_in_asyncios_debug_mode() -> None:
    asyncio.get_running_loop().set_debug(True)
    async with WorkflowEngine.create(["threads", "processes"]) as flow:
        futures = [module_tasks.sextuple(1), flow.function_task(backend="processes")(module_tasks.triple.fn)(1)]
        assert await soon(asyncio.gather(*futures)) == [6, 3]
        assert await soon(module_tasks.greet("you")) == "hello you"


@pytest.mark.parametrize("options", [{"history": -1}, {"block_warning": -0.5}], ids=str)
def test_an_option_of_create_out_of_range_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=f"{next(iter(options))}="):
        WorkflowEngine.create(**options)


@pytest.mark.parametrize("backend", [ThreadBackend, ProcessBackend])
def test_a_backend_has_workers(backend: Callable[..., object]) -> None:
    with pytest.raises(InvalidOptionError, match="workers=0 is not possible: a whole number of at least 1"):
        backend(0)


def test_an_executor_backend_wants_an_executor() -> None:
    with pytest.raises(InvalidOptionError, match=r"a concurrent\.futures\.Executor"):
        ExecutorBackend("threads")  # type: ignore[arg-type]  # the mistake under test


async def test_files_stand_below_work_dir_and_uid_and_only_when_there_are_some(tmp_path: Path) -> None:
    async with WorkflowEngine.create(ThreadBackend(1), work_dir=tmp_path / "files", uid="mine") as flow:
        assert flow.uid == "mine"
        assert await soon(flow.function_task(identity)(1)) == 1
        assert not (tmp_path / "files").exists()
        command = flow.executable_task(capture_stdio=True)(lambda: ["echo", "hello"])()
        path = Path(await soon(command))
        assert path.parent == tmp_path / "files" / "mine"
        assert path.read_text() == "hello\n"


async def test_engines_have_different_uids() -> None:
    async with faked() as (one, _), faked() as (other, _):
        assert one.uid != other.uid


# --- what an engine touches, and what it does not --------------------------------------------------------------------


async def test_an_engine_installs_no_signal_handler_and_no_policy() -> None:
    def touched() -> list[object]:
        handlers: list[object] = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
        return [*handlers, signal.set_wakeup_fd(-1), asyncio.get_event_loop_policy()]

    before = touched()
    async with WorkflowEngine.create(["threads", "processes"]) as flow:
        assert await soon(flow.function_task(identity)(1)) == 1
        assert await soon(flow.function_task(backend="processes")(identity)(1)) == 1
        assert await soon(flow.executable_task(identity)("true")) == ""
        assert touched() == before


async def test_an_engine_has_no_task_among_the_users() -> None:
    before = asyncio.all_tasks()
    async with WorkflowEngine.create() as flow:
        assert await soon(flow.function_task(identity)(1)) == 1
        assert asyncio.all_tasks() == before


# --- shutdown in every state -----------------------------------------------------------------------------------------

Began = Callable[[WorkflowEngine, Path], Awaitable[list[TaskFuture[Any]]]]


async def _until(file: Path) -> None:
    """Wait until a task has left this file: a worker process has no event to set."""
    for _ in range(3000):
        if file.exists():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{file} never came")


def sleep_after(file: str) -> None:
    Path(file).touch()
    time.sleep(1000)


async def wait_after(file: str) -> None:
    Path(file).touch()
    await asyncio.Event().wait()


async def _idle(flow: WorkflowEngine, file: Path) -> list[TaskFuture[Any]]:
    return []


async def _just_called(flow: WorkflowEngine, file: Path) -> list[TaskFuture[Any]]:
    first = flow.function_task(identity)(1)
    return [first, flow.function_task(identity)(first)]


async def _ended(flow: WorkflowEngine, file: Path) -> list[TaskFuture[Any]]:
    futures = await _just_called(flow, file)
    await soon(asyncio.gather(*futures))
    return futures


async def _waiting(flow: WorkflowEngine, file: Path) -> list[TaskFuture[Any]]:
    return [flow.function_task(identity)(asyncio.get_running_loop().create_future())]


async def _coroutines(flow: WorkflowEngine, file: Path) -> list[TaskFuture[Any]]:
    futures = [flow.function_task(wait_after)(str(file)) for _ in range(20)]
    await _until(file)
    return futures


async def _executables(flow: WorkflowEngine, file: Path) -> list[TaskFuture[Any]]:
    script = flow.executable_task(shell=True)(lambda: f"touch {file}; sleep 1000 & sleep 1000")
    futures = [script() for _ in range(5)]
    await _until(file)
    return futures


async def _retrying(flow: WorkflowEngine, file: Path) -> list[TaskFuture[Any]]:
    future = flow.function_task(retries=1, retry_delay=1000.0)(int)("x")
    for _ in range(3000):
        if flow.components[future.uid].attempt and not flow._scheduler.out():
            return [future]
        await asyncio.sleep(0.01)
    raise AssertionError("the first attempt never failed")


async def _in_blocks(flow: WorkflowEngine, file: Path) -> list[TaskFuture[Any]]:
    @flow.block
    async def inner() -> None:
        await flow.function_task(wait_after)(str(file))

    @flow.block
    async def outer() -> None:
        await inner()

    futures = [outer(), flow.function_task(identity)(outer())]
    await _until(file)
    return futures


async def _many(flow: WorkflowEngine, file: Path) -> list[TaskFuture[Any]]:
    futures = [flow.function_task(identity)(number) for number in range(3000)]
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    return futures


STATES = [_idle, _just_called, _ended, _waiting, _coroutines, _executables, _retrying, _in_blocks, _many]


@pytest.mark.parametrize("backend", [ThreadBackend, ProcessBackend])
@pytest.mark.parametrize("began", STATES)
async def test_shutdown_leaves_nothing_behind(
    began: Began, backend: Callable[[int], Backend], tmp_path: Path, no_leaks: None, caplog: pytest.LogCaptureFixture
) -> None:
    flow = await WorkflowEngine.create(backend(2))
    futures = await began(flow, tmp_path / "began")
    await soon(flow.shutdown())
    assert all(future.done() for future in futures)
    assert {future.state for future in futures} <= {State.DONE, State.CANCELLED}
    assert flow._scheduler.out() == 0
    assert len(flow._scheduler.unfinished) == 0
    flow._scheduler.validate()
    for future in futures:
        if future.cancelled():
            with pytest.raises(asyncio.CancelledError, match=r"was shut down|was cancelled"):
                future.result()
    assert caplog.records == []
    with pytest.raises(EngineClosedError):
        flow.function_task(identity)()


async def test_a_running_function_costs_its_worker_process(tmp_path: Path, no_leaks: None) -> None:
    flow = await WorkflowEngine.create(ProcessBackend(2))
    future = flow.function_task(sleep_after)(str(tmp_path / "began"))
    await _until(tmp_path / "began")
    await soon(flow.shutdown())
    assert future.cancelled()


async def test_a_thread_stuck_in_user_code_is_named(no_leaks: None, caplog: pytest.LogCaptureFixture) -> None:
    flow = await WorkflowEngine.create(ThreadBackend(1))
    running, release = threading.Event(), threading.Event()

    @flow.function_task
    def stuck() -> None:
        running.set()
        release.wait(30)

    future = stuck()
    await soon(asyncio.to_thread(running.wait))
    with caplog.at_level(logging.WARNING, "asyncflow"):
        await soon(flow.shutdown(grace=0.01))
    assert future.cancelled()
    assert re.search(rf"thread 'threads-0' did not end: it is stuck in 'stuck' \({future.uid}\)", caplog.text)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "threads-0"]
    assert thread.daemon
    release.set()
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_leaving_without_an_error_waits_for_what_is_unfinished() -> None:
    results: list[int] = []
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:

        @flow.block
        async def outer() -> None:
            results.append(await flow.function_task(identity)(await flow.function_task(identity)(1)))

        outer()
    assert results == [1]


async def test_leaving_with_an_error_cancels_what_is_unfinished(no_leaks: None) -> None:
    futures: list[TaskFuture[Any]] = []

    async def body() -> None:
        async with WorkflowEngine.create(ThreadBackend(1)) as flow:
            futures.append(flow.function_task(identity)(asyncio.get_running_loop().create_future()))
            raise ValueError("from the body")

    with pytest.raises(ValueError, match="from the body"):
        await soon(body())
    assert futures[0].cancelled()


async def test_leaving_while_a_task_fails_raises_nothing_more() -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        future = flow.function_task(int)("x")
    assert isinstance(future.exception(), ValueError)


async def test_a_cancelled_body_shuts_the_engine_down(no_leaks: None, tmp_path: Path) -> None:
    futures: list[TaskFuture[Any]] = []
    running = asyncio.Event()

    async def body() -> None:
        async with WorkflowEngine.create(ThreadBackend(2)) as flow:
            futures.extend(await _executables(flow, tmp_path / "began"))
            running.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(body())
    await soon(running.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    assert all(future.cancelled() for future in futures)


async def test_shutdown_may_be_called_twice_and_by_several_at_once() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(identity)()
        await item_of(backend, future)
        await asyncio.gather(flow.shutdown(), flow.shutdown())
        await flow.shutdown()
        assert future.cancelled()
        assert backend.stopped


class Slow(FakeBackend):
    """Takes its time to stop."""

    def __init__(self) -> None:
        super().__init__("slow")
        self.stopping = asyncio.Event()
        self.may_stop = asyncio.Event()

    async def stop(self, grace: float) -> None:
        self.stopping.set()
        await self.may_stop.wait()
        await super().stop(grace)


async def test_a_shutdown_that_nobody_waits_for_any_more_goes_on() -> None:
    backend = Slow()
    flow = await WorkflowEngine.create(backend)
    first = asyncio.ensure_future(flow.shutdown())
    await soon(backend.stopping.wait())
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    backend.may_stop.set()
    await soon(flow.shutdown())
    assert backend.stopped


class Unstoppable(FakeBackend):
    """Fails when it is stopped, and keeps its items."""

    async def stop(self, grace: float) -> None:
        raise OSError("it does not end")


async def test_a_backend_that_does_not_stop_keeps_no_other_and_no_future() -> None:
    bad, good = Unstoppable("bad", ends_cancelled=False), FakeBackend("good")
    flow = await WorkflowEngine.create([bad, good])
    future = flow.function_task(identity)()
    await item_of(bad, future)
    with pytest.raises(OSError, match="it does not end"):
        await soon(flow.shutdown())
    assert good.stopped
    assert future.cancelled()


async def test_drain_waits_for_every_call_and_leaves_the_engine_open() -> None:
    async with faked() as (flow, backend):
        await soon(flow.drain())
        good, bad = flow.function_task(identity)(), flow.function_task(identity)()
        dependent = flow.function_task(identity)(good)
        draining = [asyncio.ensure_future(flow.drain()) for _ in range(2)]
        await finish(backend, good)
        await fail(backend, bad, ValueError("broken"))
        await turns(3)
        assert not any(waiter.done() for waiter in draining)
        await finish(backend, dependent)
        await soon(asyncio.gather(*draining))
        assert isinstance(bad.exception(), ValueError)
        assert await finish(backend, flow.function_task(identity)(), 1) == 1


async def test_a_waiter_for_the_drain_may_give_up() -> None:
    async with faked() as (flow, backend):
        future = flow.function_task(identity)()
        draining = asyncio.ensure_future(flow.drain())
        await turns(2)
        draining.cancel()
        await turns(1)
        await finish(backend, future)
        await soon(flow.drain())


async def test_a_worker_loop_that_is_stopped_while_it_takes_a_coroutine_ends() -> None:
    reporter, queue = RecordingReporter(), CoroutineQueue()
    loop = CoroutineLoop(queue, reporter, Place("worker"), 10)
    item = WorkItem(Definition(wait_after, Kind.FUNCTION, "wait", is_async=True), ("unused",), {})
    queue.items.append(item)
    loop.wake()
    loop.stop()
    loop.thread.start()
    await soon(asyncio.to_thread(loop.thread.join))
    assert reporter.reports(item)[-1:] in ([], ["finished"])
    assert bool(queue.items) != bool(reporter.ends(item)), "either it was never taken, or it was reported"


# --- the end of the program ------------------------------------------------------------------------------------------


def test_an_engine_that_was_forgotten_is_shut_down_with_a_warning() -> None:
    stopped: list[FakeBackend] = []

    async def forget() -> None:
        stopped.append(FakeBackend())
        flow = await WorkflowEngine.create(stopped[0], uid="forgotten")
        flow.function_task(identity)()
        await turns(2)

    with pytest.warns(ResourceWarning, match="engine 'forgotten' was never shut down"):
        asyncio.run(forget())
    assert stopped[0].stopped


def test_an_engine_that_was_shut_down_warns_of_nothing() -> None:
    async def use() -> None:
        flow = await WorkflowEngine.create(FakeBackend())
        await flow.shutdown()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(use())
        gc.collect()


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in (b"Z", b"X")


def _all_dead(pids: list[int], within: float) -> bool:
    deadline = time.monotonic() + within
    while any(map(_is_alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


PROGRAM = """
import asyncio, os, signal, sys, time
from pathlib import Path
from asyncflow import WorkflowEngine

# Ignored where the tests run in the background of a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)

async def main() -> None:
    async with WorkflowEngine.create(sys.argv[1]) as flow:
        @flow.executable_task(shell=True)
        def command(name: str) -> str:
            return f"echo $$ >> {name}; (setsid sh -c 'echo $$ >> {name}; exec sleep 1000') & sleep 1000"

        @flow.function_task
        def worker(name: str) -> None:
            with open(name, "a") as file:
                file.write(f"{os.getpid()}\\n")
            while True:
                time.sleep(1000)

        here = Path("pids")
        futures = [command(str(here.absolute()))]
        if sys.argv[1] == "processes":
            futures.append(worker(str(here.absolute())))
        while not here.exists() or here.read_text().count("\\n") < 1 + len(futures):
            await asyncio.sleep(0.01)
        print("began", flush=True)
        if sys.argv[2] == "wait":
            await asyncio.gather(*futures)
        os._exit(0)

asyncio.run(main())
"""


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts PROGRAM and waits until its tasks run; gives the process and the pids of what it started."""
    started = []

    def start(*arguments: str) -> tuple[Any, list[int]]:
        process = start_script(PROGRAM, *arguments)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"began\n", process.communicate()
        return process, [int(line) for line in (tmp_path / "pids").read_text().split()]

    monkeypatch.chdir(tmp_path)
    yield start
    for process in started:
        process.kill()
        process.communicate()
    if (tmp_path / "pids").exists():
        for line in (tmp_path / "pids").read_text().split():
            if _is_alive(int(line)):
                os.kill(int(line), signal.SIGKILL)


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_a_killed_engine_takes_its_workers_and_executables_with_it(backend: str, program: Callable[..., Any]) -> None:
    process, pids = program(backend, "wait")
    assert all(map(_is_alive, pids))
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert _all_dead(pids, within=10.0)


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_an_interrupted_program_ends_in_good_order(backend: str, program: Callable[..., Any]) -> None:
    process, pids = program(backend, "wait")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert stderr.decode().splitlines()[-1] == "KeyboardInterrupt"
    assert b"was never" not in stderr
    assert b"Task was destroyed" not in stderr
    assert _all_dead(pids, within=0.0)


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_a_program_that_leaves_at_once_takes_its_work_along(backend: str, program: Callable[..., Any]) -> None:
    process, pids = program(backend, "leave")
    process.wait(30)
    assert _all_dead(pids, within=10.0)


def test_a_stuck_thread_does_not_keep_the_program_alive() -> None:
    run = run_script(
        """
import asyncio, threading, time
from asyncflow import WorkflowEngine

async def main():
    async with WorkflowEngine.create("threads") as flow:
        running = threading.Event()
        def stuck():
            running.set()
            time.sleep(1000)
        flow.function_task(stuck)()
        await asyncio.get_running_loop().run_in_executor(None, running.wait)
        await flow.shutdown(grace=0.01)

asyncio.run(main())
print("the end")
"""
    )
    assert (run.returncode, run.stdout) == (0, "the end\n"), run.stderr
    assert "stuck in 'stuck'" in run.stderr


# --- asyncflow.run ---------------------------------------------------------------------------------------------------


def test_run_makes_an_engine_around_a_plain_script() -> None:
    async def main() -> int:
        return await module_tasks.double(2)

    async def main_with_engine(flow: WorkflowEngine) -> tuple[str, int]:
        return flow.uid, await flow.function_task(identity)(3)

    assert asyncflow.run(main) == 4
    assert asyncflow.run(main_with_engine, "threads", uid="mine") == ("mine", 3)


def test_run_raises_what_its_main_raises() -> None:
    async def main() -> None:
        raise ValueError("from main")

    with pytest.raises(ValueError, match="from main"):
        asyncflow.run(main)


def test_run_takes_a_coroutine_function() -> None:
    def main() -> None:
        """Is not one."""

    with pytest.raises(TaskDefinitionError, match=r"'main' .*asyncflow\.run\(\) takes an 'async def' function"):
        asyncflow.run(main)  # type: ignore[arg-type]  # the mistake under test


# --- flow.map --------------------------------------------------------------------------------------------------------


async def test_map_gives_results_in_the_order_of_the_inputs() -> None:
    async with WorkflowEngine.create(ThreadBackend(2)) as flow:
        power: Any = flow.function_task(pow)
        assert await soon(flow.map(power, range(5), itertools.repeat(2))._all()) == [0, 1, 4, 9, 16]
        assert [value async for value in flow.map(flow.function_task(abs), [-3, -1, -2], window=2)] == [3, 1, 2]
        assert await flow.map(flow.function_task(abs), []) == []
        assert await flow.map(flow.function_task(abs)) == []


async def test_a_map_gives_its_results_once() -> None:
    async with WorkflowEngine.create(ThreadBackend(2)) as flow:
        results = flow.map(flow.function_task(abs), [-1, -2])
        assert await results == [1, 2]
        with pytest.raises(MapUsedError, match="'abs'"):
            await results


async def test_a_map_over_many_inputs_keeps_the_loop_free() -> None:
    async with WorkflowEngine.create(NoopBackend(), history=0) as flow:
        beats, longest, since = 0, 0, 0
        submitted = itertools.count()

        def inputs() -> Iterator[int]:
            nonlocal longest, since
            for number in range(100_000):
                next(submitted)
                since += 1
                longest = max(longest, since)
                yield number

        async def heart() -> None:
            nonlocal beats, since
            while True:
                beats += 1
                since = 0
                await asyncio.sleep(0)

        beating = asyncio.ensure_future(heart())
        count = 0
        async for _ in flow.map(flow.function_task(identity), inputs()):
            count += 1
        beating.cancel()
        assert (count, next(submitted)) == (100_000, 100_000)
        assert beats >= 100
        assert longest <= 2000, "calls made between two turns of the loop"


async def test_a_map_is_at_most_a_window_ahead() -> None:
    async with faked(workers=100) as (flow, backend):
        taken: list[int] = []

        def endless() -> Iterator[int]:
            for number in itertools.count():
                taken.append(number)
                yield number

        results = flow.map(flow.function_task(identity), endless(), window=5)
        iterator = results.__aiter__()
        for expected in range(20):
            step = asyncio.ensure_future(iterator.__anext__())
            await turns(3)
            assert len(backend.items) <= 5
            assert len(taken) <= expected + 5
            backend.call(backend.items[0])
            assert await soon(step) == expected
        await iterator.aclose()
        assert len(backend.items) == 0, "leaving cancels what is still out"


async def test_a_consumer_slower_than_the_tasks_keeps_the_loop_free() -> None:
    """All of a window has ended when the consumer comes back: even so it takes turns with the rest of the program."""
    async with WorkflowEngine.create(NoopBackend(), history=0) as flow:
        calls_since_beat, longest = 0, 0

        def inputs() -> Iterator[int]:
            nonlocal calls_since_beat, longest
            for number in range(30_000):
                calls_since_beat += 1
                longest = max(longest, calls_since_beat)
                yield number

        async def heart() -> None:
            nonlocal calls_since_beat
            while True:
                calls_since_beat = 0
                await asyncio.sleep(0)

        beating = asyncio.ensure_future(heart())
        count = 0
        async for _ in flow.map(flow.function_task(identity), inputs(), window=10_000):
            count += 1
            if count == 1:
                await flow.drain()
        beating.cancel()
        assert count == 30_000
        assert longest <= 2000


async def test_a_failure_in_a_map_is_raised_and_cancels_the_rest() -> None:
    async with faked(workers=10) as (flow, backend):
        mapped = asyncio.ensure_future(flow.map(flow.function_task(identity), range(10))._all())
        items = await backend.submitted_items(10)
        backend.finish(items[0], 0)
        backend.fail(items[1], ValueError("broken"))
        with pytest.raises(ValueError, match="broken"):
            await soon(mapped)
        await turns(2)
        assert backend.items == []
        assert backend.cancelled == items[2:]


async def test_cancelling_a_map_cancels_its_calls() -> None:
    async with faked(workers=10) as (flow, backend):
        mapped = asyncio.ensure_future(flow.map(flow.function_task(identity), range(10))._all())
        await backend.submitted_items(10)
        mapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await mapped
        await turns(2)
        assert backend.items == []


async def test_breaking_out_of_a_map_cancels_its_calls() -> None:
    async with faked(workers=10) as (flow, backend):

        async def first_of(results: AsyncIterator[Any]) -> Any:
            async for result in results:
                return result
            return None

        first = asyncio.ensure_future(first_of(flow.map(flow.function_task(identity), range(10)).__aiter__()))
        items = await backend.submitted_items(10)
        backend.finish(items[0], "first")
        assert await soon(first) == "first"
        gc.collect()
        await turns(5)
        assert backend.items == []


@pytest.mark.parametrize("window", [0, -1, 2.5, "many"])
async def test_a_window_is_a_positive_number(window: Any) -> None:
    async with faked() as (flow, _):
        with pytest.raises(InvalidOptionError, match="window="):
            flow.map(flow.function_task(identity), [1], window=window)


async def test_map_takes_a_task() -> None:
    async with faked() as (flow, _):
        with pytest.raises(TaskDefinitionError, match=r"flow\.map takes a task"):
            flow.map(identity, [1])  # type: ignore[arg-type]  # the mistake under test


async def test_an_engine_is_cancelled_on_its_own_loop_only() -> None:
    async with WorkflowEngine.create(ThreadBackend(1)) as flow:
        with pytest.raises(ForeignThreadError, match=r"'flow\.cancel' was called from thread"):
            await aside(lambda: flow.cancel("campaign"))
        with pytest.raises(ForeignThreadError, match=r"'flow\.shutdown' was called from thread"):
            await aside(lambda: asyncio.run(flow.shutdown()))


async def test_a_broken_pool_whose_worker_does_not_hear_that_it_is_to_end() -> None:
    """The standard library's pool sends TERM to all workers and waits for them, whatever they do."""
    pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver"))
    flow = await WorkflowEngine.create(LocalExecutionBackend(pool))
    nap = flow.function_task(time.sleep)
    await asyncio.gather(nap(0.1), nap(0.1))  # a worker for each
    deaf, dead = pool._processes
    os.kill(deaf, signal.SIGSTOP)
    os.kill(dead, signal.SIGKILL)
    with pytest.raises(BackendLostError):
        await nap(0)
    await soon(flow.shutdown())
