"""The process above a fork server, which only waits: when fork server or daemon is gone it ends everything below.

It is forked before user code is loaded, and needs the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
from typing import NoReturn

from dispy.node import linux


def guard(pid: int, control: socket.socket) -> NoReturn:
    """Wait until the fork server or the daemon is gone, end everything below, and end the way the fork server did."""
    linux.name_process("dispy-guard")
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(control.fileno(), 0)  # a hang-up is always reported
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    with contextlib.suppress(ProcessLookupError):
        if not select.select([pidfd], [], [], 0)[0]:
            os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    linux.end_children()
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and -code != signal.SIGKILL:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-code, signal.SIG_DFL)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)
