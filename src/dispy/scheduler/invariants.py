"""Every table of the scheduler computed anew from the others: what must be true after every event."""

from __future__ import annotations

from typing import NoReturn

from dispy.errors import InvalidTransition
from dispy.model import JobState
from dispy.scheduler.clusters import ClusterRecord, ClusterState
from dispy.scheduler.fairness import Account, Turns
from dispy.scheduler.flow import why_hopeless
from dispy.scheduler.jobs import JobQueue
from dispy.scheduler.nodes import Amount, NodeRecord, NodeState, Share, ShareState
from dispy.scheduler.placement import may_run, place
from dispy.scheduler.policy import whom_to_recall
from dispy.scheduler.tables import Tables
from dispy.scheduler.turns import next_look


def check_tables(tables: Tables) -> None:
    """Compare all tables.

    Raises:
        InvalidTransition: two of them contradict each other.
    """
    _check_places(tables)
    for cluster in tables.clusters.values():
        _check_cluster(tables, cluster)
    for node in tables.nodes.values():
        _check_node(tables, node)
    _check_deadlines(tables)
    _check_exclusive(tables)
    _check_turns(tables, tables.turns)
    _require(not tables.runnable, "a queue is still to be looked at after the dispatch pass")
    _require(all(queue.waiting for queue in tables.blocked), "an empty queue is looked at in every pass")
    _require(bool(tables.blocked) or not tables.claims, "a node is kept free and no heavy job waits")
    _require(tables.claims.keys() <= set(tables.nodes.values()), "a node is kept free that is lost")
    _require(not tables.restless, "a cluster is still to be balanced after the dispatch pass")
    counters = tables.counters
    _require(
        counters.submitted - counters.ended == len(tables.jobs),
        f"{counters.submitted} jobs came and {counters.ended} ended, but {len(tables.jobs)} are known",
    )


def _check_deadlines(tables: Tables) -> None:
    """Each is of a node without a link, or of a share that was refused for the time being, and none is missing."""
    shares = [share for cluster in tables.clusters.values() for share in cluster.shares.values()]
    refused = [share for share in shares if share.state is ShareState.REFUSED and not share.final]
    due = {
        *(node.id for node in tables.nodes.values() if node.broken_until is not None),
        *((share.cluster.id, share.node.id) for share in refused if share.cpus),
    }
    given_back = {(share.cluster.id, share.node.id) for share in refused if not share.cpus}
    _require(due <= tables.deadlines.keys(), "a deadline is missing")
    _require(tables.deadlines.keys() <= due | given_back, "there is a deadline for what waits for nothing")


def _check_places(tables: Tables) -> None:
    """Every job is in exactly one queue or in exactly one flight."""
    places: dict[int, str] = {}
    for cluster in tables.clusters.values():
        for queue in cluster.queues:
            _check_queue(cluster, queue, places)
        for share in cluster.shares.values():
            for job, record in share.flight.items():
                _require(job not in places, f"job {job} is in two places")
                _require(record.state is JobState.Running, f"job {job} is at a node in state {record.state!r}")
                _require(record.node == share.node.id, f"job {job} names another node than the one it is at")
                _require(record.attempt > 0, f"job {job} is at a node without an attempt")
                places[job] = cluster.id
    _require(places.keys() == tables.jobs.keys(), "a job is nowhere, or somewhere and not known")
    for job, record in tables.jobs.items():
        _require(places[job] == record.cluster, f"job {job} is with another cluster")


def _check_queue(cluster: ClusterRecord, queue: JobQueue, places: dict[int, str]) -> None:
    waiting = list(queue)
    _require(len(waiting) == queue.waiting, f"a queue counts {queue.waiting} jobs, not {len(waiting)}")
    _require(queue.is_plain or cluster.special.get(queue.shape) is queue, "a queue stands under another shape")
    last: dict[int, int] = {}
    for record in waiting:
        priority = record.options.priority if record.options is not None else 0
        _require(last.get(priority, -1) < record.job, "a queue is not in the order of submission")
        last[priority] = record.job
        _require(record.job not in places, f"job {record.job} is in two places")
        _require(record.node is None, f"job {record.job} waits and has a node")
        _require(not record.cancelled, f"job {record.job} waits and is cancelled")
        _require(not record.cpus, f"job {record.job} waits and CPUs are kept for it")
        _require(record.shape == queue.shape, f"job {record.job} is in the queue of another shape")
        places[record.job] = cluster.id


