"""The language of daemon, fork server and worker: frames over socketpairs, and the cell of shared memory.

The fork server and its workers run beside user code, in any interpreter: only the standard library here, no pickle.

Control channel (daemon ↔ fork server): `CONTROL` header (kind, unused, sizes of JSON and payload), JSON, payload.

  daemon → fork server                                      fork server → daemon
    LOAD    {spec…} + pickled namespace                       LOADED  {pid, threads, setup_in}
                                                              FAILED  {reason, trace}: load or setup failed
    FORK    {worker} with 4 descriptors (FORK_FDS)            FORKED  {worker, pid}
    RECALL  {worker, before}                                  RECALLED{worker, first, before}
    SIGNAL  {worker, sequence, signal}                        DIED    {worker, status, memory, error}
    CLEANUP {}                                                CLEANED {trace}

  `sequence` 0 in SIGNAL means the worker itself, whatever it runs. DIED has a `status` as `waitpid` gives it, or
  null and an `error` when the fork failed. RECALLED names the jobs first <= sequence < before; they will not start.

Job channel (daemon ↔ worker): daemon → worker is `JOB` + extra + arguments; `size` is that of both, `extra` that of
the JSON object in front, 0 for the usual job; one descriptor rides along when `fds` is 1 (then the arguments are the
content of that sealed memfd, and only the extra follows). What the extra may say: `env`, variables for this job;
`memory`, bytes that it may use.
`sequence` 0 is no job: its extra tells of a scattered object (`object`, the name in hexadecimal; its file rides along)
or which ones to forget (`forget`, a list of names).
worker → daemon is `REPLY` + body (result, stdout, stderr, error text); one descriptor rides along when `fds` is 1
(then the body is the content of that memfd and nothing follows the header).
A reply with the ending PROVISIONAL or SENT_FILE does not end its job. SENT_FILE brings two descriptors, the open file
and a socket, and its body (JSON: path, size, digest, mode, mtime) follows the header; one byte over that socket says
that the file has arrived, its end says that it has not.

A worker numbers its jobs by `sequence`: 1, 2, 3 … in the order in which the daemon sent them.

The cell is an array of eight-byte unsigned integers, one word written by one side only; an aligned eight-byte store is
atomic on every machine we run on. RUNNING … are indices into it.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

CONTROL: Final = struct.Struct("<BBHII")  # kind, unused, unused, size of JSON, size of payload

FRESH: Final = -1
"""On the command line, in place of a descriptor: this is the first start of a fork server, not a second one without
setup."""

LOAD, FORK, RECALL, SIGNAL, CLEANUP = range(1, 6)
LOADED, FAILED, FORKED, RECALLED, DIED, CLEANED = range(17, 23)

FORK_FDS: Final = 4
"""Descriptors with FORK, in this order: job socket, cell, stdout memfd, stderr memfd."""

JOB: Final = struct.Struct("<QIIHxx")  # sequence, size, extra, fds
REPLY: Final = struct.Struct("<QBBHIIIIdd")
# sequence, ending (model.Ending), fds, flags, sizes of result, stdout, stderr, error, started_at, ended_at

FINISHED, RAISED, _, NOT_STARTED, INTERRUPTED, LIMITED, UNSENDABLE = range(7)
"""As `dispy.model.Ending`, which needs more than the standard library; a test compares them."""
PROVISIONAL: Final = 7
"""As `model.Ending`; a test compares them. Whatever is less ends the job."""
SENT_FILE: Final = 8
"""Only here: the job sends a file."""

FLAG_RETIRE: Final = 1
"""In a reply: this worker ends itself after this reply (it would not be clean for another job)."""

SETUP_FAILED: Final = 120
CLEANUP_FAILED: Final = 121
"""Exit codes of a worker whose setup or cleanup failed (only where these run in workers); its stderr says how."""
SHUTDOWN_ASKED: Final = 122
"""Exit code of a worker whose cleanup has called `dispynode_shutdown()`."""
DESCRIPTORS_GONE: Final = 123
"""Exit code of a worker whose job has closed what it speaks through."""

CELL_SIZE: Final = 4096
RUNNING: Final = 0
"""Sequence of the job that was claimed and whose result is not yet with the kernel; 0 = none. Written by the worker."""
CANCEL: Final = 1
"""Sequence of the job to interrupt. Written by the daemon before it asks for SIGINT."""
CLAIMED: Final = 2
"""Highest sequence that was claimed. Written by the worker under the claim lock."""
DROP_FIRST: Final = 3
DROP_BEFORE: Final = 4
"""Jobs with DROP_FIRST <= sequence < DROP_BEFORE are recalled: the worker drops them.

Written by the fork server under the claim lock."""
STDOUT_AT: Final = 5
STDERR_AT: Final = 6
"""Where in the memfds the output of the running job begins. Written by the worker."""
MEMORY_AT_FORK: Final = 7
"""Private bytes of the worker at its start. Written by the worker."""

FLAG_DIRECTORY_GONE: Final = 2
"""Beside FLAG_RETIRE: the directory of the computation was gone after this job."""
LOW_FD: Final = 500
"""Descriptors of ours stay at or above this number, out of the reach of user code that closes low ones."""

INLINE: Final = 64 << 10
"""Arguments and bodies above this many bytes travel as a memfd beside their header."""

ANCILLARY: Final = socket.CMSG_SPACE(16 * 4)
"""Room for the descriptors that one read can bring."""


def control_frame(kind: int, info: Mapping[str, object], payload: bytes = b"") -> bytes:
    """One message of the control channel."""
    text = json.dumps(info).encode()
    return b"".join((CONTROL.pack(kind, 0, 0, len(text), len(payload)), text, payload))


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that `recvmsg` brought."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def whole_descriptors(ancillary: list[tuple[int, int, bytes]], flags: int) -> list[int]:
    """As `descriptors`, but none when this process had too few free numbers for all that were sent together."""
    found = descriptors(ancillary)
    if flags & socket.MSG_CTRUNC:
        while found:
            os.close(found.pop())
    return found


def send_with(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Write all of it to a blocking socket, with descriptors."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]
    sent = sock.sendmsg([data], ancillary)
    sock.sendall(data[sent:])


class ControlReader:
    """Cuts what arrives on a control channel into messages; holds descriptors until their message takes them."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self.fds: deque[int] = deque()

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[int, dict[str, object], bytes]]:
        """Yield (kind, JSON object, payload) of every complete message; to be exhausted."""
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= CONTROL.size:
            kind, _, _, info_size, payload_size = CONTROL.unpack_from(rest, at)
            middle = at + CONTROL.size + info_size
            end = middle + payload_size
            if end > len(rest):
                break
            yield kind, json.loads(rest[at + CONTROL.size : middle]), bytes(rest[middle:end])
            at = end
        del rest[:at]
