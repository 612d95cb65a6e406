"""Clients that speak to a shared scheduler over real links: who may do what, and what everybody hears."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sharedpool import HOLDER, ME, Client, Pool, submission, until

from dispy.errors import AuthenticationRejected
from dispy.model import (
    JobState,
    NodeInfo,
    ProcessId,
    Role,
)
from dispy.scheduler.events import NodeJoined, NodeLost
from dispy.secrets import find_credentials
from dispy.wire.inquiries import (
    AskJobs,
    AskPool,
    CancelFor,
    CancelTold,
    Explained,
    ExplainSubmitted,
    JobsTold,
    PoolTold,
)
from dispy.wire.sharing import (
    AckOver,
    CancelSubmitted,
    CloseCluster,
    ClusterDeclined,
    ClusterOver,
    ClusterSaid,
    JobsOver,
    JobsStored,
    OpenCluster,
)


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


def test_a_client_with_the_secret_of_nodes_is_refused_in_words(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        with pytest.raises(AuthenticationRejected, match="another secret for programs"):
            await Client(pool.port, find_credentials(secret="of nodes")).dial()

    run(test)


def test_a_full_disk_is_in_the_status_and_is_why_jobs_wait(run: Callable[..., None]) -> None:
    async def test(pool: Pool) -> None:
        client, opened = await pool.opened()
        client.link.send(*submission(opened, 1, [1]))
        await client.hears(JobsStored)
        pool.scheduler.store.problem = "the scheduler cannot write to its disk"
        client.link.send(AskPool(1))
        assert (await client.hears(PoolTold)).status.problem == "the scheduler cannot write to its disk"
        client.link.send(ExplainSubmitted(2, opened.computation.id, 1))
        sentence = (await client.hears(Explained)).sentence
        assert sentence.startswith("The scheduler cannot write to its disk. Job 1 waits")
        pool.scheduler.store.problem = ""
        client.link.close("done")

    run(test)


def test_a_node_that_is_lost_is_shown_until_it_is_back(run: Callable[..., None]) -> None:
    node, again = ProcessId("1" * 32), ProcessId("2" * 32)

    async def test(pool: Pool) -> None:
        handle = pool.scheduler.service.handle

        def states() -> list[tuple[str, str]]:
            return [(each.name, each.state) for each in pool.scheduler.status().nodes]

        handle(NodeJoined(node, NodeInfo(node, "n1", 2, "linux", ()), "127.0.0.9"))
        assert states() == [("n1", "free")]
        handle(NodeLost(node, "nothing answers at its port any more"))
        await until(lambda: states() == [("n1", "lost")])
        assert pool.scheduler.status().nodes[0].problem.endswith("(nothing answers at its port any more)")
        handle(NodeJoined(again, NodeInfo(again, "n1", 2, "linux", ()), "127.0.0.9"))
        assert states() == [("n1", "free")]

    run(test)
