"""Real servers that take telemetry, each a process of ours on loopback: Prometheus, and a receiver of OTLP."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import psutil
import pytest

TELEMETRY = Path(__file__).parents[2] / "telemetry"

PROMETHEUS = shutil.which("prometheus")
#: In an environment of its own, made by `make receiver`: what it needs does not go with what the library needs.
RECEIVER = shutil.which("ddapm-test-agent", path=f"{Path(sys.prefix) / 'receiver' / 'bin'}")

needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed: make prometheus")
needs_receiver = pytest.mark.skipif(RECEIVER is None, reason="there is no receiver of OTLP: make receiver")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def asked(url: str, **query: str) -> Any:
    """What a server answers, as JSON."""
    with urlopen(f"{url}?{urlencode(query)}" if query else url, timeout=30.0) as answer:
        return json.load(answer)


class Server:
    """A child process that serves until `stop`."""

    def __init__(self, command: Sequence[str], folder: Path, health: str) -> None:
        """Starts it in `folder`, where its log lies, and waits until the page `health` is there."""
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": "/usr/bin:/bin"}
            )
        while not _answers(health):
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.05)  # it tells by this page alone

    def listens_on(self) -> list[str]:
        """The addresses of its sockets."""
        connections = psutil.Process(self._process.pid).net_connections("inet")
        return [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]

    def stop(self) -> None:
        """End it; by force where it does not want to."""
        self._process.terminate()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5.0):
            return True
    except (URLError, OSError):
        return False


class Prometheus(Server):
    """With the configuration that we publish, but for how often it looks, and at which fixed port."""

    def __init__(self, folder: Path) -> None:
        assert PROMETHEUS is not None
        self._targets = folder / "targets"
        self._targets.mkdir()
        #: Where it looks without being told.
        self.fixed_port, port = free_ports(2)
        config = (TELEMETRY / "prometheus.yml").read_text()
        for published, ours in {"interval: 5s": "interval: 200ms", "1:9464": f"1:{self.fixed_port}"}.items():
            assert published in config
            config = config.replace(published, ours)
        (folder / "prometheus.yml").write_text(config)
        self.url = f"http://127.0.0.1:{port}"
        command = [PROMETHEUS, "--config.file=prometheus.yml", f"--storage.tsdb.path={folder / 'data'}"]
        super().__init__([*command, f"--web.listen-address=127.0.0.1:{port}"], folder, f"{self.url}/-/ready")

    def scrape(self, name: str, address: str) -> None:
        """Have it look there from now on."""
        (self._targets / f"{name}.json").write_text(json.dumps([{"targets": [address]}]))

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """Labels and value of each series that the expression gives now."""
        answer = asked(f"{self.url}/api/v1/query", query=expression)
        assert answer["status"] == "success"
        return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]


class Receiver(Server):
    """Takes OTLP and shows all that it got."""

    def __init__(self, folder: Path) -> None:
        assert RECEIVER is not None
        own, http, grpc = free_ports(3)
        self._url = f"http://127.0.0.1:{http}"
        self.traces, self.metrics = f"{self._url}/v1/traces", f"{self._url}/v1/metrics"
        ports = [f"--port={own}", f"--otlp-http-port={http}", f"--otlp-grpc-port={grpc}"]
        command = [RECEIVER, "--host=127.0.0.1", *ports, "--disable-llmobs-data-forwarding"]
        super().__init__(command, folder, f"http://127.0.0.1:{own}/info")

    def spans(self) -> dict[str, dict[str, Any]]:
        """All spans by their ids; attributes as a dict, other spans by their ids, in hexadecimal as everywhere else."""
        requests = asked(f"{self._url}/test/session/traces")
        groups = [
            group for request in requests for resource in request["resource_spans"] for group in _scopes(resource)
        ]
        return {_hex(span["span_id"]): _readable(span) for group in groups for span in group["spans"]}

    def metric_names(self) -> set[str]:
        """Of all that came."""
        requests = asked(f"{self._url}/test/session/metrics")
        groups = [
            scope for each in requests for resource in each["resource_metrics"] for scope in resource["scope_metrics"]
        ]
        return {metric["name"] for group in groups for metric in group["metrics"]}


def _scopes(resource: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(resource["scope_spans"])


def _readable(span: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **span,
        "trace_id": _hex(span["trace_id"]),
        "parent": _hex(span["parent_span_id"]) if "parent_span_id" in span else None,
        "links": [_hex(link["span_id"]) for link in span.get("links", [])],
        "attributes": {each["key"]: _value(each["value"]) for each in span.get("attributes", [])},
    }


def _hex(data: str) -> str:
    return base64.b64decode(data).hex()


def _value(value: Mapping[str, Any]) -> Any:
    [(kind, content)] = value.items()
    return int(content) if kind == "int_value" else content
