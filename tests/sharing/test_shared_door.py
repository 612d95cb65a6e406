"""Users who may have only so many jobs, over real links: what is more waits, and nothing of it is lost."""

from __future__ import annotations

from collections.abc import Callable

from sharedpool import Pool, submission, until

from dispy.model import (
    JobSpec,
)
from dispy.wire.inquiries import (
    Explained,
    ExplainSubmitted,
)
from dispy.wire.sharing import (
    AckOver,
    CancelSubmitted,
    CloseCluster,
    ClusterAccepted,
    ClusterOver,
    ClusterSaid,
    JobsOver,
    JobsStored,
    SubmitJobs,
)


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
