"""Whose work runs here: what the conformance suite cannot see of it."""

from __future__ import annotations

import contextvars
import json
import logging
import pickle
import pickletools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from asyncflow import WorkflowEngine
from asyncflow.backends.contract import Definition, ExecutableOptions, Kind, Origin, Outcome, WorkItem
from asyncflow.backends.dask import DaskBackend
from asyncflow.backends.executor import _Call
from asyncflow.backends.launch import environment
from asyncflow.backends.origin import (
    DROPPED_SPANS,
    LOG_SPAN_ID,
    LOG_TASK_ID,
    LOG_TRACE_ID,
    LOG_WORKFLOW_ID,
    SESSION_ID,
    TASK_ID,
    WORKFLOW_ID,
    current,
    enter,
    here,
    inside,
    install_log_ids,
    origin_of,
    remove_log_ids,
    unpack_spans,
    variables,
)
from asyncflow.backends.origin.collector import Collector
from asyncflow.backends.origin.packed import pack
from asyncflow.backends.origin.spans import MOST, Kept
from asyncflow.backends.orphans import Family
from asyncflow.backends.processes import ProcessBackend
from asyncflow.backends.processes.channel import Channel
from asyncflow.backends.radical.description import describe_attempt, slot
from asyncflow.backends.radical.messages import PilotNode
from asyncflow.testing import bodies
from asyncflow.testing.fakes import RecordingReporter
from asyncflow.testing.plugin import MakeEngine
from tests.support.dask_cluster import DaskCluster
from tests.support.scripts import run_script
from tests.support.slurm import SlurmCluster, needs_slurm

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PLAIN = Origin("session-1", "task.000001", "wf-1")
TRACED = PLAIN._replace(traceparent=f"00-{TRACE}-{SPAN}-01", tracestate="vendor=1")

IDS = (LOG_TASK_ID, LOG_WORKFLOW_ID, LOG_TRACE_ID, LOG_SPAN_ID)


@pytest.fixture
def without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if it were not installed."""
    for name in ("opentelemetry", "opentelemetry.trace", "opentelemetry.context"):
        monkeypatch.setitem(sys.modules, name, None)
    current._api.cache_clear()
    current._state.cache_clear()
    yield
    current._api.cache_clear()
    current._state.cache_clear()


@pytest.fixture
def provider() -> TracerProvider:
    """Not the process's: that one can be set once only."""
    return TracerProvider(shutdown_on_exit=False)


def current_ids() -> tuple[str, str]:
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def logged() -> tuple[Any, ...]:
    """What a new log record says."""
    record = logging.makeLogRecord({})
    return tuple(getattr(record, name, "absent") for name in IDS)


# --- what is current -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [PLAIN, TRACED])
def test_an_origin_is_current_inside_and_no_longer(origin: Origin) -> None:
    before = get_current()

    def body() -> None:
        assert here() is origin
        assert origin_of(None) is origin
        assert (get_current() is before) == (origin is PLAIN)
        raise KeyError

    with pytest.raises(KeyError), inside(origin):
        body()
    assert here() is None
    assert get_current() is before


def test_the_current_span_is_the_tasks() -> None:
    with inside(TRACED):
        span = trace.get_current_span()
        assert current_ids() == (TRACE, SPAN)
        context = span.get_span_context()
        assert context.is_remote
        assert context.trace_flags.sampled
        assert context.trace_state.to_header() == "vendor=1"
        assert not span.is_recording()


def test_a_task_without_a_trace_leaves_the_callers_span_current() -> None:
    with inside(TRACED), inside(PLAIN):
        assert here() is PLAIN
        assert current_ids() == (TRACE, SPAN)


def test_the_context_of_a_task_keeps_what_was_entered() -> None:
    context = contextvars.copy_context()
    enter(TRACED, context)()
    assert here() is None
    assert context.run(here) is TRACED
    assert context.run(current_ids) == (TRACE, SPAN)


def test_whose_a_span_is_where_only_opentelemetrys_context_came_along() -> None:
    with inside(TRACED):
        context = get_current()
    found: list[Origin | None] = []

    def other_thread() -> None:
        found.append(origin_of(None))
        token = attach(context)
        found.extend([here(), origin_of(None)])
        detach(token)

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert found == [None, None, TRACED]
    assert origin_of(context) is TRACED


