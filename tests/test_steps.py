"""Executables of an allocation as job steps: how they are started, and how they end, on a real SLURM."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from asyncflow.backends import steps as module
from asyncflow.backends.allocation import AllocatedNode, Allocation
from asyncflow.backends.contract import Definition, Kind, WorkDied, WorkItem
from asyncflow.backends.orphans import Family, marked
from asyncflow.backends.steps import StepLaunch, Steps
from asyncflow.description import TaskDescription
from asyncflow.errors import CommandNotFoundError, CommandStartError, InternalError
from tests.support.slurm import SlurmCluster, needs_slurm

_PROLOGUE = """
import asyncio, json, os, signal, sys
from pathlib import Path
from asyncflow.description import TaskDescription
from tests.support.steps import Runs, told

async def until(true):
    while not true():
        await asyncio.sleep(0.05)  # other processes tell nothing when they do something

def dead(pid):
    # One that is on its last steps in the kernel has no environment any more, and a zombie only waits to be reaped.
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state in "ZX" or not Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return True

async def main():
    runs = Runs(grace=1.0)
    n1, n2, n3, n4 = (node.name for node in runs.allocation.nodes)
"""

_EPILOGUE = """
    await runs.runner.stop(1.0)
    print(json.dumps(result))
asyncio.run(main())
"""

_WHOLE_CLUSTER = ("--nodes=4", "--ntasks-per-node=4", "--gres=gpu:2", "--mem=4096", "--error=errors")

#: Worker-like: on all nodes for as long as the job lasts, beside whatever else the job starts there.
_HOLD_ALL_NODES = """
srun --overlap --mem=0 -N4 -n4 -c4 --gres=none sh -c 'touch held-$SLURMD_NODENAME; exec sleep 1000' &
until [ "$(ls held-* | wc -l)" = 4 ]; do sleep 0.05; done 2>/dev/null
"""


def _run(slurm: SlurmCluster, program: str, beside: str = "") -> Any:
    """The `result` of a program in an allocation of all nodes."""
    Path("program.py").write_text(_PROLOGUE + program + _EPILOGUE)
    job = slurm.sbatch(f"#!/bin/bash\n{beside}\n{sys.executable} program.py", *_WHOLE_CLUSTER)
    end = slurm.wait(job)
    assert end.exit_code == 0, f"{end}\n{slurm.output(job)}\n{Path('errors').read_text()}"
    return json.loads(slurm.output(job).splitlines()[-1])


# --- the command line ------------------------------------------------------------------------------------------------


class Launched:
    """A launch without a SLURM."""

    def __init__(self, nodes: Mapping[str, int], description: TaskDescription | None = None) -> None:
        steps = Steps(Allocation("7", tuple(AllocatedNode(f"n{number}", 4, 4000, 2) for number in (1, 2))))
        steps._mpi = ["--mpi=pmix"]  # what the site would be asked for
        definition = Definition(lambda: "", Kind.EXECUTABLE, "step", is_async=False, description=description)
        self.launch = StepLaunch(WorkItem(definition, (), {}, uid="task-1"), Family(1.0, "abc"), steps, nodes)

    def line(self, *argv: str) -> str:
        return " ".join(self.launch.line(argv or ("run",)))


def test_a_plain_command_gets_a_core_and_its_share_of_the_memory() -> None:
    assert Launched({"n2": 1}).line() == (
        "srun --exact --export=ALL --job-name=task-1.1-abc --nodes=1 --ntasks=1 --cpus-per-task=1 --ntasks-per-node=1 "
        "--nodelist=n2 --mem=953M --gres=none --mpi=pmix -- run"
    )


def test_ranks_spread_evenly_or_as_they_were_placed() -> None:
    description = TaskDescription(ranks=4, cores_per_rank=2, gpus_per_rank=1, mem_per_rank=500)
    even = Launched({"n1": 2, "n2": 2}, description).line()
    assert "--nodes=2 --ntasks=4 --cpus-per-task=2 --ntasks-per-node=2 --nodelist=n1,n2 --kill-on-bad-exit=1" in even
    assert "--mem=953M --gpus-per-task=1" in even
    uneven = Launched({"n1": 3, "n2": 1}, description).line()
    assert "--ntasks=4 --cpus-per-task=2 --distribution=arbitrary --nodelist=n1,n1,n1,n2" in uneven
    assert "--mem-per-cpu=238M" in uneven


def test_what_srun_would_take_for_its_own_goes_through_a_shell() -> None:
    assert Launched({"n1": 1}).line("echo", "a b", ":").endswith("-- /bin/sh -c exec echo 'a b' :")


def test_a_placement_of_other_ranks_is_a_defect() -> None:
    with pytest.raises(InternalError, match=r"of 2 ranks was placed on \{'n1': 3\}"):
        Launched({"n1": 3}, TaskDescription(ranks=2))


def test_variables_of_the_script_are_no_options_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS", "SLURM_STEP_ID", "SLURM_CPU_BIND", "SRUN_CPUS_PER_TASK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "main")
    variables = Launched({"n1": 1}, TaskDescription(gpus_per_rank=1)).launch.variables({"SLURM_HINT": "nomultithread"})
    of_slurm = {name for name in variables if name.startswith(("SLURM_", "SRUN_"))}
    assert {"SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURM_HINT"} <= of_slurm
    assert not of_slurm & {"SLURM_NTASKS", "SLURM_STEP_ID", "SLURM_CPU_BIND", "SRUN_CPUS_PER_TASK"}
    assert "CUDA_VISIBLE_DEVICES" not in variables
    assert variables["SLURM_JOB_ID"] == "7"
    assert variables["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    "offered,default,chosen,option",
    [
        ("pmix none pmi2", "none", None, ["--mpi=pmix"]),
        ("none pmi2", "none", None, []),
        ("pmix none pmi2", "pmi2", None, []),
        ("pmix none pmi2", "none", "pmi2", []),
    ],
)
def test_pmix_is_used_where_nobody_chose_otherwise(
    monkeypatch: pytest.MonkeyPatch, offered: str, default: str, chosen: str | None, option: list[str]
) -> None:
    monkeypatch.setattr(
        module, "ask", lambda *command, **_: offered if command[0] == "srun" else f"Mcs = x\nMpiDefault   = {default}\n"
    )
    monkeypatch.delenv("SLURM_MPI_TYPE", raising=False)
    if chosen is not None:
        monkeypatch.setenv("SLURM_MPI_TYPE", chosen)
    assert Steps(Allocation("7", ())).mpi == option


# --- what srun says --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code,said,expected",
    [
        (7, "no\nsrun: error: n2: task 0: Exited with exit code 7\n", (7, "n2", "no")),
        (137, "srun: error: n1: task 0: Killed\nsrun: Force Terminated StepId=4.18\n", (-9, "n1", "")),
        (137, "srun: error: n1: task 0: Exited with exit code 137\n", (137, "n1", "")),
        (139, "srun: error: n1: task 0: Segmentation fault (core dumped)\n", (-11, "n1", "")),
        # The rank that failed first is the reason; the others were ended for it.
        (
            143,
            """srun: error: n2: task 2: Exited with exit code 7
