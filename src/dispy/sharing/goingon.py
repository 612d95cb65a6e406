"""A shared scheduler takes up what the process before it has left: guests, their jobs, contents, nodes, accounts."""

from __future__ import annotations

from collections.abc import Iterable

from dispy.errors import TransferError
from dispy.logs import logger
from dispy.model import BlobRef
from dispy.sharing.guests import Guest, number_of
from dispy.sharing.identity import Identity
from dispy.sharing.keeping import KeptCluster, Restored
from dispy.sharing.opening import Opening
from dispy.sharing.pool import Pool
from dispy.sharing.staging import refs_of
from dispy.words import counted


def go_on(pool: Pool, opening: Opening, restored: Restored) -> None:
    """Take all of it up. In the loop's thread, before anything else happens."""
    event = restored.event
    if not (restored.clusters or event.nodes):
        return
    guests = {kept.opened.computation.id: _guest(pool, kept, restored) for kept in restored.clusters}
    for job in event.jobs:
        guests[job.cluster].jobs[number_of(job)] = job
        _offer_again(pool, [] if job.blob is None else [job.blob])
        if job.options is not None and job.options.depends is not None:
            _offer_again(pool, job.options.depends.contents)
    for share in event.shares:
        held = refs_of(share.files)
        guests[share.cluster].held += held
        _offer_again(pool, held)
    service = pool.service
    for guest in guests.values():
        opening.restore(guest)
        if not guest.is_over:
            service.owners[guest.id] = guest
    service.handle(event)
    for share in event.shares:
        service.allocating.note(share.cluster, share.node, share.cpus)
    for known in event.nodes:
        service.links.remember(known.node, known.info, restored.places[known.node])
        pool.departed.joined(known.node, known.info.name, known.address, known.info.cpus)
    service.core.restore_accounts(restored.accounts)
    if guests:
        counts = in_words(len(guests), len(event.jobs), sum(map(len, restored.ends.values())))
        logger.info("going on with %s", counts)


def _guest(pool: Pool, kept: KeptCluster, restored: Restored) -> Guest:
    id = kept.opened.computation.id
    guest = Guest(
        pool,
        kept.opened,
        Identity.of_key(kept.user),
        kept.opened_at,
        stored=kept.stored,
        highest=restored.highest.get(id, 0),
        unread=restored.ends.get(id, ()),
    )
    if kept.state == "ended":  # by its client, which says so again, or because that was away
        guest.is_resting = True
        guest.ended()
    spec = kept.opened.computation
    guest.held += refs_of(spec.files) + ([] if spec.code is None else [spec.code])
    _offer_again(pool, guest.held)
    return guest


def _offer_again(pool: Pool, refs: Iterable[BlobRef]) -> None:
    for ref in refs:
        try:
            pool.staging.offer_again(ref)
        except TransferError as error:
            logger.error("what a job needs is not here any more: %s", error)


def in_words(clusters: int, jobs: int, results: int) -> str:
    """What lies in a store."""
    return (
        f"{counted(clusters, 'cluster')}, {counted(jobs, 'pending job')}, "
        f"{counted(results, 'result that nobody has taken', 'results that nobody has taken')}"
    )