def test_whose_a_span_is_that_begins_a_trace_of_its_own() -> None:
    with inside(TRACED):
        assert origin_of(Context()) is TRACED
    assert origin_of(Context()) is None


@pytest.mark.parametrize("traceparent", ["", "00-x-y-01", "00-1-2", "garbage"])
def test_a_trace_context_that_cannot_be_read_costs_the_trace_alone(traceparent: str) -> None:
    with inside(PLAIN._replace(traceparent=traceparent)) as _:
        assert here() is not None
        assert not trace.get_current_span().get_span_context().is_valid


def test_without_opentelemetry_the_rest_works(without_opentelemetry: None) -> None:
    install_log_ids()
    try:
        with inside(TRACED):
            assert here() is TRACED
            assert origin_of(None) is TRACED
            assert logged() == ("task.000001", "wf-1", TRACE, SPAN)
        assert logged() == (None,) * 4
    finally:
        remove_log_ids()


# --- log records -----------------------------------------------------------------------------------------------------


@pytest.fixture
def factory() -> Iterator[Callable[..., logging.LogRecord]]:
    """The factory of records before anything is installed; what the test leaves is taken away."""
    before = logging.getLogRecordFactory()
    yield before
    remove_log_ids()
    logging.setLogRecordFactory(before)


def test_log_ids_stay_until_the_last_who_wanted_them_goes(factory: Callable[..., logging.LogRecord]) -> None:
    assert logged() == ("absent",) * 4
    install_log_ids()
    ours = logging.getLogRecordFactory()
    install_log_ids()
    assert logging.getLogRecordFactory() is ours, "it wraps itself"
    remove_log_ids()
    assert logged() == (None,) * 4
    remove_log_ids()
    assert logging.getLogRecordFactory() is factory
    remove_log_ids()
    install_log_ids()
    assert logged() == (None,) * 4, "to remove more than was installed makes the next ones count less"


