"""Whose work a body is: what it finds current, what its log records and commands are told, where its spans go."""

from __future__ import annotations

import contextvars
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from asyncflow.backends.contract import Origin, Outcome, WorkItem
from asyncflow.backends.origin import (
    DROPPED_SPANS,
    SESSION_ID,
    TASK_ID,
    WORKFLOW_ID,
    install_log_ids,
    remove_log_ids,
    unpack_spans,
)
from asyncflow.description import TaskDescription
from asyncflow.testing import bodies
from asyncflow.testing.bodies import Told
from asyncflow.testing.conformance.base import Suite
from asyncflow.testing.conformance.contract import Bench

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_TRACE, _SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_STATE = "vendor=t61rcWkgMzE"
#: What makes any backend start a process for a function.
_OWN_PROCESS = TaskDescription(pre_exec=("true",))

#: How a function may run: what calls it, and what it asks for.
_KINDS = ["function", "in a context", "coroutine", "own process"]


def _origin(item: WorkItem, *, traced: bool = True) -> Origin:
    parent, state = (f"00-{_TRACE}-{_SPAN}-01", _STATE) if traced else (None, None)
    item.origin = Origin("session-1", item.uid, "wf-1", parent, state)
    return item.origin


class Origins(Suite):
    @pytest.fixture
    def traces(self) -> Iterator[None]:
        """OpenTelemetry is there, and log records of this process carry ids, as an engine's do."""
        pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry's SDK is not installed")
        install_log_ids()
        yield
        remove_log_ids()

    def _item(self, bench: Bench, kind: str, plain: Callable[..., Any], coroutine: Any, *args: Any) -> WorkItem:
        body = coroutine if kind == "coroutine" else plain
        item = bench.item(body, *args, description=_OWN_PROCESS if kind == "own process" else None)
        if kind == "in a context" and self.can.shares_memory:  # as an engine's items are
            item.context = contextvars.copy_context()
        return item

    def _is_apart(self, kind: str) -> bool:
        """Whether what runs so runs in another process than this."""
        return kind == "own process" or not self.can.shares_memory

    async def _ended(self, bench: Bench, item: WorkItem) -> Outcome:
        bench.submit(item)
        outcome = await self.ended(bench.reporter.end(item))
        assert isinstance(outcome, Outcome)
        return outcome

    async def _value(self, bench: Bench, item: WorkItem) -> Any:
        outcome = await self._ended(bench, item)
        assert outcome.error is None, outcome.error
        return outcome.value

    # --- what a body is told ----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_a_body_is_told_whose_it_is(self, bench: Bench, traces: None, kind: str) -> None:
        item = self._item(bench, kind, bodies.told, bodies.told_async)
        origin = _origin(item)
        found = await self._value(bench, item)
        assert found == Told(origin, (item.uid, "wf-1", _TRACE, _SPAN), (_TRACE, _SPAN))

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_a_body_is_told_whose_it_is_without_a_trace(self, bench: Bench, traces: None, kind: str) -> None:
        item = self._item(bench, kind, bodies.told, bodies.told_async)
        origin = _origin(item, traced=False)
        found = await self._value(bench, item)
        assert found == Told(origin, (item.uid, "wf-1", None, None), None)

    async def test_the_next_body_is_told_nothing_of_it(self, bench: Bench, traces: None) -> None:
        for kind in _KINDS:
            for _ in range(self.can.workers):
                item = self._item(bench, kind, bodies.told, bodies.told_async)
                _origin(item)
                await self._value(bench, item)
        for kind in _KINDS[:-1]:
            for _ in range(self.can.workers):
                item = self._item(bench, kind, bodies.told, bodies.told_async)
                found = await self._value(bench, item)
                # A worker that has had none but these has no ids in its records.
                assert (found.origin, found.current) == (None, None)
                assert set(found.logged) <= {None}

    # --- spans ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_spans_of_a_body_join_the_trace(self, bench: Bench, traces: None, kind: str) -> None:
        """They come with the outcome, or go to the provider of this process where the body ran in it."""
        tracer, exported = (None, None) if self._is_apart(kind) else _own_tracer()
        item = self._item(bench, kind, bodies.told_in_spans, bodies.told_in_spans_async, tracer)
        _origin(item)
        outcome = await self._ended(bench, item)
        assert outcome.error is None, outcome.error
        self._check_spans(item, outcome.value, self._spans(outcome) if exported is None else exported())
        if exported is not None:
            assert outcome.spans is None

    def _check_spans(self, item: WorkItem, value: tuple[Told, Told, bytes], spans: list[ReadableSpan]) -> None:
        by_id = {f"{span.context.span_id:016x}": span for span in spans}
        outer, inner, _ = value
        assert outer.current is not None
        assert inner.current is not None
        assert outer.logged == (item.uid, "wf-1", *outer.current)
        assert inner.logged == (item.uid, "wf-1", *inner.current)
        first, second = by_id[outer.current[1]], by_id[inner.current[1]]
        assert (first.name, second.name) == ("outer", "inner")
        assert all(f"{span.context.trace_id:032x}" == _TRACE for span in (first, second))
        assert first.parent is not None
        assert second.parent is not None
        assert f"{first.parent.span_id:016x}" == _SPAN
        assert second.parent.span_id == first.context.span_id
        assert first.parent.trace_state.to_header() == _STATE
        assert dict(first.attributes or {})["number"] == 1
        assert [event.name for event in second.events] == ["seen"]

    def _spans(self, outcome: Outcome) -> list[ReadableSpan]:
        assert outcome.spans is not None
        spans = unpack_spans(outcome.spans)
        for span in spans:
            attributes = dict(span.attributes or {})
            assert attributes[SESSION_ID] == "session-1"
            assert attributes[TASK_ID]
            assert attributes[WORKFLOW_ID] == "wf-1"
        return spans

    @pytest.mark.parametrize("kind", ["function", "own process"])
    async def test_spans_of_a_body_that_fails(self, bench: Bench, traces: None, kind: str) -> None:
        tracer, exported = (None, None) if self._is_apart(kind) else _own_tracer()
        item = self._item(bench, kind, bodies.raise_in_span, None, tracer)
        _origin(item)
        outcome = await self._ended(bench, item)
        assert isinstance(outcome.error, ValueError)
        span = (self._spans(outcome) if exported is None else exported())[0]
        assert span.name == "failing"
        assert span.status.status_code.name == "ERROR"
        assert [event.name for event in span.events] == ["exception"]

    async def test_spans_come_with_a_result_that_is_large(self, bench: Bench, traces: None) -> None:
        """Wherever that one stays."""
        if self.can.shares_memory:
            return
        item = bench.item(bodies.told_in_spans, None, 1_000_000)
        _origin(item)
        spans = self._spans(await self._ended(bench, item))
        assert [span.name for span in spans] == ["outer", "inner"]

    async def test_of_very_many_spans_the_first_come(self, bench: Bench, traces: None) -> None:
        item = bench.item(bodies.many_spans, 1100, description=_OWN_PROCESS)
        _origin(item)
        first, *others = self._spans(await self._ended(bench, item))
        assert [span.name for span in others] == [f"span {number}" for number in range(999)]
        assert dict(first.attributes or {})[DROPPED_SPANS] == 101

    async def test_spans_of_all_ranks_come(self, bench: Bench, traces: None) -> None:
        if not shutil.which("mpirun"):
            return
        item = bench.item(bodies.told_in_spans, description=TaskDescription(ranks=2))
        _origin(item)
        outcome = await self._ended(bench, item)
        assert outcome.error is None, outcome.error
        spans = self._spans(outcome)
        assert len(spans) == 4
        for value in outcome.value:
            self._check_spans(item, value, spans)

    async def test_without_a_trace_no_spans_come(self, bench: Bench, traces: None) -> None:
        item = bench.item(bodies.told_in_spans)
        _origin(item, traced=False)
        assert (await self._ended(bench, item)).spans is None

    # --- commands ---------------------------------------------------------------------------------------------------

    async def test_a_command_has_the_trace_in_its_environment(self, bench: Bench) -> None:
        item = bench.item(bodies.words, "printenv", "TRACEPARENT", "TRACESTATE", executable={})
        _origin(item)
        assert await self._value(bench, item) == f"00-{_TRACE}-{_SPAN}-01\n{_STATE}\n"

    async def test_ranks_of_a_command_have_the_trace_in_their_environment(self, bench: Bench) -> None:
        if not shutil.which("mpirun"):
            return
        item = bench.item(bodies.words, "printenv", "TRACEPARENT", executable={}, description=TaskDescription(ranks=2))
        _origin(item)
        assert await self._value(bench, item) == 2 * f"00-{_TRACE}-{_SPAN}-01\n"

    async def test_a_command_may_have_another_trace_of_its_own(self, bench: Bench) -> None:
        item = bench.item(bodies.words, "printenv", "TRACEPARENT", executable={"TRACEPARENT": "its own"})
        _origin(item)
        assert await self._value(bench, item) == "its own\n"

    async def test_a_command_without_a_trace_has_none_in_its_environment(self, bench: Bench) -> None:
        item = bench.item(bodies.words, "/bin/sh", "-c", 'echo "${TRACEPARENT-none}"', executable={})
        _origin(item, traced=False)
        assert await self._value(bench, item) == "none\n"


def _own_tracer() -> tuple[Any, Callable[[], list[ReadableSpan]]]:
    """A tracer of this process, and what its spans were."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("bodies"), lambda: list(exporter.get_finished_spans())
