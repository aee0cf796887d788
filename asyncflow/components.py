"""`flow.components`: what an engine knows of its calls, as a read-only mapping of uids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from asyncflow.component import Component
from asyncflow.display.drawing import draw
from asyncflow.graph import State
from asyncflow.scheduler import Scheduler


class ComponentInfo(Mapping[str, Any]):
    """One component: by attribute, or by key as a dict with `description`, `uid`, `state` and `type`."""

    __slots__ = ("_component",)

    def __init__(self, component: Component) -> None:
        self._component = component

    @property
    def uid(self) -> str:
        return self._component.uid

    @property
    def name(self) -> str:
        return self._component.name

    @property
    def workflow_id(self) -> str | None:
        return self._component.workflow_id

    @property
    def parent(self) -> str | None:
        """uid of the block in whose body the call was made."""
        return self._component.parent

    @property
    def state(self) -> State:
        return self._component.state

    @property
    def attempt(self) -> int:
        """How many attempts were begun."""
        return self._component.attempt

    @property
    def description(self) -> dict[str, Any]:
        """`name`, `workflow_id`, `function`, `executable`, `arguments` (while unfinished) and `parent`."""
        return self._component.description

    def _items(self) -> dict[str, Any]:
        kind = self._component.binding.definition.kind.value
        return {"uid": self.uid, "type": kind, "state": self.state, "description": self.description}

    def __getitem__(self, key: str) -> Any:
        return self._items()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items())

    def __len__(self) -> int:
        return len(self._items())

    def __repr__(self) -> str:
        return f"<{self.name} {self.uid} {self.state}>"


class Components(Mapping[str, ComponentInfo]):
    """All unfinished components and the last finished ones, by uid."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def __getitem__(self, uid: str) -> ComponentInfo:
        component = self._unfinished(uid) or next((c for c in self._scheduler.known() if c.uid == uid), None)
        if component is None:
            raise KeyError(uid)
        return ComponentInfo(component)

    def _unfinished(self, uid: str) -> Component | None:
        number = uid.rpartition(".")[2] if isinstance(uid, str) else ""
        component = self._scheduler.unfinished.get(int(number)) if number.isdecimal() else None
        return component if component is not None and component.uid == uid else None

    def __iter__(self) -> Iterator[str]:
        for component in self._scheduler.known():
            yield component.uid

    def __len__(self) -> int:
        return len(self._scheduler.history) + len(self._scheduler.unfinished)

    def _repr_html_(self) -> str:
        """A picture of the graph."""
        return draw(self._scheduler)
