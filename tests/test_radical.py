"""What only a pilot brings: its parts die, its processes outlive whoever started them, its files have to stay away."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asyncflow import BackendLostError, WorkflowEngine
from asyncflow.backends import ProcessBackend, ThreadBackend
from asyncflow.backends.contract import Definition, ExecutableOptions, Kind, WorkItem
from asyncflow.backends.dask import DaskBackend
from asyncflow.backends.radical import Pilot, RadicalPilotBackend, leftovers
from asyncflow.backends.radical.description import describe_attempt, exported, slot
from asyncflow.backends.radical.files import Files
from asyncflow.backends.radical.messages import PilotNode
from asyncflow.backends.radical.order import Order, order
from asyncflow.backends.radical.pulse import Pulse
from asyncflow.backends.radical.sites import write_sites
from asyncflow.description import TaskDescription
from asyncflow.errors import (
    BackendStartError,
    CommandError,
    CommandNotFoundError,
    CommandStartError,
    ExecutableError,
    InvalidOptionError,
    UnsatisfiableRequestError,
)
from asyncflow.testing import bodies
from asyncflow.testing.leaks import nothing_left
from asyncflow.testing.meeting import Meeting, attend, attend_command
from asyncflow.testing.plugin import MakeEngine
from tests.support.network import only_loopback
from tests.support.pilots import SharedPilot, kill, parts
from tests.support.scripts import environment, run_script

#: Seconds within which every future ends once something of a pilot was killed.
SOON = 60.0
#: Nothing takes that long unless it never ends.
NEVER = 100.0

NOTHING: dict[str, Any] = dict.fromkeys(
    ("nodes", "cores", "gpus", "memory", "queue", "project", "access_schema", "interface", "config")
)

#: Resource configurations for users.
SAMPLES = Path(__file__).parents[1] / "backends" / "radical"

NODE = PilotNode("node", 3, (0, 1, 2, 3), (0, 1), 1000)


#: Pilots start in half a minute on a quiet machine, and some tests need two.
patient = pytest.mark.timeout(400)


async def gone(session: str) -> list[str]:
    """What is left of a session after a while, in words."""
    return await nothing_left(lambda: [str(pid) for pid in leftovers.processes(session)], SOON)


# --- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, told",
    [
        ({"resource": "localhost"}, "a site and a machine"),
        ({"nodes": 2, "cores": 8}, "nodes or cores, not both"),
        ({"cores": 0}, "at least 1"),
        ({"gpus": -1}, "gpus"),
        ({"runtime": 0.5}, "runtime"),
        ({"queue": ""}, "queue"),
        ({"config": "no such folder"}, "resource_SITE.json"),
        ({"pilot": "somewhere", "cores": 4}, "runs already"),
        ({"pilot": "somewhere", "sandbox": "elsewhere"}, "runs already"),
        ({"interface": "eth0"}, "loopback alone"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_options_that_are_not_possible(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidOptionError, match=told):
        RadicalPilotBackend(**options)


def test_only_the_process_that_holds_a_pilot_imports_radical_pilot() -> None:
    program = """
import sys
from asyncflow.backends.radical import RadicalPilotBackend
RadicalPilotBackend()
print([name for name in sys.modules if name.startswith("radical.")])
"""
    run = run_script(program)
    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_what_to_install_is_said() -> None:
    program = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "radical.pilot" else found(name, *rest)
from asyncflow.backends.radical import RadicalPilotBackend
"""
    run = run_script(program)
    assert run.stderr.endswith("install it with: pip install 'asyncflow-hpc[radical]'\n")


def test_an_order_travels_as_text() -> None:
    wanted = order("local.localhost", runtime=5, **{**NOTHING, "cores": 3, "memory": 100})
    assert Order.loads(wanted.dumps()) == wanted
    assert (wanted.cores, wanted.memory, wanted.nodes) == (3, 100, None)