def test_log_ids_leave_other_factories_as_they_are(factory: Callable[..., logging.LogRecord]) -> None:
    def below(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        record.below = True
        return record

    logging.setLogRecordFactory(below)
    install_log_ids()
    ours = logging.getLogRecordFactory()

    def above(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = ours(*args, **kwargs)
        record.above = True
        return record

    logging.setLogRecordFactory(above)
    with inside(PLAIN):
        assert logged() == ("task.000001", "wf-1", None, None)
        remove_log_ids()
        assert logging.getLogRecordFactory() is above, "it took away what is not its own"
        assert logged() == ("absent",) * 4
        record = logging.makeLogRecord({}).__dict__
        assert record["below"]
        assert record["above"]
        install_log_ids()
        assert logged() == ("task.000001", "wf-1", None, None)
    remove_log_ids()
    assert logging.getLogRecordFactory() is above


def test_log_ids_are_those_of_the_innermost_span(
    factory: Callable[..., logging.LogRecord], provider: TracerProvider
) -> None:
    install_log_ids()
    with inside(TRACED):
        assert logged() == ("task.000001", "wf-1", TRACE, SPAN)
        with provider.get_tracer("mine").start_as_current_span("mine"):
            _, own = current_ids()
            assert own != SPAN
            assert logged() == ("task.000001", "wf-1", TRACE, own)
    with provider.get_tracer("mine").start_as_current_span("outside any task"):
        assert logged() == (None, None, *current_ids())


def test_log_ids_of_opentelemetrys_own_instrumentation_stay(factory: Callable[..., logging.LogRecord]) -> None:
    def instrumented(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        record.otelTraceID = record.otelSpanID = "0"
        return record

    logging.setLogRecordFactory(instrumented)
    install_log_ids()
    assert logged() == (None, None, "0", "0")
    with inside(TRACED):
        assert logged()[2:] == (TRACE, SPAN)


def test_log_ids_are_in_a_formatters_reach(
    factory: Callable[..., logging.LogRecord], caplog: pytest.LogCaptureFixture
) -> None:
    install_log_ids()
    with inside(TRACED):
        logging.getLogger("theirs").warning("something")
    [record] = caplog.records
    line = logging.Formatter(f"%({LOG_TASK_ID})s %({LOG_TRACE_ID})s %(message)s").format(record)
    assert line == f"task.000001 {TRACE} something"


# --- environments of commands ----------------------------------------------------------------------------------------


def command(origin: Origin | None, **env: str) -> WorkItem:
    options = ExecutableOptions(env=env)
    item = WorkItem(Definition(bodies.words, Kind.EXECUTABLE, "run", is_async=False, executable=options), (), {})
    item._uid = "task.000001"
    item.origin = origin
    return item


def test_variables_of_a_trace() -> None:
    assert variables(None) == variables(PLAIN) == {}
    assert variables(TRACED) == {"TRACEPARENT": TRACED.traceparent, "TRACESTATE": "vendor=1"}
    # Else the state of another trace, which the worker may have in its own environment, would stand beside it.
    assert variables(TRACED._replace(tracestate=None))["TRACESTATE"] == ""
    assert variables(TRACED, {"TRACEPARENT": "mine"}) == {}


@pytest.mark.parametrize(
    "origin, own, expected",
    [
        (TRACED, {}, (TRACED.traceparent, "vendor=1")),
        (TRACED, {"TRACEPARENT": "mine"}, ("mine", "around=1")),
        (TRACED, {"TRACESTATE": "mine=1"}, (TRACED.traceparent, "mine=1")),
        (PLAIN, {}, ("around", "around=1")),
        (None, {}, ("around", "around=1")),
    ],
)
def test_the_trace_in_a_commands_environment(
    origin: Origin | None, own: dict[str, str], expected: tuple[str, str]
) -> None:
    around = {"TRACEPARENT": "around", "TRACESTATE": "around=1"}
    found = environment(command(origin), Family(1.0, "session"), around, own)
    assert (found["TRACEPARENT"], found["TRACESTATE"]) == expected


@pytest.mark.parametrize(
    "origin, own, expected",
    [(TRACED, {}, TRACED.traceparent), (TRACED, {"TRACEPARENT": "mine"}, "mine"), (None, {}, None)],
)
def test_the_trace_in_the_environment_of_a_pilots_task(
    origin: Origin | None, own: dict[str, str], expected: str | None
) -> None:
    slots = [slot(PilotNode("n1", 0, (0,), (), 100), (0,), ())]
    task = describe_attempt("pilot.1", "pilot", command(origin, **own), ["true"], "/data", slots)
    assert task["environment"].get("TRACEPARENT") == expected


# --- spans as they travel --------------------------------------------------------------------------------------------


class Real(float):
    """A number of a library's that the engine may not have."""


def a_span(provider: TracerProvider) -> ReadableSpan:
    """One with everything."""
    tracer = provider.get_tracer("library", "1.2", "https://schema.example/1", {"of": "scope"})
    other = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("k", "v")]))
    with inside(TRACED):
        span = tracer.start_span(
            "all",
            kind=SpanKind.CLIENT,
            links=[Link(other, {"why": "so"})],
            start_time=10,
            attributes={"real": Real(1.5)},
        )
    span.set_attributes({"text": "a", "yes": True, "whole": 3, "raw": b"\xff", "many": [1, 2]})
    span.add_event("happened", {"n": 1}, timestamp=15)
    span.set_status(Status(StatusCode.ERROR, "bad"))
    span.end(20)
    assert isinstance(span, ReadableSpan)
    return span


def test_a_span_arrives_as_it_was() -> None:
    resource = Resource({"service.name": "worker"}, "https://schema.example/2")
    span = a_span(TracerProvider(resource=resource, shutdown_on_exit=False))
    [read] = unpack_spans(pack([span], 0))
    assert read.context == span.context
    assert read.context.trace_state == span.context.trace_state
    assert read.parent == span.parent
    assert (read.start_time, read.end_time, read.kind) == (10, 20, SpanKind.CLIENT)
    assert (read.status.status_code, read.status.description) == (StatusCode.ERROR, "bad")
    assert read.resource == span.resource
    assert read.instrumentation_scope == span.instrumentation_scope
    [link] = read.links
    assert (link.context, dict(link.attributes or {})) == (span.links[0].context, {"why": "so"})
    assert dict(read.attributes or {}) == dict(span.attributes or {})
    assert type((read.attributes or {})["real"]) is float
    assert encode_spans([read]) == encode_spans([span])


