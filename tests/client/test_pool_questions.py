"""`dispy status`, `jobs`, `cancel` and `top` against a scheduler of a few fixed words, over a real link."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from dispy.cli import main, pool
from dispy.cli.options import Connection
from dispy.cli.pool import find_cluster, owner_of
from dispy.cli.poolview import NODE_STATES, cluster_state, headline, node_state
from dispy.errors import ConnectFailed, SettingsError
from dispy.model import AvailInfo, ComputationId, Holder, JobState, ProcessId, Role
from dispy.recovery.book import ClusterNoted, ClusterOver, ClusterShared, ProgramBegun
from dispy.recovery.file import RecoveryFile, new_path
from dispy.scheduler.nodes import NodeState
from dispy.secrets import find_admin_credentials, find_credentials
from dispy.wire.inquiries import AskJobs, AskPool, CancelFor, CancelTold, JobsTold, PoolTold
from dispy.wire.link import Link, LinkSettings, Listener
from dispy.wire.messages import AnyMessage
from dispy.wire.pool import ClusterStatus, JobStatus, PoolNode, PoolStatus, UserStatus

MINE, THEIRS = ComputationId("1a2b3c4d" + "0" * 24), ComputationId("1a99ffff" + "0" * 24)
TOKEN = b"t" * 32


def cluster(number: ComputationId, name: str, user: str, **other: Any) -> ClusterStatus:
    made = ClusterStatus(
        number, name, f"{user}@desk", False, Holder(user, "desk", 7, "p.py"), "open", True, 3, 2, 5, 1, 2, 1000.0
    )
    return msgspec.structs.replace(made, **other)


def pool_status(*, mine: bool = True) -> PoolStatus:
    return PoolStatus(
        name="lab",
        version="5.0.0",
        policy="fair",
        since=1000.0,
        now=1000.0 + 7500,
        nodes=(
            PoolNode(
                ProcessId("b" * 32), "n2", "10.0.0.2", 4, "leased", 2, 9, AvailInfo(75.0, 8 << 30, 0, 100.0), "", 9701
            ),
            PoolNode(ProcessId("a" * 32), "n1", "10.0.0.1", 0, "refused", 0, problem="held by carl"),
        ),
        users=(
            UserStatus("alice@desk", True, 1, 3, 2, 2, 90.0),
            UserStatus("bob@desk", False, 1, 3, 2, 2, 4000.0),
        ),
        clusters=(
            cluster(THEIRS, "model", "bob", attached=False),
            cluster(MINE, "compute", "alice", proved=True, mine=mine, exclusive=True, state="waiting"),
        ),
    )


class Scheduler:
    """Answers as it was told to, in a thread of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[AnyMessage] = []
        self.roles: list[Role] = []
        self.status = pool_status()
        self.jobs = JobsTold(0, [])
        self.cancelled = CancelTold(0, 2)
        self.mute = False
        self.hangs_up = 0
        self._loop = asyncio.new_event_loop()
        self._links: set[Link] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler of the test")

    def link_opened(self, link: Link) -> None:
        self.roles.append(link.peer.role)
        self._links.add(link)

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, Any]]) -> None:
        for message, _ in messages:
            self.asked.append(message)
            if self.hangs_up == len(self.asked):
                link.abort("the test wants it")
            elif not self.mute:
                link.send(self._answer(message))

    def _answer(self, message: AnyMessage) -> AnyMessage:
        match message:
            case AskPool(question):
                return PoolTold(question, self.status)
            case AskJobs(question):
                return msgspec.structs.replace(self.jobs, question=question)
            case CancelFor(question):
                return msgspec.structs.replace(self.cancelled, question=question)
        raise AssertionError(message)

    def link_suspected(self, link: Link) -> None: ...
    def link_recovered(self, link: Link) -> None: ...

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        self._links.discard(link)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        credentials = find_credentials(secret="ours")
        admin = find_admin_credentials(credentials, secret="the admin's")
        settings = LinkSettings(ProcessId("e" * 32), Role.SCHEDULER, "lab", credentials, admin=admin)
        listener = await Listener.start(
            ["127.0.0.1"],
            self.port,
            settings=settings,
            handler=self,
            accept=frozenset({Role.CLIENT, Role.ADMIN}),
            on_refused=lambda *_: None,
        )
        self._ready.set()
        await self._ended.wait()
        for link in list(self._links):
            link.close("the test is over")
        await listener.close()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(10)


