"""Spans: one tree, with the graph's edges as links, through every kind of worker."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from asyncflow import WorkflowEngine
from asyncflow.backends import DaskBackend, ProcessBackend, ThreadBackend
from asyncflow.backends.aside import aside
from asyncflow.errors import ForeignTracerProviderError
from asyncflow.telemetry import session as session_module
from asyncflow.testing.bodies import echo
from tests.support.faked import soon
from tests.support.scripts import run_script
from tests.support.telemetry import events, of, told


class Seen:
    """The spans that one session's processor was given."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.processor = SimpleSpanProcessor(self.exporter)

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def of_task(self, uid: str) -> ReadableSpan:
        """The span of one component."""
        (found,) = (span for span in self.all if _attribute(span, "asyncflow.task_id") == uid and _kind(span))
        return found

    def named(self, name: str) -> ReadableSpan:
        (found,) = (span for span in self.all if span.name == name)
        return found


@pytest.fixture
def seen() -> Seen:
    return Seen()


def _attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


def _kind(span: ReadableSpan) -> Any:
    """Of a component's span; None for others."""
    return _attribute(span, "task_type")


def _context(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def _parent(span: ReadableSpan) -> int | None:
    parent = span.parent
    return None if parent is None else int(parent.span_id)


async def test_the_tree_is_session_workflow_task(seen: Seen, no_leaks: None) -> None:
    async with told(None, path=None, span_processors=[seen.processor]) as (flow, _):
        step = flow.function_task(name="step")(echo)

        @flow.block
        async def block() -> Any:
            return await step(2)

        async with flow.workflow_scope("experiment"):
            inside = step(1)
            called = block()
            await asyncio.gather(inside, called)
        outside = step(3)
        await outside
    session, workflow = seen.named("asyncflow.session"), seen.named("workflow experiment")
    below = next(span for span in seen.all if _parent(span) == _context(seen.of_task(called.uid)).span_id)
    assert session.parent is None
    assert _parent(workflow) == _context(session).span_id
    assert _parent(seen.of_task(inside.uid)) == _context(workflow).span_id
    assert _parent(seen.of_task(called.uid)) == _context(workflow).span_id
    assert _attribute(below, "asyncflow.workflow_id") == "experiment"
    assert _parent(seen.of_task(outside.uid)) == _context(session).span_id
    assert len({_context(span).trace_id for span in seen.all}) == 1
    assert all(span.status.status_code is StatusCode.OK for span in seen.all if _kind(span))


async def test_a_workflows_span_contains_its_tasks_and_ends_with_its_scope(seen: Seen, no_leaks: None) -> None:
    async with told(None, path=None, span_processors=[seen.processor]) as (flow, telemetry):
        step = flow.function_task(name="step")(echo)
        async with flow.workflow_scope("first"):
            await step(1)
            await step(2)
        await step(3, workflow_id="named only")
        telemetry.summary()
        await aside(lambda: _wait_for(seen, "workflow first"))
        assert "workflow named only" not in {span.name for span in seen.all}
    workflow = seen.named("workflow first")
    tasks = [span for span in seen.all if _parent(span) == _context(workflow).span_id]
    assert len(tasks) == 2
    for span in tasks:
        moments = [each or 0 for each in (workflow.start_time, span.start_time, span.end_time, workflow.end_time)]
        assert moments == sorted(moments)
    assert "workflow named only" in {span.name for span in seen.all}


def _wait_for(seen: Seen, name: str) -> None:
    for _ in range(1000):
        if name in {span.name for span in seen.all}:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"no span {name!r} came")


async def test_a_tasks_span_tells_its_moments_and_its_failure(seen: Seen, no_leaks: None) -> None:
    async with told(None, path=None, span_processors=[seen.processor]) as (flow, _):

        @flow.function_task(retries=1)
        def fails() -> None:
            raise ValueError("no such column")

        future = fails()
        await asyncio.wait([future])
        assert future.exception() is not None
        uid = future.uid
    span = seen.of_task(uid)
    moments = [event.name for event in span.events]
    assert moments == ["ready", "submitted", "started", "retried", "submitted", "started", "exception"]
    exception = span.events[-1].attributes or {}
    assert exception["exception.type"] == "ValueError"
    assert "raise ValueError" in str(exception["exception.stacktrace"])
    assert _attribute(span, "cicd.pipeline.task.run.result") == "failure"
    assert _attribute(span, "error.type") == "ValueError"
    assert span.status.status_code is StatusCode.ERROR


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_links_are_the_edges(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 25))
    needs: list[list[int]] = [[]]
    for number in range(1, size):
        needs += [sorted(data.draw(st.sets(st.integers(0, number - 1), max_size=4)))]
    seen = Seen()

    async def run() -> list[str]:
        async with told(ThreadBackend(2), path=None, span_processors=[seen.processor]) as (flow, _):
            step = flow.function_task(name="step")(lambda *_: None)
            futures: list[Any] = []
            for each in needs:
                futures.append(step(*(futures[number] for number in each)))
            await asyncio.gather(*futures)
            return [future.uid for future in futures]

    uids = asyncio.run(run())
    ids = {_context(seen.of_task(uid)).span_id: uid for uid in uids}
    for uid, each in zip(uids, needs, strict=True):
        links = [ids[link.context.span_id] for link in seen.of_task(uid).links]
        assert links == [uids[number] for number in each]


