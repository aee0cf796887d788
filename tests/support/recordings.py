"""Recorded workflows: where the real ones lie, and ones made up for tests, as WfFormat has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

#: Recordings of real workflows; they are no part of the project.
INSTANCES = Path(__file__).parents[3] / "shared" / "data" / "wfinstances"

needs_recordings = pytest.mark.skipif(
    not INSTANCES.exists(), reason="needs the recorded workflows in ../shared/data/wfinstances, beside the checkout"
)


def instance(
    parents: Mapping[str, Sequence[str]], runtimes: Mapping[str, float] | None = None, cores: int | None = None
) -> dict[str, Any]:
    """The content of a recording: parents by task id; a task without a runtime took a second."""
    lasted = dict(runtimes or {})
    tasks = [
        {
            "name": uid,
            "id": uid,
            "parents": list(above),
            "children": [child for child, its in parents.items() if uid in its],
        }
        for uid, above in parents.items()
    ]
    runs: list[dict[str, Any]] = [{"id": uid, "runtimeInSeconds": lasted.get(uid, 1)} for uid in parents]
    if cores is not None:
        for run in runs:
            run["coreCount"] = cores
    return {
        "name": "recording",
        "schemaVersion": "1.6",
        "workflow": {
            "specification": {"tasks": tasks},
            "execution": {"makespanInSeconds": 1, "executedAt": "2024-01-01T00:00:00Z", "tasks": runs},
        },
    }
