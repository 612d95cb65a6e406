"""How a shared scheduler is to be run: what the command line decides and the daemon obeys."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from dispy.scheduler.fairness import Policy
from dispy.secrets import Credentials
from dispy.settings import (
    BASE_PORT,
    GRACE_TIMEOUT,
    SCHEDULER_PORT_OFFSET,
    USUAL_MULTICAST,
    ZOMBIE_INTERVAL,
    Multicast,
)


class SharingSettings(Struct, frozen=True):
    """How it is to be run."""

    prefix: Path
    nodes: Credentials
    """Towards nodes."""
    clients: Credentials
    """Towards clients."""
    admin: Credentials | None = None
    """What proves that somebody may steer all clusters; None: nobody may."""
    name: str = ""
    """Shown to clients; empty: the host name."""
    group: str = ""
    hosts: tuple[str, ...] = ()
    """Addresses or names to listen on; empty: as `interfaces` say."""
    interfaces: tuple[str, ...] = ()
    ext_host: str = ""
    base_port: int = BASE_PORT
    multicast: Multicast = USUAL_MULTICAST
    use: tuple[str, ...] = ("*",)
    """The nodes that may be used: hosts, HOST:PORT and patterns."""
    pulse_interval: float = GRACE_TIMEOUT / 5
    """Seconds between heartbeats; a node or client is lost after five."""
    ping_interval: float | None = None
    zombie_interval: float = ZOMBIE_INTERVAL
    max_file_size: int = 0
    policy: Policy = Policy.FAIR
    max_cpus_per_user: int = 0
    max_jobs_per_user: int = 0
    cooperative: bool = False
    cleanup_nodes: bool = False
    clean: bool = False

    @property
    def client_port(self) -> int:
        """Where clients dial."""
        return self.base_port + SCHEDULER_PORT_OFFSET