async def test_a_wide_task_has_all_its_links(seen: Seen, no_leaks: None) -> None:
    async with told(None, path=None, span_processors=[seen.processor]) as (flow, _):
        step = flow.function_task(name="step")(lambda *_: None)
        last = step(*(step() for _ in range(500)))
        await last
        uid = last.uid
    assert len(seen.of_task(uid).links) == 500


async def test_five_workflows_and_two_engines_never_mix(no_leaks: None) -> None:
    expected: dict[tuple[str, str], str] = {}

    async def engine(seen: Seen) -> str:
        async with told(None, path=None, span_processors=[seen.processor]) as (flow, _):
            step = flow.function_task(name="step")(echo)

            async def one(name: str) -> None:
                async with flow.workflow_scope(name):
                    for number in range(5):
                        first, other = step(number), step(number, workflow_id="other")
                        expected[flow.uid, first.uid], expected[flow.uid, other.uid] = name, "other"
                        await asyncio.gather(first, other)

            await asyncio.gather(*(one(f"campaign {number}") for number in range(5)))
            return flow.uid

    both = Seen(), Seen()
    sessions = await asyncio.gather(*map(engine, both))
    for seen, session in zip(both, sessions, strict=True):
        assert {_attribute(span, "asyncflow.session_id") for span in seen.all} == {session}
        tasks = [span for span in seen.all if _kind(span)]
        assert len(tasks) == 50
        for span in tasks:
            uid = str(_attribute(span, "asyncflow.task_id"))
            workflow = seen.named(f"workflow {expected[session, uid]}")
            assert _attribute(span, "asyncflow.workflow_id") == expected[session, uid]
            assert _parent(span) == _context(workflow).span_id


# --- the work itself --------------------------------------------------------------------------------------------------


def open_a_span(name: str) -> tuple[str, int]:
    """What the current span is, after a span of the user's own was opened and closed in it."""
    with trace.get_tracer("user").start_as_current_span(name) as span:
        span.set_attribute("energy", -1.5)
        logging.getLogger("user").warning("inside")
    return f"{trace.get_current_span().get_span_context().span_id:016x}", os.getpid()


async def open_a_span_async(name: str) -> tuple[str, int]:
    await asyncio.sleep(0)
    return open_a_span(name)


@pytest.fixture(params=["threads", "processes", "dask"])
def backend(request: pytest.FixtureRequest) -> Any:
    """One worker of each kind."""
    made = {"threads": ThreadBackend, "processes": ProcessBackend, "dask": DaskBackend}[request.param]
    return made(workers=1)


@pytest.mark.parametrize("body", [open_a_span, open_a_span_async])
async def test_spans_of_user_code_come_back(backend: Any, body: Any, seen: Seen, no_leaks: None) -> None:
    async with told(backend, span_processors=[seen.processor]) as (flow, telemetry):
        async with flow.workflow_scope("experiment"):
            future = flow.function_task(name="work")(body)("inner")
            current, _ = await future
        uid, path = future.uid, telemetry.path
    inner, task = seen.named("inner"), seen.of_task(uid)
    assert _parent(inner) == _context(task).span_id
    assert current == f"{_context(task).span_id:016x}"
    assert _context(inner).trace_id == _context(task).trace_id
    assert _attribute(inner, "energy") == -1.5
    assert _attribute(inner, "asyncflow.workflow_id") == "experiment"
    assert _attribute(inner, "asyncflow.task_id") == uid
    assert {event["span_id"] for event in of(events(path), uid)} == {current}


