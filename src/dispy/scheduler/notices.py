"""Tells the owners of clusters what the core says: who has which job, how jobs ended, which nodes came and went."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, MutableMapping

from dispy.logs import logger
from dispy.model import ComputationId, ProcessId
from dispy.nodes import NodeView
from dispy.recovery.recorder import Recorder
from dispy.scheduler.allocating import Allocating
from dispy.scheduler.durable import DurableMarks
from dispy.scheduler.effects import (
    AskAllocation,
    ClusterEnded,
    JobEnded,
    JobRequeued,
    JobsEnded,
    JobSpoke,
    JobsStarted,
    NodeClosed,
    NodeMeasured,
    NodeOffered,
    NodeOpened,
    NodeRefused,
    NodeVanished,
    Notice,
    ResultDropped,
)
from dispy.scheduler.jobs import JobRecord
from dispy.scheduler.links import NodeLinks
from dispy.scheduler.offers import FileOffers
from dispy.scheduler.owner import ClusterOwner
from dispy.scheduler.search import KILLED


class NoticeBoard:
    """Tells notices, in the loop's thread. What one owner does wrong is no matter of the others."""

    def __init__(
        self,
        owners: MutableMapping[ComputationId, ClusterOwner],
        links: NodeLinks,
        offers: FileOffers,
        allocating: Allocating,
        durable: DurableMarks,
        recorder: Recorder,
        spawn: Callable[[Coroutine[None, None, None]], None],
        predecessor: int | None,
    ) -> None:
        """`predecessor` is the id of the process whose work is gone on with."""
        self._owners = owners
        self._links = links
        self._offers = offers
        self._allocating = allocating
        self._durable = durable
        self._recorder = recorder
        self._spawn = spawn
        self._predecessor = predecessor

    def take_back(self, record: JobRecord) -> None:
        """What nodes could have fetched for a job is not wanted any more."""
        if record.blob is not None:
            self._links.sources.withdraw(record.blob.name)
        if record.options is not None and record.options.depends is not None:
            self._offers.release(record.options.depends.contents)

    def tell(self, notices: Iterable[Notice]) -> None:
        """Tell all of it."""
        for notice in notices:
            try:
                match notice:
                    case JobsEnded():
                        self._tell_ended(notice.jobs)
                    case JobsStarted():
                        self._tell_started(notice)
                    case JobSpoke():
                        owner = self._owners.get(notice.job.cluster)
                        if owner is not None:
                            owner.job_spoke(notice, self._links.view(notice.node))
                    case AskAllocation():
                        self._spawn(self._allocating.ask(notice))
                    case _:
                        self._tell_other(notice)
            except BaseException:  # the other notices are for others
                logger.exception("a cluster could not be told of %s; dispy goes on", type(notice).__name__)

    def _tell_ended(self, jobs: Iterable[JobEnded]) -> None:
        touched: dict[ComputationId, ClusterOwner] = {}
        views: dict[ProcessId, NodeView | None] = {}
        untold: set[int] = set()
        owner: ClusterOwner | None = None
        cluster: ComputationId | None = None
        for ended in jobs:
            if ended.job.cluster != cluster:
                cluster = ended.job.cluster
                owner = self._owners.get(cluster)
                if owner is not None:
                    touched[cluster] = owner
            node = ended.node
            if node is not None and node not in views:
                views[node] = self._links.view(node)
            if ended.job.blob is not None or ended.job.options is not None:
                self.take_back(ended.job)
            if owner is not None:
                try:
                    if owner.job_ended(ended, None if node is None else views[node]):
                        untold.add(ended.job.job)
                except BaseException:  # other jobs have ended as well
                    logger.exception("the end of job %s could not be told; dispy goes on", ended.job.job)
        if self._durable.keepers:
            self._durable.end(jobs, untold)
        for owner in touched.values():
            try:
                owner.batch_ended()
            except BaseException:
                logger.exception("the end of jobs of %s could not be told; dispy goes on", owner.spec.name)

    def _tell_started(self, notice: JobsStarted) -> None:
        view = self._links.view(notice.node)
        by_cluster: dict[ComputationId, list[JobRecord]] = {}
        for record in notice.jobs:
            by_cluster.setdefault(record.cluster, []).append(record)
        for cluster, records in by_cluster.items():
            owner = self._owners.get(cluster)
            if owner is not None:
                owner.jobs_started(view, records)

    def _tell_other(self, notice: Notice) -> None:
        match notice:
            case ResultDropped():
                if self._durable.keepers:
                    self._durable.drop(notice)
            case JobRequeued():
                owner = self._owners.get(notice.job.cluster)
                if owner is not None:
                    owner.job_requeued(notice, self._links.view(notice.node))
            case NodeOpened():
                view = self._links.view(notice.node)
                owner = self._owners.get(notice.cluster)
                if owner is not None and view is not None:
                    owner.node_opened(view, self._allocating.cpus(notice.cluster, view))
            case NodeClosed():
                owner = self._owners.get(notice.cluster)
                if owner is not None:
                    owner.node_closed(notice)
            case NodeVanished():
                if notice.cause != KILLED:  # of the node on this machine more has been said
                    logger.warning("%s%s", notice.sentence, "; waiting for it or another" if notice.is_last else "")
            case NodeMeasured():
                owner = self._owners.get(notice.cluster)
                if owner is not None:
                    owner.node_measured(notice.node, notice.avail)
            case NodeOffered():
                owner = self._owners.get(notice.cluster)
                if owner is not None:
                    owner.node_offered(notice.node, notice.cpus, notice.used)
            case NodeRefused():
                self._tell_refused(notice)
            case ClusterEnded():
                owner = self._owners.pop(notice.cluster, None)
                if owner is not None:
                    self._offers.withdraw(owner.spec)
                    self._recorder.cluster_over(notice.cluster)
                    self._durable.forget(notice.cluster)
                    owner.ended()

    def _tell_refused(self, refused: NodeRefused) -> None:
        view = self._links.view(refused.node)
        if refused.cluster is not None:
            owner = self._owners.get(refused.cluster)
            if owner is not None:
                owner.node_refused(view, refused)
            return
        where = view.info.name if view is not None else refused.node
        if refused.holder is not None and refused.holder.pid == self._predecessor:
            logger.debug("node %s is just letting go of what that program had there", where)
            return
        since = refused.holder.since if refused.holder is not None else 0.0
        text = f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}" if since else ""
        logger.warning("node %s cannot be used now: %s%s", where, refused.reason, text)
