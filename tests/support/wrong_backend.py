"""Backends that are wrong on purpose: right threads inside, a fault between them and the engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from asyncflow.backends import Capabilities, Loss, Outcome, Place, Reporter, ThreadBackend, WorkItem
from asyncflow.backends.contract import CONCURRENCY, Definition, HostFigures, Kind
from asyncflow.errors import TaskExitError
from asyncflow.testing import bodies


class WrongBackend:
    """Threads without a fault. Each subclass has one; several go together, as base classes of one."""

    name = "wrong"

    #: Tests of the suite that this fault breaks, by name.
    breaks: frozenset[str] = frozenset()

    gpus: tuple[str, ...] = ("0", "1")
    concurrency = CONCURRENCY

    def __init__(self) -> None:
        self.inner = ThreadBackend(2, gpus=self.gpus, memory=1000, grace=1.0, concurrency=self.concurrency)
        #: What has started and not been reported as ended.
        self.running: set[WorkItem] = set()
        #: What the engine is to hear nothing more of.
        self.silent: set[WorkItem] = set()
        self.kept: list[Any] = []

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    def inner_of(self, item: WorkItem) -> ThreadBackend:
        """Which threads run `item`."""
        return self.inner

    async def start(self, reporter: Reporter) -> None:
        self.reporter = reporter
        await self.inner.start(WrongReporter(self))

    def submit(self, items: Sequence[WorkItem]) -> None:
        for item in items:
            self.change(item)
            self.inner_of(item).submit([item])

    def cancel(self, item: WorkItem) -> None:
        self.inner_of(item).cancel(item)

    async def stop(self, grace: float) -> None:
        await self.inner.stop(grace)

    # What subclasses do wrong. Reports come from any thread.

    def change(self, item: WorkItem) -> None:
        """Called with each item before it goes to the threads."""

    def on_started(self, item: WorkItem, place: Place, time: float) -> None:
        self.reporter.started(item, place, time)

    def on_finished(self, item: WorkItem, outcome: Outcome) -> None:
        if item not in self.silent:
            self.reporter.finished(item, outcome)


class WrongReporter:
    """Brings the threads' reports to the fault."""

    def __init__(self, backend: WrongBackend) -> None:
        self._backend = backend
        self.work_dir = backend.reporter.work_dir

    def started(self, item: WorkItem, place: Place, time: float) -> None:
        self._backend.running.add(item)
        self._backend.on_started(item, place, time)

    def finished(self, item: WorkItem, outcome: Outcome) -> None:
        self._backend.on_finished(item, outcome)
        self._backend.running.discard(item)

    def lost(self, item: WorkItem, loss: Loss) -> None:
        self._backend.reporter.lost(item, loss)

    def broken(self, reason: str) -> None:
        self._backend.reporter.broken(reason)

    def resized(self) -> None:
        self._backend.reporter.resized()

    def measured(self, figures: HostFigures) -> None:
        self._backend.reporter.measured(figures)


def changed(definition: Definition, **changes: Any) -> Definition:
    """A definition like another but for `changes`."""
    values: dict[str, Any] = {
        "is_async": definition.is_async,
        "description": definition.description,
        "executable": definition.executable,
        **changes,
    }
    return Definition(values.pop("fn", definition.fn), definition.kind, definition.name, **values)


def cancelled() -> Outcome:
    """The end of what was cancelled."""
    now = time.time()
    return Outcome(None, asyncio.CancelledError(), now, now, None)


class ForgetsTypes(WrongBackend):
    """An exception of the user's comes back as another, with its text."""

    breaks = frozenset(
        {
            "test_an_exception_comes_back_as_itself",
            "test_an_exception_that_cannot_travel",
            "test_the_traceback_shows_where_it_was_raised",
            "test_a_failure_reaches_what_depends_on_it_and_nothing_else",
            "test_a_failure_is_tried_again_as_often_as_allowed",
            "test_a_function_with_an_environment_is_as_good_as_any",
            "test_an_error_of_the_function_is_the_tasks",
            "test_an_outcome_tells_value_time_and_place",
            "test_shutdown_after_work_well_done_and_not",
        }
    )

    def on_finished(self, item: WorkItem, outcome: Outcome) -> None:
        if type(outcome.error).__module__ == "asyncflow.testing.bodies":
            outcome.error = RuntimeError(repr(outcome.error))
        super().on_finished(item, outcome)


class LosesExits(WrongBackend):
    """A task that exits ends well, with nothing."""

    breaks = frozenset({"test_an_exit_in_a_function", "test_an_exit_in_a_coroutine"})

    def on_finished(self, item: WorkItem, outcome: Outcome) -> None:
        if isinstance(outcome.error, TaskExitError):
            outcome.error = None
        super().on_finished(item, outcome)