srun: launch/slurm: _step_signal: Terminating StepId=4.22
slurmstepd-n1: error: *** STEP 4.22 ON n1 CANCELLED AT 2026-11-21T15:38:48 ***
srun: error: n2: task 3: Terminated
srun: error: n1: tasks 0-1: Terminated
""",
            (7, "n2", ""),
        ),
        # A last line of the command without its end.
        (1, "halfsrun: error: n3: task 0: Exited with exit code 1\n", (1, "n3", None)),
        # What was cut off at its beginning.
        (134, "much more\n", (-6, "n1", "much more")),
        (3, "much more\n", (3, "n1", "much more")),
        # What tells more than the code is kept.
        (
            137,
            "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0.\nsrun: error: n1: task 0: Out Of Memory\n",
            (
                -9,
                "n1",
                "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0.\nsrun: error: n1: task 0: Out Of Memory",
            ),
        ),
    ],
)
def test_how_a_command_ended_is_read_from_what_srun_says(
    code: int, said: str, expected: tuple[int, str, str | None]
) -> None:
    end = Launched({"n1": 1}).launch.end(code, said.encode())
    returncode, host, stderr = expected
    assert (end.returncode, end.host) == (returncode, host)
    assert stderr is None or end.stderr.decode() == stderr


@pytest.mark.parametrize(
    "code,said,reason",
    [
        (
            1,
            "srun: error: Unable to create step for job 4: Required node not available",
            "SLURM did not run its job step: Unable to create step for job 4: Required node not available",
        ),
        (
            143,
            "srun: error: Node failure on n1\nsrun: error: n2: task 1: Terminated",
            "a node of its job step failed: Node failure on n1; n2: task 1: Terminated",
        ),
        (-9, "", "the srun of its job step was ended by signal 9 (SIGKILL)"),
    ],
)
def test_what_slurm_is_to_blame_for_is_a_loss(code: int, said: str, reason: str) -> None:
    with pytest.raises(WorkDied) as caught:
        Launched({"n1": 1}).launch.end(code, said.encode())
    assert caught.value.loss.reason == reason
    assert caught.value.loss.exit_code == code
    assert caught.value.loss.begun


@pytest.mark.parametrize(
    "words,kind", [("No such file or directory", CommandNotFoundError), ("Permission denied", CommandStartError)]
)
def test_a_command_that_cannot_be_started_is_named(words: str, kind: type[Exception]) -> None:
    launched = Launched({"n1": 1})
    launched.line("nosuch", "-x")
    said = f"srun: error: n1: task 0: Exited with exit code 2\nslurmstepd: error: execve(): nosuch: {words}\n"
    with pytest.raises(kind, match="its command 'nosuch' cannot be started") as caught:
        launched.launch.end(2, said.encode())
    assert type(caught.value) is kind


# --- on a real SLURM: one program, many commands ---------------------------------------------------------------------

_COMMANDS = """
    n = {n2: 1}
    five = TaskDescription(cores_per_rank=2, gpus_per_rank=1, pre_exec=["export FIVE=5"], environment={"SIX": "6"})
    count = "from mpi4py import MPI; print(MPI.COMM_WORLD.size)"
    async def waits():
        await asyncio.sleep(0)
        return ["echo", "awaited"]
    def fails():
        raise LookupError("no command")
    counting = "echo said; for i in $(seq 30); do echo line $i >&2; done; exit 7"
    started = {
        "node": runs.start(lambda: ["sh", "-c", "echo $SLURMD_NODENAME"], n),
        "async": runs.start(waits, n),
        "function": runs.start(fails, n),
        "code": runs.start(lambda: counting, n, shell=True),
        "signal": runs.start(lambda: "kill -KILL $$", n, shell=True),
        "as by a signal": runs.start(lambda: "exit 137", n, shell=True),
        "missing": runs.start(lambda: ["no-such-program"], n),
        "colon": runs.start(lambda: ["echo", "a", ":", "b  c"], n),
        "option": runs.start(lambda: ["echo", "-n5", "--", "--mem"], n),
        "folder": runs.start(lambda: "pwd", n, cwd="/usr"),
        "no folder": runs.start(lambda: "pwd", n, cwd="/no-such-folder"),
        "described": runs.start(
            lambda: "echo $FIVE $SIX $SEVEN $SLURM_CPUS_ON_NODE $OMP_NUM_THREADS gpus:$CUDA_VISIBLE_DEVICES",
            n, five, shell=True, env={"SEVEN": "7"}
        ),
        "undescribed": runs.start(lambda: "echo gpus:$CUDA_VISIBLE_DEVICES", n, shell=True),
        "stdin": runs.start(lambda: "cat", n),
        "captured": runs.start(lambda: "echo kept", n, directory="kept"),
        "captured failure": runs.start(lambda: "echo kept; echo reason >&2; exit 3", n, shell=True, directory="kept"),
        "single MPI": runs.start(lambda: [sys.executable, "-c", count], n),
    }
    await started["node"].end
    ranks = TaskDescription(ranks=4)
    started["failing rank"] = runs.start(
        lambda: "[ $SLURM_PROCID = 2 ] && exit 7; sleep 1000", {n1: 2, n3: 2}, ranks, shell=True
    )
    started["captured ranks"] = runs.start(lambda: "echo $SLURM_PROCID", {n4: 4}, ranks, shell=True, directory="kept")
    result = {name: told(await run.end) for name, run in started.items()}
    await until(started["failing rank"].end.done)
    uneven = runs.start(lambda: "echo $SLURM_PROCID $SLURMD_NODENAME", {n1: 1, n3: 3}, ranks, shell=True)
    result["uneven"] = told(await uneven.end)
    result["host"] = started["node"].place.host
    for name in ("captured", "captured ranks"):
        result[name + " text"] = Path(result[name]).read_text()