def test_this_machine_is_one_node_of_the_size_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RADICAL-Pilot hands out whole nodes: of four cores it would use eight."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "resource_local.json").write_text('# mine\n{"localhost": {"notes": "mine", "cores_per_node": 64}}')
    (own / "resource_site.json").write_text("{}")
    monkeypatch.setenv("OMPI_MCA_btl", "self,tcp")
    wanted = order("local.localhost", runtime=5, **{**NOTHING, "cores": 3, "gpus": 1, "memory": 100, "config": own})
    write_sites(wanted, tmp_path / "config")
    folder = tmp_path / "config" / ".radical" / "pilot" / "configs"
    assert (folder / "resource_site.json").read_text() == "{}"
    site = json.loads((folder / "resource_local.json").read_text())["localhost"]
    assert (site["cores_per_node"], site["gpus_per_node"], site["mem_per_node"]) == (3, 1, 100)
    assert site["notes"] == "mine"
    assert "export OMPI_MCA_btl=self,tcp" in site["launch_methods"]["MPIRUN"]["pre_exec_cached"]


# --- tasks -----------------------------------------------------------------------------------------------------------


def described(argv: list[str], description: TaskDescription | None = None, **options: Any) -> dict[str, Any]:
    definition = Definition(
        bodies.words,
        Kind.EXECUTABLE,
        "simulate",
        is_async=False,
        description=description,
        executable=ExecutableOptions(**options),
    )
    ranks = 1 if description is None else description.ranks
    slots = [slot(NODE, [rank], [rank % 2]) for rank in range(ranks)]
    return describe_attempt("pilot.1", "pilot", WorkItem(definition, (), {}), argv, "/data", slots)


def test_a_description_becomes_radical_pilots_own() -> None:
    asked = TaskDescription(
        ranks=2,
        cores_per_rank=3,
        gpus_per_rank=1,
        mem_per_rank=100,
        environment={"GREETING": 'say "$hi"'},
        pre_exec=["module load cuda"],
    )
    task = described(["solve"], asked, env={"MORE": "1"})
    assert (task["ranks"], task["cores_per_rank"], task["gpus_per_rank"]) == (2, 3, 1)
    assert (task["gpu_type"], task["use_mpi"], task["name"]) == ("CUDA", True, "simulate")
    assert task["mem_per_rank"] == 200, "SLURM is given it as the memory of a node"
    assert task["environment"]["GREETING"] == r"say \"\$hi\""
    assert (task["environment"]["MORE"], task["environment"]["OMP_NUM_THREADS"]) == ("1", "3")
    assert task["pre_exec"] == ["cd -- /data", "module load cuda", 'cd -- "$RP_TASK_SANDBOX"']
    assert [place["gpus"][0]["index"] for place in task["slots"]] == [0, 1]
    assert {place["node_name"] for place in task["slots"]} == {"node"}


def test_a_plain_command_asks_for_nothing() -> None:
    task = described(["true"])
    assert (task["ranks"], task["cores_per_rank"], task["use_mpi"], task["gpu_type"]) == (1, 1, False, "")
    assert "pre_exec" not in task


@pytest.mark.parametrize("value", ["plain", "two words", '$HOME "quoted" `ls` \\', "a\nb", "ü"])
def test_variables_arrive_as_they_are(value: str) -> None:
    script = f'export V="{exported({"V": value})["V"]}"; printf %s "$V"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == value


@pytest.mark.parametrize("word", ["a b", "$HOME", "`ls`", "'", '"', "a\nb", "", "*", "-n"])
def test_words_arrive_as_they_are(word: str, tmp_path: Path) -> None:
    line = described(["printf", "%s,", word])["executable"].replace("/data", str(tmp_path))
    assert subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout == f"{word},"


# --- its pulse -------------------------------------------------------------------------------------------------------


async def test_a_pilot_that_answers_is_alive() -> None:
    probes: list[str] = []
    third = asyncio.Event()

    def probe() -> str:
        probes.append(f"probe.{len(probes)}")
        asyncio.get_running_loop().call_soon(pulse.heard, probes[-1], True)
        if len(probes) == 3:
            third.set()
        return probes[-1]

    pulse = Pulse(probe, beat=0.001, deadline=0.0)
    pulse.sent("task")
    watch = asyncio.ensure_future(pulse.stops())
    await asyncio.wait_for(third.wait(), NEVER)
    pulse.heard("task", True)
    assert not watch.done()
    watch.cancel()


