"""The suite that a backend passes: every promise that a backend can break, over a real engine and over its contract."""

from __future__ import annotations

import pytest

from asyncflow.testing.conformance.calls import Calls
from asyncflow.testing.conformance.cancellation import Cancellation
from asyncflow.testing.conformance.contract import Contract
from asyncflow.testing.conformance.errors import Errors
from asyncflow.testing.conformance.executables import Executables
from asyncflow.testing.conformance.losses import Losses
from asyncflow.testing.conformance.origins import Origins
from asyncflow.testing.conformance.resources import Resources
from asyncflow.testing.conformance.shutdown import Shutdown

__all__ = ["BackendConformance"]


@pytest.mark.asyncio(loop_scope="function")
class BackendConformance(Calls, Errors, Executables, Cancellation, Losses, Resources, Shutdown, Contract, Origins):
    """Subclass it in a test module, under a name that begins with `Test`, and say how to make the backend.

    `make_backend` gives a fresh backend each time, not started, that has at least two workers and two cores on this
    machine or on ones that share its files. Few are better than many: the suite fills them all. Where the backend
    takes them, give it two GPUs (any ids: none is used) and a short time between TERM and KILL (some tests wait for
    it). Declared capabilities are believed and tested: what is declared absent is tested to be absent gracefully.

    Where backends share what they do not own (a pool of worker processes), override `prepare` to start it.

    A subclass may also set:

    * `within`: seconds after which what has not ended counts as hung. Generous: it bounds and measures nothing.
    * `chance`: seconds for which some tests watch that something does not happen. A right backend never fails for it.
    * `host`: the address of this machine under which the workers reach it, where they are elsewhere.
    * `worker_may_die`: False where the death of a worker ends the test's own process, as under MPI; then nothing is
      killed, and the backend must not claim to survive that.
    * `workers_end_with_engine`: False where the workers are a foreign pool's, which may outlive a killed engine.
    * `ends_late`: True where the backend's processes may take a moment to vanish after its shutdown.
    """