"""


@pytest.fixture(scope="module")
def ended(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """How the commands above ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("commands"))
        yield _run(slurm_cluster, _COMMANDS)


@needs_slurm
def test_a_command_runs_on_the_node_that_it_was_given(ended: dict[str, Any]) -> None:
    assert ended["node"] == "n2\n"
    assert ended["host"] == "n2"


@needs_slurm
def test_the_function_may_be_a_coroutine_function(ended: dict[str, Any]) -> None:
    assert ended["async"] == "awaited\n"


@needs_slurm
def test_a_function_that_raises_fails_its_task(ended: dict[str, Any]) -> None:
    assert ended["function"]["type"] == "LookupError"


@needs_slurm
def test_an_exit_code_is_told_with_the_end_of_stderr(ended: dict[str, Any]) -> None:
    error = ended["code"]
    assert (error["type"], error["code"], error["host"], error["output"]) == ("ExecutableError", 7, "n2", "said\n")
    assert "exited with code 7 on host n2" in error["text"]
    assert error["text"].splitlines()[1:] == [f"line {number}" for number in range(11, 31)]


@needs_slurm
def test_a_signal_is_told_from_an_exit_code(ended: dict[str, Any]) -> None:
    assert ended["signal"]["code"] == -9
    assert "was ended by signal 9 (SIGKILL) on host n2" in ended["signal"]["text"]
    assert "it wrote nothing to stderr" in ended["signal"]["text"]
    assert ended["as by a signal"]["code"] == 137