async def test_a_pilot_that_does_not_answer_is_dead() -> None:
    pulse = Pulse(lambda: "probe", beat=0.001, deadline=0.01)
    pulse.sent("task")
    await asyncio.wait_for(pulse.stops(), NEVER)


async def test_nothing_is_asked_of_a_pilot_that_has_nothing_to_do() -> None:
    pulse = Pulse(pytest.fail, beat=0.001)
    pulse.sent("task")
    pulse.heard("task", True)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(pulse.stops(), 0.05)


# --- what is left ----------------------------------------------------------------------------------------------------


def made(root: Path) -> Files:
    """The files of a pilot that nobody holds."""
    files = Files(Files.new(root))
    files.make("{}", stays=False)
    return files


def test_leftovers_are_what_carries_the_name_of_a_session_that_nobody_holds(tmp_path: Path) -> None:
    """One by its environment, one by its working directory; those of a pilot that is held are let be."""
    dead, held = made(tmp_path), made(tmp_path)
    keeper = subprocess.Popen(["sleep", "1000"])
    dead.note_owner(keeper.pid)
    keeper.kill()
    keeper.wait()
    held.note_owner(os.getpid())
    environ = {**os.environ, "RP_SESSION_ID": dead.session}
    left = [subprocess.Popen(["sleep", "1000"], env=environ), subprocess.Popen(["sleep", "1000"], cwd=dead.folder)]
    other = subprocess.Popen(["sleep", "1000"], cwd=held.folder)
    looking, terminal = pty.fork()
    if not looking:
        os.execlp("tail", "tail", "-f", str(dead.order))
    try:
        leftovers.end_all(tmp_path)
        assert [process.wait(NEVER) for process in left] == [-signal.SIGKILL] * 2
        assert other.poll() is None
        assert os.waitpid(looking, os.WNOHANG) == (0, 0), "what is in a terminal is somebody's"
        assert (dead.closed, held.closed) == (True, False)
    finally:
        for process in [*left, other]:
            process.kill()
            process.wait()
        os.kill(looking, signal.SIGKILL)
        os.waitpid(looking, 0)
        os.close(terminal)


def test_a_pilots_files_are_its_owners_alone(tmp_path: Path) -> None:
    files = made(tmp_path)
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700
    keys = [file for file in files.folder.iterdir() if b"PRIVATE KEY" in file.read_bytes()]
    assert keys
    assert {stat.S_IMODE(file.stat().st_mode) for file in keys} == {0o600}


# --- on a pilot that runs --------------------------------------------------------------------------------------------


@pytest.fixture
def network(shared_pilot: SharedPilot) -> Iterator[None]:
    """That of the pilot which all tests share."""
    with shared_pilot.network():
        yield


@pytest_asyncio.fixture(loop_scope="function")
async def flow(network: None, shared_pilot: SharedPilot, make_engine: MakeEngine) -> WorkflowEngine:
    """An engine on that pilot."""
    return await make_engine(RadicalPilotBackend(pilot=shared_pilot.folder))


@patient
async def test_one_engine_at_a_time_uses_a_pilot(
    flow: WorkflowEngine, shared_pilot: SharedPilot, make_engine: MakeEngine
) -> None:
    with pytest.raises(BackendStartError, match=f"it serves process {os.getpid()}"):
        await make_engine(RadicalPilotBackend(pilot=shared_pilot.folder))
    assert await flow.function_task(bodies.add)(1, 2) == 3


async def test_a_folder_without_a_pilot(make_engine: MakeEngine, tmp_path: Path) -> None:
    with pytest.raises(BackendStartError, match="no pilot is active"):
        await make_engine(RadicalPilotBackend(pilot=tmp_path))
    ended = made(tmp_path)
    ended.note_address("tls://127.0.0.1:1")
    ended.note_closed()
    with pytest.raises(BackendStartError, match="it has ended"):
        await make_engine(RadicalPilotBackend(pilot=ended.folder))


