"""Whatever the documentation shows runs and prints what it says; the site builds, and every link in it leads somewhere.

How a block is run is told by its language: `python` is a whole script, started as a reader would start it; on the page
on notebooks it is a cell. `sh` is a shell's script, beside the blocks above it that have a file's name as their title.
A `text` block that follows is what must have been printed, `...` standing for anything. What is written for another
library has the comment `<!-- not run: ... -->` above it.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

import asyncflow
import asyncflow.backends
from tests.support.scripts import needs_mpi

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: Not there where the tests run against the wheel alone.
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NOTEBOOKS = DOCS / "howto" / "notebooks.md"


@dataclass(eq=False)
class Block:
    """One fenced block of a page, and what is known of it from around it."""

    page: Path
    line: int
    language: str
    source: str
    #: A file's name, where the block is to be saved under it.
    title: str | None
    #: Written for another library.
    foreign: bool
    #: What it must print; None where nothing is shown.
    output: str | None = None
    #: The blocks above it on its page.
    above: list[Block] = field(default_factory=list)

    @property
    def files(self) -> dict[str, str]:
        """What a reader has saved so far."""
        return {block.title: block.source for block in [*self.above, self] if block.title}


# --- from pages to blocks --------------------------------------------------------------------------------------------

_INFO = re.compile(r'(?P<language>\w+)(?: title="(?P<title>[^"]+)")?[^\n]*\n')
_FOREIGN = re.compile(r"<!-- not run: .+? -->\s*\Z")


def _not_evaluated(example: Example) -> None:
    """Blocks are run by the tests below, each a test of its own."""


def parse(document: Document) -> Iterable[Region]:
    """Sybil's parser of fenced blocks: where they are, and what they say."""
    for region in RawFencedCodeBlockLexer(_INFO)(document):
        region.evaluator = _not_evaluated
        region.parsed = region.lexemes
        yield region


def blocks_of(page: Path) -> Iterator[Block]:
    document = Sybil(parsers=[parse]).parse(page)
    above: list[Block] = []
    for example in document.examples():
        block = Block(
            page,
            example.line,
            example.parsed["language"],
            str(example.parsed["source"]),
            example.parsed["title"],
            bool(_FOREIGN.search(document.text[: example.region.start])),
            above=list(above),
        )
        if block.language == "text" and above and not above[-1].foreign:
            above[-1].output = block.source
        above.append(block)
    yield from above


BLOCKS = [block for page in PAGES if page.exists() for block in blocks_of(page)]


#: What pages need beside Python.
_NEEDS = {"mpi.md": needs_mpi}


def chosen(*languages: str) -> list[Any]:
    return [
        pytest.param(block, id=f"{block.page.relative_to(ROOT)}:{block.line}", marks=_NEEDS.get(block.page.name, ()))
        for block in BLOCKS
        if block.language in languages and not (block.foreign or block.page == NOTEBOOKS or is_started_below(block))
    ]


def is_started_below(block: Block) -> bool:
    """Whether a shell's block of the same page runs the file that `block` is."""
    return block.title is not None and any(
        f"python {block.title}" in other.source for other in BLOCKS if block in other.above and other.language == "sh"
    )


# --- what takes long and waits most of the time: beside the other tests -----------------------------------------------


class Background:
    """A command that was started, and what it says in the end."""

    def __init__(self, folder: Path, cwd: Path, *command: str | Path) -> None:
        self.folder = folder
        self._output = folder.with_suffix(".output")
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=cwd, env=environment(), stdout=output, stderr=subprocess.STDOUT
            )

    def ended(self) -> tuple[int, str]:
        """Its exit code and its output."""
        return self.process.wait(), self._output.read_text()


@pytest.fixture(scope="module", autouse=True)
def in_background(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Background]]:
    """What the tests that are chosen need of the site and of the suite; begun before the first of them."""
    chosen_tests = " ".join(item.name for item in request.session.items)
    started: dict[str, Background] = {}
    if "the_site" in chosen_tests or "the_reference" in chosen_tests:
        folder = tmp_path_factory.mktemp("site")
        # Not --quiet: what it does not print it does not count as a warning either.
        started["site"] = Background(folder, ROOT, "-m", "mkdocs", "build", "--strict", "--site-dir", folder)
    if "conformance_suite" in chosen_tests:
        folder = tmp_path_factory.mktemp("suite")
        [block] = [block for block in BLOCKS if block.title == "test_thread_per_call.py"]
        saved(block, folder)
        options = ("-q", "-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function")
        started["suite"] = Background(folder, folder, "-m", "pytest", *options, "--rootdir", folder, folder)
    yield started
    for background in started.values():
        if background.process.poll() is None:
            background.process.terminate()
            background.process.wait()


# --- running them ----------------------------------------------------------------------------------------------------