@needs_slurm
def test_a_missing_program_and_a_missing_folder_are_named(ended: dict[str, Any]) -> None:
    assert ended["missing"]["type"] == ended["no folder"]["type"] == "CommandNotFoundError"
    assert "'no-such-program' cannot be started: no such program" in ended["missing"]["text"]
    assert "cwd='/no-such-folder', is not there" in ended["no folder"]["text"]


@needs_slurm
def test_words_reach_the_command_as_they_are(ended: dict[str, Any]) -> None:
    assert ended["colon"] == "a : b  c\n"
    assert ended["option"] == "-n5 -- --mem\n"


@needs_slurm
def test_folder_environment_and_what_is_to_run_first(ended: dict[str, Any]) -> None:
    assert ended["folder"] == "/usr\n"
    before, _, gpu = ended["described"].partition(" gpus:")
    assert before == "5 6 7 2 2"
    assert gpu.strip() in ("0", "1")
    assert ended["undescribed"] == "gpus:\n"
    assert ended["stdin"] == ""


@needs_slurm
def test_output_is_captured_in_files(ended: dict[str, Any]) -> None:
    assert ended["captured"].endswith(".1.out")
    assert ended["captured text"] == "kept\n"
    assert sorted(ended["captured ranks text"].split()) == ["0", "1", "2", "3"]
    error = ended["captured failure"]
    assert (error["code"], error["text"].splitlines()[-1]) == (3, "reason")


@needs_slurm
def test_an_mpi_program_may_have_a_single_rank(ended: dict[str, Any]) -> None:
    assert ended["single MPI"] == "1\n"


