"""What an allocation of SLURM's has, and when it ends: read from captured outputs, and on a real SLURM."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncflow.backends import allocation as module
from asyncflow.backends.allocation import (
    AllocatedNode,
    Allocation,
    count_of,
    end_in,
    nodes_of,
    nodes_told,
    repeated,
    surrounding_step,
)
from asyncflow.description import Resources
from asyncflow.errors import AllocationError
from tests.support.slurm import SlurmCluster, needs_slurm

#: What `scontrol show job -d -o` of SLURM 22.05 prints for nine tasks on four nodes, two of them with GPUs.
SHOWN = (
    "JobId=2 JobName=Nodes=none UserId=ada(1000) JobState=RUNNING Reason=None RunTime=00:00:01 TimeLimit=01:00:00 "
    "StartTime=1795275482 EndTime=1795279082 Deadline=N/A NodeList=n[1-4] BatchHost=n1 NumNodes=4 NumCPUs=9 "
    "TRES=cpu=9,mem=9G,node=4,billing=9 JOB_GRES=gpu:3   Nodes=n[1-3] CPU_IDs=2-3 Mem=2048 GRES=gpu:1(IDX:0)   "
    "Nodes=n4 CPU_IDs=0-2 Mem=3072 GRES= MinCPUsNode=1 Features=(null) Command=/home/ada/run.sh WorkDir=/home/ada "
)

#: The variables of a batch script of the same job.
VARIABLES = {
    "SLURM_JOB_ID": "2",
    "SLURM_JOB_NODELIST": "n[1-4]",
    "SLURM_JOB_CPUS_PER_NODE": "2(x3),3",
    "SLURM_MEM_PER_CPU": "1024",
    "SLURM_CPUS_ON_NODE": "2",
}

NAMES = {"n[1-4]": ["n1", "n2", "n3", "n4"], "n[1-3]": ["n1", "n2", "n3"], "n[1-2]": ["n1", "n2"]}


def expand(nodelist: str) -> Sequence[str]:
    return NAMES.get(nodelist, [nodelist])


class Answers:
    """Stands for SLURM's programs: what they print, by their first words; how often they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **printed: str) -> None:
        self.printed = printed
        self.asked = 0
        monkeypatch.setattr(module, "ask", self._ask)
        for name in ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_JOB_END_TIME", "SLURM_STEP_ID"):
            monkeypatch.delenv(name, raising=False)

    def _ask(self, *command: str) -> str | None:
        self.asked += 1
        if command[2] == "hostnames":
            return "\n".join(expand(command[3]))
        return self.printed.get(command[2])


