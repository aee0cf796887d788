"""Which machines the pilot's process knows: RADICAL-Pilot's own, the user's, and this one as it was asked for."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asyncflow.backends.launch import OPEN_MPI
from asyncflow.backends.radical.order import Order

#: Where RADICAL-Pilot looks for a user's configurations, below the folder that RADICAL_CONFIG_USER_DIR names.
_PLACE = Path(".radical", "pilot", "configs")

_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)


def write_sites(order: Order, folder: Path) -> None:
    """Write below `folder`, for RADICAL_CONFIG_USER_DIR, all configurations beside those that come with it."""
    place = folder / _PLACE
    place.mkdir(parents=True)
    source = Path(order.config) if order.config else Path(_user_folder(), _PLACE)
    for file in sorted(source.glob("*.json")):
        shutil.copy(file, place)
    if order.is_local:
        file = place / "resource_local.json"
        sites = json.loads(_COMMENT.sub("", file.read_text())) if file.exists() else {}
        sites["localhost"] = {**_launching(), **sites.get("localhost", {}), **_size(order)}
        file.write_text(json.dumps(sites, indent=1))


def _user_folder() -> str:
    return os.environ.get("RADICAL_CONFIG_USER_DIR") or str(Path.home())


def _size(order: Order) -> dict[str, Any]:
    """One node of just the size that was asked for: RADICAL-Pilot hands out whole nodes only."""
    size = {"cores_per_node": order.cores, "gpus_per_node": order.gpus, "mem_per_node": order.memory}
    return {name: value for name, value in size.items() if value is not None}


def _launching() -> dict[str, Any]:
    """Without these settings a command of several ranks does not start there."""
    method = {"pre_exec_cached": list(_open_mpi(os.environ))}
    return {"launch_methods": {"order": ["FORK", "MPIRUN"], "FORK": {}, "MPIRUN": method}}


def _open_mpi(environment: Mapping[str, str]) -> Iterator[str]:
    # RADICAL-Pilot takes the user's own out of the environment.
    own = {name: value for name, value in environment.items() if name.startswith(("OMPI_ALLOW_", "OMPI_MCA_"))}
    for name, value in (OPEN_MPI | own).items():
        yield f"export {name}={shlex.quote(value)}"