async def test_on_threads_the_current_span_is_the_recording_one(seen: Seen, no_leaks: None) -> None:
    def tell() -> None:
        trace.get_current_span().set_attribute("energy", -1.5)

    async with told(None, path=None, span_processors=[seen.processor]) as (flow, _):
        future = flow.function_task(name="tell")(tell)()
        await future

        @flow.block
        async def block() -> None:
            tell()

        called = block()
        await called
    assert _attribute(seen.of_task(future.uid), "energy") == -1.5
    assert _attribute(seen.of_task(called.uid), "energy") == -1.5


#: Starts a span from TRACEPARENT, and prints what an exporter would send.
PROGRAM = """
import os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

carrier = {"traceparent": os.environ["TRACEPARENT"]}
tracer = TracerProvider().get_tracer("program")
with tracer.start_as_current_span("program", TraceContextTextMapPropagator().extract(carrier)) as span:
    context = span.get_span_context()
    print(f"{context.trace_id:032x} {span.parent.span_id:016x}")
"""


async def test_a_command_starts_spans_from_its_environment(backend: Any, seen: Seen, no_leaks: None) -> None:
    async with told(backend, path=None, span_processors=[seen.processor]) as (flow, _):

        @flow.executable_task
        def program() -> list[str]:
            return [sys.executable, "-c", PROGRAM]

        future = program()
        printed = await soon(future)
    context = _context(seen.of_task(future.uid))
    assert printed.split() == [f"{context.trace_id:032x}", f"{context.span_id:016x}"]


async def test_a_commands_span_tells_what_was_run(seen: Seen, no_leaks: None) -> None:
    async with told(None, path=None, span_processors=[seen.processor]) as (flow, _):

        @flow.executable_task
        def works() -> list[str]:
            return ["/bin/sh", "-c", "exit 0"]

        @flow.executable_task
        def fails() -> list[str]:
            return ["/bin/sh", "-c", "exit 3"]

        futures = works(), fails()
        await asyncio.wait(futures)
        assert futures[1].exception() is not None
    for future, code in zip(futures, (0, 3), strict=True):
        span = seen.of_task(future.uid)
        assert _attribute(span, "process.executable.name") == "sh"
        assert _attribute(span, "process.exit.code") == code
        assert _attribute(span, "process.command_args") == ("/bin/sh", "-c", f"exit {code}")


async def test_what_tasks_log_carries_their_ids(seen: Seen, no_leaks: None, caplog: pytest.LogCaptureFixture) -> None:
    async with told(None, path=None, span_processors=[seen.processor]) as (flow, _):
        future = flow.function_task(name="work")(open_a_span)("inner")
        await future
        logging.getLogger("user").warning("outside")
    inside, outside = (record for record in caplog.records if record.name == "user")
    inner = _context(seen.named("inner"))
    assert vars(inside)["otelTraceID"] == f"{inner.trace_id:032x}"
    assert vars(inside)["otelSpanID"] == f"{inner.span_id:016x}"
    assert vars(inside)["asyncflow_task_id"] == future.uid
    assert vars(outside)["asyncflow_task_id"] is None
    assert not hasattr(logging.makeLogRecord({}), "asyncflow_task_id"), "it went with the session"


# --- providers and processors -----------------------------------------------------------------------------------------

NO_PROVIDER = """
import asyncio, os
from opentelemetry import trace
from asyncflow import WorkflowEngine

async def main():
    async with WorkflowEngine.create() as flow:
        await flow.start_telemetry("told.jsonl", resource_interval=None)

        @flow.executable_task
        def variables():
            return ["env"]

        print("TRACEPARENT" in await variables(), type(trace.get_tracer_provider()).__name__)

asyncio.run(main())
"""


def test_without_a_provider_there_are_no_spans() -> None:
    ran = run_script(NO_PROVIDER)
    assert ran.stdout == "False ProxyTracerProvider\n", ran.stderr


OWN_PROVIDER = """
import asyncio, os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from asyncflow import WorkflowEngine

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

def work():
    with trace.get_tracer("user").start_as_current_span("inner"):
        pass

async def main():
    async with WorkflowEngine.create("processes") as flow:
        await flow.start_telemetry(None, resource_interval=None)
        await flow.function_task(work)()

if __name__ == "__main__":
    asyncio.run(main())
    spans = {span.name: span for span in exporter.get_finished_spans()}
    print(sorted(spans), spans["inner"].parent.span_id == spans["work"].context.span_id)
    print(f'{spans["asyncflow.session"].context.trace_id:032x}', f'{spans["asyncflow.session"].parent.span_id:016x}')
"""


