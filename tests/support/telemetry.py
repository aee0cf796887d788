"""Reading what telemetry wrote."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from asyncflow import WorkflowEngine
from asyncflow.telemetry import Telemetry

SCHEMA = Path(__file__).parents[2] / "telemetry" / "events.schema.json"


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text()))


def events(path: Path | None) -> list[dict[str, Any]]:
    """All events of a file, each checked against the schema."""
    assert path is not None
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for event in found:
        _validator().validate(event)
    return found


def of(found: Iterable[dict[str, Any]], uid: str | None) -> list[dict[str, Any]]:
    """Those of one component, in the file's order."""
    return [event for event in found if event["task_id"] == uid]


def types(found: Iterable[dict[str, Any]]) -> list[str]:
    return [event["event_type"] for event in found]


@asynccontextmanager
async def told(backend: Any = None, **options: Any) -> AsyncIterator[tuple[WorkflowEngine, Telemetry]]:
    """An engine with telemetry in the folder `told`."""
    async with WorkflowEngine.create(backend) as flow:
        options = {"path": "told", "resource_interval": None, **options}
        yield flow, await flow.start_telemetry(options.pop("path"), **options)


def mode(path: Path) -> int:
    """The permissions of a file."""
    return os.stat(path).st_mode & 0o777
