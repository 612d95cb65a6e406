"""The two parties of a link: who this process is there and how long silence may last, and who the other one is."""

from __future__ import annotations

from msgspec import Struct

from dispy.model import ProcessId, Role
from dispy.secrets import Credentials
from dispy.settings import GRACE_TIMEOUT, HANDSHAKE_TIMEOUT, HEARTBEAT_INTERVAL, SUSPECT_TIMEOUT
from dispy.wire.handshake import Identity
from dispy.wire.session import Intervals


class Peer(Struct, frozen=True):
    """The process at the other end of a link, as it has proved to be."""

    process: ProcessId
    role: Role
    name: str
    address: str
    port: int
    capabilities: frozenset[str]


class LinkSettings(Struct, frozen=True):
    """Who this process is on its links, and how long silence may last (seconds)."""

    process: ProcessId
    role: Role
    name: str
    credentials: Credentials
    group: str = ""
    admin: Credentials | None = None
    """What a dialler must know that comes as admin; None: there are no admin links."""
    heartbeat_interval: float = HEARTBEAT_INTERVAL
    suspect_timeout: float = SUSPECT_TIMEOUT
    grace_timeout: float = GRACE_TIMEOUT

    @property
    def identity(self) -> Identity:
        """For the handshake."""
        return Identity(self.process, self.role, self.name, self.credentials, self.group, admin_keys=self.admin)

    @property
    def intervals(self) -> Intervals:
        """For the session."""
        return Intervals(self.heartbeat_interval, self.suspect_timeout, self.grace_timeout, HANDSHAKE_TIMEOUT)