class ReportsTwice(WrongBackend):
    """The end of a command is reported twice."""

    breaks = frozenset(
        {
            "test_each_item_has_one_end",
            "test_a_start_is_reported_at_most_once_and_before_the_end",
            "test_what_runs_is_reported_as_started",
            "test_a_stopped_backend_has_reported_the_end_of_every_item",
        }
    )

    def on_finished(self, item: WorkItem, outcome: Outcome) -> None:
        super().on_finished(item, outcome)
        if item.definition.kind is Kind.EXECUTABLE:
            super().on_finished(item, outcome)


class ReportsEarly(WrongBackend):
    """A cancelled function is reported as ended while it runs."""

    breaks = frozenset({"test_a_cancelled_function_ends_when_it_is_dead"})

    def cancel(self, item: WorkItem) -> None:
        definition = item.definition
        if item in self.running and definition.kind is Kind.FUNCTION and not definition.is_async:
            self.on_finished(item, cancelled())
            self.silent.add(item)
        super().cancel(item)


class ForgetsStarts(WrongBackend):
    """The start of a coroutine is not reported, though it says that it reports starts."""

    breaks = frozenset({"test_what_runs_is_reported_as_started", "test_a_coroutine_that_takes_too_long"})

    def on_started(self, item: WorkItem, place: Place, time: float) -> None:
        if not item.definition.is_async:
            super().on_started(item, place, time)


class DropsEnds(WrongBackend):
    """The end of what was cancelled before it began is not reported."""

    breaks = frozenset(
        {
            "test_an_item_cancelled_before_it_began_never_runs",
            "test_a_stopped_backend_has_reported_the_end_of_every_item",
        }
    )

    def on_finished(self, item: WorkItem, outcome: Outcome) -> None:
        if item in self.running:
            super().on_finished(item, outcome)


class RunsCancelled(WrongBackend):
    """What was cancelled before it began runs all the same."""

    breaks = frozenset(
        {"test_an_item_cancelled_before_it_began_never_runs", "test_cancelled_tasks_in_the_queue_never_run"}
    )

    def cancel(self, item: WorkItem) -> None:
        if item in self.running:
            super().cancel(item)
        else:
            item.cancelled = False


class RunsTwice(WrongBackend):
    """A plain function is called twice."""

    breaks = frozenset(
        {
            "test_each_task_runs_once_and_after_its_dependencies",
            "test_hundreds_of_tasks_each_once",
            "test_others_are_not_touched",
            "test_short_calls_that_have_ended_do_not_run_again",
            "test_a_cancelled_function_ends_when_it_is_dead",
            "test_a_failure_is_tried_again_as_often_as_allowed",
            "test_shutdown_while_functions_run_and_wait",
        }
    )

    def change(self, item: WorkItem) -> None:
        super().change(item)
        definition = item.definition
        if definition.kind is Kind.FUNCTION and not definition.is_async and definition.description is None:
            item.definition = changed(definition, fn=twice(definition.fn))


