"""The language of daemon, fork server and worker: frames over socketpairs, and the cell of shared memory.

The fork server and its workers run beside user code, in any interpreter: only the standard library here, no pickle.

Control channel (daemon ↔ fork server): `CONTROL` header (kind, flags unused, length of JSON, length of payload), JSON, payload.

  daemon → fork server                                      fork server → daemon
    LOAD    {spec…} + pickled namespace                       LOADED  {pid, threads, setup_in}
                                                              FAILED  {reason, trace}: load or setup failed
    FORK    {worker} with 4 descriptors (FORK_FDS)            FORKED  {worker, pid}
    RECALL  {worker, before}                                  RECALLED{worker, first, before}
    SIGNAL  {worker, sequence, signal}                        DIED    {worker, status, memory}
    CLEANUP {}                                                CLEANED {trace}

Job channel (daemon ↔ worker): daemon → worker is `JOB` + arguments; one descriptor rides along when `fds` is 1
(then the arguments are the content of that sealed memfd and `size` is 0).
worker → daemon is `REPLY` + body (result, stdout, stderr, error text); one descriptor rides along when `fds` is 1
(then the body is the content of that memfd and nothing follows the header).

A worker numbers its jobs by `sequence`: 1, 2, 3 … in the order in which the daemon sent them.

The cell is an array of eight-byte unsigned integers, one word written by one side only; an aligned eight-byte store is
atomic on every machine we run on. RUNNING … are indices into it.
"""

from __future__ import annotations

import struct
from typing import Final

CONTROL: Final = struct.Struct("<BBHII")  # kind, unused, unused, size of JSON, size of payload

LOAD, FORK, RECALL, SIGNAL, CLEANUP = range(1, 6)
LOADED, FAILED, FORKED, RECALLED, DIED, CLEANED = range(17, 23)

FORK_FDS: Final = 4
"""Descriptors with FORK, in this order: job socket, cell, stdout memfd, stderr memfd."""

JOB: Final = struct.Struct("<QIHH")  # sequence, size, fds, unused
REPLY: Final = struct.Struct("<QBBHIIIIdd")
# sequence, ending (model.Ending), fds, flags, sizes of result, stdout, stderr, error, started_at, ended_at

FLAG_RETIRE: Final = 1
"""In a reply: this worker ends itself after this reply (it would not be clean for another job)."""

CELL_SIZE: Final = 4096
RUNNING: Final = 0
"""Sequence of the job that has been claimed and whose result is not yet with the kernel; 0 = none. Written by the worker."""
CANCEL: Final = 1
"""Sequence of the job to interrupt. Written by the daemon before it asks for SIGINT."""
CLAIMED: Final = 2
"""Highest sequence that was claimed. Written by the worker under the claim lock."""
DROP_FIRST: Final = 3
DROP_BEFORE: Final = 4
"""Jobs with DROP_FIRST <= sequence < DROP_BEFORE are recalled: the worker drops them. Written by the fork server under the claim lock."""
STDOUT_AT: Final = 5
STDERR_AT: Final = 6
"""Where in the memfds the output of the running job begins. Written by the worker."""
MEMORY_AT_FORK: Final = 7
"""Private bytes of the worker at its start. Written by the worker."""

LOW_FD: Final = 500
"""Descriptors of ours stay at or above this number, out of the reach of user code that closes low ones."""
