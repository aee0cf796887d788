"""Telemetry as real servers see it: Prometheus scrapes a live engine, a receiver of OTLP takes spans and metrics."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import yaml
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from asyncflow import TaskFuture
from asyncflow.errors import ExecutableError
from asyncflow.testing import bodies
from asyncflow.testing.leaks import nothing_left
from asyncflow.testing.plugin import MakeEngine
from tests.support.servers import TELEMETRY, Prometheus, Receiver, Server, needs_prometheus, needs_receiver

# --- Prometheus ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path_factory.mktemp("prometheus"))
    yield server
    server.stop()


async def stored(prometheus: Prometheus, expression: str, value: float) -> None:
    """Wait until the server finds one series by the expression, with this value."""

    def missing() -> list[str]:
        found = prometheus.query(expression)
        return [] if [each for _, each in found] == [value] else [f"{expression}: {found}"]

    assert await nothing_left(missing, 60.0) == []


@needs_prometheus
async def test_prometheus_stores_what_a_live_engine_tells(prometheus: Prometheus, make_engine: MakeEngine) -> None:
    flow = await make_engine("threads")
    telemetry = await flow.start_telemetry(None, prometheus=True, resource_interval=0.1)
    instance = urlsplit(telemetry.prometheus_url or "").netloc
    prometheus.scrape("live", instance)
    of_it = f'instance="{instance}"'
    await stored(prometheus, f'up{{job="asyncflow",{of_it}}}', 1)

    release = threading.Event()
    held = flow.function_task(release.wait)()
    for number in range(7):
        await flow.function_task(bodies.add)(number, 1)
    with pytest.raises(ExecutableError):
        await flow.executable_task(bodies.words)("false")
    await stored(prometheus, f'asyncflow_tasks_total{{task_type="function",asyncflow_state="DONE",{of_it}}}', 7)
    await stored(prometheus, f'asyncflow_tasks_total{{task_type="executable",asyncflow_state="FAILED",{of_it}}}', 1)
    await stored(prometheus, f"asyncflow_tasks_running{{{of_it}}}", 1)
    await stored(prometheus, f"system_memory_limit_bytes{{{of_it}}}", psutil.virtual_memory().total)
    release.set()
    await held
    await stored(prometheus, f"asyncflow_tasks_running{{{of_it}}}", 0)
    await stored(prometheus, f'asyncflow_task_duration_seconds_count{{asyncflow_state="DONE",{of_it}}}', 8)

    await telemetry.stop()
    await stored(prometheus, f"up{{{of_it}}}", 0)


def expressions() -> Iterator[str]:
    """What the board asks, as Grafana would."""
    board: Any = json.loads((TELEMETRY / "grafana.json").read_text())
    variables = {"$__rate_interval": "1m", "$backend": ".*", "$host": ".*"}
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield re.sub(r"\$\w+", lambda match: variables[match.group()], target["expr"])


@needs_prometheus
async def test_the_board_asks_for_what_there_is(prometheus: Prometheus, make_engine: MakeEngine) -> None:
    flow = await make_engine("threads")
    await flow.start_telemetry(None, prometheus=prometheus.fixed_port, resource_interval=0.1)
    instance = f"127.0.0.1:{prometheus.fixed_port}"
    # What a rate is of must have been seen twice.
    for count in (1, 2):
        await flow.function_task(bodies.add)(1, 2)
        await stored(prometheus, f'sum(asyncflow_tasks_total{{instance="{instance}"}})', count)
    await stored(
        prometheus, f'min(count_over_time(system_disk_io_bytes_total{{instance="{instance}"}}[1m])) > bool 1', 1
    )
    asked = list(expressions())
    assert len(asked) >= 12
    for expression in asked:
        found = prometheus.query(expression)
        # There may be no GPU here; the names are those of the others.
        assert "hw_gpu" in expression or found, expression
        assert not any(math.isnan(value) for _, value in found), expression


def test_the_boards_panels_do_not_overlap() -> None:
    board: Any = json.loads((TELEMETRY / "grafana.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


# --- OTLP ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    server = Receiver(tmp_path_factory.mktemp("receiver"))
    yield server
    server.stop()


class Tree:
    """The spans of one session."""

    def __init__(self, receiver: Receiver, session_id: str) -> None:
        everything = receiver.spans().items()
        self._spans = {
            uid: span for uid, span in everything if span["attributes"]["asyncflow.session_id"] == session_id
        }

    def trace_ids(self) -> set[str]:
        return {span["trace_id"] for span in self._spans.values()}

    def name(self, span_id: str | None) -> str | None:
        """What the span is of: the task's uid, else its own name."""
        if span_id is None:
            return None
        span = self._spans[span_id]
        return str(span["attributes"].get("asyncflow.task_id", span["name"]))

    def parents(self) -> dict[str | None, str | None]:
        """Of each span."""
        return {self.name(uid): self.name(span["parent"]) for uid, span in self._spans.items()}

    def links(self) -> dict[str | None, list[str | None]]:
        """Of each span that has some."""
        return {
            self.name(uid): list(map(self.name, span["links"])) for uid, span in self._spans.items() if span["links"]
        }

    def status(self, task: str) -> Any:
        [span] = [span for uid, span in self._spans.items() if self.name(uid) == task]
        return span["status"].get("code")