@needs_slurm
def test_a_rank_that_fails_ends_the_others_and_is_the_reason(ended: dict[str, Any]) -> None:
    error = ended["failing rank"]
    assert (error["code"], error["host"]) == (7, "n3")


@needs_slurm
def test_nodes_may_have_different_numbers_of_ranks(ended: dict[str, Any]) -> None:
    assert sorted(ended["uneven"].splitlines()) == ["0 n1", "1 n3", "2 n3", "3 n3"]


# --- on a real SLURM: many at once -----------------------------------------------------------------------------------


@needs_slurm
@pytest.mark.parametrize("beside", ["", _HOLD_ALL_NODES], ids=["alone", "beside workers"])
def test_eight_concurrent_steps_have_a_gpu_each(slurm: SlurmCluster, beside: str) -> None:
    program = """
    meet = 'touch here-$0; until [ "$(ls here-* | wc -l)" = 8 ]; do sleep 0.05; done; '
    meet += 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'
    one = TaskDescription(gpus_per_rank=1, mem_per_rank=100)
    started = [
        runs.start(lambda name=f"{node}-{number}": ["sh", "-c", meet, name], {node: 1}, one)
        for node in (n1, n2, n3, n4) for number in (1, 2)
    ]
    result = sorted([told(await run.end) for run in started])
    """
    assert _run(slurm, program, beside) == [f"n{node} {gpu}\n" for node in (1, 2, 3, 4) for gpu in (0, 1)]


@needs_slurm
@pytest.mark.parametrize("beside", ["", _HOLD_ALL_NODES], ids=["alone", "beside workers"])
def test_an_mpi_program_spans_two_nodes(slurm: SlurmCluster, beside: str) -> None:
    program = """
    source = '''if True:
        import os
        from mpi4py import MPI
        world = MPI.COMM_WORLD
        found = world.gather(f"rank {world.rank} {os.environ['SLURMD_NODENAME']} {os.environ['OMP_NUM_THREADS']}")
        if found:
            print(*found, sep="\\\\n")
    '''
    run = runs.start(lambda: [sys.executable, "-c", source], {n2: 2, n4: 2}, TaskDescription(ranks=4, cores_per_rank=2))
    result = told(await run.end)
    """
    found = _run(slurm, program, beside)
    assert isinstance(found, str), found
    assert found.splitlines() == ["rank 0 n2 2", "rank 1 n2 2", "rank 2 n4 2", "rank 3 n4 2"]


@needs_slurm
def test_more_than_fit_wait_for_each_other(slurm: SlurmCluster) -> None:
    program = """
    started = [runs.start(lambda word=str(number): ["echo", word], {n1: 1}) for number in range(40)]
    result = [told(await run.end) for run in started]
    """
    assert _run(slurm, program) == [f"{number}\n" for number in range(40)]


@needs_slurm
def test_ranks_under_mpirun_stay_on_the_node_of_their_worker(slurm: SlurmCluster) -> None:
    Path("program.py").write_text("""
import asyncio, json, os
from asyncflow import WorkflowEngine
from asyncflow.backends import ThreadBackend

async def main():
    async with WorkflowEngine.create(backend=ThreadBackend(workers=2)) as flow:
        @flow.executable_task(task_description={"ranks": 2})
        def where():
            return ["sh", "-c", "echo $SLURMD_NODENAME $SLURM_JOB_ID"]
        print(json.dumps((await where()).split()))

asyncio.run(main())
""")
    worker = f"[ $SLURMD_NODENAME = n1 ] || exec {sys.executable} program.py"
    job = slurm.sbatch(f"srun --overlap --mem=0 -N2 -n2 -c4 --gres=none sh -c '{worker}'", *_WHOLE_CLUSTER)
    assert slurm.wait(job) == ("COMPLETED", 0), Path("errors").read_text()
    assert json.loads(slurm.output(job)) == ["n2", str(job)] * 2


# --- on a real SLURM: ended from outside -----------------------------------------------------------------------------


