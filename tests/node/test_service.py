"""A node service with real links, fork servers and files; the other side is a scheduler that a test plays."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import types
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dispy import shipping
from dispy.errors import NodeError
from dispy.model import (
    BlobRef,
    ComputationId,
    ComputationSpec,
    Ending,
    FileSpec,
    HeldAttempt,
    Holder,
    JobDone,
    JobOptions,
    JobSpec,
    ProcessId,
    Role,
)
from dispy.node import performing, service
from dispy.node.service import NodeService
from dispy.node.settings import NodeSettings
from dispy.secrets import credentials_from_key
from dispy.wire import messages as msg
from dispy.wire.blobs import BlobExchange, BlobSources
from dispy.wire.discovery import Asker, NodeFound
from dispy.wire.link import Link, LinkSettings, Listener, dial

T = TypeVar("T")
KEY = bytes(range(32))
DEADLINE = 30.0


def function(source: str) -> Callable[..., Any]:
    """A function as if it had been written in the user's main program."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(source, names)
    made = names["compute"]
    assert isinstance(made, types.FunctionType)
    return made


def run(work: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(DEADLINE):
            return await work()

    return asyncio.run(limited())


async def seen(true: Callable[[], bool]) -> None:
    """Return when something is true that nobody tells us of."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class Scheduler:
    """A scheduler that does what a test says and keeps what it hears."""

    def __init__(self, name: str = "anna") -> None:
        self.process = ProcessId(secrets.token_hex(16))
        self.token = secrets.token_bytes(16)
        self.holder = Holder(name, "host", os.getpid(), "test")
        self.settings = LinkSettings(
            process=self.process, role=Role.SCHEDULER, name=name, credentials=credentials_from_key(KEY)
        )
        self.sources = BlobSources()
        self.link: Link | None = None
        self.exchange: BlobExchange | None = None
        self.heard: list[tuple[msg.AnyMessage, bytes]] = []
        self.news = asyncio.Condition()
        self.done: dict[int, tuple[JobDone, bytes]] = {}
        self.lost: list[tuple[str, bool]] = []
        self.shipment: shipping.Shipment | None = None

    def link_opened(self, link: Link) -> None:
        self.link = link
        if self.exchange is None:
            self.exchange = BlobExchange(link, self.sources)
        else:
            self.exchange.link_replaced(link)
        self._notify()

    def messages_arrived(self, link: Link, messages: list[tuple[msg.AnyMessage, bytes | memoryview]]) -> None:
        assert self.exchange is not None
        for message, payload in messages:
            if self.exchange.message_arrived(message, payload):
                continue
            self.heard.append((message, bytes(payload)))
            if isinstance(message, msg.JobsDone):
                self._take(message, bytes(payload))
        self._notify()

    def _take(self, message: msg.JobsDone, payload: bytes) -> None:
        at = 0
        for job in message.jobs:
            size = 0 if job.blob else job.result_size + job.stdout_size + job.stderr_size + job.error_size
            self.done[job.job] = (job, payload[at : at + size])
            at += size

    def _notify(self) -> None:
        async def tell() -> None:
            async with self.news:
                self.news.notify_all()

        asyncio.get_running_loop().create_task(tell())

    def link_suspected(self, link: Link) -> None: ...

    def link_recovered(self, link: Link) -> None: ...

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        self.lost.append((cause, goodbye))
        self._notify()

    async def until(self, true: Callable[[], T]) -> T:
        async with self.news:
            while not (value := true()):
                await self.news.wait()
            return value

    async def hear(self, kind: type[T]) -> T:
        """The next message of this kind; it is not heard again."""

        def found() -> int:
            return next((i + 1 for i, (each, _) in enumerate(self.heard) if isinstance(each, kind)), 0)

        index = await self.until(found)
        message: Any = self.heard.pop(index - 1)[0]
        return message  # type: ignore[no-any-return]

    async def dial(self, node: NodeService) -> None:
        await dial("127.0.0.1", node.callers.port, settings=self.settings, handler=self)

    def send(self, message: msg.AnyMessage, *payload: bytes) -> None:
        assert self.link is not None
        self.link.send(message, payload)

    async def lease(self, node: NodeService) -> msg.LeaseGranted:
        await self.dial(node)
        self.send(msg.AskLease(self.token, self.holder))
        return await self.hear(msg.LeaseGranted)

    async def open(self, compute: Callable[..., Any] | str, key: str = "1", **changes: Any) -> ComputationSpec:
        self.shipment = shipment = shipping.pack(compute, [])
        files = [FileSpec(file.dest, await self.sources.offer_file(file.path)) for file in shipment.files]
        code = None if shipment.code is None else self.sources.offer_bytes(shipment.code, hashed=True)
        given = {
            "id": ComputationId(key * 32),
            "name": shipment.name,
            "kind": shipment.kind,
            "python": shipment.python,
            "code": code,
            "program": shipment.program,
            "files": tuple(files),
        }
        spec = ComputationSpec(**{**given, **changes})
        self.send(msg.OpenComputation(spec))
        return spec

    async def ready(self, compute: Callable[..., Any] | str, key: str = "1", **changes: Any) -> ComputationSpec:
        spec = await self.open(compute, key, **changes)
        await self.hear(msg.ComputationReady)
        return spec

    def run(self, spec: ComputationSpec, jobs: dict[int, tuple[Any, ...]]) -> None:
        assert self.shipment is not None
        packed = {job: shipping.dumps_arguments(self.shipment, args, {}) for job, args in jobs.items()}
        specs = [JobSpec(job, 1, len(data)) for job, data in packed.items()]
        self.send(msg.RunJobs(spec.id, specs), *packed.values())

    async def result(self, job: int) -> tuple[JobDone, Any]:
        await self.until(lambda: job in self.done)
        done, body = self.done[job]
        if done.blob is not None:
            assert self.exchange is not None
            body = await self.exchange.fetch_bytes(done.blob)
        value = shipping.loads_result(body[: done.result_size]) if done.result_size else None
        return done, value

    def text(self, job: int) -> str:
        """Error text of a job."""
        done, body = self.done[job]
        return body[len(body) - done.error_size :].decode()

    async def close(self) -> None:
        if self.link is not None:
            self.link.close("the test is over")
            await self.link.wait_closed()
        if self.exchange is not None:
            self.exchange.close("the test is over")
        self.sources.close()


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    return NodeSettings(
        name="here",
        cpus=2,
        prefix=tmp_path / "prefix",
        credentials=credentials_from_key(KEY),
        hosts=("127.0.0.1",),
        ephemeral=True,
    )


@asynccontextmanager
async def running(settings: NodeSettings, schedulers: int = 1) -> Any:
    """A node, and schedulers that are not connected."""
    node = NodeService(settings)
    await node.start()
    made = [Scheduler(f"user{number}") for number in range(schedulers)]
    try:
        yield (node, *made)
        node.core.check()
    finally:
        for each in made:
            await each.close()
        await node.close()


@pytest.fixture(autouse=True)
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DISPY_CHECK", "1")
    return


def test_two_thousand_jobs(settings: NodeSettings) -> None:
    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            assert (await anna.hear(msg.NodeDescribed)).info.cpus == 2
            spec = await anna.ready(function("def compute(n): return n * n"))
            anna.run(spec, {job: (job,) for job in range(1, 2001)})
            await anna.until(lambda: len(anna.done) == 2000)
            for job, (done, body) in anna.done.items():
                assert (done.ending, shipping.loads_result(body[: done.result_size])) == (0, job * job)
            last = max(each.sequence for each, _ in anna.heard if isinstance(each, msg.JobsDone))
            anna.send(msg.AckResults(last))
            anna.send(msg.CloseComputation(spec.id))
            assert (await anna.hear(msg.ComputationClosed)).trace == ""
            assert node.core.snapshot().unacknowledged == 0
            assert list((settings.prefix / "jobs").iterdir()) == []

    run(work)


@pytest.mark.parametrize("room", [True, False])
def test_large_arguments_and_results(settings: NodeSettings, monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    monkeypatch.setattr(performing, "has_room", lambda _size, _taken: room)

    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            spec = await anna.ready(function("def compute(data): return data[::-1]"))
            data = bytes(range(256)) * 4096
            packed = shipping.dumps_arguments(anna.shipment, (data,), {})
            ref = anna.sources.offer_bytes(b"".join(packed), hashed=True)
            anna.send(msg.RunJobs(spec.id, [JobSpec(1, 1, 0, ref), JobSpec(2, 1, 0, ref)]))
            for job in (1, 2):
                done, value = await anna.result(job)
                assert done.blob is not None
                assert value == data[::-1]
            missing = BlobRef(b"?" * 32, 1 << 20)
            anna.send(msg.RunJobs(spec.id, [JobSpec(3, 1, 0, missing)]))
            done, _ = await anna.result(3)
            assert done.ending == Ending.DIED
            assert anna.text(3).startswith("its arguments did not reach the node: ")

    run(work)


def test_a_job_that_kills_its_worker(settings: NodeSettings) -> None:
    source = "def compute(code):\n import os, sys\n print('last words', file=sys.stderr, flush=True)\n os._exit(code)"

    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            spec = await anna.ready(function(source))
            anna.run(spec, {1: (3,)})
            done, _ = await anna.result(1)
            assert done.ending == Ending.DIED
            assert "exit code 3" in anna.text(1)
            assert anna.text(1).endswith("last words")

    run(work)


def test_cancel(settings: NodeSettings) -> None:
    source = "def compute(path):\n import time\n open(path, 'w').close()\n time.sleep(60)"

    async def work(path: Path) -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            spec = await anna.ready(function(source))
            anna.run(spec, {job: (f"{path}/{job}",) for job in (1, 2, 3, 4)})
            await seen(lambda: (path / "1").exists() and (path / "2").exists())
            anna.send(msg.CancelJobs([4, 1]))
            assert (await anna.result(4))[0].ending == Ending.NOT_STARTED
            assert (await anna.result(1))[0].ending == Ending.INTERRUPTED
            anna.send(msg.CloseComputation(spec.id, terminate=True))
            assert (await anna.result(2))[0].ending == Ending.INTERRUPTED
            await anna.result(3)
            await anna.hear(msg.ComputationClosed)

    run(lambda: work(settings.prefix.parent))


def test_recall(settings: NodeSettings) -> None:
    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            spec = await anna.ready(function("def compute(n):\n import time\n time.sleep(n)"))
            anna.run(spec, {1: (0.2,), 2: (0.2,), 3: (0,), 4: (0,)})
            anna.send(msg.RecallJobs(1))
            assert (await anna.hear(msg.JobsRecalled)).jobs == [HeldAttempt(4, 1)]
            await anna.result(3)

    run(work)


def test_a_link_that_breaks_and_comes_back(settings: NodeSettings) -> None:
    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            spec = await anna.ready(function("def compute(n):\n import time\n time.sleep(n)\n return n"))
            anna.run(spec, {1: (0.0,), 2: (0.4,)})
            await anna.result(1)
            anna.link.abort("the test pulls the cable")
            await anna.until(lambda: anna.lost)
            anna.done.clear()
            granted = await anna.lease(node)
            assert {held.job for held in granted.held} == {1, 2}
            assert granted.computations == [spec.id]
            assert (await anna.result(1))[1] == 0.0
            assert (await anna.result(2))[1] == 0.4

    run(work)


def test_two_schedulers_one_after_the_other(settings: NodeSettings) -> None:
    async def work() -> None:
        async with running(settings, schedulers=2) as (node, anna, bert):
            await anna.lease(node)
            await bert.dial(node)
            bert.send(msg.AskLease(bert.token, bert.holder))
            refused = await bert.hear(msg.LeaseRefused)
            assert (refused.holder.user, refused.holder.pid) == ("user0", os.getpid())
            assert refused.holder.since > 1e9
            anna.send(msg.ReleaseLease())
            await bert.hear(msg.LeaseGranted)

    run(work)


def test_the_load_is_looked_at_by_one_timer(settings: NodeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a scheduler stays: a look must not start two further ones."""
    monkeypatch.setattr(service, "LOAD_INTERVAL", 0.02)

    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            for _ in range(10):
                await anna.hear(msg.LoadMeasured)
            timers: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
            looks = [each for each in timers if "_watch_load" in repr(each) and not each.cancelled()]
            assert len(looks) == 1

    run(work)


def test_wrong_python_is_refused(settings: NodeSettings) -> None:
    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            await anna.open(function("def compute(): pass"), python="cpython-3.99")
            refused = await anna.hear(msg.ComputationRefused)
            own = ".".join(map(str, sys.version_info[:3]))
            assert refused.reason == f"needs CPython 3.99; this node has CPython {own}"
            assert refused.final

    run(work)


def test_code_that_cannot_be_loaded_is_refused_with_the_first_job_which_comes_back(settings: NodeSettings) -> None:
    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            anna.sources.offer_bytes(b"no pickle", hashed=True)
            broken = function("def compute(): pass")
            spec = await anna.ready(broken, code=anna.sources.offer_bytes(b"no pickle", hashed=True))
            anna.run(spec, {7: ()})
            refused = await anna.hear(msg.ComputationRefused)
            assert refused.reason.startswith("loading the code failed")
            assert (await anna.hear(msg.JobsRecalled)).jobs == [HeldAttempt(7, 1)]
            spec = await anna.ready(function("def compute(): return 5"), key="2")
            anna.run(spec, {1: ()})
            assert (await anna.result(1))[1] == 5

    run(work)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", ""])
def test_file_names_that_lead_outside_are_refused(settings: NodeSettings, name: str) -> None:
    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            ref = anna.sources.offer_bytes(b"evil", hashed=True)
            await anna.open(function("def compute(): pass"), files=(FileSpec(name, ref),))
            refused = await anna.hear(msg.ComputationRefused)
            assert "is not a relative path that stays inside its directory" in refused.reason
            # The node removes its own directories meanwhile; `os.walk` passes over what is gone, `rglob` does not.
            assert not [place for place, _, files in os.walk(settings.prefix.parent) if "evil" in files]

    run(work)


def test_files_are_placed_and_removed(settings: NodeSettings) -> None:
    source = (
        "def compute():\n import os\n return open('sub/data.txt').read(), os.getcwd(), os.stat('sub/data.txt').st_mode"
    )

    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            ref = anna.sources.offer_bytes(b"content", hashed=True)
            files = (FileSpec("sub/data.txt", ref, 0o750, 1e9),)
            spec = await anna.ready(function(source), files=files, dest_path="mine/here")
            anna.run(spec, {1: ()})
            content, directory, mode = (await anna.result(1))[1]
            assert (content, mode & 0o777) == ("content", 0o750)
            assert directory == str(settings.prefix.resolve() / "named/mine/here")
            anna.send(msg.CloseComputation(spec.id))
            await anna.hear(msg.ComputationClosed)
            assert not (settings.prefix / "named/mine").exists()

    run(work)


def test_kept_files_stay(settings: NodeSettings) -> None:
    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            ref = anna.sources.offer_bytes(b"content", hashed=True)
            changes = {"files": (FileSpec("data.txt", ref),), "dest_path": "mine", "keep_files": True}
            spec = await anna.ready(function("def compute(): pass"), **changes)
            anna.send(msg.CloseComputation(spec.id))
            await anna.hear(msg.ComputationClosed)
            assert (settings.prefix / "named/mine/data.txt").read_bytes() == b"content"

    run(work)


def test_a_second_node_with_the_same_directory_is_refused(settings: NodeSettings) -> None:
    async def work() -> None:
        async with running(settings):
            with pytest.raises(NodeError, match=f"belongs to a dispynode that runs .process {os.getpid()}"):
                await NodeService(settings).start()

    run(work)


def test_a_node_that_joins(settings: NodeSettings) -> None:
    async def work() -> None:
        anna = Scheduler()
        listener = await Listener.start(
            ["127.0.0.1"],
            0,
            settings=anna.settings,
            handler=anna,
            accept=frozenset({Role.NODE}),
            on_refused=lambda address, sentence: None,
        )
        joining = NodeSettings(
            name="joiner",
            cpus=1,
            prefix=settings.prefix,
            credentials=settings.credentials,
            hosts=settings.hosts,
            ephemeral=True,
            joins=(("127.0.0.1", listener.port),),
        )
        async with running(joining):
            assert (await anna.hear(msg.NodeDescribed)).info.name == "joiner"
            anna.send(msg.AskLease(anna.token, anna.holder))
            await anna.hear(msg.LeaseGranted)
        await anna.until(lambda: anna.lost)
        assert anna.lost[-1][1], "it says goodbye"
        await anna.close()
        await listener.close()

    run(work)


@pytest.mark.parametrize("answers", [True, False])
def test_a_node_that_joins_is_announced_when_nobody_takes_it(
    settings: NodeSettings, free_base_port: int, answers: bool
) -> None:
    """Who heard of it while it dials would dial as well."""

    async def work() -> None:
        anna = Scheduler()
        listener = await Listener.start(
            ["127.0.0.1"],
            0,
            settings=anna.settings,
            handler=anna,
            accept=frozenset({Role.NODE}),
            on_refused=lambda address, sentence: None,
        )
        if not answers:
            await listener.close()
        found: list[NodeFound] = []
        asker = await Asker.start(
            credentials=settings.credentials,
            group="",
            base_port=free_base_port,
            name="asker",
            interfaces=("lo",),
            on_found=found.append,
            on_refused=lambda refused: None,
        )
        joining = NodeSettings(
            name="joiner",
            cpus=1,
            prefix=settings.prefix,
            credentials=settings.credentials,
            hosts=settings.hosts,
            interfaces=("lo",),
            base_port=free_base_port,
            joins=(("127.0.0.1", listener.port),),
        )
        async with running(joining):
            if answers:
                await anna.hear(msg.NodeDescribed)
                anna.send(msg.AskLease(anna.token, anna.holder))
                await anna.hear(msg.LeaseGranted)
                asker.ask()
                await seen(lambda: found)
                assert not asker.counters["announcements"]
            else:
                await seen(lambda: asker.counters["announcements"] == 1)
        asker.close()
        await anna.close()
        await listener.close()

    run(work)


def test_orderly_exit(settings: NodeSettings) -> None:
    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            spec = await anna.ready(function("def compute(n):\n import time\n time.sleep(n)\n return n"))
            anna.run(spec, {1: (0.3,), 2: (0.3,), 3: (0.1,)})
            await seen(lambda: node.core.snapshot().given == 2)
            node.ask_exit(at_once=False)
            for job in (1, 2, 3):
                assert (await anna.result(job))[0].ending == Ending.FINISHED
            anna.send(msg.AckResults(99))
            assert await node.ended == "it was told to end and its jobs are done"

    run(work)


def test_control_groups_reach_the_workers_of_limited_jobs_only(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        """Groups of a machine that has changed its mind."""

        asked = 0
        closed = False

        def make(self) -> None:
            self.asked += 1
            raise OSError(1, "not permitted")

        def close(self) -> None:
            self.closed = True

    groups = Refusing()
    monkeypatch.setattr(service.cgroups, "find", lambda: groups)

    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            spec = await anna.ready(function("def compute(n): return n"))
            anna.run(spec, {1: (1,)})
            assert (await anna.result(1))[1] == 1
            assert groups.asked == 0
            packed = shipping.dumps_arguments(anna.shipment, (2,), {})
            limited = JobSpec(2, 1, len(packed), options=JobOptions(memory=50 << 20))
            anna.send(msg.RunJobs(spec.id, [limited]), packed)
            assert (await anna.result(2))[1] == 2, "sampling is enough"
            assert groups.asked == 1
            assert not groups.closed

    run(work)
    assert groups.closed
