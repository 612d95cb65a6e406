"""What is said of nodes before any of them works for us, by value."""

from __future__ import annotations

import time

import pytest
import test_scheduler_core as core

from dispy.model import Holder, NodeInfo
from dispy.scheduler.jobs import Shape
from dispy.scheduler.prospects import (
    Soundings,
    account,
    joined,
    why_closed,
    why_never,
    why_not_now,
    why_unsure,
    wishes,
)

N1, info = core.N1, core.info


def test_nobody_answered() -> None:
    asked = "eth0: asked 10.0.0.255, UDP port 9701"
    said = account(Soundings(tried=[asked], port=9701, missing="no interface or address eth9 is up"))
    assert said == [
        f"No node has answered. Tried: {asked}.",
        "Is dispynode running there, and do firewalls let UDP and TCP port 9701 in there, "
        "and UDP from port 9701 back in here?",
        "This program is told to use (DISPY_INTERFACES, host): no interface or address eth9 is up.",
    ]


def test_nothing_is_asked_of_people_when_the_reason_is_known() -> None:
    asked = ["eth0: asked 10.0.0.255, UDP port 9701"]
    name = "'n9' is no address, and no machine of that name is known (Name or service not known)"
    assert account(Soundings(tried=asked, unknown=[name], is_explained=True)) == [f"{name}."]
    assert account(Soundings(tried=asked, is_explained=True)) == []
    here = "a node is being started on this machine"
    assert account(Soundings(tried=asked, local=here, starting=True)) == ["A node is being started on this machine."]


def test_who_was_heard_and_keeps_apart() -> None:
    refusals = {"10.0.0.1": "secret", "10.0.0.3": "group", "10.0.0.2": "secret", "10.0.0.4": "protocol", "h": "odd"}
    assert account(Soundings(answered=True, refusals=refusals)) == [
        "2 machines run dispynode with another secret: 10.0.0.1, 10.0.0.2; make the secret equal "
        "with `dispy secret show | ssh HOST dispy secret set`, and restart dispynode there.",
        "1 machine runs dispynode in another group: 10.0.0.3; give the same --group on both sides.",
        "1 machine runs another version of dispy: 10.0.0.4; install the same one here and there.",
        "h: odd.",
    ]
    assert account(Soundings(refusals={"127.0.0.1": "secret"}, own={"127.0.0.1"}, tried=["lo: asked"])) == [
        "dispynode on this machine (127.0.0.1) was started with another secret than this process; "
        "restart it with the same (`dispy secret show` prints it and says where it comes from)."
    ]
    [said] = account(Soundings(answered=True, refusals={"10.0.0.1": "secret"}, by_certificate=True))
    assert said.endswith("give both sides certificates of one authority.")


def test_who_was_heard_and_cannot_be_reached() -> None:
    silent = [("10.0.0.1:9701", "it did not answer within 5 s")]
    assert account(Soundings(answered=True, unreachable=silent, local="no node could be started here: full")) == [
        "A node says that it is at 10.0.0.1:9701, and no link opens: it did not answer within 5 s; "
        "does its firewall let TCP in?",
        "No node could be started here: full.",
    ]


def test_what_a_node_says_of_itself_decides() -> None:
    node = info(N1, 2)
    assert why_never(node, Shape()) == why_not_now(node) == why_closed(node) == ""
    assert why_never(node, Shape(cpus=3)) == "has 2 CPUs, not 3"
    assert why_never(NodeInfo(N1, "n", 2, "x", (), oversubscribe=True), Shape(cpus=3)) == ""
    assert why_never(node, Shape(gpus=1)) == "has no GPU"
    held = NodeInfo(N1, "n", 2, "x", (), holder=Holder("bert", "other", 2, "his.py", 1_700_000_000.0))
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_000))
    assert why_not_now(held) == f"is used by bert@other (his.py, process 2) since {since}"
    left = NodeInfo(N1, "n", 2, "x", (), holder=Holder("bert", "other", 2, "his.py", gone=True, results=3, running=1))
    assert why_not_now(left) == (
        "is used by bert@other (his.py, process 2): that program is gone or cut off, 3 results wait for "
        "`dispy recover` there, 1 job still runs; the next program gets the node when no job runs there"
    )
    assert why_not_now(NodeInfo(N1, "n", 0, "x", ())) == "offers no CPU now"
    python = NodeInfo(N1, "n", 1, "x", ("cpython-3.11",))
    assert why_unsure(python, "cpython-3.11") == why_unsure(python, "") == ""
    assert why_unsure(python, "cpython-3.13") == (
        "has Python cpython-3.11, not cpython-3.13: it refuses functions unless it finds python3.13 on its PATH"
    )
    assert joined(["a"]) == "a"
    assert joined(["a", "b", "c"]) == "a, b and c"


def test_nothing_is_said_of_a_search_that_has_found_a_node() -> None:
    assert account(Soundings(answered=True, tried=["eth0: asked"], missing="no interface eth9 is up")) == []


def test_who_keeps_apart_on_this_machine_or_by_certificates() -> None:
    here = {"127.0.0.1"}
    [said] = account(Soundings(answered=True, refusals={"127.0.0.1": "group"}, own=here))
    assert said == "1 machine runs dispynode in another group: 127.0.0.1; give the same --group on both sides."
    [said] = account(Soundings(answered=True, refusals={"127.0.0.1": "group"}, own=here, by_certificate=True))
    assert said == "1 machine runs dispynode in another group: 127.0.0.1; give the same --group on both sides."
    [said] = account(Soundings(answered=True, refusals={"127.0.0.1": "secret"}, own=here, by_certificate=True))
    assert said.startswith("1 machine runs dispynode with a secret or another certificate authority: 127.0.0.1;")
    [said] = account(Soundings(answered=True, refusals={"10.0.0.1": "secret"}))
    assert "dispy secret show | ssh 10.0.0.1 dispy secret set" in said


@pytest.mark.parametrize(
    ("offered", "wanted", "why"), [(2, 2, ""), (2, 3, "has 2 CPUs, not 3"), (0, 3, ""), (2, 0, "")]
)
def test_a_node_that_offers_nothing_now_is_not_judged_by_its_cpus(offered: int, wanted: int, why: str) -> None:
    assert why_never(info(N1, offered), Shape(cpus=wanted)) == why


def test_a_node_without_interpreters_says_so() -> None:
    assert why_unsure(NodeInfo(N1, "n", 1, "x", ()), "cpython-3.13").startswith("has Python none, not cpython-3.13:")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(), ""),
        (Shape(node="n"), ""),
        (Shape(cpus=2), "2 CPUs"),
        (Shape(cpus=0), "all CPUs of a node"),
        (Shape(memory=1 << 30), "1 CPU and 1.0 GiB of memory"),
        (Shape(gpus=1), "1 CPU and 1 GPU"),
        (Shape(cpus=3, memory=1 << 30, gpus=2), "3 CPUs, 1.0 GiB of memory and 2 GPUs"),
        (Shape(tags=("a",)), "the tag a"),
        (Shape(tags=("a", "b")), "the tags a, b"),
    ],
)
def test_what_a_job_asks_for_in_words(shape: Shape, words: str) -> None:
    assert wishes(shape) == words
