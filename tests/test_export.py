"""`asyncflow export`: what other programs read is what happened."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow.cli.commands import invoke
from asyncflow.errors import NothingToExportError
from asyncflow.report.chrome import chrome_trace
from asyncflow.report.critical import critical_path
from asyncflow.report.instance import wfformat
from asyncflow.report.reading import read_run
from asyncflow.report.run import Run
from asyncflow.telemetry import names
from asyncflow.wfformat import RecordedWorkflow, parse_workflow
from tests.support.command_line import command_line
from tests.support.recordings import INSTANCES
from tests.support.runs import HOME, STDERR, Lines, campaign

RUN = Path("run.jsonl")


def read(lines: Lines) -> Run:
    return read_run(lines.write(RUN))


def parsed(run: Run) -> RecordedWorkflow:
    return parse_workflow(wfformat(run), "run.wfformat.json")


# --- WfFormat ---------------------------------------------------------------------------------------------------------

#: What version 1.5 of the format asks for, in our words.
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_IDS: dict[str, Any] = {"type": "array", "items": {"type": "string", "pattern": "^[0-9a-zA-Z-_.]*$"}}


def an_object(needed: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**needed, **others}, "required": list(needed)}


def some(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


FORMAT = an_object(
    {
        "name": _TEXT,
        "schemaVersion": {"const": "1.5"},
        "workflow": an_object(
            {
                "specification": an_object(
                    {"tasks": some(an_object({"name": _TEXT, "id": _TEXT, "parents": _IDS, "children": _IDS}))}
                ),
                "execution": an_object(
                    {
                        "makespanInSeconds": {"type": "number"},
                        "executedAt": _TEXT,
                        "tasks": some(
                            an_object(
                                {"id": _TEXT, "runtimeInSeconds": {"type": "number", "minimum": 0}},
                                coreCount={"type": "number", "minimum": 1},
                                command=an_object({}, program=_TEXT, arguments={"type": "array", "items": _TEXT}),
                                machines={"type": "array", "items": _TEXT},
                            )
                        ),
                    },
                    machines=some(an_object({"nodeName": _TEXT}, memoryInBytes={"type": "integer", "minimum": 1})),
                ),
            }
        ),
    },
    createdAt=_TEXT,
    description=_TEXT,
    runtimeSystem=an_object({"name": _TEXT, "version": _TEXT}),
)


def test_the_format_above_is_that_of_real_recordings() -> None:
    for file in INSTANCES.glob("montage*.json"):
        jsonschema.validate(json.loads(file.read_text()), FORMAT)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[list[str], float]]:
    """By uid what each task depends on, and how long it took."""
    graph: dict[str, tuple[list[str], float]] = {}
    for place in range(draw(st.integers(1, 12))):
        after = draw(st.lists(st.sampled_from(sorted(graph)), max_size=4)) if graph else []
        graph[f"task.{place:06d}"] = after, draw(st.integers(0, 50)) / 8
    return graph


@given(graph=graphs())
def test_a_run_keeps_its_graph_and_its_runtimes(
    graph: dict[str, tuple[list[str], float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = Lines()
    lines.start()
    for place, (uid, (after, seconds)) in enumerate(graph.items()):
        lines.run(uid, 10.0 * place, 10.0 * place + seconds, "work", after, cores=1 + place % 3)
    run = read_run(lines.write(tmp_path_factory.mktemp("run") / "run.jsonl"))
    content = wfformat(run)
    jsonschema.validate(json.loads(content), FORMAT)
    workflow = parse_workflow(content, "run")
    assert {task.id: set(task.parents) for task in workflow.tasks} == {
        uid: set(after) for uid, (after, _) in graph.items()
    }
    assert {task.id: task.runtime for task in workflow.tasks} == {
        uid: pytest.approx(seconds, abs=1e-5) for uid, (_, seconds) in graph.items()
    }
    assert {task.id: task.cores for task in workflow.tasks} == {uid: 1 + n % 3 for n, uid in enumerate(graph)}
    assert workflow.critical_path() == pytest.approx(critical_path(run).seconds, abs=1e-4)


def test_a_campaign_with_blocks_keeps_its_critical_path() -> None:
    run = read(campaign(300, wrong=0.2))
    content = wfformat(run)
    jsonschema.validate(json.loads(content), FORMAT)
    workflow = parse_workflow(content, "run")
    assert len(workflow.tasks) == len(run.tasks)
    assert workflow.critical_path() == pytest.approx(critical_path(run).seconds, abs=1e-3)
    assert {task.sort for task in workflow.tasks} == {task.name for task in run.tasks.values()}


def test_what_a_block_called_stands_in_its_place() -> None:
    lines = Lines()
    lines.start()
    lines.run("task.000001", 0.0, 1.0)
    lines.run("block.000002", 1.0, 9.0, "study", ["task.000001"], kind="block", backend="blocks", cores=0)
    lines.run("task.000003", 2.0, 4.0, parent="block.000002")
    lines.run("task.000004", 9.0, 10.0, after=["block.000002"])
    workflow = parsed(read(lines))
    assert {task.id: task.parents for task in workflow.tasks} == {
        "task.000001": (),
        "task.000003": ("task.000001",),
        "block.000002": ("task.000001", "task.000003"),
        "task.000004": ("block.000002",),
    }
    assert {task.id: task.runtime for task in workflow.tasks}["block.000002"] == 0.0
    assert workflow.critical_path() == 4.0


def test_machines_programs_and_what_never_ran() -> None:
    lines = Lines()
    lines.start()
    figures = {"memory_total": 64_000_000_000, "memory_used": 1}
    lines.add(names.RESOURCE_UPDATE, 0.5, figures, host="n01")
    lines.run("task.000001", 0.0, 1.0, "load", host="n01")
    lines.create("task.000002", 0.0, "convert", kind="executable")
    lines.submit("task.000002", 1.0)
    lines.begin("task.000002", 1.0)
    lines.fail("task.000002", 2.0, more={names.EXIT_CODE: 1, names.COMMAND_ARGS: ["gzip", "", "-k"]})
    lines.create("task.000003", 0.0, "never", ["task.000002"])
    content = json.loads(wfformat(read(lines)))
    jsonschema.validate(content, FORMAT)
    load, convert, never = content["workflow"]["execution"]["tasks"]
    assert load["command"] == {"program": "campaign.load"}
    assert load["machines"] == ["n01"]
    assert convert["command"] == {"program": "gzip", "arguments": ["-k"]}
    assert (never["runtimeInSeconds"], "machines" in never) == (0.0, False)
    machines = content["workflow"]["execution"]["machines"]
    assert machines == [{"nodeName": "n01", "memoryInBytes": 64_000_000_000}, {"nodeName": HOME}]
    assert content["workflow"]["execution"]["executedAt"] == "2025-11-21T09:00:00.000Z"


def test_odd_uids_and_circles_of_a_broken_file_give_a_workflow_all_the_same() -> None:
    lines = Lines()
    lines.start()
    for uid, after in {"a b": ["a/b"], "a/b": ["a b", "nowhere"], "a_b": ["a b", "a_b"]}.items():
        lines.run(uid, 0.0, 1.0, after=after)
    content = wfformat(read(lines))
    jsonschema.validate(json.loads(content), FORMAT)
    assert sorted(task.id for task in parse_workflow(content, "run").tasks) == ["a_b", "a_b.2", "a_b.3"]


def test_a_run_without_tasks_is_no_workflow(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.start()
    with pytest.raises(NothingToExportError):
        wfformat(read(lines))
    assert invoke(["export", "--format", "wfformat", str(RUN)]) == 2
    said = "asyncflow: session 'flow-1' cannot be exported: it called no tasks, and WfFormat knows no empty workflow\n"
    assert capsys.readouterr().err == said


def test_what_was_exported_is_replayed() -> None:
    campaign(40, workflows=2).write(RUN)
    done = command_line("export", "--format", "wfformat", RUN)
    assert (done.returncode, done.stdout) == (0, "run.wfformat.json\n"), done.stderr
    replayed = command_line("replay", "run.wfformat.json", "--speed", "10000")
    assert replayed.returncode == 0, replayed.stderr
    assert "flow-3f9c21aa (WfFormat 1.5)" in replayed.stdout


# --- Trace Event Format -----------------------------------------------------------------------------------------------


def traced(lines: Lines) -> list[dict[str, Any]]:
    content = json.loads(chrome_trace(read(lines)))
    events: list[dict[str, Any]] = content["traceEvents"]
    return events


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == kind]


def test_every_attempt_is_a_slice_on_the_track_of_its_worker() -> None:
    lines = campaign(200, wrong=0.2)
    events = traced(lines)
    run = read_run(RUN)
    processes = {each["pid"]: each["args"]["name"] for each in of(events, "M") if each["name"] == "process_name"}
    threads = {
        (each["pid"], each["tid"]): each["args"]["name"] for each in of(events, "M") if each["name"] == "thread_name"
    }
    slices = [each for each in of(events, "X") if each["cat"] != "loop"]
    found = sorted(
        (each["args"]["uid"], each["args"]["attempt"], processes[each["pid"]], threads[each["pid"], each["tid"]])
        for each in slices
        if each["cat"] != "block"
    )
    assert found == sorted(
        (task.uid, attempt.number, f"{attempt.backend} on {attempt.host}", attempt.worker)
        for task, attempt, _, _ in run.attempts()
        if not task.is_block
    )
    for each in slices:
        attempts = run.tasks[each["args"]["uid"]].attempts
        [attempt] = [one for one in attempts if one.number == each["args"]["attempt"]]
        assert attempt.started is not None
        assert attempt.ended is not None
        assert each["ts"] == pytest.approx(attempt.started * 1e6, abs=1e-2)
        assert each["dur"] == pytest.approx((attempt.ended - attempt.started) * 1e6, abs=1e-2)


def test_slices_of_a_track_do_not_cross_and_all_times_are_there() -> None:
    events = traced(campaign(200, wrong=0.2))
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for each in of(events, "X"):
        tracks.setdefault((each["pid"], each["tid"]), []).append((each["ts"], each["ts"] + each["dur"]))
    for spans in tracks.values():
        spans.sort()
        assert all(one[1] <= next_[0] + 1e-6 for one, next_ in pairwise(spans))
    assert all(each["ts"] >= 0 for each in events)


def test_arrows_lead_from_what_a_task_waited_for() -> None:
    lines = campaign(60)
    events = traced(lines)
    run = read_run(RUN)
    slices = of(events, "X")

    def at(arrow: dict[str, Any]) -> str:
        """The task whose slice an end of an arrow lies in."""
        [uid] = {
            each["args"]["uid"]
            for each in slices
            if (each["pid"], each["tid"]) == (arrow["pid"], arrow["tid"])
            and each["ts"] <= arrow["ts"] < each["ts"] + each["dur"]
        }
        return str(uid)

    begins = {each["id"]: each for each in of(events, "s")}
    ends = {each["id"]: each for each in of(events, "f")}
    assert set(begins) == set(ends)
    assert all(each["bp"] == "e" for each in ends.values())
    found = {(at(begins[number]), at(ends[number])) for number in begins}
    assert found == {(before, task.uid) for task in run.tasks.values() for before in task.depends_on}


def test_retries_failures_figures_and_the_loop_are_in_the_trace() -> None:
    events = traced(campaign(200, wrong=0.3))
    instants = [each["name"] for each in of(events, "i")]
    assert any("is tried again" in name for name in instants)
    failed = [each for each in of(events, "X") if each["args"].get("ended") == "failed" and each["cat"] != "block"]
    assert failed
    assert all(each["args"]["stderr"] == STDERR for each in failed if each["name"] == "mDiffFit")
    assert {each["name"] for each in of(events, "C")} == {
        *("CPU", "memory", "cores in use: cluster", "cores in use: processes"),
    }
    [held] = [each for each in of(events, "X") if each["cat"] == "loop"]
    assert held["dur"] == 2_400_000


def test_coroutines_of_one_worker_lie_on_tracks_beside_each_other() -> None:
    lines = Lines()
    lines.start()
    for number in range(5):
        lines.run(f"task.{number:06d}", 1.0, 3.0, worker="threads-loop-0")
    lines.create("task.000009", 1.0, "refused")
    lines.fail("task.000009", 1.0, "no such host\nat all", attempt=0)
    events = traced(lines)
    assert len({each["tid"] for each in of(events, "X")}) == 5
    assert [each["name"] for each in of(events, "i")] == ["refused (task.000009): ValueError: no such host"]


@pytest.mark.parametrize("form,name", [("chrome", "run.trace.json"), ("wfformat", "run.wfformat.json")])
def test_an_export_goes_beside_the_run_or_where_one_wants_it(
    form: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    campaign(30).write(RUN)
    assert invoke(["export", "--format", form, str(RUN)]) == 0
    assert capfd.readouterr().out == f"{name}\n"
    assert invoke(["export", "--format", form, str(RUN), "-o", "other.json"]) == 0
    assert capfd.readouterr().out == "other.json\n"
    assert invoke(["export", "--format", form, str(RUN), "-o", "-"]) == 0
    assert Path(name).read_bytes() == Path("other.json").read_bytes() == capfd.readouterr().out.encode()
