"""Who may import whom: arrows point down, and importing the library costs next to nothing."""

from __future__ import annotations

import ast
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncflow
from tests.support.scripts import run_script

PACKAGE = Path(asyncflow.__file__).parent

#: The layers of docs/design.md, from the top: a module imports from layers below its own, or from its own.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"report"},
    {"testing"},
    {""},  # asyncflow itself: names only
    {"engine"},
    {"telemetry"},
    {"components", "task", "mapping"},
    {"scheduler"},
    {"lane"},
    {"blocks", "reports", "stayed", "walltime"},
    {"observer"},
    {"component", "future"},
    {"display"},
    {"graph"},
    {"arguments"},
    {"scope", "guard"},
    {"backends"},
    {"description"},
    {"options", "wfformat"},
    {"errors", "version"},
]

#: The same within asyncflow.backends.
BACKENDS = [
    {""},
    {"registry"},
    {"radical"},
    {"dask"},
    {"executor", "noop", "processes", "step_runner", "threads"},
    {"item_threads"},
    {"coroutines", "worker"},
    {"own_process"},
    {"executable", "steps"},
    {"allocation", "launch", "payload"},
    {"aside", "body", "definitions", "hosts", "machine", "origin", "orphans", "resources", "shared"},
    {"contract"},
]

#: What the pure rooms may import besides the library: no asyncio, no I/O, no threads.
PURE = {
    "asyncflow.wfformat": {"__future__", "collections", "dataclasses", "json", "math", "re", "typing"},
    "asyncflow.graph": {"__future__", "collections", "enum", "typing"},
    "asyncflow.backends.resources": {"__future__", "collections", "typing"},
    "asyncflow.display.layout": {"__future__", "collections"},
    "asyncflow.display.markup": {"__future__", "collections", "html"},
    "asyncflow.description": {"__future__", "collections", "dataclasses", "types", "typing"},
}


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the library by its name."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = ["asyncflow", *file.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path, *, deferred: bool) -> Iterator[str]:
    """Names of the modules that a file imports; `deferred` adds the imports inside functions. Never those for types."""
    pending: list[ast.AST] = [ast.parse(file.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                # `from package import module` imports the module.
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
        elif deferred or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending += ast.iter_child_nodes(node)


def depth(layers: list[set[str]], room: str) -> int:
    found = [number for number, rooms in enumerate(layers) if room in rooms]
    assert found, f"{room!r} stands in no layer: find its place here and in docs/design.md"
    return found[0]


def room(module: str, below: str = "asyncflow") -> str:
    """The first part of a module's name below a package."""
    return module.removeprefix(below).lstrip(".").split(".")[0]


def edges(*, deferred: bool) -> list[tuple[str, str]]:
    """Which module of the library imports which other."""
    return [
        (module, imported)
        for module, file in modules().items()
        for imported in imports(file, deferred=deferred)
        if imported.split(".")[0] == "asyncflow" and imported != module
    ]


def test_the_check_sees_the_imports() -> None:
    found = edges(deferred=False)
    assert ("asyncflow.engine", "asyncflow.scheduler") in found
    assert ("asyncflow.scheduler", "asyncflow.graph") in found
    assert ("asyncflow.future", "asyncflow.component") not in found, "that one is for types only"
    assert ("asyncflow.backends.registry", "asyncflow.backends.executor") in found


def test_arrows_point_down() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, imported in edges(deferred=True)
        if depth(LAYERS, room(module)) > depth(LAYERS, room(imported))
    ]
    assert wrong == []


def test_arrows_point_down_among_the_backends() -> None:
    package = "asyncflow.backends"
    inside = [edge for edge in edges(deferred=True) if all(name.startswith(package) for name in edge)]
    wrong = [
        f"{module} imports {imported}"
        for module, imported in inside
        if depth(BACKENDS, room(module, package)) > depth(BACKENDS, room(imported, package))
    ]
    assert inside
    assert wrong == []


def test_no_two_modules_import_each_other() -> None:
    below: dict[str, set[str]] = {}
    for module, imported in edges(deferred=False):
        below.setdefault(module, set()).add(imported)
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in finished:
            for imported in sorted(below.get(module, ())):
                # A package imports its modules, which name each other by their full names.
                if not module.startswith(f"{imported}."):
                    visit(imported, (*path, module))
            finished.add(module)

    for module in sorted(modules()):
        visit(module, ())


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_room_knows_no_event_loop_and_no_io(module: str) -> None:
    found = {name.split(".")[0] for name in imports(modules()[module], deferred=True)}
    assert found - {"asyncflow"} <= PURE[module]


@pytest.mark.smoke
def test_importing_the_library_imports_the_standard_library_and_cloudpickle_only() -> None:
    program = (
        "import sys; before = set(sys.modules); import asyncflow; import json; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    run = run_script(program)
    assert run.returncode == 0, run.stderr
    imported = {name.split(".")[0] for name in json.loads(run.stdout)}
    assert {"asyncflow", "asyncio"} <= imported
    assert imported - sys.stdlib_module_names <= {"asyncflow", "cloudpickle"}


def test_importing_the_library_does_not_import_its_testing_room() -> None:
    program = "import sys, asyncflow; print('asyncflow.testing' in sys.modules, 'pytest' in sys.modules)"
    assert run_script(program).stdout.split() == ["False", "False"]


def test_nothing_imports_the_command_line() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, imported in edges(deferred=True)
        if imported.startswith("asyncflow.cli") and not module.startswith(("asyncflow.cli", "asyncflow.__main__"))
    ]
    assert wrong == []