@pytest.mark.parametrize("name", ["my project", "it's", "$HOME"])
async def test_a_path_that_radical_pilot_would_not_quote(make_engine: MakeEngine, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidOptionError, match="quote no path"):
        await make_engine(RadicalPilotBackend(sandbox=tmp_path / name))


async def test_a_folder_that_cannot_be_made(make_engine: MakeEngine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendStartError, match="sandbox= names another folder"):
        await make_engine(RadicalPilotBackend(sandbox=tmp_path / "file"))


async def test_what_a_pilot_does_not_have_fails_at_the_call(flow: WorkflowEngine) -> None:
    with pytest.raises(UnsatisfiableRequestError):
        flow.executable_task(task_description={"ranks": 3})(bodies.words)("true")
    with pytest.raises(UnsatisfiableRequestError):
        flow.function_task(task_description={"gpus_per_rank": 3})(bodies.add)(1, 2)


async def test_functions_and_commands_never_have_the_same_gpu(flow: WorkflowEngine) -> None:
    """The functions' worker knows nothing of the commands beside it: one hand gives out all."""
    asked = {"gpus_per_rank": 1}
    seen = flow.function_task(task_description=asked)(bodies.variables)
    show = flow.executable_task(task_description=asked)(bodies.words)
    async with Meeting("127.0.0.1") as meeting:
        wait = flow.function_task(task_description=asked)(bodies.attend_with_gpus)(meeting.address, "function")
        await meeting.arrivals(1)
        command = (await show("printenv", "CUDA_VISIBLE_DEVICES")).strip()
        meeting.let_go()
        assert {(await wait).strip(), command} == {"0", "1"}
    assert (await seen("CUDA_VISIBLE_DEVICES"))["CUDA_VISIBLE_DEVICES"] in ("0", "1")


@patient
async def test_a_command_survives_the_worker_beside_it(flow: WorkflowEngine, shared_pilot: SharedPilot) -> None:
    """It is RADICAL-Pilot's: the worker of its node only finds its processes. What it holds stays held."""
    run = flow.executable_task(bodies.words)
    async with Meeting("127.0.0.1") as meeting:
        command = run(*attend_command(meeting.address, "command"))
        stubborn = run(*attend_command(meeting.address, "stubborn"))
        await meeting.arrivals(2)
        kill(shared_pilot.folder.name, "dask worker")
        stubborn.cancel()
        assert await flow.function_task(bodies.add)(1, 2) == 3, "there is a worker again, and a core is free"
        meeting.let_go()
        await command
    assert await flow.executable_task(task_description={"cores_per_rank": 2})(bodies.words)("echo", "both") == "both\n"


@pytest.mark.parametrize("code", [1, 127, 200, 255])
async def test_an_exit_code_is_the_commands(flow: WorkflowEngine, code: int) -> None:
    with pytest.raises(ExecutableError) as caught:
        await flow.executable_task(shell=True)(bodies.line)(f"exit {code}")
    assert caught.value.returncode == code


async def test_a_word_that_is_no_text_fails_its_task_alone(flow: WorkflowEngine) -> None:
    run = flow.executable_task(bodies.words)
    with pytest.raises(CommandError, match="not UTF-8"):
        await run("echo", os.fsdecode(b"\xff"))
    with pytest.raises(CommandError, match="refused"):
        await flow.executable_task(env={"NAME": os.fsdecode(b"\xff")})(bodies.words)("true")
    with pytest.raises(CommandStartError, match="too long"):
        await run("echo", "a" * 200_000)
    assert await run("echo", "fine") == "fine\n"


