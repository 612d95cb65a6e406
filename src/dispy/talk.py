"""The methods of a cluster by which a program talks with nodes about its running jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dispy.clusterbase import ClusterBase
from dispy.errors import ShippingError, TransferError
from dispy.job import DispyJob
from dispy.logs import logger
from dispy.scheduler.jobs import JobRecord
from dispy.shipping import destination
from dispy.unpickling import loads_arguments


class NodeTalk(ClusterBase):
    """What a cluster asks of single nodes. A node is a `DispyNode`, an address or a name."""

    def send_file(self, path: str, node: Any, relay: bool = False) -> int:
        """Copy a file into the computation's directory on a node, and wait until it is there.

        Args:
            path: below the working directory it keeps its place, else only its name.
            node: which.
            relay: accepted for old programs; files always travel over the scheduler's link.

        Returns:
            0, or -1 when the cluster does not use that node or the file did not get there; the log says why.

        Raises:
            ShippingError: the file cannot be read.
        """
        self._check_open()
        found = self._ledger.find_node(node)
        if found is None:
            return -1
        local = Path(path).absolute()
        try:
            reason = self._portal.call(self.service.send_file(found.process, self._id, local, destination(local)))
        except TransferError as error:
            raise ShippingError(f"send_file: {error}") from error
        if reason:
            logger.warning("%s was not sent to node %s: %s", path, found.name, reason)
        return -1 if reason else 0

    def node_jobs(self, node: Any, from_node: bool = False) -> list[DispyJob]:
        """The jobs of this cluster on a node.

        Args:
            node: which.
            from_node: ask the node which run at this moment; else all that were handed to it and have not ended.
        """
        self._check_open()
        found = self._ledger.find_node(node)
        if found is None:
            return []
        records = self._portal.call(self.service.jobs_at(self._id, found.process, from_node=from_node))
        return [record.handle for record in records if isinstance(record.handle, DispyJob)]

    def _tail(self, record: JobRecord) -> tuple[Any, Any]:
        """What one of its jobs has printed so far (see `DispyJob.tail`)."""
        stdout, stderr = self._portal.call(self.service.tail(record))
        if self._ledger.spec.kind != "function":
            return stdout, stderr
        return stdout.decode(errors="replace"), stderr.decode(errors="replace")

    def _arguments(self, record: JobRecord) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the function of one of its jobs is called with (see `DispyJob._args`)."""
        data = self.service.arguments_of(record)
        return ((), {}) if data is None else loads_arguments(data)
