"""An address at which a Prometheus server finds a session's metrics."""

from __future__ import annotations

import socket

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, start_http_server

from asyncflow.errors import PrometheusEndpointError


class PrometheusEndpoint:
    """Serves what its reader has, and nothing else of the process, until `close`."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """0 is any port that is free. Raises PrometheusEndpointError where it cannot listen there."""
        # Not the registry of prometheus_client, which all of the process shares.
        registry = CollectorRegistry()
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:  # the latter for a port beyond 65535
            raise PrometheusEndpointError(host, port, getattr(error, "strerror", None) or str(error)) from error
        #: For a meter provider; it can be given to one only.
        self.reader = PrometheusMetricReader(
            disable_target_info=True,  # it has an id of the process
            scope_info_enabled=False,
            registry=registry,
        )
        shown = f"[{host}]" if self._server.address_family == socket.AF_INET6 else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Listen no more. May be called twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
