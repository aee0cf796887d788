"""The pilot that a user asks for."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asyncflow import options
from asyncflow.backends.machine import resources_of
from asyncflow.errors import InvalidOptionError

#: The resource that is this machine.
LOCAL = "local.localhost"
#: Minutes that a pilot has where nobody says how many.
RUNTIME = 60


@dataclass(frozen=True)
class Order:
    """What becomes of it: `cores` and `gpus` are in all, `memory` (MB) is each node's, `runtime` is minutes."""

    resource: str
    nodes: int | None
    cores: int | None
    gpus: int | None
    memory: int | None
    runtime: int
    queue: str | None
    project: str | None
    access_schema: str | None
    interface: str | None
    #: Folder with the user's own resource configurations.
    config: str | None
    #: Folders in which the engine finds modules.
    path: tuple[str, ...]

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return self.resource == LOCAL

    def dumps(self) -> str:
        """As text, for `loads`."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Order:
        """What `dumps` gave."""
        values = json.loads(text)
        return cls(**values | {"path": tuple(values["path"])})


def order(
    resource: Any,
    *,
    nodes: Any,
    cores: Any,
    gpus: Any,
    memory: Any,
    runtime: Any,
    queue: Any,
    project: Any,
    access_schema: Any,
    interface: Any,
    config: Any,
) -> Order:
    """The order for these options, all checked. Raises InvalidOptionError."""
    if not isinstance(resource, str) or not all(resource.partition(".")):
        raise InvalidOptionError("resource", resource, "a site and a machine, such as 'local.localhost'")
    if resource == LOCAL and interface is not None:
        raise InvalidOptionError("interface", interface, "a pilot on this machine is reached over loopback alone")
    if nodes is not None and cores is not None:
        raise InvalidOptionError("cores", cores, "give nodes or cores, not both")
    words = {"queue": queue, "project": project, "access_schema": access_schema, "interface": interface}
    for name, value in words.items():
        if value is not None and not (isinstance(value, str) and value):
            raise InvalidOptionError(name, value, "a name, or None")
    if config is not None and not (isinstance(config, (str, Path)) and Path(config).is_dir()):
        raise InvalidOptionError("config", config, "a folder with resource configurations: resource_SITE.json")
    if nodes is not None:
        options.whole("nodes", nodes, 1)
    elif resource == LOCAL:
        here, _ = resources_of(cores, gpus, memory)
        cores, gpus, memory = here.cores, here.gpus, here.memory
    elif cores is None:
        nodes = 1
    return Order(
        resource,
        nodes,
        None if cores is None else options.whole("cores", cores, 1),
        None if gpus is None else options.whole("gpus", gpus, 0),
        None if memory is None else options.whole("memory", memory, 1),
        options.whole("runtime", runtime, 1),
        **words,
        config=None if config is None else str(Path(config).absolute()),
        path=tuple(folder for folder in sys.path if folder),
    )