def test_nothing_but_plain_data_travels(provider: TracerProvider) -> None:
    codes = {code.name for code, _, _ in pickletools.genops(pack([a_span(provider)], 0))}
    assert not {code for code in codes if "GLOBAL" in code or "REDUCE" in code}


def test_spans_of_one_process_share_what_they_have_in_common(provider: TracerProvider) -> None:
    one, two = unpack_spans(pack([a_span(provider), a_span(provider)], 0))
    assert one.resource is two.resource
    assert one.instrumentation_scope is two.instrumentation_scope
    assert isinstance(one.instrumentation_scope, InstrumentationScope)
    both = pack([a_span(provider), a_span(provider)], 0)
    assert both.count(b"https://schema.example/1") == 1


def test_spans_of_several_processes_are_read_as_one(provider: TracerProvider) -> None:
    first, second, third = (a_span(provider) for _ in range(3))
    read = unpack_spans(pack([first, second], 0) + pack([third], 0))
    assert [span.context.span_id for span in read] == [span.context.span_id for span in (first, second, third)]


def test_spans_may_be_given_the_engines_resource() -> None:
    worker = Resource.create({"process.pid": 7})
    assert str(worker.attributes["service.name"]).startswith("unknown_service")
    span = a_span(TracerProvider(resource=worker, shutdown_on_exit=False))
    [read] = unpack_spans(pack([span], 0), Resource({"service.name": "campaign", "process.pid": 1}))
    assert (read.resource.attributes["service.name"], read.resource.attributes["process.pid"]) == ("campaign", 7)
    named = a_span(TracerProvider(resource=Resource({"service.name": "solver"}), shutdown_on_exit=False))
    [read] = unpack_spans(pack([named], 0), Resource({"service.name": "campaign"}))
    assert read.resource.attributes["service.name"] == "solver"


# --- spans that are kept ---------------------------------------------------------------------------------------------


@pytest.fixture
def kept(provider: TracerProvider) -> Kept:
    """What is kept for TRACED of what `provider` makes."""
    kept = Kept(TRACED, MOST)
    provider.add_span_processor(Collector({id(TRACED): kept}))
    return kept


def read(kept: Kept) -> list[ReadableSpan]:
    data = kept.packed()
    return [] if data is None else unpack_spans(data)


def test_a_kept_span_says_whose_it_is(provider: TracerProvider, kept: Kept) -> None:
    with inside(TRACED):
        provider.get_tracer("mine").start_span("mine", attributes={"own": 1}).end()
    [span] = read(kept)
    assert dict(span.attributes or {}) == {
        "own": 1,
        SESSION_ID: "session-1",
        TASK_ID: "task.000001",
        WORKFLOW_ID: "wf-1",
    }


def test_spans_of_others_are_not_kept(provider: TracerProvider, kept: Kept) -> None:
    provider.get_tracer("mine").start_span("outside").end()
    with inside(Origin(*TRACED)):  # another attempt of the same task
        provider.get_tracer("mine").start_span("of another").end()
    assert read(kept) == []
    assert kept.packed() is None


def test_the_first_spans_are_kept_with_their_parents(provider: TracerProvider) -> None:
    kept = Kept(TRACED, 3)
    provider.add_span_processor(Collector({id(TRACED): kept}))
    tracer = provider.get_tracer("mine")
    with inside(TRACED), tracer.start_as_current_span("first"):
        for number in range(4):
            with tracer.start_as_current_span(f"{number}"):
                pass
    spans = read(kept)
    assert [span.name for span in spans] == ["first", "0", "1"]
    known = {span.context.span_id for span in spans}
    assert all(span.parent is not None and span.parent.span_id in known for span in spans[1:])
    assert [(span.attributes or {}).get(DROPPED_SPANS) for span in spans] == [2, None, None]


