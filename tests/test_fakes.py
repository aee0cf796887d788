"""The fakes that `asyncflow.testing` gives to others keep the contract themselves."""

from __future__ import annotations

import asyncio

import pytest

from asyncflow import BackendLostError, WorkerLostError, WorkflowEngine
from asyncflow.backends.contract import Definition, Kind, WorkItem
from asyncflow.testing.bodies import add
from asyncflow.testing.fakes import FakeBackend, RecordingReporter


async def test_the_test_decides_what_becomes_of_an_item() -> None:
    backend = FakeBackend()
    async with WorkflowEngine.create(backend) as flow:
        task = flow.function_task(max_losses=0)(add)
        well, called, lost = task(1, 2), task(3, 4), task(5, 6)
        first, second, third = await backend.submitted_items(3)
        assert [item.args for item in backend.items] == [(1, 2), (3, 4), (5, 6)]
        backend.begin(first)
        backend.finish(first, 42)
        backend.call(second)
        backend.begin(third)
        backend.lose(third, "the machine burned down")
        assert (await well, await called) == (42, 7)
        with pytest.raises(WorkerLostError, match="burned down"):
            await lost
        assert not backend.items
    assert backend.stopped


async def test_a_cancelled_item_is_open_until_the_test_ends_it() -> None:
    backend = FakeBackend(ends_cancelled=False)
    async with WorkflowEngine.create(backend) as flow:
        future = flow.function_task(add)(1, 2)
        [item] = await backend.submitted_items(1)
        future.cancel()
        assert backend.cancelled == backend.items == [item]
        backend.end_cancelled(item)
        assert not backend.items


async def test_a_breakdown_ends_all_futures() -> None:
    backend = FakeBackend()
    async with WorkflowEngine.create(backend) as flow:
        future = flow.function_task(add)(1, 2)
        await backend.submitted_items(1)
        backend.break_down("no power")
        with pytest.raises(BackendLostError, match="no power"):
            await future


async def test_what_the_contract_forbids_is_an_error() -> None:
    backend = FakeBackend()
    async with WorkflowEngine.create(backend) as flow:
        flow.function_task(add)(1, 2)
        [item] = await backend.submitted_items(1)
        with pytest.raises(ValueError, match="was not cancelled"):
            backend.end_cancelled(item)
        backend.begin(item)
        assert backend.begun(item)
        with pytest.raises(ValueError, match="has begun already"):
            backend.begin(item)
        backend.finish(item)
        with pytest.raises(ValueError, match="has ended already"):
            backend.finish(item)


async def test_a_recorder_keeps_all_reports() -> None:
    backend, reporter = FakeBackend(), RecordingReporter()
    await backend.start(reporter)
    item = WorkItem(Definition(add, Kind.FUNCTION, "add", is_async=False), (1, 2), {})
    backend.submit([item])
    waiting = asyncio.ensure_future(reporter.end(item))
    backend.begin(item)
    await reporter.start(item)
    backend.finish(item, 3)
    assert reporter.ends(item) == [await waiting]
    assert reporter.reports(item) == ["started", "finished"]
    backend.break_down("no power")
    assert reporter.breakdown == "no power"