@pytest.mark.parametrize(
    "command, error",
    [("/etc/passwd", CommandStartError), ("/tmp", CommandStartError), ("cd", CommandNotFoundError)],
)
async def test_what_is_no_program(flow: WorkflowEngine, command: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await flow.executable_task(bodies.words)(command)


async def test_variables_of_any_name_arrive(flow: WorkflowEngine) -> None:
    task = flow.executable_task(env={"A-B": "one two", "C": "three"})(bodies.words)
    assert await task("printenv", "A-B", "C") == "one two\nthree\n"


async def test_functions_and_commands_have_one_working_directory(flow: WorkflowEngine) -> None:
    assert await flow.function_task(os.getcwd)() == os.getcwd()
    assert await flow.executable_task(bodies.words)("pwd") == f"{os.getcwd()}\n"


async def test_what_a_signal_did_is_told_without_our_script(flow: WorkflowEngine) -> None:
    with pytest.raises(ExecutableError) as caught:
        await flow.executable_task(shell=True)(bodies.line)("echo mine >&2; kill -SEGV $$")
    assert caught.value.returncode == -signal.SIGSEGV
    assert caught.value.stderr.startswith("mine\n")
    assert "asyncflow" not in caught.value.stderr


async def test_one_graph_over_three_backends(network: None, shared_pilot: SharedPilot, make_engine: MakeEngine) -> None:
    backends = [ThreadBackend(), DaskBackend(workers=1), RadicalPilotBackend(pilot=shared_pilot.folder)]
    flow = await make_engine(backends)

    @flow.function_task(backend="dask")
    def simulate(seed: int) -> bytes:
        return bytes([seed]) * 1_000_000

    @flow.executable_task(backend="radical")
    def count(data: bytes) -> list[str]:
        return ["sh", "-c", f"echo {len(data)}"]

    @flow.function_task(backend="radical")
    def total(*parts: Any) -> int:
        return sum(part[0] if isinstance(part, bytes) else int(part) for part in parts)

    @flow.function_task(backend="threads")
    def shown(value: int) -> tuple[int, int]:
        return value, os.getpid()

    data = [simulate(seed) for seed in range(4)]
    assert await shown(total(*data, *map(count, data))) == (4_000_006, os.getpid())


async def test_one_trace_through_every_kind_of_worker(
    network: None, shared_pilot: SharedPilot, make_engine: MakeEngine
) -> None:
    pilot = RadicalPilotBackend(pilot=shared_pilot.folder)
    flow = await make_engine([ThreadBackend(1), ProcessBackend(1), DaskBackend(workers=1), pilot])
    exporter = InMemorySpanExporter()
    processors = [SimpleSpanProcessor(exporter)]
    telemetry = await flow.start_telemetry(None, span_processors=processors, resource_interval=None)

    def opens(*_: Any) -> None:
        with trace.get_tracer("user").start_as_current_span("inner"):
            pass

    async with flow.workflow_scope("campaign"):
        last: Any = None
        for name in ("threads", "processes", "dask", "radical"):
            last = flow.function_task(name=name, backend=name)(opens)(last)
        await last
        printed = await flow.executable_task(backend="radical")(bodies.words)("printenv", "TRACEPARENT")
    await telemetry.stop()
    spans = exporter.get_finished_spans()
    (workflow,) = (span for span in spans if span.name == "workflow campaign")
    assert len({span.context.trace_id for span in spans}) == 1
    names = {span.context.span_id: span.name for span in spans}
    inner = [names[span.parent.span_id] for span in spans if span.name == "inner" and span.parent]
    assert sorted(inner) == ["dask", "processes", "radical", "threads"]
    (command,) = (span for span in spans if span.name == "words")
    assert command.parent is not None
    assert command.parent.span_id == workflow.context.span_id
    assert printed.split("-")[1:3] == [f"{command.context.trace_id:032x}", f"{command.context.span_id:016x}"]
    assert (command.attributes or {})["process.command_args"] == ("printenv", "TRACEPARENT")


async def test_nothing_is_left_of_a_task_that_ended_well(flow: WorkflowEngine, shared_pilot: SharedPilot) -> None:
    (folder,) = shared_pilot.folder.glob("sandbox/*/*/pilot.0000")
    before = {file.name for file in folder.iterdir()}
    await flow.executable_task(bodies.words)("true")
    assert {file.name for file in folder.iterdir()} == before


# --- parts of a pilot die --------------------------------------------------------------------------------------------


async def _die(pilot: Pilot, cores: int, part: str, make_engine: MakeEngine, said: str) -> None:
    """Kill a part of a pilot on which tasks of each kind run and wait: all of them end, and say why."""
    backend = RadicalPilotBackend(pilot=pilot.folder, grace=1.0)
    flow = await make_engine(backend)
    assert backend.capabilities.total.cores == cores
    with pytest.raises(UnsatisfiableRequestError, match="3 cores where there are 2"):
        flow.function_task(task_description={"cores_per_rank": 3})(bodies.add)(1, 2)
    with pytest.raises(UnsatisfiableRequestError, match="3 cores where there are 2"):
        flow.executable_task(task_description={"cores_per_rank": 3})(bodies.words)("true")
    async with Meeting("127.0.0.1") as meeting:
        function = flow.function_task(attend)(meeting.address, "function")
        command = flow.executable_task(bodies.words)(*attend_command(meeting.address, "command"))
        await meeting.arrivals(2)
        both = {"cores_per_rank": 2}
        waiting: list[asyncio.Future[Any]] = [flow.function_task(task_description=both)(bodies.add)(1, 2)]
        waiting.append(flow.executable_task(task_description=both)(bodies.words)("true"))
        kill(pilot.session, part)
        done, left = await asyncio.wait([function, command, *waiting], timeout=SOON)
        assert not left
        for future in done:
            error = future.exception()
            assert isinstance(error, BackendLostError), error
            assert said in str(error)
        await flow.shutdown()
    await pilot.stop()
    assert await gone(pilot.session) == []


@patient
async def test_an_agent_dies(make_engine: MakeEngine, tmp_path: Path) -> None:
    with only_loopback():
        pilot = await Pilot.start(cores=2, root=tmp_path)
        await _die(pilot, 2, "rp.agent.0", make_engine, "the pilot ended")


@patient
async def test_a_pilot_that_is_not_waited_for_any_longer(tmp_path: Path) -> None:
    with only_loopback():
        with pytest.raises(BackendStartError, match="not active after 2 s"):
            await Pilot.start(cores=1, root=tmp_path, timeout=2)
        assert list(tmp_path.iterdir()) == []


#: Runs a function and a command for ever on a pilot of its own.
_FOREVER = """
import asyncio, sys, time
from asyncflow import WorkflowEngine
from asyncflow.backends.radical import RadicalPilotBackend

root, begun = sys.argv[1:]

async def main():
    async with WorkflowEngine.create(RadicalPilotBackend(cores=2, sandbox=root)) as flow:
        nap = flow.function_task(time.sleep)(1000)
        run = flow.executable_task(lambda: ["sh", "-c", f"echo $HOME > {begun}; sleep 1000"])()
        await asyncio.gather(nap, run)

asyncio.run(main())
"""


class Script:
    """A program with a pilot of its own; where it runs, nothing may appear."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self._begun = folder / "begun"
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _FOREVER, str(self.root), str(self._begun)],
                env={**environment(), "HOME": str(self.elsewhere)},
                cwd=self.elsewhere,
                stdout=output,
                stderr=output,
            )

    async def begun(self) -> str:
        """The session of its pilot, once its tasks run."""
        while not self._begun.exists():
            assert self.process.poll() is None, self._output.read_text()
            await asyncio.sleep(0.1)  # nothing announces it to another process
        (folder,) = self.root.iterdir()
        return folder.name

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@patient
async def test_a_killed_engine_takes_its_pilot_with_it(tmp_path: Path) -> None:
    with only_loopback():
        script = Script(tmp_path)
        session = await script.begun()
        script.kill()
        assert await gone(session) == []
        assert await nothing_left(lambda: list(map(str, script.root.iterdir())), SOON) == []
        assert list(script.elsewhere.iterdir()) == []


@patient
async def test_the_next_start_ends_what_is_left_of_a_pilot_and_its_executor_may_die(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    """The engine was killed, and whoever held its pilot: nobody is left to end what runs.

    Of the death of its executor RADICAL-Pilot itself tells nothing.
    """
    with only_loopback():
        script = Script(tmp_path)
        session = await script.begun()
        script.kill()
        kill(session, "radical.keeper")
        assert parts(session, "rp.agent.0")
        # Of two nodes with two cores each, just so many.
        pilot = await Pilot.start("cluster.laptop", cores=3, root=script.root, config=SAMPLES)
        assert leftovers.processes(session) == []
        await _die(pilot, 3, "rp.agent_executing", make_engine, "does not answer")
