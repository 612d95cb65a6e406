"""`dispy explain`: what one look at the network means for a job, by value."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from dispy.cli.explain import HERE, RUNS, WAITS, explain, judge
from dispy.cli.nodes import NodeSeen, Refusal, Survey
from dispy.cli.options import Connection
from dispy.model import Holder, NodeInfo, ProcessId
from dispy.scheduler.jobs import PLAIN, Shape

CONNECTION = Connection("s", None, None, None, None, None, 9800, insecure=False)
HOLDER = Holder("bert", "other", 2, "his.py", 1_700_000_000.0)


def seen(name: str, address: str, problem: str = "", **info: object) -> NodeSeen:
    said = NodeInfo(**{"process": ProcessId(name), "name": name, "cpus": 2, "platform": "x", "pythons": (), **info})  # type: ignore[arg-type]
    return NodeSeen(name, address, 9801, None if problem else said, problem)


def states(survey: Survey, shape: Shape = PLAIN, *named: str, python: str = "") -> tuple[int, dict[str, str], str]:
    found = judge(survey, CONNECTION, shape, named, python=python)
    return found.code, {node.name: state for node, state, _ in found.nodes}, " ".join(found.sentences)


def test_a_free_node_would_run_it() -> None:
    survey = Survey([seen("n1", "10.0.0.1"), seen("n2", "10.0.0.2", holder=HOLDER)], [])
    code, shown, said = states(survey)
    assert (code, shown) == (RUNS, {"n1": "free", "n2": "busy"})
    assert said == "A job would run now on n1 (10.0.0.1)."


def test_a_program_that_is_gone_keeps_a_node_only_while_its_jobs_run() -> None:
    gone = replace(HOLDER, gone=True, results=2)
    survey = Survey([seen("n1", "10.0.0.1", holder=gone)], [])
    assert states(survey)[:2] == (RUNS, {"n1": "free"})
    survey = Survey([seen("n1", "10.0.0.1", holder=replace(gone, running=1))], [])
    code, shown, said = states(survey)
    assert (code, shown) == (WAITS, {"n1": "busy"})
    assert "2 results wait for `dispy recover` there, 1 job still runs" in said


def test_what_is_left_on_a_free_node_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(HOLDER, gone=True, results=1)

    async def survey(*_: object) -> Survey:
        return Survey([seen("n1", "10.0.0.1", holder=gone)], [])

    monkeypatch.setattr(sys.modules["dispy.cli.explain"], "take_survey", survey)
    done = CliRunner().invoke(explain, ["--insecure", "--program"])
    assert done.exit_code == RUNS, done.output
    assert (
        "n1 (10.0.0.1) is free, 2 CPUs (its last user: that program is gone or cut off, 1 result waits" in done.output
    )


def test_every_reason_to_wait_is_told() -> None:
    survey = Survey(
        [
            seen("busy", "10.0.0.1", holder=HOLDER, tags=("big",)),
            seen("closed", "10.0.0.2", cpus=0, closed="its owner has stopped it", tags=("big",)),
            seen("other", "10.0.0.3"),
            seen("mute", "10.0.0.4", problem="no answer at port 9801 within 3 s"),
            seen("old", "10.0.0.5", tags=("big",), pythons=("cpython-3.8",)),
        ],
        [Refusal("far", "10.0.0.9", "secret")],
    )
    code, shown, said = states(survey, Shape(tags=("big",)), python="cpython-3.11")
    assert code == WAITS
    assert shown == {"busy": "busy", "closed": "closed", "other": "unfit", "mute": "unreachable", "old": "unsure"}
    for words in (
        "A job that asks for the tag big would wait: busy is used by bert@other (his.py, process 2) since 2023-11-1",
        "closed offers no CPU now: its owner has stopped it;",
        "other does not have the tag big;",
        "mute cannot be reached: no answer at port 9801 within 3 s;",
        "old has Python cpython-3.8, not cpython-3.11",
        "1 machine runs dispynode with another secret: 10.0.0.9",
    ):
        assert words in said


def test_without_nodes_this_machine_runs_it_unless_that_is_forbidden_or_it_is_too_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    survey = Survey([], [], ["lo: asked 127.255.255.255, UDP port 9801"])
    code, _, said = states(survey)
    assert code == HERE
    assert "No node has answered. Tried: lo: asked 127.255.255.255, UDP port 9801." in said
    assert "UDP and TCP port 9801" in said
    assert said.endswith("A job would run on this machine, by a node of its own.")
    code, _, said = states(survey, Shape(gpus=900))
    assert code == WAITS
    assert said.endswith("would wait: no node answers, and one on this machine has no GPU.")
    assert states(survey, PLAIN, "n1")[0] == WAITS
    assert states(survey, PLAIN, "local")[0] == HERE
    monkeypatch.setenv("DISPY_LOCAL", "never")
    code, _, said = states(survey)
    assert code == WAITS
    assert "none is started on this machine" in said


def test_only_nodes_that_are_named_count() -> None:
    survey = Survey([seen("n1", "10.0.0.1"), seen("n2", "10.0.0.2", holder=HOLDER)], [])
    assert states(survey, PLAIN, "10.0.0.2")[:2] == (WAITS, {"n1": "unused", "n2": "busy"})
    assert states(survey, PLAIN, "10.0.0.*")[0] == RUNS
    assert states(survey, PLAIN, "local")[:2] == (HERE, {"n1": "unused", "n2": "unused"})


def test_a_node_may_be_named_by_its_own_name() -> None:
    survey = Survey([seen("nA", "10.0.0.1"), seen("nA", "nA", problem="'nA' is no address")], [])
    survey.nodes[1].address = "nA"
    code, shown, said = states(survey, PLAIN, "nA")
    assert (code, shown, said) == (RUNS, {"nA": "free"}, "A job would run now on nA (10.0.0.1).")


def test_a_program_for_this_machine_alone_asks_nobody() -> None:
    survey = Survey([seen("n1", "10.0.0.1")], [], ["lo: asked 127.255.255.255, UDP port 9801"])
    code, _, said = states(survey, PLAIN, "local")
    assert (code, said) == (HERE, "A job would run on this machine, by a node of its own.")


def test_the_one_cause_that_holds_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPY_LOCAL", "never")
    assert states(Survey([], []))[2].endswith("none is started on this machine: DISPY_LOCAL=never forbids it.")
    assert states(Survey([], []), PLAIN, "n1")[2].endswith("other nodes are named (--nodes, DISPY_NODES).")


@pytest.mark.parametrize(
    ("options", "words"), [(["--cpus", "0"], "--cpus must be"), (["--memory", "foo"], "--memory must be")]
)
def test_what_is_wrong_is_called_as_it_was_typed(options: list[str], words: str) -> None:
    done = CliRunner().invoke(explain, options)
    assert done.exit_code == 2
    assert words in done.output
    assert "dispy_" not in done.output
