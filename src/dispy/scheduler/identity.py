"""What a scheduler is made with, and what it says of itself: to nodes, and in the recovery file."""

from __future__ import annotations

import getpass
import os
import socket
import sys
import time
from pathlib import Path

from msgspec import Struct

from dispy.model import Holder, ProcessId, Role
from dispy.recovery.book import ProgramBegun
from dispy.secrets import Credentials
from dispy.settings import GRACE_TIMEOUT, HEARTBEAT_INTERVAL, SUSPECT_TIMEOUT, USUAL_MULTICAST, Multicast
from dispy.wire.link import LinkSettings


class ServiceSettings(Struct, frozen=True):
    """What clusters must have in common to share a service."""

    credentials: Credentials
    group: str
    base_port: int
    client_port: int
    """Where nodes can join this program."""
    interfaces: tuple[str, ...]
    pulse_interval: float | None = None
    """That of the first cluster: with a service of its own, a second one would wait for the first one's nodes. So it
    makes no difference between two of these."""
    multicast: Multicast = USUAL_MULTICAST
    ext_host: str = ""
    """Where others reach this machine; nodes show it as the place of the program that holds them."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServiceSettings) and self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._compared())

    def _compared(self) -> tuple[object, ...]:
        ports = self.base_port, self.client_port
        return self.credentials, self.group, *ports, self.interfaces, self.multicast, self.ext_host


def this_holder(ext_host: str) -> Holder:
    """What nodes tell others of this program while it holds them."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid())
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    program = program.encode(errors="backslashreplace").decode()  # the name of a file need not be UTF-8
    return Holder(user, ext_host or socket.gethostname(), os.getpid(), program, time.time())


def program_begun(holder: Holder, token: bytes, settings: ServiceSettings) -> ProgramBegun:
    """The first entry of a recovery file."""
    return ProgramBegun(
        token=token,
        key_id=settings.credentials.key_id,
        group=settings.group,
        base_port=settings.base_port,
        user=holder.user,
        host=socket.gethostname(),
        pid=holder.pid,
        program=holder.program,
        started_at=time.time(),
    )


def link_settings_of(process: ProcessId, settings: ServiceSettings) -> LinkSettings:
    """Who this process is on its links, and what silence there means for the pulse that the user wants."""
    pulse = settings.pulse_interval
    return LinkSettings(
        process=process,
        role=Role.SCHEDULER,
        name=socket.gethostname(),
        credentials=settings.credentials,
        group=settings.group,
        heartbeat_interval=HEARTBEAT_INTERVAL if pulse is None else pulse / 2,
        suspect_timeout=SUSPECT_TIMEOUT if pulse is None else 2.5 * pulse,
        grace_timeout=GRACE_TIMEOUT if pulse is None else 5 * pulse,
    )
