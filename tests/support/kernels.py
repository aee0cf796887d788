"""A notebook's kernel, run by this very interpreter and driven cell by cell."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

import asyncflow

#: Seconds that one cell may take: protection against hanging.
_PATIENCE = 60


class Kernel:
    """A running kernel and the notebook whose cells it runs."""

    def __init__(self, manager: AsyncKernelManager, client: NotebookClient) -> None:
        self._manager = manager
        self._client = client

    @property
    def notebook(self) -> NotebookNode:
        return self._client.nb

    async def run(self, source: str) -> NotebookNode:
        """Append a cell and run it. Raises CellExecutionError where the cell does."""
        self.notebook.cells.append(new_code_cell(source))
        return await self.run_again(len(self.notebook.cells) - 1)

    async def run_again(self, index: int) -> NotebookNode:
        return await self._client.async_execute_cell(self.notebook.cells[index], index)

    async def says(self, words: str) -> None:
        """Wait until the last cell, which is running, has printed `words`."""
        while words not in printed(self.notebook.cells[-1]):  # noqa: ASYNC110  # nbclient tells nobody of output
            await asyncio.sleep(0.01)

    async def interrupt(self) -> None:
        """What the button with the black square does."""
        await self._manager.interrupt_kernel()


@asynccontextmanager
async def kernel(notebook: NotebookNode | None = None) -> AsyncIterator[Kernel]:
    """A kernel that finds the library under test, and none of the user's settings."""
    # Not a test's own folder: the path of a socket is at most 107 characters long.
    folder = Path(tempfile.mkdtemp(prefix="kernel"))
    spec = folder / "python3"
    spec.mkdir()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Python", "language": "python"}))
    # ipykernel does not look at what others write to stdout where it finds itself under pytest.
    variables = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    variables |= {
        "PYTHONPATH": str(Path(asyncflow.__file__).parents[1]),
        "IPYTHONDIR": str(folder),
        "JUPYTER_CONFIG_DIR": str(folder),
    }
    manager = AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(folder)]),
        connection_file=str(folder / "kernel.sock.json"),
        transport="ipc",
        ip=str(folder / "ipc"),
    )
    client = NotebookClient(notebook or new_notebook(), km=manager, timeout=_PATIENCE)
    try:
        async with client.async_setup_kernel(env=variables, cleanup_kc=True):
            yield Kernel(manager, client)
    finally:
        shutil.rmtree(folder)


def printed(cell: NotebookNode, stream: str = "stdout") -> str:
    """All that a cell shows of what was printed while it ran."""
    return "".join(each["text"] for each in cell.outputs if each.get("name") == stream)


def shown(cell: NotebookNode, kind: str = "text/html") -> list[Any]:
    """What a cell displays, in its order."""
    return [each["data"][kind] for each in cell.outputs if kind in each.get("data", ())]