@needs_receiver
async def test_a_receiver_of_otlp_shows_sessions_workflows_and_tasks(
    no_leaks: None, receiver: Receiver, make_engine: MakeEngine
) -> None:
    flow = await make_engine("threads")
    processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=receiver.traces))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=receiver.metrics))
    await flow.start_telemetry(None, span_processors=[processor], metric_readers=[reader])
    add = flow.function_task(bodies.add)
    inner: list[TaskFuture[int]] = []

    @flow.block
    async def twice(number: int) -> int:
        inner.append(add(number, number))
        inner.append(add(inner[0], number))
        return await inner[1]

    async with flow.workflow_scope("wf-1"):
        source = add(1, 1)
        left, right = add(source, 1), add(source, 2)
        merged = add(left, right)
        block = twice(merged)
        failed = flow.executable_task(bodies.words)("false")
        after = add(failed, 1)
    alone = add(1, 1)
    ends = await asyncio.gather(block, alone, failed, after, return_exceptions=True)
    assert (ends[0], ends[1]) == (21, 2)
    await flow.shutdown()  # sends what is left

    tree = Tree(receiver, flow.uid)
    assert len(tree.trace_ids()) == 1
    parents = tree.parents()
    [session] = [name for name, parent in parents.items() if parent is None]
    [workflow] = [name for name, parent in parents.items() if parent == session and name != alone.uid]
    in_workflow = [each.uid for each in (source, left, right, merged, after)] + [block.uid, failed.uid]
    expected: dict[str | None, str | None] = {
        session: None,
        workflow: session,
        alone.uid: session,
        **dict.fromkeys(in_workflow, workflow),
        **{future.uid: block.uid for future in inner},
    }
    assert parents == expected
    assert tree.links() == {
        left.uid: [source.uid],
        right.uid: [source.uid],
        merged.uid: [left.uid, right.uid],
        block.uid: [merged.uid],
        inner[1].uid: [inner[0].uid],
        after.uid: [failed.uid],
    }
    assert tree.status(failed.uid) == tree.status(after.uid) == "STATUS_CODE_ERROR"
    assert tree.status(merged.uid) != "STATUS_CODE_ERROR"
    metrics = receiver.metric_names()
    assert {"asyncflow.tasks", "asyncflow.task.duration", "asyncflow.task.queue_wait", "asyncflow.workers"} <= metrics


# --- whoever they are ------------------------------------------------------------------------------------------------


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


@needs_prometheus
@needs_receiver
def test_the_servers_listen_on_loopback_alone(prometheus: Prometheus, receiver: Receiver) -> None:
    servers: list[Server] = [prometheus, receiver]
    for server in servers:
        listening = server.listens_on()
        assert listening
        assert [address for address in listening if not is_loopback(address)] == []


def test_the_collector_listens_on_loopback_alone() -> None:
    config: Any = yaml.safe_load((TELEMETRY / "collector.yaml").read_text())
    protocols = config["receivers"]["otlp"]["protocols"]
    endpoints = [each["endpoint"] for each in (*protocols.values(), config["exporters"]["prometheus"])]
    assert len(endpoints) == 3
    assert all(is_loopback(endpoint.rpartition(":")[0]) for endpoint in endpoints)
    used = {name for pipeline in config["service"]["pipelines"].values() for each in pipeline.values() for name in each}
    assert used == {*config["receivers"], *config["processors"], *config["exporters"]}
    # The two samples go together.
    assert config["exporters"]["prometheus"]["endpoint"] in (TELEMETRY / "prometheus.yml").read_text()


def test_every_file_is_told_of() -> None:
    told = (TELEMETRY / "README.md").read_text()
    files = {path.name for path in TELEMETRY.iterdir() if path.is_file()} - {"README.md"}
    assert [name for name in sorted(files) if f"`{name}`" not in told] == []
