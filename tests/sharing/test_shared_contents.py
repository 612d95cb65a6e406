"""What clients give to a shared scheduler over real links: files, arguments, too much, and what contradicts itself."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from sharedpool import HOLDER, Pool, submission, until

from dispy.model import (
    BlobRef,
    ComputationId,
    ComputationSpec,
    FileSpec,
    JobOptions,
    JobSpec,
    JobState,
)
from dispy.sharing import guests, incoming, staging
from dispy.sharing import opening as opening_module
from dispy.wire.blobsources import FileSource
from dispy.wire.inquiries import Explained, ExplainSubmitted
from dispy.wire.sharing import (
    AckOver,
    CancelSubmitted,
    CloseCluster,
    ClusterAccepted,
    ClusterDeclined,
    ClusterOver,
    ClusterSaid,
    JobsOver,
    JobsStored,
    OpenCluster,
    SubmitJobs,
)


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


def test_a_lack_of_room_is_said_once_for_all_jobs_of_a_batch(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []
    has_room = False
    sync = staging._sync

    def failing(path: Path) -> None:
        tried.append(path)
        if not has_room:
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(incoming, "AGAIN_AFTER", 0.01)

    async def test(pool: Pool) -> None:
        nonlocal has_room
        client, opened = await pool.opened()
        cluster = opened.computation.id
        monkeypatch.setattr(staging, "_sync", failing)
        blobs = [client.sources.offer_bytes(b"arguments %d" % job) for job in (1, 2, 3)]
        client.link.send(SubmitJobs(cluster, 1, [JobSpec(job, 0, 0, blob) for job, blob in enumerate(blobs, 1)]))
        assert "(others may wait with it)" in (await client.hears(ClusterSaid)).sentence
        await until(lambda: len(tried) > 12)
        client.link.send(ExplainSubmitted(1, cluster, 2))
        sentence = (await client.hears(Explained)).sentence
        assert sentence == "Job 2 waits until the scheduler has stored what it needs."
        has_room = True
        await client.hears(JobsStored)
        assert len(client.all_of(ClusterSaid)) == 1
        client.link.close("done")

    run(test)


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