def twice(function: Callable[..., Any]) -> Callable[..., Any]:
    """Calls `function` twice; the second result counts."""

    def called_twice(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        return function(*args, **kwargs)

    return called_twice


class CountsOneCore(WrongBackend):
    """A task that asks for several cores holds one."""

    breaks = frozenset(
        {
            "test_a_large_request_waits_and_is_waited_for",
            "test_a_cancelled_executable_is_dead_before_its_slot_is_free",
            "test_a_command_may_use_as_many_threads_as_it_has_cores",
        }
    )

    def change(self, item: WorkItem) -> None:
        super().change(item)
        description = item.definition.description
        if description is not None and description.cores_per_rank > 1:
            item.definition = changed(item.definition, description=replace(description, cores_per_rank=1))


class CountsNoMemory(WrongBackend):
    """Memory is not counted."""

    breaks = frozenset({"test_memory_is_never_oversubscribed"})

    def change(self, item: WorkItem) -> None:
        super().change(item)
        description = item.definition.description
        if description is not None and description.mem_per_rank:
            item.definition = changed(item.definition, description=replace(description, mem_per_rank=0))


class SharesGPUs(WrongBackend):
    """Gives one GPU to two tasks."""

    breaks = frozenset({"test_each_task_gets_gpus_of_its_own"})
    gpus = ("0", "0")


class CommandsHoldNoCore(WrongBackend):
    """Runs commands beside functions, on cores that it does not have."""

    breaks = frozenset(
        {
            "test_an_executable_holds_a_core",
            "test_cores_are_never_oversubscribed",
            "test_a_large_request_waits_and_is_waited_for",
            "test_a_cancelled_executable_is_dead_before_its_slot_is_free",
            "test_cancelled_tasks_in_the_queue_never_run",
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.beside = ThreadBackend(8, gpus=self.gpus, memory=1000, grace=1.0)

    def inner_of(self, item: WorkItem) -> ThreadBackend:
        return self.beside if item.definition.kind is Kind.EXECUTABLE else super().inner_of(item)

    async def start(self, reporter: Reporter) -> None:
        await super().start(reporter)
        await self.beside.start(WrongReporter(self))

    async def stop(self, grace: float) -> None:
        await asyncio.gather(super().stop(grace), self.beside.stop(grace))


class RunsCoroutinesAlone(WrongBackend):
    """Coroutines do not overlap, though it says that they do."""

    breaks = frozenset({"test_coroutines_overlap"})
    concurrency = 1

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, concurrency=100)


class LeavesExecutables(WrongBackend):
    """A cancelled command is reported as ended and left running."""

    breaks = frozenset(
        {
            "test_a_cancelled_executable_ends_when_it_is_dead",
            "test_a_cancelled_executable_is_dead_before_its_slot_is_free",
            "test_a_cancelled_executable_may_end_politely",
            "test_an_executable_that_takes_too_long",
        }
    )

    def cancel(self, item: WorkItem) -> None:
        if item.definition.kind is Kind.EXECUTABLE and item in self.running:
            self.on_finished(item, cancelled())
            self.silent.add(item)
        else:
            super().cancel(item)


class ForgetsContext(WrongBackend):
    """Runs tasks without the caller's context variables."""

    breaks = frozenset({"test_context_variables_of_the_caller"})

    def change(self, item: WorkItem) -> None:
        super().change(item)
        item.context = None


class ForgetsEnvironment(WrongBackend):
    """Runs tasks without the environment that they ask for."""

    breaks = frozenset(
        {
            "test_a_function_gets_its_environment",
            "test_a_command_gets_its_environment",
            "test_a_function_whose_own_process_dies",
        }
    )

    def change(self, item: WorkItem) -> None:
        super().change(item)
        description = item.definition.description
        if description is not None and description.environment:
            item.definition = changed(item.definition, description=replace(description, environment={}))


class ForgetsOrigin(WrongBackend):
    """Runs tasks without telling them, or what they start, whose work they are."""

    breaks = frozenset(
        {
            "test_a_body_is_told_whose_it_is",
            "test_a_body_is_told_whose_it_is_without_a_trace",
            "test_spans_of_a_body_join_the_trace",
            "test_spans_of_a_body_that_fails",
            "test_of_very_many_spans_the_first_come",
            "test_a_command_has_the_trace_in_its_environment",
        }
    )

    def change(self, item: WorkItem) -> None:
        super().change(item)
        item.origin = None


class KeepsArguments(WrongBackend):
    """Holds on to the arguments of all that it ever ran."""

    breaks = frozenset({"test_arguments_are_dropped_when_the_task_has_ended"})

    def change(self, item: WorkItem) -> None:
        super().change(item)
        self.kept.append((item.args, item.kwargs))


class LeavesThreads(WrongBackend):
    """A thread stays behind for each task with memory of its own."""

    breaks = frozenset({"test_memory_is_never_oversubscribed"})

    def change(self, item: WorkItem) -> None:
        super().change(item)
        if item.definition.description is not None and item.definition.description.mem_per_rank:
            threading.Thread(target=threading.Event().wait, daemon=True).start()


class HoldsLoop(WrongBackend):
    """Takes its time to cancel a coroutine, on the engine's loop."""

    breaks = frozenset(
        {
            "test_a_cancelled_coroutine_sees_it",
            "test_a_cancelled_coroutine_ends_when_it_is_dead",
            "test_a_coroutine_that_takes_too_long",
        }
    )

    def cancel(self, item: WorkItem) -> None:
        if item.definition.fn is bodies.attend_and_tell and item in self.running:
            time.sleep(3.0)
        super().cancel(item)


def faults_named(names: Sequence[str]) -> list[type[WrongBackend]]:
    """The classes of these names."""
    return [globals()[name] for name in names]


def backend_with(names: Sequence[str]) -> WrongBackend:
    """A backend with all of these faults; with none it is right."""
    made: WrongBackend = type("Wrong", (*faults_named(names), WrongBackend), {})()
    return made