def test_a_span_that_is_open_at_the_end_is_dropped_also_where_it_ends_later(
    provider: TracerProvider,
) -> None:
    attempts = {id(TRACED): Kept(TRACED, MOST)}
    collector = Collector(attempts)
    provider.add_span_processor(collector)
    tracer = provider.get_tracer("mine")
    with inside(TRACED):
        late, never = tracer.start_span("late"), tracer.start_span("never")
        tracer.start_span("ended").end()
    assert [span.name for span in read(attempts.pop(id(TRACED)))] == ["ended"]
    late.end()
    assert not collector._open, "it remembers what will never end"
    del never


# --- worker processes, told apart ------------------------------------------------------------------------------------

_PROLOGUE = f"""
import sys
from asyncflow.backends.contract import Definition, Kind, Origin, Place, WorkItem
from asyncflow.backends.orphans import Family
from asyncflow.backends.worker import Runtime
from asyncflow.backends.origin import spans, unpack_spans
from asyncflow.testing import bodies

def outcome(body=bodies.told_in_spans, origin=Origin({TRACED[0]!r}, {TRACED[1]!r}, {TRACED[2]!r}, {TRACED[3]!r})):
    item = WorkItem(Definition(body, Kind.FUNCTION, "body", is_async=False), (), {{}}, uid="task.1")
    item.origin = origin
    return Runtime(Family(1.0, "session")).call(item, Place("here"), 0.0)
"""


def in_process(program: str, *, warns: str = "") -> None:
    run = run_script(_PROLOGUE + program)
    assert run.returncode == 0, run.stderr
    assert warns in run.stderr
    assert bool(warns) or not run.stderr, run.stderr


def test_a_provider_that_user_code_has_set_is_left_alone() -> None:
    in_process(
        """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
own = TracerProvider()
own.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(own)
spans.work_apart()
for _ in range(2):
    assert outcome().spans is None
inner, outer, *_ = exporter.get_finished_spans()
assert (inner.name, outer.name) == ("inner", "outer")
assert f"{outer.parent.span_id:016x}" == '"""
        + SPAN
        + """'
assert trace.get_tracer_provider() is own
"""
    )


def test_in_the_engines_process_no_provider_is_set() -> None:
    in_process(
        """
from opentelemetry import trace
assert outcome().spans is None
assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
assert "opentelemetry.sdk" not in sys.modules
"""
    )