def _check_cluster(tables: Tables, cluster: ClusterRecord) -> None:
    count = sum(1 for record in tables.jobs.values() if record.cluster == cluster.id)
    _require(count == cluster.jobs, f"cluster {cluster.id} counts {cluster.jobs} jobs, not {count}")
    closing = cluster.state is not ClusterState.OPEN
    _require(closing == (cluster.id in tables.closing), f"cluster {cluster.id} is closing or not")
    recalling = sum(
        node.recall[1] for node in tables.nodes.values() if node.recall is not None and node.recall[0] == cluster.id
    )
    _require(recalling == cluster.recalling, f"cluster {cluster.id} counts recalls wrongly")
    _require(
        cluster.idlers.keys() == {share.node.id for share in cluster.shares.values() if share.idle},
        f"cluster {cluster.id} does not know its idle shares",
    )
    _require(
        cluster.excesses.keys() == {share.node.id for share in cluster.shares.values() if share.excess},
        f"cluster {cluster.id} does not know where its jobs wait for CPUs",
    )
    _require(bool(cluster.excesses) == (cluster.id in tables.crowded), f"cluster {cluster.id} is crowded or not")
    entries = sum(share.entry is not None for share in cluster.shares.values())
    _require(entries == len(cluster.rooms), f"cluster {cluster.id} counts its rooms wrongly")
    for share in cluster.shares.values():
        _check_share(tables, cluster, share)
    _check_hopes(tables, cluster)
    _check_parked(tables, cluster)
    _check_rooms(cluster)
    for queue in cluster.special.values():
        if not queue.waiting:
            continue
        node = queue.shape.node
        _require(
            not node or node in tables.nodes or queue in tables.ending, f"jobs wait for node {node}, which is lost"
        )
        found = place(cluster, queue)
        # more may be sent ahead when the mean duration falls: that waits for the node's next word
        runs = found is not None and (queue.is_heavy or found[0].idle > 0) and not _is_held_up(cluster, queue)
        _require(not runs, f"a job with wishes of {cluster.id} waits although a node could run it")
        _require(
            not queue.is_heavy or queue in tables.blocked or _is_held_up(cluster, queue),
            f"heavy jobs of {cluster.id} wait and are not looked at",
        )


def _check_hopes(tables: Tables, cluster: ClusterRecord) -> None:
    """No job waits in vain, no CPU idles beside jobs that could be called back, nothing of a cluster outlives it."""
    for queue in cluster.queues:
        hopeless = queue.waiting and queue not in tables.ending and why_hopeless(tables, cluster, queue.shape)
        _require(not hopeless, f"jobs of {cluster.id} wait in vain: {hopeless}")
    idle = sum(share.idle for share in cluster.idlers.values())
    _require(
        idle <= cluster.recalling or whom_to_recall(cluster.excesses.values()) is None,
        f"CPUs of {cluster.id} are idle and jobs are not called back that wait elsewhere",
    )
    if cluster.state is ClusterState.TERMINATING:
        running = [record for share in cluster.shares.values() for record in share.flight.values()]
        _require(all(record.cancelled for record in running), f"a job of {cluster.id} was not cancelled")
    if cluster.state is not ClusterState.OPEN and not cluster.jobs:
        over = (ShareState.CLOSING, ShareState.CLOSED)
        _require(bool(cluster.shares), f"cluster {cluster.id} is over and still known")
        _require(all(share.state in over for share in cluster.shares.values()), f"{cluster.id} is over and not closed")
    for known in (cluster.asked, cluster.declined):
        _require(known.keys() <= tables.nodes.keys(), f"cluster {cluster.id} remembers a node that is lost")


