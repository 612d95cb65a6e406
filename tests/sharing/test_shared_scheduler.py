"""A shared scheduler in this process, and clients that speak to it over real links: well, badly, twice, or not at all.

There are no nodes: jobs wait, or are cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import pwd
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from dispy.errors import AuthenticationRejected, SettingsError
from dispy.model import (
    BlobRef,
    ComputationId,
    ComputationSpec,
    FileSpec,
    Holder,
    JobOptions,
    JobSpec,
    JobState,
    ProcessId,
    Role,
)
from dispy.secrets import Credentials, find_admin_credentials, find_credentials
from dispy.sharing import guests, incoming, running, staging
from dispy.sharing import opening as opening_module
from dispy.sharing.daemon import SharedScheduler
from dispy.sharing.settings import SharingSettings
from dispy.wire.blobs import BlobExchange, BlobSources
from dispy.wire.blobsources import FileSource
from dispy.wire.link import Link, LinkSettings, dial
from dispy.wire.messages import AnyMessage
from dispy.wire.sharing import (
    AckOver,
    AskJobs,
    AskPool,
    CancelFor,
    CancelSubmitted,
    CancelTold,
    CloseCluster,
    ClusterAccepted,
    ClusterDeclined,
    ClusterOver,
    ClusterSaid,
    Explained,
    ExplainSubmitted,
    JobsOver,
    JobsStored,
    JobsTold,
    OpenCluster,
    PoolTold,
    SubmitJobs,
)

M = TypeVar("M")
ME = f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"
"""Who runs the tests, as the system proves."""
HOLDER = Holder("anna", "lab", 1, "program.py")


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 (of what happens on the other side nobody tells)
            await asyncio.sleep(0.01)


class Client:
    """A client (a `LinkHandler`) that keeps what it hears."""

    def __init__(self, port: int, credentials: Credentials, role: Role = Role.CLIENT) -> None:
        self.settings = LinkSettings(ProcessId(secrets.token_hex(16)), role, "test", credentials)
        self.port = port
        self.heard: list[Any] = []
        self.lost: list[str] = []
        self.sources = BlobSources()
        self.exchange: BlobExchange | None = None
        self.news = asyncio.Event()

    async def dial(self) -> Client:
        self.link = await dial("127.0.0.1", self.port, settings=self.settings, handler=self)
        return self

    def link_opened(self, link: Link) -> None:
        self.exchange = BlobExchange(link, self.sources)

    def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
        assert self.exchange is not None
        self.heard += [message for message, payload in messages if not self.exchange.message_arrived(message, payload)]
        self.news.set()

    def link_suspected(self, link: Link) -> None: ...

    def link_recovered(self, link: Link) -> None: ...

    def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
        self.lost.append(cause)
        self.news.set()

    async def hears(self, kind: type[M], count: int = 1) -> M:
        """The last of so many messages of a kind."""
        async with asyncio.timeout(10):
            while len(found := [each for each in self.heard if isinstance(each, kind)]) < count:
                self.news.clear()
                await self.news.wait()
        return found[count - 1]

    async def loses(self) -> None:
        async with asyncio.timeout(10):
            while not self.lost:
                self.news.clear()
                await self.news.wait()

    def all_of(self, kind: type[M]) -> list[M]:
        return [each for each in self.heard if isinstance(each, kind)]


def opening(name: str = "f", **more: Any) -> OpenCluster:
    spec = ComputationSpec(ComputationId(secrets.token_hex(16)), name, "program", program="/bin/true")
    return OpenCluster(spec, secrets.token_bytes(32), HOLDER, **more)


def submission(opened: OpenCluster, sequence: int, jobs: Sequence[int]) -> tuple[AnyMessage, Sequence[bytes]]:
    specs = [JobSpec(job, 0, 3) for job in jobs]
    return SubmitJobs(opened.computation.id, sequence, specs), [b"arg"] * len(jobs)


class Pool:
    """A scheduler, and what dials it."""

    def __init__(self, scheduler: SharedScheduler, credentials: Credentials, admin: Credentials | None) -> None:
        self.scheduler = scheduler
        self.credentials = credentials
        self.admin = admin
        self.port = scheduler.settings.client_port

    async def client(self, role: Role = Role.CLIENT) -> Client:
        credentials = self.credentials
        if role is Role.ADMIN:
            assert self.admin is not None
            credentials = self.admin
        return await Client(self.port, credentials, role).dial()

    async def opened(self, **more: Any) -> tuple[Client, OpenCluster]:
        client, opened = await self.client(), opening(**more)
        client.link.send(opened)
        assert (await client.hears(ClusterAccepted)).fresh
        return client, opened


Test = Callable[[Pool], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path, free_base_port: int) -> Callable[..., None]:
    """`run(test, **settings)`: the test with a scheduler, which ends after it."""
    credentials = find_credentials(secret="of clients")
    admin = find_admin_credentials(credentials, secret="of admins")
    usual = SharingSettings(
        tmp_path / "scheduler",
        find_credentials(secret="of nodes"),
        credentials,
        admin,
        interfaces=("lo",),
        base_port=free_base_port,
    )

    @contextlib.asynccontextmanager
    async def pool(**more: Any) -> AsyncIterator[Pool]:
        scheduler = SharedScheduler(replace(usual, **more))
        try:
            await scheduler.start()
            yield Pool(scheduler, credentials, admin)
        finally:
            await scheduler.close()

    def start(*tests: Test, **more: Any) -> None:
        async def main() -> None:
            for test in tests:  # each after a restart
                async with pool(**more) as there:
                    await test(there)

        asyncio.run(main())

    return start


def test_jobs_are_stored_cancelled_told_and_forgotten(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        cluster = opened.computation.id
        client.link.send(*submission(opened, 1, [5, 7]))
        assert (await client.hears(JobsStored)).sequence == 1
        client.link.send(CancelSubmitted(cluster, [7, 5, 99]))
        over = await client.hears(JobsOver)
        assert [(each.job, each.state) for each in over.jobs] == [(7, JobState.Cancelled), (5, JobState.Cancelled)]
        client.link.send(CloseCluster(cluster))
        client.link.send(AckOver(cluster, over.sequence))
        assert (await client.hears(ClusterOver)).cluster == cluster
        assert not pool.scheduler.opening.guests
        client.link.close("done")

    run(test)


def test_what_comes_twice_is_taken_once_and_a_gap_ends_the_link(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        for times in (1, 2):
            client.link.send(*submission(opened, 1, [1, 2]))
            await client.hears(JobsStored, times)
        client.link.send(*submission(opened, 2, [2, 3]))  # a number that was used
        await client.hears(JobsStored, 3)
        [guest] = pool.scheduler.opening.guests.values()
        assert sorted(guest.jobs) == [1, 2, 3]
        client.link.send(*submission(opened, 4, [4]))
        await client.loses()
        assert sorted(guest.jobs) == [1, 2, 3]
        assert guest.client is None

    run(test)


def test_a_client_that_comes_back_hears_what_is_stored_and_what_it_has_not_acknowledged(
    run: Callable[..., None],
) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        cluster = opened.computation.id
        for number in (1, 2):
            client.link.send(*submission(opened, number, [number]))
        client.link.send(CancelSubmitted(cluster, [1]))
        await client.hears(JobsOver)
        client.link.abort("pulled")
        await client.loses()
        client.heard.clear()
        await client.dial()
        client.link.send(opened)
        accepted = await client.hears(ClusterAccepted)
        assert (accepted.stored, accepted.fresh) == (2, False)
        again = await client.hears(JobsOver)
        assert (again.sequence, [each.job for each in again.jobs]) == (1, [1])
        client.link.close("done")

    run(test)


def test_another_program_gets_nothing_of_a_cluster(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        cluster = opened.computation.id
        client.link.send(*submission(opened, 1, [1, 2]))
        await client.hears(JobsStored)
        thief = await pool.client()
        thief.link.send(OpenCluster(opened.computation, bytes(32), HOLDER))
        assert "token" in (await thief.hears(ClusterDeclined)).reason
        thief.link.send(CancelSubmitted(cluster, [1]))
        thief.link.send(CloseCluster(cluster, terminate=True))
        thief.link.send(*submission(opened, 2, [3]))
        thief.link.send(AskJobs(1, (bytes(32),)))
        thief.link.send(CancelFor(2, (bytes(32),), cluster))
        thief.link.send(ExplainSubmitted(3, cluster, 1))
        assert (await thief.hears(JobsTold)).jobs == []
        refused = await thief.hears(CancelTold)
        assert refused.count == 0
        assert "its jobs are ended from where its program was started" in refused.sentence
        assert "not have that cluster open" in (await thief.hears(Explained)).sentence
        thief.link.send(AskPool(4))
        [shown] = (await thief.hears(PoolTold)).status.clusters
        assert (shown.name, shown.waiting, shown.mine) == ("f", 2, False)
        assert (shown.owner, shown.proved, shown.claim.user) == (ME, True, "anna")
        assert f"belongs to {ME} (says anna@lab): " in refused.sentence
        [guest] = pool.scheduler.opening.guests.values()
        assert guest.spec.user == f"{ME} (says anna@lab)"
        for each in (client, thief):
            each.link.close("done")

    run(test)


@pytest.mark.parametrize("how", ["token", "admin", "cooperative"])
def test_who_may_cancels(run: Callable[..., None], how: str) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        client.link.send(*submission(opened, 1, [1, 2]))
        await client.hears(JobsStored)
        other = await pool.client(Role.ADMIN if how == "admin" else Role.CLIENT)
        tokens = (opened.token,) if how == "token" else ()
        other.link.send(AskJobs(1, tokens))
        assert [each.job for each in (await other.hears(JobsTold)).jobs] == [1, 2]
        other.link.send(CancelFor(2, tokens, opened.computation.id, (2,)))
        assert (await other.hears(CancelTold)).count == 1
        by = f"`dispy cancel` of {ME}{', an admin' if how == 'admin' else ''}"
        assert (await client.hears(ClusterSaid)).sentence == f"1 job of f cancelled by {by}"
        assert (await client.hears(JobsOver)).jobs[0].cause == f"cancelled before it started, by {by}"
        other.link.send(CancelFor(3, tokens, opened.computation.id))
        assert (await other.hears(CancelTold, 2)).count == 1
        await until(lambda: sum(len(each.jobs) for each in client.all_of(JobsOver)) == 2)
        for each in (client, other):
            each.link.close("done")

    run(test, cooperative=how == "cooperative")


def test_a_successor_takes_over(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        client.link.send(*submission(opened, 1, [1]))
        await client.hears(JobsStored)
        successor = await pool.client()
        taken = OpenCluster(opened.computation, opened.token, HOLDER, recovers=True)
        successor.link.send(taken)
        assert not (await successor.hears(ClusterAccepted)).fresh
        assert "another process" in (await client.hears(ClusterDeclined)).reason
        successor.link.send(CancelSubmitted(opened.computation.id, [1]))
        over = await successor.hears(JobsOver)
        successor.link.send(AckOver(opened.computation.id, over.sequence))
        await successor.hears(ClusterOver)
        successor.link.send(taken)
        assert "does not know it" in (await successor.hears(ClusterDeclined)).reason
        for each in (client, successor):
            each.link.close("done")

    run(test)


def test_files_are_fetched_and_a_file_that_is_not_what_it_says_is_refused(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client = await pool.client()
        blob = client.sources.offer_bytes(b"content", hashed=True)
        wrong = BlobRef(bytes(32), 7)
        for ref in (blob, wrong):
            spec = ComputationSpec(
                ComputationId(secrets.token_hex(16)), "f", "program", program="p", files=(FileSpec("p", ref),)
            )
            client.link.send(OpenCluster(spec, secrets.token_bytes(32), HOLDER))
        await client.hears(ClusterAccepted)
        assert "cannot be fetched" in (await client.hears(ClusterDeclined)).reason
        stored = pool.scheduler.settings.prefix / "blobs" / blob.name.hex()
        assert stored.read_bytes() == b"content"
        [guest] = pool.scheduler.opening.guests.values()
        client.link.send(CloseCluster(guest.id))
        await client.hears(ClusterOver)
        await until(lambda: not stored.exists())
        client.link.close("done")

    run(test)


def test_too_much_that_is_not_stored_ends_the_link(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "UNSTORED_LIMIT", 100)

    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        specs = [JobSpec(1, 0, 1000)]
        client.link.send(SubmitJobs(opened.computation.id, 1, specs), [bytes(1000)])
        await client.loses()
        other, _ = await pool.opened()
        other.link.close("done")

    run(test)


@pytest.mark.parametrize(
    "options",
    [JobOptions(cpus=-1), JobOptions(memory=-1), JobOptions(timeout=float("nan")), JobOptions(priority=1 << 60)],
)
def test_options_that_nobody_could_obey_end_the_link(run: Callable[..., None], options: JobOptions) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        client.link.send(SubmitJobs(opened.computation.id, 1, [JobSpec(1, 0, 0, None, options)]))
        await client.loses()
        assert not pool.scheduler.pending

    run(test)


@pytest.mark.parametrize(("size", "payload"), [(3, b""), (-1, b""), (1, b"12")])
def test_a_batch_that_contradicts_itself_ends_the_link(run: Callable[..., None], size: int, payload: bytes) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        client.link.send(SubmitJobs(opened.computation.id, 1, [JobSpec(1, 0, size)]), [payload])
        await client.loses()
        assert not pool.scheduler.pending

    run(test)


def test_the_cluster_of_a_client_that_is_gone_is_given_up_when_nothing_is_pending(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        client.link.send(*submission(opened, 1, [1]))
        await client.hears(JobsStored)
        client.link.close("gone")
        [guest] = pool.scheduler.opening.guests.values()
        await until(lambda: guest.client is None)
        assert not guest.may_rest
        gone_at, guest.gone_at = guest.gone_at, -math.inf
        pool.scheduler.opening.give_up_forsaken()
        assert not guest.is_over
        guest.gone_at = gone_at
        guest.cancel([1])
        pool.scheduler.opening.give_up_forsaken()
        assert not guest.is_over
        guest.gone_at = -math.inf
        pool.scheduler.opening.give_up_forsaken()
        await until(lambda: guest.is_over)
        pool.scheduler.opening.give_up_forsaken()
        assert not pool.scheduler.opening.guests

    run(test)


def test_after_a_restart_everything_is_there(run: Callable[..., None]) -> None:
    opened = opening(exclusive=True)
    cluster = opened.computation.id
    numbers: list[int] = []

    async def before(pool: Pool) -> None:
        client = await pool.client()
        client.link.send(opened)
        await client.hears(ClusterAccepted)
        client.link.send(*submission(opened, 1, [1, 2, 3]))
        await client.hears(JobsStored)
        client.link.send(CancelSubmitted(cluster, [2]))
        await client.hears(JobsOver)
        numbers.extend(record.job for record in pool.scheduler.opening.guests[cluster].jobs.values())
        assert "2 pending jobs" in pool.scheduler.left()

    async def after(pool: Pool) -> None:
        guest = pool.scheduler.opening.guests[cluster]
        assert [record.job for record in guest.jobs.values()] == numbers
        assert guest.exclusive
        client = await pool.client()
        client.link.send(opened)
        assert (await client.hears(ClusterAccepted)).stored == 1
        over = await client.hears(JobsOver)
        assert [each.job for each in over.jobs] == [2]
        client.link.send(AckOver(cluster, over.sequence))
        client.link.send(*submission(opened, 2, [4]))
        await client.hears(JobsStored)
        assert guest.jobs[4].job > max(numbers)
        client.link.send(CloseCluster(cluster, terminate=True))
        over = await client.hears(JobsOver, 2)
        assert sorted(each.job for each in over.jobs) == [1, 3, 4]
        client.link.send(AckOver(cluster, over.sequence))
        await client.hears(ClusterOver)
        client.link.close("done")

    async def last(pool: Pool) -> None:
        assert not pool.scheduler.opening.guests
        assert pool.scheduler.left() == ""

    run(before, after, last)


def test_a_client_with_the_secret_of_nodes_is_refused_in_words(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        with pytest.raises(AuthenticationRejected, match="another secret for programs"):
            await Client(pool.port, find_credentials(secret="of nodes")).dial()

    run(test)


def test_a_directory_belongs_to_one_scheduler(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        second = SharedScheduler(pool.scheduler.settings)
        with pytest.raises(SettingsError, match="in use by another dispyscheduler"):
            await second.start()
        await second.close()

    run(test)


def test_what_two_programs_have_in_common_is_offered_all_the_time_and_kept_for_the_second(
    run: Callable[..., None],
) -> None:
    async def test(pool: Pool) -> None:
        clients = [await pool.client() for _ in range(3)]
        first, second, silent = clients
        blob = first.sources.offer_bytes(b"content", hashed=True)
        second.sources.offer_bytes(b"content", hashed=True)
        silent.exchange = None
        openings = [
            OpenCluster(
                ComputationSpec(
                    ComputationId(secrets.token_hex(16)), "f", "program", program="p", files=(FileSpec("p", blob),)
                ),
                secrets.token_bytes(32),
                HOLDER,
            )
            for _ in clients
        ]
        silent.messages_arrived = lambda link, messages: None  # type: ignore[method-assign]
        silent.link.send(openings[2])  # it never sends the file
        sources = pool.scheduler.service.links.sources
        first.link.send(openings[0])
        await first.hears(ClusterAccepted)
        source = sources.find(blob.name)
        assert isinstance(source, FileSource)
        second.link.send(openings[1])
        await second.hears(ClusterAccepted)
        os.close(source.open())  # as it was offered first
        first.link.send(CloseCluster(openings[0].computation.id))
        await first.hears(ClusterOver)
        await asyncio.sleep(0)
        again = sources.find(blob.name)
        assert isinstance(again, FileSource)
        os.close(again.open())
        for each in clients:
            each.link.close("done")

    run(test)


def test_many_jobs_are_ended_by_portions(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "PORTION", 10)

    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        cluster = opened.computation.id
        client.link.send(*submission(opened, 1, range(1, 101)))
        client.link.send(CancelSubmitted(cluster, list(range(1, 36))))
        await until(lambda: sum(len(each.jobs) for each in client.all_of(JobsOver)) == 35)
        client.link.send(CloseCluster(cluster, terminate=True))
        await until(lambda: sum(len(each.jobs) for each in client.all_of(JobsOver)) == 100)
        assert {each.state for over in client.all_of(JobsOver) for each in over.jobs} == {JobState.Cancelled}
        client.link.send(AckOver(cluster, len(client.all_of(JobsOver))))
        await client.hears(ClusterOver)
        client.link.close("done")

    run(test)


def test_a_start_that_fails_leaves_nothing_and_says_one_sentence(
    tmp_path: Path, free_base_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = find_credentials(secret="s")
    settings = SharingSettings(
        tmp_path, credentials, credentials, interfaces=("lo",), base_port=free_base_port, use=("a:99999999",)
    )
    with pytest.raises(SettingsError, match="--node 'a:99999999'"):
        running.run(settings, daemon=True)
    with socket.create_server(("127.0.0.1", free_base_port + 2)):
        assert running.run(replace(settings, use=("*",)), daemon=True) == 1
    assert f"TCP port {free_base_port + 2}" in caplog.text


def test_a_cluster_without_jobs_holds_nobody_back_while_its_program_is_away(run: Callable[..., None]) -> None:
    opened = opening(exclusive=True)
    cluster = opened.computation.id

    async def before(pool: Pool) -> None:
        client = await pool.client()
        client.link.send(opened)
        await client.hears(ClusterAccepted)
        client.link.send(*submission(opened, 1, [1]))
        client.link.send(CancelSubmitted(cluster, [1]))
        await client.hears(JobsOver)
        client.link.abort("pulled")
        guest = pool.scheduler.opening.guests[cluster]
        await until(lambda: guest.client is None)
        pool.scheduler.opening.give_up_forsaken()
        assert not guest.is_resting
        guest.gone_at -= guests.REST_AFTER
        pool.scheduler.opening.give_up_forsaken()
        await until(lambda: guest.is_over)
        assert not pool.scheduler.service.core.snapshot().clusters
        assert cluster in pool.scheduler.opening.guests

    async def after(pool: Pool) -> None:
        client = await pool.client()
        client.link.send(opened)
        assert (await client.hears(ClusterAccepted)).stored == 1
        client.link.send(*submission(opened, 2, [2]))
        await client.hears(JobsStored)
        [view] = pool.scheduler.service.core.snapshot().clusters
        assert (view.waiting, view.exclusive) == (1, True)
        assert [each.job for each in (await client.hears(JobsOver)).jobs] == [1]
        client.link.send(CancelSubmitted(cluster, [2]))
        last = await client.hears(JobsOver, 2)
        client.link.send(CloseCluster(cluster))
        client.link.send(AckOver(cluster, last.sequence))
        await client.hears(ClusterOver)
        client.link.close("done")

    run(before, after)


def test_what_cannot_be_kept_for_a_moment_is_fetched_again(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(24, "Too many open files"), OSError(28, "No space left on device")]
    sync = staging._sync

    def failing(path: Path) -> None:
        if failures:
            raise failures.pop()
        sync(path)

    for module in (opening_module, incoming):
        monkeypatch.setattr(module, "AGAIN_AFTER", 0.01)
    monkeypatch.setattr(staging, "_sync", failing)

    async def test(pool: Pool) -> None:
        client = await pool.client()
        blob = client.sources.offer_bytes(b"content", hashed=True)
        spec = ComputationSpec(
            ComputationId(secrets.token_hex(16)), "f", "program", program="p", files=(FileSpec("p", blob),)
        )
        client.link.send(OpenCluster(spec, secrets.token_bytes(32), HOLDER))
        assert "No space left" in (await client.hears(ClusterSaid)).sentence
        await client.hears(ClusterAccepted)
        failures.append(OSError(24, "Too many open files"))
        arguments = client.sources.offer_bytes(b"arguments")
        client.link.send(SubmitJobs(spec.id, 1, [JobSpec(1, 0, 0, arguments)]))
        await client.hears(JobsStored)
        [record] = pool.scheduler.opening.guests[spec.id].jobs.values()
        assert record.blob is not None
        assert pool.scheduler.pool.staging.arguments_file(record.blob).read_bytes() == b"arguments"
        client.link.close("done")

    run(test)


def test_what_is_more_than_a_user_may_have_waits_at_the_door(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        cluster = opened.computation.id
        client.link.send(*submission(opened, 1, [1, 2, 3]))
        client.link.send(*submission(opened, 2, [4]))
        client.link.send(*submission(opened, 3, [5]))
        said = (await client.hears(ClusterSaid)).sentence
        assert "has 3 pending jobs, and this scheduler takes in more" in said
        assert "--max_jobs_per_user" in said
        [guest] = pool.scheduler.opening.guests.values()
        assert (await client.hears(JobsStored)).sequence == 1
        assert sorted(guest.jobs) == [1, 2, 3]
        for number, job in ((1, 5), (2, 0), (3, 6)):
            client.link.send(ExplainSubmitted(number, cluster, job))
        sentence = (await client.hears(Explained, 1)).sentence
        assert sentence.startswith("Job 5 waits until the scheduler takes it in: user ")
        assert "Further jobs wait to be taken in" in (await client.hears(Explained, 2)).sentence
        assert "has not been submitted yet" in (await client.hears(Explained, 3)).sentence
        client.link.send(CancelSubmitted(cluster, [1]))
        await client.hears(JobsOver)
        assert sorted(guest.jobs) == [2, 3], "not fewer than two"
        client.link.send(CancelSubmitted(cluster, [2, 5]))
        assert (await client.hears(JobsStored, 2)).sequence == 2
        assert (await client.hears(JobsStored, 3)).sequence == 3, "of 5 nothing is left to be run"
        await until(lambda: [each.job for message in client.all_of(JobsOver) for each in message.jobs] == [1, 2, 5])
        assert sorted(guest.jobs) == [3, 4]
        assert len(client.all_of(ClusterSaid)) == 1
        client.link.close("done")

    run(test, max_jobs_per_user=2)


def test_clusters_of_one_user_share_what_it_may_have_and_a_door_outlives_no_link(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client, first = await pool.opened()
        client.link.send(*submission(first, 1, [1]))
        await client.hears(JobsStored)
        other, second = await pool.opened()
        other.link.send(*submission(second, 1, [1]))
        other.link.send(CloseCluster(second.computation.id))
        await other.hears(ClusterSaid)
        other.link.abort("pulled")
        await other.loses()
        guest = pool.scheduler.opening.guests[second.computation.id]
        await until(lambda: not guest.incoming.waits)
        client.link.send(CancelSubmitted(first.computation.id, [1]))
        await client.hears(JobsOver)
        assert not guest.jobs, "what its client has to send again is not let in"
        client.link.send(*submission(first, 2, [2]))
        await client.hears(JobsStored, 2)
        other.heard.clear()
        await other.dial()
        other.link.send(second)
        assert (await other.hears(ClusterAccepted)).stored == 0
        other.link.send(*submission(second, 1, [1]))
        other.link.send(CloseCluster(second.computation.id))
        client.link.send(CancelSubmitted(first.computation.id, [2]))
        assert (await other.hears(JobsStored)).sequence == 1
        other.link.send(CancelSubmitted(second.computation.id, [1]))
        other.link.send(AckOver(second.computation.id, (await other.hears(JobsOver)).sequence))
        await other.hears(ClusterOver)
        client.link.close("done")
        other.link.close("done")

    run(test, max_jobs_per_user=1)


def test_a_cluster_that_is_ended_takes_in_no_more(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        cluster = opened.computation.id
        client.link.send(*submission(opened, 1, [1]))
        client.link.send(*submission(opened, 2, [2]))
        client.link.send(CloseCluster(cluster))
        client.link.send(CloseCluster(cluster, terminate=True))
        over = await client.hears(JobsOver)
        assert [each.job for each in over.jobs] == [1]
        client.link.send(*submission(opened, 2, [2]))  # as after a break
        client.link.send(AckOver(cluster, over.sequence))
        await client.hears(ClusterOver)
        assert [message.sequence for message in client.all_of(JobsStored)] == [1]
        assert not pool.scheduler.pool.door.is_shut
        client.link.close("done")

    run(test, max_jobs_per_user=1)


def test_arguments_at_the_door_are_fetched_when_they_are_let_in(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        cluster = opened.computation.id
        blob = client.sources.offer_bytes(b"x" * 100_000)
        client.link.send(*submission(opened, 1, [1]))
        client.link.send(SubmitJobs(cluster, 2, [JobSpec(2, 0, 0, blob)]))
        client.link.send(*submission(opened, 3, [3]))
        await client.hears(ClusterSaid)
        client.link.send(CancelSubmitted(cluster, [1]))
        assert (await client.hears(JobsStored, 2)).sequence == 2
        client.link.send(CancelSubmitted(cluster, [2]))
        assert (await client.hears(JobsStored, 3)).sequence == 3
        client.link.close("done")

    run(test, max_jobs_per_user=1)