def test_the_applications_provider_gets_all_and_the_environments_trace_is_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'a' * 32}-{'b' * 16}-01")
    ran = run_script(OWN_PROVIDER)
    assert ran.stdout.splitlines() == [
        "['asyncflow.session', 'inner', 'work'] True",
        f"{'a' * 32} {'b' * 16}",
    ], ran.stderr


async def test_a_provider_that_takes_no_processors_is_named(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", trace.NoOpTracerProvider)
    async with WorkflowEngine.create() as flow:
        with pytest.raises(ForeignTracerProviderError, match="NoOpTracerProvider, which takes none"):
            await flow.start_telemetry(None, span_processors=[seen.processor])
        await (await flow.start_telemetry(None, resource_interval=None)).stop()


class Stuck(SpanExporter):
    """An exporter that does not come back until it is told to."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def export(self, spans: Iterable[ReadableSpan]) -> SpanExportResult:
        self.free.wait()
        return SpanExportResult.SUCCESS


async def test_a_slow_exporter_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_module, "_PATIENCE", 0.2)
    stuck = Stuck()
    async with told(None, span_processors=[SimpleSpanProcessor(stuck)]) as (flow, telemetry):
        step = flow.function_task(name="step")(echo)
        assert await soon(asyncio.gather(*(step(number) for number in range(100)))) == list(range(100))
        path = telemetry.path
    stuck.free.set()
    assert len([event for event in events(path) if event["event_type"] == "TaskCompleted"]) == 100
    warnings = [record.getMessage() for record in caplog.records if record.name == "asyncflow"]
    assert warnings == ["the telemetry spans did not end in time: what it had not taken yet is lost"]


async def test_processors_go_with_the_session(no_leaks: None) -> None:
    class Noted(SpanProcessor):
        """Notes what it is told."""

        def __init__(self) -> None:
            self.ends: list[str] = []
            self.closed = 0

        def on_end(self, span: ReadableSpan) -> None:
            self.ends.append(span.name)

        def shutdown(self) -> None:
            self.closed += 1

    first, second = Noted(), Noted()
    for processor in (first, second):
        async with told(None, path=None, span_processors=[processor]) as (flow, _):
            await flow.function_task(name="step")(echo)(1)
    assert first.ends == second.ends == ["step", "asyncflow.session"]
    assert (first.closed, second.closed) == (1, 1)


class Raises(SpanProcessor):
    """A processor with a defect."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.ended: list[str] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self._where == "start" and span.name == "step":
            raise RuntimeError("no such exporter")

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span.name)
        if self._where == "end" and span.name == "step":
            raise RuntimeError("no such exporter")


@pytest.mark.parametrize("where", ["start", "end"])
async def test_a_processor_that_raises_costs_the_run_nothing(
    where: str, no_leaks: None, caplog: pytest.LogCaptureFixture
) -> None:
    raises = Raises(where)
    async with told(None, span_processors=[raises]) as (flow, telemetry):
        step = flow.function_task(name="step")(echo)
        async with flow.workflow_scope("w"):
            assert await soon(asyncio.gather(*(step(number) for number in range(5)))) == list(range(5))
        path = telemetry.path
    assert len([event for event in events(path) if event["event_type"] == "TaskCompleted"]) == 5
    assert raises.ended[-2:] == ["workflow w", "asyncflow.session"]
    assert "a span could not be" in caplog.text


async def test_a_block_outside_any_workflow_makes_none(seen: Seen, no_leaks: None) -> None:
    async with told(None, path=None, span_processors=[seen.processor]) as (flow, _):
        step = flow.function_task(name="step")(echo)

        @flow.block
        async def block() -> Any:
            return await step(1)

        await block()
    assert sorted(span.name for span in seen.all) == ["asyncflow.session", "block", "step"]


async def test_what_runs_when_telemetry_stops_has_its_span_ended(seen: Seen, no_leaks: None) -> None:
    held = threading.Event()
    async with told(None, path=None, span_processors=[seen.processor]) as (flow, telemetry):
        future = flow.function_task(name="long")(held.wait)()
        await telemetry.stop()
        held.set()
        await future
    assert [event.name for event in seen.named("long").events][-1] == "interrupted"


async def test_engines_of_one_name_each_have_their_processors(no_leaks: None) -> None:
    first, second = Seen(), Seen()

    async def engine(seen: Seen) -> None:
        async with WorkflowEngine.create(uid="same") as flow:
            await flow.start_telemetry(None, span_processors=[seen.processor], resource_interval=None)
            await flow.function_task(name="step")(echo)(1)

    await asyncio.gather(engine(first), engine(second))
    assert "step" in {span.name for span in first.all}
    assert "step" in {span.name for span in second.all}