def _check_parked(tables: Tables, cluster: ClusterRecord) -> None:
    """Nothing waits that a node could run which is not opened, or it is looked again; in small pools all are opened."""
    shares = [share for share in cluster.shares.values() if share.state is ShareState.PARKED]
    _require(cluster.parked.keys() == {share.node.id for share in shares}, f"{cluster.id} does not know what is parked")
    _require(not shares or tables.park_above > 0, f"nodes of {cluster.id} are parked though all are to be opened")
    opening = [share for share in cluster.shares.values() if share.state is ShareState.OPENING]
    opened = [share for share in cluster.shares.values() if share.state in (ShareState.OPENING, ShareState.READY)]
    _require(
        all(cluster.opened.get(share.node.id) is share for share in opened),
        f"{cluster.id} does not know what is opened",
    )
    _require(bool(opening) or not cluster.is_growing, f"cluster {cluster.id} waits for nodes that nobody opens")
    reach = sum(share.slots for share in cluster.shares.values() if share.is_in_use)
    for share in shares:
        node = share.node
        _require(not share.flight and share.cpus > 0, f"node {node.id} is parked for {cluster.id} and at work")
        _require(not share.is_needed, f"node {node.id} is parked for {cluster.id}, whose user asked for it")
        _require(node.holder is None, f"node {node.id} is parked for {cluster.id} and somebody else's")
        _require(node.is_idle == (node in tables.idle), f"whether node {node.id} is idle is not known")
        if not node.can_hear or not cluster.wants_nodes:
            continue
        _require(reach > tables.park_above, f"node {node.id} is parked for {cluster.id} in a small pool")
        if opening or share.is_paused or not node.is_idle:
            continue
        waits = cluster.plain.waiting > 0 and not _is_held_up(cluster, cluster.plain) and next_look(tables) is None
        _require(not waits, f"a job of {cluster.id} waits although node {node.id} is idle and could be opened")
    for queue in cluster.special.values():
        if not queue.waiting or _is_held_up(cluster, queue) or not cluster.wants_nodes:
            continue
        can = [share for share in shares if share.node.can_hear and share.slots and not share.is_paused]
        fits = [share for share in can if may_run(share, queue.shape)]
        tried = [share for share in cluster.shares.values() if share.is_usable or share in opening]
        _require(
            not fits or any(may_run(share, queue.shape) for share in tried),
            f"jobs with wishes of {cluster.id} wait, and no node that fits is opened",
        )


def _is_held_up(cluster: ClusterRecord, queue: JobQueue) -> bool:
    """Whether an exclusive cluster, or what its user may have at most, keeps jobs from nodes that could run them."""
    spare = cluster.account.spare
    return cluster.is_held or spare == 0 or (spare is not None and _is_quota_kept(cluster.account, spare))


def _is_quota_kept(account: Account, spare: int) -> bool:
    """Whether a job of the user waits for more CPUs than its quota has left, and keeps them from others."""
    return any(
        queue.waiting and queue.is_heavy and (not queue.shape.cpus or queue.shape.cpus > spare)
        for cluster in account.clusters.values()
        for queue in cluster.queues
    )


def _check_exclusive(tables: Tables) -> None:
    """Nothing runs beside a cluster that runs alone, and nobody waits for one that is over."""
    clusters = tables.clusters
    _require(tables.exclusives.keys() <= clusters.keys(), "an exclusive cluster is over and still waited for")
    alone = tables.alone if tables.alone in clusters else None
    for cluster in clusters.values():
        runs = any(share.flight for share in cluster.shares.values())
        beside = alone is not None and cluster.id != alone and cluster.is_held
        _require(not (beside and runs), f"cluster {cluster.id} runs beside one that runs alone")
        _require(not (cluster.is_held and runs), f"cluster {cluster.id} runs although it is not its turn")
    _require(
        bool(tables.exclusives) or not any(cluster.is_held for cluster in clusters.values()),
        "a cluster waits for an exclusive one, and there is none",
    )


def _check_turns(tables: Tables, turns: Turns) -> None:
    """What users have is what is counted for them, and everybody who waits stands in the line."""
    _require(not tables.fresh, "a node has room and nobody was asked")
    _require(not turns.relieved, "a user may have CPUs again and was not asked")
    for account in tables.accounts.values():
        shares = [share for cluster in account.clusters.values() for share in cluster.shares.values()]
        cpus = sum(share.wanted for share in shares)
        _require(account.cpus == cpus, f"{account.label} has {cpus} CPUs, not {account.cpus}")
        _require(not account.most_cpus or cpus <= account.most_cpus, f"{account.label} has more than its quota")
    _require(turns.cpus == sum(account.cpus for account in tables.accounts.values()), "CPUs are counted wrongly")
    for cluster in tables.clusters.values():
        party = turns.party_of(cluster)
        for queue in cluster.queues:
            if not queue.waiting or cluster.is_held:
                continue
            first = min((-(job.options.priority if job.options else 0), job.job) for job in queue)
            _require(queue.rank == first, f"a queue of {cluster.id} does not know its first job")
            _require(queue.entry is not None and queue.entry <= first, f"a queue of {cluster.id} lost its turn")
            rank = turns.rank(party)
            _require(
                party.entry is not None and rank is not None and party.entry <= rank,
                f"{cluster.account.label} lost its turn",
            )


