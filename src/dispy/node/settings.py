"""How a node is to be run: what the command line decides and the service obeys."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from dispy.node.account import Account
from dispy.node.window import ServiceWindow
from dispy.secrets import Credentials
from dispy.settings import BASE_PORT, GRACE_TIMEOUT, USUAL_MULTICAST, ZOMBIE_INTERVAL, Multicast


class NodeSettings(Struct, frozen=True):
    """How a node is to be run."""

    name: str
    cpus: int
    prefix: Path
    credentials: Credentials
    admin: Credentials | None = None
    """What admins prove; None: nobody steers this node over a link."""
    group: str = ""
    hosts: tuple[str, ...] = ()
    """Addresses or names to listen on; empty: as `interfaces` say."""
    interfaces: tuple[str, ...] = ()
    base_port: int = BASE_PORT
    insist_on_port: bool = False
    """The user named the port: do not take another one."""
    ephemeral: bool = False
    """Listen on any free port and take no part in discovery (the embedded node)."""
    multicast: Multicast = USUAL_MULTICAST
    ext_hosts: tuple[tuple[str, int], ...] = ()
    """Hosts and ports (0: the one that it listens at) where others reach it, behind NAT for example."""
    joins: tuple[tuple[str, int], ...] = ()
    clean: bool = False
    remove_prefix: bool = False
    """Remove the directory at the end."""
    environments: Path | None = None
    """Where virtual environments are kept; None: below `prefix`."""
    oversubscribe: bool = False
    tags: tuple[str, ...] = ()
    memory: int = 0
    """Bytes that are offered; 0: all of the machine."""
    gpus: int = 0
    nice: int = 0
    """Niceness of jobs."""
    idle_only: float | None = None
    """Load of others, in CPUs, above which the node rests."""
    window: ServiceWindow | None = None
    serve: int | None = None
    """Programs after which the node ends."""
    client_shutdown: bool = False
    zombie_interval: float = ZOMBIE_INTERVAL
    ping_interval: float = 0.0
    msg_timeout: float = GRACE_TIMEOUT
    """Seconds of silence after which a link is lost."""
    max_file_size: int = 0
    force_cleanup: bool = False
    keep_size: int | None = None
    keep_seconds: float | None = None
    spool_size: int | None = None
    """Bytes of results that may wait on the disk; None: no limit."""
    handles: Path | None = None
    """Where a file says how this node is reached, for each lease; None: nowhere."""
    account: Account | None = None
    """Who jobs run as; None: as the daemon."""
    init: Path | None = None