def _set(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


# --- from captured outputs -------------------------------------------------------------------------------------------


def test_each_node_has_what_the_job_has_there() -> None:
    assert nodes_of(SHOWN, expand) == [
        *(AllocatedNode(name, cores=2, memory=2147, gpus=1) for name in ("n1", "n2", "n3")),
        AllocatedNode("n4", cores=3, memory=3221, gpus=0),
    ]


@pytest.mark.parametrize(
    "gres,gpus",
    [
        ("", 0),
        ("(null)", 0),
        ("gpu:2(IDX:0-1)", 2),
        ("gpu:a100:4(IDX:0-3)", 4),
        ("gpu:a100:1(IDX:0),gpu:v100:2(IDX:1,3)", 3),
        ("license:7,gpu:1(IDX:0),mps:100(CNT:100)", 1),
        ("shard:8(0/8,8/8)", 0),
    ],
)
def test_gpus_are_those_of_all_types(gres: str, gpus: int) -> None:
    (node,) = nodes_of(f"Nodes=n1 CPU_IDs=0 Mem=1000 GRES={gres} MinCPUsNode=1", expand)
    assert node.gpus == gpus


@pytest.mark.parametrize("numbers,count", [("0", 1), ("0-3", 4), ("0-3,8,10-11", 7), ("", 0)])
def test_a_list_of_numbers_has_so_many(numbers: str, count: int) -> None:
    assert count_of(numbers) == count


@pytest.mark.parametrize("counts,each", [("4", [4]), ("4(x2),8", [4, 4, 8]), ("2,1", [2, 1]), ("", [])])
def test_counts_of_cores_may_be_repeated(counts: str, each: list[int]) -> None:
    assert repeated(counts) == each


def test_the_variables_alone_tell_nearly_as_much() -> None:
    assert nodes_told(VARIABLES, expand) == [
        *(AllocatedNode(name, cores=2, memory=2147, gpus=0) for name in ("n1", "n2", "n3")),
        AllocatedNode("n4", cores=3, memory=3221, gpus=0),
    ]


@pytest.mark.parametrize(
    "variables,memory,gpus",
    [
        ({"SLURM_MEM_PER_NODE": "2000"}, 2097, 0),
        ({"SLURM_MEM_PER_CPU": "1000", "SLURM_GPUS_ON_NODE": "2"}, 4194, 2),
        ({"SLURM_MEM_PER_GPU": "1000", "SLURM_JOB_GPUS": "0-1,3", "SLURM_GPUS_ON_NODE": "1"}, 3145, 3),
        ({"SLURM_MEM_PER_NODE": "2000", "SLURM_GPUS_PER_NODE": "a100:2,v100:1"}, 2097, 3),
    ],
)
def test_memory_and_gpus_are_told_in_several_ways(variables: dict[str, str], memory: int, gpus: int) -> None:
    told = nodes_told({"SLURM_JOB_NODELIST": "n1", "SLURM_JOB_CPUS_PER_NODE": "4", **variables}, expand)
    assert told == [AllocatedNode("n1", 4, memory, gpus)]


def test_variables_that_do_not_go_together_tell_nothing() -> None:
    assert nodes_told(VARIABLES | {"SLURM_JOB_CPUS_PER_NODE": "2(x3)"}, expand) == []
    assert nodes_told({}, expand) == []


@pytest.mark.parametrize(
    "variables,step",
    [({}, None), ({"SLURM_STEP_ID": "3"}, 3), ({"SLURM_STEP_ID": "4294967290"}, None), ({"SLURM_STEP_ID": "x"}, None)],
)
def test_batch_scripts_and_interactive_shells_are_no_steps(variables: dict[str, str], step: int | None) -> None:
    assert surrounding_step(variables) == step


@pytest.mark.parametrize(
    "shown,end",
    [
        (SHOWN, 1795279082.0),
        ("JobId=1 EndTime=Unknown Deadline=N/A", None),
        ("JobId=1 EndTime=N/A", None),
        ("JobId=1", None),
    ],
)
def test_the_end_is_in_seconds_since_the_epoch(shown: str, end: float | None) -> None:
    assert end_in(shown) == end


# --- this process's --------------------------------------------------------------------------------------------------


def test_outside_of_a_job_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, job=SHOWN)
    assert Allocation.current() is None
    assert answers.asked == 0


def test_a_job_that_has_ended_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Answers(monkeypatch, job=SHOWN.replace("RUNNING", "COMPLETED"))
    _set(monkeypatch, VARIABLES)
    assert Allocation.current() is None


def test_the_whole_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    Answers(monkeypatch, job=SHOWN)
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    found = Allocation.current()
    assert found is not None
    assert [node.name for node in found.nodes] == ["n1", "n2", "n3", "n4"]
    assert found.total == Resources(9, 3, 3 * 2147 + 3221)
    assert found.memory_per_core == 1073
    assert found.step is None


def test_where_slurm_does_not_answer_the_variables_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Answers(monkeypatch)
    _set(monkeypatch, VARIABLES)
    found = Allocation.current()
    assert found is not None
    assert found.total == Resources(9, 0, 3 * 2147 + 3221)


