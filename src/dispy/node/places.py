"""What all computations of a node share: where their files are, what they may use, how the owner is warned."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from dispy.errors import NodeError
from dispy.model import BlobRef, FileSpec
from dispy.node import events as ev
from dispy.node.cgroups import Groups
from dispy.node.environments import Environments
from dispy.node.parcels import Parcels
from dispy.node.settings import NodeSettings
from dispy.node.startgate import StartGate
from dispy.node.venvs import VirtualEnvironments
from dispy.node.workdir import Prefix, Workdirs
from dispy.wire.blobs import BlobSources, BlobStore
from dispy.wire.blobstore import NoRoom
from dispy.wire.datagrams import RateLimit

if TYPE_CHECKING:
    from dispy.node.initfile import InitFile

logger = logging.getLogger("dispy.node")

WARN_INTERVAL: Final = 600.0
"""Seconds until the same warning is given again."""


class TooLarge(NodeError):
    """Something is larger than the node's owner allows, which that of another node may allow."""


class NodePlaces(Struct):
    """What all computations of a node share."""

    prefix: Prefix
    workdirs: Workdirs
    store: BlobStore
    sources: BlobSources
    parcels: Parcels
    environments: Environments
    venvs: VirtualEnvironments
    growth_limit: int
    """Bytes by which workers may grow before they are replaced: a CPU's part of the machine's memory."""
    groups: Groups | None
    """Control groups for workers whose jobs have a memory limit; None where the machine grants none."""
    names: dict[str, str]
    """What jobs may know of the node (dispy_node_name, …)."""
    settings: NodeSettings
    init: InitFile | None
    post: Callable[[ev.Event], None]
    wall: Callable[[], float]
    starts: StartGate
    """Of fork servers."""
    warned: RateLimit = field(default_factory=lambda: RateLimit(WARN_INTERVAL))

    def say(self, warning: str) -> None:
        """Warn the node's owner, unless that was said not long ago: programs try again every few seconds."""
        if self.warned.allows(warning, time.monotonic()):
            logger.warning("%s", warning)

    def check_size(self, file: FileSpec) -> None:
        """Refuse a file that is larger than the node's owner allows.

        Raises:
            TooLarge: it is.
        """
        self._check(file.blob, f"the file {file.path}")

    def check_object(self, blob: BlobRef) -> None:
        """The same for a scattered object, which is kept as a file."""
        self._check(blob, "it")

    def _check(self, blob: BlobRef, called: str) -> None:
        most = self.settings.max_file_size
        if most and blob.size > most:
            raise TooLarge(f"{called} has {blob.size:,} bytes, and this node takes at most {most:,} (--max_file_size)")


def lacks_room(error: Exception) -> bool:
    """Whether something is not here because this machine cannot store it, as another may."""
    cause = error if isinstance(error, OSError) else error.__cause__
    is_full = isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}
    return is_full or isinstance(error, NoRoom | TooLarge)