def test_a_worker_without_traces_does_not_even_import_opentelemetry() -> None:
    in_process(
        """
spans.work_apart()
from asyncflow.backends.origin import here
ended = outcome(here, Origin("s", "t", None))
assert (ended.value.task_id, ended.spans) == ("t", None)
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    )


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk"])
def test_a_worker_without_opentelemetry_runs_its_tasks(missing: str) -> None:
    in_process(
        f"""
sys.modules[{missing!r}] = None
spans.work_apart()
from asyncflow.backends.origin import here
ended = outcome(lambda: (here().task_id, bodies.logging.makeLogRecord({{}}).otelSpanID))
assert (ended.value, ended.error, ended.spans) == (("task.000001", {SPAN!r}), None, None)
"""
    )


def test_what_is_wrong_in_the_environment_of_the_sdk_is_logged_once() -> None:
    in_process(
        """
import os
os.environ["OTEL_SPAN_LINK_COUNT_LIMIT"] = "many"
spans.work_apart()
for _ in range(2):
    ended = outcome(lambda: 1)
    assert (ended.value, ended.spans) == (1, None)
""",
        warns="spans of tasks are not collected in process",
    )


def test_a_process_that_was_forked_from_the_engines_hands_its_spans_over() -> None:
    """Its provider is the engine's, and what that one's processors keep would be lost with it."""
    in_process(
        """
import os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
own = TracerProvider()
own.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(own)
reading, writing = os.pipe()
child = os.fork()
if not child:
    spans.work_apart()
    data = outcome().spans
    os.write(writing, data if not exporter.get_finished_spans() else b"")
    os._exit(0)
os.close(writing)
with os.fdopen(reading, "rb") as pipe:
    outer, inner = unpack_spans(pipe.read())
os.waitpid(child, 0)
assert (outer.name, inner.name) == ("outer", "inner")
assert outer.resource.attributes["service.name"] == own.resource.attributes["service.name"]
assert outcome().spans is None
assert len(exporter.get_finished_spans()) == 2, "the engine's own process keeps its provider"
"""
    )


# --- on the wire -----------------------------------------------------------------------------------------------------


def test_without_an_origin_nothing_more_travels_to_an_executor() -> None:
    item = WorkItem(Definition(bodies.add, Kind.FUNCTION, "add", is_async=False), (1, 2), {}, uid="task.1")
    bare = pickle.dumps(_Call(item, Family(1.0, "session")))
    assert b"origin" not in bare
    item.origin = TRACED
    assert pickle.loads(pickle.dumps(_Call(item, Family(1.0, "session")))).origin == TRACED


async def test_without_an_origin_nothing_more_travels_to_a_worker_process(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[tuple[Any, ...]] = []
    post = Channel.post

    def spy(channel: Channel, verb: str, data: tuple[Any, ...] = (), segments: Any = ()) -> None:
        if verb == "run":
            posted.append(data)
        post(channel, verb, data, segments)

    monkeypatch.setattr(Channel, "post", spy)
    flow: WorkflowEngine = await make_engine(ProcessBackend(1))
    told = await flow.function_task(bodies.told)()
    assert told == bodies.Told(None, (), None), "its log records carry ids, though nobody asked for them"
    [(_key, _number, _args, _uid, _attempt, _directory, _gpus, _given)] = posted


# --- results that are made again -------------------------------------------------------------------------------------


def large_and_told(file: Path) -> bytes:
    origin = here()
    bodies.note(file, "nobody's" if origin is None else origin.task_id)
    return bytes(200_000)


async def test_a_result_that_is_made_again_is_the_same_tasks_work(tmp_path: Path) -> None:
    cluster = DaskCluster(tmp_path)
    try:
        cluster.add("a", "b")
        backend, reporter = DaskBackend(cluster.address), RecordingReporter()
        await backend.start(reporter)
        try:
            made = await ended(backend, reporter, large_and_told, tmp_path / "told")
            cluster.kill(next(iter(made.value.result.holders)).name)
            again = await ended(backend, reporter, len, made.value)
            assert again.value == 200_000
            assert bodies.notes(tmp_path / "told") == ["task.000001"] * 2
        finally:
            await backend.stop(1.0)
    finally:
        cluster.stop()


async def ended(backend: DaskBackend, reporter: RecordingReporter, body: Any, *args: Any) -> Outcome:
    item = WorkItem(Definition(body, Kind.FUNCTION, body.__name__, is_async=False), args, {}, uid="task.000001")
    item.origin = TRACED
    backend.submit([item])
    outcome = await reporter.end(item)
    assert isinstance(outcome, Outcome)
    assert outcome.error is None
    return outcome


# --- job steps -------------------------------------------------------------------------------------------------------

_STEP = f"""
import asyncio, json
from asyncflow.backends.contract import Origin
from asyncflow.description import TaskDescription
from tests.support.steps import Runs, told

async def main():
    runs = Runs(grace=1.0)
    run = runs.runner.run

    def run_with_origin(item, nodes):
        item.origin = Origin({TRACED[0]!r}, item.uid, None, {TRACED[3]!r})
        run(item, nodes)

    runs.runner.run = run_with_origin
    one, two, *_ = (node.name for node in runs.allocation.nodes)
    step = runs.start(lambda: "printenv TRACEPARENT", {{one: 1, two: 1}}, TaskDescription(ranks=2))
    result = told(await step.end)
    await runs.runner.stop(1.0)
    print(json.dumps(result))

asyncio.run(main())
"""


@needs_slurm
def test_ranks_of_a_job_step_on_all_nodes_have_the_trace_in_their_environment(slurm: SlurmCluster) -> None:
    Path("program.py").write_text(_STEP)
    options = ("--nodes=2", "--ntasks-per-node=2", "--error=errors")
    job = slurm.sbatch(f"#!/bin/bash\n{sys.executable} program.py", *options)
    end = slurm.wait(job)
    assert end.exit_code == 0, f"{end}\n{slurm.output(job)}\n{Path('errors').read_text()}"
    assert json.loads(slurm.output(job).splitlines()[-1]) == 2 * f"{TRACED.traceparent}\n"