def test_where_memory_is_not_counted_a_node_has_all_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = "NodeName=n1 Arch=x86_64 RealMemory=4096 AllocMem=0\nNodeName=n2 CPUTot=8 RealMemory=8192 Sockets=1"
    Answers(monkeypatch, job="JobState=RUNNING Nodes=n[1-2] CPU_IDs=0-7 Mem=0 GRES= MinCPUsNode=1", node=nodes)
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    found = Allocation.current()
    assert found is not None
    assert [node.memory for node in found.nodes] == [4294, 8589]


def test_a_job_whose_nodes_nobody_tells_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Answers(monkeypatch)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    with pytest.raises(AllocationError) as caught:
        Allocation.current()
    assert caught.value.job_id == "2"
    assert str(caught.value) == (
        "SLURM_JOB_ID=2 says that this is a job of SLURM's, but its nodes cannot be told: `scontrol show job` does not "
        "tell, nor does SLURM_JOB_NODELIST; unset SLURM_JOB_ID to run outside of it"
    )


ONE = Allocation("2", (AllocatedNode("n1", 1, 1000, 0),))


def test_the_variable_tells_the_end_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, job=SHOWN)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1795270000")
    assert ONE.end_time() == 1795270000.0
    assert answers.asked == 0


def test_the_end_is_asked_for_at_most_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, job=SHOWN)
    allocation = Allocation("2", ONE.nodes)
    assert [allocation.end_time() for _ in range(3)] == [1795279082.0] * 3
    assert answers.asked == 1
    monkeypatch.setattr(module, "_MEMORY", 0.0)
    answers.printed["job"] = SHOWN.replace("1795279082", "1795279999")
    assert allocation.end_time() == 1795279999.0
    # What it last was is better than nothing.
    answers.printed.clear()
    assert allocation.end_time() == 1795279999.0
    assert answers.asked == 3


def test_an_end_that_nobody_tells_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Answers(monkeypatch)
    assert Allocation("2", ONE.nodes).end_time() is None


def test_a_program_that_is_not_there_tells_nothing() -> None:
    assert module.ask("no-such-program", "show", "job") is None


# --- on a real SLURM -------------------------------------------------------------------------------------------------

_TELL = """
import json, os
from dataclasses import asdict
from asyncflow.backends.allocation import Allocation
found = Allocation.current()
print(json.dumps([found.step, [list(asdict(node).values()) for node in found.nodes], found.end_time()]))
"""


def _told(text: str) -> Any:
    return json.loads(text.splitlines()[-1])


@needs_slurm
def test_a_batch_script_and_its_steps_know_the_allocation(slurm: SlurmCluster) -> None:
    Path("tell.py").write_text(_TELL)
    tell = f"{sys.executable} tell.py"
    # Without SLURM's daemon, as well.
    script = f"{tell}; srun --exact -N1 -n1 -c1 --gres=none {tell}"
    job = slurm.sbatch(script, "-n9", "--gres=gpu:1", "--mem-per-cpu=512")
    assert slurm.wait(job) == ("COMPLETED", 0)
    batch, step = map(json.loads, slurm.output(job).splitlines())
    number, nodes, end = batch
    assert number is None
    assert step == [0, nodes, end]
    assert int(slurm.show(job)["StartTime"]) + 60 * 60 == end
    assert [name for name, *_ in nodes] == slurm.run(
        "scontrol", "show", "hostnames", slurm.show(job)["NodeList"]
    ).split()
    assert sum(cores for _, cores, *_ in nodes) == 9
    assert [rest for _, _, *rest in nodes] == [[cores * 512 * 2**20 // 10**6, 1] for _, cores, *_ in nodes]


@needs_slurm
def test_an_interactive_shell_knows_the_allocation(slurm: SlurmCluster) -> None:
    Path("tell.py").write_text(_TELL)
    printed = slurm.run("salloc", "--quiet", "-N2", "-n3", "--mem=300", sys.executable, "tell.py")
    step, nodes, _ = _told(printed)
    assert step is None
    assert nodes == [["n1", 2, 314, 0], ["n2", 1, 314, 0]]
