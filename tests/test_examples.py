"""Each example runs and shows what it says that it shows; so does the script in the README."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import asyncflow
from tests.support.scripts import needs_mpi

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
#: The examples that are scripts of their own; `ising.py` is imported by the demo.
SCRIPTS = {
    "autocorrelation",
    "blocking_io",
    "blocks",
    "demo",
    "executables_mpi",
    "failure_retry",
    "five_workflows",
    "quickstart",
    "two_backends",
}


def run(script: Path, *arguments: str | Path, cwd: Path, warnings: str = "error", **environment: str) -> str:
    """What `script` printed; it must end well and without a word on stderr."""
    variables = {
        **os.environ,
        # The library under test, installed or not.
        "PYTHONPATH": str(Path(asyncflow.__file__).parents[1]),
        # Open MPI refuses to run as root, as which containers run.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        **environment,
    }
    command = [sys.executable, "-W", warnings, script, *arguments]
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def found(pattern: str, output: str) -> list[str]:
    """The groups of `pattern`, which must occur in `output`."""
    match = re.search(pattern, output)
    assert match, f"no {pattern!r} in:\n{output}"
    return list(match.groups())


def test_every_script_is_tested_here() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text()}
    assert scripts == SCRIPTS


@pytest.mark.smoke
def test_script_of_the_readme(tmp_path: Path) -> None:
    (source,) = found(r"(?s)```python\n(.*?)```", (ROOT / "README.md").read_text())
    script = tmp_path / "first.py"
    script.write_text(source)
    assert run(script, cwd=tmp_path).strip() == "mean energy: 2.550"


@pytest.mark.smoke
def test_quickstart(tmp_path: Path) -> None:
    output = run(EXAMPLES / "quickstart.py", cwd=tmp_path)
    assert "announce of workflow quickstart is PENDING" in output
    (mean,) = found(r"the mean of 8 simulations is ([\d.]+)", output)
    assert float(mean) == pytest.approx(3.1416, abs=0.02)
    (said,) = found(r"pi is about ([\d.]+)", output)
    assert float(said) == pytest.approx(float(mean), abs=0.006)


def test_five_workflows(tmp_path: Path) -> None:
    output = run(EXAMPLES / "five_workflows.py", cwd=tmp_path, PYTHONUTF8="1")
    for number in range(1, 6):
        assert f"workflow-{number}: {number} + {number}² = {number + number**2}\n" in output
    (seconds,) = found(r"five workflows in ([\d.]+) s", output)
    assert float(seconds) < 2.0


def test_blocks(tmp_path: Path) -> None:
    output = run(EXAMPLES / "blocks.py", cwd=tmp_path)
    assert re.findall(r"root ([\d.]+) after", output) == ["1.414214", "3.000000", "10.000000"]
    components, called = found(r"(\d+) components, (\d+) of them called by a block", output)
    assert int(components) == int(called) + 1, "all but the outermost block"


def test_blocking_io_leaves_the_loop_free(tmp_path: Path) -> None:
    output = run(EXAMPLES / "blocking_io.py", cwd=tmp_path)
    count, seconds = found(r"(\d+) blocking reads of 0.5 s in ([\d.]+) s", output)
    assert int(count) == 16
    assert float(seconds) < 2.0, "one after another they take 8 s"
    (late,) = found(r"at most ([\d.]+) ms late", output)
    assert float(late) < 250, "one blocking read on the loop makes it 500 ms"


def test_two_backends(tmp_path: Path) -> None:
    output = run(EXAMPLES / "two_backends.py", cwd=tmp_path)
    assert "16 downloads on 16 threads" in output
    assert "16 checksums on 2 other processes, True" in output


COMMANDS = "lines: 4\nin order: alpha beta gamma\nmost frequent: 2 alpha\n"


@pytest.mark.smoke
def test_executables_where_there_is_no_mpi(tmp_path: Path) -> None:
    for program in ("wc", "sort", "uniq", "head"):
        path = shutil.which(program)
        assert path
        (tmp_path / program).symlink_to(path)
    output = run(EXAMPLES / "executables_mpi.py", cwd=tmp_path, PATH=str(tmp_path))
    assert output.startswith(COMMANDS)
    assert "under mpirun: skipped" in output


@needs_mpi
def test_executables_under_mpi(tmp_path: Path) -> None:
    output = run(EXAMPLES / "executables_mpi.py", cwd=tmp_path)
    assert output == COMMANDS + "under mpirun: rank 0, rank 1\n"


def test_failure_retry(tmp_path: Path) -> None:
    output = run(EXAMPLES / "failure_retry.py", cwd=tmp_path)
    assert "an answer at attempt 3" in output
    assert "dependencies: mean failed, because of a FileNotFoundError" in output
    assert "/no/such/file" in output
    assert re.search(r"executable: \['ls', '/no/such/folder'\] exited with \d and said: ls: ", output)
    assert "timeout: 'slow' ran longer than its timeout of 0.2 s" in output


def test_demo(tmp_path: Path) -> None:
    # Libraries that draw may warn of their own future; that is not ours to fix.
    options = ["--size", "32", "--sweeps", "600", "--temperatures", "3", "--seeds", "2", "--output", "out"]
    output = run(EXAMPLES / "demo.py", *options, cwd=tmp_path, warnings="default", MPLCONFIGDIR=str(tmp_path))

    rows = [line.split("]")[1].split() for line in output.splitlines() if line.startswith("[")]
    by_temperature = sorted([float(word) for word in row] for row in rows)
    assert [row[0] for row in by_temperature] == [1.3692, 2.2692, 3.1692]
    cold, critical, hot = by_temperature
    # Exact values for the infinite lattice (Onsager 1944, Yang 1952); far from T_c this one hardly differs.
    assert cold[1] == pytest.approx(-1.9723, abs=0.005), "energy"
    assert hot[1] == pytest.approx(-0.7553, abs=0.02), "energy"
    assert cold[2] == pytest.approx(0.9926, abs=0.005), "magnetisation"
    assert hot[2] < critical[2] < cold[2], "magnetisation"
    assert max(cold[3], hot[3]) < critical[3], "the specific heat has its peak between them"
    assert cold[5] == pytest.approx(2 / 3, abs=0.001), "Binder cumulant"
    assert max(cold[6], hot[6]) < critical[6], "it slows down at the critical temperature"

    assert "6 simulations, 3 programs and 3 analyses" in output
    assert len(list((tmp_path / "out" / "series").iterdir())) == 6
    (picture,) = found(r"picture: (.+)", output)
    header = Path(picture).read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:]) == (1500, 1125)


def test_autocorrelation_of_a_series_with_a_known_time(tmp_path: Path) -> None:
    draw = random.Random(1)
    value, lines = 0.0, ["# energy magnetisation"]
    for _ in range(40_000):
        value = 0.8 * value + draw.gauss(0, 1)
        lines.append(f"0 {100 + value}")
    series = tmp_path / "series.txt"
    series.write_text("\n".join(lines))
    # (1 + a) / (1 - a) / 2 for an autoregressive series of factor a.
    assert float(run(EXAMPLES / "autocorrelation.py", series, cwd=tmp_path)) == pytest.approx(4.5, rel=0.15)


def test_autocorrelation_without_a_file_says_how_it_is_called(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "autocorrelation.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "autocorrelation.py SERIES" in done.stderr
