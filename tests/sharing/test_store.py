"""What a shared scheduler stores, and what comes back when it was killed."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Coroutine
from inspect import signature
from pathlib import Path

import pytest

from dispy.errors import StoreError
from dispy.model import (
    BlobRef,
    ComputationId,
    ComputationSpec,
    Ending,
    HeldAttempt,
    Holder,
    JobDone,
    JobOptions,
    JobState,
    NodeInfo,
    ProcessId,
)
from dispy.scheduler import events
from dispy.scheduler.clusters import ClusterState
from dispy.scheduler.core import SchedulerCore
from dispy.scheduler.effects import Effects
from dispy.scheduler.fairness import Charged
from dispy.scheduler.jobs import JobRecord
from dispy.sharing import store as store_module
from dispy.sharing.keeping import KeptCluster, Restored
from dispy.sharing.reopening import PORTION, opened_of
from dispy.sharing.store import Store, open_store
from dispy.sharing.storefile import PAGE_SIZE, SPARE_PAGES, StoreFile
from dispy.sharing.storewriting import MOST_ROWS
from dispy.wire import messages
from dispy.wire.sharing import OpenCluster

ANNA = Holder("anna", "host", 1, "prog.py")
NODE, OTHER = ProcessId("1" * 32), ProcessId("2" * 32)
CLUSTER = ComputationId("c" * 32)
LARGE = b"x" * 100_000


class Scheduler:
    """A core whose changes are noted as its host does it."""

    def __init__(self, store: Store, token: bytes) -> None:
        self.store = store
        self.core = SchedulerCore(holder=ANNA, token=token)
        self.sent: list[messages.AnyMessage] = []
        self.now = 0.0

    def handle(self, event: events.Event) -> Effects:
        self.now += 1.0
        effects = self.core.handle(event, self.now)
        self.store.note(self.core, event, effects)
        self.core.check()
        return effects

    def open(self, cluster: ComputationId = CLUSTER, *, reentrant: bool = False) -> None:
        spec = ComputationSpec(cluster, "function", "function")
        opened = OpenCluster(spec, b"t" * 32, ANNA, reentrant, named=(("n1", 0),))
        kept = KeptCluster(opened, "anna@host", True, 12.0)
        self.store.cluster_opened(kept)
        self.handle(opened_of(kept))

    def submit(self, count: int, cluster: ComputationId = CLUSTER, options: JobOptions | None = None) -> list[int]:
        first = self.store.numbers(count)
        numbers = range(first, first + count)
        jobs = [JobRecord(number, cluster, b"args", number - first + 1, options=options) for number in numbers]
        self.handle(events.JobsSubmitted(jobs))
        return list(numbers)

    def join(self, node: ProcessId = NODE, cluster: ComputationId = CLUSTER, cpus: int = 2) -> None:
        self.handle(events.NodeJoined(node, NodeInfo(node, "n1", cpus, "linux", ("cpython-3.11",)), "10.0.0.1"))
        self.handle(events.NodeAllocated(cluster, node, cpus, setup_args=b"setup"))
        self.ready(node, cluster)

    def ready(self, node: ProcessId = NODE, cluster: ComputationId = CLUSTER) -> None:
        self.handle(events.NodeSaid(node, messages.LeaseGranted([], [])))
        self.handle(events.NodeSaid(node, messages.ComputationReady(cluster)))

    def finish(self, job: int, body: bytes = b"r", ending: Ending = Ending.FINISHED, attempt: int = 1) -> None:
        done = JobDone(job, attempt, ending, 1.0, 2.0, len(body), 0, 0, 0)
        self.handle(events.NodeSaid(NODE, messages.JobsDone(1, [done]), [body]))


async def on_disk(store: Store) -> None:
    if (settled := store.settled()) is not None:
        await asyncio.wait_for(settled, 30)


def in_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[[Path, pytest.MonkeyPatch], None]:
    """A test with a loop, and in it a scheduler with an open store."""

    def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def whole() -> None:
            store, restored = await open_store(tmp_path)
            store.places_of = lambda node: [("10.0.0.1", 9701)]
            store.address_of = lambda node: "10.0.0.1"
            given = {"opened": Scheduler(store, restored.token), "tmp_path": tmp_path, "monkeypatch": monkeypatch}
            try:
                await test(**{name: given[name] for name in signature(test).parameters})
            finally:
                await store.close()

        asyncio.run(whole())

    return run


async def again(scheduler: Scheduler, directory: Path) -> Restored:
    """Close the store and read it again."""
    await scheduler.store.close()
    store, restored = await open_store(directory)
    await store.close()
    return restored


@in_loop
async def test_a_new_store_has_a_token_and_nothing_else(opened: Scheduler, tmp_path: Path) -> None:
    restored = await again(opened, tmp_path)
    assert len(restored.token) == 32
    assert restored.token == opened.core._tables.token
    assert (restored.clusters, restored.ends, restored.event.jobs, restored.event.nodes) == ([], {}, [], [])
    assert oct((tmp_path / "jobs.sqlite").stat().st_mode & 0o777) == "0o600"


@in_loop
async def test_what_waits_and_what_nodes_have_comes_back(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    opened.join()
    jobs = opened.submit(4)
    pinned = opened.submit(1, options=JobOptions(node=NODE, priority=3, retries=2))
    opened.store.batch_stored(CLUSTER, 7)
    await on_disk(opened.store)
    assert opened.store._file.counts() == (1, 5, 0)
    restored = await again(opened, tmp_path)
    (kept,) = restored.clusters
    assert (kept.stored, kept.state, kept.user, kept.opened.token) == (7, "open", "anna@host", b"t" * 32)
    back = {record.job: record for record in restored.event.jobs}
    assert list(back) == jobs + pinned
    assert [(back[job].node, back[job].attempt) for job in jobs] == [(NODE, 1), (NODE, 1), (None, 0), (None, 0)]
    assert [back[job].handle for job in jobs + pinned] == [1, 2, 3, 4, 1]
    assert all(record.args == b"args" for record in back.values())
    assert back[pinned[0]].options == JobOptions(node=NODE, priority=3, retries=2)
    (node,) = restored.event.nodes
    assert (node.node, node.info.cpus, node.address) == (NODE, 2, "10.0.0.1")
    assert restored.places == {NODE: (("10.0.0.1", 9701),)}
    (share,) = restored.event.shares
    assert share == events.RestoredShare(CLUSTER, NODE, 2, (), b"setup")


@in_loop
async def test_a_core_goes_on_with_it(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    opened.join()
    jobs = opened.submit(4)
    restored = await again(opened, tmp_path)
    store, _ = await open_store(tmp_path)
    scheduler = Scheduler(store, restored.token)
    assert scheduler.handle(restored.event).sends == []
    assert scheduler.core.next_deadline() == scheduler.now + 30.0
    effects = scheduler.handle(events.NodeJoined(NODE, restored.event.nodes[0].info, "10.0.0.1"))
    assert [send.message for send in effects.sends] == [messages.AskLease(restored.token, ANNA)]
    # the node has the first, and never received the second
    effects = scheduler.handle(events.NodeSaid(NODE, messages.LeaseGranted([HeldAttempt(jobs[0], 1)], [CLUSTER])))
    (open_again,) = [send.message for send in effects.sends]
    assert isinstance(open_again, messages.OpenComputation)
    effects = scheduler.handle(events.NodeSaid(NODE, messages.ComputationReady(CLUSTER)))
    (run,) = [send.message for send in effects.sends if isinstance(send.message, messages.RunJobs)]
    assert [(spec.job, spec.attempt) for spec in run.jobs] == [(jobs[1], 1)]
    scheduler.finish(jobs[0])
    assert scheduler.store.numbers(1) > jobs[-1]
    restored = await again(scheduler, tmp_path)
    assert restored.ends == {CLUSTER: [jobs[0]]}
    assert [(record.job, record.node) for record in restored.event.jobs] == [
        (jobs[1], NODE),
        (jobs[2], NODE),
        (jobs[3], None),
    ]


@in_loop
async def test_a_node_that_does_not_come_back_takes_its_jobs_with_it(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    opened.join()
    jobs = opened.submit(3)
    restored = await again(opened, tmp_path)
    core = SchedulerCore(holder=ANNA, token=restored.token)
    core.handle(restored.event, 100.0)
    assert core.handle_timeout(129.9).notices == []
    effects = core.handle_timeout(130.0)
    core.check()
    ended = {
        each.job.job: each.cause for notice in effects.notices for each in getattr(notice, "jobs", ()) if each.cause
    }
    assert list(ended) == jobs[:2]
    assert "it did not come back when the scheduler was started again" in str(ended[jobs[0]])


@in_loop
async def test_ends_stay_until_they_are_acknowledged(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    opened.join()
    first, second, third = opened.submit(3)
    opened.finish(first, b"small")
    opened.finish(second, LARGE)
    opened.handle(events.CancelAsked([third]))
    await on_disk(opened.store)
    assert opened.store.result_file(second).read_bytes() == LARGE
    await opened.store.close()
    store, restored = await open_store(tmp_path)
    assert (restored.ends, restored.highest) == ({CLUSTER: [first, second]}, {CLUSTER: 3})
    ends = {end.job: end for end in await store.read_ends([second, first])}
    assert list(ends) == [second, first]
    assert ends[first].over.done is not None
    assert (ends[first].body, ends[first].over.job, ends[first].over.done.job) == (b"small", 1, 1)
    assert (ends[first].over.state, ends[first].over.node, ends[first].over.address) == (
        JobState.Finished,
        NODE,
        "10.0.0.1",
    )
    assert (ends[second].body, ends[second].size) == (b"", len(LARGE))
    assert store.result_file(second).exists()
    assert [record.job for record in restored.event.jobs] == [third]
    assert restored.event.jobs[0].cancelled
    store.acknowledged(CLUSTER, [first, second])
    await on_disk(store)
    assert not store.result_file(second).exists()
    await store.close()
    store, restored = await open_store(tmp_path)
    assert restored.ends == {}
    await store.close()


@in_loop
async def test_what_is_acknowledged_before_it_is_written_is_not_written(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    opened.join()
    first, second = opened.submit(2)
    await on_disk(opened.store)
    opened.finish(first, b"small")
    opened.finish(second, b"small")
    opened.store.acknowledged(CLUSTER, [first])
    await on_disk(opened.store)
    await opened.store.close()
    store, restored = await open_store(tmp_path)
    assert (restored.ends, list(restored.event.jobs)) == ({CLUSTER: [second]}, [])
    await store.close()


@in_loop
async def test_commits_of_any_size_are_written(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    opened.submit(MOST_ROWS)
    await on_disk(opened.store)
    jobs = opened.submit(2 * MOST_ROWS + 77)
    for job in jobs[:5]:
        opened.handle(events.CancelAsked([job]))
    await on_disk(opened.store)
    await opened.store.close()
    store, restored = await open_store(tmp_path)
    assert len(restored.ends[CLUSTER]) == 5
    assert [record.job for record in restored.event.jobs] == [*range(1, MOST_ROWS + 1), *jobs[5:]]
    await store.close()


@in_loop
async def test_what_users_were_charged_comes_back(opened: Scheduler, tmp_path: Path) -> None:
    accounts = {"anna@host": Charged(12.5, 20.0), "ben@host": Charged(0.0, 3.25)}
    opened.store.accounts_stand({"anna@host": Charged(1.0, 2.0)})
    opened.store.accounts_stand(accounts)
    await on_disk(opened.store)
    await opened.store.close()
    store, restored = await open_store(tmp_path)
    assert restored.accounts == accounts
    await store.close()


@in_loop
async def test_a_job_keeps_its_history(opened: Scheduler, tmp_path: Path) -> None:
    opened.open(reentrant=True)
    opened.join()
    (job,) = opened.submit(1, options=JobOptions(cpus=2, retries=1))
    opened.finish(job, ending=Ending.RAISED)
    opened.handle(events.NodeLost(NODE, "it was restarted"))
    restored = await again(opened, tmp_path)
    (record,) = restored.event.jobs
    assert (record.attempt, record.node, record.failures, record.losses) == (2, None, 1, 1)
    assert record.astray == {2: NODE}
    assert (restored.event.nodes, restored.event.shares, restored.places) == ([], [], {})


@in_loop
async def test_cpus_that_are_kept_for_a_job_are_kept_again(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    opened.join()
    opened.submit(1, options=JobOptions(cpus=0))
    restored = await again(opened, tmp_path)
    assert restored.event.jobs[0].cpus == 2
    core = SchedulerCore(holder=ANNA, token=restored.token)
    core.handle(restored.event, 0.0)
    core.check()


@in_loop
async def test_what_became_of_clusters(opened: Scheduler, tmp_path: Path) -> None:
    draining, ended, gone = (ComputationId(letter * 32) for letter in "def")
    for cluster in (CLUSTER, draining, ended, gone):
        opened.open(cluster)
    opened.handle(events.ClusterNarrowed(CLUSTER))
    opened.submit(1, draining)
    for cluster in (draining, ended, gone):
        opened.handle(events.ClusterClosing(cluster))
    opened.store.cluster_over(gone)
    restored = await again(opened, tmp_path)
    assert [cluster.state for cluster in restored.clusters] == ["open", "draining", "ended"]
    clusters = restored.event.clusters
    assert [cluster.state for cluster in clusters] == [ClusterState.OPEN, ClusterState.DRAINING]
    assert [cluster.opened.open_ended for cluster in clusters] == [False, True]


@in_loop
async def test_how_a_cluster_uses_nodes(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    opened.join()
    opened.join(OTHER)
    (job, _, _) = opened.submit(3)
    opened.handle(events.NodeSteered(CLUSTER, NODE, events.Steering.CLOSE))
    opened.handle(events.NodeSteered(CLUSTER, OTHER, events.Steering.PAUSE))
    restored = await again(opened, tmp_path)
    shares = {share.node: (share.cpus, share.is_paused) for share in restored.event.shares}
    assert shares == {NODE: (0, False), OTHER: (2, True)}
    # what the closed one has may finish, and then it is closed
    core = SchedulerCore(holder=ANNA, token=restored.token)
    core.handle(restored.event, 0.0)
    core.check()
    assert core.runs(NODE, job, 1)


@in_loop
async def test_arguments_in_a_file_are_named(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    blob = BlobRef(b"b" * 32, 100_000)
    number = opened.store.numbers(1)
    opened.handle(events.JobsSubmitted([JobRecord(number, CLUSTER, b"", 1, blob)]))
    restored = await again(opened, tmp_path)
    assert restored.event.jobs[0].blob == blob


@in_loop
async def test_numbers_never_repeat(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    highest = opened.submit(5)[-1]
    restored = await again(opened, tmp_path)
    assert restored.event.jobs[-1].job == highest
    for _ in range(3):
        store, _ = await open_store(tmp_path)
        number = store.numbers(1)
        assert number > highest
        highest = number
        await store.close()


@in_loop
async def test_who_waits_is_called_in_order_and_after_the_commit(opened: Scheduler) -> None:
    said: list[str] = []
    opened.store.after(lambda: said.append("nothing to wait for"))
    assert said == ["nothing to wait for"]
    said.clear()
    opened.open()
    opened.store.after(lambda: said.append("first"))
    opened.store.after(lambda: (said.append("second"), opened.store.after(lambda: said.append("nested"))))
    opened.submit(3)
    opened.store.after(lambda: said.append("third"))
    assert said == []
    await on_disk(opened.store)
    assert said == ["first", "second", "nested", "third"] or said == ["first", "second", "third", "nested"]


@in_loop
async def test_one_that_fails_does_not_keep_the_others(opened: Scheduler) -> None:
    said: list[str] = []
    opened.open()
    opened.store.after(lambda: 1 // 0)
    opened.store.after(lambda: said.append("second"))
    await on_disk(opened.store)
    assert said == ["second"]


@in_loop
async def test_a_full_disk_is_said_once_and_loses_nothing(
    opened: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_AFTER", 0.01)
    said: list[str] = []
    full = asyncio.Event()
    opened.store.on_problem = lambda sentence: (said.append(sentence), full.set())[0]
    opened.open()
    await on_disk(opened.store)
    file = opened.store._file
    pages = file.db.execute("pragma page_count").fetchone()[0]
    file.db.execute(f"pragma max_page_count = {pages + 1}")
    number = opened.store.numbers(1)
    opened.handle(events.JobsSubmitted([JobRecord(number, CLUSTER, b"a" * 60_000, 1)]))
    waiting = opened.store.settled()
    assert waiting is not None
    await asyncio.wait_for(full.wait(), 30)
    assert "cannot write to" in opened.store.problem
    assert "full" in opened.store.problem
    assert not waiting.done()
    more = opened.submit(1)
    file.db.execute("pragma max_page_count = 1000000")
    await asyncio.wait_for(waiting, 30)
    assert opened.store.problem == ""
    assert len(said) == 2
    restored = await again(opened, tmp_path)
    assert [record.job for record in restored.event.jobs] == [number, *more]


@in_loop
async def test_a_store_that_is_broken_says_so(opened: Scheduler) -> None:
    broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    opened.store.on_broken = broken.set_result
    opened.open()
    await on_disk(opened.store)
    opened.store._file.db.execute("drop table jobs")
    opened.submit(1)
    sentence = await asyncio.wait_for(broken, 30)
    assert "cannot go on without its store" in sentence


@in_loop
async def test_another_version_is_left_alone(opened: Scheduler, tmp_path: Path) -> None:
    await opened.store.close()
    db = sqlite3.connect(tmp_path / "jobs.sqlite")
    db.execute("pragma user_version = 2")
    db.close()
    with pytest.raises(StoreError, match=r"another version of dispy \(its tables have version 2, this one knows"):
        await open_store(tmp_path)


@in_loop
async def test_a_damaged_file_is_said(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    opened.join()
    opened.submit(1000)
    await opened.store.close()
    path = tmp_path / "jobs.sqlite"
    data = bytearray(path.read_bytes())
    data[4096 * 5 :] = os.urandom(len(data) - 4096 * 5)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        await open_store(tmp_path)
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreError, match=r"is damaged .* move it and the files beside it"):
        await open_store(tmp_path)


@in_loop
async def test_two_schedulers_cannot_have_one_store(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    await on_disk(opened.store)
    with pytest.raises(StoreError, match="in use by another dispyscheduler"):
        await open_store(tmp_path)


@in_loop
async def test_files_that_no_row_names_are_removed(opened: Scheduler, tmp_path: Path) -> None:
    opened.open()
    opened.join()
    (job,) = opened.submit(1)
    opened.finish(job, LARGE)
    await opened.store.close()
    left = tmp_path / "results" / "77"
    left.write_bytes(b"torn")
    store, _ = await open_store(tmp_path)
    assert not left.exists()
    assert store.result_file(job).exists()
    await store.close()


@in_loop
async def test_results_are_read_in_portions(opened: Scheduler) -> None:
    opened.open()
    opened.join()
    body = b"r" * 60_000
    jobs = opened.submit(40)
    for job in jobs:
        opened.finish(job, body)
    await on_disk(opened.store)
    first = await opened.store.read_ends(jobs)
    assert PORTION <= sum(len(end.body) for end in first) < PORTION + len(body)
    rest = jobs[len(first) :]
    assert [end.job for end in [*first, *await opened.store.read_ends(rest[::-1])]] == jobs[: len(first)] + rest[::-1][
        : len(first)
    ]


@in_loop
async def test_results_are_read_while_nothing_can_be_written(
    opened: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = asyncio.Event()
    opened.store.on_problem = lambda sentence: full.set()
    opened.open()
    opened.join()
    (job,) = opened.submit(1)
    opened.finish(job)
    await on_disk(opened.store)
    db = opened.store._file.db
    db.execute("pragma max_page_count = 1")
    number = opened.store.numbers(1)
    opened.handle(events.JobsSubmitted([JobRecord(number, CLUSTER, b"a" * 60_000, 1)]))
    await asyncio.wait_for(full.wait(), 30)
    assert [end.job for end in await asyncio.wait_for(opened.store.read_ends([job]), 30)] == [job]


@in_loop
async def test_the_file_becomes_smaller(opened: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = asyncio.Event()
    loop = asyncio.get_running_loop()
    shrink = StoreFile.shrink

    def shrunk(file: StoreFile) -> bool:
        is_more = shrink(file)
        if not is_more:
            loop.call_soon_threadsafe(idle.set)
        return is_more

    monkeypatch.setattr(StoreFile, "shrink", shrunk)
    monkeypatch.setattr(store_module, "IDLE_AFTER", 0.01)
    opened.open()
    first = opened.store.numbers(600)
    opened.handle(events.JobsSubmitted([JobRecord(first + each, CLUSTER, b"a" * 60_000, each) for each in range(600)]))
    await on_disk(opened.store)
    path = tmp_path / "jobs.sqlite"
    files = [path, Path(f"{path}-wal")]
    most = 2 * SPARE_PAGES * PAGE_SIZE
    assert sum(file.stat().st_size for file in files) > 4 * most
    opened.store.cluster_over(CLUSTER)
    await on_disk(opened.store)
    idle.clear()
    await asyncio.wait_for(idle.wait(), 30)
    assert sum(file.stat().st_size for file in files) < most
    restored = await again(opened, tmp_path)
    assert restored.event.jobs == []