@needs_slurm
def test_a_cancelled_command_may_clean_up(slurm: SlurmCluster) -> None:
    program = """
    polite = "trap 'touch cleaned; exit 3' TERM; touch begun; while :; do sleep 0.05; done"
    run = runs.start(lambda: polite, {n2: 1}, shell=True)
    await until(Path("begun").exists)
    runs.runner.cancel(run.item)
    result = [told(await run.end)["type"], Path("cleaned").exists()]
    """
    assert _run(slurm, program) == ["CancelledError", True]


#: Ignores TERM, in two sessions, and says which processes it has.
_STUBBORN = """
    stubborn = 'trap "" TERM; echo $$ >> pids; while :; do sleep 0.05; done'
    both = f"setsid sh -c '{stubborn}' & {stubborn}"
    def pids():
        return [int(line) for line in Path("pids").read_text().split()] if Path("pids").exists() else []
"""


@needs_slurm
@pytest.mark.parametrize("how", ["cancel(run.item)", "stop(0.5)"], ids=["cancel", "stop"])
def test_what_ignores_term_is_killed_to_the_last(slurm: SlurmCluster, how: str) -> None:
    program = f"""{_STUBBORN}
    run = runs.start(lambda: both, {{n2: 1}}, shell=True)
    await until(lambda: len(pids()) == 2)
    ending = runs.runner.{how}
    if ending is not None:
        await ending
    result = [told(await run.end)["type"], [*map(dead, pids())]]
    """
    assert _run(slurm, program) == ["CancelledError", [True, True]]


@needs_slurm
def test_cancelling_reaches_a_step_at_any_moment(slurm: SlurmCluster) -> None:
    program = """
    ends = []
    for delay in [0, 0.002, 0.005, 0.01, 0.02, 0.05]:
        run = runs.start(lambda: "sleep 1000", {n2: 1})
        await asyncio.sleep(delay)  # the moments that matter are SLURM's, which does not tell them
        runs.runner.cancel(run.item)
        ends.append(told(await run.end)["type"])
    holder = runs.start(lambda: "touch held; sleep 1000", {n1: 1}, TaskDescription(cores_per_rank=4), shell=True)
    await until(Path("held").exists)
    waiting = runs.start(lambda: "true", {n1: 1})
    runs.runner.cancel(waiting.item)
    ends.append(told(await waiting.end)["type"])
    result = [ends, holder.end.done()]
    """
    assert _run(slurm, program) == [["CancelledError"] * 7, False]


@needs_slurm
def test_a_killed_srun_is_a_loss_and_leaves_nothing(slurm: SlurmCluster) -> None:
    program = """
    run = runs.start(lambda: "echo $$ > pid; exec sleep 1000", {n2: 1}, shell=True)
    await until(lambda: Path("pid").exists() and Path("pid").read_text())
    children = [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    (srun,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "srun\\n"]
    os.kill(srun, signal.SIGKILL)
    end = told(await run.end)
    result = [end["type"], end["text"], dead(Path("pid").read_text().strip())]
    """
    assert _run(slurm, program) == ["WorkDied", "the srun of its job step was ended by signal 9 (SIGKILL)", True]


@needs_slurm
def test_a_killed_engine_takes_its_steps_with_it(slurm: SlurmCluster) -> None:
    program = """
    run = runs.start(lambda: "echo $ASYNCFLOW_SESSION > session; exec sleep 1000", {n2: 1}, shell=True)
    await until(lambda: Path("session").exists() and Path("session").read_text())
    os.kill(os.getpid(), signal.SIGKILL)
    result = None
    """
    Path("program.py").write_text(_PROLOGUE + program + _EPILOGUE)
    wait = "while squeue -h -s -j $SLURM_JOB_ID -o %j | grep -q ^task-; do sleep 0.1; done; echo gone"
    job = slurm.sbatch(f"#!/bin/bash\n{sys.executable} program.py\n{wait}", *_WHOLE_CLUSTER)
    assert slurm.wait(job) == ("COMPLETED", 0)
    assert slurm.output(job).endswith("gone\n")
    assert Path("session").exists()
    assert marked("ASYNCFLOW_SESSION", Path("session").read_text().strip()) == []