def _check_rooms(cluster: ClusterRecord) -> None:
    """What stands among the rooms is found there. More room after the mean duration fell waits for the node's word."""
    found = {share.node.id for share in cluster.rooms}
    for share in cluster.shares.values():
        if share.entry is not None:
            _require(share.node.id in found, f"node {share.node.id} is not found among the rooms")


def _check_share(tables: Tables, cluster: ClusterRecord, share: Share) -> None:
    node = share.node
    _require(tables.nodes.get(node.id) is node, f"a share is of node {node.id}, which is not known")
    _require(node.shares.get(cluster.id) is share, f"node {node.id} does not know its share")
    heavy = [record for record in share.flight.values() if record.shape.is_heavy]
    _require(len(heavy) == share.heavy, f"node {node.id} counts its heavy jobs wrongly")
    _require(all(record.cpus for record in heavy), f"nothing is kept for a heavy job on node {node.id}")
    _require(sum(record.cpus for record in heavy) == share.heavy_cpus, f"node {node.id} counts kept CPUs wrongly")
    _require(share.heavy == len([1 for record in share.flight.values() if record.cpus]), "CPUs are kept for light jobs")
    if share.state is ShareState.WANTED:
        _require(not node.can_hear, f"node {node.id} is ours and a computation is not opened")
    if share.state is ShareState.RENEWING and cluster.wants_nodes:
        _require(node.id in cluster.asked, f"a computation is set up anew on node {node.id} and nobody is asked")
    if not share.cpus:
        over = (ShareState.CLOSING, ShareState.CLOSED)
        _require(share.state in over or bool(share.flight), f"node {node.id} was given back and is still open")
    if not share.idle:
        return
    _require(share.entry is not None, f"node {node.id} has an idle CPU and is not offered")
    waits = cluster.plain.waiting > 0 and not _is_held_up(cluster, cluster.plain)
    _require(not waits, f"a job of {cluster.id} waits although node {node.id} could run it")


def _check_node(tables: Tables, node: NodeRecord) -> None:
    for id, share in node.shares.items():
        known = tables.clusters.get(id)
        _require(known is share.cluster, f"node {node.id} has a share of cluster {id}, which is not known")
    flight = [record.shape for share in node.shares.values() for record in share.flight.values()]
    taken = Amount(
        sum(share.heavy_cpus for share in node.shares.values()),
        sum(shape.memory for shape in flight),
        sum(shape.gpus for shape in flight),
    )
    _require(taken == node.taken, f"node {node.id} keeps {node.taken} for jobs that need {taken}")
    _require(node.claimed == Amount() or node in tables.claims, f"node {node.id} is kept free for nobody")
    _require(
        not node.claimed.cpus or node.claimed.cpus <= node.capacity, f"more of node {node.id} is claimed than it has"
    )
    at_work = {share for share in node.shares.values() if share.flight}
    _require(at_work <= node.busy.keys() <= set(node.shares.values()), f"node {node.id} does not know who is at work")
    over = {share for share in node.shares.values() if share.state in (ShareState.REFUSED, ShareState.CLOSED)}
    _require(over <= node.over.keys() <= set(node.shares.values()), f"node {node.id} does not know what is over there")
    broken = node.broken_until is not None
    held = node.state is NodeState.REFUSED
    _require(held == (node.holder is not None), f"node {node.id} is held by somebody else or it is not")
    recalled = node.recall is not None
    _require(not recalled or node.can_hear, f"node {node.id} was asked for jobs and cannot answer")
    opened = any(
        share.state in (ShareState.OPENING, ShareState.READY, ShareState.CLOSING) for share in node.shares.values()
    )
    if not broken and (opened or node.is_wanted):
        _require(node.state is not NodeState.FREE, f"node {node.id} is wanted and its lease is not asked for")
    asked = any(node.id in cluster.asked for cluster in tables.clusters.values())
    if not broken and not node.is_wanted and not asked and not node.is_restored:
        _require(node.state is NodeState.FREE, f"no cluster uses node {node.id} and its lease is kept")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        _fail(sentence)


def _fail(sentence: str) -> NoReturn:
    raise InvalidTransition(f"the scheduler's tables contradict each other: {sentence}")
