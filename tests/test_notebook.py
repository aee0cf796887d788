"""The engine in a notebook: a real kernel runs the cells."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from tests.support.kernels import kernel, printed, shown

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"

ENGINE = """
import asyncio, os, sys
from asyncflow import WorkflowEngine
from asyncflow.backends import ProcessBackend, ThreadBackend

flow = await WorkflowEngine.create([ThreadBackend(2), ProcessBackend(1)])
"""


async def test_example_notebook() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    async with kernel(notebook) as running:
        indices = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        for index in indices:
            await running.run_again(index)
        engine, _, ensemble, graph, failure, end = (notebook.cells[index] for index in indices)
        assert "processes" in shown(engine)[0]
        assert "exponent 1.0" in printed(ensemble) or "exponent 0.9" in printed(ensemble)
        assert "200 walks of 1600 steps" in printed(ensemble), "what worker processes print"
        assert "1000/1000" in shown(ensemble)[0]
        assert "<svg" in shown(graph)[0]
        assert "no-such-file.txt" in printed(failure)
        assert "DependencyFailureError" in shown(failure)[0]
        assert "closed" in shown(end)[0]


async def test_a_cell_that_runs_twice_counts_its_new_calls_only() -> None:
    async with kernel() as running:
        await running.run(ENGINE)
        cell = await running.run(
            "@flow.function_task\n"
            "def step(n): return n\n"
            "with flow.progress():\n"
            "    print(sum(await asyncio.gather(*map(step, range(7)))))"
        )
        for _ in range(2):
            assert printed(cell) == "21\n"
            assert "7/7" in shown(cell)[0]
            assert shown(cell, "text/plain") == ["step 7/7 done"]
            cell = await running.run_again(1)
        await running.run("await flow.shutdown()")


@pytest.mark.parametrize("backend", ["threads", "processes"])
async def test_an_interrupted_cell_leaves_a_usable_engine(backend: str) -> None:
    async with kernel() as running:
        await running.run(ENGINE)
        await running.run(
            f"@flow.function_task(backend={backend!r})\n"
            "async def wait():\n"
            "    print('it waits', flush=True)\n"
            "    await asyncio.sleep(1000)\n"
            f"@flow.function_task(backend={backend!r})\n"
            "def add(a, b): return a + b\n"
            "futures = []"
        )
        cell = asyncio.create_task(
            running.run("with flow.progress():\n    futures.append(wait())\n    await asyncio.gather(*futures)")
        )
        await running.says("it waits")
        await running.interrupt()
        with pytest.raises(CellExecutionError):
            await cell
        assert shown(running.notebook.cells[-1], "text/plain") == ["wait 0/1, 1 cancelled"]
        after = await running.run("print(futures[0].state, await add(1, 2))")
        assert printed(after) == "CANCELLED 3\n"
        await running.run("await flow.shutdown()")


async def test_what_tasks_print_appears_in_the_cell_that_called_them() -> None:
    async with kernel() as running:
        await running.run(ENGINE)
        await running.run(
            "@flow.function_task\n"
            "def on_thread(n): print('thread', n); print('thread err', n, file=sys.stderr)\n"
            "@flow.function_task\n"
            "async def in_loop(n): await asyncio.sleep(0); print('loop', n)\n"
            "@flow.function_task(backend='processes')\n"
            "def in_process(n): print('process', n); print('process err', n, file=sys.stderr)\n"
            "@flow.function_task(backend='processes')\n"
            "def in_program(n): os.system(f'echo program {n}')\n"
            "@flow.block\n"
            "async def in_block(n): print('block', n)"
        )
        for number in range(3):
            cell = await running.run(
                "for task in on_thread, in_loop, in_process, in_program, in_block:\n"
                f"    await task({number})\n"
                "await asyncio.sleep(0.5)  # ipykernel sends what it has a few times a second"
            )
            places = ("thread", "loop", "process", "program", "block")
            assert sorted(printed(cell).splitlines()) == sorted(f"{place} {number}" for place in places)
            errors = [f"process err {number}", f"thread err {number}"]
            assert sorted(printed(cell, "stderr").splitlines()) == errors
        await running.run("await flow.shutdown()")


async def test_progress_of_a_running_cell_is_redrawn_in_its_place() -> None:
    async with kernel() as running:
        await running.run(ENGINE)
        cell = await running.run(
            "gate = asyncio.Event()\n"
            "@flow.block\n"
            "async def opened(): await gate.wait()\n"
            "with flow.progress():\n"
            "    future = opened()\n"
            "    await asyncio.sleep(0.7)\n"
            "    gate.set()\n"
            "    await future"
        )
        assert shown(cell, "text/plain") == ["opened 1/1 done"]
        await running.run("await flow.shutdown()")