@pytest.fixture
def scheduler(free_base_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scheduler]:
    monkeypatch.setenv("DISPY_SECRET", "ours")
    monkeypatch.setenv("DISPY_SCHEDULER", f"127.0.0.1:{free_base_port}")
    started = Scheduler(free_base_port)
    started.start()
    yield started
    started.stop()


def dispy(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def note(host: str, port: int, number: ComputationId, token: bytes, *, over: bool = False) -> RecoveryFile:
    """A recovery file of a program that has a cluster there."""
    begun = ProgramBegun(b"x" * 32, b"k" * 8, "", 9700, "alice", "desk", 7, "p.py", 1000.0)
    entries = [begun, ClusterNoted(number, "compute", "function"), ClusterShared(number, host, port, token)]
    return RecoveryFile.create(new_path(), [*entries, *([ClusterOver(number)] if over else [])])


@pytest.fixture
def recovery_files() -> Iterator[Callable[..., Path]]:
    made: list[RecoveryFile] = []

    def make(*given: Any, **more: Any) -> Path:
        made.append(note(*given, **more))
        return made[-1].path

    yield make
    for file in made:
        file.close()


# ---- what is shown ----


def test_status_shows_nodes_users_and_clusters(scheduler: Scheduler) -> None:
    done = dispy("status")
    assert done.exit_code == 0, done.output
    lines = [line.rstrip() for line in done.output.splitlines()]
    assert lines[0] == (
        "lab: dispyscheduler 5.0.0, policy fair, up 2 h 5 min; nodes: 2, CPUs: 4, jobs with nodes: 4, waiting: 6"
    )
    assert [line.split() for line in lines[3:5]] == [
        ["n1", "10.0.0.1", "0", "0", "0", "used", "by", "others:", "held", "by", "carl"],
        ["n2", "10.0.0.2:9701", "4", "2", "9", "25", "%", "8.0", "GiB", "in", "use"],
    ]
    assert "bob@desk (claimed)" in done.output
    assert "alice@desk (claimed)" not in done.output
    mine = next(line for line in lines if "1a2b3c4d*" in line)
    assert mine.endswith("waiting for its turn, exclusive")
    assert next(line for line in lines if "1a99ffff " in line).endswith("open, program away")


def test_status_as_json_is_what_the_scheduler_told(scheduler: Scheduler) -> None:
    shown = json.loads(dispy("status", "--json").stdout)
    assert msgspec.convert(shown, PoolStatus) == scheduler.status


def test_an_empty_scheduler_is_shown_as_one(scheduler: Scheduler) -> None:
    scheduler.status = PoolStatus("lab", "5.0.0", "fifo", 0.0, 5.0)
    output = dispy("status").output
    assert "policy fifo, up 5 s; nodes: 0, CPUs: 0" in output
    assert "No node is connected." in output
    assert "No cluster is open." in output
    assert dispy("jobs").stdout == "No cluster is open.\n"


def test_jobs_are_listed_with_the_names_of_their_clusters(scheduler: Scheduler) -> None:
    listed = [JobStatus(MINE, 1, JobState.Running, "n2", 2, 1000.0), JobStatus(MINE, 2, JobState.Created)]
    scheduler.jobs = JobsTold(0, listed, more=7)
    done = dispy("jobs", "compute", "--most", "2")
    assert done.exit_code == 0
    assert isinstance(scheduler.asked[-1], AskJobs)
    assert (scheduler.asked[-1].cluster, scheduler.asked[-1].most) == (MINE, 2)
    assert [line.split()[:5] for line in done.stdout.splitlines()[1:]] == [
        ["1a2b3c4d", "compute", "1", "Running", "n2"],
        ["1a2b3c4d", "compute", "2", "Created"],
    ]
    assert "7 further jobs not shown" in done.stderr
    lines = [json.loads(line) for line in dispy("jobs", "--json").stdout.splitlines()]
    assert lines[0] == {
        "cluster": MINE,
        "name": "compute",
        "job": 1,
        "state": "Running",
        "node": "n2",
        "attempt": 2,
        "since": 1000.0,
    }
    assert scheduler.asked[-1].cluster == ""


def test_who_has_no_cluster_there_is_told_what_would_prove_it(scheduler: Scheduler) -> None:
    scheduler.status = pool_status(mine=False)
    assert "known to be yours (2 clusters of others)" in dispy("jobs").output


def test_jobs_of_others_are_not_no_jobs(scheduler: Scheduler) -> None:
    done = dispy("jobs", "model")
    assert done.exit_code == 1
    assert "cluster model belongs to bob@desk (claimed)" in done.output
    assert dispy("jobs", "model", "--admin_secret", "the admin's").stdout == "No jobs.\n"
    assert dispy("jobs", "compute").stdout == "No jobs.\n"


# ---- what is asked for ----


def test_cancel_names_cluster_and_jobs(scheduler: Scheduler) -> None:
    done = dispy("cancel", "1a2b", "3", "4")
    assert (done.exit_code, done.stdout) == (0, "2 jobs are being ended.\n")
    asked = scheduler.asked[-1]
    assert isinstance(asked, CancelFor)
    assert (asked.cluster, asked.jobs) == (MINE, (3, 4))
    assert dispy("cancel", "model").exit_code == 0
    asked = scheduler.asked[-1]
    assert isinstance(asked, CancelFor)
    assert (asked.cluster, asked.jobs) == (THEIRS, ())
    some = dispy("cancel", "compute", "3", "4", "999")
    assert (some.exit_code, some.stdout) == (1, "")
    assert some.stderr == "2 of 3 jobs are being ended; the others have ended, or the cluster never had them.\n"


def test_why_nothing_is_cancelled_is_said(scheduler: Scheduler) -> None:
    scheduler.cancelled = CancelTold(0, 0, "the cluster belongs to bob@desk (claimed)")
    done = dispy("cancel", "model")
    assert (done.exit_code, done.stderr) == (1, "the cluster belongs to bob@desk (claimed)\n")
    done = dispy("cancel", "model", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (
        1,
        {"count": 0, "answer": "the cluster belongs to bob@desk (claimed)"},
    )


def test_a_cluster_is_named_by_name_or_by_the_beginning_of_its_number() -> None:
    status = pool_status()
    assert find_cluster(status, "compute") == find_cluster(status, "1a2") == find_cluster(status, "1A2B") == MINE
    twice = (*status.clusters, cluster(ComputationId("f" * 32), "compute", "bob"))
    assert find_cluster(msgspec.structs.replace(status, clusters=twice), "compute") == MINE
    with pytest.raises(SettingsError, match=r"several clusters: 1a99ffff \(model, of bob@desk \(claimed\)\), 1a2b3c4d"):
        find_cluster(status, "1a")
    with pytest.raises(SettingsError, match="no cluster 'other'"):
        find_cluster(status, "other")


# ---- who asks ----


def test_tokens_are_told_to_their_own_scheduler_only(
    scheduler: Scheduler, recovery_files: Callable[..., Path], free_base_ports: list[int]
) -> None:
    recovery_files("localhost", scheduler.port, MINE, TOKEN)
    recovery_files("127.0.0.1", free_base_ports[0], ComputationId("2"), b"2" * 32)
    recovery_files("192.0.2.1", scheduler.port, ComputationId("3"), b"3" * 32)
    recovery_files("127.0.0.1", scheduler.port, ComputationId("4"), b"4" * 32, over=True)
    recovery_files("127.0.0.1", scheduler.port, ComputationId("5"), b"5" * 32).write_bytes(b"spoiled")
    assert dispy("jobs").exit_code == 0
    pool_question, jobs_question = scheduler.asked
    assert isinstance(pool_question, AskPool)
    assert isinstance(jobs_question, AskJobs)
    assert pool_question.tokens == jobs_question.tokens == (TOKEN,)
    assert scheduler.roles == [Role.CLIENT]


def test_the_admin_secret_makes_an_admin(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispy("status", "--admin_secret", "the admin's").exit_code == 0
    monkeypatch.setenv("DISPY_ADMIN_SECRET", "the admin's")
    assert dispy("status").exit_code == 0
    assert dispy("cancel", "model", "--admin").exit_code == 0
    assert scheduler.roles == [Role.ADMIN, Role.CLIENT, Role.ADMIN]
    done = dispy("status", "--admin_secret", "guessed")
    assert done.exit_code == 1
    assert "another admin secret" in done.output


def test_a_wrong_secret_is_named(scheduler: Scheduler) -> None:
    done = dispy("status", "--secret", "theirs")
    assert done.exit_code == 1
    assert f"the scheduler on lab (127.0.0.1:{scheduler.port}) has another secret for programs" in done.output


def test_where_no_scheduler_is_that_is_said(free_base_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPY_SECRET", "ours")
    for words in (("status",), ("jobs",), ("cancel", "x"), ("top",)):
        done = dispy(*words, "--dispy_port", str(free_base_port))
        assert done.exit_code == 1
        assert f"no scheduler answers at 127.0.0.1:{free_base_port + 2}" in done.output
        assert "start dispyscheduler there" in done.output


def test_something_that_listens_is_not_nobody() -> None:
    target = pool.Target("127.0.0.1", 9702, Connection(*[None] * 7, insecure=False), None)
    closed = "127.0.0.1:9702: the other side closed during the handshake"
    assert str(pool._nobody(target, ConnectFailed(closed, reason="eof"))) == (
        "what listens at 127.0.0.1:9702 takes no link of this command: the other side closed during the handshake"
    )
    nothing = ConnectFailed("nothing listens at 127.0.0.1:9702 (connection refused)", refused=True, reason="refused")
    assert str(pool._nobody(target, nothing)).startswith(
        "no scheduler answers at 127.0.0.1:9702: nothing listens there; start dispyscheduler there"
    )


def test_a_scheduler_that_is_silent_is_not_waited_for(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ANSWER_TIMEOUT", 0.3)
    scheduler.mute = True
    done = dispy("status")
    assert done.exit_code == 1
    assert "did not answer within 0.3 s" in done.output
    monkeypatch.setattr(pool, "ANSWER_TIMEOUT", 10.0)
    scheduler.hangs_up = len(scheduler.asked) + 1
    assert "the link to the scheduler at" in dispy("status").output


# ---- top ----


def test_top_prints_once_where_there_is_no_terminal(scheduler: Scheduler) -> None:
    done = dispy("top")
    assert done.output == dispy("status").output
    assert json.loads(dispy("top", "--json").stdout)["name"] == "lab"


def test_top_draws_again_and_again_survives_a_break_and_leaves_on_q(scheduler: Scheduler, wait_until: Any) -> None:
    scheduler.hangs_up = 3
    terminal, other = pty.openpty()
    termios.tcsetwinsize(other, (40, 150))
    seen = bytearray()
    process = subprocess.Popen(
        [sys.executable, "-m", "dispy.cli", "top", "--interval", "0.1"],
        stdin=other,
        stdout=other,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(other)

    def read() -> None:
        while True:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                return
            seen.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_until(lambda: b"1a2b3c4d*" in seen, timeout=20)
        wait_until(lambda: b"trying again" in seen, timeout=20)
        wait_until(lambda: len(scheduler.asked) > 5, timeout=20)
        os.write(terminal, b"xq")
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join(10)
        os.close(terminal)


def test_long_lists_are_cut_on_a_screen(scheduler: Scheduler) -> None:
    from rich.console import Console

    from dispy.cli.poolview import pool_view

    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(pool_view(scheduler.status, most=1))
    assert console.export_text().count("and 1 more") == 3


def test_every_state_of_a_node_has_words() -> None:
    assert {state.name.lower() for state in NodeState} | {"broken", "suspect", "lost"} == NODE_STATES.keys()


def test_the_owner_of_a_cluster_is_who_is_proved() -> None:
    poser = cluster(MINE, "c", "root", owner="2002@vm", proved=True)
    assert owner_of(poser) == "2002@vm (says root@desk)"
    assert owner_of(cluster(MINE, "c", "anna", proved=True)) == "anna@desk"
    assert owner_of(cluster(MINE, "c", "anna")) == "anna@desk (claimed)"


def test_words_of_a_scheduler() -> None:
    assert cluster_state(cluster(MINE, "c", "a")) == "open"
    status = pool_status()
    away = msgspec.structs.replace(status.nodes[0], state="broken")
    assert "; nodes: 1 (and 1 away), CPUs: 0, " in headline(
        msgspec.structs.replace(status, nodes=(away, status.nodes[1]))
    )
    assert node_state(away) == "away, may come back"
    assert node_state(msgspec.structs.replace(away, state="of another version")) == "of another version"
