"""What the scheduler tells whoever watches it: telemetry, injected from above."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from asyncflow.backends.contract import HostFigures, Loss, Outcome, Place, WorkItem
from asyncflow.component import Component


class Observer(Protocol):
    """Called under the scheduler's lock, unless it says otherwise. Must be quick, and must not raise.

    What it notes of a component stands in the component itself (`component.Course`), which is unset until `created`.
    """

    def created(self, component: Component, dependencies: Sequence[asyncio.Future[Any]]) -> None:
        """A call was registered; it may not even have to wait."""

    def adopt(self, component: Component) -> None:
        """A component was called before there was an observer, and has not ended."""

    def resolved(self, component: Component) -> None:
        """Nothing stands before the component any more; also told again before each further attempt."""

    def submitting(self, items: Iterable[WorkItem]) -> None:
        """These are about to be handed to their backend, which will find their `origin` set."""

    def queued(self, items: Iterable[WorkItem]) -> None:
        """Their backend has taken them; some may have ended already."""

    def started(self, item: WorkItem, place: Place | None, time: float) -> None:
        """An attempt began, where that is known; called on any thread, without the lock."""

    def settled(self, item: WorkItem, outcome: Outcome) -> None:
        """The current attempt of a component ended by itself."""

    def lost(self, item: WorkItem, loss: Loss) -> None:
        """The current attempt of a component ended with its worker; another follows, or the component ends."""

    def given_up(self, item: WorkItem) -> None:
        """The current attempt of a component is ended by the engine: cancelled, timed out, taken back."""

    def retried(self, component: Component, error: BaseException) -> None:
        """A failed attempt will be followed by another."""

    def ended(self, component: Component, error: BaseException | None) -> None:
        """The component has ended, in the state that its phase says; `error` is why, where it is not DONE."""

    def entered(self, workflow_id: str) -> None:
        """A scope of this workflow was entered; called on the loop, without the lock."""

    def left(self, workflow_id: str) -> None:
        """A scope of this workflow was left; called on the loop, without the lock."""

    def blocked(self, who: str, where: str, seconds: float) -> None:
        """The loop was held; called on any thread, without the lock."""

    def measured(self, backend: str, figures: HostFigures) -> None:
        """A host of this backend told its figures; called on any thread, without the lock."""
