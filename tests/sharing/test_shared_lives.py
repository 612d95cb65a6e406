"""Shared schedulers and their clients end, come back and are followed by others: what is left, and for how long."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from sharedpool import HOLDER, Pool, opening, submission, until

from dispy.errors import SettingsError
from dispy.node.workdir import Prefix
from dispy.scheduler.fairness import Charged
from dispy.secrets import find_credentials
from dispy.sharing import guests, running
from dispy.sharing.daemon import SharedScheduler
from dispy.sharing.settings import SharingSettings
from dispy.wire.sharing import (
    AckOver,
    CancelSubmitted,
    CloseCluster,
    ClusterAccepted,
    ClusterDeclined,
    ClusterOver,
    JobsOver,
    JobsStored,
    OpenCluster,
)


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


def test_a_directory_belongs_to_one_scheduler(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        second = SharedScheduler(pool.scheduler.settings)
        with pytest.raises(SettingsError, match="in use by another dispyscheduler"):
            await second.start()
        await second.close()

    run(test)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")


def started(prefix: Path, base_port: int, *, clean: bool) -> None:
    """A scheduler is started there, and ends."""

    async def live() -> None:
        scheduler = SharedScheduler(
            SharingSettings(prefix, credentials, credentials, interfaces=("lo",), base_port=base_port, clean=clean)
        )
        try:
            await scheduler.start()
        finally:
            await scheduler.close()

    credentials = find_credentials(secret="s")
    asyncio.run(live())


@pytest.mark.parametrize("clean", [False, True])
def test_a_directory_with_other_files_is_refused_and_left_as_it_is(
    tmp_path: Path, free_base_port: int, clean: bool
) -> None:
    names = ["blobs/mine.txt", "clusters/b", "sub/a", "thesis.txt"]
    put(tmp_path, *names)
    with pytest.raises(SettingsError, match=r"it holds blobs, which is not a dispyscheduler's; name one for the"):
        started(tmp_path, free_base_port, clean=clean)
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*") if each.is_file()) == names


def test_what_others_put_into_the_directory_later_stays(tmp_path: Path, free_base_port: int) -> None:
    prefix = tmp_path / "own"
    started(prefix, free_base_port, clean=False)
    (prefix / "blobs" / ("ab" * 32)).write_bytes(b"of a cluster that is gone")
    put(prefix, "thesis.txt", "sub/a", "blobs/mine.txt", "results/mine.txt", "passing/mine.txt")
    started(prefix, free_base_port, clean=False)
    assert [each.name for each in (prefix / "blobs").iterdir()] == ["mine.txt"]
    assert (prefix / "results" / "mine.txt").exists()
    assert (prefix / "passing" / "mine.txt").exists()
    started(prefix, free_base_port, clean=True)
    assert (prefix / "thesis.txt").exists()
    assert (prefix / "sub" / "a").exists()


def test_a_directory_of_a_node_is_refused_by_its_name(tmp_path: Path, free_base_port: int) -> None:
    node = Prefix.claim(tmp_path / "node")
    with pytest.raises(SettingsError, match="is not used: it belongs to a dispynode; name one for the dispyscheduler"):
        started(node.path, free_base_port, clean=True)
    node.release()


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


def test_a_successor_that_ends_jobs_is_named(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        client.link.send(*submission(opened, 1, [1, 2]))
        await client.hears(JobsStored)
        client.link.close("gone")
        successor = await pool.client()
        successor.link.send(OpenCluster(opened.computation, opened.token, HOLDER, recovers=True))
        await successor.hears(ClusterAccepted)
        successor.link.send(CloseCluster(opened.computation.id, terminate=True))
        over = await successor.hears(JobsOver)
        assert [each.cause for each in over.jobs] == ["cancelled before it started, by `dispy recover`"] * 2
        successor.link.close("done")

    run(test)


def test_fair_shares_are_as_they_were_after_a_restart(run: Callable[..., None]) -> None:
    opened = opening()

    async def before(pool: Pool) -> None:
        client = await pool.client()
        client.link.send(opened)
        await client.hears(ClusterAccepted)
        core = pool.scheduler.service.core
        core.restore_accounts(dict.fromkeys(core.accounts(), Charged(12.0, 34.0)))
        client.link.close("gone")

    async def after(pool: Pool) -> None:
        assert list(pool.scheduler.service.core.accounts().values()) == [Charged(12.0, 34.0)]

    run(before, after)
