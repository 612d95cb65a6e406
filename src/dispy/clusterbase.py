"""What all methods of a cluster share: its parts, whether it is open, and whose it is."""

from __future__ import annotations

import os

from dispy.errors import ClosedError
from dispy.ledger import ClusterLedger
from dispy.model import ComputationId
from dispy.portal import Portal
from dispy.scheduler.access import SchedulerAccess


class ClusterBase:
    """The parts of a cluster."""

    pid: int
    """The process that made it."""
    is_closed: bool
    is_hurried: bool
    """Ctrl-C came again while its end was being waited for."""
    service: SchedulerAccess
    _id: ComputationId
    _ledger: ClusterLedger
    _portal: Portal

    @property
    def name(self) -> str:
        """The function's name or the program's path."""
        return self._ledger.spec.name

    @property
    def cpu_time(self) -> float:
        """Seconds that all jobs have run, summed."""
        return self._ledger.cpu_time

    @property
    def pending(self) -> int:
        """Jobs that have not ended."""
        return self._ledger.pending

    def _close_scattered(self) -> None:
        """The cluster is closed: nobody needs its objects any more."""

    def _check_process(self) -> None:
        if os.getpid() != self.pid:
            raise ClosedError(
                f"cluster {self.name} belongs to process {self.pid}, which forked this one ({os.getpid()}); "
                f"make a {type(self).__name__} in this process"
            )

    def _check_open(self) -> None:
        self._check_process()
        if self.is_closed:
            raise ClosedError(f"cluster {self.name} is closed; make another {type(self).__name__}")
