"""Where a session's metrics go: to the application's meter provider, and to readers that the session was given.

Libraries speak OpenTelemetry's API; the SDK is imported only where readers are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opentelemetry.metrics import Meter, get_meter_provider

from asyncflow.telemetry import names
from asyncflow.version import installed_version

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource


class Meters:
    """The meters of one session."""

    def __init__(self, readers: Sequence[MetricReader]) -> None:
        """`readers` get a provider of their own, and go with it."""
        self._own = _provider(readers) if readers else None
        #: One for each provider; none where nobody reads.
        self.meters: list[Meter] = []
        application = get_meter_provider()
        # The API's own providers (none was set, or one that does nothing) measure nothing.
        if not type(application).__module__.startswith("opentelemetry.metrics"):
            self.meters.append(application.get_meter(names.SCOPE, installed_version()))
        if self._own is not None:
            self.meters.append(self._own.get_meter(names.SCOPE, installed_version()))

    def close(self) -> None:
        """Shut the readers down, which send what they have; for as long as they take."""
        own, self._own = self._own, None
        if own is not None:
            own.shutdown()


def resource() -> Resource:
    """Who tells: what the environment says, under this library's name where that names no service."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    found = Resource.create()
    if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: "asyncflow"}))
    return found


def _provider(readers: Sequence[MetricReader]) -> MeterProvider:
    from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider

    return MeterProvider(
        metric_readers=readers,
        resource=resource(),
        exemplar_filter=AlwaysOffExemplarFilter(),  # nothing is measured within a span
        shutdown_on_exit=False,  # the session sees to it, and waits for nobody for ever
    )