def environment(*path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": os.pathsep.join([*map(str, path), os.environ["PATH"]]),
        "PYTHONPATH": str(Path(asyncflow.__file__).parents[1]),
        "PYTHONUTF8": "1",
        "NO_MKDOCS_2_WARNING": "1",
        # Open MPI refuses to run as root, as which containers run, and to start more ranks than there are cores.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }


def run(command: list[str | Path], folder: Path, variables: dict[str, str]) -> str:
    """What `command` printed; it must end well."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Warnings have been made errors; what is logged is not an error, and some pages show it.
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def compare(shown: str | None, printed: str) -> None:
    """Fail where `printed` is not what the page shows."""
    if shown is None:
        return
    flags = doctest.ELLIPSIS
    checker = doctest.OutputChecker()
    if not checker.check_output(shown, printed, flags):
        pytest.fail(checker.output_difference(doctest.Example("", shown), printed, flags))


def saved(block: Block, folder: Path) -> Path:
    """`block` in a file, beside the files of its page."""
    for name, source in block.files.items():
        (folder / name).write_text(source)
    script = folder / (block.title or f"block.{block.language}")
    script.write_text(block.source)
    return script


@pytest.mark.parametrize("block", chosen("python"))
def test_python(block: Block, tmp_path: Path) -> None:
    script = saved(block, tmp_path)
    compare(block.output, run([sys.executable, "-W", "error", script], tmp_path, environment()))


@pytest.mark.parametrize("block", chosen("sh", "bash"))
def test_shell(block: Block, tmp_path: Path) -> None:
    folder, programs = tmp_path / "work", tmp_path / "programs"
    for made in (folder, programs):
        made.mkdir()
    write_stand_ins(programs)
    script = saved(block, folder)
    compare(block.output, run(["bash", "-eu", script], folder, environment(programs)))


#: `make test` in a test would not end; that the target is there and can be made is what can be checked.
_MAKE = """#!/bin/sh
exec {make} --dry-run --no-print-directory -C {root} "$@" >/dev/null
"""
_PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && exec touch "$3/bin/activate"; fi
exec {python} "$@"
"""
#: Where the environment that runs the tests is not activated, its programs are not found.
_ASYNCFLOW = """#!/bin/sh
exec {python} -m asyncflow "$@"
"""
#: Installing takes minutes; that the extras exist is what can be checked.
_PIP = """#!{python}
import re, sys
unknown = {{extra for word in sys.argv for found in re.findall(r"\\[(.+)\\]", word) for extra in found.split(",")}}
unknown -= set({extras!r})
sys.exit(f"no such extras: {{unknown}}" if unknown else 0)
"""


def write_stand_ins(folder: Path) -> None:
    """Programs that must not be run in earnest here."""
    declared = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = re.findall(r"(?m)^(\w+) = \[", declared)
    programs = {"make": _MAKE, "python": _PYTHON, "python3": _PYTHON, "pip": _PIP, "asyncflow": _ASYNCFLOW}
    for name, text in programs.items():
        program = folder / name
        program.write_text(text.format(make=shutil.which("make"), root=ROOT, python=sys.executable, extras=extras))
        program.chmod(0o755)


#: Runs the cells given as arguments as a notebook does: on one loop, each in a context of its own.
_CELLS = """
import ast, asyncio, inspect, sys

async def main():
    names = {"__name__": "__main__"}
    for cell in sys.argv[1:]:
        result = eval(compile(cell, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if inspect.iscoroutine(result):
            await asyncio.create_task(result)
        print("end of cell", flush=True)

asyncio.run(main())
"""


def test_notebook(tmp_path: Path) -> None:
    cells = [block for block in BLOCKS if block.page == NOTEBOOKS and block.language == "python"]
    command = [sys.executable, "-W", "error", "-c", _CELLS, *(cell.source for cell in cells)]
    printed = run([*command], tmp_path, environment()).split("end of cell\n")
    assert len(printed) == len(cells) + 1
    for cell, output in zip(cells, printed, strict=False):
        compare(cell.output, output)


def test_there_is_something_to_run() -> None:
    """A parser that finds nothing would make all of the above pass."""
    assert len([block for block in BLOCKS if block.language == "python"]) > 20
    assert len([block for block in BLOCKS if block.output]) > 10
    assert {block.language for block in BLOCKS} <= {"python", "sh", "bash", "text", "toml"}


# --- the site --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(in_background: dict[str, Background]) -> Path:
    """The built site; links and anchors that lead nowhere are warnings, and no warning is allowed."""
    build = in_background["site"]
    returncode, output = build.ended()
    assert returncode == 0, output
    assert "WARNING" not in output
    return build.folder


def test_a_link_that_leads_nowhere_breaks_the_build(tmp_path: Path) -> None:
    """The settings that find one can be lost without a trace."""
    for name, text in {
        "mkdocs.yml": f"INHERIT: {ROOT / 'mkdocs.yml'}\nplugins: []\nnav: [Page: index.md]\n",
        "docs/index.md": "# Page\n\n[page](nowhere.md) and [anchor](index.md#nowhere)\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    returncode, output = Background(tmp_path, tmp_path, "-m", "mkdocs", "build", "--strict").ended()
    assert returncode == 1, output
    assert output.count("WARNING") == 2, output


_LOADED = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'>\s]+|<link\b[^>]*//[^>]*>""")


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    found = {hit for page in site.rglob("*.html") for hit in _LOADED.findall(page.read_text())}
    found |= {
        hit for sheet in site.rglob("*.css") for hit in re.findall(r"url\([\"']?(?:https?:)?//[^)]+", sheet.read_text())
    }
    assert not found


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    public = {f"asyncflow.{name}" for name in asyncflow.__all__}
    public |= {f"asyncflow.backends.{name}" for name in asyncflow.backends.__all__}
    public -= {f"asyncflow.{name}" for name in ("block", "executable_task", "function_task")}  # told in prose
    assert not sorted(public - documented)


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text()):
        assert target.startswith("https:") or (ROOT / target).exists(), target


def test_the_workflows_community_reads_what_the_package_says_of_itself() -> None:
    [description] = re.findall(r'(?m)^description = "(.+)"$', (ROOT / "pyproject.toml").read_text())
    [headline] = re.findall(r"(?m)^headline: (.+)$", (ROOT / ".wci.yml").read_text())
    assert headline == description


# --- the backend of the page on backends -----------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_the_backend_that_is_shown_passes_the_conformance_suite(in_background: dict[str, Background]) -> None:
    returncode, output = in_background["suite"].ended()
    assert returncode == 0, output
    assert re.search(r"\d+ passed", output)
