"""Who gets what of nodes that several users share: turns, shares of slot-seconds, quotas, exclusive clusters."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pool import Pool

from dispy.model import ComputationId, ComputationSpec, JobState
from dispy.scheduler import events
from dispy.scheduler.clusters import ClusterRecord
from dispy.scheduler.fairness import UNMEASURED, Account, Charged, Line, Party, Policy, Turns
from dispy.scheduler.jobs import JobQueue, JobRecord

WINDOW = 10.0
"""Seconds in which shares are as they ought to be."""


def cluster_of(account: Account, number: int = 1) -> ClusterRecord:
    id = ComputationId(f"{number:032x}")
    cluster = ClusterRecord(ComputationSpec(id, f"f{number}", "function"), False, True, 0.01, account)
    account.clusters[id] = cluster
    return cluster


def fill(cluster: ClusterRecord, *numbers: int) -> JobQueue:
    for number in numbers:
        cluster.plain.append(JobRecord(number, cluster.id, b""))
    return cluster.plain


def shares(pool: Pool, start: float, end: float) -> dict[str, float]:
    """What each user has had of all slot-seconds that were had."""
    users = sorted(set(pool.users.values()))
    used = {user: pool.used(user, start, end) for user in users}
    return {user: used[user] / sum(used.values()) for user in users}


# ---- the line ----


class Item:
    def __init__(self, rank: float) -> None:
        self.rank: tuple[float, float] | None = (rank, 0)
        self.entry: tuple[float, float] | None = None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.sampled_from(["later", "sooner", "gone", "take"]))))
def test_the_first_of_a_line_is_the_one_of_least_rank(steps: list[tuple[int, int, str]]) -> None:
    items = [Item(number) for number in range(6)]
    line: Line[Item] = Line(lambda item: item.rank)
    for item in items:
        assert item.rank is not None
        line.offer(item, item.rank)
    here = set(items)
    for index, by, what in steps:
        item = items[index]
        before = item.rank or (index, 0)
        if what == "later" and item.rank is not None:
            item.rank = before[0] + by, 0
        elif what == "sooner":
            item.rank = before[0] - by, 0
            line.offer(item, item.rank)
            here.add(item)
        elif what in ("gone", "later"):
            item.rank = None
            here.discard(item)
        elif (taken := line.take()) is not None:
            assert taken in here
            here.discard(taken)
        waiting = [each for each in here if each.rank is not None and each.entry is not None]
        first = line.first()
        least = min((each.rank for each in waiting if each.rank is not None), default=None)
        assert (None if first is None else first.rank) == least


def test_a_line_forgets_stale_entries() -> None:
    line: Line[Item] = Line(lambda item: item.rank)
    item = Item(1000)
    for rank in range(999, 0, -1):
        item.rank = rank, 0
        line.offer(item, item.rank)
    assert len(line) == 1
    assert len(line._heap) < 100
    line.leave(item)
    line.leave(item)
    assert (len(line), line.first(), line.take()) == (0, None, None)


# ---- accounts ----


def test_what_is_handed_out_is_charged_at_once_and_corrected_when_it_is_known() -> None:
    turns, account = Turns(Policy.FAIR), Account("anna")
    cluster = cluster_of(account)
    party = turns.want(cluster, fill(cluster, 1, 2, 3))
    turns.charge(party, 2, 0.25)
    assert (account.due, account.cpus, turns.cpus) == (0.5, 2, 2)
    turns.correct(cluster, 1.0 - 0.5)
    turns.release(cluster, 2)
    assert (account.due, account.cpus, turns.cpus) == (1.0, 0, 0)


def test_a_job_that_occupies_several_cpus_is_charged_for_each() -> None:
    turns, account = Turns(Policy.FAIR), Account("anna")
    cluster = cluster_of(account)
    party = turns.want(cluster, fill(cluster, 1))
    (record,) = cluster.plain.take(1)
    record.cpus, record.charge = 4, 2.0
    turns.charge(party, 4, 0.5)
    assert (account.due, account.cpus) == (2.0, 4)
    turns.give_back(cluster, record)
    assert (account.due, account.cpus, record.charge) == (0.0, 0, 0.0)


def test_who_comes_back_starts_level_with_the_least_of_those_that_wait() -> None:
    turns = Turns(Policy.FAIR)
    users = {name: cluster_of(Account(name), number) for number, name in enumerate(("anna", "bert", "carl", "dora"))}
    for name, due in (("anna", 7.0), ("bert", 5.0)):
        users[name].account.due = due
        turns.want(users[name], fill(users[name], 1))
    users["bert"].account.due = 5.0
    turns.stay(turns.party_of(users["bert"]))
    turns.want(users["carl"], fill(users["carl"], 2))
    assert users["carl"].account.due == 5.0
    users["dora"].account.due = 9.0
    turns.want(users["dora"], fill(users["dora"], 3))
    assert users["dora"].account.due == 9.0, "what one had too much is not forgotten"


def test_after_a_restart_users_stand_where_they_stood() -> None:
    turns = Turns(Policy.FAIR)
    much, little, idle = (Account(user) for user in ("much", "little", "idle"))
    for account in (much, little, idle):
        cluster = cluster_of(account)
        account.clusters[cluster.id] = cluster
        if account is not idle:
            queue = fill(cluster, 1, 2, 3)
            turns.want(cluster, queue)
    turns.restore(much, Charged(100.0, 130.0))
    turns.restore(little, Charged(10.0, 40.0))
    turns.restore(idle, Charged(1.0, 5.0))
    first = turns.line.first()
    assert first is not None
    assert (first.account, much.used, much.due, little.due) == (little, 100.0, 130.0, 40.0)
    for account in (much, little, idle):
        cluster = next(iter(account.clusters.values()))
        turns.want(cluster, fill(cluster, 4))
    assert (much.due, little.due, idle.due) == (130.0, 40.0, 40.0), "only who waited for nothing starts level"


def test_time_in_which_nobody_waited_is_no_credit() -> None:
    """Anna had the nodes to herself for a while; Bert, who wanted nothing, is not owed anything."""
    turns = Turns(Policy.FAIR)
    anna, bert = cluster_of(Account("anna"), 1), cluster_of(Account("bert"), 2)
    party = turns.want(anna, fill(anna, 1))
    turns.charge(party, len(anna.plain.take(1)), 100.0)
    assert turns.line.first() is None
    turns.want(bert, fill(bert, 2))
    assert bert.account.due == 100.0
    turns.want(anna, fill(anna, 3))
    assert turns.line.first() is turns.party_of(bert), "it was served longest ago"


def test_an_estimate_starts_with_the_first_job_and_follows_the_others() -> None:
    cluster = cluster_of(Account("anna"))
    assert cluster.estimate == UNMEASURED
    cluster.reckon(2.0, 1)
    assert cluster.estimate == 2.0
    cluster.reckon(16.0, 16)
    assert cluster.estimate == pytest.approx(1.5)
    cluster.reckon(0.0, 10**9)
    assert cluster.estimate > 0


@pytest.mark.parametrize("policy", list(Policy))
def test_who_has_nothing_that_waits_has_no_rank(policy: Policy) -> None:
    turns = Turns(policy)
    assert turns.rank(Party(Account("anna"), 0)) is None


# ---- shares ----


def test_users_get_equal_slot_seconds_whatever_their_jobs_take() -> None:
    pool = Pool([3, 3, 2], check=False)
    for user, seconds, number in (("short", 0.01, 6000), ("middle", 0.1, 800), ("long", 0.5, 180)):
        pool.submit(pool.open(user), number, seconds)
    pool.run(20.0)
    for start in range(0, 10, 2):
        had = shares(pool, start, start + WINDOW)
        assert max(had.values()) < 1.03 / 3, f"from {start} s on: {had}"
        assert min(had.values()) > 0.97 / 3, f"from {start} s on: {had}"
    together = sum(pool.used(user, 0.0, 20.0) for user in ("short", "middle", "long"))
    assert together > 0.95 * 20 * 8, "and no CPU is idle"


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_exact_within_one_longest_job_of_each_cpu(seed: int) -> None:
    """Of users whose jobs are of one kind each, from when each has had its first until the first has no more."""
    kinds = [(0.3, 1.0, 0.2), (0.05, 0.05, 1.0), (0.7, 0.04, 0.04)][seed]
    pool = Pool([2, 1, 1], check=False)
    for user, seconds in zip("abc", kinds, strict=True):
        pool.submit(pool.open(user), int(30 / seconds), seconds)
    pool.run(20.0)
    base = {user: pool.used(user, 0.0, 3.0) for user in "abc"}
    for end in (5.0, 8.0, 13.0, 20.0):
        had = [pool.used(user, 0.0, end) - base[user] for user in "abc"]
        assert max(had) - min(had) <= 2 * max(kinds) + 0.1, f"after {end} s: {had}"


def test_a_user_with_many_clusters_gets_no_more_than_one_with_one() -> None:
    pool = Pool([4], check=False)
    for _ in range(5):
        pool.submit(pool.open("many"), 200, 0.1)
    pool.submit(pool.open("one"), 1000, 0.1)
    pool.run(WINDOW)
    assert shares(pool, 1.0, WINDOW)["one"] == pytest.approx(0.5, abs=0.03)


def test_within_a_user_priority_counts_and_then_order() -> None:
    pool = Pool([1])
    first, second = pool.open("anna"), pool.open("anna")
    pool.submit(first, 1, 0.1)
    low = pool.submit(first, 1, 0.1)
    middle = pool.submit(second, 1, 0.1)
    high = pool.submit(second, 1, 0.1, priority=1)
    pool.run_all()
    started = {job: pool.jobs[job].started_at for job in (*high, *low, *middle)}
    assert sorted(started, key=started.__getitem__) == [*high, *low, *middle]


def test_jobs_that_need_several_cpus_are_charged_for_them() -> None:
    pool = Pool([4], check=False)
    pool.submit(pool.open("wide"), 200, 0.1, cpus=4)
    pool.submit(pool.open("narrow"), 2000, 0.1)
    pool.run(WINDOW + 2)
    had = shares(pool, 2.0, WINDOW + 2)
    assert had["wide"] == pytest.approx(0.5, abs=0.05), "in slot-seconds, four of which a second of a wide job takes"


@pytest.mark.parametrize("seconds", [0.002, 0.01, 0.5])
def test_a_single_job_of_a_new_user_starts_with_the_next_cpu_that_becomes_free(seconds: float) -> None:
    pool = Pool([3, 3, 2], check=False)
    pool.submit(pool.open("busy"), 10_000 if seconds < 0.1 else 500, seconds)
    new = pool.open("new")
    pool.run(1.3)
    (job,) = pool.submit(new, 1, 0.01)
    pool.run(2.0)
    # what lies at a node may begin first: 10 ms of work for each CPU at most
    assert 0 <= pool.jobs[job].started_at - 1.3 < seconds + 0.012


def test_what_was_sent_ahead_by_mistake_is_called_back_for_a_new_user() -> None:
    """Short jobs were measured, and those that follow are long: many of them lie at nodes."""
    pool = Pool([2, 2], check=False)
    busy = pool.open("busy")
    pool.submit(busy, 400, 0.001)
    pool.run_all()
    pool.submit(busy, 200, 5.0)
    pool.run(pool.now + 1.0)
    (job,) = pool.submit(pool.open("new"), 1, 0.01)
    pool.run(pool.now + 20.0)
    ends = sorted(known.ended_at for known in pool.jobs.values() if known.seconds == 5.0 and known.ended_at > 0)
    assert pool.jobs[job].started_at < ends[0] + 0.01


@pytest.mark.parametrize(("was", "now"), [(0.01, 0.5), (0.002, 1.0), (None, 1.0)])
def test_estimates_that_are_far_too_low_cost_the_others_little(was: float | None, now: float) -> None:
    pool = Pool([3, 3, 2], check=False)
    wrong, right = pool.open("wrong"), pool.open("right")
    if was is not None:
        pool.submit(wrong, 200, was)
    pool.submit(right, 20, 0.2)
    pool.run_all()
    pool.submit(right, 1000, 0.2)
    pool.run(pool.now + 1.0)
    pool.submit(wrong, 400, now)
    start = pool.now
    pool.run(start + WINDOW)
    assert shares(pool, start, start + WINDOW)["right"] == pytest.approx(0.5, abs=0.1)


# ---- other policies ----


def test_the_cluster_that_was_served_longest_ago_is_next() -> None:
    pool = Pool([1], Policy.FAIR_CLUSTER)
    clusters = [pool.open("anna"), pool.open("anna"), pool.open("bert")]
    for cluster in clusters:
        pool.submit(cluster, 4, 0.1)
    pool.run_all()
    order = sorted(pool.jobs.values(), key=lambda job: job.started_at)
    assert [job.cluster for job in order] == clusters * 4


def test_the_cluster_that_was_made_first_is_next() -> None:
    pool = Pool([1], Policy.EARLY_CLUSTER)
    early, late = pool.open("anna"), pool.open("bert")
    pool.submit(late, 3, 0.1)
    pool.run(0.05)
    pool.submit(early, 3, 0.1)
    pool.run_all()
    order = sorted(pool.jobs.values(), key=lambda job: job.started_at)
    assert [job.cluster for job in order] == [late, early, early, early, late, late]


@pytest.mark.parametrize("quota", [0, 1])
def test_first_come_first_served_with_quotas_and_without(quota: int) -> None:
    pool = Pool([1], Policy.FIFO, max_cpus_per_user=quota)
    clusters = [pool.open("anna"), pool.open("bert")]
    jobs = [pool.submit(clusters[number % 2], 1, 0.1)[0] for number in range(6)]
    pool.run_all()
    assert sorted(jobs, key=lambda job: pool.jobs[job].started_at) == jobs


# ---- exclusive clusters ----


def test_an_exclusive_cluster_waits_for_those_before_it_and_the_others_for_it() -> None:
    pool = Pool([2])
    before, idle = pool.open("anna"), pool.open("anna")
    pool.submit(before, 4, 1.0)
    pool.run(0.1)
    alone = pool.open("bert", exclusive=True)
    after = pool.open("carl")
    mine = pool.submit(alone, 1, 1.0)
    late = pool.submit(after, 2, 1.0)
    pool.run(0.2)
    explain = pool.core.explain
    whose = f"cluster of anna ({before[:8]}) of anna"
    assert f"alone (exclusive), and clusters before it have jobs left: {whose} has 4 jobs" in explain(mine[0])
    assert explain(late[1]) == (
        f"Job {late[1]} waits: cluster of bert of bert is to run alone before it (exclusive)."
    ), "behind how many others of its own it waits is no matter"
    assert not any(pool.core.lacks_nodes(job) for job in (*mine, *late)), "nor which nodes refuse"
    assert [view.state for view in pool.core.snapshot().clusters] == ["open", "open", "waiting", "waiting"]
    pool.run(2.5)
    assert pool.at_work("bert") == 1
    again = pool.submit(idle, 1, 1.0)
    pool.run(2.6)
    assert "cluster of bert of bert runs alone until it is over (exclusive)" in explain(again[0])
    assert (pool.at_work("anna"), pool.at_work("carl")) == (0, 0)
    pool.run(5.0)
    assert not pool.at_work("carl"), "it is still open"
    pool.close(alone)
    pool.run_all()
    assert min(pool.jobs[job].started_at for job in (*late, *again)) > max(pool.jobs[job].ended_at for job in mine)
    assert all(view.state == "open" for view in pool.core.snapshot().clusters)


def test_exclusive_clusters_take_turns_in_their_order() -> None:
    pool = Pool([2])
    clusters = [pool.open(user, exclusive=True) for user in ("anna", "bert", "carl")]
    for cluster in reversed(clusters):
        pool.submit(cluster, 3, 0.5)
        pool.close(cluster)
    pool.run_all()
    spans = [
        [(job.started_at, job.ended_at) for job in pool.jobs.values() if job.cluster == cluster] for cluster in clusters
    ]
    for former, latter in itertools.pairwise(spans):
        assert max(end for _, end in former) < min(start for start, _ in latter)


def test_an_exclusive_cluster_that_is_closed_while_it_waits_holds_nobody_up() -> None:
    pool = Pool([1])
    first = pool.open("anna")
    pool.submit(first, 2, 1.0)
    alone = pool.open("bert", exclusive=True)
    after = pool.submit(pool.open("carl"), 1, 1.0)
    pool.close(alone)
    pool.run(0.1)
    pool.run_all()
    assert pool.jobs[after[0]].ended_at > 0


# ---- what is said ----


def waits(pool: Pool, cluster: ComputationId) -> str:
    return pool.core.explain_cluster(cluster)


def test_whose_turn_it_is_is_said() -> None:
    pool = Pool([2])
    first, second = pool.open("anna"), pool.open("anna")
    pool.submit(first, 40, 1.0)
    pool.submit(second, 3, 1.0)
    pool.run(0.1)
    assert "all 2 CPUs of 1 node are busy" in waits(pool, first)
    assert "next CPU" not in waits(pool, first), "it is the next"
    assert ", which has submitted jobs before it (" in waits(pool, second)
    other = pool.open("bert")
    pool.submit(other, 40, 1.0)
    assert "; the next CPU is for user bert, who " in waits(pool, second)
    pool.run_all()


@pytest.mark.parametrize(
    ("policy", "why"), [(Policy.FAIR_CLUSTER, "was served longer ago"), (Policy.EARLY_CLUSTER, "was made first")]
)
def test_whose_turn_it_is_by_cluster(policy: Policy, why: str) -> None:
    pool = Pool([1], policy)
    clusters = [pool.open("anna"), pool.open("anna")]
    for cluster in clusters:
        pool.submit(cluster, 20, 1.0)
    pool.run(0.1)
    said = [waits(pool, cluster) for cluster in clusters]
    assert sum(f", which {why} (" in each for each in said) == 1
    pool.run_all()


# ---- quotas ----


@pytest.mark.parametrize("policy", list(Policy))
def test_no_user_has_more_cpus_at_once_than_its_quota(policy: Policy) -> None:
    pool = Pool([4, 4], policy, max_cpus_per_user=3)
    most: dict[str, int] = {"anna": 0, "bert": 0}

    def look(_: object) -> None:
        for user in most:
            most[user] = max(most[user], pool.at_work(user))

    pool.on_ended = look
    jobs = pool.submit(pool.open("anna"), 30, 0.02)
    pool.submit(pool.open("anna"), 10, 0.1)
    pool.submit(pool.open("bert"), 10, 0.3, cpus=2)
    pool.run(0.05)
    assert "user anna has jobs on 3 CPUs, and may have 3 at once" in pool.core.explain(jobs[-1])
    pool.run_all()
    assert max(most.values()) <= 3
    assert most["anna"] >= 2, "the one that just ended is not counted"


def test_a_job_that_needs_more_cpus_than_its_user_may_have_ends() -> None:
    pool = Pool([4], max_cpus_per_user=3)
    (job,) = pool.submit(pool.open("anna"), 1, 1.0, cpus=4)
    assert pool.ended[job].state is JobState.Abandoned
    assert pool.ended[job].cause == "it asks for 4 CPUs, and user anna may have 3 at once"


# ---- all of it ----


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[float, str, int, float, int, bool]]:
    """When, who, how many jobs, how long, on how many CPUs, whether alone."""
    one = st.tuples(
        st.floats(0, 3, allow_nan=False),
        st.sampled_from(["anna", "bert", "carl"]),
        st.integers(1, 12),
        st.sampled_from([0.0, 0.001, 0.03, 0.4, 2.0]),
        st.sampled_from([1, 1, 1, 2, 3]),
        st.sampled_from([False, False, False, True]),
    )
    return draw(st.lists(one, min_size=1, max_size=8))


@hypothesis_settings(max_examples=25)
@given(plans(), st.sampled_from(list(Policy)), st.sampled_from([0, 3, 4]))
def test_every_job_runs_once_and_nobody_has_what_it_may_not_have(
    plan: list[tuple[float, str, int, float, int, bool]], policy: Policy, quota: int
) -> None:
    pool = Pool([2, 3], policy, max_cpus_per_user=quota)
    exclusive: set[ComputationId] = set()

    def use(user: str, number: int, seconds: float, cpus: int, alone: bool) -> None:
        cluster = pool.open(user, exclusive=alone)
        if alone:
            exclusive.add(cluster)
        pool.submit(cluster, number, seconds, cpus=cpus)
        pool.later(1.0, lambda: pool.close(cluster))

    for at, *what in plan:
        pool.later(at, lambda what=what: use(*what))  # type: ignore[misc]
    pool.run(4.5)
    pool.run_all()
    assert all(ended.state is JobState.Finished for ended in pool.ended.values())
    for job in pool.jobs.values():
        if job.cluster in exclusive:
            for other in pool.jobs.values():
                assert (
                    other.cluster == job.cluster
                    or other.ended_at <= job.started_at
                    or other.started_at >= (job.ended_at)
                ), "two ran beside each other of which one runs alone"


def test_who_could_use_only_a_part_of_the_nodes_is_owed_little_for_that() -> None:
    """Anna could use one of three nodes for a while; when she can use all, Bert is not sent away for as long."""
    pool = Pool([1, 3], check=False)
    anna, bert = pool.open("anna"), pool.open("bert")
    pool.run(0.1)
    (_, large) = pool.nodes
    pool.handle(events.NodeSteered(anna, large, events.Steering.PAUSE))
    pool.submit(anna, 2000, 0.1)
    pool.submit(bert, 2000, 0.1)
    pool.run(20.0)
    assert shares(pool, 0.0, 20.0)["anna"] == pytest.approx(0.25, abs=0.02)
    pool.handle(events.NodeSteered(anna, large, events.Steering.USE))
    pool.run(30.0)
    assert shares(pool, 20.0, 30.0)["anna"] == pytest.approx(0.5, abs=0.05)
